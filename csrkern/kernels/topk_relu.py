"""topk_relu on a GPU: one read of every row, then work on its candidates only.

A program reads a row once and keeps the maxima of G disjoint groups (group g holds the columns
g, g + G, ...). The k-th largest maximum is a lower bound tau on the k-th largest entry, and
entries >= tau lie only in groups whose maximum is: about k of G. Those groups are read again,
from cache, and their entries >= tau become 64-bit keys, value bits above the inverted column,
so that key order is value order with ties to the lower column. Only they are sorted.
A counter in memory says where groups and keys go: in any order, which ranks do not depend on.

Nothing is ever truncated: where there are more groups or entries >= tau than the buffer holds
(many ties, winners in few groups), the row is bisected for its exact k-th largest entry, and
its k winners are collected in order of column.

Cost of a row: h entries from memory (a maximum each), k h / G of them again from cache, 8 k
bytes written; for k = 32 of 8,192 in random order 33 candidates are expected. Maxima are those
of floats, NaN the largest; from there on entries are compared as integers, so no flush-to-zero
mode and no NaN payload changes the codes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from csrkern.kernels import tuning
from csrkern.kernels._common import (
    MAX_PROGRAMS,
    as_bits,
    batched_jit,
    needs_int64,
    on_device_of,
    power_of_2,
    registers,
    widen,
)

MAX_K = 1024
GROUPS = (1024, 2048)  # at least, at most; 16 k between
READ_AT_ONCE = 4096  # entries a program has in flight: 16 bytes, 8 times, for 128 threads
COLLECT_AT_ONCE = 512
REGISTERS = 128  # 16 warps a processor
MASKED_REGISTERS = 144  # with 128, ptxas spills some of float16

INVERT = tl.constexpr(0x7FFFFFFF)
QUIET_NAN = tl.constexpr(0x7FC00000)


@triton.jit
def load_entries(row, columns, inside, stride_h, latent_mask, WIDE: tl.constexpr):
    """Return entries as they are; 0 where there is none, or a mask leaves it out."""
    if latent_mask is not None:
        inside = inside & (tl.load(latent_mask + columns, mask=inside, other=0) != 0)
    offsets = columns.to(tl.int64) * stride_h if WIDE else columns * stride_h
    return tl.load(row + offsets, mask=inside, other=0)


@triton.jit
def ordered(x):
    """Return float32 as int32 that order alike: 0 for what cannot win, NaN above infinity."""
    return tl.where(x == x, tl.maximum(x.to(tl.int32, bitcast=True), 0), QUIET_NAN)


@triton.jit
def load_ordered(row, columns, inside, stride_h, latent_mask, WIDE: tl.constexpr):
    """Return `ordered` entries."""
    return ordered(widen(load_entries(row, columns, inside, stride_h, latent_mask, WIDE)))


@triton.jit
def larger(a, b):
    """Return the larger of two numbers; NaN if one is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def group_maxima(
    row, stride_h, latent_mask, h, READS: tl.constexpr, GROUPS: tl.constexpr, WIDE: tl.constexpr
):
    """Return the largest `ordered` entry of each group, g, g + GROUPS, ... of the columns."""
    local = tl.arange(0, READS)[:, None] * GROUPS + tl.arange(0, GROUPS)[None, :]
    if row.dtype.element_ty == tl.int16:
        # Two bfloat16 an instruction: the bits of positive ones order as they do, and a negative
        # NaN is what exceeds minus infinity among the bits taken for unsigned.
        most = tl.zeros([GROUPS], tl.int16)
        unsigned = tl.zeros([GROUPS], tl.uint16)
        for begin in range(0, h, READS * GROUPS):
            columns = begin + local
            bits = load_entries(row, columns, columns < h, stride_h, latent_mask, WIDE)
            most = larger(most, tl.reduce(bits, 0, larger))
            bits = bits.to(tl.uint16, bitcast=True)
            unsigned = larger(unsigned, tl.reduce(bits, 0, larger))
        is_nan = (most > 0x7F80) | (unsigned.to(tl.int32) > 0xFF80)
        return tl.where(is_nan, QUIET_NAN, most.to(tl.int32) << 16)
    else:
        best = tl.zeros([GROUPS], tl.float32)  # two instructions an entry; of integers five
        for begin in range(0, h, READS * GROUPS):
            columns = begin + local
            entries = load_entries(row, columns, columns < h, stride_h, latent_mask, WIDE)
            best = larger(best, tl.reduce(widen(entries), 0, larger))
        return ordered(best)


@triton.jit
def kth_largest(bits, k, slack, low):
    """Return a t >= low with k to k + slack of bits >= t, or the largest with k, or `low`.

    A round cuts the range in three, and first looks near its top, where floats differ by less than
    a factor of two; both counts, below 2^15, are summed as one number.
    """
    low = tl.cast(low, tl.int32)
    count = tl.sum((bits >= low).to(tl.int32))
    high = tl.max(bits)
    reach = tl.cast(1 << 22, tl.int32)
    while (low < high) & (count > k + slack):
        third = tl.minimum((high - low) // 3, reach)
        second = high - third
        first = second - third
        counts = tl.sum((bits >= first).to(tl.int32) + ((bits >= second).to(tl.int32) << 16))
        above_first, above_second = counts & 0xFFFF, counts >> 16
        if above_second >= k:
            low = second
            count = above_second
        elif above_first >= k:
            low = first
            high = second - 1
            count = above_first
        else:
            high = first - 1
            reach = tl.minimum(reach, 1 << 28) * 4
    return low


@triton.jit
def write_best(buffer, total, k, values, indices, K_PAD: tl.constexpr, TILE: tl.constexpr):
    """Values and indices of the k largest of `total` keys, each at its rank.

    Keys are distinct, but for those of 0, which stand for nothing.
    Ranks are counted, total² comparisons in tiles: for k = 32 fewer instructions than a sorting
    network has, whose code would also be a hundred times longer for k = 1024.
    """
    element = values.dtype.element_ty
    positive = 0
    for first in range(0, total, TILE):
        mine = first + tl.arange(0, TILE)
        keys = tl.load(buffer + mine, mask=mine < total, other=0)
        larger = tl.zeros([TILE, 32], tl.int32)
        for other in range(0, total, 32):
            others = other + tl.arange(0, 32)
            rivals = tl.load(buffer + others, mask=others < total, other=0)
            larger += (rivals[None, :] > keys[:, None]).to(tl.int32)
        rank = tl.sum(larger, axis=1)
        positive += tl.sum((keys > 0).to(tl.int32))
        bits = (keys >> 32).to(tl.int32)
        if element == tl.int16:
            value = (bits >> 16).to(tl.int16)
        else:
            value = bits.to(tl.float32, bitcast=True).to(element)
        wins = (keys > 0) & (rank < k)
        tl.store(values + rank, value, mask=wins)
        tl.store(indices + rank, (keys & INVERT).to(tl.int32) ^ INVERT, mask=wins)
    slots = tl.arange(0, K_PAD)
    empty = (slots >= positive) & (slots < k)
    tl.store(values + slots, tl.zeros([K_PAD], element), mask=empty)
    tl.store(indices + slots, tl.zeros([K_PAD], tl.int32), mask=empty)


@triton.jit
def exact_winners(
    row, stride_h, latent_mask, h, k, tau, top, buffer, counter, BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Write the keys of the k best entries, of which at least k are >= tau and none > top."""
    low = tau
    high = top
    middle = tau + 1  # with many ties tau is exact already, which one pass tells
    above = 0  # entries > the k-th largest
    while low < high:
        count = 0
        for begin in range(0, h, BLOCK):
            columns = begin + tl.arange(0, BLOCK)
            bits = load_ordered(row, columns, columns < h, stride_h, latent_mask, WIDE)
            count += tl.sum((bits >= middle).to(tl.int32))
        if count >= k:
            low = middle
        else:
            high = middle - 1
            above = count
        middle = low + ((high - low) >> 1) + 1
    ties_left = k - above
    tl.debug_barrier()  # all have read the counter
    tl.store(counter, 0)
    tl.debug_barrier()
    for begin in range(0, h, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        bits = load_ordered(row, columns, columns < h, stride_h, latent_mask, WIDE)
        tie = (bits == low).to(tl.int32)
        hit = (bits > low) | ((tie != 0) & (tl.cumsum(tie, axis=0) <= ties_left))
        append(buffer, counter, bits, columns, hit, k)
        ties_left -= tl.sum(tie)
    tl.debug_barrier()


@triton.jit
def places(counter, hit):
    """Return a place of its own for each hit, in any order; `counter` moves on by their number."""
    to = tl.atomic_add(counter + hit.to(tl.int32) * 0, 1, mask=hit, sem="relaxed", scope="cta")
    return to.to(tl.int32)


@triton.jit
def append(buffer, counter, bits, columns, hit, capacity):
    """Append the keys of the entries that hit, as many as there is room for."""
    to = places(counter, hit)
    keys = (bits.to(tl.int64) << 32) | (columns ^ INVERT).to(tl.int64)
    tl.store(buffer + to, keys, mask=hit & (to < capacity))


@triton.jit
def select_row(
    row, stride_h, latent_mask, values, indices, buffer, h, k, fold_bits, READS: tl.constexpr,
    GROUPS: tl.constexpr, CAPACITY: tl.constexpr, K_PAD: tl.constexpr, BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Return the k largest positive entries of a row, best first; buffer as in `new_scratch`."""
    group_list = buffer + CAPACITY
    counters = buffer + 2 * CAPACITY  # of groups, of keys
    group_max = group_maxima(row, stride_h, latent_mask, h, READS, GROUPS, WIDE)
    tau = kth_largest(group_max, k, k // 8, 1)

    hit = group_max >= tau
    tl.debug_barrier()  # a warp may have yet to read these for the row before
    tl.store(counters + tl.arange(0, 2), tl.zeros([2], tl.int64))
    tl.debug_barrier()
    to = places(counters, hit)
    tl.store(group_list + to, tl.arange(0, GROUPS).to(tl.int64), mask=hit & (to < CAPACITY))
    tl.debug_barrier()
    n_groups = tl.load(counters).to(tl.int32)
    if n_groups <= CAPACITY:
        # A group's entries are numbered next to each other, 2^fold_bits of them.
        for begin in range(0, n_groups << fold_bits, BLOCK):
            entries = begin + tl.arange(0, BLOCK)
            inside = entries < (n_groups << fold_bits)
            group = tl.load(group_list + (entries >> fold_bits), mask=inside, other=0)
            columns = group.to(tl.int32) + (entries & ((1 << fold_bits) - 1)) * GROUPS
            inside = inside & (columns < h)
            bits = load_ordered(row, columns, inside, stride_h, latent_mask, WIDE)
            append(buffer, counters + 1, bits, columns, bits >= tau, CAPACITY)
    tl.debug_barrier()
    total = tl.load(counters + 1).to(tl.int32)
    if (n_groups > CAPACITY) | (total > CAPACITY):
        top = tl.max(group_max)
        exact_winners(row, stride_h, latent_mask, h, k, tau, top, buffer, counters + 1, BLOCK, WIDE)
        total = k
    write_best(buffer, total, k, values, indices, K_PAD, min(CAPACITY, 64))


@batched_jit
def topk_relu_kernel(
    pre,  # [n, h], any strides; bfloat16 as int16
    stride_n,
    stride_h,
    latent_mask,  # [h] uint8, or None
    values,  # [n, k]
    indices,  # [n, k] int32
    scratch,  # [programs, 2 CAPACITY + 2] int64: keys, groups, and the numbers of both
    n,
    h,
    k,
    fold_bits,  # entries of a group: 2^fold_bits at most
    READS: tl.constexpr,
    GROUPS: tl.constexpr,
    CAPACITY: tl.constexpr,
    K_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,  # columns in 64 bits
):
    """Return the k largest positive entries of each row, best first."""
    program = tl.program_id(0)
    buffer = scratch + program.to(tl.int64) * (2 * CAPACITY + 2)
    for i in range(program, n, tl.num_programs(0)):
        row = pre + tl.cast(i, tl.int64) * stride_n
        out = tl.cast(i, tl.int64) * k
        select_row(
            row, stride_h, latent_mask, values + out, indices + out, buffer, h, k, fold_bits,
            READS, GROUPS, CAPACITY, K_PAD, BLOCK, WIDE,
        )  # fmt: skip


@batched_jit
def topk_relu_backward_kernel(
    grad,  # [n, k]
    values,  # [n, k]
    indices,  # [n, k] int32
    out,  # [n, dim], contiguous
    n,
    dim,
    k,
    K_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rows of zeros with the gradient at positive selected entries; 1 write an element."""
    row = tl.program_id(0).to(tl.int64)
    start = out + row * dim
    for begin in range(0, dim, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        tl.store(start + columns, tl.zeros([BLOCK], out.dtype.element_ty), mask=columns < dim)
    tl.debug_barrier()
    slots = tl.arange(0, K_PAD)
    inside = slots < k
    value = tl.load(values + row * k + slots, mask=inside, other=0)
    index = tl.load(indices + row * k + slots, mask=inside, other=0)
    passed = tl.load(grad + row * k + slots, mask=inside, other=0)
    # A positive int16 is a positive bfloat16 or the NaN that CPU comparisons reject.
    positive = (value > 0) & (value <= 0x7F80) if value.dtype == tl.int16 else value > 0
    there = (index >= 0) & (index < dim)
    tl.store(start + index, passed, mask=inside & positive & there)


class Plan(NamedTuple):
    """Compile-time sizes for one (h, k): `topk_relu_kernel`'s constants and its warps."""

    READS: int
    GROUPS: int
    CAPACITY: int
    K_PAD: int
    BLOCK: int
    WIDE: bool
    num_warps: int

    @staticmethod
    def of(h: int, k: int, wide: bool = False, masked: bool = False) -> Plan:
        """Sizes are rounded to powers of two, so few kernels serve all shapes.

        A mask is in flight, too, so half as many entries are.
        """
        k_pad = power_of_2(k)
        h_pad = power_of_2(h, 64)
        least, most = GROUPS
        groups = min(h_pad, max(least, min(16 * k_pad, most)))
        reads = max(1, min(h_pad, READ_AT_ONCE) // groups // (2 if masked else 1))
        capacity = max(2 * k_pad, 16)
        block = min(groups, COLLECT_AT_ONCE)
        # With more than 8 group maxima a thread, beside what is in flight, ptxas spills some.
        # With fewer than 4 warps it spills some of what ranks the keys.
        num_warps = max(4, min(groups // 256, 8))
        return Plan(reads, groups, capacity, k_pad, block, wide, num_warps)

    def fold_bits(self, h: int) -> int:
        """Return b where a group has 2^b entries at most."""
        return power_of_2(triton.cdiv(h, self.GROUPS)).bit_length() - 1

    def configs(self) -> list[tuning.Config]:
        """Return this plan, and one with half the entries in flight; more warps would spill."""
        reads = dict.fromkeys((self.READS, max(self.READS // 2, 1)))
        return [{"READS": count, "num_warps": self.num_warps} for count in reads]


def topk_relu(pre: Tensor, k: int, latent_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Values and indices [n, k] of pre [n, h] in float32, float16 or bfloat16; k <= MAX_K."""
    values = pre.new_empty(len(pre), k)
    indices = pre.new_empty(len(pre), k, dtype=torch.int32)
    scratch = new_scratch(len(pre), pre.shape[1], k, pre.device)
    topk_relu_into(pre, k, latent_mask, values, indices, scratch)
    return values, indices


def new_scratch(n: int, h: int, k: int, device: torch.device) -> Tensor:
    """Return the scratch of `topk_relu_into` for n rows, [programs, 2 CAPACITY + 2]."""
    size = min(n, MAX_PROGRAMS), 2 * Plan.of(h, k).CAPACITY + 2
    return torch.empty(size, dtype=torch.int64, device=device)


def topk_relu_into(
    pre: Tensor,
    k: int,
    latent_mask: Tensor | None,
    values: Tensor,
    indices: Tensor,
    scratch: Tensor,
) -> None:
    """Return the same into contiguous `values` and `indices`; `scratch` from `new_scratch`."""
    n, h = pre.shape
    if n == 0:
        return
    plan = Plan.of(h, k, needs_int64(pre[:1]), latent_mask is not None)
    programs = min(n, len(scratch))
    mask = None if latent_mask is None else latent_mask.contiguous().view(torch.uint8)
    limit = registers(REGISTERS if mask is None else MASKED_REGISTERS)

    def run(config: tuning.Config) -> None:
        tensors = as_bits(pre), *pre.stride(), mask, as_bits(values), indices, scratch
        constants = {**plan._asdict(), **config, **limit}
        topk_relu_kernel[(programs,)](*tensors, n, h, k, plan.fold_bits(h), **constants)

    with on_device_of(pre):
        tuning.launch("topk_relu", (n, h, k, str(pre.dtype)), plan.configs(), run)


def topk_relu_backward(grad: Tensor, values: Tensor, indices: Tensor, dim: int) -> Tensor:
    """[n, dim]: the gradient [n, k] of the values at their places, zero elsewhere."""
    n, k = values.shape
    out = grad.new_empty(n, dim)
    if n:
        with on_device_of(grad):
            tensors = (as_bits(tensor.contiguous()) for tensor in (grad, values, indices, out))
            block = min(power_of_2(dim, 64), 4096)
            topk_relu_backward_kernel[(n,)](
                *tensors, n, dim, k, K_PAD=power_of_2(k), BLOCK=block, num_warps=4
            )
    return out
