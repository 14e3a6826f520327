"""InvertedIndex: exact search over sparse codes, on NumPy alone.

How codes are kept and change is told by collection.py, how they are searched by
search.py; here is how an index is made.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from csrkern.arguments import check_int, integers, thread_count
from csrkern.index import file as index_file
from csrkern.index.collection import stats
from csrkern.index.rerank import Rerank
from csrkern.index.rows import Rows, can_be_read_twice, check_ids, code_chunks, read_rows
from csrkern.index.search import Searchable
from csrkern.index.segment import SQUARES, check_form, norms_of

if TYPE_CHECKING:
    from csrkern.index.cuda.index import CudaIndex


class InvertedIndex(Searchable):
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
        values: "float16", "uint16", "uint8" or "float32", the form in which values are stored.
        fingerprint: of the model that made the first codes (`SparseAutoencoder.fingerprint`);
            None: not known, as for codes that came as arrays, and may be set. Codes of another
            model are refused (ModelMismatchError), unless a call has any_model=True.
    """

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
                root of largest / value at most. No positive value becomes 0: float16 rounds
                those below its least positive number, 2^-24, up to it.
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
        index._append(segment, rows)
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
        bytes a code of k = 32, and what the system keeps of the mapped files. After a failure
        the directory holds what it held before.

        Args:
            codes: a file of `SparseCodes.save`, a pair of (mapped) arrays (values, indices)
                [n, k] with `dim`, or an iterable of codes in any form that `build` takes.
            path: the directory; an index that is there is replaced.
            ids: n distinct integers ≥ 0 (a mapped array will do); None: 0..n-1.
            chunk: codes a chunk, at most. Smaller pieces of an iterable are gathered, larger
                ones stay whole.
            metric, values, dim, cluster, num_threads: as for `build`.
            largest: as for `build`; None: that of the first chunk, if `codes` is an iterable.

        Returns: the index, mapped from `path`.

        Raises:
            TypeError, ValueError: as `build`.
            OSError: if a file cannot be read or written.
        """
        form = check_form(metric, values, cluster, None, largest)
        threads = thread_count(num_threads)
        chunk = check_int("chunk", chunk, 1, 2**31 - 1)
        if dim is not None:
            dim = check_int("dim", dim, 1, 2**31 - 1)
        if ids is not None:
            ids = np.atleast_1d(integers("ids", ids))
            ids = check_ids(ids, ids.size)
        if values in SQUARES and can_be_read_twice(codes):
            tops = [rows.values.max(initial=0) for rows in code_chunks(codes, dim, chunk)]
            form = form.holding(np.array(tops))
        index: InvertedIndex | None = None
        n = 0
        with index_file.unfinished(path) as written:
            for rows in code_chunks(codes, dim, chunk):
                if index is None:
                    check_int("dim", rows.dim, 1, 2**31 - 1)
                    index = cls([], dim=rows.dim, k=0, next_id=0, form=form)
                own = None if ids is None else ids[n : n + rows.n]
                try:
                    segment = index._build(rows, own, None, n, threads, plain=n == 0)
                except ValueError as error:
                    if n == 0:
                        raise
                    raise ValueError(f"{error} (of the codes from row {n:,} on)") from error
                n += rows.n
                with index_file.SAVING:
                    segment = index_file.move_to(path, index._state()[1], segment, written)
                index._append(segment, rows)
            if index is None:
                raise ValueError("codes: expected at least one piece, got none")
            if ids is not None:
                check_ids(ids, n)
            index.save(path)
        return index

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
            Rows(values[:, :k], indices[:, :k], None, self.dim, self.fingerprint),
            still.ids,
            metric=self.metric,
            values=self.values,
            largest=self._form.largest if self.metric == "ip" else None,
            norms=norms_of(segments),
            cluster=self._form.cluster,
            num_threads=num_threads,
        )

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
        from csrkern.index.cuda.index import CudaIndex

        return CudaIndex.of(self, device, slices=slices, impact_bits=impact_bits, block=block)

    def stats(self) -> dict[str, Any]:
        """What the index holds and what a search must touch.

        Returns:
            documents, removed (codes whose memory is not free yet), segments, dim, k, metric,
            values, fingerprint, largest (value that uint8 or uint16 can hold); window, block
            (documents in it; 0 if not clustered) of the first segment;
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
            **{n: getattr(self, n) for n in ("dim", "k", "metric", "values", "fingerprint")},
            "largest": self._form.largest,
            "recall": {asked: plan.recall for asked, (_, plan) in self._plans.items()},
        }


__all__ = ["InvertedIndex", "Rerank"]
