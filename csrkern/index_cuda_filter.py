"""Filters of an index on a GPU: a byte for each document, by ascending id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from csrkern.index_cuda_input import to_host
from csrkern.index_filter import allowed_bits
from csrkern.index_segment import Lookup

if TYPE_CHECKING:
    import torch


class Documents:
    """The documents of an index as filters see those of a segment."""

    alive = None

    def __init__(self, ids: np.ndarray) -> None:
        self.documents = len(ids)
        self.find = Lookup(ids, len(ids)).find

    def __len__(self) -> int:
        return self.documents


class Filters:
    """From what a search takes as a filter to bytes [n] or [m, n], not 0 for what it may find."""

    def __init__(self, ids: np.ndarray, order: np.ndarray | None) -> None:
        self._documents = Documents(ids)
        self._order = order  # documents of ascending ids; None: as they stand
        self._orders: dict[Any, torch.Tensor] = {}  # the same, by device

    def on_host(self, filter: Any, m: int) -> np.ndarray | None:
        """For m queries; None: all documents."""
        bits = allowed_bits(to_host(filter), [self._documents], m)[0]  # type: ignore[list-item]
        if bits is None:
            return None
        octets = np.ascontiguousarray(bits).view(np.uint8)
        allowed = np.unpackbits(octets, axis=-1, count=len(self._documents), bitorder="little")
        return np.ascontiguousarray(allowed if self._order is None else allowed[..., self._order])

    def on_device(self, filter: Any, m: int, home: torch.device) -> torch.Tensor | None:
        """The same on a device, where a mask may be already."""
        import torch

        if (
            not isinstance(filter, torch.Tensor)
            or filter.dtype != torch.bool
            or filter.device != home
        ):
            allowed = self.on_host(filter, m)
            return None if allowed is None else torch.from_numpy(allowed).to(home)
        n = len(self._documents)
        if filter.shape not in ((n,), (m, n)):
            raise ValueError(
                f"filter: expected a mask of {n} codes, or one for each of {m} queries, "
                f"got shape {list(filter.shape)}"
            )
        if self._order is not None:
            # Brought there once: to do so for each search would be to wait in each.
            if home not in self._orders:
                self._orders[home] = torch.from_numpy(self._order).to(home)
            filter = filter[..., self._orders[home]]
        return filter.view(torch.uint8)
