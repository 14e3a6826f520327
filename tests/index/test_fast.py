"""Fast search: plans that hold for the queries that are asked, and that do not lose time."""

from __future__ import annotations

import pickle

import index_codes
import numpy as np
import pytest
import scipy.sparse as sp

from benchmarks.harness import generators
from csrkern import _C, InvertedIndex

DIM = 256
CODES = index_codes.skewed(12_000, DIM, 24)


def assert_same(got, want):
    for side, wanted in zip(got, want, strict=True):
        np.testing.assert_array_equal(side, wanted)


def share_found(truth, ids):
    return np.mean([np.isin(a, b).mean() for a, b in zip(truth, ids, strict=True)])


@pytest.fixture(scope="module")
def text():
    """Documents like text's, 120 entries long; queries, and others to measure on, of 30 to 45."""
    documents = generators.text(12_000, dim=6_000, seed=1)
    queries = generators.text(800, dim=6_000, terms=38, seed=2)
    return documents, queries[:400], queries[400:]


@pytest.mark.parametrize("calibrated", [False, True])
def test_queries_unlike_the_codes_find_what_was_asked_for(text, calibrated):
    documents, queries, others = text
    index = InvertedIndex.build(documents)
    if calibrated:
        told = index.calibrate(others, 0.95)
        assert told == index.stats()["recall"][0.95]
        assert told["of"] == "queries"
        assert told["measured"] == 400
    truth = index.search(queries)[1]
    ids = index.search(queries, mode="fast", recall=0.95)[1]
    told = index.stats()["recall"][0.95]
    assert 0.95 <= told["at_least"] <= told["found"] <= 1
    assert share_found(truth, ids) >= told["at_least"]
    if calibrated:
        assert share_found(truth, ids) < 1


def test_queries_of_other_lengths_are_searched_exactly(text):
    documents, queries, others = text
    index = InvertedIndex.build(documents)
    index.calibrate(others, 0.9)
    dense = queries[:200].toarray()
    short = np.arange(200) % 3 == 0
    dense[np.ix_(short, np.flatnonzero(dense[short].any(0))[9:])] = 0
    queries = sp.csr_array(dense)
    options = {"filter": np.random.default_rng(0).random((200, len(index))) < 0.5, "min_score": 0.1}
    for given in ({}, options, options | {"num_threads": 3}):
        exact, fast = (
            index.search(queries, 10, **given),
            index.search(queries, 10, mode="fast", recall=0.9, **given),
        )
        assert_same([side[short] for side in fast], [side[short] for side in exact])
        assert (fast[1][~short] != exact[1][~short]).any()
    for i in range(6):  # a query's results do not depend on the others
        own = {**options, "filter": options["filter"][i]}
        alone = index.search(queries[i : i + 1], mode="fast", recall=0.9, **own)
        assert_same(alone, [side[i : i + 1] for side in fast])
    for top_k in (1, 4):
        fewer = index.search(queries, top_k, mode="fast", recall=0.9)
        fast = index.search(queries, mode="fast", recall=0.9)
        assert_same(fewer, [side[:, :top_k] for side in fast])
    exact = index.search(queries, query_k=9)
    assert_same(index.search(queries, query_k=9, mode="fast", recall=0.9), exact)


def test_no_plan_where_a_batch_of_exact_searches_is_faster():
    """With k = 32 of 128 latents a list holds a quarter of the documents."""
    index = InvertedIndex.build(index_codes.uniform(20_000, 128, 32), dim=128, dtype="uint8")
    queries = index_codes.uniform(200, 128, 32, seed=1)
    for recall in (0.9, 0.99):
        assert index.calibrate(queries, recall)["found"] == 1
        assert_same(index.search(queries, mode="fast", recall=recall), index.search(queries))


def expected_ns(index, queries, **options):
    native = [(segment.native, segment.alive) for segment in index.snapshot().segments]
    limits = {"top_k": 10, "normalize": False, "query_k": 2**40, "min_score": 0.0}
    given = native, *queries, None, index.dim
    return _C.expected_ns(*given, **limits, num_threads=1, **options)


def test_costs_know_batches_and_dense_lists():
    codes = index_codes.uniform(20_000, 128, 32)
    index = InvertedIndex.build(codes, dim=128, dtype="uint8", metric="ip")
    one = np.ones((1, 1), np.float32), np.zeros((1, 1), np.int32)
    many = np.ones((1, 32), np.float32), np.arange(32, dtype=np.int32)[None]
    more = np.ones((1, 64), np.float32), np.arange(64, dtype=np.int32)[None]
    assert 3 * expected_ns(index, one) < expected_ns(index, many) == expected_ns(index, more)
    shortlist = expected_ns(index, many, shortlist=100) - expected_ns(index, many)
    assert 30_000 < shortlist < 80_000
    assert expected_ns(index, many, shortlist=100, fewest=33) == expected_ns(index, many)
    # float16 has dense lists: of a latent that all have, a document takes less than a posting.
    codes = [
        np.ones((20_000, 100), np.float32),
        np.tile(np.arange(100, dtype=np.int32), (20_000, 1)),
    ]
    halves, bytes_ = (
        InvertedIndex.build(tuple(codes), dim=128, dtype=form, metric="ip", cluster=False)
        for form in ("float16", "uint8")
    )
    assert 2 * expected_ns(halves, one) < expected_ns(bytes_, one)


@pytest.mark.parametrize("cluster", [False, True])
def test_a_plan_goes_through_files_and_changes(text, cluster, tmp_path):
    documents, queries, others = text
    if cluster:
        documents = CODES
        queries, others = (index_codes.skewed(n, DIM, 24, seed=n) for n in (200, 400))
    index = InvertedIndex.build(documents, dim=DIM if cluster else None, cluster=cluster)
    told = index.calibrate(others, 0.8)
    want = index.search(queries, mode="fast", recall=0.8)
    assert share_found(index.search(queries)[1], want[1]) < 1
    index.save(tmp_path / "index")
    # The first search of a mapped index, which has made nothing yet.
    for other in (
        InvertedIndex.load(tmp_path / "index"),
        InvertedIndex.load(tmp_path / "index", mmap=False),
        pickle.loads(pickle.dumps(index)),
    ):
        assert_same(other.search(queries, mode="fast", recall=0.8), want)
        assert other.stats()["recall"] == {0.8: told}
    n = len(index)
    for n_removed, of in ((n // 2, "queries"), (n // 2 + 1, "codes")):
        left = np.setdiff1d(np.arange(n_removed), np.setdiff1d(np.arange(n), index.ids))
        index.remove(left)
        index.search(queries, mode="fast", recall=0.8)
        assert index.stats()["recall"][0.8]["of"] == of
    assert index.truncate(8).stats()["recall"] == {}


def test_what_few_queries_can_tell(text):
    documents, queries, _ = text
    index = InvertedIndex.build(documents)
    few = queries[:3]
    told = {"at_least": 1.0, "found": 1.0, "measured": 3, "of": "queries"}
    assert index.calibrate(few, 0.99) == told
    assert_same(index.search(few, mode="fast"), index.search(few))
    assert 0.5 <= index.calibrate(few, 0.5)["at_least"] < 0.96
    with pytest.raises(ValueError, match="queries: expected some"):
        index.calibrate(queries[:0])
    for bad, error in ((1, ValueError), (0.2, ValueError), ("1", TypeError), (True, TypeError)):
        with pytest.raises(error, match="recall: "):
            index.calibrate(few, bad)
    nothing = sp.csr_array((5, index.dim), dtype=np.float32)
    assert index.calibrate(nothing)["found"] == 1
    with pytest.raises(ValueError, match="over 6000 latents"):
        index.calibrate(sp.csr_array((5, index.dim + 1), dtype=np.float32))


@pytest.mark.parametrize("cluster", [False, True])
def test_fast_finds_what_it_was_calibrated_to(cluster):
    codes = CODES
    index = InvertedIndex.build(codes, dim=256, metric="ip", cluster=cluster)
    queries = index_codes.skewed(200, 256, 24, seed=7)
    truth = index.search(queries)
    for recall in (0.8, 0.95):
        scores, ids = index.search(queries, mode="fast", recall=recall)
        found = np.mean([np.isin(a, b).mean() for a, b in zip(truth[1], ids, strict=True)])
        measured = index.stats()["recall"][recall]
        assert recall <= measured["at_least"] <= measured["found"]
        assert (measured["of"], measured["measured"]) == ("codes", 400)
        assert found >= recall
        # What is found has its exact score.
        for i in range(200):
            at = {int(id): s for id, s in zip(truth[1][i], truth[0][i], strict=True)}
            for score, id in zip(scores[i], ids[i], strict=True):
                assert at.get(int(id), score) == score
    threads = index.search(queries, mode="fast", recall=0.8, num_threads=3)
    assert_same(threads, index.search(queries, mode="fast", recall=0.8, num_threads=1))
    empty = InvertedIndex.build((codes[0][:0], codes[1][:0]), dim=256, metric="ip")
    assert (empty.search(queries, 2, mode="fast")[1] == -1).all()


def test_less_of_the_bounds_reads_less_and_finds_less():
    codes = CODES
    index = InvertedIndex.build(codes, dim=256, metric="ip", cluster=True)
    values, indices = index_codes.skewed(200, 256, 24, seed=7)
    native = [(segment.native, None) for segment in index.snapshot().segments]
    limits = {"top_k": 10, "normalize": False, "query_k": 24, "min_score": 0.0, "num_threads": 1}
    truth = index.search((values, indices))
    costs, shares = [], []
    for bound_share in (1.0, 0.8, 0.5, 0.3):
        given = (native, values, indices, None, 256)
        costs.append(_C.expected_ns(*given, **limits, bound_share=bound_share))
        scores, ids = _C.search(*given, **limits, bound_share=bound_share)
        shares.append((ids[:, :, None] == truth[1][:, None]).any(2).mean())
        if bound_share == 1:
            assert_same((scores, ids), truth)
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < 0.8 * costs[0]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1 > shares[-1] > 0


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "uint4"])
def test_strong_lists_hold_the_largest_values(dtype):
    """The scores of a search of one latent each are the values that its list holds."""
    n, most = 3_000, 3_000 // 25
    rng = np.random.default_rng(0)
    values = rng.integers(1, 9, (n, 2)).astype(np.float32)  # many are equal
    indices = np.tile(np.array([0, 1], np.int32), (n, 1))
    indices[100:, 1] = 2  # the list of latent 1 is short enough to stay whole
    index = InvertedIndex.build((values, indices), dim=3, metric="ip", dtype=dtype)
    index.remove([5])
    native = [(segment.native, segment.alive) for segment in index.snapshot().segments]
    queries = np.ones((3, 1), np.float32), np.arange(3, dtype=np.int32)[:, None]
    limits = {"top_k": n, "normalize": False, "query_k": 1, "min_score": 0.0}
    given = native, *queries, None, 3
    for threads in (1, 3):
        scores, ids = _C.search(*given, **limits, num_threads=threads, strong=True)
        whole, all_ids = _C.search(*given, **limits, num_threads=threads)
        kept = (ids >= 0).sum(1)
        if dtype == "uint4":  # lists in groups stay whole
            assert_same((scores, ids), (whole, all_ids))
            continue
        assert kept[1] == 99
        for i in (0, 2):
            # Removed documents have a place in the lists.
            assert kept[i] in (most - 1, most)
            assert_same(
                (scores[i, : kept[i]], ids[i, : kept[i]]),
                (whole[i, : kept[i]], all_ids[i, : kept[i]]),
            )
    one = [side[:1] for side in queries]
    assert expected_ns(index, one, strong=True) <= expected_ns(index, one)
    assert (expected_ns(index, one, strong=True) < expected_ns(index, one)) == (dtype != "uint4")


def test_threads_share_the_windows_of_strong_lists():
    """Strong lists have smaller windows than the index, and more of them."""
    n, dim = 640_000, 16
    rng = np.random.default_rng(0)
    codes = rng.random((n, 1), np.float32) + 0.1, rng.integers(0, dim, (n, 1), np.int32)
    index = InvertedIndex.build(codes, dim=dim, metric="ip", dtype="float32", cluster=False)
    native = [(segment.native, segment.alive) for segment in index.snapshot().segments]
    query = np.ones((1, dim), np.float32), np.arange(dim, dtype=np.int32)[None]
    limits = {"top_k": 500, "normalize": False, "query_k": dim, "min_score": 0.0}
    want = index.search(query, 500)
    for threads in (1, 4):
        given = {**limits, "num_threads": threads}
        assert_same(_C.search(native, *query, None, dim, **given, strong=True), want)


def test_plans_with_strong_lists_keep_their_promises(tmp_path):
    """Latents that many codes have: a plan reads the strongest of their postings."""
    codes = generators.skewed(20_000, 256, 48)
    index = InvertedIndex.build(codes, dim=256, metric="ip", cluster=False)
    others, queries = (generators.skewed(n, 256, 48, seed=n) for n in (400, 200))
    index.calibrate(others, 0.8)
    assert index._plans.facts()[0]["strong"]
    want = index.search(queries, mode="fast", recall=0.8)
    truth = index.search(queries)
    assert 0.8 <= share_found(truth[1], want[1]) < 1
    # What is found has its exact score; other queries, threads and files do not matter.
    for i in range(0, 200, 40):
        one = tuple(side[i : i + 1] for side in queries)
        assert_same(index.search(one, mode="fast", recall=0.8), [s[i : i + 1] for s in want])
        exact = dict(zip(truth[1][i].tolist(), truth[0][i].tolist(), strict=True))
        hits = zip(want[1][i].tolist(), want[0][i].tolist(), strict=True)
        assert all(exact.get(id, score) == score for id, score in hits)
    assert_same(index.search(queries, mode="fast", recall=0.8, num_threads=3), want)
    index.save(tmp_path / "index")
    loaded = InvertedIndex.load(tmp_path / "index")
    assert_same(loaded.search(queries, mode="fast", recall=0.8), want)
    # Queries of other lengths are searched exactly.
    short = tuple(side[:, :5] for side in queries)
    assert_same(index.search(short, mode="fast", recall=0.8), index.search(short))
    # Under a filter, lists or the documents that it names, the hits are of the filter.
    few = np.arange(0, 20_000, 977)
    for _ in range(3):
        ids = index.search(queries, filter=few, mode="fast", recall=0.8)[1]
        assert np.isin(ids[ids >= 0], few).all()
