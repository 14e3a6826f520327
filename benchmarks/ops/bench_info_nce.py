"""info_nce, forward and backward, against the same loss over dense rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import csrkern
from benchmarks.harness import peak_memory
from benchmarks.harness.race import Contestant, Missing, Race, Side, cases
from benchmarks.ops.codes import sparse_products, two_sets
from csrkern import roofline

TEMPERATURE = 0.2
CLASSES = 64
ON_GPU = True
Case = tuple[int, int, int, str]  # rows, h, k, kind of codes


def batch(case: Case) -> tuple[csrkern.SparseCodes, csrkern.SparseCodes, Tensor]:
    """Two sets of codes whose values want a gradient, and labels."""
    n, h, k, kind = case
    a, b = two_sets(kind, n, n, h, k)
    a.values.requires_grad_(True)
    b.values.requires_grad_(True)
    return a, b, torch.arange(n) % CLASSES


def dense_loss(kind: str, a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
    """The loss of dense rows [n, h], as one writes it in PyTorch."""
    a = F.normalize(a)
    if kind == "pair":
        return F.cross_entropy(a @ F.normalize(b).T / TEMPERATURE, torch.arange(len(a)))
    logits = a @ a.T / TEMPERATURE
    itself = torch.eye(len(a), dtype=torch.bool)
    if kind == "self":
        rest = (logits - logits.diagonal()[:, None]).masked_fill(itself, -torch.inf)
        return F.softplus(torch.logsumexp(rest, 1) + math.log(2.0)).mean()
    positive = (labels[:, None] == labels) & ~itself
    mean_positive = (logits * positive).sum(1) / positive.sum(1)
    return (torch.logsumexp(logits.masked_fill(itself, -torch.inf), 1) - mean_positive).mean()


def ours_loss(kind: str, a: csrkern.SparseCodes, b: csrkern.SparseCodes, labels: Tensor) -> Tensor:
    if kind == "pair":
        return csrkern.info_nce(a, b, temperature=TEMPERATURE)
    return csrkern.info_nce(a, temperature=TEMPERATURE, labels=labels if kind == "labels" else None)


@cases(
    tiny=[(128, 256, 8, "uniform")],
    quick=[(4096, 8192, 32, "uniform")],
    full=[(4096, 8192, 32, "uniform"), (4096, 8192, 32, "skewed")],
)
@pytest.mark.parametrize("kind", ["self", "pair", "labels"])
def bench_info_nce(race: Race, case: Case, kind: str) -> None:
    n, h, k, codes_kind = case
    a, b, labels = batch(case)
    dense_a, dense_b = (side.to_dense().detach().requires_grad_(True) for side in (a, b))
    leaves = (a.values, b.values) if kind == "pair" else (a.values,)
    wanted = (dense_a, dense_b) if kind == "pair" else (dense_a,)

    def ours() -> Any:
        return torch.autograd.grad(ours_loss(kind, a, b, labels), leaves)

    def peer() -> Any:
        return torch.autograd.grad(dense_loss(kind, dense_a, dense_b, labels), wanted)

    torch.testing.assert_close(
        ours_loss(kind, a, b, labels), dense_loss(kind, dense_a, dense_b, labels)
    )
    products = sparse_products(a, b if kind == "pair" else a)
    race(
        "info_nce forward+backward",
        f"{kind} {n}x{n} h={h} k={k} {codes_kind}",
        ours=ours,
        peers={"dense loss": peer},
        cost=roofline.info_nce(n, n if kind == "pair" else 0, k, products, backward=True),
    )


def ours_once(case: Case) -> Callable[[], Any]:
    """For peak_memory: self contrast, forward and backward."""
    a, b, labels = batch(case)
    return lambda: torch.autograd.grad(ours_loss("self", a, b, labels), a.values)


@cases(tiny=[(512, 256, 8, "uniform")], quick=[(65_536, 8192, 32, "uniform")])
def bench_info_nce_memory(race: Race, case: Case) -> None:
    """Peak memory in a process of its own, beside the time."""
    n, h, k, kind = case
    found = peak_memory.measure(f"{__name__}:ours_once", case, threads=race.threads)
    a, _, _ = batch(case)
    peers: dict[str, Side] = {
        "dense loss": Missing(f"its scores alone take {n * n * 4 / 1e9:.1f} GB"),
    }
    race(
        "info_nce forward+backward",
        f"self {n}x{n} h={h} k={k} {kind}",
        ours=Contestant(ours_once(case), {"peak_mb": found["peak_mb"]}),
        peers=peers,
        cost=roofline.info_nce(n, 0, k, sparse_products(a, a), backward=True),
    )
