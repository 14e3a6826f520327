"""SAELens' TopK activation on our kernel: one line in, one line back.

`accelerate()` exchanges the forward pass of `sae_lens.saes.topk_sae.TopK`, which TopK autoencoders
and transcoders have as their activation, in training and at inference. The same values and
gradients; of equal pre-activations the one of lower index is kept, where `torch.topk` may keep
either. Everything around it (hooks, losses, decoders) is the package's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import csrkern
from csrkern.integrations.exchange import Change, Exchange
from csrkern.validation import FLOATS


def accelerate() -> Exchange:
    """Runs SAELens' TopK activations on csrkern from here on.

    Returns:
        What undoes it: call its `restore()`, or use it as a context manager.

    Raises:
        ImportError: if SAELens is missing, or has no `TopK` where version 6 has it.
    """
    return _exchange.accelerate()


def restore() -> None:
    """Undoes `accelerate`: the package runs its own function again."""
    _exchange.restore()


def _changes() -> list[Change]:
    try:
        from sae_lens.saes.topk_sae import TopK
    except ImportError as error:
        raise ImportError(
            f"accelerate needs SAELens 6 or later ({error}); pip install sae-lens"
        ) from error
    return [(TopK, "forward", _forward)]


def _forward(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(original)
    def forward(self: Any, x: Tensor) -> Tensor:
        ours = x.device.type in ("cpu", "cuda") and x.dtype in FLOATS and x.dim() > 0
        if not ours or self.k > x.shape[-1] or not x.numel():
            return original(self, x)
        codes = csrkern.topk_relu(x.reshape(-1, x.shape[-1]), self.k)
        if not self.use_sparse_activations:
            return codes.to_dense().reshape(x.shape)
        matrix = codes.to_torch_coo()
        rows, latents = matrix.indices()
        places = torch.stack([*torch.unravel_index(rows, x.shape[:-1]), latents])
        return torch.sparse_coo_tensor(
            places, matrix.values(), x.shape, is_coalesced=True, check_invariants=False
        )

    return forward


_exchange = Exchange(_changes)
