"""InvertedIndex.search against the specification, to the id and to the bit of the score."""

from __future__ import annotations

import itertools
import threading

import index_codes
import numpy as np
import pytest
import torch
from digests import ISAS, assert_runs_with

from csrkern import InvertedIndex, Rerank, reference

KINDS = index_codes.KINDS


def expected(index, queries, top_k):
    values, indices = index.to_numpy()
    most = 1 if index.metric == "cosine" else np.inf
    return reference.search(values, indices, index.dim, *queries, top_k, index.ids, most)


def assert_exact(index, queries, top_k, **options):
    scores, ids = index.search(queries, top_k, **options)
    want_scores, want_ids = expected(index, queries, top_k)
    np.testing.assert_array_equal(ids, want_ids)
    np.testing.assert_array_equal(scores.view(np.uint32), want_scores.view(np.uint32))
    assert scores.dtype == np.float32
    assert ids.dtype == np.int64


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dtype", "cluster"),
    # The lists of uint4 are not in order, and cannot be clustered.
    [*itertools.product(["float16", "uint8", "float32"], [False, True]), ("uint4", False)],
)
@pytest.mark.parametrize("metric", ["ip", "cosine"])
@pytest.mark.parametrize("top_k", [1, 10, 300])
def test_equals_reference(kind, dtype, metric, cluster, top_k):
    codes = KINDS[kind](3001, 256, 12)
    queries = KINDS[kind](23, 256, 12, seed=1)
    index = InvertedIndex.build(
        codes,
        dim=256,
        dtype=dtype,
        metric=metric,
        cluster=cluster,
        window=512,
    )
    stored, indices = index.to_numpy()
    want = index_codes.normalized(codes[0]) if metric == "cosine" else codes[0]
    want = index_codes.stored(want, dtype, index.stats()["largest"])[index.ids]
    np.testing.assert_array_equal(
        *(index_codes.in_order(*c)[0] for c in [(stored, indices), (want, codes[1][index.ids])])
    )
    scores, ids = index.search(queries, top_k)
    if metric == "cosine":
        queries = index_codes.in_order(index_codes.normalized(queries[0]), queries[1])
    want_scores, want_ids = expected(index, queries, top_k)
    np.testing.assert_array_equal(ids, want_ids)
    np.testing.assert_array_equal(scores, want_scores)


def test_100_000_random_codes():
    codes = index_codes.uniform(100_000, 160, 8)
    index = InvertedIndex.build(codes, dim=160, metric="ip")
    np.testing.assert_array_equal(index.to_numpy()[0], codes[0].astype(np.float16))
    assert_exact(index, index_codes.uniform(20, 160, 16, seed=2), 10)
    assert_exact(index, index_codes.uniform(3, 160, 16, seed=3), 1000)


def of_few_kinds(n, seed):
    """Codes of 40 kinds, which blocks of documents tell apart."""
    kinds = index_codes.uniform(40, 300, 24, seed=1)
    rng = np.random.default_rng(seed)
    slots = index_codes.distinct_latents(rng, n, 24, 12)
    kind = rng.integers(0, 40, n)[:, None]
    values = kinds[0][kind, slots] * np.exp(0.5 * rng.standard_normal((n, 12)))
    return index_codes.in_order(values, kinds[1][kind, slots])


def test_clustered_codes():
    codes, queries = of_few_kinds(30_000, 0), of_few_kinds(40, 1)
    ids = np.random.default_rng(2).permutation(10**6)[:30_000]
    for dtype in ("float16", "float32", "uint8"):
        index = InvertedIndex.build(
            codes, ids, dim=300, metric="ip", dtype=dtype, cluster=True, window=4096
        )
        assert index.profile((queries[0][:1], queries[1][:1]))["blocks_scored"] < 60
        assert_exact(index, queries, 10)
        assert_exact(index, (queries[0][:4], queries[1][:4]), 700)


def test_clusters_where_it_pays():
    codes, queries = of_few_kinds(70_000, 0), of_few_kinds(20, 1)
    index = InvertedIndex.build(codes, dim=300, metric="ip")
    assert index.stats()["block"] == 256
    plain = InvertedIndex.build(codes, dim=300, metric="ip", cluster=False)
    assert plain.stats()["block"] == 0
    for got, want in zip(index.search(queries, 10), plain.search(queries, 10), strict=True):
        np.testing.assert_array_equal(got, want)
    assert (
        InvertedIndex.build(index_codes.uniform(70_000, 256, 8), dim=256, metric="ip").stats()[
            "block"
        ]
        == 0
    )


@pytest.mark.parametrize("cluster", [False, True])
@pytest.mark.parametrize("share", [0, 1e-3, 0.1, 0.9, 1])
def test_filter(cluster, share):
    codes, queries = of_few_kinds(10_000, 0), of_few_kinds(12, 1)
    rng = np.random.default_rng(3)
    ids = rng.permutation(20_000)[:10_000]
    for given in (None, ids):
        index = InvertedIndex.build(
            codes, given, dim=300, metric="ip", cluster=cluster, window=1024
        )
        mask = rng.random(10_000) < share
        values, indices = index.to_numpy()
        want = reference.search(values[mask], indices[mask], 300, *queries, 30, index.ids[mask])
        allowed = index.ids[mask]
        for chosen in (mask, allowed, np.append(rng.permutation(allowed), [-1, 10**9])):
            scores, found = index.search(queries, 30, filter=chosen)
            np.testing.assert_array_equal(found, want[1])
            np.testing.assert_array_equal(scores, want[0])
        single = index.search((queries[0][:1], queries[1][:1]), 30, filter=mask, num_threads=2)
        np.testing.assert_array_equal(single[1], want[1][:1])


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("window", [64, 192, 4096, 65_536])
def test_threads_and_windows_do_not_change_results(threads, window):
    codes = index_codes.skewed(20_011, 128, 8)
    queries = index_codes.skewed(37, 128, 8, seed=1)
    want = InvertedIndex.build(codes, dim=128, metric="ip").search(queries, 25)
    index = InvertedIndex.build(codes, dim=128, metric="ip", window=window, num_threads=threads)
    for got, one in zip(index.search(queries, 25, num_threads=threads), want, strict=True):
        np.testing.assert_array_equal(got, one)


def test_long_lists_have_small_windows():
    windows = [
        InvertedIndex.build(index_codes.uniform(500, dim, 8), dim=dim, metric="ip").stats()[
            "window"
        ]
        for dim in (600, 680)
    ]
    assert windows == [12_288, 32_768]


@pytest.mark.parametrize("seed", range(40))
def test_random_cases(seed):
    rng = np.random.default_rng(seed)
    dim, n = int(rng.choice([8, 33, 64, 300])), int(rng.choice([1, 63, 64, 65, 500, 3000]))
    k = int(rng.integers(1, min(dim // 2, 20) + 1))
    draw = KINDS[rng.choice(list(KINDS))]
    values, indices = draw(n, dim, k, seed=seed)
    if rng.random() < 0.5:  # near copies of a few rows
        rows = rng.integers(0, min(n, 20), n)
        near = values[rows] * np.exp(0.4 * rng.standard_normal((n, k)))
        values, indices = index_codes.in_order(near, indices[rows])
    values *= np.float32(rng.choice([1, 1e-3, 1e-6, 1e3]))
    queries = draw(8, dim, int(rng.integers(1, min(dim // 2, 30) + 1)), seed=seed + 100)
    dtype = str(rng.choice(["float16", "uint8", "uint4", "float32"]))
    index = InvertedIndex.build(
        (values, indices),
        rng.permutation(10 * n)[:n] if rng.random() < 0.6 else None,
        dim=dim,
        metric="ip",
        dtype=dtype,
        cluster=bool(rng.random() < 0.6) and dtype != "uint4",
        window=int(rng.choice([64, 128, 256, 512, 1024, 4096, 65_472])),
    )
    assert_exact(index, queries, int(rng.choice([1, 2, 10, 64, 500])), num_threads=1 + seed % 3)


def test_one_query_is_split_over_windows():
    # Long enough lists that the search divides one query among threads.
    n = 120_000
    rng = np.random.default_rng(0)
    values = rng.integers(1, 50, (n, 5)).astype(np.float32)
    latents = np.tile(np.arange(5, dtype=np.int32), (n, 1))
    queries = index_codes.in_order(values[:1], latents[:1])
    for ids in (None, rng.permutation(n)):
        index = InvertedIndex.build((values, latents), ids, dim=5, metric="ip", window=1024)
        one = index.search(queries, 50, num_threads=1)
        two = index.search(queries, 50, num_threads=3)
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_array_equal(one[1], two[1])
        assert_exact(index, queries, 50, num_threads=3)


def test_flush_denormal_does_not_change_results():
    values, latents = index_codes.uniform(120_000, 5, 4)
    codes = values * np.float32(1e-40), latents
    queries = codes[0][:2], latents[:2]

    def found():
        options = {"dim": 5, "metric": "ip", "window": 1024, "dtype": "float32", "cluster": False}
        plain = InvertedIndex.build((values, latents), **options)
        tiny = InvertedIndex.build(codes, **options)
        ones = np.ones((1, 5), np.float32)
        return [
            *tiny.to_numpy(),
            *(plain.search(queries, 9, num_threads=threads)[0] for threads in (1, 2)),
            *(plain.search((queries[0][:1], latents[:1]), 9, num_threads=t)[0] for t in (1, 3)),
            *tiny.search((values[:1], latents[:1]), 9, num_threads=3),
            *tiny.search((values[:1], latents[:1]), 9, rerank=Rerank(ones), num_threads=3),
        ]

    want = found()
    assert 0 < want[4][0, 0] < 1.1754944e-38
    torch.set_flush_denormal(True)
    try:
        got = found()
    finally:
        torch.set_flush_denormal(False)
    for here, there in zip(want, got, strict=True):
        np.testing.assert_array_equal(here.view(np.int32), there.view(np.int32))


def test_ties_go_to_the_lower_id():
    codes = index_codes.ties(4000, 64, 4)
    queries = index_codes.ties(20, 64, 4, seed=1)
    ids = np.random.default_rng(2).permutation(10**12 + np.arange(4000))
    for given in (None, ids, np.sort(ids), np.sort(ids)[::-1]):
        assert_exact(
            InvertedIndex.build(codes, given, dim=64, metric="ip", window=256), queries, 33
        )


def test_equal_documents():
    values, indices = index_codes.uniform(1, 64, 8)
    codes = np.repeat(values, 1000, 0), np.repeat(indices, 1000, 0)
    index = InvertedIndex.build(codes, dim=64, metric="ip", window=128)
    assert_exact(index, (values, indices), 7)
    np.testing.assert_array_equal(index.search((values, indices), 7)[1], [np.arange(7)])


def test_one_latent_in_every_row():
    values, indices = index_codes.uniform(5000, 255, 7)
    values = np.hstack([values, np.full((5000, 1), 2, np.float32)])
    codes = index_codes.in_order(values, np.hstack([indices + 1, np.zeros((5000, 1), np.int32)]))
    index = InvertedIndex.build(codes, dim=256, metric="ip", window=1024)
    assert index.stats()["longest_list"] == 5000
    assert_exact(index, (codes[0][:20], codes[1][:20]), 10)


def test_k_is_1():
    codes = index_codes.uniform(2000, 32, 1)
    assert_exact(
        InvertedIndex.build(codes, dim=32, metric="ip", window=128),
        (codes[0][:9], codes[1][:9]),
        10,
    )


def test_empty_rows_and_queries():
    values, indices = index_codes.uniform(300, 64, 6)
    values[::3], indices[::3] = 0, 0
    index = InvertedIndex.build((values, indices), dim=64, metric="ip")
    scores, ids = index.search((values[:10], indices[:10]), 5)
    assert (ids[0] == -1).all()
    assert (scores[0] == -np.inf).all()
    assert_exact(index, (values[:10], indices[:10]), 5)
    assert not np.isin(index.search((values, indices), 300)[1], np.arange(0, 300, 3)).any()


def test_all_documents_empty():
    nothing = np.zeros((5, 2)), np.zeros((5, 2), int)
    index = InvertedIndex.build(nothing, dim=4, metric="ip", cluster=True)
    query = np.ones((1, 1)), np.zeros((1, 1), int)
    for mode in ("exact", "fast"):
        assert index.search(query, 2, mode=mode)[1].tolist() == [[-1, -1]]
    assert len(index) == 5


@pytest.mark.parametrize("cluster", [None, True])
def test_empty_index_and_no_queries(cluster):
    nothing = np.zeros((0, 4), np.float32), np.zeros((0, 4), np.int32)
    index = InvertedIndex.build(nothing, dim=16, metric="ip", cluster=cluster)
    assert len(index) == 0
    assert index.stats()["postings"] == 0
    assert index.stats()["window"] == 32_768
    scores, ids = index.search(index_codes.uniform(3, 16, 4), 2)
    assert ids.tolist() == [[-1, -1]] * 3
    assert np.isneginf(scores).all()
    scores, ids = index.search(nothing, 7)
    assert scores.shape == ids.shape == (0, 7)


@pytest.mark.parametrize("top_k", [99, 100, 101, 1000])
def test_top_k_beyond_the_documents(top_k):
    codes = index_codes.uniform(100, 16, 4)
    assert_exact(
        InvertedIndex.build(codes, dim=16, metric="ip"), (codes[0][:5], codes[1][:5]), top_k
    )


def test_queries_need_not_be_in_order():
    codes = index_codes.uniform(3000, 64, 8)
    queries = index_codes.uniform(10, 64, 20, seed=1)
    index = InvertedIndex.build(codes, dim=64, metric="ip")
    shuffle = np.random.default_rng(0).permutation(20)
    scores, ids = index.search((queries[0][:, shuffle], queries[1][:, shuffle]), 10)
    want_scores, want_ids = expected(index, queries, 10)
    np.testing.assert_array_equal(ids, want_ids)
    np.testing.assert_array_equal(scores, want_scores)


def test_extreme_values():
    values = np.array([[3e38, 3e38], [65504, 1e-7], [6e-8, 1e-8], [1e-45, 1e-45]], np.float32)
    indices = np.tile(np.array([0, 1], np.int32), (4, 1))
    index = InvertedIndex.build((values, indices), dim=2, metric="ip", dtype="float32")
    for query in (values, np.float32([[1e-30, 1e-30]]), np.float32([[1e10, 1e10]])):
        assert_exact(index, index_codes.in_order(query, indices[: len(query)]), 4)
    index = InvertedIndex.build((values[1:], indices[1:]), dim=2, metric="ip")
    stored = index_codes.stored(values[1:], "float16", None)
    assert (stored > 0).all()
    np.testing.assert_array_equal(index.to_numpy()[0], index_codes.in_order(stored, indices[1:])[0])
    assert_exact(index, (values[:1], indices[:1]), 4)


@pytest.mark.parametrize("dtype", ["float16", "float32", "uint8", "uint4"])
@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_no_active_latent_is_lost(dtype, metric):
    """Values too small for the form become its least positive number, also once normalized."""
    small = np.float32([[1e-8], [1e-30], [1e-45], [3e38], [0.5]])
    codes = np.hstack([small, np.full((5, 1), 0.25, np.float32)]), np.tile([3, 7], (5, 1))
    if dtype != "float32" and metric == "ip":  # the others hold no 3e38, or nothing beside it
        codes = codes[0][[0, 1, 2, 4]], codes[1][[0, 1, 2, 4]]
    index = InvertedIndex.build(codes, dim=9, dtype=dtype, metric=metric)
    query = np.ones((1, 1)), np.full((1, 1), 3)
    scores, ids = index.search(query, 5)
    assert sorted(ids[0][ids[0] >= 0]) == list(range(len(codes[0])))
    assert (scores[0][ids[0] >= 0] > 0).all()
    if dtype == "float16" and metric == "ip":
        assert scores[0].tolist() == [0.5, *[2.0**-24] * 3, -np.inf]
    assert (index.to_numpy()[0] > 0).all()
    index.add(codes)
    index.compact()
    assert (index.to_numpy()[0] > 0).all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "uint8", "uint4"])
@pytest.mark.parametrize("cluster", [False, True])
def test_cosines_are_at_most_1(dtype, cluster):
    """Rounded rows can have norms above 1; equal cosines of 1 go to the lower id."""
    codes = index_codes.skewed(3000, 64, 9)
    for rows in codes:
        rows[1500:] = rows[:1500]
    cluster = cluster and dtype != "uint4"
    options = {"dim": 64, "metric": "cosine", "dtype": dtype, "window": 512, "cluster": cluster}
    index = InvertedIndex.build(codes, **options)
    index.add((codes[0][:800], codes[1][:800]))
    queries = codes[0][:300], codes[1][:300]
    unit = index_codes.in_order(index_codes.normalized(queries[0]), queries[1])
    stored, indices = index.to_numpy()
    unclipped = reference.search(stored, indices, 64, *unit, 5, index.ids)
    assert unclipped[0].max() > 1
    for top_k in (1, 5, 600):
        want = reference.search(stored, indices, 64, *unit, top_k, index.ids, 1.0)
        assert want[0].max() == 1
        for options in (
            {},
            {"num_threads": 3},
            {"filter": np.ones(3800, bool)},
            {"filter": index.ids},
        ):
            scores, ids = index.search(queries, top_k, **options)
            np.testing.assert_array_equal(ids, want[1])
            np.testing.assert_array_equal(scores, want[0])
    starts, scores, ids = index.search_above(queries, 1.0)
    for i, row in enumerate(zip(*want, strict=True)):
        hits = row[1][row[0] == 1]
        np.testing.assert_array_equal(ids[starts[i] : starts[i + 1]], hits)
    assert (scores == 1).all()
    assert len(index.search_above(queries, np.nextafter(np.float32(1), np.float32(2)))[2]) == 0
    assert (index.search(queries, min_score=1.0001)[1] == -1).all()
    for segment in index.snapshot().segments:
        segment.native.make_forward(1)
    few = index.ids[::40]
    near = np.isin(index.ids, few)
    want = reference.search(stored[near], indices[near], 64, *unit, 8, index.ids[near], 1.0)
    np.testing.assert_array_equal(index.search(queries, 8, filter=few)[1], want[1])
    assert index.search(queries, mode="fast", recall=0.6)[0].max() == 1


def test_a_single_query_split_over_windows_is_at_most_1():
    row = np.float32([[2, 3]]), np.array([[0, 1]])  # stored with a norm of 1.004
    codes = [np.repeat(part, 30_000, 0) for part in row]  # 8 windows, for 3 threads
    index = InvertedIndex.build(codes, dim=3, metric="cosine", dtype="uint8", window=4096)
    assert index.search(row, 1, num_threads=1)[0] == 1
    assert index.search(row, 4, num_threads=3)[1].tolist() == [[0, 1, 2, 3]]
    assert index.search(row, 4, num_threads=3)[0].tolist() == [[1, 1, 1, 1]]


@pytest.mark.parametrize("top_k", [1025, 10**9, 2**40])
def test_results_are_no_wider_than_the_index(top_k):
    codes = index_codes.uniform(1500, 16, 4)
    index = InvertedIndex.build((codes[0][:64], codes[1][:64]), dim=16, metric="ip")
    queries = codes[0][:3], codes[1][:3]
    want = index.search(queries, 64)
    for scores, ids in (index.search(queries, top_k), index.search(queries, top_k, mode="fast")):
        assert scores.shape == ids.shape == (3, 1024)
        np.testing.assert_array_equal(ids[:, :64], want[1])
        assert (ids[:, 64:] == -1).all()
    rerank = Rerank(np.ones((3, 16)), top_k)
    assert index.search(queries, top_k, rerank=rerank)[1].shape == (3, 1024)
    assert index.search_dense(np.ones((3, 16)), top_k, shortlist=top_k)[1].shape == (3, 1024)
    assert index.profile(queries, top_k)["terms"] == 3 * 4
    index.add((codes[0][64:], codes[1][64:]))
    assert index.search(queries, top_k)[1].shape == (3, min(top_k, 1500))


@pytest.mark.parametrize("dim", [2**31 - 1, 5_000_000])
def test_very_many_latents(dim):
    rng = np.random.default_rng(0)
    pool = np.unique(rng.integers(0, dim, 50))
    pool[-1] = dim - 1
    values, slots = index_codes.uniform(500, len(pool), 5)
    codes = index_codes.in_order(values, pool[slots].astype(np.int32))
    index = InvertedIndex.build(codes, dim=dim, metric="ip")
    small = InvertedIndex.build((values, slots), dim=len(pool), metric="ip")
    want = small.search((values, slots), 10)
    np.testing.assert_array_equal(index.search(codes, 10)[0], want[0])
    unused = np.ones((1, 1)), np.full((1, 1), int(pool[0]) + 1)
    assert index.search(unused, 1)[1].tolist() == [[-1]]


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_gives_the_same_bits(isa):
    here = index_codes.digest()
    assert_runs_with(isa, f"import index_codes; assert index_codes.digest() == {here!r}")


def test_searches_from_many_threads_at_once():
    codes = index_codes.skewed(20_000, 128, 8)
    index = InvertedIndex.build(codes, dim=128, metric="ip", window=1024)
    other = InvertedIndex.build(
        index_codes.uniform(5000, 128, 8), dim=128, metric="ip", window=4096
    )
    queries = index_codes.skewed(64, 128, 8, seed=1)
    want, other_want = index.search(queries, 10), other.search(queries, 10)
    wrong = []

    def work(threads):
        for _ in range(5):
            for which, good in ((index, want), (other, other_want)):
                got = which.search(queries, 10, num_threads=threads)
                if not all(np.array_equal(a, b) for a, b in zip(got, good, strict=True)):
                    wrong.append(threads)

    workers = [threading.Thread(target=work, args=(1 + i % 3,)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_stats():
    codes = index_codes.uniform(1000, 64, 4)
    stats = InvertedIndex.build(codes, dim=64, metric="ip").stats()
    lengths = np.bincount(codes[1].ravel(), minlength=64)
    assert stats["documents"] == 1000
    assert stats["postings"] == 4000
    assert stats["latents"] == 64
    assert stats["longest_list"] == lengths.max()
    assert stats["postings_per_query"] == pytest.approx((lengths**2).sum() / 1000)
    assert stats["hottest_share"] == pytest.approx(lengths.max() / 4000)
    assert 16 < stats["bytes_per_code"] < 18
