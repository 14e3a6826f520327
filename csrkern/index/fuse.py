"""fuse: one ranking of the results of several searches; NumPy alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from csrkern.arguments import check_choice, check_int, check_not_negative, integers
from csrkern.index.inverted import hits_width

METHODS = ("ranks", "scores")
_RANKS_FROM = 60  # what is added to a rank, as published


def fuse(
    results: Sequence[tuple[Any, Any]],
    top_k: int = 10,
    *,
    weights: Sequence[float] | None = None,
    method: str = "ranks",
) -> tuple[np.ndarray, np.ndarray]:
    """Merge the results of several searches for the same queries into one ranking.

    By "ranks", a document gets w / (60 + rank) from each result that has it (reciprocal rank
    fusion), whatever the scores are like. By "scores", it gets
    w · (score − least) / (best − least), where least and best are of that query's hits in that
    result, and w where all are equal.

    Args:
        results: pairs (scores [n, k], ids [n, k]) as searches return them, best first; k may
            differ. -1 is no hit; an id may come once for each query and result.
        top_k: hits of a query.
        weights: one for each result, at least 0; None: 1 for all.
        method: "ranks" or "scores".

    Returns:
        Scores float32 and ids int64 as `InvertedIndex.search`: best first, equal scores by lower
        id; missing places hold (-inf, -1).

    Raises:
        TypeError, ValueError: if results or arguments are not as expected.

    Source: Cormack, Clarke & Büttcher, SIGIR 2009 (ranks); min-max normalization (scores).

    Example:
        >>> import numpy as np
        >>> words = np.array([[9.0, 4.0]]), np.array([[3, 8]])
        >>> codes = np.array([[0.8, 0.7, 0.6]]), np.array([[8, 5, 3]])
        >>> scores, ids = csrkern.fuse([words, codes], top_k=2)
        >>> ids.tolist()
        [[8, 3]]
    """
    check_choice("method", method, METHODS)
    check_int("top_k", top_k, 1, 2**40)
    pairs = [_checked(i, pair) for i, pair in enumerate(results)]
    if not pairs:
        raise ValueError("results: expected at least one")
    n = len(pairs[0][1])
    for i, (_, ids) in enumerate(pairs):
        if len(ids) != n:
            raise ValueError(f"results[{i}]: expected {n} queries, as in the first, got {len(ids)}")
    shares = [1.0] * len(pairs) if weights is None else list(weights)
    if len(shares) != len(pairs):
        raise ValueError(f"weights: expected one for each of {len(pairs)} results")
    gains = [
        check_not_negative("weights", share) * _gains(scores, ids, method)
        for share, (scores, ids) in zip(shares, pairs, strict=True)
    ]
    ids = np.concatenate([ids for _, ids in pairs], axis=1)
    totals, ids = _added_up(np.concatenate(gains, axis=1), ids)
    return _best(totals, ids, hits_width(top_k, ids.shape[1]))


def _checked(i: int, pair: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return scores float64 and ids int64 [n, k] of a result, one of an id in each row."""
    name = f"results[{i}]"
    if not isinstance(pair, tuple) or len(pair) < 2:
        raise TypeError(f"{name}: expected (scores, ids), got {type(pair).__name__}")
    scores, ids = np.asarray(pair[0], np.float64), integers(name, pair[1]).astype(np.int64)
    if scores.ndim != 2 or scores.shape != ids.shape:
        raise ValueError(
            f"{name}: expected scores and ids [n, k], got {list(scores.shape)} and "
            f"{list(ids.shape)}"
        )
    if not np.isfinite(scores[ids >= 0]).all():
        raise ValueError(f"{name}: expected finite scores")
    order = np.argsort(ids, axis=1, kind="stable")
    ascending = np.take_along_axis(ids, order, 1)
    twice = (ascending[:, 1:] == ascending[:, :-1]) & (ascending[:, 1:] >= 0)
    if twice.any():
        row = int(np.argmax(twice.any(1)))
        again = int(ascending[row, 1:][twice[row]][0])
        raise ValueError(f"{name}: expected an id once for each query, got {again} twice")
    return scores, ids


def _gains(scores: np.ndarray, ids: np.ndarray, method: str) -> np.ndarray:
    """Return what each hit of a result is worth, 0 where there is none."""
    is_hit = ids >= 0
    if method == "ranks":
        return is_hit / (_RANKS_FROM + np.cumsum(is_hit, axis=1))
    best = np.where(is_hit, scores, -np.inf).max(1, keepdims=True, initial=-np.inf)
    least = np.where(is_hit, scores, np.inf).min(1, keepdims=True, initial=np.inf)
    spread = np.where(best > least, best - least, 1.0)
    place = np.where(best > least, scores - least, 1.0)
    return np.where(is_hit, place / spread, 0.0)


def _added_up(gains: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return totals and ids [n, k] with all of an id's gains at its first place, -1 elsewhere."""
    order = np.argsort(ids, axis=1, kind="stable")  # so that gains are added in the order given
    ids, gains = np.take_along_axis(ids, order, 1), np.take_along_axis(gains, order, 1)
    is_first = np.ones(ids.shape, bool)
    is_first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    group = np.cumsum(is_first.ravel()) - 1
    totals = np.zeros(group[-1] + 1 if group.size else 0)
    np.add.at(totals, group, gains.ravel())
    return totals[group].reshape(ids.shape), np.where(is_first, ids, -1)


def _best(totals: np.ndarray, ids: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    scores = np.where(ids >= 0, totals, -np.inf).astype(np.float32)
    order = np.lexsort((ids, -scores), axis=1)[:, :width]
    best = np.full((len(ids), width), -np.inf, np.float32)
    found = np.full((len(ids), width), -1, np.int64)
    best[:, : order.shape[1]] = np.take_along_axis(scores, order, 1)
    found[:, : order.shape[1]] = np.take_along_axis(ids, order, 1)
    return best, found
