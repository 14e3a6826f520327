"""encode: a linear layer and topk_relu in one operator.

Rows go through in blocks whose pre-activations stay in cache, in one scratch buffer, so memory
does not grow with n · h; reusing the buffer also makes the matrix product itself 5% faster than
one that writes [n, h] to fresh memory.

In float32 the matrix product only proposes latents, and those are summed in double
(csrkern/ops/_encode_cpu.py).

On a GPU tensor cores propose, and the same sums in double decide
(csrkern/kernels/encode/verified.py); other dtypes go through in blocks that stay in the L2 cache
(csrkern/kernels/encode/product.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from csrkern import reference
from csrkern._native import NATIVE_DTYPES
from csrkern.arguments import check_choice
from csrkern.codes.sparse import SparseCodes
from csrkern.ops import gather, topk_relu, transpose  # noqa: F401  (registers what is called)
from csrkern.ops._encode_cpu import layer_for
from csrkern.ops._encode_cpu import verified_rows as verified_rows
from csrkern.ops._registry import LIBRARY, autocast, implement, on_gpu, register_autograd
from csrkern.ops.gather import adjacent_columns, interval_begins
from csrkern.ops.validation import check_dim, check_k, check_operand, check_same, check_tensor

ops = torch.ops.csrkern

# Pre-activations of a block: half of a typical L3 cache; products of fewer than 128 rows are
# slower by 6% and more, of more than 1,024 no faster.
BLOCK_BYTES = 16 * 2**20
BLOCK_ROWS = (128, 1024)


def encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    k: int,
    pre_bias: Tensor | None = None,
    precision: str = "exact",
) -> SparseCodes:
    """topk_relu((x - pre_bias) @ weight.T + bias, k), never holding the pre-activations.

    Args:
        x: embeddings [n, d].
        weight: encoder weight [h, d], as in `nn.Linear(d, h).weight`.
        bias: latent bias [h].
        k: slots per row, 1 <= k <= h.
        pre_bias: [d], subtracted from x first.
        precision: "exact" sums the pre-activations of float32 arguments in double, in a fixed
            order, and rounds once: a code does not depend on the rows beside it. A matrix
            product, in bfloat16 where the processor has instructions for it, only finds the
            candidates for these sums. Every row is proved to miss none; `verified_rows` counts
            those that a bfloat16 product could not clear. A GPU gives the same bits, except,
            for k above 1,024, where a sum is within 2^-50 of a rounding boundary. "fast", and
            "exact" for other dtypes, takes what a matrix product in their dtype gives.

    Returns:
        SparseCodes [n, k] over h latents; see `topk_relu`.

    Differentiable in x, weight, bias and pre_bias; the backward pass touches only the selected
    latents. Under autocast it runs in the autocast dtype, as a linear layer does.

    Raises:
        TypeError, ValueError: if a tensor has the wrong dtype, device or shape, k is out of
            range, or precision is another word.

    Source: the encoder of CSR (Wen et al., ICML 2025, arXiv 2503.01776).
    """
    weight, bias, exact = check_encoder(x, weight, bias, pre_bias, precision)
    h = weight.shape[0]  # not len(), which torch.export would make a constant
    k = check_k(k, h, "h")
    values, indices = ops.encode(x, weight, bias, pre_bias, k, exact)
    return SparseCodes(values, indices, h)


def check_encoder(
    x: Tensor, weight: Tensor, bias: Tensor | None, pre_bias: Tensor | None, precision: str
) -> tuple[Tensor, Tensor | None, bool]:
    """Check what `encode` takes; return weight and bias in the dtype to compute in, and how.

    The last is whether float32 pre-activations are summed in double.
    """
    check_tensor("x", x, (None, None))
    check_tensor("weight", weight, (None, x.shape[1]))
    check_same("weight", weight, "x", x)
    for name, value, size in (("bias", bias, weight.shape[0]), ("pre_bias", pre_bias, x.shape[1])):
        if value is not None:
            check_tensor(name, value, (size,))
            check_same(name, value, "x", x)
    check_choice("precision", precision, ("exact", "fast"))
    weight, bias = autocast(weight, bias)
    return weight, bias, precision == "exact"


LIBRARY.define(
    "encode(Tensor x, Tensor weight, Tensor? bias, Tensor? pre_bias, SymInt k, bool exact) "
    "-> (Tensor, Tensor)"
)


def _check_operands(
    x: Tensor, weight: Tensor, bias: Tensor | None, pre_bias: Tensor | None, k: int
) -> None:
    """Check the arguments of the registered operator, where weight and bias may be autocast."""
    check_tensor("x", x, (None, None))
    check_tensor("weight", weight, (None, x.shape[1]))
    check_operand("weight", weight, weight.dtype, weight.shape, x.device)
    if bias is not None:
        check_operand("bias", bias, weight.dtype, (len(weight),), x.device)
    if pre_bias is not None:
        check_tensor("pre_bias", pre_bias, (x.shape[1],))
        check_operand("pre_bias", pre_bias, pre_bias.dtype, pre_bias.shape, x.device)
    check_k(k, check_dim(len(weight)), "h")


@implement("encode")
def _encode(
    x: Tensor, weight: Tensor, bias: Tensor | None, pre_bias: Tensor | None, k: int, exact: bool
) -> tuple[Tensor, Tensor]:
    _check_operands(x, weight, bias, pre_bias, k)
    if weight.dtype not in NATIVE_DTYPES:
        codes = reference.encode(x, weight, bias, k=k, pre_bias=pre_bias)
        return codes.values.contiguous(), codes.indices.contiguous()
    if on_gpu(x):
        from csrkern.kernels.encode import product, verified
        from csrkern.kernels.topk_relu import MAX_K

        weight, exact = adjacent_columns(weight), exact and weight.dtype == torch.float32
        if exact and k <= MAX_K:
            return verified.encode(x, weight, bias, pre_bias, k)
        return product.encode(x, weight, bias, pre_bias, k, exact)
    n, h = len(x), len(weight)
    values = weight.new_empty(n, k)
    indices = weight.new_empty(n, k, dtype=torch.int32)
    layer = layer_for(weight, bias, n, exact)
    for begin, end in _blocks(n, h * weight.itemsize):
        rows = x[begin:end] if pre_bias is None else x[begin:end] - pre_bias
        rows = rows.to(weight.dtype).contiguous()
        layer.encode(rows, values[begin:end], indices[begin:end])
    return values, indices


def _blocks(n: int, row_bytes: int) -> list[tuple[int, int]]:
    least, most = BLOCK_ROWS
    rows = max(least, min(most, BLOCK_BYTES // row_bytes))
    return [(begin, min(begin + rows, n)) for begin in range(0, n, rows)]


@torch.library.register_fake("csrkern::encode", lib=LIBRARY)
def _encode_fake(x, weight, bias, pre_bias, k, exact):
    shape = (x.shape[0], k)
    return weight.new_empty(shape), weight.new_empty(shape, dtype=torch.int32)


def _setup_context(ctx, inputs, output) -> None:
    x, weight, _, pre_bias, _, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, weight, pre_bias, *output)


def _backward(ctx, grad_values: Tensor, _grad_indices):
    x, weight, pre_bias, values, indices = ctx.saved_tensors
    grads = encoder_gradients(
        x, weight, pre_bias, values, indices, grad_values, ctx.needs_input_grad[:4]
    )
    return (*grads, None, None)


def encoder_gradients(
    x: Tensor,
    weight: Tensor,
    pre_bias: Tensor | None,
    values: Tensor,
    indices: Tensor,
    grad_values: Tensor,
    needs: Sequence[bool],
    *,
    tied: tuple[Sequence[Tensor], Sequence[int]] = ((), ()),
) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight, bias and pre_bias, each if needed, from that of the values.

    `tied` adds what a decoder of the same weight gives it, in the same pass over the weight:
    the gradients [n, d] that intervals of slots meet (`later_sums`), and the intervals' ends.
    """
    needs_x, needs_weight, needs_bias, needs_pre_bias = needs
    h, k = weight.shape[0], values.shape[1]
    passed = torch.where(values > 0, grad_values, torch.zeros_like(grad_values))
    grad_x = grad_weight = grad_bias = grad_pre_bias = None
    if needs_x:
        grad_x = ops.gather_sum(passed, indices, weight, None, [k])[0].to(x.dtype)
    if needs_weight or needs_bias or needs_pre_bias:
        starts, rows, slots, _ = ops.transpose(values, indices, h)
    if needs_weight:
        centered = (x if pre_bias is None else x - pre_bias).to(weight.dtype)
        from_decoder, ends = tied
        sources, scales = [centered, *from_decoder], [passed, *[values] * len(ends)]
        begins = [0, *interval_begins(ends)]
        grad_weight = ops.scatter_sum(starts, rows, slots, h, sources, scales, begins, [k, *ends])
    if needs_bias or needs_pre_bias:
        ones = weight.new_ones(x.shape[0], 1)
        grad_bias = ops.scatter_sum(starts, rows, slots, h, [ones], [passed], [0], [k])[:, 0]
        if pre_bias is not None:
            grad_pre_bias = -(grad_bias @ weight).to(pre_bias.dtype)
    return grad_x, grad_weight, grad_bias if needs_bias else None, grad_pre_bias


register_autograd("encode", _backward, _setup_context)
