"""Files of big-ann-benchmarks' sparse track: rows of any length and ground truth.

All numbers are little-endian. A `.csr` file: int64 rows, columns and entries; int64 [rows + 1]
where rows start; int32 [entries] columns; float32 [entries] values. A ground truth: uint32 queries
and hits each; int32 [queries, hits] ids; float32 [queries, hits] scores. Imports no PyTorch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from csrkern.arguments import float32_array, integers, row_starts
from csrkern.index.rows import read_rows
from csrkern.storage import write_atomically

if TYPE_CHECKING:
    import scipy.sparse as sp

    from csrkern.typing import CodesLike

_CSR_HEADER, _TRUTH_HEADER = 24, 8  # bytes


def read(path: str | os.PathLike[str]) -> sp.csr_array:
    """Return the rows of a `.csr` file, float32 [n, dim], columns and values mapped from it.

    `InvertedIndex.build` and `search` take them as they are. Beyond 2^31 entries SciPy makes a
    copy of the columns.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if its size is not what its header says, or a start or a column is out of
            range.
    """
    import scipy.sparse as sp

    name = _existing(path)
    n, dim, entries = map(int, _mapped(name, "<i8", 0, 3, "the header of a .csr file"))
    parts = 8 * (n + 1), 4 * entries, 4 * entries
    expected, size = _CSR_HEADER + sum(parts), Path(name).stat().st_size
    if min(n, dim, entries) < 0 or dim >= 2**31 or size != expected:
        raise ValueError(
            f"{name}: expected a .csr file of {expected:,} bytes, by the {n:,} rows, {dim:,} "
            f"columns and {entries:,} entries in its header, got {size:,} bytes; it is cut short, "
            "or of another format"
        )
    starts = row_starts(name, _mapped(name, "<i8", _CSR_HEADER, n + 1), n, entries)
    columns = _mapped(name, "<i4", _CSR_HEADER + parts[0], entries)
    values = _mapped(name, "<f4", _CSR_HEADER + sum(parts[:2]), entries)
    low, high = columns.min(initial=0), columns.max(initial=-1)
    if low < 0 or high >= dim:
        wrong = low if low < 0 else high
        raise ValueError(f"{name}: expected columns in 0..{dim - 1}, got {wrong}")
    return sp.csr_array((values, columns, starts), shape=(n, dim))


def write(codes: CodesLike, path: str | os.PathLike[str], *, dim: int | None = None) -> None:
    """Write rows as a `.csr` file, columns ascending, without entries of value 0.

    Args:
        codes: n rows in any form that `InvertedIndex.build` takes; a pair of arrays needs `dim`.
        path: the file. One that is there is replaced.
        dim: number of latents.

    Raises:
        TypeError, ValueError: if codes are not valid.
        OSError: if the file cannot be written.
    """
    import scipy.sparse as sp

    rows = read_rows("codes", codes, dim).flat()
    starts = row_starts("codes", rows.starts, rows.n, len(rows.values))
    wrong = rows.indices[(rows.indices < 0) | (rows.indices >= rows.dim)]
    if wrong.size:
        raise ValueError(f"codes: expected latents in 0..{rows.dim - 1}, got {wrong[0]}")
    matrix = sp.csr_array((rows.values, rows.indices, starts), (rows.n, rows.dim), copy=True)
    matrix.eliminate_zeros()
    matrix.sort_indices()
    _write(
        path,
        [(np.array([*matrix.shape, matrix.nnz]), "<i8"), (matrix.indptr, "<i8")],
        [(matrix.indices, "<i4"), (matrix.data, "<f4")],
    )


def read_truth(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores float32 and ids int32, both [queries, hits], of a ground truth, mapped.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if its size is not what its header says.
    """
    name = _existing(path)
    n, hits = map(int, _mapped(name, "<u4", 0, 2, "the header of a ground truth"))
    expected, size = _TRUTH_HEADER + 8 * n * hits, Path(name).stat().st_size
    if size != expected:
        raise ValueError(
            f"{name}: expected a ground truth of {expected:,} bytes for {n:,} queries with "
            f"{hits:,} hits each, got {size:,} bytes; one without scores, or of a range search, "
            "is another format"
        )
    ids = _mapped(name, "<i4", _TRUTH_HEADER, n * hits)
    scores = _mapped(name, "<f4", _TRUTH_HEADER + 4 * n * hits, n * hits)
    return scores.reshape(n, hits), ids.reshape(n, hits)


def write_truth(scores: Any, ids: Any, path: str | os.PathLike[str]) -> None:
    """Write what `InvertedIndex.search` returns, both [queries, hits], as a ground truth.

    Raises:
        TypeError, ValueError: if these are not arrays of one shape, or an id is 2^31 or more.
        OSError: if the file cannot be written.
    """
    scores, ids = float32_array("scores", scores), integers("ids", ids)
    if scores.ndim != 2 or scores.shape != ids.shape:
        raise ValueError(
            f"ids: expected scores and ids of one shape [queries, hits], "
            f"got {list(scores.shape)} and {list(ids.shape)}"
        )
    if ids.size and not -(2**31) <= ids.min() <= ids.max() < 2**31:
        raise ValueError(f"ids: expected integers below 2^31, got {ids.max()}")
    _write(path, [(np.array(ids.shape), "<u4")], [(ids, "<i4"), (scores, "<f4")])


_Parts = Sequence[tuple[np.ndarray, str]]


def _write(path: str | os.PathLike[str], header: _Parts, arrays: _Parts) -> None:
    parts = [array.astype(form, copy=False) for array, form in (*header, *arrays)]
    content = np.empty(sum(part.nbytes for part in parts), np.uint8)
    end = 0
    for part in parts:
        content[end : (end := end + part.nbytes)] = part.ravel().view(np.uint8)
    write_atomically(path, content.data)


def _existing(path: str | os.PathLike[str]) -> str:
    name = os.fspath(path)
    if not Path(name).is_file():
        raise FileNotFoundError(f"no file at {name}")
    return name


def _mapped(name: str, form: str, offset: int, n: int, what: str = "") -> np.ndarray:
    if n == 0:  # which no system maps
        return np.zeros(0, form)
    try:
        return np.memmap(name, np.dtype(form), "r", offset, (n,))
    except ValueError as error:
        raise ValueError(
            f"{name}: expected {what}, got {Path(name).stat().st_size} bytes"
        ) from error
