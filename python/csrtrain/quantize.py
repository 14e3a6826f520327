"""Dense vectors in fewer bits: int8, one bit with re-scoring, product quantisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

# FAISS asks for 39 rows a centroid, of which there are 256; more gain little.
CENTROIDS = 256  # of product quantisation: a byte each
_PQ_SAMPLE = 10_000


def int8(train: Tensor, x: Tensor) -> Tensor:
    """x [n, d] as stored in a byte a dimension, each with a range of its own, and read back.

    The range of a dimension is that of `train` [m, d], without its outermost 0.1%.
    """
    sample = train[:: max(1, len(train) // 50_000)]
    low, high = torch.quantile(sample[:50_000], torch.tensor([0.0005, 0.9995]), dim=0)
    step = ((high - low) / 255).clamp(min=1e-12)
    return ((x - low) / step).round().clamp(0, 255) * step + low


def search_binary(
    database: Tensor, queries: Tensor, mean: Tensor, topk: int, shortlist: int = 100
) -> np.ndarray:
    """[n, topk] neighbours among signs of centred rows, one bit a dimension.

    The `shortlist` rows of least Hamming distance are scored again by the product of the
    query, unrounded, with the signs (as sentence-transformers does).
    """
    signs = torch.where(database > mean, 1.0, -1.0)
    centred = queries - mean
    topk = min(topk, len(database))
    found = []
    for part in centred.split(512):
        # The product of sign vectors is d − 2 · their Hamming distance.
        near = (part.sign() @ signs.T).topk(min(max(topk, shortlist), len(signs)), 1).indices
        again = torch.einsum("nd,nsd->ns", part, signs[near])
        found.append(near.gather(1, again.topk(topk, 1).indices))
    return torch.cat(found).numpy()


def product_quantized(train: Tensor, x: Tensor, n_bytes: int, *, rotate: bool = False) -> Tensor:
    """x [n, d] as stored in `n_bytes` bytes by PQ, or with `rotate` OPQ, and read back.

    Args:
        train: [m, d], to learn the codebooks from.
        n_bytes: subquantisers of 256 centroids; d must be a multiple of it.

    Raises:
        ImportError: if FAISS is missing.
        ValueError: if d is not a multiple of n_bytes, or m < 256.
    """
    d = x.shape[1]
    if len(train) < CENTROIDS:
        raise ValueError(f"train: expected at least {CENTROIDS} rows, got {len(train)}")
    if d % n_bytes:
        raise ValueError(f"n_bytes: expected a divisor of {d} dimensions, got {n_bytes}")
    try:
        import faiss
    except ImportError as error:
        raise ImportError("PQ and OPQ need FAISS: pip install 'csrkern[eval]'") from error
    step = max(1, len(train) // _PQ_SAMPLE)
    sample = np.ascontiguousarray(train[::step][:_PQ_SAMPLE].numpy(), dtype=np.float32)
    x_numpy = np.ascontiguousarray(x.numpy(), dtype=np.float32)
    quantizer = faiss.ProductQuantizer(d, n_bytes, CENTROIDS.bit_length() - 1)
    quantizer.cp.min_points_per_centroid = 1  # or it warns for every subquantiser
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
    return torch.from_numpy(np.ascontiguousarray(stored))
