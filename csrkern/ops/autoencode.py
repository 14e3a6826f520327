"""autoencode: encode and decode with one weight, at several k, and one backward pass for both.

Codes at a smaller k are the first slots of those at the largest, so one encoder pass and one
pass over the dictionary rows serve every k. The backward pass gathers the gradient of the
values once, transposes the codes once, and writes the gradient of the weight once, with the
encoder's and the decoder's part in the same sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from csrkern.codes.sparse import SparseCodes
from csrkern.ops import gather  # noqa: F401  (registers what is called)
from csrkern.ops._registry import LIBRARY, register_autograd
from csrkern.ops.decode import later_sums
from csrkern.ops.encode import check_encoder, encoder_gradients
from csrkern.ops.validation import check_ks

ops = torch.ops.csrkern


def autoencode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    ks: Sequence[int],
    pre_bias: Tensor | None = None,
    precision: str = "exact",
) -> tuple[SparseCodes, Tensor]:
    """Codes of x, and their reconstructions by the same weight at several k.

    codes = encode(x, weight, bias, k=ks[-1], pre_bias=pre_bias), and for each k of `ks`
    decode(codes.truncate(k), weight, pre_bias).

    Args:
        x: embeddings [n, d].
        weight: encoder weight and dictionary [h, d].
        bias: latent bias [h].
        ks: numbers of active latents, ascending, 1 <= k <= h.
        pre_bias: [d], subtracted before encoding and added after decoding.
        precision: as in `encode`.

    Returns:
        (SparseCodes [n, ks[-1]] over h latents, reconstructions [len(ks), n, d]).

    Differentiable in x, weight, bias and pre_bias, through the values of the codes as well as
    through the reconstructions. Autocast as in `encode`.

    Raises:
        TypeError, ValueError: as `encode`, or if `ks` are not ascending within 1..h.

    Source: the tied autoencoder of CSR (Wen et al., ICML 2025, arXiv 2503.01776).
    """
    weight, bias, exact = check_encoder(x, weight, bias, pre_bias, precision)
    h = weight.shape[0]
    ks = check_ks(ks, h, "h")
    values, indices, out = ops.autoencode(x, weight, bias, pre_bias, ks, exact)
    return SparseCodes(values, indices, h), out


LIBRARY.define(
    "autoencode(Tensor x, Tensor weight, Tensor? bias, Tensor? pre_bias, SymInt[] ks, "
    "bool exact) -> (Tensor, Tensor, Tensor)"
)


@torch.library.impl(LIBRARY, "autoencode", "CompositeExplicitAutograd")
def _autoencode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pre_bias: Tensor | None,
    ks: Sequence[int],
    exact: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    values, indices = ops.encode(x, weight, bias, pre_bias, ks[-1], exact)
    shift = None if pre_bias is None else pre_bias.to(weight.dtype)
    return values, indices, ops.gather_sum(values, indices, weight, shift, ks)


@torch.library.register_fake("csrkern::autoencode", lib=LIBRARY)
def _autoencode_fake(x, weight, bias, pre_bias, ks, exact):
    shape = (x.shape[0], ks[-1])
    return (
        weight.new_empty(shape),
        weight.new_empty(shape, dtype=torch.int32),
        weight.new_empty(len(ks), *x.shape),
    )


def _setup_context(ctx, inputs, output) -> None:
    x, weight, _, pre_bias, ks, _ = inputs
    values, indices, _ = output
    ctx.ks = ks
    ctx.mark_non_differentiable(indices)
    ctx.save_for_backward(x, weight, pre_bias, values, indices)


def _backward(ctx, grad_values: Tensor, _grad_indices, grad_out: Tensor):
    x, weight, pre_bias, values, indices = ctx.saved_tensors
    grad_sums = later_sums(grad_out)
    grad_values = grad_values + ops.gather_dot(values, indices, weight, grad_sums, ctx.ks).to(
        values.dtype
    )
    needs = ctx.needs_input_grad[:4]
    *grads, grad_pre_bias = encoder_gradients(
        x, weight, pre_bias, values, indices, grad_values, needs, tied=(list(grad_sums), ctx.ks)
    )
    if grad_pre_bias is not None:
        grad_pre_bias = grad_pre_bias + grad_out.sum((0, 1)).to(grad_pre_bias.dtype)
    return (*grads, grad_pre_bias, None, None)


register_autograd("autoencode", _backward, _setup_context)
