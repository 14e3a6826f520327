"""Merge the hits of several shards into those of one index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Hits(NamedTuple):
    """Scores float32 and ids int64, both [m, top_k], as `InvertedIndex.search` returns them."""

    scores: np.ndarray
    ids: np.ndarray

    @staticmethod
    def none(queries: int, top_k: int) -> Hits:
        """Return the hits of an empty index: none."""
        return Hits(
            np.full((queries, top_k), -np.inf, np.float32), np.full((queries, top_k), -1, np.int64)
        )


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
    n_missing = top_k - sum(part.ids.shape[1] for part in parts)
    if n_missing > 0:
        parts = [*parts, Hits.none(len(parts[0].ids), n_missing)]
    scores = np.concatenate([part.scores for part in parts], axis=1)
    ids = np.concatenate([part.ids for part in parts], axis=1)
    # Missing hits have score -inf, so they come last whatever their id.
    order = np.lexsort((ids, -scores), axis=1)[:, :top_k]
    return Hits(np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1))
