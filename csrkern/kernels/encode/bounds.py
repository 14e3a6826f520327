"""How far a product of bfloat16 factors may be from the exact one: norms, and what they bound.

|error| <= ‖x − x̃‖ ‖w‖ + ‖x̃‖ ‖w − w̃‖, the rounding of float32 sums (Higham, Accuracy and Stability
of Numerical Algorithms, 3.1, with four times the unit, as tensor cores may truncate), and that
of a product stored in bfloat16.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from csrkern.kernels._common import as_bits, batched_jit, narrow, power_of_2, widen


class Bounds(NamedTuple):
    """What bounds the error of a product: of one row, or the largest of a weight's."""

    norm: Tensor
    residual: Tensor


@batched_jit
def round_rows_kernel(
    rows,  # [n, d] float32, rows of stride
    stride,
    rounded,  # [n, d] the bits of bfloat16
    norms,  # [n] float32, and so is the next
    residuals,
    d,
    BLOCK: tl.constexpr,
):
    """Rows in bfloat16, and the L2 norms of rows and of what rounding took from them."""
    row = tl.program_id(0).to(tl.int64)
    square = tl.zeros([BLOCK], tl.float32)
    lost = tl.zeros([BLOCK], tl.float32)
    for begin in range(0, d, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        x = tl.load(rows + row * stride + columns, mask=columns < d, other=0.0)
        bits = narrow(x, tl.int16)
        tl.store(rounded + row * d + columns, bits, mask=columns < d)
        rest = x - widen(bits)
        square += x * x
        lost += rest * rest
    tl.store(norms + row, tl.sqrt(tl.sum(square)))
    tl.store(residuals + row, tl.sqrt(tl.sum(lost)))


def round_rows(rows: Tensor) -> tuple[Tensor, Bounds]:
    """Rows [n, d] in bfloat16, and the norms [n] of each and of what rounding took from it."""
    n, d = rows.shape
    rounded = rows.new_empty(n, d, dtype=torch.bfloat16)
    norms, residuals = rows.new_empty(2, n)
    block = min(power_of_2(d, 32), 1024)
    round_rows_kernel[(n,)](
        rows, rows.stride(0), as_bits(rounded), norms, residuals, d, BLOCK=block, num_warps=4
    )
    return rounded, Bounds(norms, residuals)


@triton.jit
def upper(norm, d):
    """Return the upper bound of a float32 norm of d entries: rounding, squares that underflow."""
    size = tl.cast(d, tl.float64)
    return norm.to(tl.float64) * (1 + (size + 4) * 2.0**-24) + tl.sqrt(size) * 2.0**-62


@triton.jit
def slack_of(norm, residual, limits, d, relative):
    """How far a product may be from exact, but for `relative` times itself; inf: no bound."""
    norm = upper(norm, d)
    residual = upper(residual, d)
    weight_norm = upper(tl.load(limits), d)
    weight_residual = upper(tl.load(limits + 1), d)
    bias_norm = tl.load(limits + 2).to(tl.float64)
    size = norm * weight_norm + bias_norm
    slack = residual * weight_norm + (norm + residual) * weight_residual
    # Tensor cores may truncate where a processor rounds: four units instead of one.
    slack += (tl.cast(d, tl.float64) + 4) * (1.01 * 2.0**-22) * size + relative * bias_norm
    slack += tl.cast(d, tl.float64) * 2.0**-124 * (1 + weight_norm + norm)
    return tl.where(size < 1e38, slack, float("inf"))


@triton.jit
def least(kth, slack, relative):
    """Return the lower bound, here, of entries that exactly exceed the k-th best, `kth` here."""
    bound = (kth.to(tl.float64) * (1 - relative) - 2 * slack) / (1 + relative)
    near = bound.to(tl.float32)
    # Below it in float32, too.
    return near - tl.abs(near) * 2.0**-22 - 2.0**-140
