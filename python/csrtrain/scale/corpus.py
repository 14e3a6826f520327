"""A corpus of embeddings in many files, cut into pieces that are read and encoded alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from csrkern.embeddings.arrays import check_matrix
from csrkern.embeddings.files import damaged, npy_header, readable
from csrkern.embeddings.tables import Columns, ParquetTable, read_rows, table_columns
from csrtrain.scale.folder import Place, file_system, patiently

KNOWN = (".npy", ".parquet", ".lance")


@dataclass(frozen=True)
class Piece:
    """Rows of one file that become one file of codes.

    Attributes:
        number: of the piece, from 0.
        source: URL of the file.
        first: its first row in that file.
        rows: how many.
        first_id: number of its first row in the whole corpus.
    """

    number: int
    source: str
    first: int
    rows: int
    first_id: int

    def name(self, checksum: int) -> str:
        """Name of the file of codes.

        It has their checksum, so a receipt stays right if another worker encodes the piece too.
        """
        return f"piece-{self.number:06d}-{checksum:08x}.safetensors"

    @property
    def receipt(self) -> str:
        """Name of the file with the size and checksum of the written piece."""
        return f"piece-{self.number:06d}.json"


@dataclass(frozen=True)
class Reader:
    """Reads embeddings from files.

    Attributes:
        column: of Parquet and Lance files; None: the only one that holds lists of floats;
            "emb_*": all columns of floats with such names, as the columns of a matrix.
        options: of the file system, as fsspec takes them.
    """

    column: str | None = None
    options: Mapping[str, Any] | None = None

    def files(self, sources: Sequence[Place]) -> list[str]:
        """Return the URLs of all files that paths, folders and patterns name, sorted within each.

        A name with *, ? or [ is a pattern only where no file or folder has this very name.

        Raises:
            FileNotFoundError: if a source names no file.
            ValueError: if it names a file of another kind.
        """
        urls: list[str] = []
        for source in sources:
            system, path = file_system(source, self.options)
            system.invalidate_cache()  # an earlier listing may be out of date
            is_pattern = any(c in path for c in "*?[")
            if path.endswith(".lance") and (not is_pattern or system.isdir(path)):
                names = [path]  # Lance opens object stores itself
            elif system.isdir(path):
                names = [name for name in system.ls(path, detail=False) if _is_known(name)]
            elif system.exists(path):
                if not _is_known(path):
                    raise ValueError(f"{path}: expected a file that ends in {', '.join(KNOWN)}")
                names = [path]
            else:
                names = list(filter(_is_known, system.glob(path))) if is_pattern else []
            if not names:
                raise FileNotFoundError(f"no {', '.join(KNOWN)} files at {os.fsdecode(source)}")
            urls += [system.unstrip_protocol(name) for name in sorted(names)]
        return urls

    def stamp(self, source: str) -> str:
        """Return a text that changes with the file: a version, an entity tag, or size and time."""
        if _suffix(source) == ".lance":
            return str(_Lance(source).version)
        system, path = file_system(source, self.options)
        if "file" in system.protocol:
            path = os.path.realpath(path)  # a link keeps its time when its file changes
        facts = patiently(lambda: system.info(path))
        tag = facts.get("ETag") or facts.get("mtime") or facts.get("LastModified")
        return f"{facts['size']} {tag}"

    def shape(self, source: str) -> tuple[int, int]:
        """Return rows and columns of a file; this reads little more than its header.

        The columns of a file without rows may be 0, whatever the header says.

        Raises:
            ValueError, TypeError: if it holds no embeddings [n, d] or is damaged.
        """
        return patiently(lambda: self._shape(source))

    def _shape(self, source: str) -> tuple[int, int]:
        with self._opened(source) as file:
            if _suffix(source) == ".npy":
                n, width = file.header.shape
                return n, width
            if not file.rows:  # writers give the columns of empty parts any type
                return 0, 0
            columns = self._columns(file, source)
            width = columns.held.shape[1]
            if isinstance(width, int):
                return file.rows, width
            return file.rows, read_rows(file, columns, 0, 1).shape[1]

    def read(self, source: str, first: int, rows: int) -> np.ndarray:
        """Return rows first..first + rows of a file, floats [rows, d] as they are stored.

        Raises:
            ValueError, TypeError: if the file has changed since its pieces were planned.
        """
        return patiently(lambda: self._read(source, first, rows))

    def _read(self, source: str, first: int, rows: int) -> np.ndarray:
        with self._opened(source) as file:
            if _suffix(source) == ".npy":
                out = file.read(first, rows)
            else:
                out = read_rows(file, self._columns(file, source), first, rows)
        if len(out) != rows:
            raise ValueError(
                f"{source}: expected {rows} rows from row {first} on, found {len(out)}; "
                "the file has changed since the work was planned"
            )
        return out

    def _columns(self, table: ParquetTable | _Lance, source: str) -> Columns:
        return table_columns(source, table.schema, self.column, check_matrix, "column")

    @contextlib.contextmanager
    def _opened(self, source: str) -> Iterator[Any]:
        """Yield a file as `_Npy`, `ParquetTable` or `_Lance`."""
        form = _suffix(source)
        if form == ".lance":
            yield _Lance(source)
            return
        system, path = file_system(source, self.options)
        with readable(source, form), system.open(path, "rb") as file:
            if form == ".npy":
                yield _Npy(source, system, path, file)
            else:
                yield ParquetTable(file, source)


def plan(files: Sequence[tuple[str, int]], piece_rows: int) -> Iterator[Piece]:
    """Return the pieces of files, given as (URL, rows), in order; no piece spans two files."""
    number = first_id = 0
    for source, rows in files:
        for first in range(0, rows, piece_rows):
            n = min(piece_rows, rows - first)
            yield Piece(number, source, first, n, first_id)
            number, first_id = number + 1, first_id + n


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _is_known(name: str) -> bool:
    return not name.rsplit("/", 1)[-1].startswith(".") and _suffix(name) in KNOWN


class _Npy:
    """An .npy file on any file system, opened."""

    def __init__(self, source: str, system: Any, path: str, file: Any) -> None:
        self._source, self._system, self._path, self._file = source, system, path, file
        self.header = npy_header(file, source, system.info(path)["size"])
        check_matrix(source, self.header.held)

    def read(self, first: int, rows: int) -> np.ndarray:
        """Return rows first..first + rows, fewer where the file ends."""
        (n, width), dtype = self.header.shape, self.header.dtype
        rows = max(0, min(rows, n - first))
        size = rows * dtype.itemsize
        if not self.header.by_column:
            self._file.seek(self.header.begin + first * width * dtype.itemsize)
            data = self._file.read(width * size)
        else:
            begins = [
                self.header.begin + (column * n + first) * dtype.itemsize for column in range(width)
            ]
            ends = [begin + size for begin in begins]
            # Object stores answer these all at once.
            parts = self._system.cat_ranges([self._path] * width, begins, ends, on_error="raise")
            data = b"".join(parts)
        if len(data) != width * size:
            raise damaged(self._source, ".npy", "it ends before its last row")
        array = np.frombuffer(data, dtype)
        return array.reshape(width, rows).T if self.header.by_column else array.reshape(rows, width)


class _Lance:
    """A Lance dataset, with the interface of `ParquetTable`."""

    def __init__(self, source: str) -> None:
        try:
            import lance
        except ImportError as error:
            raise ImportError(f"reading {source} needs Lance: pip install pylance") from error
        self._dataset = lance.dataset(source.removeprefix("file://"), storage_options=None)
        self.schema = self._dataset.schema
        self.rows = int(self._dataset.count_rows())
        self.version = self._dataset.version

    def batches(self, names: Sequence[str], first: int, count: int) -> Iterator[Any]:
        """Yield rows first..first + count of columns."""
        yield from self._dataset.to_batches(columns=list(names), offset=first, limit=count)
