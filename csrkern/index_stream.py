"""Codes that do not fit in memory, piece by piece: files, mapped arrays and iterables as chunks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from csrkern import codes_file
from csrkern.identity import check_same_model
from csrkern.index_input import Rows, concatenate_rows, read_rows


def can_be_read_twice(codes: Any) -> bool:
    """Whether `codes` are a path or a pair of arrays, not an iterable."""
    return isinstance(codes, (str, os.PathLike)) or _is_pair(codes)


def _is_pair(codes: Any) -> bool:
    pair = isinstance(codes, (tuple, list)) and len(codes) == 2
    return pair and isinstance(codes[0], np.ndarray)


def code_chunks(codes: Any, dim: int | None, most: int) -> Iterator[Rows]:
    """`codes` in chunks of at most `most` rows.

    A path names a file of `SparseCodes.save`; a pair of arrays may be mapped; anything else is
    taken for an iterable of pieces, which are gathered: a piece of more rows is a chunk of its own.

    Raises:
        TypeError, ValueError: if `codes` are none of these, or as `read_rows`.
    """
    if isinstance(codes, (str, os.PathLike)):
        stored = codes_file.read(codes)
        for part in _slices(stored.values, stored.indices, most):
            yield read_rows("codes", Rows(*part, None, stored.dim, stored.fingerprint), dim)
    elif _is_pair(codes):
        values, indices = codes
        shapes = list(np.shape(values)), list(np.shape(indices))
        if len(shapes[0]) != 2 or shapes[0] != shapes[1]:
            raise ValueError(
                "codes: expected values and indices of one shape [n, k], "
                f"got {shapes[0]} and {shapes[1]}"
            )
        for part in _slices(values, indices, most):
            yield read_rows("codes", part, dim)
    elif isinstance(codes, Iterable) and not hasattr(codes, "shape"):
        yield from _gathered(codes, dim, most)
    else:
        raise TypeError(
            "codes: expected a path, a pair of arrays or an iterable of codes, "
            f"got {type(codes).__name__}"
        )


def _slices(
    values: np.ndarray, indices: np.ndarray, most: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for first in range(0, max(len(values), 1), most):
        yield values[first : first + most], indices[first : first + most]


def _gathered(pieces: Iterable[Any], dim: int | None, most: int) -> Iterator[Rows]:
    gathered: list[Rows] = []
    fingerprint: str | None = None
    n = 0
    for piece in pieces:
        rows = read_rows("codes", piece, dim)
        if dim is None or fingerprint is None:
            dim, fingerprint = rows.dim, rows.fingerprint
        check_same_model("codes", rows.fingerprint, fingerprint, holder="those before")
        if gathered and n + rows.n > most:
            yield concatenate_rows(gathered)
            gathered, n = [], 0
        if rows.n >= most:
            yield rows
            continue
        gathered.append(rows.copy())  # its maker may fill the same arrays again
        n += rows.n
    if gathered:
        yield concatenate_rows(gathered)
