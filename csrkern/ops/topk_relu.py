"""topk_relu: the k largest positive entries of every row.

On a CPU a native kernel reads each row twice, once from memory and once from cache: maxima
of disjoint groups give a proven lower bound on the k-th largest entry, entries above it are
collected, and only they are sorted (csrc/cpu/generic/topk_relu.hpp). On a GPU a Triton kernel does
the same (csrkern/kernels/topk_relu.py). float64 goes through the reference, so that gradients
can be checked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from csrkern import reference
from csrkern._native import NATIVE_DTYPES, topk_into
from csrkern.codes.sparse import SparseCodes
from csrkern.ops._registry import LIBRARY, implement, on_gpu, register_autograd
from csrkern.ops.latents import latents_of
from csrkern.ops.validation import (
    check_dim,
    check_k,
    check_latent_mask,
    check_operand,
    check_slots,
    check_tensor,
)


def topk_relu(pre: Tensor, k: int, *, latent_mask: Tensor | None = None) -> SparseCodes:
    """ReLU(TopK(pre)) as sparse codes, without a dense intermediate.

    Args:
        pre: pre-activations [n, h]; float32, float16, bfloat16 or float64, any strides.
        k: slots per row, 1 <= k <= h.
        latent_mask: [h] bool; latents where it is False cannot be selected.

    Returns:
        SparseCodes with values [n, k] in the dtype of `pre`, indices [n, k] int32, dim h.
        NaN sorts as largest, equal values go to the lower index, and a row with fewer than
        k positive entries is padded with value 0 at index 0.

    Differentiable in `pre`: the gradient reaches the positive selected entries, nothing else.

    Raises:
        TypeError: if `pre` is not a floating-point tensor, or `k` not an int.
        ValueError: if `pre` is not 2-D, k is out of range, or the mask has another shape.

    Source: the activation of TopK autoencoders (Makhzani & Frey 2013; Gao et al. 2024) with
    the ReLU of CSR (Wen et al., ICML 2025, arXiv 2503.01776).
    """
    k = check_pre(pre, k, latent_mask)
    values, indices = torch.ops.csrkern.topk_relu(pre, k, latent_mask)
    return SparseCodes(values, indices, pre.shape[1])


def check_pre(pre: Tensor, k: int, latent_mask: Tensor | None) -> int:
    """Check the arguments of `topk_relu`; return k."""
    check_tensor("pre", pre, (None, None))
    check_dim(pre.shape[1])
    check_latent_mask(latent_mask, pre)
    return check_k(k, pre.shape[1], "h")


LIBRARY.define("topk_relu(Tensor pre, SymInt k, Tensor? latent_mask) -> (Tensor, Tensor)")
LIBRARY.define(
    "topk_relu_backward(Tensor grad, Tensor values, Tensor indices, SymInt dim) -> Tensor"
)


@implement("topk_relu")
def _topk_relu(pre: Tensor, k: int, latent_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    check_pre(pre, k, latent_mask)
    if on_gpu(pre):
        from csrkern.kernels import topk_relu as kernels

        if pre.dtype in NATIVE_DTYPES and k <= kernels.MAX_K:
            return kernels.topk_relu(pre, k, latent_mask)
    elif pre.dtype in NATIVE_DTYPES:
        values = pre.new_empty(len(pre), k)
        indices = pre.new_empty(len(pre), k, dtype=torch.int32)
        topk_into(pre, values, indices, latent_mask)
        return values, indices
    # A stable sort of whole rows: to rank more candidates than a kernel takes would cost more.
    codes = reference.topk_relu(pre, k, latent_mask)
    # The slices are views of the whole sort; the operator owns what it returns.
    return codes.values.contiguous(), codes.indices.contiguous()


@implement("topk_relu_backward")
def _topk_relu_backward(grad: Tensor, values: Tensor, indices: Tensor, dim: int) -> Tensor:
    if on_gpu(grad):
        from csrkern.kernels import topk_relu as kernels

        check_slots(values, indices)
        check_operand("grad", grad, values.dtype, values.shape, values.device)
        check_dim(dim)
        return kernels.topk_relu_backward(grad, values, indices, dim)
    check_operand("grad", grad, grad.dtype, values.shape, values.device)
    passed = torch.where(values > 0, grad, torch.zeros_like(grad))
    latents = latents_of(values, indices, dim)
    return passed.new_zeros(len(grad), dim).scatter_add_(1, latents, passed)


@torch.library.register_fake("csrkern::topk_relu", lib=LIBRARY)
def _topk_relu_fake(pre: Tensor, k: int, latent_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    shape = (pre.shape[0], k)
    return pre.new_empty(shape), pre.new_empty(shape, dtype=torch.int32)


@torch.library.register_fake("csrkern::topk_relu_backward", lib=LIBRARY)
def _topk_relu_backward_fake(grad: Tensor, values: Tensor, indices: Tensor, dim: int) -> Tensor:
    return grad.new_empty(grad.shape[0], dim)


def _setup_context(ctx, inputs, output) -> None:
    ctx.dim = inputs[0].shape[1]
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*output)


def _backward(ctx, grad_values: Tensor, _grad_indices) -> tuple[Tensor, None, None]:
    values, indices = ctx.saved_tensors
    return torch.ops.csrkern.topk_relu_backward(grad_values, values, indices, ctx.dim), None, None


register_autograd("topk_relu", _backward, _setup_context)
