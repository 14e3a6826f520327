"""CudaIndex: an InvertedIndex on one or several GPUs, equal to it in every result.

The search itself is csrc/cuda/index_search.hpp; here codes are divided among devices, queries and
filters brought to them, and what they find is merged. PyTorch is needed for device tensors only.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from csrkern.arguments import check_choice, check_int
from csrkern.identity import check_same_model
from csrkern.index.collection import Collection
from csrkern.index.cuda.input import (
    DeviceRows,
    Filters,
    device_rerank,
    device_rows,
    host_queries,
    parse_devices,
    same_device,
    to_host,
)
from csrkern.index.cuda.parts import (
    Part,
    address,
    cut,
    keep,
    load_native,
    make_parts,
    merge_arrays,
    merge_tensors,
    rerank_arrays,
    rerank_tensors,
    search_part,
    search_part_from_host,
    span,
    stored_as,
    work_of_part,
)
from csrkern.index.fast import check_mode, search_limits
from csrkern.index.rerank import Refine, Rerank, search_dense
from csrkern.index.rows import check_ids, check_norms, is_codes
from csrkern.index.segment import SQUARES, check_form, check_window

if TYPE_CHECKING:
    import torch

    from csrkern.typing import CodesLike, DevicesLike, FilterLike, IdsLike, VectorsLike


_FACTS = ("dim", "k", "metric", "dtype", "fingerprint")


class CudaIndex:
    """Exact search on a GPU; made by `InvertedIndex.to` or `build`, and never changed.

    Results are those of the InvertedIndex, to the bit. Searches may run from any number of
    threads and streams at once. What else an InvertedIndex can do (`add`, `remove`, `save`,
    `search_above`, ...) is for the one on the CPU that this was made of.

    Attributes:
        dim: number of latents.
        k: the most slots of a document.
        metric: "ip" or "cosine".
        dtype: in which values are stored; see `InvertedIndex`.
        fingerprint: of the model that made the codes; None: not known.
        devices: numbers of the GPUs, one for each range of documents.
    """

    dim: int
    k: int
    metric: str
    dtype: str
    fingerprint: str | None
    devices: tuple[int, ...]
    _native: Any
    _parts: tuple[Part, ...]
    _ids: np.ndarray
    _filters: Filters
    _profiling: threading.Lock

    def __init__(self, *args: Any, **options: Any) -> None:
        raise TypeError(
            "CudaIndex: make one with index.to('cuda') of an InvertedIndex, or with "
            "CudaIndex.build(codes) of codes on a GPU"
        )

    @classmethod
    def _of_parts(
        cls,
        native: Any,
        parts: Sequence[Part],
        ids: np.ndarray,
        order: np.ndarray | None,
        **facts: Any,
    ) -> CudaIndex:
        """Return an index of these parts, with its public attributes."""
        index = cls.__new__(cls)
        index._native = native
        index._parts = tuple(parts)
        index._ids = ids
        index._filters = Filters(ids, order)
        index._profiling = threading.Lock()
        index.devices = tuple(part.device for part in parts)
        vars(index).update(facts)
        return index

    @classmethod
    def of(
        cls,
        index: Collection,
        device: DevicesLike = "cuda",
        *,
        slices: int = 1,
        impact_bits: int = 16,
        window: int | None = None,
    ) -> CudaIndex:
        """Return the codes of an index on the CPU as a CudaIndex; see `InvertedIndex.to`."""
        native = load_native()
        numbers = parse_devices(native, device)
        check_int("slices", slices, 1, 2**20)
        if index.only_fine:
            raise ValueError(
                "device: this index holds no lists, and GPUs search by nothing else; "
                "search_fine(embeddings) searches it on the CPU"
            )
        form = _form(native, impact_bits, window)
        ids = index.ids
        order = None if (np.diff(ids) > 0).all() else np.argsort(ids, kind="stable")
        made = make_parts(native, index, order, numbers, slices, form)
        facts = {name: getattr(index, name) for name in _FACTS}
        return cls._of_parts(native, made, ids, order, **facts)

    @classmethod
    def build(
        cls,
        codes: CodesLike,
        ids: IdsLike | None = None,
        *,
        metric: str = "cosine",
        dtype: str = "float16",
        largest: float | None = None,
        norms: VectorsLike | None = None,
        dim: int | None = None,
        impact_bits: int = 16,
        window: int | None = None,
    ) -> CudaIndex:
        """Build an index of n codes that are on a GPU, there; the codes do not pass the host.

        Args:
            codes: SparseCodes on a GPU, or a pair of CUDA tensors (values, indices), both
                [n, k], with `dim`.
            ids, metric, dtype, largest, norms: as for `InvertedIndex.build`.
            impact_bits, window: as for `InvertedIndex.to`.

        Raises:
            TypeError, ValueError: as `InvertedIndex.build`, or if the codes are not on a GPU.
            MemoryError: if the index does not fit; the message has the numbers.
        """
        native = load_native()
        form = check_form(metric, dtype, None, None, largest)
        rows = device_rows(native, "codes", codes, dim)
        if rows is None:
            raise ValueError(
                "codes: expected SparseCodes or a pair of tensors on a GPU; codes elsewhere "
                "go through InvertedIndex.build(...).to('cuda')"
            )
        n = len(rows.values)
        own = np.arange(n, dtype=np.int64) if ids is None else check_ids(to_host(ids), n)
        if norms is not None:
            norms = check_norms(to_host(norms), n)
        order = None if (np.diff(own) > 0).all() else np.argsort(own, kind="stable")
        if dtype in SQUARES and rows.values.numel():
            form = form.holding(rows.values.max().float().cpu().numpy())
        ascending = own
        if order is not None:
            rows, ascending = rows.take(order), own[order]
            norms = None if norms is None else norms[order]
        first, plain = span(ascending)
        kept = None if plain else rows.tensor(ascending)
        kept_norms = None if norms is None else rows.tensor(norms)
        built = native.Index.from_device(
            **rows.arguments(native),
            ids=address(kept),
            norms=address(kept_norms),
            first_id=first,
            **_form(native, impact_bits, window),
            **stored_as(form, rows.dim),
            normalize=metric == "cosine",
        )
        built.calibrate()
        part = Part(rows.device, 0, n, keep(built), True)
        return cls._of_parts(
            native,
            [part],
            own,
            order,
            dim=rows.dim,
            k=rows.values.shape[1],
            metric=metric,
            dtype=dtype,
            fingerprint=codes.fingerprint if is_codes(codes) else None,
        )

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
        way: str = "cheaper",
    ) -> tuple[Any, Any]:
        """Return the `top_k` best documents of each query; see `InvertedIndex.search`.

        With queries on a GPU (SparseCodes, or a pair of CUDA tensors of shape [m, k]) results
        are tensors there; kernels are launched on the current stream and nothing is waited
        for, so that the call can be captured in a CUDA graph, if the index is on that GPU
        alone. Entries of such queries that are not valid (latents out of range, values that
        are negative, infinite or NaN) are passed over: to refuse them would be to wait. Other
        queries are checked, and results are NumPy arrays.

        Args:
            top_k: at most 1,024.
            filter: as for `InvertedIndex.search`; masks may be on a GPU.
            query_k, min_score: as for `InvertedIndex.search`.
            rerank: a `Rerank`, with a shortlist of at most 1,024; `Refine` is refused. Dense
                queries that are on the GPU with the others are not checked.
            any_model: as for `InvertedIndex.search`.
            mode, recall, num_threads: taken, and not needed: this search is exact.
            way: how documents are scored: "walk" adds up the query's postings, "gather" reads
                all codes, "cheaper" is in each window of documents what was measured to cost
                less. It changes the speed only.

        Raises:
            TypeError, ValueError: as `InvertedIndex.search`.
            MemoryError: if there is no memory on the GPU left for the search.
            RuntimeError: if a CUDA call fails.
        """
        check_mode(mode, recall, rerank)
        if isinstance(rerank, Refine):
            raise ValueError(
                "rerank: expected a Rerank, got a Refine: fine codes are not on the GPU; search "
                "the InvertedIndex that this was made of"
            )
        check_choice("way", way, ("cheaper", "walk", "gather"))
        options, least = self._options(top_k, query_k, min_score, way)
        top_k = options["top_k"]
        if rerank is not None:
            check_same_model("rerank", rerank.fingerprint, self.fingerprint, any_model=any_model)
            # The shortlist is the best by sparse score, however low.
            options |= {"top_k": self._shortlist(rerank), "min_score": 0.0}
        if is_codes(queries):
            check_same_model("queries", queries.fingerprint, self.fingerprint, any_model=any_model)
        on_device = device_rows(self._native, "queries", queries, self.dim)
        if on_device is not None:
            there = self._search_device(on_device, filter, rerank, options)
            if rerank is None:
                return there[0], there[1]
            return rerank_tensors(there[1], there[2], top_k, least)
        rows = host_queries(queries, self.dim, self._native.MOST_ENTRIES)
        here = self._search_host(rows, filter, rerank, options)
        if rerank is None:
            return here[0], here[1]
        return rerank_arrays(here[1], here[2], top_k, least)

    def search_dense(
        self,
        dense_queries: VectorsLike,
        top_k: int = 10,
        *,
        latents: int = 128,
        shortlist: int = 100,
        offsets: VectorsLike | None = None,
        **options: Any,
    ) -> tuple[Any, Any]:
        """Return the best documents of dense queries W q; see `InvertedIndex.search_dense`."""
        rerank = Rerank(dense_queries, shortlist, offsets)
        return search_dense(self, rerank, top_k, latents, **options)

    def _shortlist(self, rerank: Rerank) -> int:
        shortlist = min(check_int("shortlist", rerank.shortlist, 1, 2**40), max(len(self), 1))
        if shortlist > self._native.MOST_HITS:
            raise ValueError(
                f"rerank: expected a shortlist of at most {self._native.MOST_HITS} on a GPU, "
                f"got {rerank.shortlist}"
            )
        return shortlist

    def _options(
        self, top_k: int, query_k: int | None, min_score: float | None, way: str
    ) -> tuple[dict[str, Any], float]:
        """Return the options of the native search, and the least score."""
        limits = search_limits(self.metric, query_k, min_score)
        return limits | {
            "top_k": check_int("top_k", top_k, 1, self._native.MOST_HITS),
            "query_k": min(limits["query_k"], 2**30),
            "min_score": max(limits["min_score"], 0.0),
            "way": getattr(self._native.Way, way),
            "count_work": False,
        }, limits["min_score"]

    def _search_host(
        self,
        rows: tuple[np.ndarray, np.ndarray],
        filter: Any,
        rerank: Rerank | None,
        options: dict[str, Any],
    ) -> tuple[np.ndarray, ...]:
        m = len(rows[0])
        allowed = self._filters.on_host(filter, m)
        dense, offsets = (None, None) if rerank is None else rerank.arrays(m, self.dim)
        results = [
            search_part_from_host(part, rows, cut(allowed, part), dense, offsets, options)
            for part in self._parts
        ]
        return merge_arrays(results, options["top_k"])

    def _search_device(
        self, rows: DeviceRows, filter: Any, rerank: Rerank | None, options: dict[str, Any]
    ) -> tuple[torch.Tensor, ...]:
        m, slots = rows.values.shape
        if slots > self._native.MOST_ENTRIES:
            raise ValueError(
                f"queries: expected at most {self._native.MOST_ENTRIES} slots each, got {slots}"
            )
        home = rows.values.device
        allowed = self._filters.on_device(filter, m, home)
        dense, offsets = (
            (None, None) if rerank is None else device_rerank(rerank, m, self.dim, home)
        )
        results = []
        for part in self._parts:
            there = same_device(self._native, home, part.device)
            mask, queries, added = (
                None if tensor is None else tensor.to(there)
                for tensor in (cut(allowed, part), dense, offsets)
            )
            own = search_part(self._native, part, rows.to(there), mask, queries, added, options)
            results.append(tuple(tensor.to(home) for tensor in own))
        return merge_tensors(results, options["top_k"])

    def profile(
        self, queries: CodesLike, top_k: int = 10, *, way: str = "cheaper"
    ) -> dict[str, int]:
        """Return counts of what a search for some queries reads.

        Returns:
            Sums over the queries. walks and gathers: pairs of a query and a window of documents
            scored by adding up postings, and by reading all codes of the window; postings and
            entries: read so.
        """
        options = self._options(top_k, None, None, way)[0] | {"count_work": True}
        rows = host_queries(queries, self.dim, self._native.MOST_ENTRIES)
        total: dict[str, int] = {}
        for part in self._parts:
            with self._profiling:
                counts = work_of_part(part, rows, options)
            total = {name: total.get(name, 0) + count for name, count in counts.items()}
        return total

    def stats(self) -> dict[str, Any]:
        """Return what the index holds.

        Returns:
            documents, dim, k, metric, dtype, fingerprint; devices; slices (parts that are brought
            to their device for each search, 0 if the index stays there); postings, bytes (of device
            memory) and bytes_per_code of what stays there; gather_cost (of reading one entry of
            a code, in postings, as measured on the first device).
        """
        resident = [part.open() for part in self._parts if part.resident]
        n_bytes = sum(native.bytes for native in resident)
        return {
            "documents": len(self),
            **{name: getattr(self, name) for name in _FACTS},
            "devices": sorted(set(self.devices)),
            "slices": len(self._parts) - len(resident),
            "postings": sum(native.entries for native in resident),
            "bytes": n_bytes,
            "bytes_per_code": n_bytes / max(len(self), 1),
            "gather_cost": resident[0].gather_cost if resident else None,
        }

    @property
    def ids(self) -> np.ndarray:
        """The id of each code, in the order that masks follow, int64 [n]."""
        return self._ids.copy()

    def __len__(self) -> int:
        return len(self._ids)

    def __repr__(self) -> str:
        return (
            f"CudaIndex(n={len(self)}, dim={self.dim}, k={self.k}, metric={self.metric!r}, "
            f"dtype={self.dtype!r}, devices={sorted(set(self.devices))})"
        )


def _form(native: Any, impact_bits: int, window: int | None) -> dict[str, Any]:
    if impact_bits not in (8, 16):
        raise ValueError(f"impact_bits: expected 8 or 16, got {impact_bits!r}")
    return {"impact_bits": impact_bits, "window": check_window(window) or native.WINDOW}
