"""Search by fine codes alone: what the specification finds, to the bit; indexes without lists.

`CSRKERN_FUZZ_EXAMPLES=10000 pytest tests/index/test_fine_search.py -k any_search` runs for long.
"""

from __future__ import annotations

import copy
import os
import pickle

import numpy as np
import pytest
import scipy.sparse
import torch
from digests import ISAS, assert_runs_with, assert_same_digests
from fine_cases import CODES, FILTERS, LENGTHS, MIN_SCORES, WORDS, Case, assert_same, check
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from csrkern import _C, FineCodes, FineQuantizer, InvertedIndex, Projection, Refine, reference
from csrkern.index.cuda.index import CudaIndex

D, BOOKS = 6, 5
EXAMPLES = int(os.environ.get("CSRKERN_FUZZ_EXAMPLES", "40"))

cases = st.builds(
    Case,
    n=st.integers(0, 300),
    parts=st.integers(1, 3),
    each=st.integers(1, 13),
    width=st.integers(1, 3),
    words=st.sampled_from(WORDS),
    codes=st.sampled_from(CODES),
    lengths=st.sampled_from(LENGTHS),
    projection=st.booleans(),
    queries=st.integers(0, 70),
    zero_queries=st.booleans(),
    top_k=st.integers(1, 320),
    filter=st.sampled_from(FILTERS),
    min_score=st.sampled_from(MIN_SCORES),
    segments=st.integers(1, 3),
    removed=st.just(0) | st.integers(0, 20),
    seed=st.integers(0, 2**32 - 1),
    probes=st.none() | st.integers(1, 256),
).filter(lambda case: case.removed <= case.n)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(cases)
def test_any_search_is_that_of_the_specification(case):
    check(case)


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_finds_the_same(isa):
    assert_same_digests("fine search", isa)
    script = "import numpy as np\nfrom fine_cases import Case, check\n"
    script += "rng = np.random.default_rng(1)\nfor _ in range(15): check(Case.drawn(rng))"
    assert_runs_with(isa, script)


def quantizer_of(words: np.ndarray, **options) -> FineQuantizer:
    """Codebooks of words [books, 256] that are numbers: one dimension."""
    return FineQuantizer(words[:, :, None], np.zeros(1), **options)


def found_and_wanted(codes, quantizer, queries, top_k, threads=1, **options):
    index = InvertedIndex.build(None, fine=FineCodes(codes, quantizer))
    found = index.search_fine(queries, top_k, num_threads=threads, **options)
    tables, offsets = quantizer.tables(queries)
    options.pop("filter", None)
    want = reference.search_fine(
        codes, tables, offsets, found[0].shape[1], scales=quantizer.scales, **options
    )
    return found, want


def digits(numbers: np.ndarray, books: int) -> np.ndarray:
    """Numbers in base 256, the highest digit first."""
    return (numbers[:, None] >> 8 * np.arange(books)[::-1]).astype(np.uint8)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("n", [4095, 4096, 4097, 16_384, 40_000])
@pytest.mark.parametrize("order", ["ascending", "descending", "equal"])
def test_scores_in_the_order_of_documents(order, n, threads):
    """Every document beats the bar, none does, or all tie."""
    words = np.arange(256) * 256.0 ** np.arange(2)[::-1, None]
    numbers = {"ascending": np.arange(n), "descending": np.arange(n)[::-1], "equal": np.ones(n)}
    codes = digits(numbers[order].astype(int) + 300, 2)
    queries = np.array([[1.0], [-1.0], [0.25], [0.0], [1e-30], [2.0], [1e14], [-3.0]])
    for some in (queries, queries[:1]):
        for top_k in (1, 100):
            found, want = found_and_wanted(codes, quantizer_of(words), some, top_k, threads)
            assert_same(found, want)


def test_one_query_is_divided_by_documents_and_a_batch_by_queries():
    """More than 16,384 documents a thread, in two segments with removed ones."""
    rng = np.random.default_rng(0)
    n = 50_000
    codes = rng.integers(0, 256, (n, BOOKS + 1), np.uint8)
    quantizer = FineQuantizer(
        rng.standard_normal((BOOKS, 256, D)), rng.standard_normal(D), lengths=np.linspace(1, 9, 256)
    )
    fine = FineCodes(codes, quantizer)
    index = InvertedIndex.build(None, fine=fine[:35_000])
    index.add(None, fine=fine[35_000:])
    index.remove(np.arange(0, n, 7))
    kept = codes[index.ids]
    queries = rng.standard_normal((40, D)).astype(np.float32)
    tables, offsets = quantizer.tables(queries)
    mask = rng.random((40, len(index))) < 0.5
    for m in (1, 3, 4, 7, 40):
        for allowed in (None, mask[:m]):
            want = reference.search_fine(
                *(kept, tables[:m], offsets[:m], 20),
                scales=quantizer.scales,
                ids=index.ids,
                allowed=allowed,
            )
            for threads in (1, 2, 3):
                options = {"filter": allowed, "num_threads": threads}
                assert_same(index.search_fine(queries[:m], 20, **options), want, (m, threads))


@pytest.mark.parametrize("lengths", [(1.2e-38, 1e-36), (1e-38 * 2, 1e15), (1e10, 1e15)])
def test_products_that_overflow_or_lose_their_bits_tie(lengths):
    """Scores beyond the largest number, or with few bits left, are equal: the lower id is first.

    The bounds of a batch tell such documents apart, although their scores are one.
    """
    rng = np.random.default_rng(1)
    low, high = lengths
    for words in (1e14 * rng.standard_normal((3, 256)), 1e-28 * rng.standard_normal((3, 256))):
        codes = np.column_stack([rng.integers(0, 256, (500, 3)), np.arange(500) % 256])
        quantizer = quantizer_of(words, lengths=np.geomspace(low, high, 256))
        queries = np.array([[1.0], [-1.0], [0.5], [-2.0], [1.0]])
        found, want = found_and_wanted(codes.astype(np.uint8), quantizer, queries, 10)
        assert_same(found, want)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 3e38])
def test_tables_that_are_not_finite(odd):
    """No quantizer makes such tables; the native search takes them as the specification does."""
    rng = np.random.default_rng(2)
    quantizer = quantizer_of(np.ones((3, 256)))
    for place in (0, 15, 16, 77, 255):
        codes = rng.integers(0, 256, (400, 3), np.uint8)
        codes[20:, 1:] = place
        index = InvertedIndex.build(None, fine=FineCodes(codes, quantizer))
        tables = rng.standard_normal((6, 3, 256)).astype(np.float32)
        tables[:, 0] *= 10
        tables[::2, 1:, place] = odd
        tables[2, 0, 3] = -tables[2, 1, place]
        offsets = np.array([0, 1, 2, odd, 4, 5], np.float32)
        for m in (6, 1):
            found = _C.search_fine(
                [(index.snapshot().segments[0].native, None)],
                tables=tables[:m],
                offsets=offsets[:m],
                scales=None,
                top_k=50,
                min_score=-np.inf,
                num_threads=1,
            )
            assert_same(found, reference.search_fine(codes, tables[:m], offsets[:m], 50), place)


def test_a_search_in_cells_reads_those_of_the_best_words():
    """The first of three segments has more than 65,536 documents; stats counts what was made."""
    rng = np.random.default_rng(3)
    n = 80_000
    codes = rng.integers(0, 256, (n, 4), np.uint8)
    codes[:, 0] = np.minimum(codes[:, 0], rng.integers(0, 256, n))  # cells of unequal size
    quantizer = FineQuantizer(rng.standard_normal((4, 256, D)), rng.standard_normal(D))
    fine = FineCodes(codes, quantizer)
    index = InvertedIndex.build(None, fine=fine[:70_000])
    index.add(None, fine=fine[70_000:78_000])
    index.add(None, fine=fine[78_000:])
    index.remove(np.arange(0, n, 3))
    assert index.stats()["forward_bytes"] == 0
    queries = rng.standard_normal((300, D)).astype(np.float32)
    tables, offsets = quantizer.tables(queries)
    for m, probes in ((1, 7), (300, 1), (300, 7)):
        want = reference.search_fine(
            *(codes[index.ids], tables[:m], offsets[:m], 10), ids=index.ids, probes=probes
        )
        for threads in (1, 2):
            options = {"probes": probes, "num_threads": threads}
            assert_same(index.search_fine(queries[:m], 10, **options), want, (m, probes))
    assert 2 * n < index.stats()["forward_bytes"] < 2.2 * n


def listless(n: int = 300, projection: bool = True, **options) -> tuple[InvertedIndex, FineCodes]:
    rng = np.random.default_rng(3)
    quantizer = FineQuantizer(
        rng.standard_normal((BOOKS, 256, D)),
        0.1 * rng.standard_normal(D),
        lengths=np.geomspace(0.5, 20, 256),
        projection=Projection(rng.standard_normal((D, 8)), np.zeros(8)) if projection else None,
    )
    fine = quantizer.encode(np.random.default_rng(4).standard_normal((n, quantizer.dim)))
    return InvertedIndex.build(None, fine=fine, **options), fine


QUERIES = np.random.default_rng(5).standard_normal((9, 8)).astype(np.float32)


def test_many_queries_are_searched_in_pieces(monkeypatch):
    index, _ = listless()
    queries = np.random.default_rng(6).standard_normal((70, 8))
    masks = np.random.default_rng(7).random((70, 300)) < 0.5
    whole = index.search_fine(queries, 12, filter=masks)
    monkeypatch.setattr("csrkern.index.rerank._TABLES_CACHED", 0)
    assert_same(index.search_fine(queries, 12, filter=masks), whole)


def test_an_index_without_lists_travels(tmp_path):
    index, _ = listless()
    want = index.search_fine(QUERIES, 12)
    index.save(tmp_path / "index")
    for other in (
        InvertedIndex.load(tmp_path / "index"),
        InvertedIndex.load(tmp_path / "index", mmap=False, verify=True),
        pickle.loads(pickle.dumps(index)),
        copy.deepcopy(index),
        index.truncate(3),
    ):
        assert_same(other.search_fine(QUERIES, 12), want)
        assert (other.k, len(other)) == (0, 300)
        assert other.quantizer.fingerprint == index.quantizer.fingerprint


def test_a_large_index_without_lists_is_mapped(tmp_path):
    """More documents than a small file may claim: their fine codes account for them."""
    n = (1 << 20) + 100
    quantizer = quantizer_of(np.random.default_rng(0).standard_normal((2, 256)))
    codes = digits(np.arange(n), 2)
    InvertedIndex.build(None, fine=FineCodes(codes, quantizer)).save(tmp_path / "index")
    index = InvertedIndex.load(tmp_path / "index")
    assert index.stats()["mapped_bytes"] >= codes.nbytes
    tables, offsets = quantizer.tables(np.array([[1.0]]))
    want = reference.search_fine(codes, tables, offsets, 5)
    assert_same(index.search_fine([[1.0]], 5, num_threads=2), want)


def test_an_index_without_lists_changes():
    index, fine = listless(ids=np.arange(300)[::-1])
    want = index.search_fine(QUERIES, 12)
    best = np.unique(want[1][:, :2])
    index.remove(best)
    assert not np.isin(index.search_fine(QUERIES, 12)[1], best).any()
    index.compact()
    assert len(index) == 300 - len(best)
    index.add(None, best, fine=fine[299 - best])
    assert_same(index.search_fine(QUERIES, 12), want)
    index.remove(index.ids)
    index.compact()
    assert index.search_fine(QUERIES, 3)[1].max() == -1
    index.add(None, fine=fine)
    assert index.ids.tolist() == list(range(300, 600))


@pytest.mark.parametrize("options", [{"dtype": "uint8"}, {"cluster": True}, {"metric": "ip"}])
def test_how_codes_would_be_stored_does_not_matter(options):
    assert_same(listless(**options)[0].search_fine(QUERIES), listless()[0].search_fine(QUERIES))


def codes_of(n: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    return np.ones((n, 2), np.float32), np.tile(np.arange(2), (n, 1)) % dim


def test_codes_with_lists_and_without_mix():
    index, fine = listless(dim=64)
    index.add(codes_of(20, 64), fine=fine[:20])
    ids = index.search(codes_of(1, 64), 30)[1]
    assert sorted(ids[0, :20]) == list(range(300, 320))
    assert (ids[0, 20:] == -1).all()
    assert len(index.search_fine(QUERIES[:1], 400)[1][0]) == 400
    assert (index.search_fine(QUERIES[:1], 320)[1] >= 0).all()
    back = InvertedIndex.build(codes_of(300, 64), dim=64, fine=fine)
    back.add(None, fine=fine[:20])
    assert_same(back.search_fine(QUERIES, 320), index.search_fine(QUERIES, 320))
    refined = back.search(codes_of(9, 64), 300, rerank=Refine(QUERIES, 300))
    assert (np.sort(refined[1], 1) == np.arange(300)).all()


def test_what_does_not_go_together_says_why(tmp_path):
    index, fine = listless()
    plain = InvertedIndex.build(codes_of(5, 64), dim=64)
    for search in (
        lambda: index.search(codes_of(2, 1)),
        lambda: index.search(codes_of(2, 1), mode="fast"),
        lambda: index.search(codes_of(2, 1), rerank=Refine(QUERIES[:2])),
        lambda: index.search_above(codes_of(2, 1), 0.5),
        lambda: index.search_dense(np.ones((2, 1))),
    ):
        with pytest.raises(ValueError, match=r"holds no lists to search by codes; search_fine"):
            search()
    with pytest.raises(ValueError, match="queries: this index holds no fine codes; build it"):
        plain.search_fine(QUERIES)
    with pytest.raises(ValueError, match="codes: expected codes, or fine codes in their place"):
        InvertedIndex.build(None)
    with pytest.raises(ValueError, match="codes: expected codes, or fine codes in their place"):
        index.add(None)
    with pytest.raises(ValueError, match="fine: expected None, as the index was built without"):
        plain.add(None, fine=fine)
    with pytest.raises(ValueError, match="fine: expected each code with its fine code"):
        index.add(codes_of(2, 1))
    with pytest.raises(ValueError, match="codes: expected codes over 1 latents, got 64"):
        index.add(scipy.sparse.csr_matrix(np.ones((2, 64))), fine=fine[:2])
    with pytest.raises(TypeError, match="fine: expected FineCodes"):
        InvertedIndex.build(None, fine=fine.codes)
    with pytest.raises(ValueError, match=r"ids: expected one id for each of 300 codes, got \[3\]"):
        InvertedIndex.build(None, [1, 2, 3], fine=fine)
    with pytest.raises(TypeError, match="codes: expected a path, a pair of arrays or an iterable"):
        InvertedIndex.build_streaming(None, tmp_path / "index", fine=fine)
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("queries", "options", "message"),
    [
        (np.zeros((2, 7)), {}, r"queries: expected shape \[n, 8\], got \[2, 7\]"),
        (np.zeros(8), {}, r"queries: expected shape \[n, 8\], got \[8\]"),
        (np.full((2, 8), np.nan), {}, r"queries: expected finite numbers up to 1e\+15, got nan"),
        (np.diag([1e15, -1e16])[:, [0] * 4 + [1] * 4], {}, r"got -1e\+16 at \[1, 4\]"),
        (QUERIES, {"top_k": 0}, "top_k: expected 1 <= top_k"),
        (QUERIES, {"filter": np.ones(3, bool)}, "filter: expected a mask of 300 codes"),
        (QUERIES, {"filter": [[1], [2]]}, "filter: expected one for each of 9 queries, got 2"),
        (QUERIES, {"min_score": np.nan}, "min_score: expected a number, got nan"),
        (QUERIES, {"num_threads": 0}, "num_threads: expected"),
        (QUERIES, {"probes": 0}, "probes: expected 1 <= probes <= 256, got 0"),
        (QUERIES, {"probes": 257}, "probes: expected 1 <= probes <= 256, got 257"),
    ],
)
def test_arguments_that_are_wrong_say_why(queries, options, message):
    with pytest.raises(ValueError, match=message):
        listless()[0].search_fine(queries, **options)


def test_queries_may_have_any_form():
    index, _ = listless()
    whole = np.random.default_rng(8).integers(-8, 9, (9, 8))  # that every dtype holds
    want = index.search_fine(whole.astype(np.float32))
    for dtype in ("f2", "f8", ">f4", ">f8", "g", "i1", "i8", "O"):
        assert_same(index.search_fine(whole.astype(dtype)), want, dtype)
    floats = whole.astype(np.float32)
    spread = np.zeros((18, 24), np.float32)
    spread[::2, ::3] = floats
    unaligned = np.ndarray((9, 8), np.float32, b"." + floats.tobytes(), 1)
    for queries in (
        *(spread[::2, ::3], floats[::-1].copy()[::-1], np.asfortranarray(floats), unaligned),
        *(np.ma.array(floats), whole.tolist(), list(floats)),
        torch.tensor(floats, dtype=torch.bfloat16, requires_grad=True),
        torch.tensor(floats.T.copy()).T,
    ):
        assert_same(index.search_fine(queries), want)


@pytest.mark.parametrize(
    "queries",
    [
        torch.zeros(2, 8, device="meta"),
        torch.zeros(2, 8).to_sparse(),
        torch.zeros(2, 8).to(torch.float8_e4m3fn),
    ],
)
def test_tensors_that_numpy_does_not_hold_say_so(queries):
    with pytest.raises(TypeError, match=r"queries: a tensor of torch\..* expected dense numbers"):
        listless()[0].search_fine(queries)


def test_an_index_without_lists_describes_itself():
    index, fine = listless()
    values, indices = index.to_numpy()
    assert values.shape == indices.shape == (300, 0)
    stats = index.stats()
    assert (stats["documents"], stats["postings"], stats["latents"]) == (300, 0, 0)
    assert stats["bytes_of"]["fine"] == fine.codes.nbytes
    assert stats["bytes"] == sum(stats["bytes_of"].values())
    one = np.ones((1, 1), np.float32), np.zeros((1, 1), np.int32)
    assert index.explain(one, 7).parts.size == 0
    with pytest.raises(ValueError, match="id: 300 is not in the index"):
        index.explain(one, 300)
    assert index.profile(one)["postings"] == 0
    assert repr(index) == "InvertedIndex(n=300, dim=1, k=0, metric='cosine', dtype='float16')"
    empty, _ = listless(0)
    assert empty.search_fine(QUERIES, 3)[1].tolist() == [[-1] * 3] * 9
    assert empty.search_fine(QUERIES[:0], 3)[0].shape == (0, 3)


def test_codes_without_a_slot_still_have_a_search():
    """Empty codes are no index without lists: nothing could be searched for instead."""
    nothing = np.zeros((3, 0), np.float32), np.zeros((3, 0), np.int32)
    index = InvertedIndex.build(nothing, dim=5)
    assert index.search(codes_of(2, 5), 2)[1].tolist() == [[-1, -1]] * 2


def test_a_gpu_holds_no_fine_codes(monkeypatch):
    monkeypatch.setattr("csrkern.index.cuda.index.load_native", lambda: None)
    monkeypatch.setattr("csrkern.index.cuda.index.parse_devices", lambda *_: [0])
    with pytest.raises(ValueError, match="device: this index holds no lists, and GPUs search by"):
        CudaIndex.of(listless()[0])


def test_fine_codes_with_a_projection_are_of_version_5(tmp_path):
    for projection, version in ((True, 5), (False, 4)):
        listless(projection=projection)[0].save(tmp_path / "index")
        assert f'"version": {version}' in (tmp_path / "index" / "index.json").read_text()
    assert not list((tmp_path / "index").glob("directions-*.bin"))
