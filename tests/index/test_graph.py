"""The graph of an index: its edges, the walks along it, and what becomes of it."""

from __future__ import annotations

import json

import index_codes
import numpy as np
import pytest

from benchmarks.harness import generators
from csrkern import _C, InvertedIndex, reference
from csrkern.index.graph import LEAST_WORTH_A_GRAPH, NONE, edges

DIM, N = 256, 5_000
CODES = index_codes.skewed(N, DIM, 24)
QUERIES = index_codes.skewed(60, DIM, 24, seed=7)
LIKE = index_codes.skewed(400, DIM, 24, seed=8)


def assert_same(got, want):
    for side, wanted in zip(got, want, strict=True):
        np.testing.assert_array_equal(side, wanted)


def built(codes=CODES, **options):
    index = InvertedIndex.build(codes, dim=DIM, **options)
    index.build_graph()
    return index


def neighbors(index):
    return [segment.native.neighbors for segment in index.snapshot().segments]


def walk(index, queries, *, kept=0.8, width=12, top_k=10, num_threads=1):
    natives = [(segment.native, segment.alive) for segment in index.snapshot().segments]
    limits = {"normalize": index.metric == "cosine", "query_k": 10**6, "min_score": -np.inf}
    given = natives, *queries, None, DIM
    return _C.search(*given, top_k=top_k, num_threads=num_threads, kept=kept, width=width, **limits)


def walked(index):
    """Let fast searches walk: so few codes are as well searched exactly."""
    index.calibrate(LIKE, 0.9)
    index._plans._known[0.9] = index._plans._known[0.9]._replace(
        kept=0.8, width=15, least=0.0, factor=0, strong=False, bound_share=1.0, fewest=0, most=10**6
    )


def test_edges_are_the_nearest_and_those_that_one_is_near_to():
    nearest = np.array([[1, 2], [0, 2], [0, -1], [0, 1], [0, -1]])
    got = edges(nearest)
    assert got.shape == (5, _C.NEIGHBORS)
    # Of those that 0 is one of the nearest of, 1 and 2 are its own; 3 comes before 4.
    want = [{1, 2, 3, 4}, {0, 2, 3}, {0, 1}, {0, 1}, {0}]
    for row, wanted in zip(got, want, strict=True):
        assert set(row[row != NONE].tolist()) == wanted
        assert (row != NONE).sum() == len(wanted)
    assert got[0, 2:4].tolist() == [3, 4]


def test_edges_back_are_those_of_the_best_rank():
    """A document that all are near to keeps those that it is nearest to."""
    n, width = 100, 16
    nearest = np.full((n, width), -1)
    nearest[1:, 3] = 0
    nearest[50:, 3] = -1
    nearest[50:, 0] = 0
    row = edges(nearest)[0]
    assert row[width:].tolist() == list(range(50, 66))


@pytest.mark.parametrize("dtype", ["float32", "uint8", "uint4"])
@pytest.mark.parametrize("metric", ["cosine", "ip"])
def test_neighbors_are_those_of_exact_searches(dtype, metric):
    index = built(dtype=dtype, metric=metric, ids=np.arange(N)[::-1] + 3)
    (got,) = neighbors(index)
    starts, latents, values = index.snapshot().segments[0].native.rows()
    dense = np.zeros((N, DIM), np.float64)
    dense[np.repeat(np.arange(N), np.diff(starts)), latents] = values
    for doc in range(0, N, 517):
        score = dense @ dense[doc]
        score[doc] = -1
        best = np.sort(score)[::-1][:16]
        of_ours = np.sort(score[got[doc][got[doc] != NONE].astype(np.int64)])[::-1][:16]
        np.testing.assert_allclose(of_ours, best, rtol=1e-5)
        assert doc not in got[doc]


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "uint4"])
@pytest.mark.parametrize("removed", [0, 400])
@pytest.mark.parametrize(("kept", "width"), [(0.5, 3), (0.8, 12), (1.0, 40)])
def test_a_walk_is_that_of_its_twin(dtype, removed, kept, width):
    index = built(dtype=dtype)
    index.remove(np.random.default_rng(0).permutation(N)[:removed])
    segment = index.snapshot().segments[0]
    starts, latents, values = segment.native.rows()
    docs = np.zeros((N, DIM), np.float32)
    docs[np.repeat(np.arange(N), np.diff(starts)), latents] = values
    queries = tuple(side[:20] for side in QUERIES)
    got = walk(index, queries, kept=kept, width=width)
    for i in range(20):
        query = _C.read_query(*(side[i : i + 1] for side in queries), None, DIM, True)
        scores, ids = reference.walk(
            docs, segment.native.neighbors, *query, 10, kept=kept, width=width,
            allowed=segment.mask(),
        )  # fmt: skip
        np.testing.assert_array_equal(got[0][i], np.minimum(scores, 1))
        np.testing.assert_array_equal(got[1][i], ids)


@pytest.mark.parametrize("cluster", [False, True])
def test_plans_that_walk_keep_their_promises(cluster):
    codes, like, queries = (
        generators.skewed(n, DIM, 48, seed=seed) for seed, n in enumerate((20_000, 400, 300))
    )
    index = built(codes, cluster=cluster)
    told = index.calibrate(like, 0.95)
    assert index._plans.facts()[0]["width"] > 0
    truth = index.search(queries)
    found = index.search(queries, mode="fast", recall=0.95)
    share = np.mean([np.isin(a, b).mean() for a, b in zip(truth[1], found[1], strict=True)])
    assert 0.95 <= told["at_least"] <= told["found"]
    assert 0.95 <= share < 1
    # What is found has its exact score; other queries and threads do not matter.
    for i in range(0, 300, 40):
        exact = dict(zip(truth[1][i].tolist(), truth[0][i].tolist(), strict=True))
        hits = zip(found[1][i].tolist(), found[0][i].tolist(), strict=True)
        assert all(exact.get(id, score) == score for id, score in hits)
        one = tuple(side[i : i + 1] for side in queries)
        assert_same(index.search(one, mode="fast", recall=0.95), [s[i : i + 1] for s in found])
    for threads in (1, 3):
        again = index.search(queries, mode="fast", recall=0.95, num_threads=threads)
        assert_same(again, found)
    # More hits are those of a wider walk; many are searched exactly, fewer are the first.
    many = index.search(queries, 20, mode="fast", recall=0.95)[1]
    truth = index.search(queries, 20)
    assert np.mean([np.isin(a, b).mean() for a, b in zip(truth[1], many, strict=True)]) > 0.9
    few = index.search(queries, 3, mode="fast", recall=0.95)
    assert_same(few, [side[:, :3] for side in found])
    most = index.search(queries, 21, mode="fast", recall=0.95)
    assert_same(most, index.search(queries, 21))
    # Queries that are farther from all codes than those measured are searched exactly.
    others = generators.uniform(50, DIM, 48)
    want = index.search(others)
    got = index.search(others, mode="fast", recall=0.95)
    far = want[0][:, 9] < index._plans._known[0.95].least
    assert far.any()
    assert_same([side[far] for side in got], [side[far] for side in want])


def test_plans_of_an_index_s_own_codes_do_not_walk():
    """Each code is a neighbor of its neighbors, as no other query is."""
    index = built(generators.skewed(20_000, DIM, 48), cluster=False)
    like = generators.skewed(400, DIM, 48, seed=1)
    index.search(like, mode="fast", recall=0.9)
    assert index.stats()["recall"][0.9]["of"] == "codes"
    assert index._plans._known[0.9].width == 0
    index.calibrate(like, 0.9)
    assert index._plans._known[0.9].width > 0


def test_files_keep_the_graph(tmp_path):
    index = built()
    walked(index)
    want = index.search(QUERIES, mode="fast", recall=0.9)
    index.save(tmp_path / "index")
    header = json.loads((tmp_path / "index" / "index.json").read_text())
    assert header["version"] == 7
    assert index.stats()["bytes_of"]["graph"] == 4 * _C.NEIGHBORS * N
    for mmap in (True, False):
        loaded = InvertedIndex.load(tmp_path / "index", mmap=mmap)
        assert_same(neighbors(loaded), neighbors(index))
        assert_same(loaded.search(QUERIES, mode="fast", recall=0.9), want)
        assert loaded.stats()["bytes_of"] == index.stats()["bytes_of"]
    before = sorted(path.name for path in (tmp_path / "index").iterdir())
    index.save(tmp_path / "index")
    assert sorted(path.name for path in (tmp_path / "index").iterdir()) == before
    plain = InvertedIndex.build(CODES, dim=DIM)
    plain.save(tmp_path / "plain")
    assert json.loads((tmp_path / "plain" / "index.json").read_text())["version"] < 7


def test_codes_that_come_and_go():
    index = built()
    walked(index)
    own = tuple(side[:5] for side in QUERIES)
    index.add(QUERIES)
    assert [graph is None for graph in neighbors(index)] == [False, True]
    # They are searched exactly, and found.
    scores, ids = index.search(own, 1, mode="fast", recall=0.9)
    assert ids[:, 0].tolist() == list(range(N, N + 5))
    np.testing.assert_allclose(scores, 1, atol=1e-3)
    index.remove(ids[:, 0])
    index.remove(range(0, N, 10))
    gone = index.search(QUERIES, mode="fast", recall=0.9)[1]
    assert not ((gone < N) & (gone % 10 == 0)).any()
    assert not np.isin(gone, ids).any()
    assert (gone >= 0).all()
    index.compact()
    (graph,) = neighbors(index)
    assert graph.shape == (len(index), _C.NEIGHBORS)
    assert graph[graph != NONE].max() < len(index)


def test_where_many_are_left_out_searches_are_exact():
    index = built()
    walked(index)
    fast = {"mode": "fast", "recall": 0.9}
    most = np.arange(N) % 20 > 0
    assert not np.array_equal(
        index.search(QUERIES, filter=most, **fast)[1], index.search(QUERIES, filter=most)[1]
    )
    for few in (np.arange(1, N, 97), np.arange(N) % 8 > 0, np.tile(most, (len(QUERIES[0]), 1))):
        assert_same(index.search(QUERIES, filter=few, **fast), index.search(QUERIES, filter=few))
    index.remove(np.arange(0, N, 8))
    assert_same(index.search(QUERIES, **fast), index.search(QUERIES))


def of_one_topic_more(n, seed):
    """Codes, and queries for latents that only 200 codes have, whose numbers all end in 1."""
    values, latents = (side.copy() for side in generators.skewed(n, DIM, 48, seed=seed))
    latents[1:2000:10] = np.arange(DIM, DIM + 48)
    return values, latents


def test_what_the_sample_lacks_is_found():
    index = InvertedIndex.build(of_one_topic_more(20_000, 0), dim=DIM + 48)
    index.build_graph()
    like = generators.skewed(400, DIM, 48, seed=1)
    index.calibrate(like, 0.9)
    assert index._plans._known[0.9].width > 0
    one = like[0][:1], np.arange(DIM, DIM + 48, dtype=np.int32)[None]
    want = index.search(one, 10)
    assert (want[1] >= 0).all()
    got = index.search(one, 10, mode="fast", recall=0.9)
    assert np.isin(got[1], np.arange(1, 2000, 10)).all()
    # Latents of fewer documents than the sample can have: exact.
    rare = InvertedIndex.build((np.ones((N, 1)), np.arange(N)[:, None] // 5), dim=N)
    rare.build_graph()
    rare.calibrate((np.ones((9, 1)), np.arange(9)[:, None]), 0.9)
    walked_plan = rare._plans._known[0.9]._replace(width=5, fewest=0, most=10**6)
    rare._plans._known[0.9] = walked_plan
    ask = np.ones((50, 1)), np.arange(50)[:, None] * 7
    assert_same(rare.search(ask, mode="fast", recall=0.9), rare.search(ask))


def test_fewer_hits_are_the_first_of_more():
    """Also where many codes are equal and ids descend."""
    big = generators.skewed(20_000, DIM, 48)
    codes = tuple(np.concatenate([side, np.repeat(side[:40], 40, 0)]) for side in big)
    index = InvertedIndex.build(codes, np.arange(len(codes[0]))[::-1].copy(), dim=DIM)
    index.build_graph()
    index.calibrate(generators.skewed(400, DIM, 48, seed=1), 0.9)
    assert index._plans._known[0.9].width > 0
    queries = tuple(side[:40] for side in big)
    ten = index.search(queries, 10, mode="fast", recall=0.9)
    assert_same(index.search(queries, 3, mode="fast", recall=0.9), [side[:, :3] for side in ten])
    same = ten[0][:, 1:] == ten[0][:, :-1]
    assert (np.diff(ten[1], axis=1)[same] > 0).all()


def test_what_comes_while_a_graph_is_built():
    """What takes the place of a segment in the meantime gets a graph, too."""
    index = InvertedIndex.build(CODES, dim=DIM)
    calls = []

    def change(done, of):
        if not calls:
            index.add(QUERIES)
            index.compact()
        calls.append(done)

    index.build_graph(progress=change)
    (graph,) = neighbors(index)
    assert len(graph) == len(index) == N + len(QUERIES[0])
    with pytest.raises(TypeError, match="progress: expected a function, got int"):
        index.build_graph(progress=3)


def test_when_there_is_no_graph():
    codes = tuple(side[: LEAST_WORTH_A_GRAPH - 1] for side in CODES)
    index = built(codes)
    assert neighbors(index) == [None]
    index.add(CODES)
    index.compact()
    assert neighbors(index) == [None]
    index.build_graph()
    graph = neighbors(index)[0]
    assert graph is not None
    index.build_graph()
    assert neighbors(index)[0] is graph
    hollow = built((np.zeros((N, 1)), np.zeros((N, 1), np.int32)))
    assert neighbors(hollow) == [None]
    empty = InvertedIndex.build(tuple(side[:0] for side in CODES), dim=DIM)
    empty.build_graph()
    assert (empty.search(QUERIES, mode="fast")[1] == -1).all()


def test_progress_and_threads():
    told = []
    index = InvertedIndex.build(CODES, dim=DIM)
    index.build_graph(num_threads=3, progress=lambda done, of: told.append((done, of)))
    assert told[-1] == (N, N)
    assert told == sorted(told)
    assert_same(neighbors(index), neighbors(built()))


def test_codes_without_neighbors():
    """Codes that share nothing, empty ones, and equal ones."""
    values = np.ones((N, 1), np.float32)
    latents = np.arange(N, dtype=np.int32)[:, None]
    values[-10:] = 0
    latents[100:200] = 7
    index = InvertedIndex.build((values, latents), dim=N)
    index.build_graph()
    (graph,) = neighbors(index)
    assert (graph[0] == NONE).all()
    assert (graph[-1] == NONE).all()
    assert np.isin(graph[100], [7, *range(100, 200), NONE]).all()
    natives = [(segment.native, None) for segment in index.snapshot().segments]
    limits = {"normalize": True, "query_k": 1, "min_score": -np.inf, "num_threads": 1}
    query = np.ones((2, 1), np.float32), np.array([[7], [N - 1]], np.int32)
    scores, ids = _C.search(natives, *query, None, N, top_k=20, width=20, **limits)
    assert (scores[0] == 1).all()
    assert np.isin(ids[0], [7, *range(100, 200)]).all()
    assert (ids[1] == -1).all()
