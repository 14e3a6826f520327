"""The three sums of csrkern/ops/gather.py on a GPU: float32 sums in a fixed order, no atomics.

Table rows are read whole, 16 bytes a thread, ROWS_AT_ONCE of them in flight. Programs that run
together work on one slice of the columns (the slice is the slow grid axis), so that what they
gather from is a part of the table that stays in the L2 cache.

Cost, for n codes of k slots and d columns of b bytes: gather_sum and gather_dot read n k d b
bytes of table rows, mostly from L2, and do 2 n k d flops; scatter_sum the same for rows of its
sources, and writes dim d b. From memory come the table and the rows once each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from csrkern.kernels._common import as_bits, narrow, on_device_of, power_of_2, widen

ROWS_AT_ONCE = 8
SLICE_BYTES = 24 * 2**20  # of the table: half of an L2 cache of 50 MB
WIDEST = 512  # columns: 4 warps of 16-byte float32 loads


@triton.jit
def gather_sum_kernel(
    values,  # [n, k] float32
    indices,  # [n, k] int32
    table,  # [dim, d], rows of stride_table
    bias,  # [d], or None
    out,  # [P, n, d]
    n,
    k,
    d,
    stride_table,
    ENDS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[q, i] = Σ over s < ENDS[q] of values[i, s] · table[indices[i, s]] + bias."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < d
    total = tl.zeros([BLOCK], tl.float32)
    shift = tl.zeros([BLOCK], tl.float32)
    if bias is not None:
        shift += widen(tl.load(bias + columns, mask=inside, other=0))
    begin = 0
    for q in tl.static_range(len(ENDS)):
        for first in range(begin, ENDS[q], ROWS):
            slots = first + tl.arange(0, ROWS)
            value = tl.load(values + row * k + slots, mask=slots < ENDS[q], other=0.0)
            active = value != 0
            latent = tl.load(indices + row * k + slots, mask=active, other=0).to(tl.int64)
            where = table + latent[:, None] * stride_table + columns[None, :]
            rows = widen(tl.load(where, mask=active[:, None] & inside[None, :], other=0))
            total += tl.sum(value[:, None] * rows, axis=0)
        begin = ENDS[q]
        to = out + (q * tl.cast(n, tl.int64) + row) * d + columns
        tl.store(to, narrow(total + shift, out.dtype.element_ty), mask=inside)


@triton.jit
def gather_dot_kernel(
    values,  # [n, k] float32
    indices,  # [n, k] int32
    table,  # [dim, d], rows of stride_table
    rows,  # [P, n, d], contiguous
    out,  # [n, k] float32
    n,
    k,
    d,
    stride_table,
    ENDS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[i, s] = ⟨rows[q, i], table[indices[i, s]]⟩, q the first prefix that holds slot s."""
    row = tl.program_id(0).to(tl.int64)
    begin = 0
    for q in tl.static_range(len(ENDS)):
        source = rows + (q * tl.cast(n, tl.int64) + row) * d
        for first in range(begin, ENDS[q], ROWS):
            slots = first + tl.arange(0, ROWS)
            value = tl.load(values + row * k + slots, mask=slots < ENDS[q], other=0.0)
            active = value != 0
            latent = tl.load(indices + row * k + slots, mask=active, other=0).to(tl.int64)
            products = tl.zeros([ROWS, BLOCK], tl.float32)
            for column in range(0, d, BLOCK):
                columns = column + tl.arange(0, BLOCK)
                inside = columns < d
                x = widen(tl.load(source + columns, mask=inside, other=0))
                where = table + latent[:, None] * stride_table + columns[None, :]
                mask = active[:, None] & inside[None, :]
                w = widen(tl.load(where, mask=mask, other=0))
                products += tl.where(mask, x[None, :] * w, 0.0)
            tl.store(out + row * k + slots, tl.sum(products, axis=1), mask=slots < ENDS[q])
        begin = ENDS[q]
    for first in range(begin, k, ROWS):
        slots = first + tl.arange(0, ROWS)
        tl.store(out + row * k + slots, tl.zeros([ROWS], tl.float32), mask=slots < k)


@triton.jit
def scatter_sum_kernel(
    starts,  # [dim + 1] int64
    rows,  # [entries] int32
    slots,  # [entries] int32
    source,  # [n, d], rows of stride_source
    scale,  # [n, k] float32
    out,  # [dim, d] float32
    k,
    d,
    stride_source,
    begin_slot,
    end_slot,
    FIRST: tl.constexpr,  # writes out, else adds to it
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[l] (+)= Σ over postings (i, s) of l, begin <= s < end, of scale[i, s] · source[i]."""
    latent = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < d
    total = tl.zeros([BLOCK], tl.float32)
    end = tl.load(starts + latent + 1)
    for first in range(tl.load(starts + latent), end, ROWS):
        entries = first + tl.arange(0, ROWS)
        slot = tl.load(slots + entries, mask=entries < end, other=0)
        takes = (entries < end) & (slot >= begin_slot) & (slot < end_slot)
        row = tl.load(rows + entries, mask=takes, other=0).to(tl.int64)
        factor = tl.load(scale + row * k + slot, mask=takes, other=0.0)
        where = source + row[:, None] * stride_source + columns[None, :]
        x = widen(tl.load(where, mask=takes[:, None] & inside[None, :], other=0))
        total += tl.sum(factor[:, None] * x, axis=0)
    to = out + latent * d + columns
    if not FIRST:
        total += tl.load(to, mask=inside, other=0.0)
    tl.store(to, total, mask=inside)


def slice_width(height: int, d: int, itemsize: int) -> int:
    """Columns of a slice of a [height, d] table that stays in the L2 cache."""
    widest = min(WIDEST, power_of_2(d, 32))
    while widest > 64 and height * widest * itemsize > SLICE_BYTES:
        widest //= 2
    return widest


def _warps(block: int) -> int:
    return max(1, min(ROWS_AT_ONCE * block // 1024, 4))


def gather_sum(
    values: Tensor, indices: Tensor, table: Tensor, bias: Tensor | None, ends: Sequence[int]
) -> Tensor:
    """[P, n, d]; the table's columns are adjacent."""
    n, k = values.shape
    dim, d = table.shape
    out = table.new_empty(len(ends), n, d)
    block = slice_width(dim, d, table.itemsize)
    if out.numel():
        with on_device_of(table):
            gather_sum_kernel[(n, triton.cdiv(d, block))](
                values.float().contiguous(),
                indices.contiguous(),
                as_bits(table),
                None if bias is None else as_bits(bias.contiguous()),
                as_bits(out),
                n,
                k,
                d,
                table.stride(0),
                ENDS=tuple(ends),
                ROWS=ROWS_AT_ONCE,
                BLOCK=block,
                num_warps=_warps(block),
            )
    return out


def gather_dot(
    values: Tensor, indices: Tensor, table: Tensor, rows: Tensor, ends: Sequence[int]
) -> Tensor:
    """[n, k] float32; the table's columns are adjacent."""
    n, k = values.shape
    d = table.shape[1]
    out = torch.empty(n, k, dtype=torch.float32, device=values.device)
    block = min(256, power_of_2(d, 32))
    if n:
        with on_device_of(table):
            gather_dot_kernel[(n,)](
                values.float().contiguous(),
                indices.contiguous(),
                as_bits(table),
                as_bits(rows.contiguous()),
                out,
                n,
                k,
                d,
                table.stride(0),
                ENDS=tuple(ends),
                ROWS=ROWS_AT_ONCE,
                BLOCK=block,
                num_warps=_warps(block),
            )
    return out


def scatter_sum(
    starts: Tensor,
    rows: Tensor,
    slots: Tensor,
    dim: int,
    sources: Sequence[Tensor],
    scales: Sequence[Tensor],
    begins: Sequence[int],
    ends: Sequence[int],
) -> Tensor:
    """[dim, d] in the sources' dtype; their columns are adjacent."""
    n, d = sources[0].shape
    out = torch.empty(dim, d, dtype=torch.float32, device=starts.device)
    block = slice_width(n, d, sources[0].itemsize)
    with on_device_of(starts):
        for q, source in enumerate(sources):
            scatter_sum_kernel[(dim, triton.cdiv(d, block))](
                starts,
                rows,
                slots,
                as_bits(source),
                scales[q].float().contiguous(),
                out,
                scales[q].shape[1],
                d,
                source.stride(0),
                begins[q],
                ends[q],
                FIRST=q == 0,
                ROWS=ROWS_AT_ONCE,
                BLOCK=block,
                num_warps=_warps(block),
            )
    return out.to(sources[0].dtype)
