"""The three sums of csrkern/ops/gather.py on a GPU: float32 sums in a fixed order, no atomics.

Table rows are read whole, ROWS_AT_ONCE of them in flight, 16 bytes a thread where lengths are
multiples of 16. Programs that run together work on one slice of the columns (the slice is the slow
grid axis), so that what they gather from is a part of the table that stays in the L2 cache.

Sums are trees over ROWS_AT_ONCE rows, one after another, of products rounded on their own: no
block size, number of warps or contraction changes a bit. In scatter_sum a latent that most rows
use would keep one program busy long after the others: lists are cut into pieces of PIECE
entries, and the pieces beyond each list's first are summed by programs of their own.

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

from csrkern.kernels import tuning
from csrkern.kernels._common import (
    as_bits,
    batched_jit,
    below,
    is_active,
    narrow,
    on_device_of,
    power_of_2,
    registers,
    tree_sum,
    tree_sum_rows,
    widen,
)

ROWS_AT_ONCE = 8
PIECE = 128  # entries: 16 rounds of loads
DOT_REGISTERS = 128
DOT_WIDTH = 256  # columns; the order of gather_dot's sums
SLICE_BYTES = 24 * 2**20  # of the table: half of an L2 cache of 50 MB
WIDEST = 512  # columns: 4 warps of 16-byte float32 loads


@triton.jit
def load_bias(bias, columns, inside, BLOCK: tl.constexpr):
    """float32 [BLOCK]; zeros where there is none."""
    shift = tl.zeros([BLOCK], tl.float32)
    if bias is not None:
        shift += widen(tl.load(bias + columns, mask=inside, other=0))
    return shift


@batched_jit
def gather_sum_kernel(
    values,  # [n, k] float32
    indices,  # [n, k] int32
    table,  # [dim, d], rows of stride_table
    bias,  # [d], or None
    out,  # [P, n, d]
    n,
    k,
    dim,
    d,
    stride_table,
    ENDS: tl.constexpr,
    HOLD_BIAS: tl.constexpr,  # in registers, else it is loaded for each prefix
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[q, i] = Σ over s < ENDS[q] of values[i, s] · table[indices[i, s]] + bias."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < d
    total = tl.zeros([BLOCK], tl.float32)
    if HOLD_BIAS:
        shift = load_bias(bias, columns, inside, BLOCK)
    begin = 0
    for q in tl.static_range(len(ENDS)):
        for first in range(begin, ENDS[q], ROWS):
            slots = first + tl.arange(0, ROWS)
            value = tl.load(values + row * k + slots, mask=slots < ENDS[q], other=0.0)
            latent = tl.load(indices + row * k + slots, mask=slots < ENDS[q], other=0)
            active = is_active(value, latent, dim)
            value = tl.where(active, value, 0.0)
            latent = latent.to(tl.int64)
            where = table + latent[:, None] * stride_table + columns[None, :]
            rows = widen(tl.load(where, mask=active[:, None] & inside[None, :], other=0))
            total += tree_sum_rows(value[:, None] * rows, ROWS, BLOCK)
        begin = ENDS[q]
        if not HOLD_BIAS:
            shift = load_bias(bias, columns, inside, BLOCK)
        to = out + (q * tl.cast(n, tl.int64) + row) * d + columns
        tl.store(to, narrow(total + shift, out.dtype.element_ty), mask=inside)


@batched_jit
def gather_dot_kernel(
    values,  # [n, k] float32
    indices,  # [n, k] int32
    table,  # [dim, d], rows of stride_table
    rows,  # [P, n, d], contiguous
    out,  # [n, k] float32
    n,
    k,
    dim,
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
            latent = tl.load(indices + row * k + slots, mask=slots < ENDS[q], other=0)
            active = is_active(value, latent, dim)
            latent = latent.to(tl.int64)
            products = tl.zeros([ROWS, BLOCK], tl.float32)
            for column in range(0, d, BLOCK):
                columns = column + tl.arange(0, BLOCK)
                inside = columns < d
                x = widen(tl.load(source + columns, mask=inside, other=0))
                where = table + latent[:, None] * stride_table + columns[None, :]
                mask = active[:, None] & inside[None, :]
                w = widen(tl.load(where, mask=mask, other=0))
                products = tl.where(mask, products + x[None, :] * w, products)
            dots = tree_sum(products, ROWS, BLOCK)
            tl.store(out + row * k + slots, dots, mask=slots < ENDS[q])
        begin = ENDS[q]
    for first in range(begin, k, ROWS):
        slots = first + tl.arange(0, ROWS)
        tl.store(out + row * k + slots, tl.zeros([ROWS], tl.float32), mask=slots < k)


@triton.jit
def sum_entries(
    begin, end, rows, slots, source, scale, entries, n, k, stride_source, columns, inside,
    begin_slot, end_slot, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Σ over postings begin <= e < end with a slot in range of scale[i, s] · source[i, columns]."""
    total = tl.zeros([BLOCK], tl.float32)
    begin = tl.maximum(begin, 0)  # nothing is read out of bounds, whatever the lists hold
    end = tl.minimum(end, entries)
    begin_slot = tl.maximum(begin_slot, 0)
    end_slot = tl.maximum(tl.minimum(end_slot, k), begin_slot)
    for first in range(begin, end, ROWS):
        e = first + tl.arange(0, ROWS)
        slot = tl.load(slots + e, mask=e < end, other=0)
        row = tl.load(rows + e, mask=e < end, other=-1)
        takes = below(row, n) & below(slot - begin_slot, end_slot - begin_slot)
        row = row.to(tl.int64)
        factor = tl.load(scale + row * k + slot, mask=takes, other=0.0)
        where = source + row[:, None] * stride_source + columns[None, :]
        x = widen(tl.load(where, mask=takes[:, None] & inside[None, :], other=0))
        total += tree_sum_rows(factor[:, None] * x, ROWS, BLOCK)
    return total


@batched_jit
def scatter_pieces_kernel(
    starts,  # [dim + 1] int64
    first_pieces,  # [dim + 1] int64: pieces beyond the first, of the latents before
    rows,  # [entries] int32
    slots,  # [entries] int32
    source,  # [n, d], rows of stride_source
    scale,  # [n, k] float32
    partial,  # [pieces, d] float32
    entries,
    n,
    dim,
    k,
    d,
    stride_source,
    begin_slot,
    end_slot,
    PIECE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the sums of the pieces that follow a list's first; programs beyond the last leave."""
    piece = tl.program_id(0).to(tl.int64)
    if piece < tl.load(first_pieces + dim):
        low = tl.cast(0, tl.int64)  # the last latent whose pieces begin at or before this one
        high = tl.cast(dim, tl.int64) - 1
        while low < high:
            middle = (low + high + 1) // 2
            before = tl.load(first_pieces + middle) <= piece
            low = tl.where(before, middle, low)
            high = tl.where(before, high, middle - 1)
        begin = tl.load(starts + low) + (piece - tl.load(first_pieces + low) + 1) * PIECE
        end = tl.minimum(begin + PIECE, tl.load(starts + low + 1))
        columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = columns < d
        total = sum_entries(
            begin, end, rows, slots, source, scale, entries, n, k, stride_source, columns, inside,
            begin_slot, end_slot, ROWS, BLOCK,
        )  # fmt: skip
        tl.store(partial + piece * d + columns, total, mask=inside)


@batched_jit
def scatter_sum_kernel(
    starts,  # [dim + 1] int64
    first_pieces,  # [dim + 1] int64
    rows,  # [entries] int32
    slots,  # [entries] int32
    source,  # [n, d], rows of stride_source
    scale,  # [n, k] float32
    partial,  # [pieces, d] float32
    out,  # [dim, d] float32
    entries,
    pieces,
    n,
    k,
    d,
    stride_source,
    begin_slot,
    end_slot,
    FIRST: tl.constexpr,  # writes out, else adds to it
    PIECE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[l] (+)= Σ over postings (i, s) of l, begin <= s < end, of scale[i, s] · source[i]."""
    latent = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < d
    begin = tl.load(starts + latent)
    end = tl.minimum(begin + PIECE, tl.load(starts + latent + 1))
    total = sum_entries(
        begin, end, rows, slots, source, scale, entries, n, k, stride_source, columns, inside,
        begin_slot, end_slot, ROWS, BLOCK,
    )  # fmt: skip
    last = tl.minimum(tl.load(first_pieces + latent + 1), pieces)
    for first in range(tl.load(first_pieces + latent), last, ROWS):
        piece = first + tl.arange(0, ROWS)
        where = partial + piece[:, None] * d + columns[None, :]
        mask = (piece < last)[:, None] & inside[None, :]
        total += tree_sum_rows(tl.load(where, mask=mask, other=0.0), ROWS, BLOCK)
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


def loads_16_bytes(table: Tensor) -> bool:
    """Whether a thread loads 16 bytes of a row at once: Triton finds all of these divisible."""
    return not any(size % 16 for size in (table.data_ptr(), table.stride(0), table.shape[1]))


def columns_of_thread(itemsize: int, loads_16_bytes: bool) -> int:
    """Return how many columns of each row a thread takes: 16 bytes.

    With fewer, some threads would hold other rows, and the tree would cross warps. Where elements
    are loaded one by one it is 4 in every dtype: 8 take twice the registers, or spill.
    """
    return 16 // itemsize if loads_16_bytes else 4


def slice_configs(table: Tensor) -> list[tuning.Config]:
    """Slices that stay in cache, half as wide, and twice."""
    height, d = table.shape
    width = slice_width(height, d, table.itemsize)
    widths = {width, max(width // 2, 32), min(2 * width, WIDEST, power_of_2(d, 32))}
    a_warp = 32 * columns_of_thread(table.itemsize, loads_16_bytes(table))
    return [
        {"BLOCK": block, "num_warps": max(1, min(block // a_warp, 4))}
        for block in sorted(widths, key=lambda block: (block != width, block))
    ]


DOT_CONFIGS = [
    {"ROWS": 8, "num_warps": 2},
    {"ROWS": 16, "num_warps": 4},
]


def gather_sum(
    values: Tensor, indices: Tensor, table: Tensor, bias: Tensor | None, ends: Sequence[int]
) -> Tensor:
    """[P, n, d]; the table's columns are adjacent."""
    n, k = values.shape
    dim, d = table.shape
    out = table.new_empty(len(ends), n, d)
    values, indices = values.float().contiguous(), indices.contiguous()
    bias = None if bias is None else as_bits(bias.contiguous())
    # Eight columns of the bias would take the registers of a warp more, or spill.
    hold = columns_of_thread(table.itemsize, loads_16_bytes(table)) <= 4

    def run(config: tuning.Config) -> None:
        tensors = values, indices, as_bits(table), bias, as_bits(out)
        sizes = n, k, dim, d, table.stride(0)
        constants = {"ENDS": tuple(ends), "HOLD_BIAS": hold, "ROWS": ROWS_AT_ONCE, **config}
        grid = n, triton.cdiv(d, config["BLOCK"])
        gather_sum_kernel[grid](*tensors, *sizes, enable_fp_fusion=False, **constants)

    if out.numel():
        with on_device_of(table):
            configs = slice_configs(table)
            tuning.launch("gather_sum", (n, k, dim, d, str(table.dtype)), configs, run)
    return out


def gather_dot(
    values: Tensor, indices: Tensor, table: Tensor, rows: Tensor, ends: Sequence[int]
) -> Tensor:
    """[n, k] float32; the table's columns are adjacent."""
    n, k = values.shape
    dim, d = table.shape
    out = torch.empty(n, k, dtype=torch.float32, device=values.device)
    values, indices = values.float().contiguous(), indices.contiguous()
    rows = as_bits(rows.contiguous())

    def run(config: tuning.Config) -> None:
        tensors = values, indices, as_bits(table), rows, out
        sizes = n, k, dim, d, table.stride(0)
        constants = {"ENDS": tuple(ends), "BLOCK": DOT_WIDTH, **config}
        gather_dot_kernel[(n,)](
            *tensors, *sizes, enable_fp_fusion=False, **constants, **registers(DOT_REGISTERS)
        )

    if n:
        with on_device_of(table):
            tuning.launch("gather_dot", (n, k, dim, d, str(table.dtype)), DOT_CONFIGS, run)
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
    # Pieces that follow a list's first: no more than this, whatever the lists, so nothing here
    # needs to wait for the device.
    most = len(rows) // PIECE
    first_pieces = starts.new_zeros(dim + 1)
    torch.cumsum((starts.diff() - 1).clamp(min=0) // PIECE, 0, out=first_pieces[1:])
    partial = out.new_empty(max(most, 1), d)
    configs = slice_configs(sources[0])
    with on_device_of(starts):
        for q, source in enumerate(sources):
            scale = scales[q].float().contiguous()
            table = as_bits(source)

            def run(config: tuning.Config, q=q, source=source, table=table, scale=scale) -> None:
                lists = starts, first_pieces, rows, slots, table, scale, partial
                entries = len(rows)
                sizes = scale.shape[1], d, source.stride(0), begins[q], ends[q]
                width = triton.cdiv(d, config["BLOCK"])
                constants = {"PIECE": PIECE, "ROWS": ROWS_AT_ONCE, **config}
                if most:
                    scatter_pieces_kernel[(most, width)](
                        *lists, entries, n, dim, *sizes, enable_fp_fusion=False, **constants
                    )
                scatter_sum_kernel[(dim, width)](
                    *lists, out, entries, most, n, *sizes,
                    FIRST=q == 0, enable_fp_fusion=False, **constants,
                )  # fmt: skip

            # What adds to `out` can run only once: the first source's choice serves all.
            sizes = (n, len(rows), dim, d, str(source.dtype))
            if q == 0:
                config = tuning.choose("scatter_sum", sizes, configs, run)
            run(config)
    return out.to(sources[0].dtype)
