"""What a user could do without training: PCA, truncation, the largest entries."""

from __future__ import annotations

import torch
from torch import Tensor

from csrtrain.data import Array, chunks

FLOAT16_BYTES = 2


class PCA:
    """Principal directions of embeddings, all given together, by exact covariance in float64.

    Attributes:
        mean: [d].
        directions: [d, d], one unit direction a column, by falling variance.
        variances: [d], of the training rows along each direction.
    """

    def __init__(self, *embeddings: Array) -> None:
        n, d = sum(map(len, embeddings)), embeddings[0].shape[1]
        total = torch.zeros(d, dtype=torch.float64, device="cpu")
        for array in embeddings:
            for _, chunk in chunks(array):
                total += chunk.sum(0, dtype=torch.float64)
        mean = total / n
        covariance = torch.zeros(d, d, dtype=torch.float64, device="cpu")
        for array in embeddings:
            for _, chunk in chunks(array):
                centred = chunk.double() - mean
                covariance += centred.T @ centred
        variances, directions = torch.linalg.eigh(covariance / n)
        self.mean = mean.float()
        self.variances = variances.flip(0).clamp(min=0).float()
        self.directions = directions.flip(1).float()

    def project(self, x: Tensor, dims: int) -> Tensor:
        """The leading coordinates [n, dims] of rows [n, d].

        Raises:
            ValueError: if dims is not in 1..d.
        """
        _check_dims(dims, len(self.mean))
        return (x - self.mean) @ self.directions[:, :dims]


def truncate(x: Tensor, dims: int) -> Tensor:
    """The first `dims` entries of rows [n, d], as one does with Matryoshka embeddings.

    Raises:
        ValueError: if dims is not in 1..d.
    """
    _check_dims(dims, x.shape[1])
    return x[:, :dims]


def largest_entries(x: Tensor, k: int) -> Tensor:
    """Rows [n, d] with all but their k entries of largest magnitude set to 0, signs kept.

    The training-free sparse code: k values and k indices a row, in dense form here.

    Raises:
        ValueError: if k is not in 1..d.
    """
    _check_dims(k, x.shape[1])
    kept = x.abs().topk(k, dim=1).indices
    return torch.zeros_like(x).scatter_(1, kept, x.gather(1, kept))


def dense_bytes(dims: int) -> int:
    """Bytes of a dense float16 vector."""
    return FLOAT16_BYTES * dims


def sparse_bytes(k: int, dim: int, value_bytes: int = FLOAT16_BYTES) -> int:
    """Bytes of a sparse vector: k values, k indices of 2 bytes (4 beyond 65,536)."""
    return k * (value_bytes + (2 if dim <= 65_536 else 4))


def _check_dims(dims: int, limit: int) -> None:
    if not 1 <= dims <= limit:
        raise ValueError(f"dims: expected 1 <= dims <= {limit}, got {dims}")
