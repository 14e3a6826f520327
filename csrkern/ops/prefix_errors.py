"""prefix_errors: the reconstruction error of a code at every k, in one pass over its slots.

A running residual of each row passes the slots once, so nothing of n · k · d numbers is held. The
backward pass starts from the last residual and walks back: the residual of one slot less is that
of this one plus what the slot adds, and the sum of the weighted residuals so far is all that the
gradients of value and dictionary row need. On a CPU a thread takes a stripe of columns and all rows
in their order (csrc/cpu/ops/prefix_errors.cpp): no atomics, and no transpose.
"""

from __future__ import annotations

import torch
from torch import Tensor

from csrkern import _C, reference
from csrkern._native import NATIVE_DTYPES, call
from csrkern.codes.sparse import SparseCodes, check_codes
from csrkern.ops._registry import LIBRARY, autocast, autocasts, implement, on_gpu, register_autograd
from csrkern.ops.gather import adjacent_columns
from csrkern.ops.latents import latents_of
from csrkern.ops.similarity import codes_arguments, contiguous_codes
from csrkern.ops.validation import check_operand, check_same, check_slots, check_tensor

ops = torch.ops.csrkern


def prefix_errors(
    x: Tensor, codes: SparseCodes, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Return the mean squared error of codes at every k, 1 to codes.k.

    Entry k - 1 is the mean over rows and columns of
    (x - decode(codes.truncate(k), weight, bias))². Any loss over several k is a weighted sum of
    entries: `errors.mean()` trains all of them alike, `errors[-1]` the last one.

    Args:
        x: embeddings [n, d].
        codes: SparseCodes [n, k] over h latents.
        weight: dictionary [h, d], one row a latent.
        bias: [d].

    Returns:
        [codes.k]. Sums run in float32 for float16 and bfloat16 arguments, and the result has their
        dtype; under autocast it is float32, as of PyTorch's losses.

    Differentiable in x, the values, weight and bias. Time and memory are about those of decoding
    at codes.k alone: forward one pass over the dictionary rows that codes name, backward another.

    Raises:
        TypeError, ValueError: if a tensor has the wrong dtype, device or shape.
        IndexError: on a CPU, if an active latent is not in 0..h-1.

    Source: a loss over all k, for hierarchical TopK autoencoders: Balagansky et al. 2025
    (arXiv 2505.24473).
    """
    check_codes("codes", codes)
    check_tensor("x", x, (None, None))
    n, d = x.shape
    if codes.values.shape[0] != n:
        raise ValueError(
            f"codes: expected {n} rows, one for each row of x, got {codes.values.shape[0]}"
        )
    check_tensor("weight", weight, (codes.dim, d))
    check_same("weight", weight, "x", x)
    if bias is not None:
        check_tensor("bias", bias, (d,))
        check_same("bias", bias, "x", x)
        x = x.to(torch.promote_types(x.dtype, bias.dtype))  # unlike under autocast alone
        bias = bias.to(x.dtype)
    values, table = autocast(codes.values, weight)
    check_same("weight", table, "codes.values", values)
    errors, _ = ops.prefix_errors(x, values, codes.indices, table, bias)
    return errors if autocasts(x.device.type) else errors.to(x.dtype)


# Returns errors [k] and the residuals of the last prefix [n, d], which the backward pass begins
# with; both float32, or float64 for float64.
LIBRARY.define(
    "prefix_errors(Tensor x, Tensor values, Tensor indices, Tensor weight, Tensor? bias) "
    "-> (Tensor, Tensor)"
)
# Gradients of values, weight and the residuals, from `weights` [k]: 2 / (n d) of the errors' own.
LIBRARY.define(
    "prefix_errors_backward(Tensor weights, Tensor residual, Tensor values, Tensor indices, "
    "Tensor weight) -> (Tensor, Tensor, Tensor)"
)


def _sum_dtype(weight: Tensor) -> torch.dtype:
    return torch.float32 if weight.dtype in NATIVE_DTYPES else weight.dtype


def _check_operands(values: Tensor, indices: Tensor, weight: Tensor, n: int) -> None:
    check_slots(values, indices)
    check_tensor("weight", weight, (None, None))
    check_operand("weight", weight, weight.dtype, weight.shape, values.device)
    if values.shape[0] != n:
        raise ValueError(f"values: expected {n} rows, got {values.shape[0]}")


@implement("prefix_errors")
def _prefix_errors(
    x: Tensor, values: Tensor, indices: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    check_tensor("x", x, (None, None))
    _check_operands(values, indices, weight, len(x))
    dim, d = weight.shape
    check_operand("x", x, x.dtype, (len(x), d), values.device)
    if bias is not None:
        check_operand("bias", bias, x.dtype, (d,), x.device)
    residual = x.to(_sum_dtype(weight), copy=True, memory_format=torch.contiguous_format)
    if bias is not None:
        residual -= bias
    if weight.dtype not in NATIVE_DTYPES:
        code = SparseCodes(values, indices, dim)
        errors = reference.prefix_errors(residual, code, weight)
        return errors, residual - reference.decode(code, weight)
    table = adjacent_columns(weight)
    if on_gpu(values):
        from csrkern.kernels import prefix_errors as kernels

        return kernels.prefix_errors(values, indices, table, residual), residual
    sums = residual.new_empty(values.shape[1], dtype=torch.float64)
    values, indices = contiguous_codes(values, indices)
    codes = codes_arguments(values, indices, dim)
    rows = NATIVE_DTYPES[table.dtype], table, table.stride(0), d
    call(_C.prefix_errors, codes, *rows, residual, sums)
    return (sums / residual.numel()).float(), residual


@implement("prefix_errors_backward")
def _prefix_errors_backward(
    weights: Tensor, residual: Tensor, values: Tensor, indices: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    check_tensor("residual", residual, (None, None))
    _check_operands(values, indices, weight, len(residual))
    (n, k), (dim, d) = values.shape, weight.shape
    dtype = _sum_dtype(weight)
    check_operand("residual", residual, dtype, (n, d), values.device)
    check_operand("weights", weights, dtype, (k,), values.device)
    residual = residual.contiguous()
    if weight.dtype not in NATIVE_DTYPES:
        return _dense_backward(weights, residual, values, indices, weight)
    table, weights = adjacent_columns(weight), weights.contiguous()
    if on_gpu(values):
        from csrkern.kernels import prefix_errors as kernels

        return kernels.prefix_errors_backward(weights, residual, values, indices, table)
    values, indices = contiguous_codes(values, indices)
    codes = codes_arguments(values, indices, dim)
    rows = NATIVE_DTYPES[table.dtype], table, table.stride(0), d
    grads = torch.empty_like(values), residual.new_zeros(dim, d), torch.empty_like(residual)
    call(_C.prefix_errors_backward, codes, *rows, residual, weights, *grads)
    return grads


def _dense_backward(
    weights: Tensor, residual: Tensor, values: Tensor, indices: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grad_values, grad_weight = torch.zeros_like(values), torch.zeros_like(weight)
    total = torch.zeros_like(residual)
    latents = latents_of(values, indices, len(weight))
    for slot in reversed(range(values.shape[1])):
        total = total + weights[slot] * residual
        value, rows = values[:, slot, None], weight[latents[:, slot]]
        active = value != 0
        grad_values[:, slot] = -torch.where(active, rows * total, 0).sum(1)
        grad_weight.index_add_(0, latents[:, slot], -value * total)
        residual = residual + torch.where(active, value * rows, 0)
    return grad_values, grad_weight, total


@torch.library.register_fake("csrkern::prefix_errors", lib=LIBRARY)
def _prefix_errors_fake(x, values, indices, weight, bias):
    dtype = _sum_dtype(weight)
    return x.new_empty(values.shape[1], dtype=dtype), x.new_empty(x.shape, dtype=dtype)


@torch.library.register_fake("csrkern::prefix_errors_backward", lib=LIBRARY)
def _prefix_errors_backward_fake(weights, residual, values, indices, weight):
    return tuple(residual.new_empty(t.shape) for t in (values, weight, residual))


def _setup_context(ctx, inputs, output) -> None:
    x, values, indices, weight, bias = inputs
    _, residual = output
    ctx.mark_non_differentiable(residual)
    ctx.dtypes = [None if t is None else t.dtype for t in (x, values, weight, bias)]
    # The gradients of x and bias depend on them by the residual alone, which has no gradient.
    in_residual = [t for t in (x, bias) if t is not None and t.requires_grad]
    ctx.save_for_backward(residual, values, indices, weight, *in_residual)


def _backward(ctx, grad_errors: Tensor, _grad_residual):
    residual, *codes_and_weight = ctx.saved_tensors[:4]
    x, values, weight, bias = ctx.dtypes
    weights = 2 * grad_errors / residual.numel()
    grad_values, grad_weight, grad_x = ops.prefix_errors_backward(
        weights, residual, *codes_and_weight
    )
    grad_bias = None if bias is None else -grad_x.sum(0).to(bias)
    return grad_x.to(x), grad_values.to(values), None, grad_weight.to(weight), grad_bias


register_autograd("prefix_errors", _backward, _setup_context)
