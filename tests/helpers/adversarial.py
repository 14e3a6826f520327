"""Rows that break careless top-k kernels, and the check that a selection is right."""

from __future__ import annotations

import torch
from torch import Tensor

from csrkern import SparseCodes, reference

NAN, INF = float("nan"), float("inf")


def adversarial_rows(h: int, k: int) -> dict[str, Tensor]:
    """Named pre-activation matrices [n, h], float32."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(4, h, generator=generator)
    ramp = torch.arange(1, h + 1, dtype=torch.float32).repeat(2, 1)
    few = torch.full((3, h), -1.0)
    few[0, h // 2] = 2.0
    few[1, : min(k, h) // 2] = 1.0
    adjacent = noise.abs() * 0.01
    adjacent[:, : min(k, h)] += 10.0  # the winners stand side by side
    strided = noise.abs() * 0.01
    strided[:, ::128] += 10.0  # ... or 128 apart, in one group of maxima
    ties = torch.randint(0, 3, (4, h), generator=generator).float()
    infinite = noise.clone()
    infinite[0, 0] = infinite[0, -1] = INF
    infinite[1] = -INF
    infinite[2] = INF
    infinite[3, 1::2] = -INF
    nans = noise.clone()
    nans[0, h // 3] = NAN
    nans[1] = NAN
    nans[2, ::2] = NAN
    negative_nan = noise.clone()
    negative_nan[:, h // 2] = torch.tensor(-1, dtype=torch.int32).view(torch.float32)
    huge = noise.clone()
    huge[:, 0] = 3e38
    return {
        "random": noise,
        "all equal": torch.ones(2, h),
        "all zero": torch.zeros(2, h),
        "minus zero": torch.full((2, h), -0.0),
        "all negative": -noise.abs() - 0.1,
        "fewer than k positive": few,
        "ties": ties,
        "sorted up": ramp,
        "sorted down": ramp.flip(1),
        "adjacent winners": adjacent,
        "one group": strided,
        "infinite": infinite,
        "nan": nans,
        "nan with sign bit": negative_nan,
        "one huge": huge,
        "denormal": noise * 1e-42,
    }


def assert_selects(codes: SparseCodes, pre: Tensor, k: int, mask: Tensor | None = None) -> None:
    """`codes` are exactly the specification's, and say of themselves what is true."""
    expected = reference.topk_relu(pre, k, mask)
    codes.validate()
    assert codes.values.dtype == pre.dtype
    assert codes.equal(expected), f"{codes.values}\n{expected.values}"
    gathered = pre.gather(1, codes.indices.long())
    same = (gathered == codes.values) | (gathered.isnan() & codes.values.isnan())
    assert bool((same | ~codes.active).all())
