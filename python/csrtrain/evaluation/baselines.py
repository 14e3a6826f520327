"""Baselines that train nothing: truncation, the largest entries, fewer bits a dimension."""

from __future__ import annotations

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
