"""Fast search: the strongest latents of a query make a shortlist, which all of them score again;
of clustered codes, blocks are left out whose bounds hardly reach the bar.

How many latents, how long a shortlist and how much of a bound is measured on a sample of the
index's own codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from csrkern import _C
from csrkern.arguments import as_float, check_choice, check_int, least_float, thread_count
from csrkern.index.rerank import Refine, Rerank
from csrkern.index.rows import Rows, concatenate_rows
from csrkern.index.segment import Segment

_SAMPLE, _COSTED = 400, 100  # codes that recall and cost are measured on
_TOP_K = 10
_ALL = 2**62
_KEPT = (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.94, 0.97, 0.99)
_FACTORS = (2, 4, 8, 16)
_BOUND_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)


class Plan(NamedTuple):
    """How a fast search makes its shortlist.

    Attributes:
        kept: share of a query's squared norm whose latents, the strongest ones, make it.
        factor: its length over top_k; 0: nothing is scored again.
        bound_share: of the bound of a block of clustered codes, what is compared with the bar.
        recall: found of the sample's best 10.
    """

    kept: float = 1.0
    factor: int = 0
    bound_share: float = 1.0
    recall: float = 1.0

    def options(self, top_k: int) -> dict[str, Any]:
        """For the native search."""
        shortlist = self.factor * top_k
        return {"kept": self.kept, "shortlist": shortlist, "bound_share": self.bound_share}


class Plans:
    """The plans of an index, by the recall asked for: measured at first use.

    They are measured again once there are twice or half as many codes.
    """

    def __init__(self) -> None:
        self._known: dict[float, tuple[int, Plan]] = {}  # and how many codes there were

    def get(self, segments: Sequence[Segment], dim: int, metric: str, recall: float) -> Plan:
        """Return the plan that finds `recall` of the best of these segments."""
        n = sum(len(segment) for segment in segments)
        known = self._known.get(recall)
        if known is None or not known[0] <= 2 * n <= 4 * known[0]:
            known = n, calibrate(segments, dim, metric, recall)
            self._known = {**self._known, recall: known}
        return known[1]

    def recalls(self) -> dict[float, float]:
        """Return what was found of the best, for each recall that was asked for."""
        return {recall: plan.recall for recall, (_, plan) in self._known.items()}


def search_limits(metric: str, query_k: int | None, min_score: float | None) -> dict[str, Any]:
    """Return what every native search takes of these arguments of `InvertedIndex.search`."""
    return {
        "normalize": metric == "cosine",
        "query_k": _ALL if query_k is None else check_int("query_k", query_k, 1, _ALL),
        "min_score": -np.inf if min_score is None else least_float("min_score", min_score),
    }


def check_mode(mode: str, recall: float | None, rerank: Any) -> float | None:
    """Return the share that a fast search is to find; None: the search is exact.

    Raises:
        TypeError, ValueError: if these arguments of `InvertedIndex.search` do not go together.
    """
    check_choice("mode", mode, ("exact", "fast"))
    if recall is not None and mode != "fast":
        raise ValueError("recall: an exact search finds all; give mode='fast' with it")
    if rerank is not None and mode == "fast":
        raise ValueError("rerank: expected mode='exact' with it; its shortlist is exact")
    if rerank is not None and not isinstance(rerank, (Rerank, Refine)):
        raise TypeError(f"rerank: expected a Rerank or Refine, got {type(rerank).__name__}")
    if mode == "exact":
        return None
    share = 0.99 if recall is None else as_float("recall", recall)
    if not 0.5 <= share < 1:
        raise ValueError(
            f"recall: expected 0.5 <= recall < 1, got {recall}; mode='exact' finds all"
        )
    return share


def calibrate(segments: Sequence[Segment], dim: int, metric: str, recall: float) -> Plan:
    """Return the cheapest plan that finds `recall` of the best of a sample of the codes.

    A code that searches for itself finds itself first: it does not count.
    """
    sample, queries = _sample(segments, _SAMPLE)
    if len(sample) == 0:
        return Plan()
    _, costed = _sample(segments, _COSTED)
    natives = [(segment.native, segment.alive) for segment in segments]
    limits = search_limits(metric, None, None)
    limits |= {"top_k": _TOP_K + 1, "num_threads": thread_count(None)}

    def search(plan: Plan) -> np.ndarray:
        _, ids = _C.search(natives, *queries, dim, **limits, **plan.options(_TOP_K + 1))
        return _without(ids, sample)

    def cost(plan: Plan) -> float:
        return float(_C.expected_ns(natives, *costed, dim, **limits, **plan.options(_TOP_K)))

    truth = search(Plan())
    best, least = Plan(), cost(Plan())
    clustered = any(segment.block > 0 for segment in segments)
    shares = _BOUND_SHARES if clustered else (1.0,)
    for factor in (0, *_FACTORS) if clustered else _FACTORS:
        # More latents allow less of the bounds: along that frontier, from one to the other.
        share = 0
        for kept in _KEPT if factor else (1.0,):
            while share < len(shares):
                plan = Plan(kept, factor, shares[share])
                ns = cost(plan)
                if ns < least:
                    plan = plan._replace(recall=_same(truth, search(plan)))
                    if plan.recall < recall:
                        break
                    best, least = plan, ns
                share += 1
    return best


def _same(truth: np.ndarray, ids: np.ndarray) -> float:
    same = (truth[:, :, None] == ids[:, None, :]).any(2) & (truth >= 0)
    return float(same.sum() / max((truth >= 0).sum(), 1))


def _without(ids: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Return the first 10 ids of each row that are not its own, by shifting what follows."""
    order = np.argsort(ids == own[:, None], axis=1, kind="stable")
    return np.take_along_axis(ids, order, 1)[:, :_TOP_K]


def _sample(segments: Sequence[Segment], n: int) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Ids of about n codes, and the codes as rows: values, latents, starts."""
    living = np.array([len(segment) for segment in segments])
    shares = np.minimum(living, -(-n * living // max(living.sum(), 1)))
    ids, rows_of = [], []
    for segment, codes, share in zip(segments, living, shares, strict=True):
        chosen = np.linspace(0, max(codes - 1, 0), share).astype(np.int64)
        docs = chosen if segment.alive is None else np.flatnonzero(segment.mask())[chosen]
        ids.append(docs if segment.native.ids is None else segment.native.ids[docs])
        starts, latents, values = segment.native.rows_of(docs)
        rows_of.append(Rows(values, latents, starts, segment.native.dim))
    rows = concatenate_rows(rows_of)
    assert rows.starts is not None
    return np.concatenate(ids), (rows.values, rows.indices, rows.starts)
