"""encode in float32 on a GPU: a bfloat16 product proposes, sums in double decide.

1. Tensor cores find each row's candidates (encode_propose.py). How is measured.
2. Each candidate is summed in double in the order of csrc/cpu/generic/encode.hpp, rounded once, and
   ranked: the codes are the CPU's, bit for bit, whatever proposed the candidates.
3. A row with more candidates than there is room for, or without a bound, is summed in full by a
   last kernel, whose programs pass over all other rows; the host never waits.

Cost: 2 n d h flops on tensor cores; 4 n d + 6 h d bytes to round; n h / 16 bytes of maxima; for
c candidates a row 4 n c d bytes of weight rows, mostly from cache, and 2 n c d flops in double.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from csrkern.kernels import tuning
from csrkern.kernels._blocks import in_blocks
from csrkern.kernels._common import batched_jit, on_device_of, power_of_2, registers
from csrkern.kernels.encode.bounds import round_rows
from csrkern.kernels.encode.propose import CONFIGS, Proposer
from csrkern.kernels.topk_relu import (
    INVERT,
    QUIET_NAN,
    Plan,
    new_scratch,
    select_row,
    write_best,
)

LANES = 32  # of the sums in double
# Candidates of a row, and 16 k of them. Of random data 2.3 k reach the last bound at d = 1024
# and h = 512 k, 5.9 k at d = 4096, and a sixth more that of the groups.
LEAST_CAPACITY = 512
RESCORED_AT_ONCE = 16
RESCORE_PROGRAMS = 8  # of a row
REPAIR_PROGRAMS = 4 * 132
REPAIR_REGISTERS = 128
LOOKED_AT = tl.constexpr(32)  # rows


@triton.jit
def fold_lanes(x, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Sum the rows of [ROWS, WIDTH]: the upper half onto the lower, until one is left."""
    if WIDTH == 1:
        return tl.reshape(x, [ROWS])
    else:
        halves = tl.reshape(x, [ROWS, 2, WIDTH // 2])
        return fold_lanes(tl.sum(halves, axis=1), ROWS, WIDTH // 2)


@triton.jit
def exact_values(
    row, weight, stride, bias, columns, inside, d, TILE: tl.constexpr, LANES: tl.constexpr
):
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
            a = tl.load(row + j + lanes, mask=j + lanes < d, other=0.0).to(tl.float64)
            mask = inside[:, None] & (j + lanes < d)[None, :]
            total += a[None, :] * tl.load(where + j, mask=mask, other=0.0).to(tl.float64)
    value = fold_lanes(total, TILE, LANES)
    if bias is not None:
        value += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float64)
    return value.to(tl.float32)


@batched_jit
def rescore_kernel(
    x,  # [n, d] float32
    weight,  # [h, d] float32, rows of stride
    stride,
    bias,  # [h] float32, or None
    candidates,  # [n, CAPACITY] int32
    counts,  # [n] int32
    keys,  # [n, CAPACITY] int64
    d,
    CAPACITY: tl.constexpr,
    TILE: tl.constexpr,
    LANES: tl.constexpr,
):
    """Sort keys of the exact values of candidates: 0 where they are not positive."""
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(counts + row)
    for first in range(tl.program_id(1) * TILE, count, tl.num_programs(1) * TILE):
        c = first + tl.arange(0, TILE)
        inside = c < count
        columns = tl.load(candidates + row * CAPACITY + c, mask=inside, other=0)
        value = exact_values(x + row * d, weight, stride, bias, columns, inside, d, TILE, LANES)
        bits = tl.where(value == value, value.to(tl.int32, bitcast=True), QUIET_NAN)
        key = (bits.to(tl.int64) << 32) | (columns ^ INVERT).to(tl.int64)
        tl.store(keys + row * CAPACITY + c, tl.where(bits > 0, key, 0), mask=inside)


@batched_jit
def rank_kernel(
    keys,  # [n, CAPACITY] int64
    counts,  # [n] int32
    values,  # [n, k] float32
    indices,  # [n, k] int32
    k,
    K_PAD: tl.constexpr,
    CAPACITY: tl.constexpr,
    TILE: tl.constexpr,
):
    """Return the k best candidates of each row that has them."""
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(counts + row)
    if count >= 0:
        out = row * k
        write_best(keys + row * CAPACITY, count, k, values + out, indices + out, K_PAD, TILE)


@batched_jit
def repair_kernel(
    x,  # [n, d] float32
    weight,  # [h, d] float32, rows of stride
    stride,
    bias,  # [h] float32, or None
    counts,  # [n] int32
    rows,  # [programs, h] float32
    scratch,  # that of `topk_relu_kernel`
    values,  # [n, k] float32
    indices,  # [n, k] int32
    n,
    h,
    k,
    d,
    fold_bits,
    TILE: tl.constexpr,
    LANES: tl.constexpr,
    READS: tl.constexpr,
    GROUPS: tl.constexpr,
    CAPACITY: tl.constexpr,
    K_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Rows without candidates, summed in full."""
    program = tl.program_id(0).to(tl.int64)
    pre = rows + program * h
    step = tl.num_programs(0)
    for first in range(tl.program_id(0), n, step * LOOKED_AT):
        mine = first + tl.arange(0, LOOKED_AT) * step
        # One wait for memory tells that there is nothing to do, as it mostly is.
        if tl.min(tl.load(counts + mine, mask=mine < n, other=0)) < 0:
            for i in range(first, tl.minimum(first + step * LOOKED_AT, n), step):
                if tl.load(counts + i) < 0:
                    row = x + tl.cast(i, tl.int64) * d
                    tl.debug_barrier()
                    for begin in range(0, h, TILE):
                        columns = begin + tl.arange(0, TILE)
                        inside = columns < h
                        value = exact_values(
                            row, weight, stride, bias, columns, inside, d, TILE, LANES
                        )
                        tl.store(pre + columns, value, mask=inside)
                    tl.debug_barrier()
                    out = tl.cast(i, tl.int64) * k
                    select_row(
                        pre, 1, None, values + out, indices + out,
                        scratch + program * (2 * CAPACITY + 2), h, k, fold_bits, READS, GROUPS,
                        CAPACITY, K_PAD, BLOCK, WIDE,
                    )  # fmt: skip


def capacity_of(k: int) -> int:
    """Return how many candidates of a row there is room for."""
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
    rows = (x if pre_bias is None else x - pre_bias).to(torch.float32).contiguous()
    bias = None if bias is None else bias.contiguous()
    with on_device_of(weight):
        rounded, of_rows = round_rows(rows)
        rounded_weight, of_weight = round_rows(weight)
        size = rows.new_zeros(()) if bias is None else bias.abs().amax()
        limits = torch.stack([of_weight.norm.amax(), of_weight.residual.amax(), size])
        capacity = capacity_of(k)
        counts = indices.new_empty(n)
        layer = weight, weight.stride(0), bias

        def run(config: tuning.Config) -> None:
            proposer = Proposer(
                rounded, rounded_weight, bias, of_rows, limits, k, capacity, counts, **config
            )
            keys = indices.new_empty(proposer.rows, capacity, dtype=torch.int64)

            def read(begin: int, end: int, part: int) -> None:
                proposer.choose(begin, end, part)
                listed = counts[begin:end]
                rescore_kernel[(end - begin, RESCORE_PROGRAMS)](
                    rows[begin:end], *layer, proposer.candidates, listed, keys, d, capacity,
                    RESCORED_AT_ONCE, LANES, num_warps=4,
                )  # fmt: skip
                out = values[begin:end], indices[begin:end]
                rank_kernel[(end - begin,)](
                    keys, listed, *out, k, power_of_2(k), capacity, 64, num_warps=4
                )

            device = weight.device
            in_blocks(n, proposer.rows, proposer.streams, device, proposer.multiply, read)

        tuning.launch("encode verified", (n, d, h, k), CONFIGS, run)
        plan = Plan.of(h, k)
        programs = min(n, REPAIR_PROGRAMS)
        scratch = rows.new_empty(programs, h), new_scratch(programs, h, k, weight.device)
        tensors = rows, *layer, counts, *scratch, values, indices
        # With fewer warps ptxas spills some registers on sm_80.
        constants = {**plan._replace(num_warps=8)._asdict(), **registers(REPAIR_REGISTERS)}
        sizes = n, h, k, d, plan.fold_bits(h)
        repair_kernel[(programs,)](*tensors, *sizes, RESCORED_AT_ONCE, LANES, **constants)
    return values, indices
