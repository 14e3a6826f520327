"""latents: the indices of codes, checked, for what follows them in plain PyTorch.

Native kernels check the indices that they read themselves. An operator in plain PyTorch may not ask
what a tensor holds, or it could not be compiled; a registered operator may.
"""

from __future__ import annotations

import torch
from torch import Tensor

from csrkern import _C
from csrkern._native import address
from csrkern.ops._registry import LIBRARY
from csrkern.ops.validation import check_dim, check_slots


def latents_of(values: Tensor, indices: Tensor, dim: int) -> Tensor:
    """Return the latent of each slot, int64 [n, k], and 0 in empty slots.

    Raises:
        IndexError: on a CPU, if a slot that is not empty names a latent outside 0..dim-1. A GPU is
            not waited for: there, PyTorch's own operators assert that what they follow is in range.
    """
    latents: Tensor = torch.ops.csrkern.latents(values.detach(), indices, dim)
    return latents


LIBRARY.define("latents(Tensor values, Tensor indices, SymInt dim) -> Tensor")


@torch.library.impl(LIBRARY, "latents", "CompositeExplicitAutograd")
def _latents(values: Tensor, indices: Tensor, dim: int) -> Tensor:
    check_slots(values, indices)
    return torch.where(values != 0, indices, 0).long()


@torch.library.impl(LIBRARY, "latents", "CPU")
def _latents_cpu(values: Tensor, indices: Tensor, dim: int) -> Tensor:
    latents = _latents(values, indices, check_dim(dim))
    if latents.numel():
        low, high = latents.aminmax()
        if int(low) < 0 or int(high) >= dim:
            active, indices = (values != 0).float(), indices.contiguous()
            _C.check_latents(address(active), address(indices), *indices.shape, dim, 1)
    return latents


@torch.library.register_fake("csrkern::latents", lib=LIBRARY)
def _latents_fake(values: Tensor, indices: Tensor, dim: int) -> Tensor:
    return indices.new_empty(indices.shape, dtype=torch.int64)
