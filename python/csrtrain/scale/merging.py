"""Merge the hits of several shards into those of one index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Hits(NamedTuple):
    """Scores float32 and ids int64, both [m, top_k], as `InvertedIndex.search` returns them.

    Attributes:
        fine: float32 [m, top_k], scores of the same hits by fine codes; None: not asked for.
    """

    scores: np.ndarray
    ids: np.ndarray
    fine: np.ndarray | None = None

    @staticmethod
    def none(queries: int, top_k: int, fine: bool = False) -> Hits:
        """Return the hits of an empty index: none."""
        scores = np.full((queries, top_k), -np.inf, np.float32)
        ids = np.full((queries, top_k), -1, np.int64)
        return Hits(scores, ids, scores if fine else None)

    def each(self, change: Callable[[np.ndarray], np.ndarray]) -> Hits:
        """Return what `change` makes of every array."""
        fine = None if self.fine is None else change(self.fine)
        return Hits(change(self.scores), change(self.ids), fine)

    def taken(self, order: np.ndarray) -> Hits:
        """Return the hits at places int64 [m, n] of each query."""
        return self.each(lambda side: np.take_along_axis(side, order, 1))

    def refined(self, top_k: int) -> Hits:
        """Return the best `top_k` by `fine`, which become the scores."""
        assert self.fine is not None
        order = np.lexsort((self.ids, -self.fine), axis=1)[:, :top_k]
        best = Hits(self.fine, self.ids).taken(order)
        return merge_hits([best], top_k)


def merge_hits(parts: Sequence[Hits], top_k: int) -> Hits:
    """Return the best `top_k` of hits over different codes: best first, equal scores by lower id.

    A score does not depend on the other codes of an index, so this equals the result of one index
    over all codes, to the id and to the bit.
    """
    if not parts:
        return Hits.none(0, top_k)
    if len(parts) == 1 and parts[0].ids.shape[1] == top_k:
        return parts[0]
    # Small shards may return fewer hits.
    fine = parts[0].fine is not None
    n_missing = top_k - sum(part.ids.shape[1] for part in parts)
    if n_missing > 0:
        parts = [*parts, Hits.none(len(parts[0].ids), n_missing, fine)]
    fines = [part.fine for part in parts if part.fine is not None]
    joined = Hits(
        np.concatenate([part.scores for part in parts], axis=1),
        np.concatenate([part.ids for part in parts], axis=1),
        np.concatenate(fines, axis=1) if fines else None,
    )
    # Missing hits have score -inf, so they come last whatever their id.
    return joined.taken(np.lexsort((joined.ids, -joined.scores), axis=1)[:, :top_k])
