"""decode: the weighted sum of dictionary rows that codes stand for."""

from __future__ import annotations

import torch
from torch import Tensor

from csrkern.codes import SparseCodes
from csrkern.ops import gather, transpose  # noqa: F401  (registers what the operator calls)
from csrkern.ops._registry import LIBRARY, autocast
from csrkern.validation import check_codes, check_same, check_tensor

ops = torch.ops.csrkern

# A code that uses more than 1 / DENSE_BELOW of the latents is decoded by a dense product:
# measured on two AVX-512 cores at d = 768, a gathered multiply-add costs about as much as 16
# in a float32 GEMM.
DENSE_BELOW = 16


def decode(codes: SparseCodes, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Σ_j values_j · weight[indices_j] + bias, [n, d].

    Args:
        codes: SparseCodes [n, k] over h latents.
        weight: dictionary [h, d], one row a latent.
        bias: [d].

    Differentiable in the values, weight and bias. Under autocast it runs in the autocast
    dtype, as a linear layer does.

    Raises:
        TypeError, ValueError: if a tensor has the wrong dtype, device or shape.
    """
    check_codes("codes", codes)
    check_tensor("weight", weight, (codes.dim, None))
    values, weight, bias = autocast(codes.values, weight, bias)
    check_same("weight", weight, "codes.values", values)
    if bias is not None:
        check_tensor("bias", bias, (weight.shape[1],))
        check_same("bias", bias, "weight", weight)
    if codes.k * DENSE_BELOW > codes.dim:
        out = SparseCodes(values, codes.indices, codes.dim).to_dense() @ weight
        return out if bias is None else out + bias
    return ops.decode(values, codes.indices, weight, bias)


LIBRARY.define("decode(Tensor values, Tensor indices, Tensor weight, Tensor? bias) -> Tensor")


@torch.library.impl(LIBRARY, "decode", "CompositeExplicitAutograd")
def _decode(values: Tensor, indices: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return ops.gather_sum(values, indices, weight, bias, [values.shape[1]])[0]


@torch.library.register_fake("csrkern::decode", lib=LIBRARY)
def _decode_fake(values, indices, weight, bias):
    return weight.new_empty(values.shape[0], weight.shape[1])


def _setup_context(ctx, inputs, output) -> None:
    values, indices, weight, _ = inputs
    ctx.save_for_backward(values, indices, weight)


def _backward(ctx, grad: Tensor):
    values, indices, weight = ctx.saved_tensors
    needs_values, _, needs_weight, needs_bias = ctx.needs_input_grad
    k = values.shape[1]
    grad_values = grad_weight = grad_bias = None
    if needs_values:
        grad_values = ops.gather_dot(values, indices, weight, grad[None], [k]).to(values.dtype)
    if needs_weight:
        starts, rows, slots, _ = ops.transpose(values, indices, weight.shape[0])
        grad_weight = ops.scatter_sum(
            starts, rows, slots, weight.shape[0], [grad], [values], [0], [k]
        )
    if needs_bias:
        grad_bias = grad.sum(0)
    return grad_values, None, grad_weight, grad_bias


torch.library.register_autograd(
    "csrkern::decode", _backward, setup_context=_setup_context, lib=LIBRARY
)
