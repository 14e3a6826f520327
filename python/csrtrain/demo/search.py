"""The searches that the demo compares: each takes dense queries and returns ids of nearest rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

import csrkern
from csrkern import InvertedIndex, SparseCodes
from csrkern.nn import SparseAutoencoder
from csrtrain.evaluation.baselines import dense_bytes, sparse_bytes
from csrtrain.pca import PCA

TOP_K = 10
# Queries whose dense scores are held at once: the fastest of 32 to 4,000 for 16,060 rows.
DENSE_BLOCK = 512


@dataclass(frozen=True)
class Search:
    """One way to search: `run` takes dense queries [m, d] and returns ids [m, TOP_K]."""

    family: str
    active: int
    bytes: int
    run: Callable[[Tensor], np.ndarray]

    def nearest_accuracy(
        self, queries: Tensor, labels: np.ndarray, query_labels: np.ndarray
    ) -> float:
        """Return the percentage of queries whose nearest row has their label; no hit is wrong."""
        nearest = self.run(queries)[:, 0]
        return 100 * float(((labels[nearest] == query_labels) & (nearest >= 0)).mean())

    def seconds(self, queries: Tensor) -> float:
        """Return the seconds that one batch of queries takes."""
        return seconds(self.run, queries)


def seconds(action: Callable[[Tensor], object], queries: Tensor) -> float:
    """Return the wall-clock seconds of one call."""
    started = time.perf_counter()
    action(queries)
    return time.perf_counter() - started


def dense_search(rows: Tensor) -> Search:
    """Return exact cosine search over all dimensions: a matrix product, then a top-k."""
    return Search("dense", rows.shape[1], dense_bytes(rows.shape[1]), _dense(rows))


def pca_searches(rows: Tensor, dims: Sequence[int]) -> list[Search]:
    """Return dense cosine searches over the leading principal components."""
    pca = PCA(rows)

    def search(width: int) -> Search:
        find = _dense(normalize(pca.project(rows, width)))
        return Search("pca", width, dense_bytes(width), lambda q: find(pca.project(q, width)))

    return [search(width) for width in dims]


def topk_searches(rows: Tensor, active: Sequence[int]) -> list[Search]:
    """Return sparse searches without training, by the largest entries of the embeddings."""

    def search(k: int) -> Search:
        return _sparse("topk", magnitudes(rows, k), lambda queries: magnitudes(queries, k))

    return [search(k) for k in active]


def csr_searches(
    family: str, model: SparseAutoencoder, codes: SparseCodes, active: Sequence[int]
) -> list[Search]:
    """Return sparse searches over an adapter's codes, which serve every smaller k as well."""

    def search(k: int) -> Search:
        return _sparse(family, codes.truncate(k), lambda queries: model.encode(queries, k))

    return [search(k) for k in active]


def magnitudes(rows: Tensor, k: int) -> SparseCodes:
    """Return codes over 2d latents: each row's k largest |values|, one latent for each sign."""
    return csrkern.topk_relu(torch.cat([rows, -rows], dim=1), k)


def _dense(rows: Tensor) -> Callable[[Tensor], np.ndarray]:
    columns = rows.T.contiguous()

    def run(queries: Tensor) -> np.ndarray:
        # topk_relu is faster than torch.topk: dense search should not look slow because of its
        # top-k. The best scores are positive.
        parts = [csrkern.topk_relu(q @ columns, TOP_K).indices for q in queries.split(DENSE_BLOCK)]
        return torch.cat(parts).numpy()

    return run


def _sparse(family: str, codes: SparseCodes, encode: Callable[[Tensor], SparseCodes]) -> Search:
    index = InvertedIndex.build(codes, metric="cosine")

    def run(queries: Tensor) -> np.ndarray:
        with torch.inference_mode():
            query_codes = encode(queries)
        return index.search(query_codes, TOP_K, num_threads=torch.get_num_threads())[1]

    return Search(family, codes.k, sparse_bytes(codes.k, codes.dim), run)
