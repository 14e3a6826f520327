"""CudaIndex against InvertedIndex on codes, changes and questions drawn at random.

python tests/index/test_index_cuda_random.py 1000 2000    # cases of these numbers, simulated
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
import simulated_gpu
import torch

from csrkern import CudaIndex, InvertedIndex, Rerank, SparseCodes
from csrkern.index.segment import VALUE_DTYPES


def draw_codes(rng, n, dim, k):
    """Rows of any number of entries: hot latents, equal rows, few values, extremes, none at all."""
    weights = rng.random(dim) ** rng.choice([0, 1, 8])
    keys = rng.random((n, dim)) ** (1 / np.maximum(weights, 1e-6))
    latents = np.argsort(-keys, axis=1)[:, :k].astype(np.int32)
    values = {
        "random": lambda: rng.random((n, k)) + 0.01,
        "few": lambda: rng.integers(0, 3, (n, k)) / 2,
        "near": lambda: 1 + rng.integers(0, 4, (n, k)) * 2.0**-10,
        "wide": lambda: 10.0 ** rng.uniform(-6, 4, (n, k)),
        "tiny": lambda: 2.0**-24 * rng.integers(0, 5, (n, k)),
    }[rng.choice(["random", "few", "near", "wide", "tiny"])]()
    if rng.random() < 0.3 and n:
        hot = rng.integers(dim)
        missing = (latents != hot).all(1)
        latents[missing, 0] = hot
    values[rng.random((n, k)) < rng.choice([0, 0.3])] = 0
    values[rng.random(n) < rng.choice([0, 0.2, 1], p=[0.5, 0.45, 0.05])] = 0
    if rng.random() < 0.3 and n:
        same = rng.integers(0, n, n)
        latents, values = latents[same], values[same]
    return values.astype(np.float32), latents


def draw_index(rng, dim, k):
    """An index that may have been changed."""
    n = int(rng.choice([0, 1, 3, 63, 64, 65, 200, 513, 1100], p=[0.03, *[0.07] * 3, *[0.152] * 5]))
    codes = draw_codes(rng, n, dim, k)
    ids = None
    if rng.random() < 0.5:
        ids = rng.choice([1, 2**40, 2**62]) + rng.permutation(3 * n + 1)[:n]
        if n and rng.random() < 0.2:
            ids[rng.integers(n)] = 2**63 - 1
    metric, dtype = rng.choice(["ip", "cosine"]), rng.choice(VALUE_DTYPES)
    form = {"metric": str(metric), "dtype": str(dtype)}
    if dtype.startswith("uint") and metric == "ip":
        form["largest"] = 2.0**14
    norms = rng.random(n) + 0.1 if rng.random() < 0.3 else None
    cluster = [None, dtype != "uint4", False][rng.integers(3)]
    index = InvertedIndex.build(codes, ids, dim=dim, norms=norms, cluster=cluster, **form)
    pristine = codes, ids, norms, form
    if rng.random() < 0.4 and (ids is None or ids.max(initial=0) < 2**63 - 1):
        pristine = None
        more = int(rng.integers(1, 200))
        more_norms = None if norms is None else rng.random(more) + 0.1
        if n or norms is None:
            index.add(draw_codes(rng, more, dim, k), norms=more_norms)
        alive = index.ids
        index.remove(rng.choice(alive, rng.integers(0, len(alive) + 1), replace=False))
        if rng.random() < 0.2:
            index.compact()
    return index, pristine


def draw_filter(rng, index, m):
    n, ids = len(index), index.ids
    one = [
        lambda: None,
        lambda: rng.random(n) < rng.choice([0.02, 0.5, 1]),
        lambda: np.zeros(n, bool),
        lambda: ids[rng.random(n) < 0.1],
        lambda: np.concatenate([ids[:1], np.array([5, 10**17])]),
    ]
    kind = rng.integers(7)
    if kind < 5:
        return one[kind]()
    if kind == 5:
        return rng.random((m, n)) < 0.3
    return [one[rng.integers(5)]() for _ in range(m)]


def draw_question(rng, index, m):
    asked = {"top_k": int(rng.choice([1, 2, 10, 100, 513, 1024])), "filter": None}
    if m:
        asked["filter"] = draw_filter(rng, index, m)
    if rng.random() < 0.3:
        asked["query_k"] = int(rng.integers(1, 12))
    if rng.random() < 0.3:
        asked["min_score"] = float(rng.choice([-1, 0, 0.3, 5]))
    if rng.random() < 0.3:
        dense = rng.standard_normal((m, index.dim)) * rng.choice([1, 1e-40, 3e37])
        dense[rng.random(dense.shape) < 0.5] = 0
        offsets = rng.standard_normal(m) if rng.random() < 0.5 else None
        asked["rerank"] = Rerank(dense.astype(np.float32), int(rng.choice([1, 20, 1024])), offsets)
    return asked


def same(found, expected, case):
    for ours, theirs in zip(found, expected, strict=True):
        ours = ours.cpu().numpy() if isinstance(ours, torch.Tensor) else ours
        assert ours.shape == theirs.shape, case
        np.testing.assert_array_equal(
            ours.view(f"u{ours.itemsize}"), theirs.view(f"u{theirs.itemsize}"), str(case)
        )


def one_case(number, device):
    """Draws an index, and asks it and those made of it the same. Returns how often."""
    rng = np.random.default_rng(number)
    dim = int(rng.choice([1, 7, 40, 300]))
    k = int(rng.integers(1, min(dim, 12) + 1))
    index, pristine = draw_index(rng, dim, k)
    form = {
        "impact_bits": int(rng.choice([8, 16])),
        "window": rng.choice([None, 64, 128, 320, 1024]),
    }
    form["window"] = None if form["window"] is None else int(form["window"])
    where = ["cuda", ["cuda:0", "cuda:1"]][device == "cpu" and rng.random() < 0.2]
    built = [index.to(where, slices=int(rng.choice([1, 3], p=[0.8, 0.2])), **form)]
    # Masks follow the ids, which clustering puts in another order.
    if pristine is not None and index.snapshot().segments[0].block == 0:
        codes, ids, norms, facts = pristine
        values, indices = (torch.from_numpy(array).to(device) for array in codes)
        built.append(
            CudaIndex.build(SparseCodes(values, indices, dim), ids, norms=norms, **facts, **form)
        )
    questions = 0
    for _ in range(3):
        m = int(rng.choice([0, 1, 5, 40], p=[0.04, 0.3, 0.56, 0.1]))
        queries = draw_codes(rng, m, dim, int(rng.integers(1, dim + 1)))
        if index.dtype != "float32":
            queries = np.minimum(queries[0], 60000), queries[1]
        asked = draw_question(rng, index, m)
        expected = index.search(queries, **asked)
        for there in built:
            way = str(rng.choice(["walk", "gather", "cheaper"]))
            case = number, way, asked
            same(there.search(queries, **asked, way=way), expected, case)
            values, indices = (torch.from_numpy(array).to(device) for array in queries)
            same(there.search(SparseCodes(values, indices, dim), **asked, way=way), expected, case)
            questions += 1
    return questions


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_random_cases(device, first):
    for number in range(first, first + 20):
        one_case(number, device)


if __name__ == "__main__":
    sys.modules["csrkern._cuda"] = simulated_gpu.load()
    first, last = int(sys.argv[1]), int(sys.argv[2])
    print(sum(one_case(number, "cpu") for number in range(first, last)), "questions, all equal")
