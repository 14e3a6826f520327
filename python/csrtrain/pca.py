"""Principal components, the first baseline."""

from __future__ import annotations

import torch
from torch import Tensor

from csrkern.arguments import check_int
from csrkern.embeddings.dataset import Embeddings, open_embeddings
from csrkern.typing import ArraySource


class PCA:
    """Principal directions of embeddings, all given together, by exact covariance in float64.

    Attributes:
        mean: [d].
        directions: [d, d], one unit direction a column, by falling variance.
        variances: [d], of the training rows along each direction.
    """

    def __init__(self, *sources: ArraySource | Embeddings) -> None:
        embeddings = [open_embeddings("embeddings", source) for source in sources]
        n, d = sum(map(len, embeddings)), embeddings[0].width
        mean = torch.zeros(d, dtype=torch.float64, device="cpu")
        for part in embeddings:
            for piece in part.pieces():
                mean += piece.sum(0, dtype=torch.float64)
        mean /= n
        covariance = torch.zeros(d, d, dtype=torch.float64, device="cpu")
        for part in embeddings:
            for piece in part.pieces():
                centered = piece.double() - mean
                covariance += centered.T @ centered
        variances, directions = torch.linalg.eigh(covariance / n)
        self.mean = mean.float()
        self.variances = variances.flip(0).clamp(min=0).float()
        self.directions = directions.flip(1).float()

    def project(self, x: Tensor, dims: int) -> Tensor:
        """Return the leading coordinates [n, dims] of rows [n, d].

        Raises:
            ValueError: if dims is not in 1..d.
        """
        check_int("dims", dims, 1, len(self.mean))
        return (x - self.mean) @ self.directions[:, :dims]
