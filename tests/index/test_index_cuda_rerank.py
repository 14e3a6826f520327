"""Reranking on a GPU, or a simulated one, equals that on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from index_codes import skewed, uniform

from csrkern import CudaIndex, FineQuantizer, InvertedIndex, Refine, Rerank, SparseCodes
from csrkern.index.cuda import parts as index_cuda_parts

DIM = 90


def normed_index(metric="ip", dtype="float16"):
    """Of segments, with norms, ids in no order and some removed."""
    rng = np.random.default_rng(3)
    codes, ids = skewed(1200, DIM, 6), rng.permutation(9000)[:1200]
    norms = rng.random(1200) + 0.5
    first, rest = slice(0, 900), slice(900, None)
    form = {"metric": metric, "dtype": dtype, "dim": DIM}
    if dtype == "uint8" and metric == "ip":
        form["largest"] = 64
    index = InvertedIndex.build(
        (codes[0][first], codes[1][first]), ids[first], norms=norms[first], **form
    )
    index.add((codes[0][rest], codes[1][rest]), ids[rest], norms=norms[rest])
    index.remove(ids[::5])
    return index


def same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        ours = ours.cpu().numpy() if isinstance(ours, torch.Tensor) else ours
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def on_device(codes, device):
    values, indices = (torch.from_numpy(array).to(device) for array in codes)
    return SparseCodes(values, indices, DIM)


@pytest.mark.parametrize("where", [{}, {"devices": 2}, {"slices": 3}])
@pytest.mark.parametrize(("metric", "dtype"), [("ip", "float16"), ("cosine", "uint8")])
def test_reranks_as_the_cpu_does(device, where, metric, dtype, monkeypatch):
    if device == "cuda" and "devices" in where:
        pytest.skip("needs two GPUs")
    index = normed_index(metric, dtype)
    names = ["cuda:0", "cuda:1"] if "devices" in where else "cuda"
    there = index.to(names, slices=where.get("slices", 1), window=128)
    queries = skewed(6, DIM, 6, seed=2)
    rng = np.random.default_rng(4)
    dense = rng.standard_normal((6, DIM)).astype(np.float32)
    dense[1] = 0  # equal scores: the order is that of ids
    dense[2] = rng.choice([-3e38, 3e38], DIM)  # sums of infinities
    offsets = rng.standard_normal(6).astype(np.float32)
    for rerank, options in (
        (Rerank(dense, 30), {}),
        (Rerank(dense, 30, offsets), {"min_score": 0.25}),
        (Rerank(dense, 7), {"top_k": 20}),
        (Rerank(dense, 10**6), {"filter": index.ids[::4]}),
        (Rerank(dense, 40, offsets), {"filter": rng.random((6, len(index))) < 0.3, "query_k": 2}),
    ):
        expected = index.search(queries, rerank=rerank, **options)
        same(there.search(queries, rerank=rerank, **options), expected)
        here = on_device(queries, device)
        same(there.search(here, rerank=rerank, **options), expected)
        tensors = Rerank(
            torch.from_numpy(dense).to(device),
            rerank.shortlist,
            None if rerank.offsets is None else torch.from_numpy(offsets).to(device),
        )
        same(there.search(here, rerank=tensors, **options), expected)
        with monkeypatch.context() as patch:
            patch.setattr(index_cuda_parts, "_DENSE_BYTES", 8 * DIM)  # two queries at once
            same(there.search(queries, rerank=rerank, **options), expected)


def test_dense_search(device):
    index = normed_index()
    there = index.to("cuda")
    dense = np.random.default_rng(5).standard_normal((4, DIM))
    for options in ({}, {"latents": 5, "shortlist": 20, "top_k": 3}, {"offsets": np.ones(4)}):
        same(there.search_dense(dense, **options), index.search_dense(dense, **options))
    same(there.search_dense(torch.from_numpy(dense).to(device)), index.search_dense(dense))


def test_norms_of_codes_on_the_device(device):
    codes, norms = uniform(300, DIM, 6), np.random.default_rng(6).random(300) + 0.1
    ids = np.random.default_rng(7).permutation(300)
    index = InvertedIndex.build(codes, ids, dim=DIM, metric="ip", norms=norms)
    there = CudaIndex.build(on_device(codes, device), ids, norms=norms, metric="ip")
    dense = np.random.default_rng(8).standard_normal((3, DIM))
    queries = uniform(3, DIM, 6, seed=1)
    same(
        there.search(queries, rerank=Rerank(dense, 50)),
        index.search(queries, rerank=Rerank(dense, 50)),
    )


def test_errors(device):
    index = InvertedIndex.build(uniform(1100, DIM, 6), dim=DIM, metric="ip")
    there = index.to("cuda")
    queries = uniform(3, DIM, 6, seed=1)
    dense = np.ones((3, DIM), np.float32)
    with pytest.raises(ValueError, match="shortlist of at most 1024 on a GPU, got 1025"):
        there.search(queries, rerank=Rerank(dense, 1025))
    for wrong in (Rerank(dense[:2]), Rerank(dense, offsets=np.ones(2))):
        with pytest.raises(ValueError, match=r"dense_queries|offsets"):
            index.search(queries, rerank=wrong)
        with pytest.raises(ValueError, match=r"dense_queries|offsets"):
            there.search(queries, rerank=wrong)
        tensors = Rerank(
            torch.from_numpy(wrong.dense_queries).to(device),
            offsets=None if wrong.offsets is None else torch.ones(2, device=device),
        )
        with pytest.raises(ValueError, match=r"dense_queries|offsets"):
            there.search(on_device(queries, device), rerank=tensors)
    with pytest.raises(ValueError, match="rerank: expected mode='exact'"):
        there.search(queries, rerank=Rerank(dense), mode="fast")


def test_fine_codes_stay_on_the_cpu(device):
    rng = np.random.default_rng(0)
    quantizer = FineQuantizer(rng.standard_normal((2, 256, 5)), np.zeros(5))
    fine = quantizer.encode(rng.standard_normal((50, 5)))
    index = InvertedIndex.build(uniform(50, DIM, 4), dim=DIM, fine=fine)
    there = index.to("cuda")
    queries = uniform(3, DIM, 4, seed=1)
    same(there.search(queries, 5), index.search(queries, 5))
    with pytest.raises(ValueError, match="rerank: expected a Rerank, got a Refine"):
        there.search(queries, rerank=Refine(np.zeros((3, 5))))
