"""InvertedIndex: exact search over sparse codes, on NumPy alone.

Inverted lists are cut into windows of documents whose scores fit in the L1 cache; a search
adds up one window after the other, list by list, and keeps what clears the bar of the best
hits so far. See csrc/cpu/index_scan.cpp.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from csrkern import _C, index_fast, index_file
from csrkern.index_collection import Collection, stats
from csrkern.index_filter import allowed_bits
from csrkern.index_input import (
    Rows,
    check_choice,
    check_ids,
    check_int,
    least_float,
    read_rows,
    thread_count,
)
from csrkern.index_rerank import Rerank, dense_rows, largest_latents
from csrkern.index_segment import SQUARES, Segment, check_form, norms_of
from csrkern.index_stream import can_be_read_twice, code_chunks

if TYPE_CHECKING:
    from csrkern.index_cuda import CudaIndex

_ALL = 2**62


class InvertedIndex(Collection):
    """Exact maximum-inner-product or cosine search over codes with few active latents.

    Make one with `build`, `build_streaming` or `load`. Every method may be called from any
    number of threads at once; searching releases the GIL. A search sees the codes that the
    index held when the search began, whatever `add`, `remove` and `compact` do meanwhile.

    Exact means exact in the stored values: a score is the float32 sum over the query's
    entries, by value descending and then by latent, of query value times stored value, each
    product rounded before it is added. The results depend on the codes and ids that the index
    holds and on nothing else: not on the number of threads, the window, the instruction set, a
    detour through a file, or the order of `add`, `remove` and `compact` that led there.

    Attributes:
        dim: number of latents.
        k: the most slots that a document had when it came.
        metric: "ip" or "cosine".
        values: "float16", "uint16", "uint8" or "float32", the form in which values are stored.
    """

    def __init__(self, *args: Any, **facts: Any) -> None:
        super().__init__(*args, **facts)
        self._plans: dict[float, tuple[int, index_fast.Plan]] = {}  # and how many codes there were

    @classmethod
    def build(
        cls,
        codes: Any,
        ids: Any = None,
        *,
        metric: str = "ip",
        values: str = "float16",
        largest: float | None = None,
        norms: Any = None,
        dim: int | None = None,
        cluster: bool | None = None,
        window: int | None = None,
        num_threads: int | None = None,
    ) -> InvertedIndex:
        """Builds an index of n codes.

        Args:
            codes: SparseCodes, a SciPy sparse matrix [n, dim], a torch sparse COO or CSR
                tensor [n, dim], or a pair of arrays (values, indices), both [n, k], with
                `dim`. Values are finite and not negative; a value of 0 is an empty slot.
            ids: n distinct integers ≥ 0 that name the codes in results; None: 0..n-1.
            metric: "ip" scores by inner product; "cosine", which the command `csrkern index`
                takes if told nothing, brings codes, before they are stored, and queries to L2
                norm 1.
            values: "float16" rounds values to 2 bytes each, "float32" keeps them. "uint8" and
                "uint16" round each to the nearest of 256 or 65,536 squares of whole numbers,
                up to one largest value: relative to a value, uint8 is off by 1/256 of the
                root of largest / value at most. No positive value becomes 0.
            largest: for "uint8" and "uint16", the least value that the largest may have, which
                is then a power of two; codes of a larger value cannot be added. None: that of
                `codes`, or 1 with cosine.
            norms: n positive numbers that scores of `Rerank` are divided by: the norms of what
                the codes, as stored, reconstruct.
            dim: number of latents; needed for a pair of arrays.
            cluster: True lets similar codes stand together (ids stay theirs) and keeps the
                maxima of each latent over blocks of codes, so that a search passes over
                blocks that cannot matter: many times faster where codes form clusters,
                slower where they do not, 40 bytes a code more, and a build that takes 3 to
                5 times as long. None does so where it pays, judged by some of the codes.
            window: documents a window, a multiple of 64 up to 65,536; None chooses. It
                changes the speed only.
            num_threads: None: as many as the process may run on.

        Raises:
            TypeError: if an argument has the wrong type.
            ValueError: if an argument is out of range, or a code is not valid.
        """
        form = check_form(metric, values, cluster, window, largest)
        if dim is not None:
            dim = check_int("dim", dim, 1, 2**31 - 1)
        rows = read_rows("codes", codes, dim)
        check_int("dim", rows.dim, 1, 2**31 - 1)
        index = cls([], dim=rows.dim, k=0, next_id=0, form=form)
        segment = index._build(rows, ids, norms, 0, thread_count(num_threads), plain=True)
        index._append(segment, rows.k)
        return index

    @classmethod
    def build_streaming(
        cls,
        codes: Any,
        path: str | os.PathLike[str],
        *,
        ids: Any = None,
        chunk: int = 1_000_000,
        metric: str = "ip",
        values: str = "float16",
        largest: float | None = None,
        dim: int | None = None,
        cluster: bool | None = None,
        num_threads: int | None = None,
    ) -> InvertedIndex:
        """Builds an index of more codes than fit in memory, in the directory `path`.

        One segment for each chunk is built in memory, written and then mapped; the directory
        becomes the new index at the end, at one instant. Memory: a chunk and its lists, 400
        bytes a code of k = 32, and what the system keeps of the mapped files.

        Args:
            codes: a file of `SparseCodes.save`, a pair of (mapped) arrays (values, indices)
                [n, k] with `dim`, or an iterable of codes in any form that `build` takes.
            path: the directory; an index that is there is replaced.
            ids: n distinct integers ≥ 0 (a mapped array will do); None: 0..n-1.
            chunk: codes a chunk; an iterable makes its own.
            metric, values, dim, cluster, num_threads: as for `build`.
            largest: as for `build`; None: that of the first piece, if `codes` is an iterable.

        Returns: the index, mapped from `path`.

        Raises:
            TypeError, ValueError: as `build`.
            OSError: if a file cannot be read or written.
        """
        form = check_form(metric, values, cluster, None, largest)
        threads = thread_count(num_threads)
        check_int("chunk", chunk, 1, 2**31 - 1)
        if values in SQUARES and can_be_read_twice(codes):
            tops = [piece[0].max(initial=0) for piece, _ in code_chunks(codes, dim, chunk)]
            form = form.holding(np.array(tops))
        index: InvertedIndex | None = None
        n = 0
        for piece, piece_dim in code_chunks(codes, dim, chunk):
            rows = read_rows("codes", piece, piece_dim if index is None else index.dim)
            if index is None:
                index = cls(
                    [], dim=check_int("dim", rows.dim, 1, 2**31 - 1), k=0, next_id=0, form=form
                )
            own = None if ids is None else np.asarray(ids[n : n + rows.n])
            segment = index._build(rows, own, None, n, threads, plain=n == 0)
            n += rows.n
            with index_file.SAVING:
                segment = index_file.move_to(path, index._state()[1], segment)
            index._append(segment, rows.k)
        if index is None:
            raise ValueError("codes: expected at least one piece, got none")
        if ids is not None:
            check_ids(ids, n)
        index.save(path)
        return index

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
        num_threads: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `topk` best documents of each query.

        Args:
            queries: m codes in any form that `build` takes; a pair of arrays needs no dim.
            topk: results for each query; may exceed the number of documents.
            filter: which codes may be found: a boolean mask in the order of `ids`, or the ids
                themselves (those that the index does not hold are passed over); None: all. A
                mask [m, n], or a list of m filters, has one for each query.
            query_k: only this many of a query's strongest latents count (with cosine, they
                are then brought to norm 1); None: all.
            min_score: documents with a lower score are left out.
            rerank: scores the best `rerank.shortlist` documents again, by dense queries.
            mode: "exact", or "fast" to find most of what exact search finds.
            recall: for "fast": the share of the best 10 that searches for a sample of the
                index's own codes must find, 0.99 if None; what was found is in `stats`.
            num_threads: None: as many as the process may run on. A batch is divided by
                queries; a single query, unless clustered or filtered, by windows.

        Returns:
            scores float32 [m, topk] and ids int64 [m, topk]: best first, equal scores by
            lower id. Documents that share no latent with the query are left out; missing
            places hold score -inf and id -1.

        Raises:
            TypeError: if an argument has the wrong type.
            ValueError: if an argument is out of range, a query is not valid, or the index
                was loaded from a file that is damaged.
        """
        segments = self._segments
        check_choice("mode", mode, ("exact", "fast"))
        if recall is not None and mode != "fast":
            raise ValueError("recall: an exact search finds all; give mode='fast' with it")
        rows = read_rows("queries", queries, self.dim)
        options: dict[str, Any] = {"topk": check_int("topk", topk, 1, 2**40)}
        if mode == "fast":
            if rerank is not None:
                raise ValueError("rerank: expected mode='exact' with it; its shortlist is exact")
            plan = self._plan(segments, index_fast.check_recall(recall))
            options |= plan.options(options["topk"])
        if rerank is not None:
            if not isinstance(rerank, Rerank):
                raise TypeError(f"rerank: expected a csrkern.Rerank, got {type(rerank).__name__}")
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
        num_threads: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All documents of at least `min_score`, exactly; arguments as for `search`.

        Returns:
            starts int64 [m + 1], scores float32 and ids int64 [starts[-1]]: the hits of query
            i, best first, are scores[starts[i] : starts[i + 1]].
        """
        segments = self._segments
        rows = read_rows("queries", queries, self.dim)
        args, limits = self._limits(segments, rows, filter, query_k, min_score, num_threads)
        starts, scores, ids = _C.search_all(*args, topk=1, **limits)
        return starts, scores, ids

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

    def search_dense(
        self,
        dense_queries: Any,
        topk: int = 10,
        *,
        latents: int = 128,
        shortlist: int = 100,
        offsets: Any = None,
        **options: Any,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Asymmetric search: dense queries W q [m, dim] against sparse documents.

        The `latents` largest positive entries of a query make the shortlist, all of them the
        score; see `Rerank`. `options` are those of `search`.
        """
        dense = dense_rows("dense_queries", dense_queries, self.dim)
        strongest = largest_latents(
            dense, min(self.dim, check_int("latents", latents, 1, 2**31 - 1))
        )
        return self.search(strongest, topk, rerank=Rerank(dense, shortlist, offsets), **options)

    def to(
        self,
        device: Any,
        *,
        slices: int = 1,
        impact_bits: int = 16,
        block: int | None = None,
    ) -> CudaIndex:
        """The same codes, as they are now, on one or several GPUs: a `CudaIndex`.

        Its `search` takes what this one's takes and finds the same, to the bit; queries that
        are on the GPU are answered there. Its memory is counted in docs/index-cuda.md.

        Args:
            device: "cuda", "cuda:1", a torch.device, or a list of these, which then share the
                documents, by ranges of ids.
            slices: more than 1: the codes stay in host memory (8 bytes an entry) and are
                brought to the GPU in that many slices for each search. For an index larger
                than the GPU's memory, searched in large batches.
            impact_bits: 16 or 8: of a value in the lists, which choose what is scored
                exactly; 8 takes a byte an entry less and scores more documents.
            block: documents whose scores a thread block adds up, a multiple of 64; None
                chooses. It changes the speed only.

        Raises:
            RuntimeError: if csrkern was built without CUDA, or there is no GPU.
            ValueError: if an argument is out of range.
            MemoryError: if the index does not fit; the message has the numbers.
        """
        from csrkern.index_cuda import CudaIndex

        return CudaIndex.of(self, device, slices=slices, impact_bits=impact_bits, block=block)

    def explain_score(self, query: Any, id: int) -> tuple[np.ndarray, np.ndarray]:
        """What a document's score for the first of the given queries is made of.

        Returns:
            latents int32 [j] that both have, and contributions float32 [j], in the order in
            which a search adds them up: their float32 sum is the score.

        Raises:
            ValueError: if the index has no such id.
        """
        rows = _first(read_rows("query", query, self.dim))
        entries = _C.read_query(
            rows.values, rows.indices, rows.starts, self.dim, self.metric == "cosine"
        )
        for segment in self._segments:
            doc = int(segment.find(np.array([check_int("id", id, 0, 2**63 - 1)]))[0])
            if doc >= 0:
                stored = [segment.native.value(doc, int(latent)) for latent in entries[0]]
                both = np.array(stored, np.float32) > 0
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

    def stats(self) -> dict[str, Any]:
        """What the index holds and what a search must touch.

        Returns:
            documents, removed (codes whose memory is not free yet), segments, dim, k, metric,
            values, largest (value that uint8 or uint16 can hold); window, block (documents in
            it; 0 if not clustered) of the first segment;
            latents (those in use), postings, bytes (memory or disk, without the next),
            bytes_per_code, forward_bytes (what is made in memory when needed: the copy by
            document, and the places of clustered documents in the lists);
            longest_list (the most documents that share a latent); hottest_share (of all
            postings, in the hottest 1% of the latents in use); postings_per_query (expected
            for queries drawn like the documents); recall (for each that a fast search asked
            for: what searches for a sample of the codes found).
        """
        return {
            **stats(self._segments),
            **{name: getattr(self, name) for name in ("dim", "k", "metric", "values")},
            "largest": self._form.largest,
            "recall": {asked: plan.recall for asked, (_, plan) in self._plans.items()},
        }

    def truncated(self, k: int, *, num_threads: int | None = None) -> InvertedIndex:
        """An index of the same codes with only the k strongest latents of each.

        With metric cosine they are brought to norm 1 again. That a search of this index
        cannot leave out weak latents of documents instead is because its lists do not say
        how strong a posting is among its document's others.
        """
        k = check_int("k", k, 1, 2**31 - 1)
        segments, facts = self._state()
        still = InvertedIndex(
            list(segments), dim=self.dim, k=facts["k"], next_id=0, form=self._form
        )
        values, indices = still.to_numpy()
        return InvertedIndex.build(
            (values[:, :k], indices[:, :k]),
            still.ids,
            dim=self.dim,
            metric=self.metric,
            values=self.values,
            largest=self._form.largest if self.metric == "ip" else None,
            norms=norms_of(segments),
            cluster=self._form.cluster,
            num_threads=num_threads,
        )


def _first(rows: Rows) -> Rows:
    if rows.n == 0:
        raise ValueError("query: expected a query, got none")
    return rows


__all__ = ["InvertedIndex", "Rerank"]
