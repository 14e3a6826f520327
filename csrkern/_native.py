"""Tensors for the native module: their dtypes, addresses and top-k."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from csrkern import _C

# The native kernels take these; other dtypes go through the reference.
NATIVE_DTYPES = {
    torch.float32: _C.DType.float32,
    torch.float16: _C.DType.float16,
    torch.bfloat16: _C.DType.bfloat16,
}


def address(tensor: Tensor | None) -> int:
    """Where a tensor's data lies, 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a native function: tensors become addresses, None 0; the thread count comes last."""
    given = (address(a) if a is None or isinstance(a, Tensor) else a for a in arguments)
    return function(*given, torch.get_num_threads())


def topk_into(
    pre: Tensor, values: Tensor, indices: Tensor, latent_mask: Tensor | None = None
) -> None:
    """Run the native kernel: codes of pre [n, h], any strides, into contiguous outputs [n, k]."""
    mask = None if latent_mask is None else latent_mask.contiguous()
    matrix = pre, NATIVE_DTYPES[pre.dtype], *pre.shape, *pre.stride()
    call(_C.topk_relu, *matrix, mask, values.shape[1], values, indices)
