"""What an index is asked: searches, and what they are made of.

Inverted lists are cut into windows of documents whose scores fit in the L1 cache; a search
adds up one window after the other, list by list, and keeps what clears the bar of the best
hits so far. See csrc/cpu/index/scan.cpp.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from csrkern import _C
from csrkern.arguments import check_int, least_float, thread_count
from csrkern.identity import check_same_model
from csrkern.index import fast as index_fast
from csrkern.index.collection import Collection
from csrkern.index.filter import allowed_bits
from csrkern.index.rerank import DenseSearch, Rerank
from csrkern.index.rows import Rows, read_rows
from csrkern.index.segment import Segment

_ALL = 2**62
_LEAST_WIDTH = 1024


def hits_width(topk: int, n: int) -> int:
    """Return how many columns results of n codes have: more than n only up to 1,024."""
    return min(topk, max(n, _LEAST_WIDTH))


class Searchable(Collection, DenseSearch):
    """Codes that can be searched for; `InvertedIndex` is how they are made and kept."""

    def __init__(self, *args: Any, **facts: Any) -> None:
        if "form" not in facts:
            name = type(self).__name__
            raise TypeError(
                f"{name}: make an index with {name}.build(codes), build_streaming or load"
            )
        super().__init__(*args, **facts)
        self._plans: dict[float, tuple[int, index_fast.Plan]] = {}  # and how many codes there were

    def search(
        self,
        queries: Any,
        topk: int = 10,
        *,
        filter: Any = None,
        query_k: int | None = None,
        min_score: float | None = None,
        rerank: Rerank | None = None,
        mode: str = "exact",
        recall: float | None = None,
        any_model: bool = False,
        num_threads: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `topk` best documents of each query.

        Args:
            queries: m codes in any form that `build` takes; a pair of arrays needs no dim.
            topk: results for each query; may exceed the number of documents. Above 1,024, no
                more than there are documents.
            filter: which codes may be found: a boolean mask in the order of `ids`, or the ids
                themselves (those that the index does not hold are passed over); None: all. A
                mask [m, n], or a list of m filters, has one for each query. A mask in numbers
                0 and 1 is refused.
            query_k: only this many of a query's strongest latents count (with cosine, they
                are then brought to norm 1); None: all.
            min_score: documents with a lower score are left out.
            rerank: scores the best `rerank.shortlist` documents again, by dense queries.
            mode: "exact", or "fast" to find most of what exact search finds.
            recall: for "fast": the share of the best 10 that searches for a sample of the
                index's own codes must find, 0.99 if None; what was found is in `stats`.
            any_model: take queries of another model than the index's, too.
            num_threads: None: as many as the process may run on. A batch is divided by
                queries; a single query, unless clustered or filtered, by windows.

        Returns:
            scores float32 [m, topk] and ids int64 [m, topk]: best first, equal scores by
            lower id. Documents that share no latent with the query are left out; missing
            places hold score -inf and id -1. With cosine, a score is at most 1.

        Raises:
            TypeError: if an argument has the wrong type.
            ValueError: if an argument is out of range, a query is not valid, (ModelMismatchError)
                another model made the queries, or the index was loaded from a file that is
                damaged.
        """
        segments = self._segments
        share = index_fast.check_mode(mode, recall, rerank)
        rows = self._read("queries", queries, any_model)
        n = sum(len(segment) for segment in segments)
        options: dict[str, Any] = {"topk": hits_width(check_int("topk", topk, 1, 2**40), n)}
        if share is not None:
            options |= self._plan(segments, share).options(options["topk"])
        if rerank is not None:
            check_same_model("rerank", rerank.fingerprint, self.fingerprint, any_model=any_model)
            dense, offsets = rerank.arrays(rows.n, self.dim)
            options |= {"dense": dense, "offsets": offsets, "shortlist": rerank.shortlist}
        args, limits = self._limits(segments, rows, filter, query_k, min_score, num_threads)
        scores, ids = _C.search(*args, **limits, **options)
        return scores, ids

    def search_above(
        self,
        queries: Any,
        min_score: float,
        *,
        filter: Any = None,
        query_k: int | None = None,
        any_model: bool = False,
        num_threads: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All documents of at least `min_score`, exactly; arguments as for `search`.

        Returns:
            starts int64 [m + 1], scores float32 and ids int64 [starts[-1]]: the hits of query
            i, best first, are scores[starts[i] : starts[i + 1]].
        """
        segments = self._segments
        rows = self._read("queries", queries, any_model)
        args, limits = self._limits(segments, rows, filter, query_k, min_score, num_threads)
        starts, scores, ids = _C.search_all(*args, topk=1, **limits)
        return starts, scores, ids

    def _read(self, name: str, codes: Any, any_model: bool) -> Rows:
        rows = read_rows(name, codes, self.dim)
        check_same_model(name, rows.fingerprint, self.fingerprint, any_model=any_model)
        return rows

    def _limits(
        self,
        segments: tuple[Segment, ...],
        rows: Rows,
        filter: Any,
        query_k: int | None,
        min_score: float | None,
        num_threads: int | None,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the native searches have in common."""
        bits = allowed_bits(filter, segments, rows.n)
        natives = [(segment.native, b) for segment, b in zip(segments, bits, strict=True)]
        return (natives, rows.values, rows.indices, rows.starts, self.dim), {
            "normalize": self.metric == "cosine",
            "query_k": _ALL if query_k is None else check_int("query_k", query_k, 1, _ALL),
            "min_score": -np.inf if min_score is None else least_float("min_score", min_score),
            "num_threads": thread_count(num_threads),
        }

    def explain_score(
        self, query: Any, id: int, *, any_model: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """What a document's score for the first of the given queries is made of.

        `any_model` as for `search`.

        Returns:
            latents int32 [j] that both have, and contributions float32 [j], in the order in
            which a search adds them up: their float32 sum is the score, but that a cosine is
            1 at most.

        Raises:
            ValueError: if the index has no such id.
        """
        rows = _first(self._read("query", query, any_model))
        entries = _C.read_query(
            rows.values, rows.indices, rows.starts, self.dim, self.metric == "cosine"
        )
        for segment in self._segments:
            doc = int(segment.find(np.array([check_int("id", id, 0, 2**63 - 1)]))[0])
            if doc >= 0:
                stored = [segment.native.value(doc, int(latent)) for latent in entries[0]]
                both = np.array(stored, np.float32) > 0
                with np.errstate(all="ignore"):  # as the search multiplies
                    products = entries[1] * np.array(stored, np.float32)
                return entries[0][both], products[both]
        raise ValueError(f"id: {id} is not in the index")

    def explain(self, query: Any, topk: int = 10) -> dict[str, int]:
        """What a search for the first of the given queries reads.

        Returns:
            terms: entries of the query whose latent some document uses; postings: in their
            lists altogether; blocks: of documents, where the index is clustered, with
            blocks_scored one by one and windows_scanned from end to end (of windows). Of
            several segments, the sums, as if each were searched alone.
        """
        topk = check_int("topk", topk, 1, 2**40)
        rows = _first(read_rows("query", query, self.dim))
        total: dict[str, int] = {}
        for segment in self._segments:
            counts = segment.native.explain(
                rows.values, rows.indices, rows.starts, topk, self.metric == "cosine"
            )
            counts["blocks"] = -(-segment.documents // segment.block) if segment.block else 0
            counts["windows"] = -(-segment.documents // segment.window)
            total = {name: total.get(name, 0) + count for name, count in counts.items()}
        return total

    def _plan(self, segments: tuple[Segment, ...], recall: float) -> index_fast.Plan:
        """Measured at first use, and again once there are twice or half as many codes."""
        n = sum(len(segment) for segment in segments)
        known = self._plans.get(recall)
        if known is None or not known[0] <= 2 * n <= 4 * known[0]:
            known = n, index_fast.calibrate(segments, self.dim, self.metric, recall)
            self._plans = {**self._plans, recall: known}
        return known[1]


def _first(rows: Rows) -> Rows:
    if rows.n == 0:
        raise ValueError("query: expected a query, got none")
    return rows
