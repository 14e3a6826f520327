"""Data whose sums are exact in every order, and error bounds for data whose sums are not."""

from __future__ import annotations

import torch
from torch import Tensor

from csrkern import SparseCodes

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def small_integers(
    *shape: int, limit: int = 2, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Tensor:
    """Integers in -limit..limit. While sums stay below 256, every dtype holds them exactly."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-limit, limit + 1, shape, generator=generator).to(dtype)


def as_float64(codes: SparseCodes) -> SparseCodes:
    """The same codes in float64, values a leaf that wants its gradient."""
    return SparseCodes(codes.values.detach().double().requires_grad_(), codes.indices, codes.dim)


def assert_sums_close(
    got: Tensor, exact: Tensor, magnitude: Tensor, terms: int, slack: Tensor | float = 0.0
) -> None:
    """`got` is `exact` (float64) but for the rounding of a sum of `terms` products.

    `magnitude` is the sum of the products' absolute values. float64 sums run in float64,
    others in float32 and are then rounded once; `slack` is what else may go wrong.
    """
    form = torch.finfo(got.dtype)
    unit = 2.0**-53 if got.dtype == torch.float64 else 2.0**-24
    rounded = exact.to(got.dtype).double()
    finite = rounded.isfinite()
    torch.testing.assert_close(
        got.double()[~finite], rounded[~finite], rtol=0, atol=0, equal_nan=True
    )
    allowed = 2 * terms * unit * magnitude + form.eps * exact.abs() + slack
    allowed = allowed + 2 * terms * form.eps * form.smallest_normal
    excess = ((got.double() - exact).abs() - allowed)[finite]
    assert bool((excess <= 0).all()), f"off by {excess.max():.3g} more than rounding explains"
