"""Labels, and other integers that belong to embeddings."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from csrkern.embeddings.arrays import Held, held_array
from csrkern.embeddings.sources import Array, read_source
from csrkern.typing import ArraySource


def load_labels(source: ArraySource, *, n: int | None = None) -> Tensor:
    """Return labels [n] as int64, from a file or an array as `load_embeddings` takes them.

    Integers stay as they are; strings are numbered in sorted order.

    Args:
        source: a path, also as "file.npz:name", a NumPy array, a tensor, a column of a data
            frame or a list.
        n: the number of embeddings that the labels are for.

    Raises:
        FileNotFoundError, TypeError, ValueError, ImportError: as `load_embeddings`, or if
            there are not n labels.
    """
    return number_labels(read_labels(source, n=n))[0]


def read_labels(source: ArraySource, *, n: int | None = None) -> np.ndarray:
    """Return labels [n] as they are stored, integers or strings; arguments as for `load_labels`."""
    name, array = read_source("labels", source, _check_labels)
    if n is not None and len(array) != n:
        raise ValueError(f"{name}: expected {n} labels, one for each embedding, got {len(array)}")
    return _numpy(array)


def read_integers(source: ArraySource, argument: str = "integers") -> np.ndarray:
    """Return a 2-D array of integers, such as pairs or relevance judgments, of a file or an array.

    Messages call an array in memory `argument`. Raises: as `load_embeddings`.
    """
    _, array = read_source(argument, source, _check_integers)
    return _numpy(array)


def number_labels(*parts: np.ndarray) -> list[Tensor]:
    """Return int64 labels of arrays that share their classes, such as of train and test rows.

    Integers stay as they are; strings are numbered in sorted order over all parts.

    Raises:
        ValueError: if some parts hold strings and others integers, or an integer is 2^63 or more.
    """
    kinds = sorted({held_array(part).kind for part in parts})
    if len(kinds) > 1:
        raise ValueError(
            f"labels: expected only integers or only strings, got {' and '.join(kinds)}"
        )
    if kinds == ["str"]:
        _, numbers = np.unique(np.concatenate(parts), return_inverse=True)
        parts = tuple(np.split(numbers, np.cumsum([len(part) for part in parts])[:-1]))
    for part in parts:
        if part.dtype == np.uint64 and part.max(initial=0) >= 2**63:
            raise ValueError(f"labels: expected integers below 2^63, got {part.max()}")
    return [torch.from_numpy(np.array(part, np.int64)) for part in parts]


def _check_labels(name: str, held: Held) -> None:
    if held.kind not in ("int", "str"):
        hint = "; make strings of them with .astype(str)" if held.kind == "object" else ""
        raise TypeError(f"{name}: expected integer or string labels, got {held.dtype}{hint}")
    if len(held.shape) != 1:
        raise ValueError(f"{name}: expected labels of shape [n], got {held.sizes}")


def _check_integers(name: str, held: Held) -> None:
    if held.kind != "int" or len(held.shape) != 2:
        raise ValueError(f"{name}: expected integers in rows, got {held}")


def _numpy(array: Array) -> np.ndarray:
    """Return labels or integers as a NumPy array in the machine's byte order."""
    if isinstance(array, Tensor):
        return array.numpy()
    return np.asarray(array).astype(array.dtype.newbyteorder("="), copy=False)
