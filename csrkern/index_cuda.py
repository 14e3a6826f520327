"""CudaIndex: an InvertedIndex on one or several GPUs, equal to it in every result.

The search itself is csrc/cuda/index_search.hpp; here codes are divided among devices, queries and
filters brought to them, and what they find is merged. PyTorch is needed for device tensors only.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from csrkern.index_collection import Collection
from csrkern.index_cuda_input import (
    DeviceRows,
    device_rows,
    host_queries,
    parse_devices,
    same_device,
)
from csrkern.index_cuda_parts import (
    Documents,
    Part,
    cut,
    keep,
    load_native,
    make_parts,
    search_part,
    span,
)
from csrkern.index_filter import allowed_bits
from csrkern.index_input import check_choice, check_ids, check_int, least_float
from csrkern.index_segment import METRICS, VALUES

if TYPE_CHECKING:
    import torch

_ALL = 2**30


class CudaIndex:
    """Exact search on a GPU; made by `InvertedIndex.to` or `build`, and never changed.

    Results are those of the InvertedIndex, to the bit. Searches may run from any number of
    threads and streams at once.

    Attributes:
        dim, k, metric, values: as of the InvertedIndex.
        devices: numbers of the GPUs, one for each range of documents.
    """

    def __init__(
        self,
        native: Any,
        parts: Sequence[Part],
        ids: np.ndarray,
        order: np.ndarray | None,
        *,
        dim: int,
        k: int,
        metric: str,
        values: str,
    ) -> None:
        self._native = native
        self._parts = tuple(parts)
        self._ids = ids
        self._order = order  # documents of ascending ids; None: as `ids` stand
        self._documents = Documents(ids)
        self.dim = dim
        self.k = k
        self.metric = metric
        self.values = values
        self.devices = tuple(part.device for part in parts)

    @classmethod
    def of(
        cls,
        index: Collection,
        device: Any = "cuda",
        *,
        slices: int = 1,
        impact_bits: int = 16,
        block: int | None = None,
    ) -> CudaIndex:
        """The codes of an index on the CPU; see `InvertedIndex.to`."""
        native = load_native()
        numbers = parse_devices(native, device)
        check_int("slices", slices, 1, 2**20)
        form = _form(native, impact_bits, block)
        ids = index.ids
        order = None if (np.diff(ids) > 0).all() else np.argsort(ids, kind="stable")
        made = make_parts(native, index, order, numbers, slices, form)
        return cls(
            native,
            made,
            ids,
            order,
            dim=index.dim,
            k=index.k,
            metric=index.metric,
            values=index.values,
        )

    @classmethod
    def build(
        cls,
        codes: Any,
        ids: Any = None,
        *,
        metric: str = "ip",
        values: str = "float16",
        dim: int | None = None,
        impact_bits: int = 16,
        block: int | None = None,
    ) -> CudaIndex:
        """Builds an index of n codes that are on a GPU, there; the codes do not pass the host.

        Args:
            codes: SparseCodes on a GPU, or a pair of CUDA tensors (values, indices), both
                [n, k], with `dim`.
            ids, metric, values: as for `InvertedIndex.build`; values "float16" or "float32".
            impact_bits, block: as for `InvertedIndex.to`.

        Raises:
            TypeError, ValueError: as `InvertedIndex.build`, or if the codes are not on a GPU.
            MemoryError: if the index does not fit; the message has the numbers.
        """
        native = load_native()
        check_choice("metric", metric, METRICS)
        check_choice("values", values, tuple(v for v in VALUES if v.startswith("float")))
        rows = device_rows(native, "codes", codes, dim)
        if rows is None:
            raise ValueError(
                "codes: expected SparseCodes or a pair of tensors on a GPU; codes elsewhere "
                "go through InvertedIndex.build(...).to('cuda')"
            )
        n = len(rows.values)
        own = np.arange(n, dtype=np.int64) if ids is None else check_ids(_to_host(ids), n)
        order = None if (np.diff(own) > 0).all() else np.argsort(own, kind="stable")
        if order is not None:
            rows = rows.take(order)
        ascending = own if order is None else own[order]
        first, plain = span(ascending)
        kept = None if plain else rows.tensor(ascending)
        built = native.Index.from_device(
            **rows.arguments(native),
            ids=0 if kept is None else kept.data_ptr(),
            first_id=first,
            **_form(native, impact_bits, block),
            dim=rows.dim,
            half=values == "float16",
            normalize=metric == "cosine",
        )
        built.calibrate()
        part = Part(rows.device, 0, n, keep(built), True)
        k = rows.values.shape[1]
        return cls(native, [part], own, order, dim=rows.dim, k=k, metric=metric, values=values)

    def search(
        self,
        queries: Any,
        topk: int = 10,
        *,
        filter: Any = None,
        query_k: int | None = None,
        min_score: float | None = None,
        rerank: Any = None,
        mode: str = "exact",
        recall: float | None = None,
        num_threads: int | None = None,
        way: str = "cheaper",
    ) -> tuple[Any, Any]:
        """The `topk` best documents of each query; see `InvertedIndex.search`.

        With queries on a GPU (SparseCodes, or a pair of CUDA tensors of shape [m, k]) results
        are tensors there; kernels are launched on the current stream and nothing is waited
        for, so that the call can be captured in a CUDA graph, if the index is on that GPU
        alone. Entries of such queries that are not valid (latents out of range, values that
        are negative, infinite or NaN) are passed over: to refuse them would be to wait. Other
        queries are checked, and results are NumPy arrays.

        Args:
            topk: at most 1,024.
            filter: as for `InvertedIndex.search`; masks may be on a GPU.
            query_k, min_score: as for `InvertedIndex.search`.
            rerank: None; rerank on the CPU.
            mode, recall, num_threads: taken, and not needed: this search is exact.
            way: how documents are scored: "walk" adds up the query's postings, "gather" reads
                all codes, "cheaper" is in each block of documents what was measured to cost
                less. It changes the speed only.

        Raises:
            TypeError, ValueError: as `InvertedIndex.search`.
            MemoryError: if there is no memory on the GPU left for the search.
            RuntimeError: if a CUDA call fails.
        """
        check_choice("mode", mode, ("exact", "fast"))
        check_choice("way", way, ("cheaper", "walk", "gather"))
        if rerank is not None:
            raise ValueError("rerank: expected None; an index on a GPU does not rerank")
        options = self._options(topk, query_k, min_score, way)
        on_device = device_rows(self._native, "queries", queries, self.dim)
        if on_device is not None:
            return self._search_device(on_device, filter, options)
        rows = host_queries(queries, self.dim, self._native.MOST_ENTRIES)
        return self._search_host(rows, filter, options)

    def _options(
        self, topk: int, query_k: int | None, min_score: float | None, way: str
    ) -> dict[str, Any]:
        least = 0.0 if min_score is None else least_float("min_score", min_score)
        return {
            "topk": check_int("topk", topk, 1, self._native.MOST_HITS),
            "normalize": self.metric == "cosine",
            "query_k": _ALL
            if query_k is None
            else min(check_int("query_k", query_k, 1, 2**62), _ALL),
            "min_score": max(least, 0.0),
            "way": getattr(self._native.Way, way),
            "count_work": False,
        }

    def _search_host(
        self, rows: tuple[np.ndarray, np.ndarray], filter: Any, options: dict[str, Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        values, indices = rows
        allowed = self._allowed(_to_host(filter), len(values))
        found = [
            part.open().search_from_host(
                values=values, indices=indices, allowed=cut(allowed, part), **options
            )
            for part in self._parts
        ]
        if len(found) == 1:
            return found[0]
        scores, ids = (np.concatenate(arrays, axis=1) for arrays in zip(*found, strict=True))
        best = np.argsort(-scores, axis=1, kind="stable")[:, : options["topk"]]
        return np.take_along_axis(scores, best, 1), np.take_along_axis(ids, best, 1)

    def _search_device(
        self, rows: DeviceRows, filter: Any, options: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        m = len(rows.values)
        if rows.values.shape[1] > self._native.MOST_ENTRIES:
            raise ValueError(
                f"queries: expected at most {self._native.MOST_ENTRIES} slots each, "
                f"got {rows.values.shape[1]}"
            )
        home = rows.values.device
        allowed = self._allowed_on_device(filter, m, home)
        found = []
        for part in self._parts:
            there = same_device(self._native, home, part.device)
            mask = cut(allowed, part)
            mask = None if mask is None else mask.to(there)
            scores, ids = search_part(self._native, part, rows.to(there), mask, options)
            found.append((scores.to(home), ids.to(home)))
        if len(found) == 1:
            return found[0]
        scores, ids = (torch.cat(tensors, 1) for tensors in zip(*found, strict=True))
        # Parts stand by ascending ids: a stable order puts equal scores by lower id.
        best = torch.sort(scores, dim=1, descending=True, stable=True)[1][:, : options["topk"]]
        return scores.gather(1, best), ids.gather(1, best)

    def _allowed(self, filter: Any, m: int) -> np.ndarray | None:
        """A byte for each document, by ascending id, [n] or [m, n]; None: all."""
        bits = allowed_bits(filter, [self._documents], m)[0]  # type: ignore[list-item]
        if bits is None:
            return None
        octets = np.ascontiguousarray(bits).view(np.uint8)
        allowed = np.unpackbits(octets, axis=-1, count=len(self), bitorder="little")
        return np.ascontiguousarray(allowed if self._order is None else allowed[..., self._order])

    def _allowed_on_device(self, filter: Any, m: int, home: Any) -> torch.Tensor | None:
        import torch

        if (
            isinstance(filter, torch.Tensor)
            and filter.dtype == torch.bool
            and filter.device == home
        ):
            if filter.shape not in ((len(self),), (m, len(self))):
                raise ValueError(
                    f"filter: expected a mask of {len(self)} codes, or one for each of {m} "
                    f"queries, got shape {list(filter.shape)}"
                )
            if self._order is not None:
                filter = filter[..., torch.from_numpy(self._order).to(home)]
            return filter.view(torch.uint8)
        allowed = self._allowed(_to_host(filter), m)
        return None if allowed is None else torch.from_numpy(allowed).to(home)

    def explain(self, queries: Any, topk: int = 10, *, way: str = "cheaper") -> dict[str, int]:
        """What a search for all of the given queries does.

        Returns:
            walks and gathers: pairs of a query and a block of documents scored by adding up
            postings, and by reading all codes of the block; postings and entries: read so.
        """
        options = self._options(topk, None, None, way) | {"count_work": True}
        values, indices = host_queries(queries, self.dim, self._native.MOST_ENTRIES)
        total: dict[str, int] = {}
        for part in self._parts:
            native = part.open()
            native.take_work()
            native.search_from_host(values=values, indices=indices, allowed=None, **options)
            for name, count in native.take_work().items():
                total[name] = total.get(name, 0) + count
        return total

    def stats(self) -> dict[str, Any]:
        """What the index holds.

        Returns:
            documents, dim, k, metric, values; devices; slices (parts that are brought to their
            device for each search, 0 if the index stays there); postings, bytes (of device
            memory) and bytes_per_code of what stays there; gather_cost (of reading one entry of
            a code, in postings, as measured on the first device).
        """
        resident = [part.open() for part in self._parts if part.resident]
        n_bytes = sum(native.bytes for native in resident)
        return {
            "documents": len(self),
            **{name: getattr(self, name) for name in ("dim", "k", "metric", "values")},
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
            f"values={self.values!r}, devices={sorted(set(self.devices))})"
        )


def _form(native: Any, impact_bits: int, block: int | None) -> dict[str, Any]:
    if impact_bits not in (8, 16):
        raise ValueError(f"impact_bits: expected 8 or 16, got {impact_bits!r}")
    block = native.BLOCK if block is None else check_int("block", block, 64, 65_536)
    if block % 64:
        raise ValueError(f"block: expected a multiple of 64, got {block}")
    return {"impact_bits": impact_bits, "block": block}


def _to_host(array: Any) -> Any:
    """A tensor as an array; all else as it is."""
    torch = sys.modules.get("torch")
    return array.cpu().numpy() if torch is not None and isinstance(array, torch.Tensor) else array
