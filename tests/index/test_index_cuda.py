"""CudaIndex equals InvertedIndex: the whole GPU part, with its kernels simulated on the CPU.

On a machine with a GPU the tests marked `gpu` say the same of the kernels themselves.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from index_codes import KINDS, skewed, ties, uniform

import csrkern
from csrkern import CudaIndex, InvertedIndex, SparseCodes
from csrkern.index.segment import VALUE_DTYPES

ROOT = Path(__file__).parents[2]
DIM = 90


def same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        ours = ours.cpu().numpy() if isinstance(ours, torch.Tensor) else ours
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def sparse(codes, device="cpu", dim=DIM):
    values, indices = (torch.from_numpy(array).to(device) for array in codes)
    return SparseCodes(values, indices, dim)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", ["ip", "cosine"])
@pytest.mark.parametrize("dtype", VALUE_DTYPES)
def test_finds_what_the_cpu_finds(device, kind, metric, dtype):
    codes, queries = KINDS[kind](1100, DIM, 7), KINDS[kind](9, DIM, 7, seed=1)
    index = InvertedIndex.build(codes, dim=DIM, metric=metric, dtype=dtype, cluster=False)
    for bits, block in ((16, 320), (8, None)):
        there = index.to("cuda", impact_bits=bits, window=block)
        assert len(there) == len(index)
        for top_k in (1, 10, 600):
            expected = index.search(queries, top_k)
            for way in ("walk", "gather", "cheaper"):
                same(there.search(queries, top_k, way=way), expected)
            found = there.search(sparse(queries, device), top_k)
            assert all(isinstance(part, torch.Tensor) for part in found)
            same(found, expected)


@pytest.mark.parametrize("top_k", [3, 100, 600])
@pytest.mark.parametrize("kind", ["uniform", "ties"])
def test_more_candidates_than_there_is_room_for(device, kind, top_k):
    """A first block of documents, whose sums all pass: what the k-th largest of sets bounds."""
    codes, queries = KINDS[kind](1100, DIM, 20), KINDS[kind](2, DIM, 20, seed=1)
    index = InvertedIndex.build(codes, dim=DIM, metric="ip", cluster=False)
    there = index.to("cuda")
    assert there.profile(queries, way="walk")["postings"] > 2 * 512
    same(there.search(queries, top_k, way="walk"), index.search(queries, top_k))


@pytest.mark.parametrize("dtype", VALUE_DTYPES)
@pytest.mark.parametrize("distinct", [3, 40, 1500])
def test_cosines_are_at_most_1(device, dtype, distinct):
    """Many documents whose sums are above 1: hits go to the lower ids, whatever the sums."""
    codes = [part[np.arange(1500) % distinct] for part in skewed(1500, DIM, 7)]
    index = InvertedIndex.build(codes, dim=DIM, metric="cosine", dtype=dtype, cluster=False)
    there = index.to("cuda")
    queries = codes[0][:60], codes[1][:60]
    assert index.search(queries)[0].max() == 1
    for top_k, least in ((1, None), (10, None), (600, None), (10, 1.0), (10, 1.00001)):
        expected = index.search(queries, top_k, min_score=least)
        for way in ("walk", "gather"):
            same(there.search(queries, top_k, min_score=least, way=way), expected)


@pytest.mark.parametrize("metric", ["ip", "cosine"])
@pytest.mark.parametrize("dtype", VALUE_DTYPES)
def test_no_active_latent_is_lost(device, metric, dtype):
    small = np.float32([[1e-8, 0.5], [1e-30, 0.5], [1e-45, 0.5], [2**-25, 0.5]])
    codes = small, np.tile(np.int32([3, 7]), (4, 1))
    index = InvertedIndex.build(codes, dim=DIM, metric=metric, dtype=dtype)
    query = np.ones((1, 1), np.float32), np.full((1, 1), 3, np.int32)
    expected = index.search(query, 5)
    assert sorted(expected[1][0]) == [-1, 0, 1, 2, 3]
    same(index.to("cuda").search(query, 5), expected)
    built = CudaIndex.build(sparse(codes, device), metric=metric, dtype=dtype)
    same(built.search(query, 5), expected)


def changed_index(metric="ip"):
    """Of segments, with ids in no order, some removed."""
    rng = np.random.default_rng(5)
    ids = rng.permutation(5000)[:1300]
    codes = skewed(1300, DIM, 6)
    index = InvertedIndex.build(
        (codes[0][:1000], codes[1][:1000]), ids[:1000], dim=DIM, metric=metric, cluster=True
    )
    index.add((codes[0][1000:], codes[1][1000:]), ids[1000:])
    index.remove(ids[::7])
    return index


def filters(index, m):
    rng = np.random.default_rng(6)
    n = len(index)
    yield None
    yield rng.random(n) < 0.3
    yield rng.random((m, n)) < 0.1
    yield index.ids[::9]
    yield np.array([], np.int64)
    yield [None, index.ids[:40], rng.random(n) < 0.5] + [[3, 10**15]] * (m - 3)


@pytest.mark.parametrize("where", [{}, {"devices": 2}, {"slices": 3}])
def test_filters_ids_and_parts(device, where):
    if device == "cuda" and "devices" in where:
        pytest.skip("needs two GPUs")
    index = changed_index("cosine")
    names = ["cuda:0", "cuda:1"] if "devices" in where else "cuda"
    there = index.to(names, slices=where.get("slices", 1), window=128)
    np.testing.assert_array_equal(there.ids, index.ids)
    queries = skewed(6, DIM, 6, seed=2)
    for chosen in filters(index, 6):
        expected = index.search(queries, 12, filter=chosen)
        same(there.search(queries, 12, filter=chosen), expected)
        on_device = chosen
        if isinstance(chosen, np.ndarray) and chosen.dtype == bool:
            on_device = torch.from_numpy(chosen).to(device)
            same(there.search(queries, 12, filter=on_device), expected)
        same(there.search(sparse(queries, device), 12, filter=on_device), expected)
    options = {"query_k": 3, "min_score": 0.25}
    same(there.search(queries, 40, **options), index.search(queries, 40, **options))


def test_forms_of_queries(device):
    codes, queries = uniform(700, DIM, 5), uniform(8, DIM, 5, seed=3)
    index = InvertedIndex.build(codes, dim=DIM, metric="ip")
    there = index.to("cuda")
    expected = index.search(queries)
    same(there.search(sparse(queries).to_scipy()), expected)
    same(there.search(queries, mode="fast", recall=0.9, num_threads=1), expected)
    half = sparse(queries, device).to(dtype=torch.bfloat16)
    same(there.search(half), index.search(half))
    pair = torch.from_numpy(queries[0]).to(device), torch.from_numpy(queries[1]).to(device).long()
    same(there.search(pair), expected)
    nothing = (np.zeros((0, 5), np.float32), np.zeros((0, 5), np.int32))
    assert there.search(nothing)[0].shape == (0, 10)
    assert there.search(sparse(nothing, device))[0].shape == (0, 10)
    assert (there.search((queries[0] * 0, queries[1]))[1] == -1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_builds_from_codes_on_the_device(device, dtype):
    codes = sparse(ties(900, DIM, 6), device).to(dtype=dtype)
    ids = np.random.default_rng(8).permutation(2000)[:900]
    queries = ties(7, DIM, 6, seed=4)
    for form in (
        {"dtype": "float16"},
        {"dtype": "float32", "metric": "cosine", "ids": ids},
        {"dtype": "uint8", "ids": ids},
        {"dtype": "uint8", "largest": 9.5},
        {"dtype": "uint8", "metric": "cosine"},
        {"dtype": "uint4"},
    ):
        form = {"metric": "ip", **form}
        index = InvertedIndex.build(codes, **form)
        there = CudaIndex.build(codes, **form, window=256)
        same(there.search(queries, 30), index.search(queries, 30))
    assert there.stats()["bytes"] > 0


def test_from_a_file(device, tmp_path):
    index = changed_index()
    index.save(tmp_path / "index")
    queries = skewed(5, DIM, 6, seed=3)
    there = InvertedIndex.load(tmp_path / "index").to("cuda", window=128)
    same(there.search(queries, 9), index.search(queries, 9))


def test_cuda_is_the_device_in_use(device, monkeypatch):
    if device == "cuda":
        pytest.skip("needs two GPUs")
    monkeypatch.setattr(sys.modules["csrkern._cuda"], "current_device", lambda: 1)
    index = InvertedIndex.build(uniform(50, DIM, 6), dim=DIM, metric="ip")
    assert index.to("cuda").devices == (1,)
    assert index.to(["cuda:0", "cuda"]).devices == (0, 1)


def test_an_empty_index(device):
    nothing = (np.zeros((0, 4), np.float32), np.zeros((0, 4), np.int32))
    index = InvertedIndex.build(nothing, dim=DIM, metric="ip")
    queries = uniform(3, DIM, 4)
    for slices in (1, 2):
        same(index.to("cuda", slices=slices).search(queries), index.search(queries))


def test_memory_is_as_stated(device):
    """As docs/index-cuda.md counts it."""
    n, k = 2000, 8
    lists = DIM * -(-n // 512)
    for form, value in (("float16", 2), ("uint8", 1), ("uint4", 1), ("float32", 4)):
        norms = np.ones(n) if form == "uint8" else None
        index = InvertedIndex.build(
            uniform(n, DIM, k), dim=DIM, metric="ip", dtype=form, norms=norms
        )
        entries = index.stats()["postings"]
        for bits, posting in ((16, 4), (8, 3)):
            there = index.to("cuda", impact_bits=bits, window=512)
            stated = entries * (2 + value + posting) + 4 * (n + 1) + 4 * DIM + 4 * (lists + 1) + 32
            stated += 0 if norms is None else 4 * n
            assert there.stats()["bytes"] == stated


def test_an_index_too_large_is_refused_and_found_in_slices(device, monkeypatch):
    if device == "cuda":
        pytest.skip("the simulated GPU is small enough")
    codes, queries = uniform(4000, DIM, 8), uniform(4, DIM, 8, seed=9)
    index = InvertedIndex.build(codes, dim=DIM, metric="ip")
    small = index.to("cuda")
    monkeypatch.setenv("SIMULATED_CUDA_BYTES", "500000")
    with pytest.raises(
        MemoryError, match=r"4000 codes needs \d+ bytes .* \d+ bytes free of 500000"
    ):
        index.to("cuda")
    same(small.search(queries), index.search(queries))  # usable as before
    del small
    same(index.to("cuda", slices=8).search(queries), index.search(queries))
    assert index.to("cuda", slices=8).profile(queries)["postings"] > 0  # one slice at a time
    monkeypatch.setenv("SIMULATED_CUDA_BYTES", "1000")
    sliced = index.to("cuda", slices=8)
    with pytest.raises(MemoryError):
        sliced.search(queries)


def test_is_made_by_to_or_build():
    with pytest.raises(TypeError, match=r"CudaIndex: make one with index.to\('cuda'\)"):
        CudaIndex(np.ones((1, 1)))


def test_says_what_it_did(device):
    index = InvertedIndex.build(uniform(600, DIM, 6), dim=DIM, metric="ip")
    there = index.to("cuda", window=64)
    queries = uniform(4, DIM, 6, seed=1)
    walk, gather = (there.profile(queries, way=way) for way in ("walk", "gather"))
    assert walk["postings"] == index.profile(queries)["postings"]
    assert walk["gathers"] == 0
    assert gather["walks"] == 0
    assert gather["entries"] > 0
    stats = there.stats()
    assert stats["documents"] == 600
    assert stats["gather_cost"] > 0
    assert "n=600" in repr(there)


def test_chooses_what_was_measured_to_cost_less(device):
    """Every document has the query's latents, so that postings are as many as entries."""
    values, _ = uniform(500, DIM, 4)
    codes = values, np.tile(np.arange(4, dtype=np.int32), (500, 1))
    there = InvertedIndex.build(codes, dim=DIM, metric="ip").to("cuda", window=64)
    chosen = there.profile(codes)
    cheaper = "gathers" if there.stats()["gather_cost"] < 1 else "walks"
    assert chosen[cheaper] == chosen["walks"] + chosen["gathers"] > 0
    few = values[:5, :1], np.full((5, 1), 80, np.int32)
    assert there.profile(few) == {"walks": 0, "gathers": 0, "postings": 0, "entries": 0}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_search_can_be_captured_in_a_graph_on_a_stream_of_its_own():
    index = InvertedIndex.build(uniform(5000, DIM, 7), dim=DIM, metric="ip")
    there = index.to("cuda")
    mask = torch.rand(5000, device="cuda") < 0.5
    queries = sparse(uniform(20, DIM, 7, seed=1), "cuda")
    there.search(queries, filter=mask)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = there.search(queries, filter=mask)
    other = uniform(20, DIM, 7, seed=2)
    queries.values.copy_(torch.from_numpy(other[0]))
    queries.indices.copy_(torch.from_numpy(other[1]))
    graph.replay()
    torch.cuda.synchronize()
    same(found, index.search(other, filter=mask.cpu().numpy()))


def message(call):
    with pytest.raises((TypeError, ValueError)) as error:
        call()
    return str(error.value)


@pytest.mark.parametrize(
    ("slot", "value", "latent"), [(0, 1.0, DIM), (1, 1.0, -2), (2, -0.5, 3), (3, np.nan, 3)]
)
def test_refuses_what_the_cpu_refuses(device, slot, value, latent):
    index = InvertedIndex.build(uniform(50, DIM, 6), dim=DIM, metric="ip")
    there = index.to("cuda")
    values, indices = uniform(3, DIM, 6)
    values[2, slot], indices[2, slot] = value, latent
    expected = message(lambda: index.search((values, indices)))
    ours = message(lambda: there.search((values, indices)))
    assert ours.split(", got")[0] == expected.split(", got")[0]
    assert "in row 2" in ours


def test_errors(device):
    index = InvertedIndex.build(uniform(50, DIM, 6), dim=DIM, metric="ip")
    there = index.to("cuda")
    values, indices = uniform(3, DIM, 6)
    indices[1, 1] = indices[1, 0]
    twice = (values, indices)
    assert message(lambda: there.search(twice)) == message(lambda: index.search(twice))
    queries = uniform(3, DIM, 6)
    for options in ({"top_k": 1025}, {"top_k": 0}, {"way": "fly"}, {"mode": "near"}, {"rerank": 1}):
        assert next(iter(options)) in message(lambda o=options: there.search(queries, **o))
    for options in ({"recall": 0.9}, {"recall": 2, "mode": "fast"}):
        assert message(lambda o=options: there.search(queries, **o)) == message(
            lambda o=options: index.search(queries, **o)
        )
    for name in ("search_above", "add", "remove", "compact", "save", "to_numpy", "explain"):
        assert not hasattr(there, name)
    for chosen in (np.ones(49, bool), torch.ones(49, dtype=torch.bool)):
        assert "filter" in message(lambda c=chosen: there.search(queries, filter=c))
    for name in ("cuda:9", "cpu", "cuda:x", []):
        assert "device" in message(lambda d=name: index.to(d))
    assert "window" in message(lambda: index.to("cuda", window=100))
    assert "impact_bits" in message(lambda: index.to("cuda", impact_bits=4))
    assert "slices" in message(lambda: index.to("cuda", slices=0))
    assert "codes" in message(lambda: CudaIndex.build(queries, dim=DIM, metric="ip"))
    bad = sparse((queries[0].copy(), queries[1]), device)
    bad.values[2, 3] = torch.nan
    assert "finite values that are not negative in row 2" in message(
        lambda: CudaIndex.build(bad, metric="ip")
    )
    same(there.search(queries), index.search(queries))


def test_without_the_module_or_a_gpu(monkeypatch):
    index = InvertedIndex.build(uniform(5, DIM, 3), dim=DIM, metric="ip")
    monkeypatch.setitem(sys.modules, "csrkern._cuda", None)
    with pytest.raises(RuntimeError, match="built without CUDA"):
        index.to("cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_real_module_loads_where_there_is_no_gpu():
    native = pytest.importorskip("csrkern._cuda")
    assert native.count_devices() == 0
    with pytest.raises(RuntimeError, match="no CUDA device"):
        native.device_info(0)
    index = csrkern.InvertedIndex.build(uniform(5, DIM, 3), dim=DIM)
    with pytest.raises(RuntimeError, match="no CUDA device"):
        index.to("cuda")


def test_loading_it_needs_no_pytorch(simulated_module, tmp_path):
    """A server with a GPU and no PyTorch searches from arrays."""
    code = f"""
import sys, importlib.util, numpy as np
spec = importlib.util.spec_from_file_location("simulated_cuda", {simulated_module.__file__!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.modules["csrkern._cuda"] = module
import csrkern
codes = np.ones((3, 2), np.float32), np.array([[0, 1], [1, 2], [2, 3]], np.int32)
index = csrkern.InvertedIndex.build(codes, dim=4)
assert (index.to("cuda").search(codes)[1] == index.search(codes)[1]).all()
assert "torch" not in sys.modules
"""
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
