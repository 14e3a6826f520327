"""Training on the leading principal directions, folded into the model afterwards.

A code of few latents cannot describe an embedding in full. The directions of least variance
are often noise, and a latent that describes them is lost to the others (`input_subspace`).
Where they are not noise, the squared error still hardly depends on them compared with the
leading ones; shrinking the leading ones makes up for it (`whitening`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from csrkern.embeddings.dataset import Embeddings, open_embeddings
from csrkern.nn import SparseAutoencoder
from csrkern.typing import ArraySource
from csrtrain.pca import PCA

# Centered rows are scaled to this norm, so that one learning rate fits embeddings of any scale.
ROW_NORM = 4.0


class Subspace:
    """The affine map x → scale · stretch · (x − mean) · directions onto p principal directions.

    Attributes:
        mean: [d].
        directions: [d, p], one unit direction a column.
        stretch: [p], (variance / mean variance)^(−whitening / 2) of each direction, bounded; all
            1 without whitening.
        scale: a number that brings rows to norm `ROW_NORM` in the mean.
        variance: of the mapped rows, per direction.
    """

    def __init__(self, pca: PCA, dims: int, whitening: float = 0.0) -> None:
        self.mean = pca.mean
        self.directions = pca.directions[:, :dims].contiguous()
        variances = pca.variances[:dims]
        # Directions in which rows hardly differ are stretched a thousandfold at most.
        share = (variances / variances.mean()).clamp(min=1e-6)
        self.stretch = share ** (-whitening / 2)
        stretched = float((variances * self.stretch.square()).sum())
        self.scale = ROW_NORM / math.sqrt(stretched)
        self.variance = ROW_NORM**2 / dims

    def project(self, x: Tensor) -> Tensor:
        """Return the coordinates [n, p] of rows [n, d]."""
        return ((x - self.mean) @ self.directions) * (self.scale * self.stretch)

    @torch.no_grad()
    def fold(self, model: SparseAutoencoder) -> SparseAutoencoder:
        """Return a model over d dimensions that gives x the codes of `model` for `project(x)`.

        The codes are divided by `scale`, and the reconstructions are those of `model`, back in
        the space of x. With S = diag(stretch) and directions P: W = W_p S Pᵀ,
        W_dec = W_dec_p S⁻¹ Pᵀ, pre_bias = mean + P (scale · S)⁻¹ pre_bias_p,
        latent_bias = latent_bias_p / scale. Whitening therefore unties the weights.
        """
        state = model.state_dict()
        to_embeddings = self.directions.T
        tied = model.tied and bool((self.stretch == 1).all())
        state["encoder.weight"] = (state["encoder.weight"] * self.stretch) @ to_embeddings
        if not tied:
            state["decoder.linear.weight"] = (model.dictionary / self.stretch) @ to_embeddings
        state["pre_bias"] = (
            self.mean + (state["pre_bias"] / (self.scale * self.stretch)) @ to_embeddings
        )
        state["latent_bias"] = state["latent_bias"] / self.scale
        config = {**model.config(), "input_dim": len(self.mean), "tied": tied}
        # No random numbers are drawn for weights that are replaced.
        folded = SparseAutoencoder(**config, device="meta")
        folded.load_state_dict(state, assign=True)
        return folded.train(model.training)


ROWS, QUERIES = 10_000, 3_000  # that agreement is measured on
# How steeply agreement falls with variance, as the exponent of a power law: below `EVEN` weak
# directions mean as much as strong ones, beyond `NOISY` they are mostly noise. Both lie between
# values measured on five sets of embeddings (docs/notes/training.md).
EVEN, NOISY = 0.08, 0.19
WHITENED, SHRUNK = 0.3, -0.6
COPY = 1 - 1e-4  # rows at this cosine count as copies, which agree in every direction
# Directions of less than this share of the mean variance are ignored.
LEAST_VARIANCE = 1e-4


def settled_whitening(
    whitening: float | str, pca: PCA, sources: Sequence[ArraySource | Embeddings]
) -> float:
    """Return the number for a config's `whitening`: WHITENED, 0 or SHRUNK for "auto"."""
    if not isinstance(whitening, str):
        return whitening
    sample = _sample(sources)
    slope = agreement_slope(pca, sample)
    if slope < EVEN:
        return WHITENED
    # Among fewer rows neighbors are farther and agree less in weak directions, noise or not.
    return SHRUNK if slope > NOISY and len(sample) == ROWS else 0.0


def agreement_slope(pca: PCA, x: Tensor) -> float:
    """Return the exponent s of the power law agreement ∝ variance^s over principal directions.

    Args:
        pca: of all rows.
        x: some of them [n, d], in random order; with more rows neighbors are nearer and agree
            more, so values compare at the same n.

    Returns: the slope of log agreement over log variance, weighted by variance; between `EVEN` and
        `NOISY` where there are too few rows or directions to tell.
    """
    variances = pca.variances / pca.variances.mean()
    dims = int((variances > LEAST_VARIANCE).sum())
    if dims < 4 or len(x) < 10:
        return (EVEN + NOISY) / 2
    variances = variances[:dims]
    # Halfway to equal variances: strong directions alone would find other neighbors.
    agreements = agreement(pca.project(x, dims) * variances**-0.25)
    return _slope(variances.log(), agreements.clamp(0.03, 1.0).log(), variances)


def agreement(z: Tensor) -> Tensor:
    """Return the cosine, per direction, of rows and their nearest neighbors by other directions.

    Args:
        z: [n, p], centered rows, in random order.

    Returns: [p], of the first `QUERIES` rows.
    """
    queries = z[:QUERIES]
    cosines = z.new_empty(z.shape[1])
    for first in (0, 1):
        neighbors = _nearest(queries[:, first::2], z[:, first::2])
        a, b = queries[:, 1 - first :: 2], z[neighbors, 1 - first :: 2]
        cosines[1 - first :: 2] = torch.nn.functional.cosine_similarity(a, b, dim=0)
    return cosines


def _nearest(queries: Tensor, z: Tensor) -> Tensor:
    """Return the nearest row [m] of each query by cosine, without copies of the query."""
    queries, z = (torch.nn.functional.normalize(side, dim=1) for side in (queries, z))
    parts = []
    for start in range(0, len(queries), 500):
        scores = queries[start : start + 500] @ z.T
        parts.append(torch.where(scores < COPY, scores, -2.0).argmax(1))
    return torch.cat(parts)


def _slope(x: Tensor, y: Tensor, weight: Tensor) -> float:
    """Return the slope of the least squares line through y over x."""
    weight = weight / weight.sum()
    x, y = x - (weight * x).sum(), y - (weight * y).sum()
    return float((weight * x * y).sum() / (weight * x * x).sum().clamp(min=1e-12))


def _sample(sources: Sequence[ArraySource | Embeddings]) -> Tensor:
    """Return at most `ROWS` rows of all arrays, in one random order."""
    embeddings = [open_embeddings("embeddings", source) for source in sources]
    order = _shuffled(sum(map(len, embeddings)), 0)[:ROWS]
    parts, start = [], 0
    for part in embeddings:
        part_rows = order[(order >= start) & (order < start + len(part))] - start
        parts.append(part.rows(part_rows.sort().values))
        start += len(part)
    rows = torch.cat(parts)
    return rows[_shuffled(len(rows), 1)]


def _shuffled(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
