"""What the operator files share: the torch library they register in, and address passing."""

from __future__ import annotations

from collections.abc import Callable
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


def register_autograd(
    name: str, backward: Callable[..., tuple[Tensor | None, ...]], setup_context: Callable[..., Any]
) -> None:
    """Gives an operator a backward pass that cannot itself be differentiated, and says so."""

    def once(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return backward(ctx, *grads)
        with torch.no_grad():  # create_graph=True: an error if the graph is used
            results = backward(ctx, *grads)
        anchor = torch.empty(0, requires_grad=True)
        return tuple(None if r is None else _Once.apply(r, anchor, name) for r in results)

    torch.library.register_autograd(
        f"csrkern::{name}", once, setup_context=setup_context, lib=LIBRARY
    )


class _Once(torch.autograd.Function):
    """A gradient that has no gradient."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, anchor: Tensor, name: str) -> Tensor:
        ctx.name = name
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(
            f"csrkern.{ctx.name} cannot be differentiated twice; "
            f"csrkern.reference.{ctx.name} can, in plain PyTorch"
        )
