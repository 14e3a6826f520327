"""A mode that refuses operators for which the host must wait for a GPU."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# Their result, or its shape, depends on what tensors hold.
WAITING = {
    aten._local_scalar_dense,
    aten.bincount,
    aten.equal,
    aten.is_nonzero,
    aten.masked_select,
    aten.nonzero,
    aten.repeat_interleave,
    aten._unique,
    aten._unique2,
    aten.unique_consecutive,
    aten.unique_dim,
}


class NoWaiting(TorchDispatchMode):
    """Raises where an operator would wait; what runs inside a csrkern operator is not seen."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waits = func.overloadpacket in WAITING
        if func.overloadpacket in (aten.index, aten.index_put, aten.index_put_):
            waits = any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
        if waits:
            raise AssertionError(f"{func} makes the host wait for the device")
        return func(*args, **(kwargs or {}))
