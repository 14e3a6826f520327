"""InvertedIndex: exact search over sparse codes, on NumPy alone.

Inverted lists are cut into windows of documents whose scores fit in the L1 cache; a search
adds up one window after the other, list by list, and keeps what clears the bar of the best
hits so far. See csrc/cpu/index_search.cpp.
"""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

from csrkern import _C, index_file
from csrkern.index_input import (
    Rows,
    check_choice,
    check_ids,
    check_int,
    filter_bits,
    read_rows,
    thread_count,
)

METRICS = ("ip", "cosine")
VALUES = ("float16", "float32")
# Scores of 32,768 documents, 128 KB: with more, the scan of a window costs more than the
# longer lists save; with fewer, the reverse (10% at 16,384, 5 to 25% at 65,536).
DEFAULT_WINDOW = 32_768
# Documents whose maxima are kept together where codes are clustered: 32 bytes a code at
# 8,192 latents, 1 in 200 blocks read; 128 reads fewer but costs twice the memory.
DEFAULT_BLOCK = 256
# Fewer codes are scanned faster than their blocks are chosen.
LEAST_WORTH_CLUSTERING = 65_536
# Mean cosine of a code's 8 strongest entries with the nearest of 1 in 128 codes. Evenly drawn
# codes have 0.3 and gain nothing; it is known after a hundredth of the work of clustering.
LEAST_SIMILARITY = 0.4
# A gain that the estimate must promise to be believed.
LEAST_GAIN = 1.25


class InvertedIndex:
    """Exact maximum-inner-product or cosine search over codes with few active latents.

    Make one with `build` or `load`. An index never changes, and every method may be called
    from any number of threads at once; searching releases the GIL.

    Exact means exact in the stored values: a score is the float32 sum over the query's
    entries, by value descending and then by latent, of query value times stored value, each
    product rounded before it is added. The results do not depend on the number of threads,
    the window, the instruction set, or a detour through a file.

    Attributes:
        dim: number of latents.
        k: the most slots that a document had when the index was built.
        metric: "ip" or "cosine".
        values: "float16" or "float32", the form in which values are stored.
    """

    def __init__(
        self,
        native: _C.Index,
        *,
        documents: int,
        dim: int,
        k: int,
        metric: str,
        values: str,
        window: int,
        block: int,
    ) -> None:
        self._native = native
        self._documents = documents
        self._window = window
        self._block = block
        self.dim = dim
        self.k = k
        self.metric = metric
        self.values = values

    @classmethod
    def build(
        cls,
        codes: Any,
        ids: Any = None,
        *,
        metric: str = "ip",
        values: str = "float16",
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
            metric: "ip" scores by inner product; "cosine" brings codes, before they are
                stored, and queries to L2 norm 1.
            values: "float16" rounds values to 2 bytes each, "float32" keeps them.
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
        check_choice("metric", metric, METRICS)
        check_choice("values", values, VALUES)
        if dim is not None:
            dim = check_int("dim", dim, 1, 2**31 - 1)
        rows = read_rows("codes", codes, dim)
        check_int("dim", rows.dim, 1, 2**31 - 1)
        window = DEFAULT_WINDOW if window is None else check_int("window", window, 64, 65_536)
        if window % 64:
            raise ValueError(f"window: expected a multiple of 64, got {window}")
        if cluster not in (None, True, False):
            raise TypeError(f"cluster: expected None, True or False, got {cluster!r}")
        checked_ids = None if ids is None else check_ids(ids, rows.n)
        threads = thread_count(num_threads)
        normalize = metric == "cosine"
        half = values == "float16"

        def assemble(order: np.ndarray | None, block: int) -> _C.Index:
            arrays = _C.build_index(*rows, order, window, block, half, normalize, threads)
            in_order = checked_ids
            if order is not None:
                in_order = order if checked_ids is None else checked_ids[order]
            sizes = {"n_docs": rows.n, "dim": rows.dim, "window": window, "block": block}
            return _C.Index(**sizes, half=half, trusted=True, ids=in_order, **arrays)

        block, native = 0, None
        least = 1 if cluster else LEAST_WORTH_CLUSTERING
        if cluster is not False and rows.n >= least:
            order = _C.cluster_order(*rows, 0 if cluster else LEAST_SIMILARITY, threads)
            if len(order) == rows.n:
                block = _block(rows, window)
                native = assemble(order, block)
            if native is not None and cluster is None:
                sample = np.linspace(0, rows.n - 1, 32).astype(np.int64)
                if native.gain_of_blocks(*rows[:3], sample, normalize) < LEAST_GAIN:
                    block, native = 0, None
        if native is None:
            native = assemble(None, 0)
        return cls(
            native,
            documents=rows.n,
            dim=rows.dim,
            k=rows.k,
            metric=metric,
            values=values,
            window=window,
            block=block,
        )

    def search(
        self,
        queries: Any,
        topk: int = 10,
        *,
        num_threads: int | None = None,
        filter: Any = None,
        mode: str = "exact",
        rerank: Any = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `topk` best documents of each query, exactly.

        Args:
            queries: m codes in any form that `build` takes; a pair of arrays needs no dim.
            topk: results for each query; may exceed the number of documents.
            num_threads: None: as many as the process may run on. A batch is divided by
                queries; a single query, unless the index is clustered, by windows.
            filter: which codes may be found: a boolean mask in the order of `ids`, or the ids
                themselves (those that the index does not hold are passed over); None: all.
            mode, rerank: reserved; see the error that they raise.

        Returns:
            scores float32 [m, topk] and ids int64 [m, topk]: best first, equal scores by
            lower id. Documents that share no latent with the query are left out; missing
            places hold score -inf and id -1.

        Raises:
            TypeError: if an argument has the wrong type.
            ValueError: if an argument is out of range, a query is not valid, or the index
                was loaded from a file that is damaged.
        """
        if mode != "exact":
            raise NotImplementedError(
                f"mode={mode!r} is not built yet: leave it out, the search is exact"
            )
        if rerank is not None:
            raise NotImplementedError(
                "rerank is not built yet: search with a larger topk and re-score its ids"
            )
        topk = check_int("topk", topk, 1, 2**40)
        rows = read_rows("queries", queries, self.dim)
        scores, ids = self._native.search(
            rows.values,
            rows.indices,
            rows.starts,
            topk,
            self.metric == "cosine",
            None if filter is None else filter_bits(filter, self._documents, self._native.ids),
            thread_count(num_threads),
        )
        return scores, ids

    def explain(self, query: Any, topk: int = 10) -> dict[str, int]:
        """What a search for the first of the given queries reads.

        Returns:
            terms: entries of the query whose latent some document uses; postings: in their
            lists altogether; blocks: of documents, where the index is clustered, with
            blocks_scored one by one and windows_scanned from end to end (of windows).
        """
        topk = check_int("topk", topk, 1, 2**40)
        rows = read_rows("query", query, self.dim)
        if rows.n == 0:
            raise ValueError("query: expected a query, got none")
        counts = self._native.explain(
            rows.values, rows.indices, rows.starts, topk, self.metric == "cosine"
        )
        n_blocks = -(-self._documents // self._block) if self._block else 0
        n_windows = -(-self._documents // self._window)
        return {**counts, "blocks": n_blocks, "windows": n_windows}

    def add(self, codes: Any, ids: Any = None) -> None:
        """Not built yet."""
        raise NotImplementedError("add is not built yet: build an index of all codes")

    def remove(self, ids: Any) -> None:
        """Not built yet."""
        raise NotImplementedError("remove is not built yet: build an index of the codes you keep")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the index to a directory, replacing an index that is there.

        A crash at any instant leaves the old index or the new one. Processes that have
        loaded the old one keep it. One process at a time may save to a directory.

        Raises:
            OSError: if a file cannot be written.
            ValueError: if `path` is a file.
        """
        facts = {
            "documents": self._documents,
            "dim": self.dim,
            "k": self.k,
            "metric": self.metric,
            "values": self.values,
            "window": self._window,
            "block": self._block,
        }
        arrays = {name: getattr(self._native, name) for name in index_file.DTYPES}
        index_file.write(path, facts, {n: a for n, a in arrays.items() if a is not None})

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, mmap: bool = True, verify: bool = False
    ) -> InvertedIndex:
        """Reads an index that `save` wrote.

        Every size, offset and checksum of the index is checked at once, its inverted lists
        each before its first use: a damaged file gives a ValueError here or in `search`, not
        a wrong answer.

        Args:
            path: the directory.
            mmap: map the lists into memory, to be read when first needed, instead of
                reading them now.
            verify: check all lists now.

        Raises:
            FileNotFoundError: if there is no index at `path`.
            ValueError: if the files are damaged or of another version.
        """
        facts, arrays = index_file.read(path, mmap)
        try:
            native = _C.Index(
                n_docs=facts["documents"],
                dim=facts["dim"],
                window=facts["window"],
                block=facts["block"],
                half=facts["values"] == "float16",
                trusted=False,
                **arrays,
            )
            if verify:
                native.verify(thread_count(None))
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from error
        return cls(native, **{name: fact for name, fact in facts.items() if name != "arrays"})

    def to_numpy(self) -> tuple[np.ndarray, np.ndarray]:
        """The stored codes: values float32 [n, k] and indices int32 [n, k].

        Rows stand in the order in which they were given, entries in that of SparseCodes (by
        value descending, then by latent), padded with value 0 and index 0.
        """
        starts, latents, values = self._native.rows()
        rows = np.repeat(np.arange(self._documents), np.diff(starts))
        order = np.lexsort((latents, -values, rows))
        slots = np.arange(len(rows)) - starts[rows]
        out_values = np.zeros((self._documents, self.k), np.float32)
        out_indices = np.zeros((self._documents, self.k), np.int32)
        out_values[rows, slots] = values[order]
        out_indices[rows, slots] = latents[order]
        return out_values, out_indices

    @property
    def ids(self) -> np.ndarray:
        """The id of each code in the order in which they were given, int64 [n]."""
        if self._native.ids is None:
            return np.arange(self._documents, dtype=np.int64)
        return self._native.ids.copy()

    def stats(self) -> dict[str, Any]:
        """What the index holds and what a search must touch.

        Returns:
            documents, dim, k, metric, values, window, block (documents in it; 0 if the index
            is not clustered); latents (those in use), postings,
            bytes (memory or disk), bytes_per_code; longest_list (the most documents that
            share a latent); hottest_share (of all postings, in the hottest 1% of the latents
            in use); postings_per_query (expected for queries drawn like the documents).
        """
        native = self._native
        n_windows = -(-self._documents // self._window)
        lengths = np.diff(native.offsets[:: max(n_windows, 1)].astype(np.int64))
        total = int(lengths.sum())
        hottest = np.sort(lengths)[::-1][: -(-len(lengths) // 100)]
        arrays = [getattr(native, name) for name in index_file.DTYPES]
        n_bytes = sum(a.nbytes for a in arrays if a is not None)
        return {
            "documents": self._documents,
            "dim": self.dim,
            "k": self.k,
            "metric": self.metric,
            "values": self.values,
            "window": self._window,
            "block": self._block,
            "latents": len(lengths),
            "postings": total,
            "bytes": n_bytes,
            "bytes_per_code": n_bytes / max(self._documents, 1),
            "longest_list": int(lengths.max(initial=0)),
            "hottest_share": float(hottest.sum() / max(total, 1)),
            "postings_per_query": float(
                (lengths.astype(np.float64) ** 2).sum() / max(self._documents, 1)
            ),
        }

    def __len__(self) -> int:
        return self._documents

    def __repr__(self) -> str:
        return (
            f"InvertedIndex(n={self._documents}, dim={self.dim}, k={self.k}, "
            f"metric={self.metric!r}, values={self.values!r})"
        )


def _block(rows: Rows, window: int) -> int:
    """Documents a block: more than usual where the maxima would outgrow half the postings."""
    block = math.gcd(window, DEFAULT_BLOCK)
    latents = min(rows.dim, rows.values.size)
    while block < window and window % (2 * block) == 0:
        if latents * (rows.n // block) <= 2 * rows.values.size:
            break
        block *= 2
    return block


__all__ = ["InvertedIndex"]
