"""A corpus of embeddings in many files, cut into pieces that are read and encoded alone."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from csrtrain.scale.folder import patiently


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
        """Of the file of codes.

        With their checksum, so that a receipt is right whoever else encodes the piece meanwhile.
        """
        return f"piece-{self.number:06d}-{checksum:08x}.safetensors"

    @property
    def receipt(self) -> str:
        """Name of the file that says that the piece is written, and how."""
        return f"piece-{self.number:06d}.json"

    def as_row(self) -> dict[str, Any]:
        """For a Ray dataset."""
        return asdict(self)


@dataclass(frozen=True)
class Reader:
    """How embeddings are read from files.

    Attributes:
        column: of Parquet and Lance files; None: the only one that holds lists of floats.
        options: of the file system, as fsspec takes them.
    """

    column: str | None = None
    options: Mapping[str, Any] | None = None

    def files(self, sources: Sequence[str]) -> list[str]:
        """URLs of all files that paths, folders and patterns name, sorted within each."""
        import fsspec

        found: list[str] = []
        for source in sources:
            if source.rstrip("/").endswith(".lance"):
                found.append(source.rstrip("/"))
                continue
            system, path = fsspec.core.url_to_fs(source, **(self.options or {}))
            system.invalidate_cache()  # what was listed before may have changed
            if system.isdir(path):
                names = [name for name in system.ls(path, detail=False) if _known(name)]
            elif any(sign in path for sign in "*?["):
                names = [name for name in system.glob(path) if _known(name)]
            else:
                names = [path] if system.exists(path) else []
            if not names:
                raise FileNotFoundError(f"no .npy, .parquet or .lance files at {source}")
            found += [system.unstrip_protocol(name) for name in sorted(names)]
        return found

    def stamp(self, source: str) -> str:
        """What changes when the file does: a version, an entity tag, or size and time."""
        if source.endswith(".lance"):
            return str(self._lance(source).version)
        import fsspec

        system, path = fsspec.core.url_to_fs(source, **(self.options or {}))
        facts = patiently(lambda: system.info(path))
        tag = facts.get("ETag") or facts.get("mtime") or facts.get("LastModified")
        return f"{facts['size']} {tag}"

    def shape(self, source: str) -> tuple[int, int]:
        """Rows and columns of a file, of which little more than the header is read."""
        return patiently(lambda: self._shape(source))

    def _shape(self, source: str) -> tuple[int, int]:
        if source.endswith(".lance"):
            dataset = self._lance(source)
            column = self._column(dataset.schema, source)
            return dataset.count_rows(), _width(dataset.schema.field(column).type) or len(
                dataset.take([0], columns=[column]).column(0)[0]
            )
        with self._open(source) as file:
            if source.endswith(".npy"):
                shape, _, _ = _npy_header(file, source)
                return shape
            import pyarrow.parquet as pq

            parquet = pq.ParquetFile(file)
            rows = parquet.metadata.num_rows
            column = self._column(parquet.schema_arrow, source)
            width = _width(parquet.schema_arrow.field(column).type)
            if width is None and rows:
                width = len(next(parquet.iter_batches(1, columns=[column])).column(0)[0])
            return rows, width or 0

    def read(self, source: str, first: int, rows: int) -> np.ndarray:
        """Rows first..first + rows of a file, float [rows, d].

        Raises:
            ValueError: if the file is not what it was when its pieces were planned.
        """
        return patiently(lambda: self._read(source, first, rows))

    def _read(self, source: str, first: int, rows: int) -> np.ndarray:
        if source.endswith(".lance"):
            dataset = self._lance(source)
            column = self._column(dataset.schema, source)
            table = dataset.to_table(columns=[column], offset=first, limit=rows)
            out = _matrix(table.column(0), source)
        else:
            with self._open(source) as file:
                if source.endswith(".npy"):
                    out = _npy_rows(file, source, first, rows)
                else:
                    out = self._parquet_rows(file, source, first, rows)
        if len(out) != rows:
            raise ValueError(
                f"{source}: expected {rows} rows from row {first} on, found {len(out)}; "
                "the file has changed since the work was planned"
            )
        return out

    def _parquet_rows(self, file: Any, source: str, first: int, rows: int) -> np.ndarray:
        import pyarrow.parquet as pq

        parquet = pq.ParquetFile(file)
        column = self._column(parquet.schema_arrow, source)
        sizes = [
            parquet.metadata.row_group(i).num_rows for i in range(parquet.metadata.num_row_groups)
        ]
        ends = np.cumsum(sizes)
        left, right = np.searchsorted(ends, [first, first + rows - 1], side="right")
        table = parquet.read_row_groups(list(range(left, right + 1)), columns=[column])
        skipped = int(ends[left] - sizes[left])
        return _matrix(table.column(0).slice(first - skipped, rows), source)

    def _open(self, source: str) -> Any:
        import fsspec

        return fsspec.open(source, "rb", **(self.options or {})).open()

    def _lance(self, source: str) -> Any:
        try:
            import lance
        except ImportError as error:
            raise ImportError(f"reading {source} needs Lance: pip install pylance") from error
        return lance.dataset(source.removeprefix("file://"), storage_options=None)

    def _column(self, schema: Any, source: str) -> str:
        if self.column is not None:
            if self.column not in schema.names:
                held = ", ".join(schema.names)
                raise ValueError(f"{source} has no column {self.column!r}; it holds: {held}")
            return self.column
        fitting = [name for name in schema.names if _holds_floats(schema.field(name).type)]
        if len(fitting) != 1:
            raise ValueError(
                f"{source}: expected one column with lists of floats, found "
                f"{', '.join(fitting) or 'none'}; name one as column"
            )
        return str(fitting[0])


def plan(files: Sequence[tuple[str, int]], piece_rows: int) -> Iterator[Piece]:
    """The pieces of files, given as (URL, rows), in order; no piece spans two files."""
    number = first_id = 0
    for source, rows in files:
        for first in range(0, rows, piece_rows):
            taken = min(piece_rows, rows - first)
            yield Piece(number, source, first, taken, first_id)
            number, first_id = number + 1, first_id + taken


def _known(name: str) -> bool:
    base = name.rsplit("/", 1)[-1]
    return not base.startswith(".") and any(
        fnmatch.fnmatch(base, pattern) for pattern in ("*.npy", "*.parquet", "*.lance")
    )


def _npy_header(file: Any, source: str) -> tuple[tuple[int, int], np.dtype[Any], int]:
    """Shape, type and where the rows begin."""
    reason = "it is not an .npy file"
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, in_columns, dtype = read(file)
    except (ValueError, KeyError, EOFError) as error:
        raise ValueError(f"{source}: {reason}") from error
    if len(shape) != 2 or in_columns or dtype.kind != "f":
        raise ValueError(
            f"{source}: expected floats [n, d] in row order, got {dtype} {list(shape)}"
            + (" in column order" if in_columns else "")
        )
    return shape, dtype, file.tell()


def _npy_rows(file: Any, source: str, first: int, rows: int) -> np.ndarray:
    (n, width), dtype, begin = _npy_header(file, source)
    rows = max(0, min(rows, n - first))
    file.seek(begin + first * width * dtype.itemsize)
    data = file.read(rows * width * dtype.itemsize)
    if len(data) != rows * width * dtype.itemsize:
        raise ValueError(f"{source} is damaged: it ends before its last row")
    return np.frombuffer(data, dtype).reshape(rows, width)


def _holds_floats(kind: Any) -> bool:
    import pyarrow.types as types

    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(is_list and types.is_floating(kind.value_type))


def _width(kind: Any) -> int | None:
    """Of lists of a fixed size."""
    import pyarrow.types as types

    return int(kind.list_size) if types.is_fixed_size_list(kind) else None


def _matrix(column: Any, source: str) -> np.ndarray:
    """A column of lists as an array [n, d]."""
    import pyarrow as pa

    chunks = [chunk for chunk in column.chunks if len(chunk)]
    if not chunks:
        return np.zeros((0, 0), np.float32)
    whole = pa.concat_arrays(chunks)
    flat = whole.flatten()
    if whole.null_count or flat.null_count or len(flat) % len(whole):
        raise ValueError(f"{source}: expected lists of one length without empty (null) values")
    return flat.to_numpy(zero_copy_only=False).reshape(len(whole), -1)
