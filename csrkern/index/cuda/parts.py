"""The parts of an index that are on GPUs, or brought there for each search."""

from __future__ import annotations

import functools
import importlib
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from csrkern.index.collection import Collection
from csrkern.index.cuda.input import DeviceRows
from csrkern.index.rows import Rows, concatenate_rows
from csrkern.index.segment import Form, beside_of

if TYPE_CHECKING:
    import torch


def load_native() -> Any:
    """Return the native module of GPUs.

    Raises:
        RuntimeError: if csrkern was built without it, or there is no GPU.
    """
    try:
        native = importlib.import_module("csrkern._cuda")
    except ImportError as error:
        raise RuntimeError(
            "this csrkern was built without CUDA: install it where nvcc is on PATH "
            f"(or CSRKERN_CUDA=1 says why not) ({error})"
        ) from error
    if native.count_devices() == 0:
        raise RuntimeError("no CUDA device: expected an NVIDIA GPU and its driver")
    return native


# Of dense queries that are brought from the host to a GPU at once.
_DENSE_BYTES = 256 << 20


class Part(NamedTuple):
    """Some of the documents, by ascending id: `n_docs` from `first` on.

    `open` gives the native index: one that is on its device, or one made for this search.
    """

    device: int
    first: int
    n_docs: int
    open: Callable[[], Any]
    resident: bool


def upload(
    native: Any,
    device: int,
    rows: Rows,
    ids: np.ndarray,
    norms: np.ndarray | None,
    form: dict[str, Any],
) -> Any:
    """Return rows in host memory as a native index on a GPU; its memory is freed with it."""
    first, plain = span(ids)
    built = native.Index.from_host(
        device=device,
        values=rows.values,
        indices=rows.indices,
        starts=rows.starts,
        ids=None if plain else ids,
        norms=norms,
        first_id=first,
        **form,
    )
    built.calibrate()
    return built


def keep(native: Any) -> Callable[[], Any]:
    """Return the opener of an index that stays on its device."""
    return lambda: native


def cut(allowed: Any, part: Part) -> Any:
    """Return a part's bytes of a filter, contiguous."""
    if allowed is None:
        return None
    own = allowed[..., part.first : part.first + part.n_docs]
    return np.ascontiguousarray(own) if isinstance(own, np.ndarray) else own.contiguous()


def span(ids: np.ndarray) -> tuple[int, bool]:
    """Return the first of ascending ids, and whether the others follow it without a gap."""
    first = int(ids[0]) if len(ids) else 0
    return first, len(ids) == 0 or int(ids[-1]) - first == len(ids) - 1


def stored_as(form: Form, dim: int) -> dict[str, Any]:
    """How codes are stored, as the native module takes it."""
    return {"dim": dim, "dtype": form.dtype, "exponent": form.exponent or 0}


def make_parts(
    native: Any,
    index: Collection,
    order: np.ndarray | None,
    devices: list[int],
    slices: int,
    form: dict[str, Any],
) -> list[Part]:
    """Return the codes of an index on the CPU, in `order`, in equal ranges.

    One for each device, or as many slices for each that do not stay there.
    """
    segments, stored, *_ = index.snapshot()
    rows = concatenate_rows([segment.rows() for segment in segments])
    ids = np.concatenate([segment.ids for segment in segments])
    norms = beside_of(segments).norms
    if order is not None:
        rows, ids = rows.take(order), ids[order]
        norms = None if norms is None else norms[order]
    # They are stored as they are to be found: at norm 1 already, and rounded.
    form = form | stored_as(stored, index.dim) | {"normalize": False}
    cuts = np.linspace(0, len(ids), len(devices) * slices + 1).astype(np.int64).tolist()
    parts = []
    for i, (first, end) in enumerate(itertools.pairwise(cuts)):
        own_norms = None if norms is None else norms[first:end]
        device, own = devices[i // slices], rows.between(first, end)
        opened = functools.partial(upload, native, device, own, ids[first:end], own_norms, form)
        resident = slices == 1
        parts.append(
            Part(device, first, end - first, keep(opened()) if resident else opened, resident)
        )
    return parts


def search_part_from_host(
    part: Part,
    rows: tuple[np.ndarray, np.ndarray],
    mask: np.ndarray | None,
    dense: np.ndarray | None,
    offsets: np.ndarray | None,
    options: dict[str, Any],
) -> tuple[np.ndarray, ...]:
    """Search for queries (values, indices); `mask` is the part's.

    Returns scores, ids and, with `dense` queries [m, dim], the scores by these.
    """
    values, indices = rows
    native, m = part.open(), max(len(values), 1)
    step = m if dense is None else max(1, _DENSE_BYTES // (4 * dense.shape[1]))
    pieces = []
    for begin in range(0, m, step):
        some = slice(begin, begin + step)
        pieces.append(
            native.search_from_host(
                values=values[some],
                indices=indices[some],
                allowed=mask if mask is None or mask.ndim == 1 else mask[some],
                dense=None if dense is None else dense[some],
                offsets=None if offsets is None else offsets[some],
                **options,
            )
        )
    return tuple(np.concatenate(arrays) for arrays in zip(*pieces, strict=True))


def work_of_part(
    part: Part, rows: tuple[np.ndarray, np.ndarray], options: dict[str, Any]
) -> dict[str, int]:
    """Return counts of what a search does; one runs at a time."""
    native = part.open()
    native.take_work()
    native.search_from_host(
        values=rows[0], indices=rows[1], allowed=None, dense=None, offsets=None, **options
    )
    counts: dict[str, int] = native.take_work()
    return counts


def search_part(
    native: Any,
    part: Part,
    rows: DeviceRows,
    mask: torch.Tensor | None,
    dense: torch.Tensor | None,
    offsets: torch.Tensor | None,
    options: dict[str, Any],
) -> tuple[torch.Tensor, ...]:
    """Launch a search on the device and stream of `rows`, where all tensors are.

    `mask` is the part's. Returns scores, ids and, with `dense` queries [m, dim], the scores by
    these.
    """
    import torch

    index = part.open()
    arguments = rows.arguments(native)
    del arguments["device"]
    there, shape = rows.values.device, (len(rows.values), options["top_k"])
    n_bytes = index.workspace_bytes(arguments["n"], arguments["width"], options["top_k"])
    workspace = torch.empty(n_bytes, dtype=torch.uint8, device=there)
    scores = torch.empty(shape, dtype=torch.float32, device=there)
    ids = torch.empty(shape, dtype=torch.int64, device=there)
    again = None if dense is None else torch.empty_like(scores)
    index.search(
        **arguments,
        allowed=address(mask),
        allowed_stride=part.n_docs if mask is not None and mask.dim() == 2 else 0,
        dense=address(dense),
        offsets=address(offsets),
        scores=scores.data_ptr(),
        ids=ids.data_ptr(),
        dense_scores=address(again),
        workspace=workspace.data_ptr(),
        workspace_bytes=n_bytes,
        **options,
    )
    return (scores, ids) if again is None else (scores, ids, again)


def address(tensor: torch.Tensor | None) -> int:
    """Of the memory of a tensor, 0 if there is none."""
    return 0 if tensor is None else tensor.data_ptr()


_LAST = 2**63 - 1


def merge_arrays(results: Sequence[tuple[np.ndarray, ...]], top_k: int) -> tuple[np.ndarray, ...]:
    """Return the best `top_k` by the first array, scores [m, ...] best first, of each of `results`.

    Parts stand by ascending ids, so that a stable order puts equal scores by lower id.
    """
    if len(results) == 1:
        return results[0]
    together = [np.concatenate(arrays, axis=1) for arrays in zip(*results, strict=True)]
    best = np.argsort(-together[0], axis=1, kind="stable")[:, :top_k]
    return tuple(np.take_along_axis(array, best, 1) for array in together)


def merge_tensors(
    results: Sequence[tuple[torch.Tensor, ...]], top_k: int
) -> tuple[torch.Tensor, ...]:
    """Return what `merge_arrays` does, of tensors."""
    import torch

    if len(results) == 1:
        return results[0]
    together = [torch.cat(tensors, 1) for tensors in zip(*results, strict=True)]
    best = torch.sort(together[0], dim=1, descending=True, stable=True)[1][:, :top_k]
    return tuple(tensor.gather(1, best) for tensor in together)


def rerank_arrays(
    ids: np.ndarray, scores: np.ndarray, top_k: int, least: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the best `top_k` by other scores [m, s] of at least `least`; equal: by lower id."""
    gone = (ids < 0) | (scores < least)
    best = np.lexsort((ids, -scores, gone))[:, :top_k]
    scores = np.take_along_axis(np.where(gone, np.float32(-np.inf), scores), best, 1)
    ids = np.take_along_axis(np.where(gone, -1, ids), best, 1)
    missing = ((0, 0), (0, top_k - best.shape[1]))
    return (
        np.pad(scores, missing, constant_values=-np.inf),
        np.pad(ids, missing, constant_values=-1),
    )


def rerank_tensors(
    ids: torch.Tensor, scores: torch.Tensor, top_k: int, least: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `rerank_arrays` does, of tensors."""
    import torch

    gone = (ids < 0) | (scores < least)
    scores = scores.masked_fill(gone, -torch.inf)
    ids, by_id = torch.sort(ids.masked_fill(gone, _LAST), dim=1, stable=True)
    scores, best = torch.sort(scores.gather(1, by_id), dim=1, descending=True, stable=True)
    gone = gone.gather(1, by_id).gather(1, best)
    ids = ids.gather(1, best).masked_fill(gone, -1)
    missing = (0, max(top_k - ids.shape[1], 0))
    return (
        torch.nn.functional.pad(scores[:, :top_k], missing, value=-torch.inf),
        torch.nn.functional.pad(ids[:, :top_k], missing, value=-1),
    )
