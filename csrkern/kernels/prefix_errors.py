"""prefix_errors on a GPU: the residual of a row runs over its slots, forward and back.

A program has one row and BLOCK columns, and takes SLOTS slots at a time, whose dictionary rows are
read together. Sums are in a fixed order, and no launch depends on a measurement.

The gradient of the dictionary needs the sum S of the weighted residuals at every slot. These are
written for as many rows as SCRATCH_BYTES hold, added to the dictionary's gradient along the
postings of these rows (`transpose`, `scatter_sum`), without atomics, and overwritten by those of
the next rows.

Cost, for n codes of k slots and d columns of b bytes: forward n k d b bytes of table rows, mostly
from L2, and 4 n k d flops; backward the same bytes, 4 n k d more of S written and read, and 8 n k d
flops.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from csrkern.kernels import gather
from csrkern.kernels._common import (
    as_bits,
    batched_jit,
    is_active,
    on_device_of,
    tree_sum,
    tree_sum_rows,
    widen,
)
from csrkern.kernels.transpose import transpose

SLOTS = 8
BLOCK = 128  # columns: one warp, 16 bytes of float32 a thread
SCRATCH_BYTES = 2**28


@batched_jit
def prefix_errors_kernel(
    values,  # [n, k] float32
    indices,  # [n, k] int32
    table,  # [dim, d], rows of stride_table
    residual,  # [n, d] float32: of no slots before, of all slots after
    squares,  # [blocks, n, k] float32
    n,
    k,
    dim,
    d,
    stride_table,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """squares[b, i, s] = Σ over the columns of block b of the squared residual after slot s."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    inside = columns < d
    left = tl.load(residual + row * d + columns, mask=inside, other=0.0)
    to = squares + (block * tl.cast(n, tl.int64) + row) * k
    for first in range(0, k, SLOTS):
        slots = first + tl.arange(0, SLOTS)
        value = tl.load(values + row * k + slots, mask=slots < k, other=0.0)
        latent = tl.load(indices + row * k + slots, mask=slots < k, other=0)
        active = is_active(value, latent, dim)
        mask = active[:, None] & inside[None, :]
        where = table + latent.to(tl.int64)[:, None] * stride_table + columns[None, :]
        rows = widen(tl.load(where, mask=mask, other=0))
        parts = tl.where(mask, value[:, None] * rows, 0.0)
        after = left[None, :] - tl.cumsum(parts, axis=0)
        tl.store(to + slots, tree_sum(after * after, SLOTS, BLOCK), mask=slots < k)
        left -= tree_sum_rows(parts, SLOTS, BLOCK)
    tl.store(residual + row * d + columns, left, mask=inside)


@batched_jit
def prefix_errors_backward_kernel(
    values,  # [n, k] float32
    indices,  # [n, k] int32
    table,  # [dim, d], rows of stride_table
    residual,  # [n, d] float32, of all slots
    weights,  # [k] float32
    dots,  # [blocks, n, k] float32
    sums,  # [n, k, d] float32
    grad_x,  # [n, d] float32
    n,
    k,
    dim,
    d,
    stride_table,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """sums[i, s] = Σ over t >= s of weights[t] times the residual of row i after slot t.

    dots are their inner products with the slots' table rows, by block; grad_x is sums[:, 0].
    """
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    inside = columns < d
    left = tl.load(residual + row * d + columns, mask=inside, other=0.0)
    total = tl.zeros([BLOCK], tl.float32)
    to = dots + (block * tl.cast(n, tl.int64) + row) * k
    for first in range(0, k, SLOTS):
        slots = k - 1 - first - tl.arange(0, SLOTS)  # from the last one down
        value = tl.load(values + row * k + slots, mask=slots >= 0, other=0.0)
        latent = tl.load(indices + row * k + slots, mask=slots >= 0, other=0)
        weight = tl.load(weights + slots, mask=slots >= 0, other=0.0)
        active = is_active(value, latent, dim)
        mask = active[:, None] & inside[None, :]
        where = table + latent.to(tl.int64)[:, None] * stride_table + columns[None, :]
        rows = widen(tl.load(where, mask=mask, other=0))
        parts = tl.where(mask, value[:, None] * rows, 0.0)
        after = left[None, :] + (tl.cumsum(parts, axis=0) - parts)
        weighted = tl.where((weight != 0)[:, None], weight[:, None] * after, 0.0)
        here = total[None, :] + tl.cumsum(weighted, axis=0)
        products = tl.where(mask, here * rows, 0.0)
        tl.store(to + slots, tree_sum(products, SLOTS, BLOCK), mask=slots >= 0)
        out = sums + (row * k + slots)[:, None] * d + columns[None, :]
        tl.store(out, here, mask=(slots >= 0)[:, None] & inside[None, :])
        left += tree_sum_rows(parts, SLOTS, BLOCK)
        total += tree_sum_rows(weighted, SLOTS, BLOCK)
    tl.store(grad_x + row * d + columns, total, mask=inside)


def prefix_errors(values: Tensor, indices: Tensor, table: Tensor, residual: Tensor) -> Tensor:
    """Return errors float32 [k], and replace residual [n, d] = x - bias by that of all slots.

    The table's columns are adjacent, and residual is contiguous.
    """
    values, indices = values.float().contiguous(), indices.contiguous()
    (n, k), (dim, d) = values.shape, table.shape
    blocks = triton.cdiv(d, BLOCK)
    squares = residual.new_empty(blocks, n, k)
    if squares.numel():
        with on_device_of(table):
            prefix_errors_kernel[(n, blocks)](
                values, indices, as_bits(table), residual, squares, n, k, dim, d, table.stride(0),
                SLOTS=SLOTS, BLOCK=BLOCK, num_warps=1, enable_fp_fusion=False,
            )  # fmt: skip
    return (squares.sum((0, 1), dtype=torch.float64) / residual.numel()).float()


def prefix_errors_backward(
    weights: Tensor, residual: Tensor, values: Tensor, indices: Tensor, table: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of values [n, k], table [dim, d] and residual [n, d], all float32.

    The table's columns are adjacent; weights and residual are contiguous.
    """
    values, indices = values.float().contiguous(), indices.contiguous()
    (n, k), (dim, d) = values.shape, table.shape
    blocks = triton.cdiv(d, BLOCK)
    dots = residual.new_empty(blocks, n, k)
    grad_table, grad_x = residual.new_zeros(dim, d), residual.new_zeros(n, d)
    at_once = max(1, min(n, SCRATCH_BYTES // (4 * max(1, k * d))))
    sums = residual.new_empty(at_once * k, d)
    for begin in range(0, n if k * d else 0, at_once):
        part = slice(begin, begin + at_once)
        here, latents = values[part], indices[part]
        rows = len(here)
        with on_device_of(table):
            prefix_errors_backward_kernel[(rows, blocks)](
                here, latents, as_bits(table), residual[part], weights, dots[:, begin:], sums,
                grad_x[part], n, k, dim, d, table.stride(0),
                SLOTS=SLOTS, BLOCK=BLOCK, num_warps=1, enable_fp_fusion=False,
            )  # fmt: skip
        starts, posting_rows, slots, _ = transpose(here, latents, dim)
        # As of codes with one slot, in whose rows the entries are: each has its row of `sums`.
        entries, factors = posting_rows * k + slots, -here.reshape(-1, 1)
        lists = starts, entries, torch.zeros_like(slots), dim
        grad_table += gather.scatter_sum(*lists, [sums[: rows * k]], [factors], [0], [1])
    return -dots.sum(0), grad_table, grad_x
