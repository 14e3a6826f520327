"""transpose: the entries of codes sorted by latent, rows ascending within each.

What every backward pass and every product of two sets of codes walks along. A stable
counting sort, so the same codes always give the same lists, for any number of threads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from csrkern import _C
from csrkern._native import call
from csrkern.codes.sparse import SparseCodes, check_codes
from csrkern.ops._registry import LIBRARY, implement, on_gpu, refuse_forward_mode
from csrkern.ops.validation import check_dim, check_slots


class Postings(NamedTuple):
    """For latent l, entries starts[l] .. starts[l + 1] − 1 of the other three arrays.

    Attributes:
        starts: [dim + 1] int64.
        rows: [n · k] int32, ascending within a latent.
        slots: [n · k] int32, where in its row the entry stood.
        values: [n · k] float32. Places from starts[dim] on are unused and hold 0.
    """

    starts: Tensor
    rows: Tensor
    slots: Tensor
    values: Tensor


def transpose(codes: SparseCodes) -> Postings:
    """Return the active entries of codes [n, k] by latent, then by row. Not differentiable.

    Raises:
        TypeError: if `codes` is not SparseCodes.
        IndexError: on a CPU, if an active latent is not in 0..dim-1.
        RuntimeError: in forward-mode differentiation.
    """
    check_codes("codes", codes)
    refuse_forward_mode("transpose")
    return Postings(*torch.ops.csrkern.transpose(codes.values.detach(), codes.indices, codes.dim))


LIBRARY.define(
    "transpose(Tensor values, Tensor indices, SymInt dim) -> (Tensor, Tensor, Tensor, Tensor)"
)


@implement("transpose")
def _transpose(values: Tensor, indices: Tensor, dim: int) -> tuple[Tensor, ...]:
    check_slots(values, indices)
    check_dim(dim)
    if on_gpu(values):
        from csrkern.kernels import transpose as kernels

        return kernels.transpose(values, indices, dim)
    values, indices = values.float().contiguous(), indices.contiguous()
    n, k = values.shape
    starts = indices.new_empty(dim + 1, dtype=torch.int64)
    rows, slots = indices.new_zeros(n * k), indices.new_zeros(n * k)
    lists = starts, rows, slots, values.new_zeros(n * k)
    call(_C.transpose, values, indices, n, k, dim, *lists)
    return lists


@torch.library.register_fake("csrkern::transpose", lib=LIBRARY)
def _transpose_fake(values: Tensor, indices: Tensor, dim: int) -> tuple[Tensor, ...]:
    entries = values.numel()
    return (
        indices.new_empty(dim + 1, dtype=torch.int64),
        indices.new_empty(entries),
        indices.new_empty(entries),
        values.new_empty(entries, dtype=torch.float32),
    )
