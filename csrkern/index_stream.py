"""Codes that do not fit in memory, piece by piece: files and mapped arrays as chunks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from csrkern import codes_file
from csrkern.index_input import Rows


def can_be_read_twice(codes: Any) -> bool:
    """A path or a pair of arrays, not an iterable."""
    return isinstance(codes, (str, os.PathLike)) or _is_pair(codes)


def _is_pair(codes: Any) -> bool:
    pair = isinstance(codes, (tuple, list)) and len(codes) == 2
    return pair and isinstance(codes[0], np.ndarray)


def code_chunks(codes: Any, dim: int | None, rows: int) -> Iterator[tuple[Any, int | None]]:
    """`codes` in pieces of at most `rows` rows, each with the number of latents if known.

    A path names a file of `SparseCodes.save`, whose pieces are Rows; a pair of arrays may be
    mapped; anything else is taken for an iterable of pieces, which come as they are.
    """
    if isinstance(codes, (str, os.PathLike)):
        stored = codes_file.read(codes)
        if dim is not None and dim != stored.dim:
            raise ValueError(f"codes: expected codes over {dim} latents, got {stored.dim}")
        whole = Rows(stored.values, stored.indices, None, stored.dim, stored.fingerprint)
        for first in range(0, max(whole.n, 1), rows):
            part = slice(first, first + rows)
            piece = whole._replace(values=whole.values[part], indices=whole.indices[part])
            yield piece, stored.dim
    elif _is_pair(codes):
        values, indices = codes
        for first in range(0, max(len(values), 1), rows):
            yield (values[first : first + rows], indices[first : first + rows]), dim
    elif isinstance(codes, Iterable) and not hasattr(codes, "shape"):
        for piece in codes:
            yield piece, dim
    else:
        raise TypeError(
            "codes: expected a path, a pair of arrays or an iterable of codes, "
            f"got {type(codes).__name__}"
        )
