"""The three sums that decoding and every gradient are made of.

- gather_sum: rows of a table, weighted and summed per code (decoding; the gradient of x);
- gather_dot: the inner products of a row with the table rows its code selects (the gradient
  of the values);
- scatter_sum: the transposed sum, per latent (the gradient of the table). It walks the
  postings (`transpose`), so it needs no atomics and is bitwise deterministic.

Several prefixes of one code are served by one pass: see `ends`. Tables may be float32,
float16 or bfloat16, sums run in float32; float64 is summed by PyTorch, a slot at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from csrkern import _C
from csrkern._native import NATIVE_DTYPES, address, call
from csrkern.ops._registry import LIBRARY, implement, on_gpu
from csrkern.ops.latents import latents_of
from csrkern.ops.validation import check_dim, check_ends, check_operand, check_slots, check_tensor

LIBRARY.define(
    "gather_sum(Tensor values, Tensor indices, Tensor table, Tensor? bias, SymInt[] ends) -> Tensor"
)
LIBRARY.define(
    "gather_dot(Tensor values, Tensor indices, Tensor table, Tensor rows, SymInt[] ends) -> Tensor"
)
LIBRARY.define(
    "scatter_sum(Tensor starts, Tensor rows, Tensor slots, SymInt dim, Tensor[] sources, "
    "Tensor[] scales, SymInt[] begins, SymInt[] ends) -> Tensor"
)


def adjacent_columns(table: Tensor) -> Tensor:
    """`table` itself if its columns are adjacent in memory, else a contiguous copy."""
    return table if table.stride(-1) == 1 or table.shape[-1] == 1 else table.contiguous()


def interval_begins(ends: Sequence[int]) -> list[int]:
    """Where the intervals of slots begin that end, one after the other, at `ends`."""
    return [0, *ends[:-1]] if ends else []


def check_gather_sum(
    values: Tensor, indices: Tensor, table: Tensor, bias: Tensor | None, ends: Sequence[int]
) -> None:
    """Check the arguments of `gather_sum`, except the indices."""
    check_slots(values, indices)
    check_tensor("table", table, (None, None))
    check_operand("table", table, table.dtype, table.shape, values.device)
    if bias is not None:
        check_operand("bias", bias, table.dtype, table.shape[1:], table.device)
    check_ends(ends, values.shape[1])


@implement("gather_sum")
def gather_sum(
    values: Tensor, indices: Tensor, table: Tensor, bias: Tensor | None, ends: Sequence[int]
) -> Tensor:
    """out[q, i] = Σ over s < ends[q] of values[i, s] · table[indices[i, s]] + bias, [P, n, d]."""
    check_gather_sum(values, indices, table, bias, ends)
    n, k = values.shape
    dim, d = table.shape
    if table.dtype not in NATIVE_DTYPES:
        latents, total, sums = latents_of(values, indices, dim), table.new_zeros(n, d), []
        for begin, end in zip(interval_begins(ends), ends, strict=True):
            for s in range(begin, end):
                value = values[:, s, None]
                total = total.addcmul(value, table[latents[:, s]].masked_fill(value == 0, 0))
            sums.append(total if bias is None else total + bias)
        return torch.stack(sums)
    if on_gpu(values):
        from csrkern.kernels import gather as kernels

        return kernels.gather_sum(values, indices, adjacent_columns(table), bias, ends)
    values, indices = values.float().contiguous(), indices.contiguous()
    table = adjacent_columns(table)
    bias = None if bias is None else bias.contiguous()
    out = table.new_empty(len(ends), n, d)
    rows = NATIVE_DTYPES[table.dtype], table, table.stride(0), d
    outputs = [(end, address(part)) for end, part in zip(ends, out, strict=True)]
    call(_C.gather_sum, values, indices, n, k, dim, *rows, bias, outputs)
    return out


@implement("gather_dot")
def gather_dot(
    values: Tensor, indices: Tensor, table: Tensor, rows: Tensor, ends: Sequence[int]
) -> Tensor:
    """out[i, s] = ⟨rows[q, i], table[indices[i, s]]⟩, [n, k]; 0 in empty slots.

    q is the first prefix whose end lies beyond s. `rows` [P, n, d] in the dtype of `table`;
    the result is float32 (float64 for float64).
    """
    check_gather_sum(values, indices, table, None, ends)
    n, k = values.shape
    dim, d = table.shape
    check_operand("rows", rows, table.dtype, (len(ends), n, d), table.device)
    begins = interval_begins(ends)
    if table.dtype not in NATIVE_DTYPES:
        out = torch.zeros_like(values)
        latents = latents_of(values, indices, dim)
        for part, begin, end in zip(rows, begins, ends, strict=True):
            every = part @ table.T
            out[:, begin:end] = every.gather(1, latents[:, begin:end])
        return out.masked_fill(values == 0, 0)
    if on_gpu(values):
        from csrkern.kernels import gather as kernels

        return kernels.gather_dot(values, indices, adjacent_columns(table), rows, ends)
    values, indices = values.float().contiguous(), indices.contiguous()
    table, rows = adjacent_columns(table), adjacent_columns(rows)
    out = torch.empty_like(values)
    selected = NATIVE_DTYPES[table.dtype], table, table.stride(0), d
    sources = [
        (address(part), part.stride(0), begin, end, 0)
        for part, begin, end in zip(rows, begins, ends, strict=True)
    ]
    call(_C.gather_dot, values, indices, n, k, dim, *selected, sources, out)
    return out


@implement("scatter_sum")
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
    """out[l] = Σ over postings (i, s) of l and sources q of scales[q][i, s] · sources[q][i].

    Source q takes part where begins[q] <= s < ends[q]. Sources [n, d] in one dtype, which is
    the result's; scales [n, k]; returns [dim, d]. The sum over each latent runs in row order.
    """
    if not sources or not len(sources) == len(scales) == len(begins) == len(ends):
        raise ValueError("sources, scales, begins and ends: expected as many of each, at least one")
    check_tensor("sources", sources[0], (None, None))
    n, d = sources[0].shape
    check_tensor("scales", scales[0], (n, None))
    dtype, k, device = sources[0].dtype, scales[0].shape[1], starts.device
    check_operand("starts", starts, torch.int64, (check_dim(dim) + 1,), device)
    for name, entries in (("rows", rows), ("slots", slots)):
        check_operand(name, entries, torch.int32, (rows.numel(),), device)
    for source, scale in zip(sources, scales, strict=True):
        check_operand("sources", source, dtype, (n, d), device)
        check_operand("scales", scale, scales[0].dtype, (n, k), device)
    if on_gpu(starts) and dtype in NATIVE_DTYPES:
        from csrkern.kernels import gather as kernels

        sources = [adjacent_columns(source) for source in sources]
        return kernels.scatter_sum(starts, rows, slots, dim, sources, scales, begins, ends)
    starts, rows, slots = starts.contiguous(), rows.contiguous(), slots.contiguous()
    lists = address(starts), address(rows), address(slots), len(rows), n, k, dim
    if dtype not in NATIVE_DTYPES:
        if starts.device.type == "cpu":
            _C.check_postings(*lists)
        out = sources[0].new_zeros(dim, d)
        every = torch.arange(dim, device=starts.device)
        latents = torch.repeat_interleave(every, starts.diff())
        i, s = rows[: len(latents)].long(), slots[: len(latents)].long()
        for source, scale, begin, end in zip(sources, scales, begins, ends, strict=True):
            part = (s >= begin) & (s < end)
            out.index_add_(0, latents[part], scale[i, s][part, None] * source[i[part]])
        return out
    sources = [adjacent_columns(source) for source in sources]
    scales = [scale.float().contiguous() for scale in scales]
    out = sources[0].new_empty(dim, d)
    given = [
        (address(source), source.stride(0), begin, end, address(scale))
        for source, scale, begin, end in zip(sources, scales, begins, ends, strict=True)
    ]
    call(_C.scatter_sum, *lists, NATIVE_DTYPES[dtype], d, given, out)
    return out


@torch.library.register_fake("csrkern::gather_sum", lib=LIBRARY)
def _gather_sum_fake(values, indices, table, bias, ends):
    return table.new_empty(len(ends), values.shape[0], table.shape[1])


@torch.library.register_fake("csrkern::gather_dot", lib=LIBRARY)
def _gather_dot_fake(values, indices, table, rows, ends):
    dtype = torch.float32 if table.dtype in NATIVE_DTYPES else values.dtype
    return values.new_empty(values.shape, dtype=dtype)


@torch.library.register_fake("csrkern::scatter_sum", lib=LIBRARY)
def _scatter_sum_fake(starts, rows, slots, dim, sources, scales, begins, ends):
    return sources[0].new_empty(dim, sources[0].shape[1])
