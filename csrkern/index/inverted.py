"""InvertedIndex: exact search over sparse codes, on NumPy alone.

An index is made and searched here; collection.py adds, removes and stores its codes. Inverted
lists are cut into windows of documents whose scores fit in the second-level cache: a search adds
up one window after the other, list by list, and keeps what beats the best hits so far. See
csrc/cpu/index/scan.cpp.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from csrkern import _C
from csrkern.arguments import check_int, integers, thread_count
from csrkern.identity import check_same_model
from csrkern.index import costs
from csrkern.index import file as index_file
from csrkern.index.collection import Collection, Snapshot, rows_to_store, stats
from csrkern.index.fast import check_mode, check_recall, search_limits
from csrkern.index.filter import allowed_bits
from csrkern.index.fine import FineCodes, check_fine, check_probes, quantizer_of
from csrkern.index.rerank import (
    Refine,
    Rerank,
    fine_queries,
    search_dense,
    search_fine,
    search_refined,
)
from csrkern.index.rows import (
    Rows,
    can_be_read_twice,
    check_ids,
    code_chunks,
    concatenate_rows,
    read_rows,
)
from csrkern.index.segment import SQUARES, Segment, beside_of, check_form

if TYPE_CHECKING:
    from csrkern.index.cuda.index import CudaIndex
    from csrkern.typing import (
        CodesLike,
        CodesSource,
        DevicesLike,
        FilterLike,
        IdsLike,
        VectorsLike,
    )

_LEAST_WIDTH = 1024

costs.prepare()


class Explanation(NamedTuple):
    """Why a search finds a document, or does not.

    Attributes:
        latents: int32 [j], that the query and the document both have.
        parts: float32 [j], what each adds to the score, in the order in which a search adds.
        score: their float32 sum; a cosine is at most 1.
        rank: of the document among all for this query, from 1; None: its score is 0.
        bar: the score of the top_k-th hit, which a document must reach to be found; -inf: fewer
            have any score.
    """

    latents: np.ndarray
    parts: np.ndarray
    score: float
    rank: int | None
    bar: float


_COUNTS = ("terms", "postings", "blocks", "blocks_scored", "windows", "windows_scanned")


def hits_width(top_k: int, n: int) -> int:
    """Return how many columns results of n codes have: more than n only up to 1,024."""
    return min(top_k, max(n, _LEAST_WIDTH))


class InvertedIndex(Collection):
    """Exact maximum-inner-product or cosine search over codes with few active latents.

    Make one with `build`, `build_streaming` or `load`. Every method may be called from any
    number of threads at once; searching releases the GIL. A search sees the codes that the
    index held when the search began, whatever `add`, `remove` and `compact` do meanwhile.

    Exact means exact in the stored values: a score is the float32 sum over the query's
    entries, by value descending and then by latent, of query value times stored value, each
    product rounded before it is added; a cosine that rounding makes more than 1 is 1. The
    results depend on the codes and ids that the index holds and on nothing else: not on the
    number of threads, the window, the instruction set, a detour through a file, or the order
    of `add`, `remove` and `compact` that led there.

    Attributes:
        dim: number of latents.
        k: the most slots that a document had when it came.
        metric: "ip" or "cosine".
        dtype: "float16", "uint8", "uint4" or "float32", in which values are stored.
        fingerprint: of the model that made the first codes (`SparseAutoencoder.fingerprint`);
            None: not known, as for codes that came as arrays, and may be set. Codes of another
            model are refused (ModelMismatchError), unless a call has any_model=True.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        name = type(self).__name__
        raise TypeError(f"{name}: make an index with {name}.build(codes), build_streaming or load")

    @classmethod
    def build(
        cls,
        codes: CodesLike | None,
        ids: IdsLike | None = None,
        *,
        metric: str = "cosine",
        dtype: str = "float16",
        largest: float | None = None,
        norms: VectorsLike | None = None,
        fine: FineCodes | None = None,
        dim: int | None = None,
        cluster: bool | None = None,
        window: int | None = None,
        num_threads: int | None = None,
    ) -> InvertedIndex:
        """Build an index of n codes.

        Args:
            codes: SparseCodes, a SciPy sparse matrix [n, dim], a torch sparse COO or CSR
                tensor [n, dim], or a pair of arrays (values, indices), both [n, k], with
                `dim`. Values are finite and not negative; a value of 0 is an empty slot.
                None: no lists, to be searched by the fine codes alone (`search_fine`).
            ids: n distinct integers ≥ 0 that name the codes in results; None: 0..n-1.
            metric: "cosine" brings codes, before they are stored, and queries to L2 norm 1;
                "ip" scores by inner product.
            dtype: "float16" rounds values to 2 bytes each, "float32" keeps them. "uint8" rounds
                each to the nearest of 256 squares of whole numbers, up to one largest value:
                relative to a value, it is off by 1/256 of the root of largest / value at most.
                "uint4" rounds to the nearest of 16 such squares, off by 1/16 of that root: a
                third fewer bytes than "uint8", hardly slower, for lists that only choose what
                `Refine` scores; such lists are not clustered.
                No positive value becomes 0: float16 rounds those below its least positive
                number, 2^-24, up to it.
            largest: for "uint8" and "uint4", the least value that the largest may have, which is
                then a power of two; codes of a larger value cannot be added. None: that of
                `codes`, or 1 with cosine.
            norms: n positive numbers that scores of `Rerank` are divided by: the norms of what
                the codes, as stored, reconstruct. With "cosine" these are the norms of
                `codes.normalize()`, not of `codes`.
            fine: fine codes of the same n embeddings, for scores by `Refine` and for
                `search_fine`.
            dim: number of latents; needed for a pair of arrays.
            cluster: True lets similar codes stand together (ids stay theirs) and keeps the
                maxima of each latent over blocks of codes, so that a search passes over
                blocks that cannot matter: many times faster where codes form clusters,
                slower where they do not, 40 bytes a code more, and a build that takes 3 to
                5 times as long. None does so where it pays, judged by some of the codes.
            window: documents a window, a multiple of 64 up to 65,536 ("uint4": 65,472); None
                chooses. It changes the speed only.
            num_threads: None: as many as the process may run on.

        Raises:
            TypeError: if an argument has the wrong type.
            ValueError: if an argument is out of range, or a code is not valid.
        """
        form = check_form(metric, dtype, cluster, window, largest)
        form = form._replace(quantizer=quantizer_of(fine))
        if dim is not None:
            dim = check_int("dim", dim, 1, 2**31 - 1)
        rows = rows_to_store(codes, fine, dim)
        check_int("dim", rows.dim, 1, 2**31 - 1)
        empty = Snapshot((), form)
        segment, form = empty.build(rows, ids, norms, fine, thread_count(num_threads), plain=True)
        return cls.of(empty.with_segment(segment, form, rows.k), rows.dim, rows.fingerprint)

    @classmethod
    def build_streaming(
        cls,
        codes: CodesSource,
        path: str | os.PathLike[str],
        *,
        ids: IdsLike | None = None,
        fine: FineCodes | None = None,
        chunk: int = 1_000_000,
        metric: str = "cosine",
        dtype: str = "float16",
        largest: float | None = None,
        dim: int | None = None,
        cluster: bool | None = None,
        num_threads: int | None = None,
    ) -> InvertedIndex:
        """Build an index of more codes than fit in memory, in the directory `path`.

        One segment for each chunk is built in memory, written and then mapped; the directory
        becomes the new index at the end, at one instant. Memory: a chunk and its lists, 400
        bytes a code of k = 32, and what the system keeps of the mapped files. After a failure
        the directory holds what it held before.

        Args:
            codes: a file of `SparseCodes.save`, a pair of (mapped) arrays (values, indices)
                [n, k] with `dim`, or an iterable of codes in any form that `build` takes.
            path: the directory; an index that is there is replaced.
            ids: n distinct integers ≥ 0 (a mapped array will do); None: 0..n-1.
            fine: as for `build`, of all n (over a mapped array, to be read in pieces).
            chunk: codes a chunk, at most. Smaller pieces of an iterable are gathered, larger
                ones stay whole.
            metric, dtype, dim, cluster, num_threads: as for `build`.
            largest: as for `build`; None: that of the first chunk, if `codes` is an iterable.

        Returns: the index, mapped from `path`.

        Raises:
            TypeError, ValueError: as `build`.
            OSError: if a file cannot be read or written.
        """
        form = check_form(metric, dtype, cluster, None, largest)
        form = form._replace(quantizer=quantizer_of(fine))
        threads = thread_count(num_threads)
        chunk = check_int("chunk", chunk, 1, 2**31 - 1)
        if dim is not None:
            dim = check_int("dim", dim, 1, 2**31 - 1)
        if ids is not None:
            ids = np.atleast_1d(integers("ids", ids))
            ids = check_ids(ids, ids.size)
        if dtype in SQUARES and can_be_read_twice(codes):
            tops = [rows.values.max(initial=0) for rows in code_chunks(codes, dim, chunk)]
            form = form.holding(np.array(tops))
        snapshot = Snapshot((), form)
        fingerprint: str | None = None
        n = 0
        with index_file.unfinished(path) as written:
            for rows in code_chunks(codes, dim, chunk):
                dim = check_int("dim", rows.dim, 1, 2**31 - 1)
                own = None if ids is None else ids[n : n + rows.n]
                own_fine = None if fine is None else fine[n : n + rows.n]
                try:
                    segment, form = snapshot.build(rows, own, None, own_fine, threads, plain=n == 0)
                except ValueError as error:
                    if n == 0:
                        raise
                    raise ValueError(f"{error} (of the codes from row {n:,} on)") from error
                if n == 0 and rows.fingerprint is not None:
                    fingerprint = rows.fingerprint
                n += rows.n
                with index_file.SAVING:
                    segment = index_file.move_to(path, form, dim, segment, written)
                snapshot = snapshot.with_segment(segment, form, rows.k)
            if dim is None or not snapshot.segments:
                raise ValueError("codes: expected at least one piece, got none")
            if ids is not None:
                check_ids(ids, n)
            if fine is not None:
                check_fine(fine, n, form.quantizer)
            index = cls.of(snapshot, dim, fingerprint)
            index.save(path)
        return index

    def truncate(self, k: int, *, num_threads: int | None = None) -> InvertedIndex:
        """Return an index of the same codes with only the k strongest latents of each.

        With metric cosine they are brought to norm 1 again. Use this instead of a search-time
        option: posting lists do not record a latent's rank within its document.

        Args:
            k: latents of a code.
            num_threads: as for `build`.
        """
        k = check_int("k", k, 1, 2**31 - 1)
        now = self.snapshot()
        rows = concatenate_rows([segment.rows() for segment in now.segments])
        norms, fine = beside_of(now.segments)
        quantizer = now.form.quantizer
        return InvertedIndex.build(
            rows.strongest(k)._replace(fingerprint=self.fingerprint),
            now.ids,
            metric=self.metric,
            dtype=self.dtype,
            largest=now.form.largest if self.metric == "ip" else None,
            norms=norms,
            fine=None if quantizer is None or fine is None else FineCodes(fine, quantizer),
            cluster=now.form.cluster,
            num_threads=num_threads,
        )

    def to(
        self,
        device: DevicesLike,
        *,
        slices: int = 1,
        impact_bits: int = 16,
        window: int | None = None,
    ) -> CudaIndex:
        """Return the same codes, as they are now, on one or several GPUs: a `CudaIndex`.

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
            window: documents whose scores a thread block adds up, a multiple of 64; None
                chooses. It changes the speed only.

        Raises:
            RuntimeError: if csrkern was built without CUDA, or there is no GPU.
            ValueError: if an argument is out of range.
            MemoryError: if the index does not fit; the message has the numbers.
        """
        from csrkern.index.cuda.index import CudaIndex

        return CudaIndex.of(self, device, slices=slices, impact_bits=impact_bits, window=window)

    def search(
        self,
        queries: CodesLike,
        top_k: int = 10,
        *,
        filter: FilterLike | None = None,
        query_k: int | None = None,
        min_score: float | None = None,
        rerank: Rerank | Refine | None = None,
        mode: str = "exact",
        recall: float | None = None,
        any_model: bool = False,
        num_threads: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the `top_k` best documents of each query.

        Args:
            queries: m codes in any form that `build` takes; a pair of arrays needs no dim.
            top_k: results for each query; may exceed the number of documents. Above 1,024, no
                more than there are documents.
            filter: which codes may be found: a boolean mask in the order of `ids`, or the ids
                themselves (those that the index does not hold are passed over); None: all. A
                mask [m, n], or a list of m filters, has one for each query. A mask in numbers
                0 and 1 is refused.
            query_k: only this many of a query's strongest latents count (with cosine, they
                are then brought to norm 1); None: all.
            min_score: documents with a lower score are left out.
            rerank: scores the best `rerank.shortlist` documents again: `Rerank` by dense
                queries, `Refine` by fine codes.
            mode: "exact", or "fast" to find most of what exact search finds.
            recall: for "fast": the share of the best 10 to be found, 0.99 if None, on average
                over queries like those of `calibrate`. Without a call of it, the first fast
                search measures on a sample of the index's own codes. Queries of fewer or more
                entries than those measured are searched exactly; queries that differ in other
                ways may find less. `stats` tells what was measured.
            any_model: take queries of another model than the index's, too.
            num_threads: None: as many as the process may run on. A batch is divided by
                queries; a single query, unless clustered or filtered, by windows.

        Returns:
            scores float32 [m, top_k] and ids int64 [m, top_k]: best first, equal scores by
            lower id. Documents that share no latent with the query are left out; missing
            places hold score -inf and id -1. With cosine, a score is at most 1.

        Raises:
            TypeError: if an argument has the wrong type.
            ValueError: if an argument is out of range, a query is not valid, (ModelMismatchError)
                another model made the queries, or the index was loaded from a file that is
                damaged.
        """
        now = self.snapshot()
        _check_lists(now)
        share = check_mode(mode, recall, rerank)
        rows = self._read("queries", queries, any_model)
        options: dict[str, Any] = {"top_k": hits_width(check_int("top_k", top_k, 1, 2**40), now.n)}
        if share is not None:
            plan = self._plans.get(now.segments, self.dim, self.metric, share)
            options |= plan.options(options["top_k"])
        args, limits = self._limits(now.segments, rows, filter, query_k, min_score, num_threads)
        if isinstance(rerank, Rerank):
            check_same_model("rerank", rerank.fingerprint, self.fingerprint, any_model=any_model)
            dense, offsets = rerank.arrays(rows.n, self.dim)
            options |= {"dense": dense, "offsets": offsets, "shortlist": rerank.shortlist}
        if isinstance(rerank, Refine):
            return search_refined(rerank, now.form.quantizer, args[0], rows, {**limits, **options})
        scores, ids = _C.search(*args, **limits, **options)
        return scores, ids

    def calibrate(
        self, queries: CodesLike, recall: float = 0.99, *, any_model: bool = False
    ) -> dict[str, Any]:
        """Measure how a search with mode="fast" finds `recall` of the best for such queries.

        Takes as long as some thousand searches. What is measured is kept, and saved with the
        index, until there are more than twice or less than half as many codes.

        Args:
            queries: codes as for `search`, like those to come; up to 400 of them, evenly spread,
                are searched. With fewer, less can be promised and less time saved.
            recall: the share of the best 10 to be found, below 1.
            any_model: as for `search`.

        Returns:
            What `stats()["recall"][recall]` tells: at_least (share of the best 10 that is found
            for other queries like these, a lower bound at 95%: `recall` or more), found (mean
            share for those searched), measured (how many these were), of ("queries"; "codes":
            the index's own, before any call of `calibrate`).

        Raises:
            TypeError, ValueError: as `search`, or if there are no queries.
        """
        now = self.snapshot()
        _check_lists(now)
        share = check_recall(recall)
        rows = self._read("queries", queries, any_model)
        if rows.n == 0:
            raise ValueError("queries: expected some, like those to come; got none")
        return self._plans.measure(now.segments, self.dim, self.metric, rows, share)

    def search_above(
        self,
        queries: CodesLike,
        min_score: float,
        *,
        filter: FilterLike | None = None,
        query_k: int | None = None,
        any_model: bool = False,
        num_threads: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return all documents of at least `min_score`, exactly; arguments as for `search`.

        Returns:
            starts int64 [m + 1], scores float32 and ids int64 [starts[-1]]: the hits of query
            i, best first, are scores[starts[i] : starts[i + 1]].
        """
        now = self.snapshot()
        _check_lists(now)
        rows = self._read("queries", queries, any_model)
        args, limits = self._limits(now.segments, rows, filter, query_k, min_score, num_threads)
        starts, scores, ids = _C.search_all(*args, top_k=1, **limits)
        return starts, scores, ids

    def search_dense(
        self,
        dense_queries: VectorsLike,
        top_k: int = 10,
        *,
        latents: int = 128,
        shortlist: int = 100,
        offsets: VectorsLike | None = None,
        **options: Any,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the best documents of dense queries W q: asymmetric search.

        Args:
            dense_queries: [m, dim], finite; see `Rerank`.
            top_k: as for `search`.
            latents: largest positive entries of a query that choose its shortlist; all
                entries make the score.
            shortlist: documents a query that are scored.
            offsets: [m], added to all scores of a query.
            options: as for `search`.

        Returns:
            scores and ids, as `search`.
        """
        rerank = Rerank(dense_queries, shortlist, offsets)
        return search_dense(self, rerank, top_k, latents, **options)

    def search_fine(
        self,
        queries: VectorsLike,
        top_k: int = 10,
        *,
        probes: int | None = None,
        filter: FilterLike | None = None,
        min_score: float | None = None,
        num_threads: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the best documents of embeddings by the fine codes of all documents, exactly.

        Needs no lists and misses nothing that the fine codes tell. Takes time in proportion to
        the documents: 0.03 to 0.04 ns a byte of code and document for each query of a batch of 64,
        0.1 for one alone (Zen 4). With `probes` it takes a fraction of that, and misses documents
        whose first word is another.

        Args:
            queries: embeddings [m, d] of any real dtype, finite, up to 1e15.
            top_k, filter, min_score: as for `search`.
            probes: 1 to 256: read only documents whose codes begin with one of so many words, for
                each query those of the largest inner product with it (equal ones: the lower
                words). 8 to 16 find nearly all where the quantizer has one part. The first such
                search notes in memory who begins with what, in 2 bytes a document
                (`stats()["forward_bytes"]`). None: read all.
            num_threads: None: as many as the process may run on. A batch is divided by
                queries, a few queries by documents.

        Returns:
            scores and ids, as `search`; a score is that of `Refine`.

        Raises:
            TypeError, ValueError: as `search`, or if the index holds no fine codes.
        """
        now = self.snapshot()
        rows = fine_queries("queries", queries, now.form.quantizer)
        assert now.form.quantizer is not None
        width = hits_width(check_int("top_k", top_k, 1, 2**40), now.n)
        bits = allowed_bits(filter, now.segments, len(rows))
        natives = [(s.native, b) for s, b in zip(now.segments, bits, strict=True)]
        least = search_limits(self.metric, None, min_score)["min_score"]
        threads = thread_count(num_threads)
        read = check_probes(probes)
        return search_fine(rows, now.form.quantizer, natives, width, least, read, threads)

    def explain(
        self, query: CodesLike, id: int, top_k: int = 10, *, any_model: bool = False
    ) -> Explanation:
        """Say what a document's score for a query is made of, and what it lacks to be found.

        Args:
            query: codes as for `search`; the first of them counts.
            id: of the document.
            top_k: of the search that is asked about.
            any_model: as for `search`.

        Raises:
            ValueError: if the index has no such id.
        """
        rows = self._read("query", query, any_model)
        if rows.n == 0:
            raise ValueError("query: expected a query, got none")
        check_int("top_k", top_k, 1, 2**40)
        latents, weights = _C.read_query(
            rows.values, rows.indices, rows.starts, self.dim, self.metric == "cosine"
        )
        now = self.snapshot()
        number = np.array([check_int("id", id, 0, 2**63 - 1)])
        places = [(segment, int(segment.find(number)[0])) for segment in now.segments]
        segment, doc = next((place for place in places if place[1] >= 0), (None, -1))
        if segment is None:
            raise ValueError(f"id: {id} is not in the index")
        stored = np.array([segment.native.value(doc, int(i)) for i in latents], np.float32)
        with np.errstate(all="ignore"):  # as the search multiplies
            parts = (weights * stored)[stored > 0]
        args, limits = self._limits(now.segments, rows.between(0, 1), None, None, None, None)
        _, scores, ids = _C.search_all(*args, top_k=1, **limits)
        ranks = np.flatnonzero(ids == id) + 1
        return Explanation(
            latents[stored > 0],
            parts,
            float(scores[ranks[0] - 1]) if len(ranks) else 0.0,
            int(ranks[0]) if len(ranks) else None,
            float(scores[top_k - 1]) if len(scores) >= top_k else -np.inf,
        )

    def profile(self, queries: CodesLike, top_k: int = 10) -> dict[str, int]:
        """Return counts of what a search for some queries reads.

        Returns:
            Sums over the queries, and over segments as if each were searched alone. terms:
            entries of a query whose latent some document uses; postings: in their lists;
            blocks: of documents, where the index is clustered, with blocks_scored one by one
            and windows_scanned from end to end (of windows).
        """
        top_k = check_int("top_k", top_k, 1, 2**40)
        rows = read_rows("queries", queries, self.dim)
        total = dict.fromkeys(_COUNTS, 0)
        for segment in self.snapshot().segments:
            if segment.block:
                total["blocks"] += rows.n * -(-segment.documents // segment.block)
            total["windows"] += rows.n * -(-segment.documents // segment.window)
            for i in range(rows.n):
                query = rows.between(i, i + 1)
                counts = segment.native.profile(
                    query.values, query.indices, query.starts, top_k, self.metric == "cosine"
                )
                for name, count in counts.items():
                    total[name] += count
        return total

    def stats(self) -> dict[str, Any]:
        """Return what the index holds and what a search must touch.

        Returns:
            documents, removed (codes whose memory is not free yet), segments, dim, k, metric,
            dtype, fingerprint, largest (value that uint8 or uint4 can hold); window, block
            (documents in it; 0 if not clustered) of the first segment;
            latents (those in use), postings, bytes (memory or disk, without the next),
            bytes_of (the same by use: postings, directory of the lists, ids, bounds of blocks,
            norms, fine codes, graph, marks of removed codes, quantizer), bytes_per_code (all but
            the quantizer), mapped_bytes (of files, read when first needed), resident_bytes (all
            others, with the next two), forward_bytes (what is made in memory when needed: the
            copy by document, which `Rerank`, fast search and batches over dense codes read, the
            places of clustered documents in the lists, the strongest postings of each list, which
            some fast searches read, and the cells that `search_fine` probes), dense_bytes (also
            made when needed: the values of all documents for latents that more than a quarter of
            them have); longest_list (the most documents that share a latent); hottest_share (of
            all postings, in the hottest 1% of the latents in use); postings_per_query (expected
            for queries drawn like the documents); recall (for each that `calibrate` or a fast
            search was asked for: what was measured, see `calibrate`).
        """
        now = self.snapshot()
        return {
            **stats(now),
            **{n: getattr(self, n) for n in ("dim", "k", "metric", "dtype", "fingerprint")},
            "largest": now.form.largest,
            "recall": self._plans.stats(),
        }

    def _read(self, name: str, codes: CodesLike, any_model: bool) -> Rows:
        rows = read_rows(name, codes, self.dim)
        check_same_model(name, rows.fingerprint, self.fingerprint, any_model=any_model)
        return rows

    def _limits(
        self,
        segments: tuple[Segment, ...],
        rows: Rows,
        filter: FilterLike | None,
        query_k: int | None,
        min_score: float | None,
        num_threads: int | None,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments that all native searches take."""
        bits = allowed_bits(filter, segments, rows.n)
        natives = [(segment.native, b) for segment, b in zip(segments, bits, strict=True)]
        limits = search_limits(self.metric, query_k, min_score)
        limits["num_threads"] = thread_count(num_threads)
        return (natives, rows.values, rows.indices, rows.starts, self.dim), limits


def _check_lists(now: Snapshot) -> None:
    if now.only_fine:
        raise ValueError(
            "queries: this index holds no lists to search by codes; search_fine(embeddings) "
            "searches it by fine codes"
        )


__all__ = ["InvertedIndex", "Refine", "Rerank"]
