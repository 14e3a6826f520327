"""What the operator files share: the torch library they register in, and address passing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._C._dynamo.eval_frame import get_eval_frame_callback
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction
from torch.utils._pytree import tree_map


class _Library(torch.library.Library):
    """A library whose operators work under `torch.vmap`, slice by slice."""

    def define(self, schema: str, *args: Any, **kwargs: Any) -> str:
        """Define an operator, as `torch.library.Library.define` does."""
        name: str = super().define(schema, *args, **kwargs)
        torch.library.register_vmap(f"csrkern::{name}", _slice_by_slice(name), lib=self)
        return name

    def impl(self, op_name: Any, fn: Any, *args: Any, **kwargs: Any) -> None:
        """Register a kernel, as `torch.library.Library.impl` does."""
        super().impl(op_name, _untraced(fn), *args, **kwargs)


def _untraced(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Return the kernel, which torch.compile leaves alone where it goes on after a graph break.

    Traced, it would pass the native code addresses of tensors that are gone.
    """

    @functools.wraps(kernel)
    def call(*args: Any, **kwargs: Any) -> Any:
        if get_eval_frame_callback() is None:  # nothing is traced
            return kernel(*args, **kwargs)
        return _disabled(kernel)(*args, **kwargs)

    return call


_disabled = functools.cache(torch.compiler.disable)


def _slice_by_slice(name: str) -> Callable[..., Any]:
    """Return the batching rule of an operator: call it for each slice, and stack the results."""
    op = getattr(torch.ops.csrkern, name)

    def rule(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        def slice_of(i: int) -> list[Any]:
            def pick(arg: Any, dim: int | None) -> Any:
                return arg if dim is None else arg.select(dim, i)

            return [tree_map(pick, arg, dims) for arg, dims in zip(args, in_dims, strict=True)]

        parts = [op(*slice_of(i)) for i in range(info.batch_size)]
        if isinstance(parts[0], Tensor):
            return torch.stack(parts), 0
        stacked = tuple(torch.stack(part) for part in zip(*parts, strict=True))
        return stacked, (0,) * len(stacked)

    return rule


LIBRARY = _Library("csrkern", "DEF")
Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def implement(name: str) -> Callable[[Kernel], Kernel]:
    """Register a function as an operator's kernel on CPUs and on GPUs."""

    def register(kernel: Kernel) -> Kernel:
        for key in ("CPU", "CUDA"):
            LIBRARY.impl(name, kernel, key)
        return kernel

    return register


def on_gpu(tensor: Tensor) -> bool:
    """Return whether kernels of a GPU take the tensor."""
    return tensor.is_cuda


def autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Return the tensors in the autocast dtype of their device, or as they are outside autocast."""
    device = next(t.device.type for t in tensors if t is not None)
    if not autocasts(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(None if t is None else t.to(dtype) for t in tensors)


def autocasts(device: str) -> bool:
    """Whether autocast is enabled for this type of device, which may have none."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def register_autograd(
    name: str, backward: Callable[..., tuple[Tensor | None, ...]], setup_context: Callable[..., Any]
) -> None:
    """Give an operator its gradient, in eager mode, under torch.func and under torch.compile.

    What it has no derivative for raises, and names the twin in `csrkern.reference` that does:
    forward mode, and the gradient of the gradient.

    `torch.library.register_autograd` does not serve: forward mode gives zeros there, and
    torch.func.grad is an error.
    """
    op = getattr(torch.ops.csrkern, name).default

    def below_autograd(keyset: Any, args: tuple[Any, ...]) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    class Differentiable(_SingleLevelFunction):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            *inputs, keyset = args
            if torch._C._are_functorch_transforms_active():
                # Outer transforms of torch.func come next, and differentiate as well.
                with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                    output = below_autograd(keyset, tuple(inputs))
            else:
                output = below_autograd(keyset, tuple(inputs))
            setup_context(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            needs = ctx.needs_input_grad
            ctx.needs_input_grad = needs[:-1]  # not of the keyset
            try:
                return *_once(name, backward, ctx, grads), None
            finally:
                ctx.needs_input_grad = needs

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            raise RuntimeError(
                f"csrkern.{name} has no forward-mode derivative (jvp, jacfwd, dual tensors); "
                f"csrkern.reference.{name} has, in plain PyTorch"
            )

    function: Any = Differentiable

    def kernel(keyset: Any, *args: Any) -> Any:
        tracked = torch.is_grad_enabled() and torch._C._any_requires_grad(*args)
        if not tracked and forward_ad._current_level < 0:
            return below_autograd(keyset, args)
        if not torch._C._are_functorch_transforms_active():
            return function.apply(*args, keyset)
        # One of the nested transforms of torch.func, which calls this for each of them.
        with enable_single_level_autograd_function():
            return function.apply(*args, keyset)

    function.__name__ = function.__qualname__ = f"csrkern_{name}"
    LIBRARY.impl(name, kernel, "Autograd", with_keyset=True)


def refuse_forward_mode(name: str) -> None:
    """Raise RuntimeError if an operator without derivatives is called in forward mode."""
    if forward_ad._current_level >= 0:
        raise RuntimeError(
            f"csrkern.{name} has no derivative: call it outside of forward-mode differentiation "
            "(jvp, jacfwd, dual_level)"
        )


def _once(
    name: str, backward: Callable[..., Any], ctx: Any, grads: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """Return the results of a backward pass, whose own derivative is an error."""
    if not torch.is_grad_enabled():
        return backward(ctx, *grads)
    with torch.no_grad():  # create_graph=True: an error if the graph is used
        results = backward(ctx, *grads)
    held = [t for t in (*grads, *ctx.saved_tensors) if t is not None]
    return tuple(None if r is None else _Once.apply(name, r, *held) for r in results)


class _Once(torch.autograd.Function):
    """A gradient that has no gradient, computed from the tensors that follow it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(name: str, grad: Tensor, *held: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.name = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(
            f"csrkern.{ctx.name} cannot be differentiated twice; "
            f"csrkern.reference.{ctx.name} can, in plain PyTorch"
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _Once.backward(ctx)
