"""EleutherAI sparsify's TopK encoder and its decoder on our kernels: one line in, one line back.

`accelerate()` replaces two functions that `sparsify`'s `SparseCoder` calls:

- `fused_encoder`, for activation "topk": the same latents, values and gradients. The latents of a
  row come by value descending. In batches with a row of fewer than k positive pre-activations,
  torch.topk chooses, as in the package, where gradients pass through places of value 0, too.
- `decoder_impl`: the same sums, summed in the order of the places. The package's own needs a GPU
  where Triton is installed, or SPARSIFY_DISABLE_TRITON=1.

The checkpoints it trains are read by `csrkern.integrations.checkpoints.load_sparsify`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import csrkern
from csrkern.codes.sparse import SparseCodes
from csrkern.integrations._known import as_size, surrounded
from csrkern.integrations._patch import Acceleration, Attribute, Change, Patch
from csrkern.ops.encode import encoder_gradients
from csrkern.ops.validation import FLOATS


def accelerate() -> Acceleration:
    """Run sparsify's TopK autoencoders on csrkern from here on.

    Returns:
        What undoes it: call its `restore()`, or use it as a context manager.

    Raises:
        ImportError: if sparsify (PyPI: eai-sparsify) is missing, or without these functions.
    """
    return _patch.accelerate()


def restore() -> None:
    """Undoes every `accelerate`: the package runs its own functions again."""
    _patch.restore()


def _changes() -> list[Change]:
    try:
        from sparsify import sparse_coder
        from sparsify.fused_encoder import EncoderOutput, FusedEncoder

        vars(sparse_coder)["fused_encoder"], vars(sparse_coder)["decoder_impl"]
    except (ImportError, KeyError) as error:
        raise ImportError(
            f"accelerate needs sparsify, of a version like 1.3 ({error}); pip install eai-sparsify"
        ) from error
    encoder = functools.partial(_encoder, EncoderOutput, FusedEncoder)
    return [
        Attribute(sparse_coder, "fused_encoder", encoder),
        Attribute(sparse_coder, "decoder_impl", _decoder),
    ]


def _encoder(
    output: Callable[..., Any], package: Any, original: Callable[..., Any]
) -> Callable[..., Any]:
    def fused_encoder(input: Tensor, weight: Tensor, bias: Tensor, k: int, activation: str) -> Any:
        size = as_size(k)
        if (
            _patch.serves(original, surrounded)
            and activation == "topk"
            and type(input) is Tensor
            and type(weight) is nn.Parameter
            and (bias is None or type(bias) is nn.Parameter)
            and weight.dim() == input.dim() == 2
            and input.dtype == weight.dtype
            and weight.dtype in FLOATS
            and input.device.type in ("cpu", "cuda")
            and not torch.is_autocast_enabled(input.device.type)
            and len(input)
            and 1 <= size <= len(weight)
        ):
            return output(*_TopK.apply(input, weight, bias, size, package))
        return original(input, weight, bias, k, activation)

    return fused_encoder


class _TopK(torch.autograd.Function):
    """As the package's: pre-activations are for looking at, gradients pass through the values."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, k: int, package: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        pre_acts = F.linear(input, weight, bias).relu_()
        codes = csrkern.topk_relu(pre_acts, k)
        values, indices = codes.values, codes.indices.long()
        if not bool((values[:, -1] > 0).all()):
            values, indices = torch.topk(pre_acts, k, dim=-1, sorted=False)
        ctx.package = package
        ctx.save_for_backward(input, weight, bias, indices)
        ctx.mark_non_differentiable(indices, pre_acts)
        return values, indices, pre_acts

    @staticmethod
    def backward(ctx: Any, grad_values: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # gradients of gradients are asked for
            return ctx.package.backward(ctx, grad_values, *others)
        input, weight, _, indices = ctx.saved_tensors
        used = torch.ones_like(grad_values)  # gradients pass through every place
        needs = (*ctx.needs_input_grad[:3], False)
        grads = encoder_gradients(input, weight, None, used, indices.int(), grad_values, needs)
        return (*grads[:3], None, None)


def _decoder(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def decoder_impl(top_indices: Tensor, top_acts: Tensor, W_dec: Tensor) -> Tensor:
        """W_dec [d, h], as the package hands it over: the transpose of its weight."""
        if (
            _patch.serves(original, surrounded)
            and type(top_acts) is type(top_indices) is Tensor
            and type(W_dec) in (Tensor, nn.Parameter)
            and W_dec.dim() == top_acts.dim() == 2
            and top_indices.shape == top_acts.shape
            and top_indices.dtype in (torch.int32, torch.int64)
            and top_acts.dtype == W_dec.dtype
            and W_dec.dtype in FLOATS
            and top_indices.device == top_acts.device == W_dec.device
            and W_dec.device.type in ("cpu", "cuda")
            and top_acts.numel()
            and top_acts.shape[1] <= W_dec.shape[1]
            and _decodes(top_indices, top_acts, W_dec.shape[1])
        ):
            codes = SparseCodes(top_acts, top_indices.int(), W_dec.shape[1])
            # The package's sums are in the dtype of its weight under autocast, too.
            with torch.autocast(W_dec.device.type, enabled=False):
                return csrkern.decode(codes, W_dec.mT)
        return original(top_indices, top_acts, W_dec)

    return decoder_impl


def _decodes(indices: Tensor, acts: Tensor, dim: int) -> bool:
    """Whether latents are in range, and values such that ours has the package's gradient."""
    low, high = torch.aminmax(indices)
    least = acts.detach().min()
    # Our decoder takes a value of 0 for an empty place, whose value gets no gradient.
    values = least > 0 if acts.requires_grad else least >= 0
    return bool((low >= 0) & (high < dim) & values)


_patch = Patch(_changes)
