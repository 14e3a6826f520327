"""Random cases of `InvertedIndex.search_fine`, and the comparison with its specification."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from csrkern import FineCodes, FineQuantizer, InvertedIndex, Projection, reference

WORDS = ("normal", "huge", "tiny", "mixed", "equal", "few", "offset")
CODES = ("any", "few", "equal", "first and last")
LENGTHS = (None, "usual", "equal", "wide", "least", "largest")
FILTERS = (None, "mask", "masks", "ids", "none", "one for each")
MIN_SCORES = (None, "least", "middle", "best", "just above", -3e38, 0.0, 3e38, np.inf, -np.inf)


@dataclass(frozen=True)
class Case:
    """An index and a search; which numbers it is made of is told by names of the tuples above."""

    n: int
    parts: int
    each: int  # books of a part
    width: int  # of a part
    words: str
    codes: str
    lengths: str | None
    projection: bool
    queries: int
    zero_queries: bool
    top_k: int
    filter: str | None
    min_score: str | float | None
    segments: int
    removed: int
    seed: int
    probes: int | None

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Case:
        def one(choices: Any) -> Any:
            return choices[int(rng.integers(len(choices)))]

        parts = int(rng.integers(1, 4))
        n = int(rng.integers(0, 400))
        return cls(
            n=n,
            parts=parts,
            each=int(rng.integers(1, 40 // parts + 1)),
            width=int(rng.integers(1, 4)),
            words=one(WORDS),
            codes=one(CODES),
            lengths=one(LENGTHS),
            projection=bool(rng.random() < 0.3),
            queries=int(one([0, 1, 3, 4, 5, 31, 32, 33, 64, 70])),
            zero_queries=bool(rng.random() < 0.3),
            top_k=int(one([1, 2, 10, 50, max(n, 1), n + 20])),
            filter=one(FILTERS),
            min_score=one(MIN_SCORES),
            segments=int(rng.integers(1, 4)),
            removed=int(one([0, 0, 1, n // 2, n])),
            seed=int(rng.integers(2**32)),
            probes=one([None, None, 1, 2, 8, 100, 256]),
        )


def check(case: Case) -> None:
    """Search with one thread, two, and one query at a time: the bits of the specification."""
    rng = np.random.default_rng(case.seed)
    quantizer = quantizer_of(case, rng)
    codes = codes_of(case, quantizer.n_bytes, rng)
    index, row_of = built(case, quantizer, codes, rng)
    dim = quantizer.dim
    queries = rng.standard_normal((case.queries, dim)).astype(np.float32)
    if case.zero_queries:
        queries[::3] = 0
        queries[1::3] *= np.float32(1e-38)
    kept = codes[[row_of[i] for i in index.ids.tolist()]]
    tables, offsets = quantizer.tables(queries)
    twin = {"scales": quantizer.scales, "ids": index.ids}
    chosen, allowed = filter_of(case, index, rng)
    everything = reference.search_fine(kept, tables, offsets, max(len(index), 1), **twin)[0]
    least = min_score_of(case, everything)
    want = reference.search_fine(
        *(kept, tables, offsets, case.top_k),
        **twin,
        allowed=allowed,
        min_score=-np.inf if least is None else least,
        probes=case.probes,
    )
    for threads in (1, 2):
        options = {"filter": chosen, "min_score": least, "num_threads": threads}
        got = index.search_fine(queries, case.top_k, probes=case.probes, **options)
        assert_same(got, want, case)
    for i in range(min(case.queries, 3)):
        own = None if allowed is None else allowed[i]
        options = {"probes": case.probes, "filter": own, "min_score": least}
        got = index.search_fine(queries[i : i + 1], case.top_k, **options)
        assert_same(got, (want[0][i : i + 1], want[1][i : i + 1]), case)


def assert_same(got: Any, want: Any, about: Any = "") -> None:
    """Equal ids and equal bits of scores."""
    assert got[1].tolist() == want[1].tolist(), about
    assert got[0].tobytes() == want[0].tobytes(), about


def quantizer_of(case: Case, rng: np.random.Generator) -> FineQuantizer:
    books, whole = case.parts * case.each, case.parts * case.width
    words = rng.standard_normal((books, 256, case.width))
    if case.words == "mixed":
        words *= 10.0 ** rng.uniform(-30, 14, (books, 1, 1))
    elif case.words == "offset":  # each book's words are nearly equal
        words = 1 + 1e-5 * words
    elif case.words == "few":
        words = rng.integers(-1, 2, words.shape).astype(float)
    elif case.words == "equal":
        words = np.broadcast_to(words[:, :1], words.shape)
    else:
        words *= {"normal": 1, "huge": 1e14, "tiny": 1e-30}[case.words]
    lengths = {
        None: lambda: None,
        "usual": lambda: np.geomspace(0.5, 20, 256),
        "equal": lambda: np.full(256, 3.0),
        "wide": lambda: np.geomspace(1e-30, 1e15, 256),
        "least": lambda: np.geomspace(1.2e-38, 1e-30, 256),
        "largest": lambda: np.geomspace(1e12, 1e15, 256),
    }[case.lengths]()
    mean = rng.choice([0.0, 1.0, 1e14, 1e-30], whole) * rng.standard_normal(whole)
    projection = None
    if case.projection:
        projection = Projection(rng.standard_normal((whole, 9)), 0.1 * rng.standard_normal(9))
    return FineQuantizer(words, mean, parts=case.parts, lengths=lengths, projection=projection)


def codes_of(case: Case, n_bytes: int, rng: np.random.Generator) -> np.ndarray:
    shape = case.n, n_bytes
    if case.codes == "equal":
        return np.broadcast_to(rng.integers(0, 256, n_bytes, np.uint8), shape)
    if case.codes == "any":
        return rng.integers(0, 256, shape, np.uint8)
    few = [0, 255] if case.codes == "first and last" else [3, 4, 77]
    return rng.choice(np.array(few, np.uint8), shape)


def built(
    case: Case, quantizer: FineQuantizer, codes: np.ndarray, rng: np.random.Generator
) -> tuple[InvertedIndex, dict[int, int]]:
    """Return an index of several segments, some codes removed, and from ids to their codes."""
    ids = rng.permutation(case.n) * 3 + 5
    fine = FineCodes(codes, quantizer)
    # Segments of less than half the size of the one before are not merged.
    bounds = [0, *[case.n * 16 // 21, case.n * 20 // 21][: case.segments - 1], case.n]
    index = InvertedIndex.build(None, ids[: bounds[1]], fine=fine[: bounds[1]])
    for begin, end in pairwise(bounds[1:]):
        index.add(None, ids[begin:end], fine=fine[begin:end])
    index.remove(rng.choice(ids, case.removed, replace=False) if case.n else [])
    return index, dict(zip(ids.tolist(), range(case.n), strict=True))


def filter_of(case: Case, index: InvertedIndex, rng: np.random.Generator) -> tuple[Any, Any]:
    """Return a filter, and what it allows, bool [m, n]."""
    n, m = len(index), case.queries
    masks = rng.random((m, n)) < rng.choice([0.02, 0.5, 0.98])
    one = np.broadcast_to(rng.random(n) < 0.5, (m, n))
    if case.filter is None or (m == 0 and case.filter == "one for each"):
        return None, None
    if case.filter == "mask":
        return (one[0] if m else np.zeros(n, bool)), one
    if case.filter == "masks":
        return masks, masks
    if case.filter == "ids":
        some = np.zeros(n, bool) if m == 0 else one[0]
        return [*index.ids[some].tolist(), 4], one  # the index holds no code 4
    if case.filter == "none":
        return [], np.zeros((m, n), bool)
    kinds = [None, *(index.ids[mask] if i % 2 else mask for i, mask in enumerate(masks[1:]))]
    masks[0] = True
    return kinds, masks


def min_score_of(case: Case, scores: np.ndarray) -> float | None:
    if not isinstance(case.min_score, str):
        return case.min_score
    found = scores[np.isfinite(scores)]
    if not found.size:
        return None
    if case.min_score == "just above":
        return float(np.nextafter(found.max(), np.float32(np.inf)))
    return float(
        {"least": found.min(), "middle": np.sort(found)[found.size // 2], "best": found.max()}[
            case.min_score
        ]
    )
