"""Matryoshka adapters on frozen embeddings, to compare codes with at every size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csrkern.embeddings.dataset import open_embeddings
from csrkern.typing import ArraySource
from csrtrain.training.batches import BatchOrder

# Usual for embeddings at norm 1; codes, which have fewer numbers, use 0.2.
_TEMPERATURE = 0.05
_NEIGHBORS = 16  # of a row; their similarities weigh as much as those of all rows


class MatryoshkaAdapter(nn.Module):
    """x + W x (+ a bias), whose first m outputs serve as an m-dimensional embedding."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.linear = nn.Linear(d, d, device="cpu", dtype=torch.float32)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return adapted embeddings [n, d], to be cut at any width."""
        return x + self.linear(x)


def train_matryoshka(
    embeddings: ArraySource,
    widths: Sequence[int],
    labels: Tensor | None = None,
    *,
    partners: Tensor | None = None,
    steps: int = 400,
    batch_size: int = 512,
    lr: float = 1e-3,
    seed: int = 0,
) -> MatryoshkaAdapter:
    """Train an adapter whose prefixes keep the similarities of whole embeddings.

    Without labels, the loss is that of the unsupervised Matryoshka-Adaptor: at every width m,
    the mean |cos(x_i, x_j) − cos(f(x_i)_m, f(x_j)_m)| over pairs of a batch, and over each
    row's nearest neighbors in it, with a weight on staying close to x. With labels, linear
    heads on the prefixes are trained jointly with the adapter by cross-entropy, as in MRL. With
    partners, each row finds its partner among those of the batch and the partner its row, at
    every width, by InfoNCE over cosines at temperature 0.05.

    Args:
        embeddings: [n, d].
        widths: dimensions to serve; d is always trained as well.
        labels: [n] integers, or None.
        partners: [n, d] embeddings that belong to those rows, for the same adapter, or None.

    Source: Yoon et al. 2024 (arXiv 2407.20243); Kusupati et al. 2022 (arXiv 2205.13147).
    """
    opened = open_embeddings("embeddings", embeddings)
    n, d = len(opened), opened.width
    widths = sorted({min(m, d) for m in widths} | {d})
    batch_size = min(batch_size, n)
    order = BatchOrder(n, batch_size, seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapter = MatryoshkaAdapter(d)
        heads = nn.ModuleList()
        if labels is not None:
            classes = int(labels.max()) + 1
            heads.extend(nn.Linear(m, classes, device="cpu", dtype=torch.float32) for m in widths)
        optimizer = torch.optim.Adam([*adapter.parameters(), *heads.parameters()], lr=lr)
        for step in range(steps):
            index = order(step)
            x = opened.rows(index)
            adapted = adapter(x)
            if partners is not None:
                loss = _find_partners(adapted, adapter(partners[index]), widths)
            elif labels is None:
                loss = _keep_similarities(x, adapted, widths)
            else:
                targets = labels[index]
                losses = (
                    F.cross_entropy(head(adapted[:, :m]), targets)
                    for head, m in zip(heads, widths, strict=True)
                )
                loss = sum(losses, x.new_zeros(())) / len(widths)
            optimizer.zero_grad()
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.step()
    return adapter.eval().requires_grad_(False)


def _keep_similarities(x: Tensor, adapted: Tensor, widths: Sequence[int]) -> Tensor:
    unit = F.normalize(x, dim=1)
    cosines = unit @ unit.T
    neighbors = cosines.topk(min(_NEIGHBORS, len(x)), 1).indices
    loss = F.mse_loss(adapted, x) * x.shape[1]
    for m in widths:
        unit = F.normalize(adapted[:, :m], dim=1)
        gap = (unit @ unit.T - cosines).abs()
        loss = loss + (gap.mean() + gap.gather(1, neighbors).mean()) / len(widths)
    return loss


def _find_partners(adapted: Tensor, partners: Tensor, widths: Sequence[int]) -> Tensor:
    targets = torch.arange(len(adapted), device=adapted.device)
    loss = adapted.new_zeros(())
    for m in widths:
        a, b = (F.normalize(side[:, :m], dim=1) for side in (adapted, partners))
        scores = a @ b.T / _TEMPERATURE
        loss = loss + F.cross_entropy(scores, targets) + F.cross_entropy(scores.T, targets)
    return loss / (2 * len(widths))
