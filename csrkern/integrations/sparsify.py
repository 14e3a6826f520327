"""EleutherAI sparsify's TopK encoder and its decoder on our kernels: one line in, one line back.

`accelerate()` exchanges two functions that `sparsify`'s `SparseCoder` calls:

- `fused_encoder`, for activation "topk": the same latents, values and gradients. The latents of a
  row come by value descending; where fewer than k pre-activations of a row are positive, the
  remaining places hold value 0 at latent 0, and no gradient.
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
from torch import Tensor

import csrkern
from csrkern.codes import SparseCodes
from csrkern.integrations.exchange import Change, Exchange
from csrkern.ops.encode import encoder_gradients


def accelerate() -> Exchange:
    """Runs sparsify's TopK autoencoders on csrkern from here on.

    Returns:
        What undoes it: call its `restore()`, or use it as a context manager.

    Raises:
        ImportError: if sparsify (PyPI: eai-sparsify) is missing, or without these functions.
    """
    return _exchange.accelerate()


def restore() -> None:
    """Undoes `accelerate`: the package runs its own functions again."""
    _exchange.restore()


def _changes() -> list[Change]:
    try:
        from sparsify import sparse_coder
        from sparsify.fused_encoder import EncoderOutput

        vars(sparse_coder)["fused_encoder"], vars(sparse_coder)["decoder_impl"]
    except (ImportError, KeyError) as error:
        raise ImportError(
            f"accelerate needs sparsify, of a version like 1.3 ({error}); pip install eai-sparsify"
        ) from error
    return [
        (sparse_coder, "fused_encoder", functools.partial(_encoder, EncoderOutput)),
        (sparse_coder, "decoder_impl", _decoder),
    ]


def _encoder(output: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def fused_encoder(input: Tensor, weight: Tensor, bias: Tensor, k: int, activation: str) -> Any:
        plain = type(weight) is torch.nn.Parameter and input.dtype == weight.dtype
        autocast = torch.is_autocast_enabled(input.device.type)
        if activation != "topk" or not plain or autocast or input.dim() != 2:
            return original(input, weight, bias, k, activation)
        return output(*_TopK.apply(input, weight, bias, k))

    return fused_encoder


class _TopK(torch.autograd.Function):
    """As the package's: pre-activations are for looking at, gradients pass through the values."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, k: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        pre_acts = F.relu(F.linear(input, weight, bias))
        codes = csrkern.topk_relu(pre_acts, k)
        ctx.save_for_backward(input, weight, codes.values, codes.indices)
        indices = codes.indices.long()
        ctx.mark_non_differentiable(indices, pre_acts)
        return codes.values, indices, pre_acts

    @staticmethod
    def backward(ctx: Any, grad_values: Tensor, *_others: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, values, indices = ctx.saved_tensors
        needs = (*ctx.needs_input_grad[:3], False)
        grads = encoder_gradients(input, weight, None, values, indices, grad_values, needs)
        return (*grads[:3], None)


def _decoder(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def decoder_impl(top_indices: Tensor, top_acts: Tensor, W_dec: Tensor) -> Tensor:
        """W_dec [d, h], as the package hands it over: the transpose of its weight."""
        if type(top_acts) is not Tensor or top_acts.dim() != 2:
            return original(top_indices, top_acts, W_dec)
        codes = SparseCodes(top_acts, top_indices.int(), W_dec.shape[1])
        return csrkern.decode(codes, W_dec.mT)

    return decoder_impl


_exchange = Exchange(_changes)
