"""similarity: the inner products between two sets of codes.

On a CPU each row of the result is summed from the postings of its latents
(csrc/cpu/ops/similarity.cpp): only pairs of active entries cost a multiply-add, and the rest is
writing zeros. The gradient of either side reads its rows of the incoming gradient at the same
places. float64 goes through the reference, so that gradients can be checked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from csrkern import _C, reference
from csrkern._native import address, call
from csrkern.codes.sparse import SparseCodes, check_codes
from csrkern.ops import transpose  # noqa: F401  (registers what the kernels call)
from csrkern.ops._registry import LIBRARY, autocast, implement, on_gpu, register_autograd
from csrkern.ops.validation import check_operand, check_same, check_slots


def similarity(a: SparseCodes, b: SparseCodes) -> Tensor:
    """Return a · bᵀ, [n, m], for codes a [n, k] and b [m, k'] over the same latents.

    Differentiable in both sets of values. float16 and bfloat16 codes are summed in float32 and
    the result is rounded once; under autocast it comes in the autocast dtype, as a matrix
    product does.

    Raises:
        TypeError, ValueError: if either is not SparseCodes, or they differ in dim, dtype or
            device.
        IndexError: on a CPU, if an active latent of either is not in 0..dim-1.
    """
    check_codes("a", a)
    check_codes("b", b, a.dim)
    values_a, values_b = autocast(a.values, b.values)
    check_same("b.values", values_b, "a.values", values_a)
    if values_a.dtype == torch.float64 or values_a.device.type not in ("cpu", "cuda"):
        return reference.similarity(a, b)
    out = torch.ops.csrkern.similarity(
        values_a.float(), a.indices, values_b.float(), b.indices, a.dim
    )
    return out.to(values_a.dtype)


def contiguous_codes(values: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """float32 values and indices [n, k], checked, as `codes_arguments` takes them."""
    check_slots(values, indices)
    return values.float().contiguous(), indices.contiguous()


def contiguous_sides(
    values_a: Tensor, indices_a: Tensor, values_b: Tensor, indices_b: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return `contiguous_codes` of both sets, which are on one device."""
    if values_a.device != values_b.device:
        raise ValueError(f"values_b is on {values_b.device} but values_a is on {values_a.device}")
    return contiguous_codes(values_a, indices_a), contiguous_codes(values_b, indices_b)


def codes_arguments(values: Tensor, indices: Tensor, dim: int) -> tuple[int, int, int, int, int]:
    """Contiguous codes as the native kernels take them."""
    return address(values), address(indices), *values.shape, dim


def postings(values: Tensor, indices: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the transposed codes as the native kernels take them: starts, rows, values."""
    starts, rows, _, sorted_values = torch.ops.csrkern.transpose(values, indices, dim)
    return starts, rows, sorted_values


LIBRARY.define(
    "similarity(Tensor values_a, Tensor indices_a, Tensor values_b, Tensor indices_b, SymInt dim)"
    " -> Tensor"
)
LIBRARY.define(
    "similarity_backward(Tensor grad, Tensor values_a, Tensor indices_a, Tensor values_b, "
    "Tensor indices_b, SymInt dim) -> Tensor"
)


@implement("similarity")
def _similarity(
    values_a: Tensor, indices_a: Tensor, values_b: Tensor, indices_b: Tensor, dim: int
) -> Tensor:
    a, b = contiguous_sides(values_a, indices_a, values_b, indices_b)
    of_b = postings(*b, dim)
    if on_gpu(values_a):
        from csrkern.kernels import similarity as kernels

        return kernels.similarity(a, b, of_b)
    out = a[0].new_empty(len(values_a), len(values_b))
    lists = tuple(map(address, of_b))
    call(_C.similarity, codes_arguments(*a, dim), lists, len(values_b), out)
    return out


@implement("similarity_backward")
def _similarity_backward(
    grad: Tensor,
    values_a: Tensor,
    indices_a: Tensor,
    values_b: Tensor,
    indices_b: Tensor,
    dim: int,
) -> Tensor:
    """Return the gradient of values_a, from grad [n, m] of any strides."""
    a, b = contiguous_sides(values_a, indices_a, values_b, indices_b)
    of_b, m = postings(*b, dim), len(values_b)
    check_operand("grad", grad, torch.float32, (len(values_a), m), values_a.device)
    if on_gpu(grad):
        from csrkern.kernels import similarity as kernels

        return kernels.similarity_backward(grad, *a, of_b)
    grad_values = torch.empty_like(a[0])
    lists = tuple(map(address, of_b))
    sides = codes_arguments(*a, dim), lists, m
    call(_C.similarity_backward, *sides, grad, *grad.stride(), grad_values)
    return grad_values


@torch.library.register_fake("csrkern::similarity", lib=LIBRARY)
def _similarity_fake(values_a, indices_a, values_b, indices_b, dim):
    return values_a.new_empty(values_a.shape[0], values_b.shape[0])


@torch.library.register_fake("csrkern::similarity_backward", lib=LIBRARY)
def _similarity_backward_fake(grad, values_a, indices_a, values_b, indices_b, dim):
    return values_a.new_empty(values_a.shape)


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.dim = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad: Tensor):
    a, b = ctx.saved_tensors[:2], ctx.saved_tensors[2:]
    needs_a, _, needs_b, _, _ = ctx.needs_input_grad
    backward = torch.ops.csrkern.similarity_backward
    grad_a = backward(grad, *a, *b, ctx.dim) if needs_a else None
    grad_b = backward(grad.T, *b, *a, ctx.dim) if needs_b else None
    return grad_a, None, grad_b, None, None


register_autograd("similarity", _backward, _setup_context)
