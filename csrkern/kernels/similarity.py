"""similarity on a GPU: rows of the result summed from postings.

One warp fills its row of the result with zeros and walks the postings of the row's latents,
one latent after another: the entries of one latent belong to different columns, so adding them
up needs no atomics and every sum runs in the order of the row's slots.

Rows whose latents most codes use would read and write every sum many times over. They are left to
a second kernel: the row is laid out dense, every code of the other side gathers from it, and each
sum is written once. A row's postings alone decide which, so the result is always the same; a
gathered sum runs in another order, and may differ from the CPU's in rounding.

Cost: 4 n m bytes written, and 12 bytes read and one multiply-add done for each of the about
n m k² / h pairs of active entries; the partial sums stay in the caches. Of a gathered row, 12 bytes
for each of the m k slots of the other side, never more than half as much.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from csrkern.kernels import tuning
from csrkern.kernels._common import (
    batched_jit,
    is_active,
    on_device_of,
    power_of_2,
    registers,
    tree_sum,
)

POSTINGS_AT_ONCE = 64  # two a lane: lists of even use are about this long
CONFIGS = [{"BLOCK": POSTINGS_AT_ONCE, "num_warps": 1}, {"BLOCK": 32, "num_warps": 1}]
CONFIGS += [{"BLOCK": 256, "num_warps": 4}]
# Postings of a row, as a share of the slots of the other side, beyond which it is gathered. By the
# bytes moved (16 of a posting, one after another; 12 of a slot, all at once), not by a measurement.
SKEWED = 2
SLOTS_AT_ONCE = 128  # of a row whose postings one warp counts
GATHER_PROGRAMS = 4 * 132
GATHER_REGISTERS = 80
GATHERED_AT_ONCE = 2048  # slots; with 4096 ptxas spills some registers on sm_90
LOOKED_AT = tl.constexpr(32)  # rows


@triton.jit
def slot_of(values, indices, slot, k, dim):
    """Return value and latent of a row's slot; latent -1 where there is none."""
    value = tl.load(values + slot, mask=slot < k, other=0.0)
    latent = tl.load(indices + slot, mask=slot < k, other=-1)
    return value, tl.where(is_active(value, latent, dim), latent, -1)


@triton.jit
def list_of(starts, latent):
    """Return where the postings of a latent begin and end; nothing lies between for latent -1."""
    begin = tl.load(starts + latent, mask=latent >= 0, other=0)
    return begin, tl.load(starts + latent + 1, mask=latent >= 0, other=0)


@triton.jit
def columns_of(rows, begin, end, BLOCK: tl.constexpr):
    """Return the columns of the next BLOCK postings of a list."""
    e = begin + tl.arange(0, BLOCK)
    return tl.load(rows + e, mask=e < end, other=0)


# A walk over the lists of a row's slots waits for as little memory as can be: while the postings
# of one slot are worked on, the columns of the next list, where the list after that lies, and the
# latent of the third are loaded. `first_lists` begins a walk, `next_lists` takes a step.


@triton.jit
def first_lists(values, indices, starts, rows, k, dim, BLOCK: tl.constexpr):
    """Return a walk: begin, end and columns of a list, begin and end of the next, a latent."""
    _, latent = slot_of(values, indices, 0, k, dim)
    begin, end = list_of(starts, latent)
    _, latent = slot_of(values, indices, 1, k, dim)
    next_begin, next_end = list_of(starts, latent)
    _, latent = slot_of(values, indices, 2, k, dim)
    return begin, end, columns_of(rows, begin, end, BLOCK), next_begin, next_end, latent


@triton.jit
def next_lists(walk, values, indices, starts, rows, slot, k, dim, BLOCK: tl.constexpr):
    """Return begin, end and columns of the list of a slot, and the walk from the next one on."""
    begin, end, j, next_begin, next_end, latent = walk
    next_j = columns_of(rows, next_begin, next_end, BLOCK)
    begin_after, end_after = list_of(starts, latent)
    _, latent_after = slot_of(values, indices, slot + 3, k, dim)
    return begin, end, j, (next_begin, next_end, next_j, begin_after, end_after, latent_after)


@triton.jit
def add_scores(values, indices, starts, rows, sorted_values, k, dim, sums, BLOCK: tl.constexpr):
    """sums[j] += values of a row · code j, over the row's k slots in order."""
    walk = first_lists(values, indices, starts, rows, k, dim, BLOCK)
    for slot in range(0, k):
        value = tl.load(values + slot)
        begin, end, j, walk = next_lists(walk, values, indices, starts, rows, slot, k, dim, BLOCK)
        for first in range(begin, end, BLOCK):
            e = first + tl.arange(0, BLOCK)
            weight = tl.load(sorted_values + e, mask=e < end, other=0.0)
            before = tl.load(sums + j, mask=e < end, other=0.0)
            tl.store(sums + j, before + value * weight, mask=e < end)
            j = columns_of(rows, first + BLOCK, end, BLOCK)
        tl.debug_barrier()  # the next latent may meet the same columns


@batched_jit
def similarity_kernel(
    values,  # [n, k] float32
    indices,  # [n, k] int32
    starts,  # [dim + 1] int64, with rows and sorted_values: the postings of the other side
    rows,
    sorted_values,
    out,  # [n, m] float32
    skewed,  # [n] int32: rows with more postings than `limit`, which are left out
    k,
    m,
    dim,
    limit,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
    FILL: tl.constexpr,
):
    """out[i, j] = ⟨a_i, b_j⟩."""
    row = tl.program_id(0).to(tl.int64)
    postings = tl.cast(0, tl.int64)
    for first in range(0, k, SLOTS):
        slots = first + tl.arange(0, SLOTS)
        _, latent = slot_of(values + row * k, indices + row * k, slots, k, dim)
        begin, end = list_of(starts, latent)
        postings += tl.sum(end - begin)
    tl.store(skewed + row, (postings > limit).to(tl.int32))
    if postings <= limit:
        sums = out + row * m
        for begin in range(0, m, FILL):
            columns = begin + tl.arange(0, FILL)
            tl.store(sums + columns, tl.zeros([FILL], tl.float32), mask=columns < m)
        tl.debug_barrier()
        at = row * k
        add_scores(values + at, indices + at, starts, rows, sorted_values, k, dim, sums, BLOCK)


@batched_jit
def similarity_gather_kernel(
    values,  # [n, k] float32
    indices,  # [n, k] int32
    other_values,  # [m, other_k] float32
    other_indices,  # [m, other_k] int32
    dense,  # [programs, dim] float32
    out,  # [n, m] float32
    skewed,  # [n] int32
    n,
    k,
    m,
    other_k,
    dim,
    K_PAD: tl.constexpr,
    OTHER_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
    FILL: tl.constexpr,
):
    """Return the rows of out that `similarity_kernel` left out."""
    mine = dense + tl.program_id(0).to(tl.int64) * dim
    slots = tl.arange(0, K_PAD)
    others = tl.arange(0, OTHER_PAD)
    step = tl.num_programs(0)
    for first in range(tl.program_id(0), n, step * LOOKED_AT):
        looked_at = first + tl.arange(0, LOOKED_AT) * step
        if tl.max(tl.load(skewed + looked_at, mask=looked_at < n, other=0)) > 0:
            for i in range(first, tl.minimum(first + step * LOOKED_AT, n), step):
                if tl.load(skewed + i) > 0:
                    row = tl.cast(i, tl.int64)
                    tl.debug_barrier()  # the row before reads the dense one until here
                    for begin in range(0, dim, FILL):
                        latents = begin + tl.arange(0, FILL)
                        tl.store(mine + latents, tl.zeros([FILL], tl.float32), mask=latents < dim)
                    tl.debug_barrier()
                    value = tl.load(values + row * k + slots, mask=slots < k, other=0.0)
                    latent = tl.load(indices + row * k + slots, mask=slots < k, other=0)
                    tl.store(mine + latent, value, mask=is_active(value, latent, dim))
                    tl.debug_barrier()
                    for begin in range(0, m, BLOCK):
                        j = begin + tl.arange(0, BLOCK)
                        at = j.to(tl.int64)[:, None] * other_k + others[None, :]
                        inside = (j < m)[:, None] & (others < other_k)[None, :]
                        weight = tl.load(other_values + at, mask=inside, other=0.0)
                        where = tl.load(other_indices + at, mask=inside, other=0)
                        active = is_active(weight, where, dim)
                        own = tl.load(mine + where, mask=active, other=0.0)
                        sums = tree_sum(weight * own, BLOCK, OTHER_PAD)
                        tl.store(out + row * m + j, sums, mask=j < m)


@batched_jit
def similarity_backward_kernel(
    grad,  # [n, m] float32, any strides
    stride_n,
    stride_m,
    values,  # [n, k] float32
    indices,  # [n, k] int32
    starts,
    rows,
    sorted_values,
    grad_values,  # [n, k] float32
    k,
    dim,
    BLOCK: tl.constexpr,
):
    """grad_values[i, s] = Σ over postings (j, v) of the slot's latent of grad[i, j] · v."""
    row = tl.program_id(0).to(tl.int64)
    for slot in range(0, k):
        total = tl.zeros([BLOCK], tl.float32)
        latent = tl.load(indices + row * k + slot)
        if is_active(tl.load(values + row * k + slot), latent, dim):
            end = tl.load(starts + latent + 1)
            for first in range(tl.load(starts + latent), end, BLOCK):
                e = first + tl.arange(0, BLOCK)
                j = tl.load(rows + e, mask=e < end, other=0).to(tl.int64)
                weight = tl.load(sorted_values + e, mask=e < end, other=0.0)
                at = grad + row * stride_n + j * stride_m
                total += tl.load(at, mask=e < end, other=0.0) * weight
        tl.store(grad_values + row * k + slot, tl.sum(total))


Codes = tuple[Tensor, Tensor]  # values [n, k] float32 and indices [n, k] int32, contiguous
Postings = tuple[Tensor, Tensor, Tensor]  # starts, rows, values


def similarity(a: Codes, b: Codes, postings: Postings) -> Tensor:
    """[n, m] float32 from codes a and b and the postings of b."""
    (n, k), (m, other_k), dim = a[0].shape, b[0].shape, len(postings[0]) - 1
    out, skewed = a[0].new_empty(n, m), a[1].new_empty(n)
    other_pad = power_of_2(other_k)
    constants = {"FILL": 1024}

    def run(config: tuning.Config) -> None:
        sizes = k, m, dim, m * other_k // SKEWED
        tensors = *a, *postings, out, skewed
        # No fused sums: the CPU rounds every product, too.
        slots = min(power_of_2(k), SLOTS_AT_ONCE)
        similarity_kernel[(n,)](
            *tensors, *sizes, SLOTS=slots, enable_fp_fusion=False, **constants, **config
        )

    if out.numel():
        with on_device_of(out):
            tuning.launch("similarity", (n, m, k, dim), CONFIGS, run)
            programs = min(n, GATHER_PROGRAMS)
            tensors = *a, *b, out.new_empty(programs, dim), out, skewed
            constants |= {"K_PAD": power_of_2(k), "OTHER_PAD": other_pad}
            constants |= {"BLOCK": max(GATHERED_AT_ONCE // other_pad, 1)}
            sizes = n, k, m, other_k, dim
            constants |= {"num_warps": 8, **registers(GATHER_REGISTERS)}
            similarity_gather_kernel[(programs,)](
                *tensors, *sizes, enable_fp_fusion=False, **constants
            )
    return out


def similarity_backward(
    grad: Tensor, values: Tensor, indices: Tensor, postings: Postings
) -> Tensor:
    """Return the gradient [n, k] of the values, from grad [n, m] of any strides."""
    n, k = values.shape
    grad_values = torch.empty_like(values)
    if n:
        with on_device_of(values):
            tensors = grad, *grad.stride(), values, indices, *postings, grad_values
            constants = {"BLOCK": POSTINGS_AT_ONCE, "num_warps": 1}
            similarity_backward_kernel[(n,)](
                *tensors, k, len(postings[0]) - 1, enable_fp_fusion=False, **constants
            )
    return grad_values
