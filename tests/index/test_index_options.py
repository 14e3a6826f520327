"""What a search can be asked for beside the best of all: against its definition, to the bit."""

from __future__ import annotations

import time

import index_codes
import numpy as np
import pytest
import scipy.sparse as sp

from csrkern import InvertedIndex, Rerank, reference
from csrkern.index.filter import allowed_bits

DIM = 120
CODES = index_codes.skewed(4000, DIM, 9)
QUERIES = index_codes.skewed(25, DIM, 11, seed=1)
ONE = QUERIES[0][:1], QUERIES[1][:1]


def built(**options):
    """Three segments, one of them with removed codes."""
    options = {"dim": DIM, "metric": "ip", "window": 512, **options}
    index = InvertedIndex.build((CODES[0][:3000], CODES[1][:3000]), **options)
    norms = options.get("norms")
    more = None if norms is None else np.ones(500)
    index.add((CODES[0][3000:3500], CODES[1][3000:3500]), norms=more)
    index.add(
        (CODES[0][3500:3600], CODES[1][3500:3600]), norms=None if norms is None else more[:100]
    )
    index.remove(np.arange(100, 3500, 9))
    return index


def expected(index, top_k, *, queries=QUERIES, chosen=None):
    values, indices = index.to_numpy()
    keep = np.ones(len(index), bool) if chosen is None else chosen
    most = 1 if index.metric == "cosine" else np.inf
    return reference.search(
        values[keep], indices[keep], DIM, *queries, top_k, index.ids[keep], most
    )


def assert_same(got, want):
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("cluster", [False, True])
@pytest.mark.parametrize("form", ["masks", "lists", "mixed"])
def test_filter_for_each_query(cluster, form):
    index = built(cluster=cluster)
    rng = np.random.default_rng(0)
    shares = np.geomspace(1e-3, 1, 25)
    masks = rng.random((25, len(index))) < shares[:, None]
    masks[7] = False
    masks[9] = True
    chosen = {
        "masks": masks,
        "lists": [index.ids[mask].tolist() for mask in masks],
        "mixed": [
            None if i == 9 else mask if i % 2 else index.ids[mask] for i, mask in enumerate(masks)
        ],
    }[form]
    for threads in (1, 3):
        scores, ids = index.search(QUERIES, 12, filter=chosen, num_threads=threads)
        for i, mask in enumerate(masks):
            want = expected(
                index, 12, queries=(QUERIES[0][i : i + 1], QUERIES[1][i : i + 1]), chosen=mask
            )
            assert_same((scores[i : i + 1], ids[i : i + 1]), want)


@pytest.mark.parametrize(
    ("dtype", "cluster"),
    [("float16", False), ("float32", True), ("float16", True), ("uint4", False)],
)
def test_selective_filters_score_documents_one_by_one(dtype, cluster):
    index = built(dtype=dtype, cluster=cluster)
    rng = np.random.default_rng(1)
    lists = [rng.choice(index.ids, n, replace=False) for n in (1, 5, 40, 200)]
    want = [expected(index, 30, chosen=np.isin(index.ids, ids)) for ids in lists]
    assert_same(index.search(QUERIES, 30, filter=lists[2]), want[2])
    for segment in index.snapshot().segments:
        segment.native.make_forward(2)
    assert index.stats()["forward_bytes"] > 9 * 3600 * (3 if dtype == "uint4" else 4)
    for ids, one in zip(lists, want, strict=True):
        assert_same(index.search(QUERIES, 30, filter=ids), one)


def test_the_copy_by_document_is_made_once_it_has_been_missed():
    codes = index_codes.skewed(30_000, 64, 8)
    index = InvertedIndex.build(codes, dim=64, metric="ip")
    queries = codes[0][:1], codes[1][:1]
    want = index.search(queries, 3, filter=[5, 9])
    assert index.stats()["forward_bytes"] == 0
    for _ in range(200):
        if index.stats()["forward_bytes"]:
            break
        assert_same(index.search(queries, 3, filter=[5, 9]), want)
    assert index.stats()["forward_bytes"] > 0
    assert_same(index.search(queries, 3, filter=[5, 9]), want)


def test_a_filter_costs_no_more_than_its_mask():
    codes = index_codes.uniform(100_000, 160, 8)
    index = InvertedIndex.build(codes, dim=160, metric="ip")
    index.snapshot().segments[0].native.make_forward(1)
    queries = codes[0][:40], codes[1][:40]
    rng = np.random.default_rng(0)
    masks = [rng.random(100_000) < share for share in (1, 0.999, 0.5, 0.1, 0.01)]
    filters = [*masks, np.arange(30), [np.arange(i, i + 20) for i in range(40)]]
    searches = [None, *filters]

    def seconds(call):
        started = time.process_time()
        call()
        return time.process_time() - started

    def search(chosen):
        return seconds(lambda: index.search(queries, filter=chosen, num_threads=1))

    def mask(chosen):
        return seconds(lambda: allowed_bits(chosen, index.snapshot().segments, 40))

    runs = [([search(f) for f in searches], [mask(f) for f in filters]) for _ in range(7)]
    plain, *rest = np.min([run[0] for run in runs], axis=0)
    filtered = np.array(rest)
    of_masks = np.min([run[1] for run in runs], axis=0)
    assert (filtered < 2 * (plain + of_masks)).all(), (plain, filtered, of_masks)
    assert filtered[5] < plain / 2  # 30 documents of 100,000


def test_queries_of_very_many_latents():
    rng = np.random.default_rng(0)
    codes = index_codes.uniform(500, 3000, 40)
    index = InvertedIndex.build(codes, dim=3000, metric="ip")
    queries = index_codes.in_order(rng.random((3, 2500)), np.tile(np.arange(2500), (3, 1)))
    index.snapshot().segments[0].native.make_forward(1)
    few = [3, 77, 400]
    values, indices = index.to_numpy()
    want = reference.search(values[few], indices[few], 3000, *queries, 5, np.array(few))
    assert_same(index.search(queries, 5, filter=few), want)


@pytest.mark.parametrize("metric", ["ip", "cosine"])
@pytest.mark.parametrize("query_k", [1, 4, 11, 50])
def test_query_k(metric, query_k):
    index = built(metric=metric)
    short = QUERIES[0][:, :query_k], QUERIES[1][:, :query_k]
    assert_same(index.search(QUERIES, 15, query_k=query_k), index.search(short, 15))


@pytest.mark.parametrize("cluster", [False, True])
@pytest.mark.parametrize("min_score", [-1, 0, 0.7, 3.3, 1e9])
def test_min_score_and_search_above(cluster, min_score):
    index = built(cluster=cluster)
    all_scores, all_ids = expected(index, len(index))
    exactly = float(all_scores[0, 6])
    for least in (min_score, exactly, np.nextafter(exactly, 9)):
        starts, scores, ids = index.search_above(QUERIES, least)
        top_scores, top_ids = index.search(QUERIES, 20, min_score=least)
        for i in range(25):
            hits = all_scores[i] >= max(least, 1e-30)
            mine = slice(starts[i], starts[i + 1])
            assert_same((scores[mine], ids[mine]), (all_scores[i][hits], all_ids[i][hits]))
            n = min(20, hits.sum())
            assert_same(
                (top_scores[i, :n], top_ids[i, :n]), (all_scores[i][hits][:n], all_ids[i][hits][:n])
            )
            assert (top_ids[i, n:] == -1).all()
    assert_same(index.search_above(QUERIES, 2, num_threads=3), index.search_above(QUERIES, 2))
    some = index.ids[::3]
    starts, _, ids = index.search_above(ONE, 0.5, filter=some)
    assert np.isin(ids, some).all()
    assert starts[-1] == len(ids) > 0


@pytest.mark.parametrize("dtype", ["float16", "uint8", "uint4"])
@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_explain(metric, dtype):
    index = built(metric=metric, dtype=dtype)
    scores, ids = index.search(ONE, 30)
    for score, id in zip(scores[0], ids[0], strict=True):
        latents, parts, whole, rank, bar = index.explain(ONE, int(id), top_k=7)
        total = np.float32(0)
        for part in parts:
            total += part
        assert min(total, np.float32(1 if metric == "cosine" else np.inf)) == whole == score
        assert ids[0, rank - 1] == id
        assert bar == scores[0, 6]
        assert np.isin(latents, ONE[1][0]).all()
        assert len(set(latents.tolist())) == len(latents)
    with pytest.raises(ValueError, match="id: 109 is not in the index"):
        index.explain(ONE, 109)
    with pytest.raises(ValueError, match="top_k: expected"):
        index.explain(ONE, 1, top_k=0)


def test_explain_says_why_a_document_is_not_found():
    documents = np.array([[2.0, 1.0], [1.0, 0.5], [3.0, 0.0]]), np.array([[0, 1], [1, 2], [4, 0]])
    index = InvertedIndex.build(documents, [5, 6, 7], dim=6, metric="ip", dtype="float32")
    query = np.array([[2.0, 1.0]]), np.array([[0, 1]])
    beaten = index.explain(query, 6, top_k=1)
    assert (beaten.latents.tolist(), beaten.parts.tolist()) == ([1], [1.0])
    assert (beaten.score, beaten.rank, beaten.bar) == (1.0, 2, 5.0)
    strange = index.explain(query, 7, top_k=3)
    assert (strange.latents.size, strange.score, strange.rank) == (0, 0.0, None)
    assert strange.bar == -np.inf  # only two documents have a score


def dense_scores(index, dense, offsets, norms):
    """Rerank's definition: float32, by latent ascending, plus offset, over norm."""
    values, indices = index.to_numpy()
    order = np.argsort(np.where(values > 0, indices, DIM), axis=1, kind="stable")
    values = np.take_along_axis(values, order, 1)
    indices = np.take_along_axis(indices, order, 1)
    scores = np.zeros((len(dense), len(values)), np.float32)
    for j in range(values.shape[1]):
        active = values[:, j] > 0
        scores[:, active] += dense[:, indices[active, j]] * values[active, j]
    return (scores + offsets[:, None]) / norms


@pytest.mark.parametrize("with_norms", [False, True])
@pytest.mark.parametrize("shortlist", [5, 60, 10_000])
@pytest.mark.parametrize("dtype", ["float16", "uint8", "uint4"])
def test_rerank(with_norms, shortlist, dtype):
    rng = np.random.default_rng(0)
    norms = (0.5 + rng.random(3000)).astype(np.float32) if with_norms else None
    index = built(norms=norms, dtype=dtype)
    dense = rng.standard_normal((25, DIM)).astype(np.float32)
    offsets = rng.standard_normal(25).astype(np.float32)
    ids = index.ids
    of_ids = np.ones(3600, np.float32)
    if with_norms:
        of_ids[:3000] = norms
    want = dense_scores(index, dense, offsets, of_ids[ids])
    rerank = Rerank(dense, shortlist, offsets)
    _, first = index.search(QUERIES, shortlist)
    place = {int(id): i for i, id in enumerate(ids)}
    for threads in (1, 3):
        scores, found = index.search(QUERIES, 8, rerank=rerank, num_threads=threads)
        for i in range(25):
            rows = np.array([place[int(id)] for id in first[i] if id >= 0])
            best = rows[np.lexsort((ids[rows], -want[i, rows]))][:8]
            n = len(best)
            np.testing.assert_array_equal(found[i, :n], ids[best])
            np.testing.assert_array_equal(scores[i, :n], want[i, best])
            assert (found[i, n:] == -1).all()


def test_search_dense_is_a_search_by_the_largest_latents():
    index = built()
    dense = np.random.default_rng(2).standard_normal((6, DIM)).astype(np.float32)
    got = index.search_dense(dense, 7, latents=15, shortlist=50)
    largest = np.argsort(-dense, axis=1)[:, :15]
    queries = np.maximum(np.take_along_axis(dense, largest, 1), 0), largest
    assert_same(got, index.search(queries, 7, rerank=Rerank(dense, 50)))


def test_bad_rerank():
    index = built()
    for message, rerank in {
        r"dense_queries: expected shape \[n, 120\]": Rerank(np.ones((25, 3))),
        "dense_queries: expected 25 rows": Rerank(np.ones((3, DIM))),
        "dense_queries: expected finite": Rerank(np.full((25, DIM), np.inf)),
        "shortlist: expected 1 <=": Rerank(np.ones((25, DIM)), 0),
        "offsets: expected 25 numbers, one a query, got": Rerank(np.ones((25, DIM)), 5, np.ones(2)),
        "offsets: expected finite numbers, got nan at": Rerank(
            np.ones((25, DIM)), 5, np.where(np.arange(25) == 7, np.nan, 0)
        ),
    }.items():
        with pytest.raises(ValueError, match=message):
            index.search(QUERIES, rerank=rerank)
    with pytest.raises(ValueError, match="norms: expected positive numbers, got 0"):
        InvertedIndex.build(CODES, dim=DIM, metric="ip", norms=np.zeros(4000))


def test_truncate():
    index = built(metric="cosine")
    short = index.truncate(4)
    assert short.k == 4
    np.testing.assert_array_equal(short.ids, index.ids)
    values, _ = index.to_numpy()
    want = index_codes.stored(index_codes.normalized(values[:, :4]), "float16", None)
    np.testing.assert_array_equal(np.sort(short.to_numpy()[0], 1), np.sort(want, 1))


def test_the_longest_row_costs_the_others_nothing():
    """10,000 codes padded to the longest of 1,000,000 would be 80 GB."""
    dim = 1_000_000
    long = sp.csr_array(np.full((1, dim), 0.5, np.float32))
    short = sp.csr_array((np.arange(1, 20_001), (np.arange(20_000) // 2, np.arange(20_000))))
    short.resize(9_999, dim)
    rows = sp.vstack([long, short], format="csr")
    index = InvertedIndex.build(rows, metric="ip", dtype="float32")
    _, ids = index.search(short[:50], 2)
    np.testing.assert_array_equal(ids, np.stack([np.arange(1, 51), np.zeros(50)], 1))
    strongest = index.truncate(1)
    _, ids = strongest.search(short[:50], 2)
    np.testing.assert_array_equal(ids, np.stack([np.arange(1, 51), np.r_[0, np.full(49, -1)]], 1))
    values, latents = strongest.to_numpy()
    assert (values[0], latents[0]) == (0.5, 0)
    np.testing.assert_array_equal(values[1:, 0], np.arange(2, 20_000, 2))


def test_a_profile_is_the_sum_over_queries():
    index = built(cluster=True)
    alone = [index.profile((v[None], i[None])) for v, i in zip(*QUERIES, strict=True)]
    together = index.profile(QUERIES)
    assert together == {name: sum(one[name] for one in alone) for name in together}
    assert together["blocks"] > 0 < together["postings"]
    starts = np.arange(26) * QUERIES[0].shape[1]
    flat = sp.csr_array((QUERIES[0].ravel(), QUERIES[1].ravel(), starts), (25, DIM))
    assert index.profile(flat) == together
    assert set(index.profile((QUERIES[0][:0], QUERIES[1][:0])).values()) == {0}


def test_it_is_one_class():
    for name in ("build", "search", "search_above", "search_dense", "explain", "profile", "stats"):
        assert getattr(InvertedIndex, name).__qualname__ == f"InvertedIndex.{name}"
    assert [cls.__name__ for cls in InvertedIndex.__mro__] == [
        "InvertedIndex",
        "Collection",
        "object",
    ]
