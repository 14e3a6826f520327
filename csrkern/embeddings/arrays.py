"""Arrays of embeddings: what they are, and their rows in the machine's own floats.

Shared by models, trainer and Ray workers, so that all take the same arrays; imports no PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

_SHOWN = 10


class Held(NamedTuple):
    """An array in a file or in memory, as its header describes it.

    Attributes:
        shape: sizes; words where a header does not tell them.
        dtype: the type's name, for messages.
        kind: "float", "int", "str", "fields" (structured), "object" or "other".
    """

    shape: tuple[int | str, ...]
    dtype: str
    kind: str

    def __str__(self) -> str:
        return f"{self.sizes} {self.dtype}"

    @property
    def sizes(self) -> str:
        """The shape, for messages."""
        return f"[{', '.join(map(str, self.shape))}]"


def held_array(array: np.ndarray) -> Held:
    """Describe an array; one of Python strings alone is of kind "str"."""
    kind = kind_of(array.dtype)
    if kind == "object" and all(isinstance(value, str) for value in array.flat):
        kind = "str"
    return Held(array.shape, type_name(array.dtype), kind)


def kind_of(dtype: np.dtype[Any]) -> str:
    """Return the kind of `Held` for arrays of a type."""
    if is_bfloat16(dtype):
        return "float"
    if dtype.names is not None:
        return "fields"
    kinds = {"f": "float", "i": "int", "u": "int", "U": "str", "T": "str", "O": "object"}
    return kinds.get(dtype.kind, "other")


def type_name(dtype: np.dtype[Any]) -> str:
    """Return the name of a type for messages."""
    if dtype.names is not None:
        return f"a structured array with the fields {shown(dtype.names)}"
    return "bfloat16" if is_bfloat16(dtype) else str(dtype)


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Whether numbers of this type are bfloat16: that of ml_dtypes, or as np.save writes it.

    NumPy has no bfloat16. It writes that of ml_dtypes as two untyped bytes, which nothing else
    does.
    """
    return dtype.kind == "V" and dtype.names is None and dtype.name in ("bfloat16", "void16")


def check_matrix(name: str, held: Held, width: int | None = None) -> None:
    """Raise TypeError or ValueError unless `held` is a floating-point array [n, width]."""
    hints = {
        "fields": "make one array of them with numpy.lib.recfunctions.structured_to_unstructured",
        "object": "make numbers of them with .astype(numpy.float32) or, of arrays, numpy.stack",
        "int": "convert them with .astype(numpy.float32) if they are embeddings",
    }
    if held.kind != "float":
        hint = hints.get(held.kind)
        raise TypeError(
            f"{name}: expected floating-point embeddings, got {held.dtype}"
            + (f"; {hint}" if hint else "")
        )
    columns = "d" if width is None else width
    if len(held.shape) != 2 or (width is not None and held.shape[1] != width):
        raise ValueError(f"{name}: expected embeddings of shape [n, {columns}], got {held.sizes}")


def copy_floats(rows: np.ndarray, out: np.ndarray) -> None:
    """Write floats of any width and byte order into `out`, float32 or float64 of the same shape.

    Numbers too large for it become infinite, also where NumPy is set to raise.
    """
    if is_bfloat16(rows.dtype):
        rows = np.left_shift(rows.view(np.uint16), 16, dtype=np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        np.copyto(out, rows, casting="unsafe")


def shown(names: Iterable[str]) -> str:
    """Return names for a message, ten at most."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
