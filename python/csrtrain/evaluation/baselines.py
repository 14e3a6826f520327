"""Baselines that need no training: PCA, truncation, the largest entries."""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csrkern.arguments import check_int

FLOAT16_BYTES = 2


def truncate(x: Tensor, dims: int) -> Tensor:
    """Return the first `dims` entries of rows [n, d], as one does with Matryoshka embeddings.

    Raises:
        ValueError: if dims is not in 1..d.
    """
    check_int("dims", dims, 1, x.shape[1])
    return x[:, :dims]


def largest_entries(x: Tensor, k: int) -> Tensor:
    """Return rows [n, d] with all but their k entries of largest magnitude set to 0.

    This is the training-free sparse code, k values and k indices a row, in dense form.

    Raises:
        ValueError: if k is not in 1..d.
    """
    check_int("k", k, 1, x.shape[1])
    indices = x.abs().topk(k, dim=1).indices
    return torch.zeros_like(x).scatter_(1, indices, x.gather(1, indices))


def dense_bytes(dims: int) -> int:
    """Return the bytes of a dense float16 vector."""
    return FLOAT16_BYTES * dims


def sparse_bytes(k: int, dim: int, value_bytes: int = FLOAT16_BYTES) -> int:
    """Return the bytes of a sparse vector: k values, k indices of 2 bytes (4 beyond 65,536)."""
    return k * (value_bytes + (2 if dim <= 65_536 else 4))


CENTROIDS = 256  # of product quantisation: a byte each
# FAISS asks for 39 rows a centroid; more gain little.
_PQ_SAMPLE = 10_000


def int8(train: Tensor, x: Tensor) -> Tensor:
    """Return x [n, d] as stored with a byte and a range for each dimension, and read back.

    The range of a dimension is that of `train` [m, d], without its outermost 0.1%.
    """
    sample = train[:: max(1, len(train) // 50_000)]
    low, high = torch.quantile(sample[:50_000], sample.new_tensor([0.0005, 0.9995]), dim=0)
    step = ((high - low) / 255).clamp(min=1e-12)
    return ((x - low) / step).round().clamp(0, 255) * step + low


def search_binary(
    database: Tensor, queries: Tensor, mean: Tensor, top_k: int, shortlist: int = 100
) -> np.ndarray:
    """Return the neighbors [n, top_k] among signs of centered rows, one bit a dimension.

    The `shortlist` rows of least Hamming distance are scored again by the product of the
    unrounded query with the signs (as sentence-transformers does).
    """
    signs = torch.where(database > mean, 1.0, -1.0)
    centered = queries - mean
    top_k = min(top_k, len(database))
    rankings = []
    for part in centered.split(512):
        # The product of sign vectors is d − 2 · their Hamming distance.
        neighbors = (part.sign() @ signs.T).topk(min(max(top_k, shortlist), len(signs)), 1).indices
        scores = torch.einsum("nd,nsd->ns", part, signs[neighbors])
        rankings.append(neighbors.gather(1, scores.topk(top_k, 1).indices))
    return torch.cat(rankings).numpy()


def product_obstacle(train: Tensor, *, rotate: bool = False) -> str:
    """Return why `product_quantized` cannot learn from `train` [m, d]; "" if it can.

    FAISS raises below 256 rows. With fewer rows than dimensions, OPQ writes past its buffers, and
    the process crashes.
    """
    m, d = min(len(train), _PQ_SAMPLE), train.shape[1]
    if find_spec("faiss") is None:
        return "needs FAISS, which is not installed: pip install 'csrkern[eval]'"
    if m < CENTROIDS:
        return f"expected at least {CENTROIDS} rows, got {m}"
    if rotate and m < d:
        return f"expected at least as many rows as dimensions, {d}, got {m}"
    return ""


def product_quantized(train: Tensor, x: Tensor, n_bytes: int, *, rotate: bool = False) -> Tensor:
    """Return x [n, d] as stored in `n_bytes` bytes by PQ, or with `rotate` OPQ, and read back.

    Args:
        train: [m, d], to learn the codebooks from.
        n_bytes: subquantisers of 256 centroids; d must be a multiple of it.

    Raises:
        ImportError: if FAISS is missing.
        ValueError: if d is not a multiple of n_bytes, or `train` has too few rows: m < 256 or,
            with `rotate`, m < d.
    """
    d = x.shape[1]
    if obstacle := product_obstacle(train, rotate=rotate):
        raise (ValueError if "rows" in obstacle else ImportError)(f"train: {obstacle}")
    if d % n_bytes:
        raise ValueError(f"n_bytes: expected a divisor of {d} dimensions, got {n_bytes}")
    import faiss

    step = max(1, len(train) // _PQ_SAMPLE)
    # FAISS crashes if the square of a number overflows. Powers of two scale exactly.
    _, exponent = math.frexp(max(float(train.abs().max()), float(x.abs().max())))
    sample, x_numpy = (
        np.ldexp(np.ascontiguousarray(rows.numpy(), dtype=np.float32), -exponent)
        for rows in (train[::step][:_PQ_SAMPLE], x)
    )
    quantizer = faiss.ProductQuantizer(d, n_bytes, CENTROIDS.bit_length() - 1)
    quantizer.cp.min_points_per_centroid = 1  # else it warns for every subquantiser
    rotation: Any = None
    if rotate:
        rotation = faiss.OPQMatrix(d, n_bytes)
        rotation.niter = 10
        rotation.pq = quantizer
        rotation.train(sample)
        sample, x_numpy = rotation.apply(sample), rotation.apply(x_numpy)
    quantizer.train(sample)
    stored = quantizer.decode(quantizer.compute_codes(x_numpy))
    if rotation is not None:
        stored = rotation.reverse_transform(stored)
    return torch.from_numpy(np.ldexp(np.ascontiguousarray(stored), exponent))
