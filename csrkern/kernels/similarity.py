"""similarity on a GPU: rows of the result summed from postings.

One warp fills its row of the result with zeros and walks the postings of the row's latents,
one latent after another: the entries of one latent belong to different columns, so adding them
up needs no atomics and every sum runs in the order of the row's slots.

Cost: 4 n m bytes written, and 12 bytes read and one multiply-add done for each of the about
n m k² / h pairs of active entries; the partial sums stay in the caches.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from csrkern.kernels import tuning
from csrkern.kernels._common import batched_jit, on_device_of

POSTINGS_AT_ONCE = 64  # two a lane: lists of even use are about this long
CONFIGS = [{"BLOCK": POSTINGS_AT_ONCE, "num_warps": 1}, {"BLOCK": 32, "num_warps": 1}]
CONFIGS += [{"BLOCK": 256, "num_warps": 4}]


@triton.jit
def add_scores(values, indices, starts, rows, sorted_values, k, sums, BLOCK: tl.constexpr):
    """sums[j] += values of a row · code j, over the row's k slots in order."""
    for slot in range(0, k):
        value = tl.load(values + slot)
        if value != 0:
            latent = tl.load(indices + slot)
            end = tl.load(starts + latent + 1)
            for first in range(tl.load(starts + latent), end, BLOCK):
                e = first + tl.arange(0, BLOCK)
                j = tl.load(rows + e, mask=e < end, other=0)
                weight = tl.load(sorted_values + e, mask=e < end, other=0.0)
                before = tl.load(sums + j, mask=e < end, other=0.0)
                tl.store(sums + j, before + value * weight, mask=e < end)
            tl.debug_barrier()  # the next latent may meet the same columns


@batched_jit
def similarity_kernel(
    values,  # [n, k] float32
    indices,  # [n, k] int32
    starts,  # [dim + 1] int64, with rows and sorted_values: the postings of the other side
    rows,
    sorted_values,
    out,  # [n, m] float32
    k,
    m,
    BLOCK: tl.constexpr,
    FILL: tl.constexpr,
):
    """out[i, j] = ⟨a_i, b_j⟩."""
    row = tl.program_id(0).to(tl.int64)
    sums = out + row * m
    for begin in range(0, m, FILL):
        columns = begin + tl.arange(0, FILL)
        tl.store(sums + columns, tl.zeros([FILL], tl.float32), mask=columns < m)
    tl.debug_barrier()
    add_scores(values + row * k, indices + row * k, starts, rows, sorted_values, k, sums, BLOCK)


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
    BLOCK: tl.constexpr,
):
    """grad_values[i, s] = Σ over postings (j, v) of the slot's latent of grad[i, j] · v."""
    row = tl.program_id(0).to(tl.int64)
    for slot in range(0, k):
        total = tl.zeros([BLOCK], tl.float32)
        if tl.load(values + row * k + slot) != 0:
            latent = tl.load(indices + row * k + slot)
            end = tl.load(starts + latent + 1)
            for first in range(tl.load(starts + latent), end, BLOCK):
                e = first + tl.arange(0, BLOCK)
                j = tl.load(rows + e, mask=e < end, other=0).to(tl.int64)
                weight = tl.load(sorted_values + e, mask=e < end, other=0.0)
                at = grad + row * stride_n + j * stride_m
                total += tl.load(at, mask=e < end, other=0.0) * weight
        tl.store(grad_values + row * k + slot, tl.sum(total))


Postings = tuple[Tensor, Tensor, Tensor]  # starts, rows, values


def similarity(values: Tensor, indices: Tensor, postings: Postings, m: int) -> Tensor:
    """[n, m] float32 from contiguous float32 codes and the postings of the other side."""
    n, k = values.shape
    out = values.new_empty(n, m)

    def run(config: tuning.Config) -> None:
        similarity_kernel[(n,)](
            values,
            indices,
            *postings,
            out,
            k,
            m,
            FILL=1024,
            enable_fp_fusion=False,  # the CPU rounds every product, too
            **config,
        )

    if out.numel():
        with on_device_of(values):
            dim = len(postings[0]) - 1
            tuning.launch("similarity", (n, m, k, dim), CONFIGS, run)
    return out


def similarity_backward(
    grad: Tensor, values: Tensor, indices: Tensor, postings: Postings
) -> Tensor:
    """The gradient [n, k] of the values, from grad [n, m] of any strides."""
    n, k = values.shape
    grad_values = torch.empty_like(values)
    if n:
        with on_device_of(values):
            similarity_backward_kernel[(n,)](
                grad,
                *grad.stride(),
                values,
                indices,
                *postings,
                grad_values,
                k,
                BLOCK=POSTINGS_AT_ONCE,
                num_warps=1,
            )
    return grad_values
