"""encode in float32 on a GPU: a float16 product proposes, sums in double decide.

1. Tensor cores multiply, and each row's program finds its candidates in the product (propose.py).
   It sums them in double in the order of csrc/cpu/generic/encode.hpp, rounds once, and ranks them:
   the codes are the CPU's, bit for bit, whatever proposed the candidates.
2. Rows without candidates, or with more than there is room for, get the exact maxima of their
   groups instead; the k groups with the largest ones hold the k best, which are summed in full. All
   programs share this work, and it reads the weight once for every few such rows; where there are
   none, they return. The host never waits.

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
from csrkern.kernels._common import batched_jit, on_device_of, power_of_2, registers
from csrkern.kernels.encode.bounds import round_rows, round_weight
from csrkern.kernels.encode.kept import kept
from csrkern.kernels.encode.propose import Proposer, find_candidates, tiles
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
SUMMED_AT_ONCE = 8  # rows of the weight, by a warp
UNPROVED_WARPS = 4
DECIDE_REGISTERS = 128
ODD_REGISTERS = 144  # of rows whose length is no multiple of what is read at once
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
    for item in range(tl.program_id(0), parts * tl.cdiv(h, GROUP), tl.num_programs(0)):
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


@triton.jit
def settle(
    row_x, weight, stride, bias, columns_of, total, floor, keys, counter, values, indices, h, d, k,
    CAPACITY: tl.constexpr, K_PAD: tl.constexpr, TILE: tl.constexpr, LANES: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """Write the k best of a row's `total` candidates by their exact values, best first."""
    for first in range(0, total, TILE):
        c = first + tl.arange(0, TILE)
        columns = tl.load(columns_of + c, mask=c < total, other=h)
        inside = columns < h
        columns = tl.where(inside, columns, 0)
        value = exact_values(row_x, weight, stride, bias, columns, d, TILE, LANES, EVEN)
        bits = tl.where(value == value, value.to(tl.int32, bitcast=True), QUIET_NAN)
        append(keys, counter, bits, columns, inside & (bits >= floor), CAPACITY)
    tl.debug_barrier()
    n_keys = tl.load(counter).to(tl.int32)
    write_best(keys, n_keys, k, values, indices, K_PAD, 2 * TILE)


@batched_jit
def decide_kernel(
    x,  # [n, d] float32, rows of stride
    stride_x,
    weight,  # [h, d] float32, rows of stride
    stride,
    bias,  # [h] float32, or None
    products,  # [n, pitch] float16, scaled
    maxima,  # [n, groups] float32, scaled
    scales,  # [n] float32, of rows of x
    norms,  # [n] float32
    residuals,  # [n] float32
    limits,  # [4] float32, of the weight
    candidates,  # [n, CAPACITY] int32
    counts,  # [n] int32: candidates, or -1 for rows to sum in full
    unproved,  # [n] int32: rows to sum in full
    n_unproved,  # [1] int32
    scratch,  # [n, 2 CAPACITY + 8] int32
    keys,  # [n, CAPACITY + 4] int64, the same memory
    values,  # [n, k] float32
    indices,  # [n, k] int32
    h,
    d,
    pitch,
    depth,
    groups,
    exponent,  # of an entry of the weight
    k,
    GROUP: tl.constexpr,
    FOLDS: tl.constexpr,
    HELD: tl.constexpr,
    CAPACITY: tl.constexpr,
    BLOCK: tl.constexpr,
    SIFTED: tl.constexpr,
    K_PAD: tl.constexpr,
    TILE: tl.constexpr,
    LANES: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Return the k best of each row that has candidates; list the others."""
    row = tl.program_id(0).to(tl.int64)
    found = scratch + row * (2 * CAPACITY + 8)
    counters = found + 2 * CAPACITY
    listed = candidates + row * CAPACITY
    tl.store(counters + tl.arange(0, 8), tl.zeros([8], tl.int32))
    count = find_candidates(
        row, products, bias, maxima, scales, norms, residuals, limits, found, counters, listed, h,
        pitch, depth, groups, exponent, k, GROUP, FOLDS, HELD, CAPACITY, BLOCK, SIFTED,
    )  # fmt: skip
    tl.store(counts + row, count)
    if count < 0:
        to = tl.atomic_add(n_unproved, 1, sem="relaxed")
        tl.store(unproved + to, row.to(tl.int32))
    else:
        keys += row * (CAPACITY + 4)
        settle(
            x + row * stride_x, weight, stride, bias, listed, count, 1, keys, keys + CAPACITY + 2,
            values + row * k, indices + row * k, h, d, k, CAPACITY, K_PAD, TILE, LANES, EVEN,
        )  # fmt: skip


@batched_jit
def decide_unproved_kernel(
    x,  # [n, d] float32, rows of stride
    stride_x,
    weight,  # [h, d] float32, rows of stride
    stride,
    bias,  # [h] float32, or None
    maxima,  # [n, groups] float32, exact
    candidates,  # [n, CAPACITY] int32
    unproved,  # [n] int32
    n_unproved,  # [1] int32
    keys,  # [n, CAPACITY + 4] int64
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
    """Return the k best entries of the k groups with the largest maxima, of rows listed."""
    for item in range(tl.program_id(0), tl.load(n_unproved), tl.num_programs(0)):
        row = tl.load(unproved + item).to(tl.int64)
        columns_of = candidates + row * CAPACITY
        of_row = keys + row * (CAPACITY + 4)
        counter = of_row + CAPACITY + 2
        # Of groups that tie with the last one those of lower columns hold the better entries.
        low, high = tl.cast(0, tl.int32), tl.cast(QUIET_NAN, tl.int32)
        n_groups = tl.cdiv(h, GROUP)
        exact_winners(
            maxima + row * groups, 1, None, n_groups, k, low, high, of_row, counter, BLOCK, False
        )
        slot = tl.arange(0, K_PAD)
        last = tl.min(tl.load(of_row + slot, mask=slot < k, other=0x7FFFFFFFFFFFFFFF))
        floor = tl.maximum((last >> 32).to(tl.int32), 1)
        total = k * GROUP
        for first in range(0, total, BLOCK):
            c = first + tl.arange(0, BLOCK)
            key = tl.load(of_row + c // GROUP, mask=c < total, other=0)
            columns = ((key & INVERT).to(tl.int32) ^ INVERT) * GROUP + c % GROUP
            tl.store(columns_of + c, columns, mask=c < total)
        tl.store(counter, 0)
        tl.debug_barrier()
        settle(
            x + row * stride_x, weight, stride, bias, columns_of, total, floor, of_row, counter,
            values + row * k, indices + row * k, h, d, k, CAPACITY, K_PAD, TILE, LANES, EVEN,
        )  # fmt: skip


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
        proposer = Proposer(n, h, k, capacity_of(k), tile, weight.device)
        blocks, plan = proposer.blocks, proposer.plan
        # Limits, and of each block how many rows are not proved; 16 bytes apart.
        numbers = indices.new_empty(1 + len(blocks), 4)
        rows, rounded = round_rows(x, shift, numbers)
        rounded_weight = kept(weight, bias, lambda: round_weight(weight, bias, numbers[0]))
        keys = proposer.scratch.view(torch.int64)
        even = d % (4 * LANES) == 0
        constants = {"LANES": LANES, "EVEN": even}
        limit = registers(DECIDE_REGISTERS if even else ODD_REGISTERS)
        summed = {"K_PAD": power_of_2(k), **constants, **limit}
        for n_unproved, (begin, end) in zip(numbers[1:], blocks, strict=True):
            sizes = proposer.multiply(begin, end, rounded, rounded_weight, bias)
            layer = rows[begin:end], rows.stride(0), weight, weight.stride(0), bias
            lists = proposer.candidates, proposer.counts[begin:end], proposer.unproved, n_unproved
            out = values[begin:end], indices[begin:end]
            of_x = (part[begin:end] for part in rounded[1:])
            decide_kernel[(end - begin,)](
                *layer, proposer.products, proposer.maxima, *of_x, rounded_weight.limits, *lists,
                proposer.scratch, keys, *out, h, d, *sizes, k,
                **plan, **summed, TILE=SUMMED_AT_ONCE * plan["num_warps"],
            )  # fmt: skip
            exact_maxima_kernel[(MAXIMA_PROGRAMS,)](
                *layer, proposer.unproved, n_unproved, proposer.maxima, h, d, proposer.groups,
                **constants, GROUP=plan["GROUP"], ROWS=ROWS_AT_ONCE, num_warps=8,
            )  # fmt: skip
            decide_unproved_kernel[(min(end - begin, MAXIMA_PROGRAMS),)](
                *layer, proposer.maxima, proposer.candidates, proposer.unproved, n_unproved, keys,
                *out, h, d, proposer.groups, k, **summed, GROUP=plan["GROUP"],
                CAPACITY=plan["CAPACITY"], TILE=SUMMED_AT_ONCE * UNPROVED_WARPS, BLOCK=512,
                num_warps=UNPROVED_WARPS,
            )  # fmt: skip

    with on_device_of(weight):
        tuning.launch("encode verified", (n, d, h, k), tiles(n, weight.device), run)
    return values, indices
