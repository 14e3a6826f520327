"""Arrays of embeddings: what they are, the header of an .npy file, and rows as float32.

Shared by models, trainer and Ray workers, so that all take the same arrays; imports no PyTorch.
"""

from __future__ import annotations

import os
import tokenize
from collections.abc import Iterable
from typing import IO, Any, NamedTuple

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

    @property
    def is_matrix(self) -> bool:
        """Whether it can be embeddings [n, d]."""
        return len(self.shape) == 2 and self.kind == "float"


def held_array(array: np.ndarray) -> Held:
    """Describe an array; one of Python strings alone is of kind "str"."""
    kind = _kind(array.dtype)
    if kind == "object" and all(isinstance(value, str) for value in array.flat):
        kind = "str"
    return Held(array.shape, _name(array.dtype), kind)


def _kind(dtype: np.dtype[Any]) -> str:
    if is_bfloat16(dtype):
        return "float"
    if dtype.names is not None:
        return "fields"
    kinds = {"f": "float", "i": "int", "u": "int", "U": "str", "T": "str", "O": "object"}
    return kinds.get(dtype.kind, "other")


def _name(dtype: np.dtype[Any]) -> str:
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
    if len(held.shape) != 2 or (width is not None and held.shape[1] != width):
        columns = "d" if width is None else width
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


def damaged(where: str, form: str, reason: object) -> ValueError:
    """Return the error about a file that is not of the form its name says."""
    text = (str(reason).strip().splitlines() or [type(reason).__name__])[0]
    return ValueError(f"{where} is not a readable {form} file: {text}")


class NpyHeader(NamedTuple):
    """What the header of an .npy file or of an .npz member says.

    Attributes:
        shape: sizes.
        dtype: of the numbers, with their byte order.
        by_column: whether columns, not rows, lie in one piece (Fortran order).
        begin: where the numbers begin.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    by_column: bool
    begin: int

    @property
    def end(self) -> int:
        """Where the numbers end."""
        count = 1
        for size in self.shape:
            count *= size
        return self.begin + count * self.dtype.itemsize

    @property
    def held(self) -> Held:
        """The array that it describes."""
        return Held(self.shape, _name(self.dtype), _kind(self.dtype))


def npy_header(file: IO[bytes], where: str, size: int | None = None) -> NpyHeader:
    """Read the header of an .npy file or member.

    Args:
        file: open at its beginning.
        where: its name, for messages.
        size: bytes of the file, to refuse one that was cut off.

    Raises:
        ValueError: if it is not such a file, or is cut off.
    """
    try:
        version = np.lib.format.read_magic(file)
        # Versions 2 and 3 differ in the encoding of field names alone.
        read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
        shape, by_column, dtype = read[min(version[0], 2)](file)
        if min(shape, default=0) < 0:
            raise ValueError(f"a shape of {list(shape)}")
    except (ValueError, KeyError, EOFError, SyntaxError, TypeError, tokenize.TokenError) as error:
        raise damaged(where, ".npy", error) from error
    header = NpyHeader(shape, dtype, by_column, file.tell())
    if size is not None and not dtype.hasobject and header.end > size:
        raise damaged(where, ".npy", f"it ends before its last row ({size} of {header.end} bytes)")
    return header


def open_npy(path: str | os.PathLike[str]) -> np.ndarray:
    """Return the array in an .npy file, mapped from it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or holds pickled objects.
    """
    where = os.fspath(path)
    with open(path, "rb") as file:
        if file.read(2) == b"PK":
            raise ValueError(f"{where} is an .npz archive under another name; rename it to .npz")
        file.seek(0)
        header = npy_header(file, where, os.stat(path).st_size)
    if header.dtype.hasobject:
        raise damaged(where, ".npy", "it holds pickled Python objects, which are not read")
    if 0 in header.shape:  # which no system maps
        return np.zeros(header.shape, header.dtype)
    order: Any = "F" if header.by_column else "C"
    return np.memmap(path, header.dtype, "r", header.begin, header.shape, order)
