"""What the operator files share: the torch library they register in, and address passing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from csrkern import _C

LIBRARY = torch.library.Library("csrkern", "DEF")

# The native kernels take these; other dtypes go through the reference.
NATIVE_DTYPES = {
    torch.float32: _C.DType.float32,
    torch.float16: _C.DType.float16,
    torch.bfloat16: _C.DType.bfloat16,
}


def address(tensor: Tensor | None) -> int:
    """Where a tensor's data lies, 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors in the autocast dtype of their device, or as they are outside autocast."""
    device = next(t.device.type for t in tensors if t is not None)
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(None if t is None else t.to(dtype) for t in tensors)
