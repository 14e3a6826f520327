"""Codes that do not fit in memory, piece by piece: files and mapped arrays as chunks."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

_DTYPES = {"F32": "<f4", "F16": "<f2", "U16": "<u2", "I32": "<i4"}
_LARGEST_HEADER = 1 << 20


def code_chunks(codes: Any, dim: int | None, rows: int) -> Iterator[tuple[Any, int | None]]:
    """`codes` in pieces of at most `rows` rows, each with the number of latents if known.

    A path names a file of `SparseCodes.save`; a pair of arrays may be mapped; anything else is
    taken for an iterable of pieces, which come as they are.
    """
    if isinstance(codes, (str, os.PathLike)):
        values, indices, found = map_code_file(Path(codes))
        if dim is not None and dim != found:
            raise ValueError(f"codes: expected codes over {dim} latents, got {found}")
        codes, dim = (values, indices), found
    if isinstance(codes, (tuple, list)) and len(codes) == 2 and isinstance(codes[0], np.ndarray):
        values, indices = codes
        for first in range(0, max(len(values), 1), rows):
            yield (values[first : first + rows], indices[first : first + rows]), dim
        return
    if not isinstance(codes, Iterable):
        raise TypeError(
            "codes: expected a path, a pair of arrays or an iterable of codes, "
            f"got {type(codes).__name__}"
        )
    for piece in codes:
        yield piece, dim


def map_code_file(file: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Values, indices (both mapped, [n, k]) and dim of a file of `SparseCodes.save`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a code file.
    """
    damaged = ValueError(f"{file} is not a csrkern code file, or is damaged")
    size = file.stat().st_size
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > min(_LARGEST_HEADER, size - 8):
            raise damaged
        text = stream.read(length)
    try:
        header = json.loads(text)
        dim = json.loads(header["__metadata__"]["csrkern"])["dim"]
        values, indices = (
            _map(file, header[name], 8 + length, size) for name in ("values", "indices")
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise damaged from error
    if values.shape != indices.shape or values.ndim != 2 or type(dim) is not int:
        raise damaged
    return values, indices, dim


def _map(file: Path, entry: dict[str, Any], base: int, size: int) -> np.ndarray:
    dtype = np.dtype(_DTYPES[entry["dtype"]])
    shape = tuple(int(n) for n in entry["shape"])
    begin, end = (int(offset) for offset in entry["data_offsets"])
    n_bytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if min(shape, default=0) < 0 or begin < 0 or end - begin != n_bytes or base + end > size:
        raise ValueError("an array reaches beyond the file")
    if n_bytes == 0:
        return np.zeros(shape, dtype)
    return np.memmap(file, dtype=dtype, mode="r", offset=base + begin, shape=shape)
