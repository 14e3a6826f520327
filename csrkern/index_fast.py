"""Fast search: a shortlist by the strongest latents of a query, scored again by all of them.

How many latents and how long a shortlist is measured on a sample of the index's own codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from csrkern import _C
from csrkern.index_input import check_choice, thread_count
from csrkern.index_rerank import Rerank
from csrkern.index_segment import Segment

_SAMPLE = 400
_TOPK = 10
_KEPT = (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.94, 0.97, 0.99)
_FACTORS = (2, 4, 8, 16)
# Nanoseconds a posting, and a document of the shortlist: 190 to find it, 140 to score it again.
_NS_POSTING, _NS_DOCUMENT = 0.5, 330


@dataclass(frozen=True)
class Plan:
    """How a fast search makes its shortlist.

    Attributes:
        kept: share of a query's squared norm whose latents, the strongest ones, make it.
        factor: its length over topk; 0: all latents count, and nothing is scored again.
        recall: found of the sample's best 10.
    """

    kept: float
    factor: int
    recall: float

    def options(self, topk: int) -> dict[str, Any]:
        """For the native search."""
        return {"kept": self.kept, "shortlist": self.factor * topk} if self.factor else {}


def check_mode(mode: str, recall: float | None, rerank: Any) -> float | None:
    """The share that a fast search is to find; None: the search is exact.

    Raises:
        TypeError, ValueError: if these arguments of `InvertedIndex.search` do not go together.
    """
    check_choice("mode", mode, ("exact", "fast"))
    if recall is not None and mode != "fast":
        raise ValueError("recall: an exact search finds all; give mode='fast' with it")
    if rerank is None:
        return check_recall(recall) if mode == "fast" else None
    if mode == "fast":
        raise ValueError("rerank: expected mode='exact' with it; its shortlist is exact")
    if not isinstance(rerank, Rerank):
        raise TypeError(f"rerank: expected a csrkern.Rerank, got {type(rerank).__name__}")
    return None


def check_recall(recall: float | None) -> float:
    """The share asked for, 0.99 if None."""
    if recall is None:
        return 0.99
    if isinstance(recall, bool) or not isinstance(recall, (int, float, np.floating)):
        raise TypeError(f"recall: expected a number, got {type(recall).__name__}")
    if not 0.5 <= recall < 1:
        raise ValueError(
            f"recall: expected 0.5 <= recall < 1, got {recall}; mode='exact' finds all"
        )
    return float(recall)


def calibrate(segments: Sequence[Segment], dim: int, metric: str, recall: float) -> Plan:
    """The cheapest plan that finds `recall` of the best of a sample of the codes.

    A code that searches for itself finds itself first: it does not count.
    """
    exact = Plan(1.0, 0, 1.0)
    sample, queries, n_postings = _sample(segments, dim)
    if len(sample) == 0:
        return exact
    natives = [(segment.native, segment.alive) for segment in segments]

    def found(plan: Plan) -> np.ndarray:
        options = {"normalize": metric == "cosine", "query_k": 2**62, "min_score": -np.inf}
        _, ids = _C.search(
            natives,
            *queries,
            dim,
            topk=_TOPK + 1,
            num_threads=thread_count(None),
            **options,
            **plan.options(_TOPK + 1),
        )
        return ids

    truth = _without(found(exact), sample)
    best, least = exact, n_postings(1.0) * _NS_POSTING
    for factor in _FACTORS:
        for kept in _KEPT:
            cost = n_postings(kept) * _NS_POSTING + factor * _TOPK * _NS_DOCUMENT
            if cost >= least:
                break
            hits = _without(found(Plan(kept, factor, 0)), sample)
            same = (truth[:, :, None] == hits[:, None, :]).any(2) & (truth >= 0)
            share = float(same.sum() / max((truth >= 0).sum(), 1))
            if share >= recall:
                best, least = Plan(kept, factor, share), cost
                break
    return best


def _without(ids: np.ndarray, own: np.ndarray) -> np.ndarray:
    """The first 10 ids of each row that are not its own, by shifting what follows."""
    order = np.argsort(ids == own[:, None], axis=1, kind="stable")
    return np.take_along_axis(ids, order, 1)[:, :_TOPK]


def _sample(segments: Sequence[Segment], dim: int) -> tuple[np.ndarray, tuple[Any, ...], Any]:
    """Ids of some codes, the codes as rows, and a function from kept to postings a query."""
    living = np.array([len(segment) for segment in segments])
    shares = np.minimum(living, -(-_SAMPLE * living // max(living.sum(), 1)))
    ids, parts = [], []
    for segment, n, share in zip(segments, living, shares, strict=True):
        chosen = np.linspace(0, n - 1, share).astype(np.int64) if n else np.zeros(0, np.int64)
        docs = chosen if segment.alive is None else np.flatnonzero(segment.mask())[chosen]
        ids.append(docs if segment.native.ids is None else segment.native.ids[docs])
        parts.append(segment.native.rows_of(docs))
    lengths = np.concatenate([np.diff(starts) for starts, _, _ in parts])
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    latents = np.concatenate([part[1] for part in parts])
    values = np.concatenate([part[2] for part in parts])
    rows = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((latents, -values, rows))
    squares = values[order].astype(np.float64) ** 2
    before = np.cumsum(squares) - squares
    before -= before[np.repeat(starts[:-1], lengths)]
    total = np.bincount(rows, squares, len(lengths))[rows]
    df = _frequencies(segments, latents[order])

    def n_postings(kept: float) -> float:
        return float(df[before < kept * total].sum() / max(len(lengths), 1))

    return np.concatenate(ids), (values, latents, starts), n_postings


def _frequencies(segments: Sequence[Segment], latents: np.ndarray) -> np.ndarray:
    """How many documents have each latent."""
    df = np.zeros(len(latents))
    for segment in segments:
        native = segment.native
        if len(native.terms) == 0:
            continue
        n_windows = -(-segment.documents // segment.window)
        of_terms = np.diff(native.offsets[::n_windows].astype(np.int64))
        at = np.minimum(np.searchsorted(native.terms, latents), len(native.terms) - 1)
        df += np.where(native.terms[at] == latents, of_terms[at], 0)
    return df
