"""transpose on a GPU: a stable counting sort by latent, without an atomic whose order matters.

Rows are cut into blocks. Each block counts its entries by latent (integer atomics: their order
does not change a count); sums over blocks say where each block's entries of a latent begin; then
each block walks its rows in order and puts their entries down. A row's latents are distinct, so
the entries of one row never meet.

Cost: 8 n k bytes read twice and 12 n k written, and 4 · blocks · dim bytes of counts written,
summed and walked through; the walk of n / blocks rows one after another is what takes time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from csrkern.kernels import tuning
from csrkern.kernels._common import batched_jit, is_active, on_device_of, power_of_2

ROWS_PER_BLOCK = (16, 8, 32)  # the first unless another was measured to be faster
MAX_COUNTS = 2**23  # blocks · dim: 32 MiB, within the L2 cache
LATENTS_AT_ONCE, BLOCKS_AT_ONCE = 128, 32  # a warp has whole columns, and no need to wait


@batched_jit
def count_kernel(
    values,  # [n, k]
    indices,  # [n, k] int32
    counts,  # [blocks, dim] int32, zeroed
    entries,  # n * k
    entries_per_block,
    dim,
    BLOCK: tl.constexpr,
):
    """counts[b, l]: active entries of latent l in block b."""
    block = tl.program_id(0).to(tl.int64)
    end = tl.minimum((block + 1) * entries_per_block, entries)
    for begin in range(block * entries_per_block, end, BLOCK):
        e = begin + tl.arange(0, BLOCK)
        value = tl.load(values + e, mask=e < end, other=0.0)
        latent = tl.load(indices + e, mask=e < end, other=0)
        active = is_active(value, latent, dim)
        tl.atomic_add(counts + block * dim + latent, 1, mask=active, sem="relaxed")


@batched_jit
def offsets_kernel(
    counts,  # [blocks, dim] int32: counts in, entries of earlier blocks out
    totals,  # [dim] int64
    n_blocks,
    dim,
    BLOCK: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """Sum over blocks, exclusive, for a tile of latents; AT_ONCE loads are in flight."""
    latents = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = latents < dim
    sums = tl.zeros([BLOCK], tl.int32)
    for first in range(0, n_blocks, AT_ONCE):
        block = first + tl.arange(0, AT_ONCE)
        here = counts + block.to(tl.int64)[:, None] * dim + latents[None, :]
        mask = (block < n_blocks)[:, None] & inside[None, :]
        count = tl.load(here, mask=mask, other=0)
        tl.store(here, sums[None, :] + tl.cumsum(count, axis=0) - count, mask=mask)
        sums += tl.sum(count, axis=0)
    tl.store(totals + latents, sums.to(tl.int64), mask=inside)


@batched_jit
def place_kernel(
    values,  # [n, k]
    indices,  # [n, k] int32
    starts,  # [dim + 1] int64
    cursors,  # [blocks, dim] int32
    rows,  # [n * k] int32
    slots,  # [n * k] int32
    sorted_values,  # [n * k] float32
    n,
    k,
    rows_per_block,
    dim,
    K_PAD: tl.constexpr,
):
    """Put the entries of a block's rows where they belong, row by row."""
    block = tl.program_id(0)
    slot = tl.arange(0, K_PAD)
    cursor = cursors + block.to(tl.int64) * dim
    first = block * rows_per_block
    last = tl.minimum(first + rows_per_block, n)
    e = tl.cast(first, tl.int64) * k + slot
    there = slot < tl.where(first < n, k, 0)
    next_value = tl.load(values + e, mask=there, other=0.0)
    next_latent = tl.load(indices + e, mask=there, other=0)
    for row in range(first, last):
        value, latent = next_value, next_latent
        e += k  # the next row is on its way while this one is placed
        there = slot < tl.where(row + 1 < last, k, 0)
        next_value = tl.load(values + e, mask=there, other=0.0)
        next_latent = tl.load(indices + e, mask=there, other=0)
        active = is_active(value, latent, dim)
        before = tl.load(cursor + latent, mask=active, other=0)
        entry = tl.load(starts + latent, mask=active, other=0) + before
        tl.store(rows + entry, tl.zeros([K_PAD], tl.int32) + row, mask=active)
        tl.store(slots + entry, slot, mask=active)
        tl.store(sorted_values + entry, value, mask=active)
        tl.store(cursor + latent, before + 1, mask=active)
        tl.debug_barrier()  # the next row reads the cursors


def transpose(values: Tensor, indices: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return starts int64 [dim + 1], rows, slots int32, values float32 [n · k]; see `Postings`."""
    values, indices = values.float().contiguous(), indices.contiguous()
    n, k = values.shape
    starts = indices.new_zeros(dim + 1, dtype=torch.int64)
    rows, slots = indices.new_zeros(n * k), indices.new_zeros(n * k)
    sorted_values = values.new_zeros(n * k)
    if n * k == 0:
        return starts, rows, slots, sorted_values
    configs = [{"rows": rows_per_block} for rows_per_block in ROWS_PER_BLOCK]

    def run(config: tuning.Config) -> None:
        most = max(1, MAX_COUNTS // dim)
        rows_per_block = max(config["rows"], triton.cdiv(n, most))
        blocks = triton.cdiv(n, rows_per_block)
        counts = indices.new_zeros(blocks, dim)
        totals = starts.new_empty(dim)
        count_kernel[(blocks,)](
            values, indices, counts, n * k, rows_per_block * k, dim, BLOCK=1024, num_warps=4
        )
        offsets_kernel[(triton.cdiv(dim, LATENTS_AT_ONCE),)](
            counts, totals, blocks, dim, BLOCK=LATENTS_AT_ONCE, AT_ONCE=BLOCKS_AT_ONCE, num_warps=1
        )
        torch.cumsum(totals, 0, out=starts[1:])
        tensors = values, indices, starts, counts, rows, slots, sorted_values
        k_pad = power_of_2(k)
        place_kernel[(blocks,)](
            *tensors, n, k, rows_per_block, dim, K_PAD=k_pad, num_warps=max(1, min(k_pad // 64, 8))
        )

    with on_device_of(values):
        tuning.launch("transpose", (n, k, dim), configs, run)
    return starts, rows, slots, sorted_values
