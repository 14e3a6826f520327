"""InvertedIndex: exact search over sparse codes, on NumPy alone.

Inverted lists are cut into windows of documents whose scores fit in the L1 cache; a search
adds up one window after the other, list by list, and keeps what clears the bar of the best
hits so far. See csrc/cpu/index_search.cpp.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from csrkern import _C, index_file
from csrkern.index_input import Rows, read_rows

METRICS = ("ip", "cosine")
VALUES = ("float16", "float32")
# 16,384 float scores: the fastest or even with it on most sets of codes, from 4k to 64k.
DEFAULT_WINDOW = 16_384


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
    ) -> None:
        self._native = native
        self._documents = documents
        self._window = window
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
            window: documents a window, a multiple of 64 up to 65,536; None chooses. It
                changes the speed only.
            num_threads: None: as many as the process may run on.

        Raises:
            TypeError: if an argument has the wrong type.
            ValueError: if an argument is out of range, or a code is not valid.
        """
        _check_choice("metric", metric, METRICS)
        _check_choice("values", values, VALUES)
        if dim is not None:
            dim = _check_int("dim", dim, 1, 2**31 - 1)
        rows = read_rows("codes", codes, dim)
        _check_int("dim", rows.dim, 1, 2**31 - 1)
        window = DEFAULT_WINDOW if window is None else _check_int("window", window, 64, 65_536)
        if window % 64:
            raise ValueError(f"window: expected a multiple of 64, got {window}")
        checked_ids = None if ids is None else _check_ids(ids, rows.n)
        terms, offsets, checksums, postings = _C.build_index(
            rows.values,
            rows.indices,
            rows.starts,
            rows.dim,
            window,
            values == "float16",
            metric == "cosine",
            _threads(num_threads),
        )
        native = _C.Index(
            n_docs=rows.n,
            dim=rows.dim,
            window=window,
            half=values == "float16",
            trusted=True,
            terms=terms,
            offsets=offsets,
            checksums=checksums,
            postings=postings,
            ids=checked_ids,
        )
        return cls(
            native,
            documents=rows.n,
            dim=rows.dim,
            k=rows.k,
            metric=metric,
            values=values,
            window=window,
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
                queries, a single query by windows.
            filter, mode, rerank: reserved; see the error that they raise.

        Returns:
            scores float32 [m, topk] and ids int64 [m, topk]: best first, equal scores by
            lower id. Documents that share no latent with the query are left out; missing
            places hold score -inf and id -1.

        Raises:
            TypeError: if an argument has the wrong type.
            ValueError: if an argument is out of range, a query is not valid, or the index
                was loaded from a file that is damaged.
        """
        if filter is not None:
            raise NotImplementedError(
                "filter is not built yet: search with a larger topk and drop the ids you do not "
                "want, or build an index of the documents you do want"
            )
        if mode != "exact":
            raise NotImplementedError(
                f"mode={mode!r} is not built yet: leave it out, the search is exact"
            )
        if rerank is not None:
            raise NotImplementedError(
                "rerank is not built yet: search with a larger topk and re-score its ids"
            )
        topk = _check_int("topk", topk, 1, 2**40)
        rows = read_rows("queries", queries, self.dim)
        scores, ids = self._native.search(
            rows.values,
            rows.indices,
            rows.starts,
            topk,
            self.metric == "cosine",
            _threads(num_threads),
        )
        return scores, ids

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
                half=facts["values"] == "float16",
                trusted=False,
                ids=arrays.pop("ids", None),
                **arrays,
            )
            if verify:
                native.verify(_threads(None))
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
            documents, dim, k, metric, values, window; latents (those in use), postings,
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


def _threads(num_threads: int | None) -> int:
    if num_threads is None:
        return _C.available_threads()
    return _check_int("num_threads", num_threads, 1, 4096)


def _check_int(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name}: expected {low} <= {name} <= {high}, got {value}")
    return int(value)


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def _check_ids(ids: Any, n: int) -> np.ndarray:
    array = np.asarray(ids)
    if array.dtype.kind not in "iu":
        raise TypeError(f"ids: expected integers, got {array.dtype}")
    if array.shape != (n,):
        raise ValueError(f"ids: expected one id for each of {n} codes, got {list(array.shape)}")
    if n and (array.min() < 0 or array.max() >= 2**63):
        raise ValueError("ids: expected integers in 0..2^63-1; -1 marks a missing result")
    array = np.array(array, dtype=np.int64)
    if (np.diff(array) <= 0).any() and (np.diff(np.sort(array)) == 0).any():
        raise ValueError("ids: expected distinct ids; one comes twice")
    return array


__all__ = ["InvertedIndex", "Rows"]
