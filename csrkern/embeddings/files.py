"""Describe and choose the arrays of data files by their headers; imports no PyTorch.

Shared by models, trainer and the readers of `csrtrain.scale`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from csrkern.embeddings.arrays import Held, kind_of, shown, type_name

Check = Callable[[str, Held], None]
"""Raises TypeError or ValueError, with the name, unless an array is what the caller takes."""


def choose(
    where: str, held: Mapping[str, Held], key: str | None, check: Check, argument: str = ""
) -> str:
    """Return `key`, or the name of the only array that would do; it is checked.

    Args:
        where: the file, for messages.
        held: its arrays by name.
        key: the name asked for, or None.
        check: what they must be.
        argument: the caller's for `key`; empty: it is part of the name, as in "file:key".

    Raises:
        ValueError: if there is no such array, or not exactly one that would do.
        TypeError, ValueError: if it is not what `check` takes.
    """
    holds = shown([f"{name} {one}" for name, one in held.items()]) or "nothing"
    noun = argument or "array"
    if key is not None:
        if key not in held:
            raise ValueError(f"{where} has no {noun} {key!r}; it holds: {holds}")
        check(f"{where}[{key}]", held[key])
        return key
    fitting = [name for name, one in held.items() if _passes(check, one)]
    if len(fitting) != 1:
        what = f"several {noun}s that would do" if fitting else f"no {noun} that would do"
        raise ValueError(
            f"{where} holds {what}; name one as {argument or f'{where}:NAME'}. It holds: {holds}"
        )
    return fitting[0]


def _passes(check: Check, held: Held) -> bool:
    try:
        check("", held)
    except (TypeError, ValueError):
        return False
    return True


def split_name(name: str) -> tuple[Path, str | None]:
    """Return (file, array) of "file:array"; the array is None if only a file is named.

    The file is the shortest one that exists, so both names may hold colons.
    """
    if ":" not in name or os.path.exists(name):
        return Path(name), None
    for at, sign in enumerate(name):
        if sign == ":" and os.path.isfile(name[:at]):
            return Path(name[:at]), name[at + 1 :]
    path, _, key = name.rpartition(":")
    return Path(path), key


@contextlib.contextmanager
def readable(where: str, form: str) -> Iterator[None]:
    """Turn what libraries raise about a damaged file into one ValueError that names it.

    Errors of the system, such as a refused permission, pass as they are.
    """
    try:
        yield
    except Exception as error:
        if not _tells_damage(error):
            raise
        raise damaged(where, form, error) from error


def _tells_damage(error: Exception) -> bool:
    if isinstance(error, (EOFError, UnicodeDecodeError, zipfile.BadZipFile, zlib.error)):
        return True
    if type(error) is OSError:
        # pyarrow reports pages that it cannot decode as OSError without a number.
        return error.errno is None
    pa = sys.modules.get("pyarrow")
    is_of_arrow = pa is not None and isinstance(error, pa.ArrowException)
    return is_of_arrow and not isinstance(error, MemoryError)


def npz_headers(archive: zipfile.ZipFile, where: str) -> dict[str, Held]:
    """Describe the arrays of an .npz archive by name; members of other kinds are left out."""
    found = {}
    for member in archive.namelist():
        if member.endswith(".npy"):
            name = member.removesuffix(".npy")
            with archive.open(member) as file:
                size = archive.getinfo(member).file_size
                found[name] = npy_header(file, f"{where}[{name}]", size).held
    return found


def damaged(where: str, form: str, reason: object) -> ValueError:
    """Return the error about a file that is not of the form its name says."""
    text = (str(reason).strip().splitlines() or [type(reason).__name__])[0]
    return ValueError(f"{where} is not a readable {form} file: {text}")


class NpyHeader(NamedTuple):
    """The header of an .npy file or of an .npz member.

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
        return Held(self.shape, type_name(self.dtype), kind_of(self.dtype))


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
