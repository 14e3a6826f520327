"""The rounded weight of a model that is not trained, kept from one call of `encode` to the next.

A tensor's version does not tell of every change: steps that a CUDA graph replays, and fused
optimizers, leave it as it is. So only a weight that `keep` was called for is kept, until `forget`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

if TYPE_CHECKING:
    from csrkern.kernels.encode.bounds import RoundedWeight


class _Rounded(NamedTuple):
    bias: weakref.ref[Tensor] | None
    state: tuple[Any, ...]
    made: RoundedWeight


# What was made of each weight to keep, or None before.
_known: MutableMapping[Tensor, _Rounded | None] = WeakTensorKeyDictionary()


def keep(weight: Tensor) -> None:
    """Keep what is made of a weight while its version and its place in memory stay."""
    _known.setdefault(weight, None)


def forget(weight: Tensor) -> None:
    """Round a weight anew at every call."""
    _known.pop(weight, None)


def kept(weight: Tensor, bias: Tensor | None, make: Callable[[], RoundedWeight]) -> RoundedWeight:
    """Return what `make` makes of a weight and a bias, or has made of these on this stream."""
    unversioned = weight.is_inference() or (bias is not None and bias.is_inference())
    if weight not in _known or unversioned or _is_capturing(weight):
        return make()
    known, state = _known[weight], (_state(weight), _state(bias), _stream(weight))
    if known is not None and known.state == state and _same(known.bias, bias):
        return known.made
    _known[weight] = None  # free the old one first
    made = make()
    _known[weight] = _Rounded(None if bias is None else weakref.ref(bias), state, made)
    return made


def _same(known: weakref.ref[Tensor] | None, tensor: Tensor | None) -> bool:
    return tensor is None if known is None else known() is tensor


def _state(tensor: Tensor | None) -> tuple[Any, ...]:
    if tensor is None:
        return ()
    return tensor.data_ptr(), tensor._version, tensor.shape, tensor.stride()


def _stream(tensor: Tensor) -> int:
    # Another stream might read what this one has yet to write.
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0


def _is_capturing(tensor: Tensor) -> bool:
    # A graph is replayed when the weight may have changed.
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()
