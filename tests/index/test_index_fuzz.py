"""Random sequences of calls to InvertedIndex, sane and not, against a model in plain Python.

`CSRKERN_FUZZ_EXAMPLES=100000 pytest tests/index/test_index_fuzz.py` runs for long.
"""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from csrkern import InvertedIndex, Rerank, SparseCodes, reference

EXAMPLES = int(os.environ.get("CSRKERN_FUZZ_EXAMPLES", "30"))
FORMS = ("float16", "float32", "uint8", "uint4")
MOST_HALF = 65519.99
NAN, INF = float("nan"), float("inf")

Row = list[tuple[int, np.float32]]  # latents and values as they were given, none of value 0

values = st.one_of(
    st.floats(0, 4, width=32),
    st.sampled_from([0.0, -0.0, 1e-45, 1e-30, 1e-8, 2.0**-24, 0.5, 1.0, 65504.0, 7e4, 1e30, 3e38]),
)


@st.composite
def rows(draw, dim: int, most: int = 12, least: int = 0) -> list[Row]:
    """Valid codes; latents are few, so that they meet."""
    latent = st.integers(0, min(dim, 9) - 1).map(lambda i: i if i % 3 else dim - 1 - i)
    row = st.dictionaries(latent, values, max_size=5)
    return [
        [(latent, np.float32(v)) for latent, v in one.items()]
        for one in draw(st.lists(row, min_size=least, max_size=most))
    ]


def as_pair(codes: list[Row]) -> tuple[np.ndarray, np.ndarray]:
    width = max(map(len, codes), default=0)
    pair = np.zeros((len(codes), width), np.float32), np.zeros((len(codes), width), np.int64)
    for i, row in enumerate(codes):
        for j, (latent, value) in enumerate(row):
            pair[0][i, j], pair[1][i, j] = value, latent
    return pair


def as_given(form: str, codes: list[Row], dim: int):
    """The same codes as a user may have them."""
    pair = as_pair(codes)
    if form == "pair" or min(pair[0].shape) == 0:
        return pair
    if form == "float64":
        return pair[0].astype(np.float64), pair[1].astype(np.int32)
    if form == "big-endian":
        return pair[0].astype(">f4"), pair[1].astype(">i8")
    if form == "lists":
        return [part.tolist() for part in pair]
    if form == "read-only":
        for part in pair:
            part.flags.writeable = False
        return pair
    if form == "strided":
        return np.asfortranarray(pair[0][:, ::-1]), pair[1][:, ::-1]
    if form == "codes":
        assume(dim >= pair[0].shape[1])
        return SparseCodes(torch.from_numpy(pair[0]), torch.from_numpy(pair[1]).int(), dim)
    i, j = np.nonzero(pair[0])
    entries = pair[0][i, j], (i, pair[1][i, j])
    if form == "torch":
        return torch.sparse_coo_tensor(np.stack(entries[1]), entries[0], (len(codes), dim))
    matrix = scipy.sparse.coo_array(entries, shape=(len(codes), dim))
    return matrix if form == "coo" or dim > 10**6 else matrix.asformat(form)


ARRAYS = ("pair", "float64", "big-endian", "lists", "read-only", "strided")
GIVEN = st.sampled_from([*ARRAYS, "codes", "torch", "coo", "csr", "csc"])


def exactly_ordered(row: Row) -> Row:
    return sorted(((i, v) for i, v in row if v > 0), key=lambda entry: (-entry[1], entry[0]))


def scale_of(entries: Row) -> float:
    square = sum(float(v) * float(v) for _, v in entries)
    return 1 / np.sqrt(square) if square > 0 else 0.0


class Model:
    """What an index of these codes holds and finds."""

    def __init__(self, dim: int, metric: str, form: str) -> None:
        self.dim, self.metric, self.form = dim, metric, form
        self.largest = 1.0 if metric == "cosine" and form.startswith("u") else None
        self.stored: dict[int, Row] = {}
        self.norms: dict[int, float] = {}
        self.next_id = 0

    def can_store(self, codes: list[Row]) -> bool:
        if self.metric == "cosine" or self.form == "float32":
            return True
        most = max((v for row in codes for _, v in row), default=0)
        if self.form == "float16":
            return most < MOST_HALF
        return most <= (self.largest or 2.0**127)

    @np.errstate(all="ignore")
    def add(self, codes: list[Row], ids: list[int], norms: list[float] | None) -> None:
        most = max((v for row in codes for _, v in row), default=0)
        if self.form.startswith("u") and self.largest is None and most > 0:
            self.largest = max(2.0 ** np.ceil(np.log2(float(most))), 2.0**-94)
        for place, (id, row) in enumerate(zip(ids, codes, strict=True)):
            self.stored[id] = self.rounded(row)
            if norms is not None:
                self.norms[id] = norms[place]
        self.next_id = max([self.next_id, *(id + 1 for id in ids)])

    def rounded(self, row: Row) -> Row:
        latents = [latent for latent, v in row if v > 0]
        kept = np.array([v for _, v in row if v > 0], np.float32)
        if self.metric == "cosine":
            scaled = (kept.astype(np.float64) * scale_of(row)).astype(np.float32)
            kept = np.maximum(scaled, np.float32(1e-45))
        kept = reference.stored_values(kept, self.form, self.largest or 1.0)
        return list(zip(latents, kept, strict=True))

    @np.errstate(all="ignore")
    def search(self, query: Row, query_k: int | None, chosen: set[int], least: float):
        """All hits: (score, id), best first."""
        entries = exactly_ordered(query)[:query_k]
        if self.metric == "cosine":
            scale = scale_of(entries)
            entries = exactly_ordered([(i, np.float32(float(v) * scale)) for i, v in entries])
        hits = []
        for id in chosen & self.stored.keys():
            stored, score = dict(self.stored[id]), np.float32(0)
            for latent, weight in entries:
                if latent in stored:
                    score += np.float32(weight * stored[latent])
            if self.metric == "cosine":
                score = min(score, np.float32(1))
            if score > 0 and score >= least:
                hits.append((score, id))
        return sorted(hits, key=lambda hit: (-hit[0], hit[1]))


def refused(call) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        call()
    assert 10 < len(str(error.value)) < 600, str(error.value)[:600]


BAD_CODES = {
    "nan": lambda: ([[NAN]], [[0]]),
    "inf": lambda: ([[INF]], [[0]]),
    "beyond float32": lambda: ([[1e300]], [[0]]),
    "negative": lambda: ([[-1.0]], [[0]]),
    "latent -1": lambda: ([[1.0]], [[-1]]),
    "latent 2^31": lambda: ([[1.0]], [[2**31]]),
    "latent 2^70": lambda: ([[1.0]], [[2**70]]),
    "latent 0.5": lambda: ([[1.0]], [[0.5]]),
    "latent True": lambda: ([[1.0, 2.0]], [[True, 0]]),
    "latent text": lambda: ([[1.0]], [["0"]]),
    "twice": lambda: ([[1.0, 2.0]], [[0, 0]]),
    "shapes": lambda: (np.ones((2, 2)), np.zeros((2, 1), int)),
    "one row": lambda: (np.ones(2), np.zeros(2, int)),
    "cube": lambda: (np.ones((1, 1, 1)), np.zeros((1, 1, 1), int)),
    "ragged": lambda: ([[1.0], [1.0, 2.0]], [[0], [0, 1]]),
    "complex": lambda: (np.ones((1, 1), complex), np.zeros((1, 1), int)),
    "objects": lambda: (np.array([[object()]]), np.zeros((1, 1), int)),
    "dates": lambda: (np.zeros((1, 1), "M8[s]"), np.zeros((1, 1), int)),
    "none": lambda: None,
    "text": lambda: "codes",
    "dense": lambda: np.ones((2, 2)),
    "a dict": dict,
    "three": lambda: (np.ones((1, 1)), np.zeros((1, 1), int), 3),
    "torch dense": lambda: torch.ones(2, 2),
    "starts": lambda: broken_matrix(indptr=[0, 5, 1]),
    "starts beyond": lambda: broken_matrix(indptr=[0, 1, 2**40]),
    "column beyond": lambda: broken_matrix(indices=[0, 2**30]),
    "column -1": lambda: broken_matrix(indices=[0, -1]),
    "broken csc": lambda: broken_matrix("csc", indices=[0, 2**30]),
    "broken coo": lambda: broken_matrix("coo", row=[0, 2**30]),
    "short coo": lambda: broken_matrix("coo", row=[0]),
    "broken bsr": lambda: broken_matrix("bsr", indices=[0, -(2**30)]),
    "broken bsr starts": lambda: broken_matrix("bsr", indptr=[0, 2**30]),
    "broken lil": lambda: broken_matrix("lil", rows=[[0], [2**20]]),
    "hybrid": lambda: torch.eye(2).to_sparse(1),
}
BAD_FILTERS = [0.5, "x", [0.5], ["0"], [[[1]]], {1, 2}, {}, object(), [2**70], [True, 3], NAN]
BAD_FILTERS += [[0, 0], [1, 1, 0], np.ones(10**4, bool), np.ones((2, 2, 2), bool), 1j, [None, "x"]]
BAD_IDS = [[-1], [2**63], [2**70], [0.5], ["7"], [True, 2], [[1, 2]], "ab", [NAN], [None], 1j]
BAD_SEARCH = [
    *({"top_k": bad} for bad in (0, -1, 2**41, 2**70, 1.0, "3", None, True, NAN, [3])),
    *({"query_k": bad} for bad in (0, -1, 2**63, 2**70, 1.0, "3", True)),
    *({"min_score": bad} for bad in (NAN, "1", True, 10**400, [1], 1j)),
    *({"num_threads": bad} for bad in (0, -1, 4097, 2**70, 1.5, "2", True)),
    *({"mode": bad} for bad in ("", "quick", None, 3, "x" * 10**6)),
    *({"mode": "fast", "recall": bad} for bad in (0.1, 1, NAN, INF, "1", True)),
    {"recall": 0.9},
    {"rerank": 3},
    {"rerank": Rerank([[1.0]], 0)},
    {"rerank": Rerank([[NAN]])},
    {"rerank": Rerank("x")},
    {"mode": "fast", "rerank": Rerank([[1.0]])},
]


def broken_matrix(form: str = "csr", **arrays):
    matrix = scipy.sparse.csr_matrix(np.eye(2, dtype=np.float32)).asformat(form)
    for name, array in arrays.items():
        setattr(matrix, name, np.array(array, object if form == "lil" else None))
    return matrix


class Machine(RuleBasedStateMachine):
    @initialize(
        data=st.data(),
        dim=st.sampled_from([1, 3, 40, 5000, 2**31 - 1]),
        metric=st.sampled_from(["ip", "cosine"]),
        form=st.sampled_from(FORMS),
        cluster=st.sampled_from([None, True, False]),
        window=st.sampled_from([None, 64, 128]),
        with_norms=st.booleans(),
        raises=st.booleans(),
    )
    def build(self, data, dim, metric, form, cluster, window, with_norms, raises):
        self.folder = Path(tempfile.mkdtemp())
        self.raises = raises
        self.with_norms = with_norms
        self.model = Model(dim, metric, form)
        codes = data.draw(rows(dim))
        assume(self.model.can_store(codes))
        norms = [0.5 + i for i in range(len(codes))] if with_norms else None
        cluster = cluster and form != "uint4"
        options = {"metric": metric, "dtype": form, "cluster": cluster}
        given, streamed = data.draw(GIVEN), window is None and not with_norms
        streamed &= metric == "cosine" or form.startswith("f")  # the first chunk sets no limit
        with self.errors():
            if streamed and data.draw(st.booleans()):
                pieces = [as_given(given, codes[i : i + 3], dim) for i in range(0, len(codes), 3)]
                assume(pieces)
                self.index = InvertedIndex.build_streaming(
                    pieces, self.folder / "index", dim=dim, chunk=4, **options
                )
            else:
                self.index = InvertedIndex.build(
                    as_given(given, codes, dim), dim=dim, norms=norms, window=window, **options
                )
        self.model.add(codes, list(range(len(codes))), norms)

    def errors(self):
        """What np.seterr says while the index works."""
        return np.errstate(all="raise" if self.raises else "warn")

    def teardown(self):
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    @rule(
        data=st.data(), given=GIVEN, with_ids=st.booleans(), threads=st.sampled_from([None, 1, 3])
    )
    def add(self, data, given, with_ids, threads):
        codes = data.draw(rows(self.model.dim))
        ids = list(range(self.model.next_id, self.model.next_id + len(codes)))
        if with_ids:
            place = st.integers(0, 60) | st.integers(10**6, 10**6 + 9)
            ids = data.draw(st.lists(place, unique=True, min_size=len(codes), max_size=len(codes)))
        norms = [0.25 + i for i in range(len(codes))] if self.with_norms else None
        call = lambda: self.index.add(  # noqa: E731
            as_given(given, codes, self.model.dim),
            ids if with_ids else None,
            norms=norms if len(self.index) or self.with_norms else None,
            num_threads=threads,
        )
        with self.errors():
            if codes and (set(ids) & self.model.stored.keys() or not self.model.can_store(codes)):
                refused(call)
            else:
                call()
                self.model.add(codes, ids, norms)

    @rule(data=st.data())
    def remove(self, data):
        assume(self.model.stored)
        ids = data.draw(st.lists(st.sampled_from(sorted(self.model.stored)), unique=True))
        self.index.remove(data.draw(st.sampled_from([ids, np.array(ids, ">i8"), tuple(ids)])))
        for id in ids:
            del self.model.stored[id]

    @rule()
    def compact(self):
        self.index.compact()

    @rule(mmap=st.booleans())
    def save_and_load(self, mmap):
        self.index.save(self.folder / "index")
        self.index = InvertedIndex.load(self.folder / "index", mmap=mmap)

    @rule(how=st.sampled_from(["pickle", "copy", "deepcopy"]))
    def duplicate(self, how):
        if how == "pickle":
            self.index = pickle.loads(pickle.dumps(self.index))
        else:
            self.index = getattr(copy, how)(self.index)

    @rule(
        data=st.data(),
        given=GIVEN,
        top_k=st.sampled_from([1, 2, 7, 1000, 1025, 10**9, 2**40]),
        query_k=st.sampled_from([None, 1, 2, 2**62]),
        min_score=st.sampled_from([None, -INF, -1, 0, 1e-50, 0.3, 1.0, 1.0000001, 1e30, INF]),
        threads=st.sampled_from([None, 1, 2, 5, 4096]),
        kind=st.sampled_from(["none", "mask", "ids", "each", "masks"]),
    )
    def search(self, data, given, top_k, query_k, min_score, threads, kind):
        queries = data.draw(rows(self.model.dim, 4))
        ids = self.index.ids
        flags = st.lists(st.booleans(), min_size=len(ids), max_size=len(ids))
        masks = [np.array(data.draw(flags), bool) for _ in range(len(queries))]
        if kind in ("none", "mask", "ids") and masks:
            masks = masks[:1] * len(masks)
        chosen = {
            "none": None,
            "mask": masks[0] if masks else np.ones(len(ids), bool),
            "ids": [*ids[masks[0]].tolist(), 10**12, 10**13] if masks else [10**12],
            "each": [ids[mask] for mask in masks] or None,
            "masks": np.array(masks) if masks else None,
        }[kind]
        if kind == "each" and any(set(ids[mask]) == {0} or len(mask) < 2 for mask in masks):
            assume(False)
        options = {"query_k": query_k, "num_threads": threads, "filter": chosen}
        rows_of = as_given(given, queries, self.model.dim)
        with self.errors():
            scores, found = self.index.search(rows_of, top_k, min_score=min_score, **options)
            least = -INF if min_score is None else min_score
            starts, all_scores, all_ids = self.index.search_above(rows_of, least, **options)
        assert scores.shape == found.shape == (len(queries), min(top_k, max(1024, len(ids))))
        for i, query in enumerate(queries):
            allowed = set(ids.tolist()) if kind == "none" else set(ids[masks[i]].tolist())
            hits = self.model.search(query, query_k, allowed, least)
            mine = slice(starts[i], starts[i + 1])
            got = list(zip(all_scores[mine], all_ids[mine].tolist(), strict=True))
            assert got == hits
            n = min(top_k, len(hits))
            assert list(zip(scores[i, :n], found[i, :n].tolist(), strict=True)) == hits[:n]
            assert (found[i, n:] == -1).all()
            assert (scores[i, n:] == -INF).all()

    @rule(data=st.data(), shortlist=st.sampled_from([1, 5, 2**40]), seed=st.integers(0, 99))
    def rerank(self, data, shortlist, seed):
        assume(self.model.dim <= 5000)
        queries = data.draw(rows(self.model.dim, 3))
        dense = np.random.default_rng(seed).standard_normal((len(queries), self.model.dim))
        pair = as_pair(queries)
        with self.errors():
            scores, ids = self.index.search(pair, 4, rerank=Rerank(dense, shortlist))
            self.index.search_dense(dense, 2**40, shortlist=shortlist, latents=2**31 - 1)
        all_ids = self.index.search(pair, shortlist)[1]
        for i in range(len(queries)):
            assert set(ids[i]) - {-1} <= set(all_ids[i])
            found = scores[i][ids[i] >= 0]
            assert (found[1:] <= found[:-1]).all()  # infinite ones may be equal, too

    @rule(data=st.data(), recall=st.sampled_from([None, 0.5, 0.999]))
    def fast(self, data, recall):
        queries = data.draw(rows(self.model.dim, 3))
        with self.errors():
            scores, ids = self.index.search(as_pair(queries), 5, mode="fast", recall=recall)
        for i, query in enumerate(queries):
            exact = {id: s for s, id in self.model.search(query, None, set(self.model.stored), -1)}
            for score, id in zip(scores[i], ids[i].tolist(), strict=True):
                assert id == -1 or exact[id] == score

    @rule(data=st.data())
    def explain(self, data):
        assume(self.model.stored)
        query = data.draw(rows(self.model.dim, 1, 1))
        id = data.draw(st.sampled_from(sorted(self.model.stored)))
        told = self.index.explain(as_pair(query), id, 3)
        assert len(told.latents) == len(told.parts)
        every = self.model.search(query[0], None, set(self.model.stored), -1)
        exact = [found for _, found in every]
        assert told.rank == (exact.index(id) + 1 if id in exact else None)
        self.index.profile(as_pair(query), 10**12)
        self.index.stats()

    @rule(bad=st.sampled_from(sorted(BAD_CODES)), where=st.sampled_from(["build", "add", "search"]))
    def bad_codes(self, bad, where):
        codes, dim = BAD_CODES[bad](), self.model.dim
        norms = [1.0] if self.with_norms else None
        with self.errors():
            refused(
                {
                    "build": lambda: InvertedIndex.build(codes, dim=dim),
                    "add": lambda: self.index.add(codes, norms=norms),
                    "search": lambda: self.index.search(codes, 3),
                }[where]
            )

    @rule(bad=st.sampled_from(BAD_FILTERS))
    def bad_filter(self, bad):
        one = np.ones((1, 1)), np.zeros((1, 1), int)
        with self.errors():
            refused(lambda: self.index.search(one, filter=bad))
            refused(lambda: self.index.search_above(one, 0, filter=bad))

    @rule(bad=st.sampled_from(BAD_IDS))
    def bad_ids(self, bad):
        one = np.ones((1, 1)), np.zeros((1, 1), int)
        norms = [1.0] if self.with_norms else None
        with self.errors():
            refused(lambda: self.index.add(one, bad, norms=norms))
            refused(lambda: self.index.remove(bad))

    @rule(bad=st.sampled_from(BAD_SEARCH))
    def bad_search(self, bad):
        with self.errors():
            refused(lambda: self.index.search((np.ones((1, 1)), np.zeros((1, 1), int)), **bad))

    @rule(bad=st.sampled_from([None, 1, "1", [1], [NAN, 1.0], [-1.0, 1.0], [0, 1], [INF, 1], 1j]))
    def bad_norms(self, bad):
        two = np.ones((2, 1)), np.zeros((2, 1), int)
        if bad is not None:
            refused(lambda: InvertedIndex.build(two, dim=1, norms=bad))
        elif self.with_norms and len(self.index):
            refused(lambda: self.index.add(two))

    @invariant()
    def holds_what_it_was_given(self):
        if not hasattr(self, "index"):
            return
        ids = self.index.ids.tolist()
        assert len(self.index) == len(ids)
        assert set(ids) == self.model.stored.keys()
        stored, latents = self.index.to_numpy()
        for id, row, its in zip(ids, stored, latents, strict=True):
            got = [(int(i), v) for v, i in zip(row, its, strict=True) if v > 0]
            assert got == exactly_ordered(self.model.stored[id])


TestFuzz = Machine.TestCase
TestFuzz.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=15,
    suppress_health_check=list(HealthCheck),
)
