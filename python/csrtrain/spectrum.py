"""How much of a spectrum is worth keeping, from the embeddings alone: `whitening="auto"`.

Some embeddings have few strong directions beside many weak ones that mean as much; of others the
weak directions are mostly noise. Labels would tell which, and so do neighbours: rows that are
near each other by one half of the directions are compared in the other half. Where they agree
in weak directions as well as in strong ones, these are worth as much of a code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from csrtrain.baselines import PCA
from csrtrain.data import Array, rows

ROWS, ASKED = 10_000, 3_000
# How steeply agreement falls with variance, as the exponent of a power law: below `EVEN` weak
# directions mean as much as strong ones, beyond `NOISY` they are mostly noise. Both lie between
# values found on five sets of embeddings, with what served each best (docs/training.md).
EVEN, NOISY = 0.08, 0.19
WHITENED, SHRUNK = 0.3, -0.6
COPY = 1 - 1e-4  # rows at this cosine are one and the same, and agree in everything
# A direction of less than this share of the mean variance says nothing.
LEAST_VARIANCE = 1e-4


def settled_whitening(whitening: float | str, pca: PCA, arrays: Sequence[Array]) -> float:
    """The number that a config's `whitening` stands for: WHITENED, 0 or SHRUNK for "auto"."""
    if not isinstance(whitening, str):
        return whitening
    sample = _sample(arrays)
    slope = agreement_slope(pca, sample)
    if slope < EVEN:
        return WHITENED
    # Among fewer rows neighbours are farther, and agree less in weak directions, noise or not.
    return SHRUNK if slope > NOISY and len(sample) == ROWS else 0.0


def agreement_slope(pca: PCA, x: Tensor) -> float:
    """Exponent s of the power law agreement ∝ variance^s over principal directions.

    Args:
        pca: of all rows.
        x: some of them [n, d], in random order; with more rows neighbours are nearer and agree
            more, so values compare at the same n.

    Returns: the slope of log agreement over log variance, weighted by variance; between `EVEN` and
        `NOISY` where there are too few rows or directions to tell.
    """
    variances = pca.variances / pca.variances.mean()
    dims = int((variances > LEAST_VARIANCE).sum())
    if dims < 4 or len(x) < 10:
        return (EVEN + NOISY) / 2
    variances = variances[:dims]
    # Halfway to equal variances: strong directions alone would find other neighbours.
    found = agreement(pca.project(x, dims) * variances**-0.25)
    return _slope(variances.log(), found.clamp(0.03, 1.0).log(), variances)


def agreement(z: Tensor) -> Tensor:
    """Per direction the cosine between rows and their nearest neighbours by other directions.

    Args:
        z: [n, p], centred rows, in random order.

    Returns: [p], of the first `ASKED` rows.
    """
    asked = z[:ASKED]
    found = z.new_empty(z.shape[1])
    for half in (0, 1):
        near = _nearest(asked[:, half::2], z[:, half::2])
        a, b = asked[:, 1 - half :: 2], z[near, 1 - half :: 2]
        found[1 - half :: 2] = torch.nn.functional.cosine_similarity(a, b, dim=0)
    return found


def _nearest(asked: Tensor, z: Tensor) -> Tensor:
    """[m] of each of the first m rows, its nearest other row by cosine, copies of it aside."""
    asked, z = (torch.nn.functional.normalize(side, dim=1) for side in (asked, z))
    parts = []
    for start in range(0, len(asked), 500):
        scores = asked[start : start + 500] @ z.T
        parts.append(torch.where(scores < COPY, scores, -2.0).argmax(1))
    return torch.cat(parts)


def _slope(x: Tensor, y: Tensor, weight: Tensor) -> float:
    """Of the least squares line through y over x."""
    weight = weight / weight.sum()
    x, y = x - (weight * x).sum(), y - (weight * y).sum()
    return float((weight * x * y).sum() / (weight * x * x).sum().clamp(min=1e-12))


def _sample(arrays: Sequence[Array]) -> Tensor:
    """At most `ROWS` rows of all arrays, in one random order."""
    lengths = [len(array) for array in arrays]
    order = _shuffled(sum(lengths), 0)[:ROWS]
    parts, start = [], 0
    for array, length in zip(arrays, lengths, strict=True):
        own = order[(order >= start) & (order < start + length)] - start
        parts.append(rows(array, own.sort().values))
        start += length
    joined = torch.cat(parts)
    return joined[_shuffled(len(joined), 1)]


def _shuffled(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
