"""Bounds on the error of a product of float16 factors, from the norms of its rows.

Rows are scaled by powers of two, so that a product fits in float16, too, and so are norms and
bounds. |error| <= ‖x − x̃‖ ‖w‖ + ‖x̃‖ ‖w − w̃‖, the rounding of float32 sums (`sum_share`), and that
of a product stored in float16.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from csrkern.kernels._common import batched_jit, power_of_2

ROUND_PROGRAMS = 16 * 132
# The largest norms of scaled rows: 2^7 for x and 2^8 for the weight; their products stay below
# 2^15, and float16 ends at 65,504.
X_NORM, WEIGHT_NORM = 7, 8
# Entries of a rounded row are a multiple of this, with zeros at the end: no tile of a product then
# reads fewer than 16 bytes at a time, nor needs a mask.
DEPTH = 64


class Rounded(NamedTuple):
    """Rows of x in float16."""

    rows: Tensor  # [n, depth]
    scales: Tensor  # [n] float32, powers of two
    norms: Tensor  # [n] float32, of the scaled rows, and so are the next
    residuals: Tensor  # [n] of what rounding took


class RoundedWeight(NamedTuple):
    """A weight in float16."""

    rows: Tensor  # [h, depth]
    inverses: Tensor  # [h] float32: 1 / scale
    limits: Tensor  # [4] float32, not scaled: the largest norm, residual, |bias| and entry


@triton.jit
def scale_of(most, exponent):
    """Return the power of two that brings numbers of up to `most` below 2^exponent; <= 2^80."""
    biased = 253 + exponent - (most.to(tl.int32, bitcast=True) >> 23)
    return (tl.minimum(tl.maximum(biased, 1), 207) << 23).to(tl.float32, bitcast=True)


@triton.jit
def inverse_of(scale):
    """Return the inverse of a power of two."""
    return (tl.cast(254 << 23, tl.int32) - scale.to(tl.int32, bitcast=True)).to(
        tl.float32, bitcast=True
    )


@triton.jit
def at_least(most, x):
    """Return the larger of two numbers, and infinity if the second is NaN."""
    return tl.maximum(most, tl.where(x == x, x, float("inf")))


@triton.jit
def load_row(row, shift, columns, d):
    """Return entries of a row less the shift; 0 beyond d."""
    x = tl.load(row + columns, mask=columns < d, other=0.0)
    if shift is not None:
        x -= tl.load(shift + columns, mask=columns < d, other=0.0)
    return x


@triton.jit
def clear(zeros, entries, BLOCK: tl.constexpr):
    """Write zeros, by the first program."""
    if tl.program_id(0) == 0:
        for begin in range(0, entries, BLOCK):
            c = begin + tl.arange(0, BLOCK)
            tl.store(zeros + c, tl.zeros([BLOCK], tl.int32), mask=c < entries)


@batched_jit
def round_rows_kernel(
    rows,  # [n, d] float32, rows of stride
    stride,
    shift,  # [d] float32 to subtract first, or None
    shifted,  # [n, d] float32: the rows less the shift, or None
    rounded,  # [n, depth] float16
    scales,  # [n] float32; inverses with `limits`
    norms,  # [n] float32, or None, and so is the next
    residuals,
    bias,  # [n] float32, or None
    limits,  # [4] the bits of float32, 0 before, or None
    zeros,  # int32 to clear, or None
    entries,  # of `zeros`
    n,
    d,
    depth,  # d, rounded up
    exponent,  # of an entry, at most
    BLOCK: tl.constexpr,
):
    """Rows in float16, and the L2 norms of scaled rows and of what rounding took from them."""
    if zeros is not None:
        clear(zeros, entries, BLOCK)
    most_norm = tl.cast(0.0, tl.float32)
    most_residual = most_norm
    most_bias = most_norm
    most_entry = most_norm
    for i in range(tl.program_id(0), n, tl.num_programs(0)):
        row = tl.cast(i, tl.int64)
        most = tl.zeros([BLOCK], tl.float32)
        for begin in range(0, d, BLOCK):
            columns = begin + tl.arange(0, BLOCK)
            most = tl.maximum(most, tl.abs(load_row(rows + row * stride, shift, columns, d)))
        entry = tl.max(most)
        scale = scale_of(entry, exponent)
        square = tl.zeros([BLOCK], tl.float32)
        lost = tl.zeros([BLOCK], tl.float32)
        for begin in range(0, depth, BLOCK):
            columns = begin + tl.arange(0, BLOCK)
            x = load_row(rows + row * stride, shift, columns, d)
            if shifted is not None:
                tl.store(shifted + row * d + columns, x, mask=columns < d)
            x *= scale
            near = x.to(tl.float16)
            tl.store(rounded + row * depth + columns, near, mask=columns < depth)
            rest = x - near.to(tl.float32)
            square += x * x
            lost += rest * rest
        norm = tl.sqrt(tl.sum(square))
        residual = tl.sqrt(tl.sum(lost))
        if limits is None:
            tl.store(scales + row, scale)
            tl.store(norms + row, norm)
            tl.store(residuals + row, residual)
        else:
            inverse = inverse_of(scale)
            tl.store(scales + row, inverse)
            most_norm = at_least(most_norm, norm * inverse)
            most_residual = at_least(most_residual, residual * inverse)
            most_entry = tl.maximum(most_entry, entry)
            if bias is not None:
                most_bias = at_least(most_bias, tl.abs(tl.load(bias + row)))
    if limits is not None:
        tl.atomic_max(limits, most_norm.to(tl.int32, bitcast=True), sem="relaxed")
        tl.atomic_max(limits + 1, most_residual.to(tl.int32, bitcast=True), sem="relaxed")
        tl.atomic_max(limits + 2, most_bias.to(tl.int32, bitcast=True), sem="relaxed")
        tl.atomic_max(limits + 3, most_entry.to(tl.int32, bitcast=True), sem="relaxed")


def round_rows(rows: Tensor, shift: Tensor | None, zeros: Tensor) -> tuple[Tensor, Rounded]:
    """Return rows - shift [n, d], and these in float16. Clears `zeros`."""
    n, d = rows.shape
    shifted = None if shift is None else rows.new_empty(n, d)
    rounded = rows.new_empty(n, depth_of(d), dtype=torch.float16)
    made = Rounded(rounded, *rows.new_empty(3, n))
    _launch(rows, shift, shifted, *made, None, None, zeros, zeros.numel(), exponent=X_NORM)
    return rows if shifted is None else shifted, made


def round_weight(weight: Tensor, bias: Tensor | None, limits: Tensor) -> RoundedWeight:
    """Return a weight [h, d] in float16; `limits` [4], int32 and 0, becomes its own."""
    rounded = weight.new_empty(len(weight), depth_of(weight.shape[1]), dtype=torch.float16)
    inverses = weight.new_empty(len(weight))
    made = rounded, inverses, None, None
    _launch(weight, None, None, *made, bias, limits, None, 0, exponent=WEIGHT_NORM)
    return RoundedWeight(rounded, inverses, limits.view(torch.float32))


def depth_of(d: int) -> int:
    """Return the length of a rounded row of d entries."""
    return triton.cdiv(d, DEPTH) * DEPTH


def entry_exponent(norm: int, depth: int) -> int:
    """Return e where entries below 2^e have a norm of at most 2^norm."""
    return norm - math.ceil(math.log2(depth) / 2)


def _launch(rows: Tensor, *others: Tensor | int | None, exponent: int) -> None:
    n, d = rows.shape
    depth = depth_of(d)
    exponent = entry_exponent(exponent, depth)
    round_rows_kernel[(min(n, ROUND_PROGRAMS),)](
        rows, rows.stride(0), *others, n, d, depth, exponent, BLOCK=min(power_of_2(d, 32), 1024),
        num_warps=4,
    )  # fmt: skip


@triton.jit
def upper(norm, d):
    """Return the upper bound of a float32 norm of d entries: rounding, squares that underflow."""
    size = tl.cast(d, tl.float64)
    return norm.to(tl.float64) * (1 + (size + 4) * 2.0**-24) + tl.sqrt(size) * 2.0**-62


@triton.jit
def sum_share(d):
    """Return s: a float32 sum of d products errs by at most s (‖x‖ ‖w‖ + |sum|), in any order.

    A sum of some of the products and that of all others are at most ‖x‖ ‖w‖ together, and differ
    by at most |sum|: so a partial sum is at most half of ‖x‖ ‖w‖ + |sum|. An addition errs by at
    most that times four units, where a processor would round to one: tensor cores may truncate.
    The divisor is for partial sums that err, too.
    """
    additions = (tl.cast(d, tl.float64) + 4) * 2.0**-22
    return tl.where(additions < 0.5, 0.5 * additions / (1 - 1.5 * additions), float("inf"))


@triton.jit
def slack_of(norm, residual, scale, limits, weight_scale, d, share, relative):
    """Return e: a scaled product errs by at most e + `relative` times itself; inf: no bound.

    `scale` is that of the row, `weight_scale` that of all rows of the weight; `share` is that of
    `sum_share`, and part of `relative`.
    """
    of_weight = weight_scale.to(tl.float64)
    unit = scale.to(tl.float64) * of_weight
    norm = upper(norm, d)
    residual = upper(residual, d)
    weight_norm = upper(tl.load(limits).to(tl.float64) * of_weight, d)
    weight_residual = upper(tl.load(limits + 1).to(tl.float64) * of_weight, d)
    bias_norm = tl.load(limits + 2).to(tl.float64) * unit
    size = norm * weight_norm + bias_norm
    slack = residual * weight_norm + (norm + residual) * weight_residual
    slack += share * (norm + residual) * (weight_norm + weight_residual) + relative * bias_norm
    # Subnormal numbers: of products in float16, and of exact values in float32.
    slack += 2.0**-24 + 2.0**-140 * unit
    # Exact values that overflow are ties, and products that do have no order.
    bounded = (size < 1e38 * unit) & (norm * weight_norm < 6e4) & (slack < float("inf"))
    return tl.where(bounded, slack, float("inf"))


@triton.jit
def least(kth, slack, relative):
    """Return the lower bound, here, of entries that exactly exceed the k-th best, `kth` here."""
    relative += 2.0**-21  # exact values are rounded, and bias is added in float32
    bound = kth.to(tl.float64) * (1 - relative) - 2 * slack
    bound /= tl.where(bound < 0, 1 - relative, 1 + relative)
    near = bound.to(tl.float32)
    # Below it in float32, too.
    return near - tl.abs(near) * 2.0**-22 - 2.0**-140
