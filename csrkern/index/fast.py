"""Fast search: the strongest latents of a query make a shortlist, which all of them score again;
they may read the strongest postings of their lists alone. Of clustered codes, blocks are left out
whose bounds hardly reach the bar. Where codes have a graph, a search may walk along it.

How many latents, how long a shortlist, which postings, how much of a bound and how far to walk is
measured: on queries that are given, or on a sample of the index's own codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from csrkern import _C
from csrkern.arguments import as_float, check_choice, check_int, least_float, thread_count
from csrkern.index.rerank import Refine, Rerank
from csrkern.index.rows import Rows, concatenate_rows
from csrkern.index.segment import Segment
from csrkern.locks import ForkLock

_SAMPLE, _COSTED = 400, 100  # queries that recall and cost are measured on
_TOP_K = 10
_ALL = 2**62
_KEPT = (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.94, 0.97, 0.99)
_FACTORS = (2, 4, 8, 16)
_KEPT_FOR_SAMPLE = (0.5, 0.65, 0.8, 0.9)
_MOST_OF_A_WALK = 2 * _TOP_K
_UNLIKE = 0.01  # of the queries measured are searched exactly, as if they were of another kind
_WIDTHS = (2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 65, 80, 100, 120, 160, 200)
_BOUND_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
_ONE_SIDED_95 = 1.645  # standard errors


class Plan(NamedTuple):
    """How a fast search makes its shortlist, and the recall that was measured.

    Attributes:
        recall: asked for.
        codes: of the index when it was measured.
        queries: measured.
        own: whether these were codes of the index.
        kept: share of a query's squared norm whose latents, the strongest ones, make it; on a
            walk, find where it begins.
        factor: its length over top_k; 0: nothing is scored again.
        strong: whether they read the strongest postings of each list only.
        bound_share: of the bound of a block of clustered codes, what is compared with the bar.
        width: documents for 10 hits whose neighbors a walk along the graph scores; 0: it is not
            walked.
        least: score of the tenth hit over the query's norm. Where a walk finds less, as for all
            but a hundredth of the queries measured it did not, the query is searched exactly.
        found: mean share of the best 10 that was found.
        at_least: what is found of the best 10 of such queries; see `_at_least`.
        fewest, most: entries of the middle nine tenths of the queries measured. Queries of
            fewer or more are searched exactly.
    """

    recall: float
    codes: int
    queries: int
    own: bool
    kept: float = 1.0
    factor: int = 0
    strong: bool = False
    bound_share: float = 1.0
    width: int = 0
    least: float = 0.0
    found: float = 1.0
    at_least: float = 1.0
    fewest: int = 0
    most: int = _ALL

    def options(self, top_k: int) -> dict[str, Any]:
        """For the native search. Fewer hits than were measured are the first of as many."""
        names = ("kept", "strong", "bound_share", "fewest", "most")
        options = {name: getattr(self, name) for name in names}
        if self.width:
            # Codes beyond the nearest are hardly connected with them: many are found exactly.
            walks = top_k <= _MOST_OF_A_WALK
            options["width"] = -(-self.width * max(top_k, _TOP_K) // _TOP_K) if walks else 0
            options["kept"] = self.kept if walks else 1.0
            return options | {"least": self.least}
        approximate = self.kept < 1 or self.strong or self.bound_share < 1
        if self.factor or (approximate and top_k < _TOP_K):
            options["shortlist"] = max(self.factor, 1) * max(top_k, _TOP_K)
        return options

    def holds(self, n: int) -> bool:
        """Return whether it is still to be used when the index has n codes."""
        return self.codes <= 2 * n <= 4 * self.codes


class Plans:
    """The plans of an index, by the recall asked for.

    One that was measured when the index had more than twice or less than half as many codes is
    not used any more.
    """

    def __init__(self, facts: Iterable[dict[str, Any]] = ()) -> None:
        plans = [Plan(**entry) for entry in facts]
        self._known = {plan.recall: plan for plan in plans}
        self._measuring = ForkLock()

    def facts(self) -> list[dict[str, Any]]:
        """Return what the file of an index keeps: the plans as JSON."""
        facts = [plan._asdict() for plan in self._known.values()]
        for plan in facts:
            if plan["width"] == 0:  # which older releases do not know
                del plan["width"], plan["least"]
        return facts

    def get(self, segments: Sequence[Segment], dim: int, metric: str, recall: float) -> Plan:
        """Return the plan for a recall; measured on the index's own codes if there is none."""
        plan = self._known.get(recall)
        n = sum(len(segment) for segment in segments)
        if plan is None or not plan.holds(n):
            with self._measuring:
                plan = self._known.get(recall)  # by another thread in the meantime
                if plan is None or not plan.holds(n):
                    ids, codes = _sample(segments, _SAMPLE)
                    plan = self._keep(_measure(segments, dim, metric, codes, ids, recall))
        return plan

    def measure(
        self, segments: Sequence[Segment], dim: int, metric: str, queries: Rows, recall: float
    ) -> dict[str, Any]:
        """Measure the plan for a recall on queries; return what `stats` tells of it."""
        some = queries.take(_evenly(queries.n, _SAMPLE))
        with self._measuring:
            return _told(self._keep(_measure(segments, dim, metric, some, None, recall)))

    def stats(self) -> dict[float, dict[str, Any]]:
        """Return what was measured, by the recall asked for."""
        return {recall: _told(plan) for recall, plan in self._known.items()}

    def _keep(self, plan: Plan) -> Plan:
        self._known = {**self._known, plan.recall: plan}
        return plan


def _told(plan: Plan) -> dict[str, Any]:
    of = "codes" if plan.own else "queries"
    return {"at_least": plan.at_least, "found": plan.found, "measured": plan.queries, "of": of}


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
    return None if mode == "exact" else check_recall(recall)


def check_recall(recall: float | None) -> float:
    """Return the share that a fast search is to find."""
    share = 0.99 if recall is None else as_float("recall", recall)
    if not 0.5 <= share < 1:
        raise ValueError(
            f"recall: expected 0.5 <= recall < 1, got {recall}; mode='exact' finds all"
        )
    return share


def _measure(
    segments: Sequence[Segment],
    dim: int,
    metric: str,
    queries: Rows,
    own: np.ndarray | None,
    recall: float,
) -> Plan:
    """Return the cheapest plan that finds `recall` of the best of some queries at least.

    own: their ids, if they are codes of the index: such a code finds itself first, which does
    not count.
    """
    n = sum(len(segment) for segment in segments)
    exact = Plan(recall, n, queries.n, own is not None)
    if n == 0 or queries.n == 0:
        return exact
    natives = [(segment.native, segment.alive) for segment in segments]
    limits = search_limits(metric, None, None) | {"num_threads": thread_count(None)}
    more = 0 if own is None else 1  # hits: the code itself
    costed = queries.take(_evenly(queries.n, _COSTED))
    entries = _entries(queries)
    fewest, most = (int(np.quantile(entries, q, method="nearest")) for q in (0.05, 0.95))
    shortest_first = np.argsort(entries, kind="stable")

    def hits(rows: Rows, top_k: int, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        given = (natives, rows.values, rows.indices, rows.starts, dim)
        scores, ids = _C.search(*given, top_k=top_k, **limits, **options)
        return scores, ids

    def search(rows: Rows, top_k: int, **options: Any) -> np.ndarray:
        return hits(rows, top_k, **options)[1]

    def cost(plan: Plan) -> float:
        given = (natives, costed.values, costed.indices, costed.starts, dim)
        options = plan.options(_TOP_K) | {"fewest": 0, "most": _ALL}
        return float(_C.expected_ns(*given, top_k=_TOP_K, **limits, **options))

    # The longest, by the share of latents and the postings that made it.
    shortlists: dict[tuple[float, bool], np.ndarray] = {}

    def shortlist(plan: Plan) -> np.ndarray:
        """Documents that a plan scores again; the best of them are found."""
        length = plan.factor * _TOP_K + more
        if plan.bound_share < 1 or plan.factor == 0:
            length = length if plan.factor else _TOP_K + more
            return search(queries, length, kept=plan.kept, bound_share=plan.bound_share)
        made_by = plan.kept, plan.strong
        if made_by not in shortlists:
            longest = max(_FACTORS) * _TOP_K + more
            shortlists[made_by] = search(queries, longest, kept=plan.kept, strong=plan.strong)
        return shortlists[made_by][:, :length]

    truth = search(queries, _TOP_K + more)
    if own is not None:
        truth = _without(truth, own)
    best, least = exact, cost(exact)
    # An edge leads to a code of the index from its neighbors, to another query none does.
    walkable = own is None and any(segment.native.neighbors is not None for segment in segments)
    for kept in _KEPT_FOR_SAMPLE if walkable else ():
        for width in _WIDTHS:
            plan = exact._replace(kept=kept, width=width)
            if cost(plan) >= least:
                break
            scores = hits(queries, _TOP_K, kept=kept, width=width)[0]
            near = scores[:, -1] / np.maximum(_norms(queries, metric), 1e-30)
            unlike = float(np.quantile(near, _UNLIKE, method="lower"))
            plan = plan._replace(least=max(0.0, unlike))
            found = _found(truth, search(queries, _TOP_K, **plan.options(_TOP_K)))
            at_least = _at_least(found, shortest_first)
            if at_least >= recall:
                if (ns := cost(plan)) < least:
                    best = plan._replace(found=float(found.mean()), at_least=at_least)
                    best, least = best._replace(fewest=fewest, most=most), ns
                break
    clustered = any(segment.block > 0 for segment in segments)
    shares = _BOUND_SHARES if clustered else (1.0,)
    ways = ((False, factor) for factor in (0, *_FACTORS))
    if not clustered:
        ways = ((strong, factor) for strong in (False, True) for factor in _FACTORS)
    for strong, factor in ways:
        # More latents allow less of the bounds: along that frontier, from one to the other.
        share = 0
        for kept in _KEPT if factor else (1.0,):
            while share < len(shares):
                plan = exact._replace(
                    kept=kept, factor=factor, strong=strong, bound_share=shares[share]
                )
                ns = cost(plan)
                if ns < least:
                    found = _found(truth, shortlist(plan))
                    at_least = _at_least(found, shortest_first)
                    if at_least < recall:
                        break
                    best = plan._replace(found=float(found.mean()), at_least=at_least)
                    best, least = best._replace(fewest=fewest, most=most), ns
                share += 1
    return best


def _found(truth: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return the share of each row of the truth that is among the ids; 1 where it is empty."""
    same = (truth[:, :, None] == ids[:, None, :]).any(2) & (truth >= 0)
    n_true = (truth >= 0).sum(1)
    return np.where(n_true > 0, same.sum(1) / np.maximum(n_true, 1), 1.0)


def _at_least(found: np.ndarray, shortest_first: np.ndarray) -> float:
    """Return a lower bound on the mean of `found` for other queries like these.

    It is one-sided, at 95%, as if one more query had missed one of ten; and no more than the
    means of the queries with fewer and with more entries, of which there may be other shares.
    """
    one_more = np.append(found, 1 - 1 / _TOP_K)
    bound = one_more.mean() - _ONE_SIDED_95 * one_more.std() / np.sqrt(len(one_more))
    halves = np.array_split(found[shortest_first], 2)
    return float(min(bound, *(half.mean() for half in halves if len(half))))


def _entries(rows: Rows) -> np.ndarray:
    """Return how many entries above 0 each row has; the rows have starts."""
    assert rows.starts is not None
    before = np.concatenate([[0], np.cumsum(rows.values > 0)])
    return np.diff(before[rows.starts])


def _norms(rows: Rows, metric: str) -> np.ndarray:
    """Return the norm of each row as it is searched; the rows have starts."""
    if metric == "cosine":
        return np.ones(rows.n)
    assert rows.starts is not None
    of = np.repeat(np.arange(rows.n), np.diff(rows.starts))
    squares = np.bincount(of, rows.values.astype(np.float64) ** 2, minlength=rows.n)
    return np.sqrt(squares)


def _evenly(n: int, most: int) -> np.ndarray:
    return np.linspace(0, max(n - 1, 0), min(n, most)).astype(np.int64)


def _without(ids: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Return the first 10 ids of each row that are not its own, by shifting what follows."""
    order = np.argsort(ids == own[:, None], axis=1, kind="stable")
    return np.take_along_axis(ids, order, 1)[:, :_TOP_K]


def _sample(segments: Sequence[Segment], n: int) -> tuple[np.ndarray, Rows]:
    """Return the ids of about n codes, and the codes."""
    living = np.array([len(segment) for segment in segments])
    shares = np.minimum(living, -(-n * living // max(living.sum(), 1)))
    ids, rows_of = [], []
    for segment, codes, share in zip(segments, living, shares, strict=True):
        chosen = _evenly(int(codes), int(share))
        docs = chosen if segment.alive is None else np.flatnonzero(segment.mask())[chosen]
        ids.append(docs if segment.native.ids is None else segment.native.ids[docs])
        starts, latents, values = segment.native.rows_of(docs)
        rows_of.append(Rows(values, latents, starts, segment.native.dim))
    return np.concatenate(ids), concatenate_rows(rows_of)
