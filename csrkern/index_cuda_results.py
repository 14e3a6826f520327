"""What the parts of an index found, as one result: arrays from the host, tensors from a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

_LAST = 2**63 - 1


def merge_arrays(found: Sequence[tuple[np.ndarray, ...]], topk: int) -> tuple[np.ndarray, ...]:
    """The best `topk` by the first array, scores [m, ...] best first, of each of `found`.

    Parts stand by ascending ids, so that a stable order puts equal scores by lower id.
    """
    if len(found) == 1:
        return found[0]
    together = [np.concatenate(arrays, axis=1) for arrays in zip(*found, strict=True)]
    best = np.argsort(-together[0], axis=1, kind="stable")[:, :topk]
    return tuple(np.take_along_axis(array, best, 1) for array in together)


def merge_tensors(found: Sequence[tuple[torch.Tensor, ...]], topk: int) -> tuple[torch.Tensor, ...]:
    """As `merge_arrays`."""
    import torch

    if len(found) == 1:
        return found[0]
    together = [torch.cat(tensors, 1) for tensors in zip(*found, strict=True)]
    best = torch.sort(together[0], dim=1, descending=True, stable=True)[1][:, :topk]
    return tuple(tensor.gather(1, best) for tensor in together)


def rerank_arrays(
    ids: np.ndarray, scores: np.ndarray, topk: int, least: float
) -> tuple[np.ndarray, np.ndarray]:
    """The best `topk` by other scores [m, s], equal ones by lower id; none below `least`."""
    gone = (ids < 0) | (scores < least)
    best = np.lexsort((ids, -scores, gone))[:, :topk]
    scores = np.take_along_axis(np.where(gone, np.float32(-np.inf), scores), best, 1)
    ids = np.take_along_axis(np.where(gone, -1, ids), best, 1)
    missing = ((0, 0), (0, topk - best.shape[1]))
    return (
        np.pad(scores, missing, constant_values=-np.inf),
        np.pad(ids, missing, constant_values=-1),
    )


def rerank_tensors(
    ids: torch.Tensor, scores: torch.Tensor, topk: int, least: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `rerank_arrays`."""
    import torch

    gone = (ids < 0) | (scores < least)
    scores = scores.masked_fill(gone, -torch.inf)
    ids, by_id = torch.sort(ids.masked_fill(gone, _LAST), dim=1, stable=True)
    scores, best = torch.sort(scores.gather(1, by_id), dim=1, descending=True, stable=True)
    gone = gone.gather(1, by_id).gather(1, best)
    ids = ids.gather(1, best).masked_fill(gone, -1)
    missing = (0, max(topk - ids.shape[1], 0))
    return (
        torch.nn.functional.pad(scores[:, :topk], missing, value=-torch.inf),
        torch.nn.functional.pad(ids[:, :topk], missing, value=-1),
    )
