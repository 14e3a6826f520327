"""The graph of an index: an edge from each code to those that are most like it, and one back.

A fast search may walk along it (`csrc/cpu/index/walk.cpp`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from csrkern import _C
from csrkern.index.fast import search_limits
from csrkern.index.segment import Form, Segment, arrays_of

# Fewer codes are as well scanned.
LEAST_WORTH_A_GRAPH = 4096
NONE = np.uint32(2**32 - 1)  # in place of a neighbor
_NEAREST = _C.NEIGHBORS // 2
_ROWS = 8192  # searched at a time

Progress = Callable[[int, int], None]


def with_graph(
    segment: Segment, form: Form, threads: int, progress: Progress | None = None
) -> _C.Index:
    """Return the lists of a segment with a graph, if it is worth one and has none yet.

    Args:
        progress: called with the codes whose neighbors are found and the number of all of them.
    """
    native, n = segment.native, segment.documents
    has_lists = len(native.terms) > 0
    if not (has_lists and LEAST_WORTH_A_GRAPH <= n < NONE) or native.neighbors is not None:
        return native
    arrays = arrays_of(segment)
    arrays.pop("alive", None)
    arrays["neighbors"] = edges(_nearest(segment, form.metric, threads, progress))
    return _C.Index(
        n_docs=n,
        dim=native.dim,
        window=segment.window,
        block=segment.block,
        dtype=form.dtype,
        exponent=form.exponent or 0,
        trusted=True,  # a search for each code has checked all lists
        **arrays,
    )


def _nearest(segment: Segment, metric: str, threads: int, progress: Progress | None) -> np.ndarray:
    """Return the documents nearest to each one, best first, -1 where there are no more."""
    native, n = segment.native, segment.documents
    limits = search_limits(metric, None, None) | {"num_threads": threads}
    nearest = np.empty((n, _NEAREST), np.int64)
    for first in range(0, n, _ROWS):
        docs = np.arange(first, min(first + _ROWS, n))
        starts, latents, values = native.rows_of(docs)
        query = values, latents, starts, native.dim
        ids = _C.search([(native, None)], *query, top_k=_NEAREST + 1, **limits)[1]
        found = segment.lookup.find(ids)
        found[ids < 0] = -1
        # A code need not be the best for itself.
        order = np.argsort(found == docs[:, None], axis=1, kind="stable")
        nearest[docs] = np.take_along_axis(found, order, 1)[:, :_NEAREST]
        if progress is not None:
            progress(len(docs) + first, n)
    return nearest


def edges(nearest: np.ndarray) -> np.ndarray:
    """Return the neighbors of each document, uint32 [n, NEIGHBORS]; `NONE` where there are fewer.

    Those are the nearest ones, and documents that it is one of the nearest of: of these the ones
    to which it is nearest, counted in ranks, then those of lower numbers.

    Args:
        nearest: [n, nearest] documents, best first, below 0 where there are no more.
    """
    n, width = nearest.shape
    neighbors = np.full((n, _C.NEIGHBORS), NONE, np.uint32)
    neighbors[:, :width][nearest >= 0] = nearest[nearest >= 0]
    of, rank = np.nonzero(nearest >= 0)
    to = nearest[of, rank]
    mutual = np.zeros(len(of), bool)
    for first in range(0, len(of), _ROWS):
        some = slice(first, first + _ROWS)
        mutual[some] = (nearest[to[some]] == of[some, None]).any(1)
    of, rank, to = of[~mutual], rank[~mutual], to[~mutual]
    order = np.lexsort((of, rank, to))
    of, to = of[order], to[order]
    place = np.arange(len(to)) - np.searchsorted(to, to)
    kept = place < _C.NEIGHBORS - width
    neighbors[to[kept], width + place[kept]] = of[kept]
    return neighbors


__all__ = ["LEAST_WORTH_A_GRAPH", "NONE", "edges", "with_graph"]
