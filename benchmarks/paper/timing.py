"""Search as it is timed here: from the embeddings of queries to the ids of their ten nearest."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import csrkern
from csrkern.nn import SparseAutoencoder

REPEATS = 3
TOP_K = 10

Search = Callable[[Tensor], np.ndarray]
"""Queries [n, d] to ids [n, TOP_K]."""


def timed(search: Search, queries: Tensor) -> tuple[float, np.ndarray]:
    """(the fastest of a few runs in microseconds a query, the ids found)."""
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        ids = search(queries)
        times.append(time.perf_counter() - began)
    return 1e6 * min(times) / len(queries), ids


def code_search(model: SparseAutoencoder, codes: csrkern.SparseCodes) -> Search:
    """Codes on both sides; encoding the queries is part of the search."""
    index = csrkern.InvertedIndex.build(codes)
    return lambda queries: index.search(model.encode(queries, codes.k), top_k=TOP_K)[1]


def asymmetric_search(
    model: SparseAutoencoder, codes: csrkern.SparseCodes, shortlist: int = 100
) -> Search:
    """The best by codes, scored again by the unrounded query with their reconstructions."""
    norms = torch.cat([model.decode(codes[i : i + 4096]).norm(dim=1) for i in _starts(codes)])
    index = csrkern.InvertedIndex.build(codes, metric="ip", norms=norms.numpy())
    weight, bias = model.decoder.linear.weight, model.pre_bias

    def search(queries: Tensor) -> np.ndarray:
        again = csrkern.Rerank(queries @ weight.T, shortlist, (queries @ bias).numpy())
        return index.search(model.encode(queries, codes.k), top_k=TOP_K, rerank=again)[1]

    return search


def _starts(codes: csrkern.SparseCodes) -> range:
    return range(0, len(codes), 4096)
