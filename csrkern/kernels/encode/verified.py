"""encode in float32 on a GPU: a float16 product proposes, sums in double decide.

1. Tensor cores find each row's candidates (propose.py).
2. Rows without candidates, or with more than there is room for, get the exact maxima of their
   groups instead; the k groups with the largest ones hold the k best. All programs share this
   work, and it reads the weight once for every few such rows; where there are none, they return.
3. Candidates, or the entries of those groups, are summed in double in the order of
   csrc/cpu/generic/encode.hpp, rounded once, and ranked: the codes are the CPU's, bit for bit,
   whatever proposed the candidates. The host never waits.

Cost: 2 n d h flops on tensor cores; 4 n d + 6 h d bytes to round (kept.py); 2.5 n h bytes of
products and maxima; for c candidates a row 4 n c d bytes of weight rows, mostly from cache, and
2 n c d flops in double. Five launches, or nine for two blocks of rows, and another to round the
weight.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from csrkern.kernels import tuning
from csrkern.kernels._common import batched_jit, on_device_of, power_of_2
from csrkern.kernels.encode.bounds import round_rows, round_weight
from csrkern.kernels.encode.kept import kept
from csrkern.kernels.encode.propose import Proposer, tiles
from csrkern.kernels.topk_relu import (
    INVERT,
    QUIET_NAN,
    append,
    exact_winners,
    larger,
    write_best,
)

LANES = 32  # of the sums in double
# Candidates of a row, and 16 k of them.
LEAST_CAPACITY = 512
SUMMED_AT_ONCE = 32
SETTLE_WARPS = 4
ROWS_AT_ONCE = 8  # without candidates, that share a read of the weight
MAXIMA_PROGRAMS = 4 * 132


@triton.jit
def fold_lanes(x, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Sum the rows of [ROWS, WIDTH]: the upper half onto the lower, until one is left."""
    if WIDTH == 1:
        return tl.reshape(x, [ROWS])
    else:
        halves = tl.reshape(x, [ROWS, 2, WIDTH // 2])
        return fold_lanes(tl.sum(halves, axis=1), ROWS, WIDTH // 2)


@triton.jit
def load_lanes(pointers, j, d, EVEN: tl.constexpr):
    """Return the entries j of rows, in double; 0 beyond d."""
    if EVEN:
        return tl.load(pointers).to(tl.float64)
    return tl.load(pointers, mask=j < d, other=0.0).to(tl.float64)


@triton.jit
def exact_values(
    row, weight, stride, bias, columns, d, TILE: tl.constexpr, LANES: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """⟨row, weight[column]⟩ + bias[column], summed in double and rounded once.

    Element j goes to lane j mod LANES, and lanes are folded in halves, as on the CPU. Products
    of two floats are exact in double, so contraction changes nothing.
    """
    lanes = tl.arange(0, LANES)
    total = tl.zeros([TILE, LANES], tl.float64)
    where = weight + columns.to(tl.int64)[:, None] * stride + lanes[None, :]
    for begin in range(0, d, 4 * LANES):
        for step in tl.static_range(4):  # loads in flight
            j = begin + step * LANES
            a = load_lanes(row + j + lanes, j + lanes, d, EVEN)
            total += a[None, :] * load_lanes(where + j, j + lanes[None, :], d, EVEN)
    value = fold_lanes(total, TILE, LANES)
    if bias is not None:
        value += tl.load(bias + columns).to(tl.float64)
    return value.to(tl.float32)


@batched_jit
def exact_maxima_kernel(
    x,  # [n, d] float32, rows of stride
    stride_x,
    weight,  # [h, d] float32, rows of stride
    stride,
    bias,  # [h] float32, or None
    unproved,  # [n] int32
    n_unproved,  # [1] int32
    maxima,  # [n, groups] float32
    h,
    d,
    groups,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Return the exact maximum of every GROUP columns, of rows without candidates."""
    lanes = tl.arange(0, LANES)
    count = tl.load(n_unproved)
    parts = tl.cdiv(count, ROWS)
    # Programs that run together read the same rows of the weight.
    for item in range(tl.program_id(0), parts * groups, tl.num_programs(0)):
        r = item % parts * ROWS + tl.arange(0, ROWS)
        rows = tl.load(unproved + r, mask=r < count, other=0).to(tl.int64)
        columns = item // parts * GROUP + tl.arange(0, GROUP)
        inside = columns < h
        columns = tl.minimum(columns, h - 1)
        total = tl.zeros([ROWS, GROUP, LANES], tl.float64)
        from_x = x + rows[:, None] * stride_x + lanes[None, :]
        from_weight = weight + columns.to(tl.int64)[:, None] * stride + lanes[None, :]
        for begin in range(0, d, LANES):
            j = begin + lanes[None, :]
            a = load_lanes(from_x + begin, j, d, EVEN)
            b = load_lanes(from_weight + begin, j, d, EVEN)
            total += a[:, None, :] * b[None, :, :]
        flat = tl.reshape(total, [ROWS * GROUP, LANES])
        value = tl.reshape(fold_lanes(flat, ROWS * GROUP, LANES), [ROWS, GROUP])
        if bias is not None:
            value += tl.load(bias + columns).to(tl.float64)[None, :]
        value = tl.where(inside[None, :], value.to(tl.float32), float("-inf"))
        to = maxima + rows * groups + item // parts
        tl.store(to, tl.reduce(value, 1, larger), mask=r < count)


@batched_jit
def settle_kernel(
    x,  # [n, d] float32, rows of stride
    stride_x,
    weight,  # [h, d] float32, rows of stride
    stride,
    bias,  # [h] float32, or None
    candidates,  # [n, CAPACITY] int32
    counts,  # [n] int32
    maxima,  # [n, groups] float32; exact where a count is negative
    scratch,  # [n, CAPACITY + 2] int64: keys, and their number
    values,  # [n, k] float32
    indices,  # [n, k] int32
    h,
    d,
    groups,
    k,
    GROUP: tl.constexpr,
    CAPACITY: tl.constexpr,
    K_PAD: tl.constexpr,
    TILE: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Return the k best of each row's candidates by their exact values, best first."""
    row = tl.program_id(0).to(tl.int64)
    columns_of = candidates + row * CAPACITY
    keys = scratch + row * (CAPACITY + 2)
    counter = keys + CAPACITY
    total = tl.load(counts + row)
    floor = tl.cast(1, tl.int32)
    if total < 0:
        # Of groups that tie with the last one those of lower columns hold the better entries.
        low, high = tl.cast(0, tl.int32), tl.cast(QUIET_NAN, tl.int32)
        exact_winners(
            maxima + row * groups, 1, None, groups, k, low, high, keys, counter, BLOCK, False
        )
        slot = tl.arange(0, K_PAD)
        last = tl.min(tl.load(keys + slot, mask=slot < k, other=0x7FFFFFFFFFFFFFFF))
        floor = tl.maximum((last >> 32).to(tl.int32), 1)
        total = k * GROUP
        for first in range(0, total, BLOCK):
            c = first + tl.arange(0, BLOCK)
            key = tl.load(keys + c // GROUP, mask=c < total, other=0)
            columns = ((key & INVERT).to(tl.int32) ^ INVERT) * GROUP + c % GROUP
            tl.store(columns_of + c, columns, mask=c < total)
    tl.store(counter, 0)
    tl.debug_barrier()
    for first in range(0, total, TILE):
        c = first + tl.arange(0, TILE)
        columns = tl.load(columns_of + c, mask=c < total, other=h)
        inside = columns < h
        columns = tl.where(inside, columns, 0)
        from_x = x + row * stride_x
        value = exact_values(from_x, weight, stride, bias, columns, d, TILE, LANES, EVEN)
        bits = tl.where(value == value, value.to(tl.int32, bitcast=True), QUIET_NAN)
        append(keys, counter, bits, columns, inside & (bits >= floor), CAPACITY)
    tl.debug_barrier()
    out = row * k
    total = tl.load(counter).to(tl.int32)
    write_best(keys, total, k, values + out, indices + out, K_PAD, 64)


def capacity_of(k: int) -> int:
    """Return how many candidates of a row there is room for: the entries of k groups at least."""
    return max(LEAST_CAPACITY, 16 * power_of_2(k))


def encode(
    x: Tensor, weight: Tensor, bias: Tensor | None, pre_bias: Tensor | None, k: int
) -> tuple[Tensor, Tensor]:
    """Values and indices [n, k] of topk_relu((x − pre_bias) @ weight.T + bias, k), float32.

    The weight's columns are adjacent; k <= MAX_K.
    """
    n, d = x.shape
    h = len(weight)
    values, indices = weight.new_empty(n, k), weight.new_empty(n, k, dtype=torch.int32)
    if n == 0:
        return values, indices
    bias = None if bias is None else bias.contiguous()
    shift = None if pre_bias is None else pre_bias.contiguous()
    if any(t is not None and t.dtype != torch.float32 for t in (x, shift)):
        x, shift = (x if shift is None else x - shift).to(torch.float32), None
    x = x if x.stride(1) == 1 else x.contiguous()

    def run(tile: tuning.Config) -> None:
        proposer = Proposer(n, h, k, capacity_of(k), weight.device)
        blocks, plan = proposer.blocks, proposer.plan
        # Limits, and of each block how many rows are not proved; 16 bytes apart.
        numbers = indices.new_empty(1 + len(blocks), 4)
        rows, rounded = round_rows(x, shift, numbers)
        rounded_weight = kept(weight, bias, lambda: round_weight(weight, bias, numbers[0]))
        keys = proposer.scratch.view(torch.int64)
        for n_unproved, (begin, end) in zip(numbers[1:], blocks, strict=True):
            proposer.propose(begin, end, rounded, rounded_weight, bias, n_unproved, tile)
            layer = rows[begin:end], rows.stride(0), weight, weight.stride(0), bias
            sizes = h, d, proposer.groups
            constants = {"GROUP": plan["GROUP"], "LANES": LANES, "EVEN": d % (4 * LANES) == 0}
            exact_maxima_kernel[(MAXIMA_PROGRAMS,)](
                *layer, proposer.unproved, n_unproved, proposer.maxima, *sizes, **constants,
                ROWS=ROWS_AT_ONCE, num_warps=8,
            )  # fmt: skip
            lists = proposer.candidates, proposer.counts[begin:end], proposer.maxima, keys
            settle_kernel[(end - begin,)](
                *layer, *lists, values[begin:end], indices[begin:end], *sizes, k, **constants,
                CAPACITY=plan["CAPACITY"], K_PAD=power_of_2(k), TILE=SUMMED_AT_ONCE, BLOCK=512,
                num_warps=SETTLE_WARPS,
            )  # fmt: skip

    with on_device_of(weight):
        tuning.launch("encode verified", (n, d, h, k), tiles(n, weight.device), run)
    return values, indices
