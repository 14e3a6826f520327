"""The fingerprint of a SparseAutoencoder, computed once for as long as its weights stay."""

from __future__ import annotations

import weakref
from ctypes import string_at
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from csrkern.identity import digest

if TYPE_CHECKING:
    from csrkern.nn import SparseAutoencoder

SAMPLE = 64  # bytes of a tensor in host memory

Encoder = tuple[Tensor, Tensor, Tensor]
State = tuple[int, int, bytes]


class _Known(NamedTuple):
    tensors: list[weakref.ref[Tensor]]
    states: list[State]
    own: str  # the fingerprint of the model without a partner


_known: weakref.WeakKeyDictionary[SparseAutoencoder, _Known] = weakref.WeakKeyDictionary()


def fingerprint_of(model: SparseAutoencoder, *, alone: bool = False) -> str:
    """Return `SparseAutoencoder.fingerprint`, or with `alone` that without a partner."""
    partner = None if alone else model.partner
    encoder = model.encoder.weight, model.latent_bias, model.pre_bias
    if not all(map(_is_whole, encoder)):
        kinds = ", ".join(f"{type(t).__name__} on {t.device}" for t in encoder)
        raise ValueError(f"fingerprint: expected a model with its weights in memory, got {kinds}")
    known = None if model.training else _known.get(model)
    if known is not None and _are_as_known(encoder, known):
        return of_two(known.own, partner)
    sizes = {name: getattr(model, name) for name in ("input_dim", "hidden_dim", "standardize")}
    with torch.no_grad():
        own = digest(sizes, map(_numbers, encoder))
    if not model.training:
        _known[model] = _Known([weakref.ref(t) for t in encoder], [*map(_state, encoder)], own)
    return of_two(own, partner)


def of_two(own: str, partner: str | None) -> str:
    """Return what two models that share their latents have in common; one alone has its own."""
    return own if partner is None else digest({"models": sorted((own, partner))}, ())


def fingerprint_of_codes(model: SparseAutoencoder, encoder: Encoder) -> str | None:
    """Return the fingerprint for codes that `model` makes now; None where to compute it would cost.

    It would in training, where weights change at every step, and while a function is traced or
    transformed, where tensors stand for others.

    Args:
        encoder: the model's weight, latent_bias and pre_bias: looking them up takes as long as
            comparing them.
    """
    if (
        torch.compiler.is_compiling()
        or model.training
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack()
        or torch._C._is_tracing()
    ):
        return None
    known = _known.get(model)
    if known is not None and _are_as_known(encoder, known):
        return of_two(known.own, model.partner)
    if not all(map(_is_whole, encoder)) or _is_capturing(encoder[0]):
        return None
    return fingerprint_of(model)


def forget(model: SparseAutoencoder) -> None:
    """Compute the fingerprint anew when it is next asked for."""
    _known.pop(model, None)


def _are_as_known(encoder: Encoder, known: _Known) -> bool:
    for tensor, seen, state in zip(encoder, known.tensors, known.states, strict=True):
        if seen() is not tensor or _state(tensor) != state:
            return False
    return True


def _state(tensor: Tensor) -> State:
    """Return where a tensor's data lies, its version and some of its bytes.

    No one of them tells of every change: fused optimizers leave the version as it is, memory is
    used again, and what a GPU holds cannot be read without waiting.
    """
    address = tensor.data_ptr()
    version = -1 if tensor.is_inference() else tensor._version  # inference tensors have none
    if tensor.is_cpu and tensor.is_contiguous():
        return address, version, string_at(address, min(SAMPLE, tensor.nbytes))
    return address, version, b""


def _is_whole(tensor: Tensor) -> bool:
    """Return whether the tensor holds its numbers: those of FSDP and fake ones do not."""
    return type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta and tensor.data_ptr() != 0


def _is_capturing(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def _numbers(tensor: Tensor) -> np.ndarray:
    wide = tensor.detach().to("cpu", torch.float32).contiguous()
    return np.ascontiguousarray(wide.numpy(), dtype="<f4")
