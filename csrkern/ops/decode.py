"""decode: the weighted sum of dictionary rows that codes stand for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from csrkern.codes.sparse import SparseCodes, check_codes
from csrkern.ops import gather, transpose  # noqa: F401  (registers what the operator calls)
from csrkern.ops._registry import LIBRARY, autocast, register_autograd
from csrkern.ops.gather import interval_begins
from csrkern.ops.validation import check_ks, check_same, check_tensor

ops = torch.ops.csrkern

# A code that uses more than 1 / DENSE_BELOW of the latents is decoded by a dense product:
# measured with AVX-512, a gathered multiply-add costs as much as two in a float32 GEMM. On a GPU
# it is gathered at the bandwidth of the L2 cache, which is about 1/100 of tensor cores' rate.
DENSE_BELOW = {"cpu": 2, "cuda": 100}


def decode(
    codes: SparseCodes,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    ks: Sequence[int] | None = None,
) -> Tensor:
    """Σ_j values_j · weight[indices_j] + bias.

    Args:
        codes: SparseCodes [n, k] over h latents.
        weight: dictionary [h, d], one row a latent.
        bias: [d].
        ks: several numbers of slots, ascending, each at most k: decode the code truncated to
            each of them, in one pass.

    Returns:
        [n, d]; with `ks`, [len(ks), n, d].

    An empty slot adds nothing, whatever its row of the dictionary holds. Where the slots are more
    than half of the latents (on a GPU, a hundredth), the sum is a dense product, in which NaN or
    infinity in any row of the dictionary reaches the sums of all codes.

    Differentiable in the values, weight and bias. Under autocast it runs in the autocast
    dtype, as a linear layer does.

    Raises:
        TypeError, ValueError: if a tensor has the wrong dtype, device or shape, or `ks` are not
            ascending within 1..k.
        IndexError: on a CPU, if an active latent is not in 0..h-1; so does the backward pass.
    """
    check_codes("codes", codes)
    check_tensor("weight", weight, (codes.dim, None))
    values, weight, bias = autocast(codes.values, weight, bias)
    check_same("weight", weight, "codes.values", values)
    if bias is not None:
        check_tensor("bias", bias, (weight.shape[1],))
        check_same("bias", bias, "weight", weight)
    ends = [codes.k] if ks is None else check_ks(ks, codes.k, "k")
    if sum(ends) * DENSE_BELOW.get(values.device.type, 100) > codes.dim * len(ends):
        parts = [SparseCodes(values, codes.indices, codes.dim).truncate(end) for end in ends]
        out = torch.stack([part.to_dense() @ weight for part in parts])
        out = out if bias is None else out + bias
    else:
        out = ops.decode(values, codes.indices, weight, bias, ends)
    return out[0] if ks is None else out


LIBRARY.define(
    "decode(Tensor values, Tensor indices, Tensor weight, Tensor? bias, SymInt[] ks) -> Tensor"
)


@torch.library.impl(LIBRARY, "decode", "CompositeExplicitAutograd")
def _decode(
    values: Tensor, indices: Tensor, weight: Tensor, bias: Tensor | None, ks: Sequence[int]
) -> Tensor:
    return ops.gather_sum(values, indices, weight, bias, ks)


@torch.library.register_fake("csrkern::decode", lib=LIBRARY)
def _decode_fake(values, indices, weight, bias, ks):
    return weight.new_empty(len(ks), values.shape[0], weight.shape[1])


def _setup_context(ctx, inputs, output) -> None:
    values, indices, weight, _, ks = inputs
    ctx.ks = ks
    ctx.save_for_backward(values, indices, weight)


def _backward(ctx, grad: Tensor):
    values, indices, weight = ctx.saved_tensors
    needs_values, _, needs_weight, needs_bias, _ = ctx.needs_input_grad
    ends = ctx.ks
    grad_values = grad_weight = grad_bias = None
    grad_sums = later_sums(grad)
    if needs_values:
        grad_values = ops.gather_dot(values, indices, weight, grad_sums, ends).to(values.dtype)
    if needs_weight:
        starts, rows, slots, _ = ops.transpose(values, indices, weight.shape[0])
        sources, scales = list(grad_sums), [values] * len(ends)
        lists = starts, rows, slots, weight.shape[0]
        grad_weight = ops.scatter_sum(*lists, sources, scales, interval_begins(ends), ends)
    if needs_bias:
        grad_bias = grad.sum((0, 1))
    return grad_values, None, grad_weight, grad_bias, None


def later_sums(grads: Tensor) -> Tensor:
    """Return the gradient of the slots between one k and the next, [P, n, d].

    They are part of this reconstruction and all later ones: of the sum of their gradients.
    """
    return grads if len(grads) == 1 else grads.flip(0).cumsum(0).flip(0)


register_autograd("decode", _backward, _setup_context)
