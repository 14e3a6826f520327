"""SAELens' TopK activation on our kernel: one line in, one line back.

`accelerate()` replaces the forward pass of `sae_lens.saes.topk_sae.TopK`, which TopK autoencoders
and transcoders have as their activation, in training and at inference. The same values and
gradients; of equal pre-activations the one of lower index is kept, where `torch.topk` may keep
either. Everything around it (hooks, losses, decoders) is the package's own, and so is the
activation itself, with a warning, where it has hooks or is a subclass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import csrkern
from csrkern.codes.sparse import SparseCodes
from csrkern.integrations._known import as_size, changed, hooked, surrounded
from csrkern.integrations._patch import Acceleration, Attribute, Change, Patch
from csrkern.ops.validation import FLOATS


def accelerate() -> Acceleration:
    """Run SAELens' TopK activations on csrkern from here on.

    Returns:
        What undoes it: call its `restore()`, or use it as a context manager.

    Raises:
        ImportError: if SAELens is missing, or has no `TopK` where version 6 has it.
    """
    return _patch.accelerate()


def restore() -> None:
    """Undoes every `accelerate`: the package runs its own function again."""
    _patch.restore()


def _changes() -> list[Change]:
    try:
        from sae_lens.saes.topk_sae import TopK
    except ImportError as error:
        raise ImportError(
            f"accelerate needs SAELens 6 or later ({error}); pip install sae-lens"
        ) from error
    return [Attribute(TopK, "forward", functools.partial(_forward, TopK))]


def _forward(known: type, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(self: Any, x: Tensor) -> Tensor:
        def reason() -> str | None:
            return surrounded() or changed(self, known, ("forward",)) or hooked([self])

        if not _patch.serves(self, reason) or not _takes(x, k := as_size(self.k)):
            return original(self, x)
        rows = x.reshape(-1, x.shape[-1])
        codes = csrkern.topk_relu(rows.detach(), k)
        # Gathered by operations of PyTorch, whose gradients can be differentiated again.
        values = torch.where(codes.active, rows.gather(1, codes.indices.long()), 0)
        codes = SparseCodes(values, codes.indices, codes.dim)
        if not self.use_sparse_activations:
            return codes.to_dense().reshape(x.shape)
        matrix = codes.to_torch_coo()
        rows, latents = matrix.indices()
        coordinates = torch.stack([*torch.unravel_index(rows, x.shape[:-1]), latents])
        return torch.sparse_coo_tensor(
            coordinates, matrix.values(), x.shape, is_coalesced=True, check_invariants=False
        )

    return forward


def _takes(x: Any, k: int) -> bool:
    return (
        type(x) is Tensor
        and x.layout == torch.strided
        and x.device.type in ("cpu", "cuda")
        and x.dtype in FLOATS
        and x.dim() > 0
        and x.numel() > 0
        and 1 <= k <= x.shape[-1]
    )


_patch = Patch(_changes)
