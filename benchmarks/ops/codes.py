"""Codes from `generators` as SparseCodes, and the work of a product between two sets."""

from __future__ import annotations

import torch

from benchmarks.harness import generators
from csrkern import SparseCodes, roofline


def two_sets(kind: str, n: int, m: int, h: int, k: int) -> tuple[SparseCodes, SparseCodes]:
    """n and m codes drawn independently from one law, "uniform" or "skewed".

    They are on the default device.
    """
    draw = {"uniform": generators.uniform, "skewed": generators.skewed}[kind]
    device = torch.get_default_device()
    drawn = (draw(rows, h, k, seed=seed) for rows, seed in ((n, 1), (m, 2)))
    first, second = (
        SparseCodes(torch.from_numpy(values), torch.from_numpy(indices), h).to(device)
        for values, indices in drawn
    )
    return first, second


def sparse_products(a: SparseCodes, b: SparseCodes) -> int:
    """Multiply-adds of a · bᵀ for these very codes."""
    use_a, use_b = (
        torch.bincount(side.indices[side.active], minlength=side.dim).tolist() for side in (a, b)
    )
    return roofline.sparse_products(use_a, use_b)
