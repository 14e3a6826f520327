"""The parts of an index that are on GPUs, or brought there for each search."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from csrkern.index_collection import Collection
from csrkern.index_cuda_input import DeviceRows, reordered
from csrkern.index_input import Rows
from csrkern.index_segment import Lookup

if TYPE_CHECKING:
    import torch


def load_native() -> Any:
    """The native module of the GPU part.

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


class Part(NamedTuple):
    """Some of the documents, by ascending id: `n_docs` from `first` on.

    `open` gives the native index: one that is on its device, or one made for this search.
    """

    device: int
    first: int
    n_docs: int
    open: Callable[[], Any]
    resident: bool


class Documents:
    """The documents of an index as filters see those of a segment."""

    alive = None

    def __init__(self, ids: np.ndarray) -> None:
        self.documents = len(ids)
        self.find = Lookup(ids, len(ids)).find

    def __len__(self) -> int:
        return self.documents


class Upload:
    """Rows in host memory that become an index on a GPU when called."""

    def __init__(
        self, native: Any, device: int, rows: Rows, ids: np.ndarray, form: dict[str, Any]
    ) -> None:
        self.device = device
        self._native = native
        self._rows = rows
        self._form = form
        self._first, plain = span(ids)
        self._ids = None if plain else ids

    def __call__(self) -> Any:
        """The native index; its memory is freed with it."""
        return self._native.Index.from_host(
            device=self.device,
            values=self._rows.values,
            indices=self._rows.indices,
            starts=self._rows.starts,
            ids=self._ids,
            first_id=self._first,
            **self._form,
        )


def keep(native: Any) -> Callable[[], Any]:
    """What gives an index that stays on its device."""
    return lambda: native


def cut(allowed: Any, part: Part) -> Any:
    """A part's bytes of a filter, contiguous."""
    if allowed is None:
        return None
    own = allowed[..., part.first : part.first + part.n_docs]
    return np.ascontiguousarray(own) if isinstance(own, np.ndarray) else own.contiguous()


def span(ids: np.ndarray) -> tuple[int, bool]:
    """The first of ascending ids, and whether the others follow it without a gap."""
    first = int(ids[0]) if len(ids) else 0
    return first, len(ids) == 0 or int(ids[-1]) - first == len(ids) - 1


def make_parts(
    native: Any,
    index: Collection,
    order: np.ndarray | None,
    devices: list[int],
    slices: int,
    form: dict[str, Any],
) -> list[Part]:
    """The codes of an index on the CPU, in `order`, in equal ranges.

    One for each device, or as many slices for each that do not stay there.
    """
    segments = index._segments
    pieces = [segment.rows() for segment in segments]
    rows = reordered(
        np.concatenate([np.diff(starts) for starts, _, _ in pieces]),
        np.concatenate([latents for _, latents, _ in pieces]),
        np.concatenate([values for _, _, values in pieces]),
        order,
        index.dim,
    )
    del pieces
    ids = np.concatenate([segment.ids for segment in segments])
    ascending = ids if order is None else ids[order]
    # They are stored as they are to be found: at norm 1 already, and rounded.
    form = form | {"dim": index.dim, "half": index.values == "float16", "normalize": False}
    starts = rows.starts
    assert starts is not None
    cuts = np.linspace(0, len(ids), len(devices) * slices + 1).astype(np.int64).tolist()
    parts = []
    for i, (first, end) in enumerate(itertools.pairwise(cuts)):
        piece = slice(starts[first], starts[end])
        own = Rows(
            rows.values[piece],
            rows.indices[piece],
            starts[first : end + 1] - starts[first],
            index.dim,
        )
        upload = Upload(native, devices[i // slices], own, ascending[first:end], form)
        opened: Callable[[], Any] = upload
        if slices == 1:
            resident = upload()
            resident.calibrate()
            opened = keep(resident)
        parts.append(Part(upload.device, first, end - first, opened, slices == 1))
    return parts


def search_part(
    native: Any, part: Part, rows: DeviceRows, mask: torch.Tensor | None, options: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launches a search on the device and stream of `rows`; `mask` is the part's, there."""
    import torch

    found = part.open()
    arguments = rows.arguments(native)
    del arguments["device"]
    there, shape = rows.values.device, (len(rows.values), options["topk"])
    n_bytes = found.workspace_bytes(arguments["n"], arguments["width"], options["topk"])
    workspace = torch.empty(n_bytes, dtype=torch.uint8, device=there)
    scores = torch.empty(shape, dtype=torch.float32, device=there)
    ids = torch.empty(shape, dtype=torch.int64, device=there)
    found.search(
        **arguments,
        allowed=0 if mask is None else mask.data_ptr(),
        allowed_stride=part.n_docs if mask is not None and mask.dim() == 2 else 0,
        scores=scores.data_ptr(),
        ids=ids.data_ptr(),
        workspace=workspace.data_ptr(),
        workspace_bytes=n_bytes,
        **options,
    )
    return scores, ids
