"""Payloads of documents, in JSON ready to be sent, and the fields to filter by."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from csrtrain.lines import Record, read_records

PARQUET_ROWS = 10_000  # of a batch
Value = str | int | bool


@dataclass(frozen=True)
class Column:
    """One field of all rows: numbers of its values, int32 [n]; -1: the row has none."""

    numbers: dict[str, int]
    rows: np.ndarray


@dataclass(frozen=True)
class Payloads:
    """Rows of JSON in one piece of memory, and columns of the fields to filter by."""

    text: bytes
    ends: np.ndarray
    columns: dict[str, Column]

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> bytes:
        return self.text[self.ends[row - 1] if row else 0 : self.ends[row]]

    @classmethod
    def load(cls, path: Path, filter_by: Sequence[str] = ()) -> Payloads:
        """Read a .parquet file, or one of lines: texts, or JSON objects.

        Raises:
            OSError: if it cannot be read.
            ValueError: naming the row that JSON cannot hold, or the field that no row has.
        """
        text, ends = bytearray(), array("q")
        numbers: dict[str, dict[str, int]] = {field: {} for field in filter_by}
        rows = {field: array("i") for field in filter_by}
        for record in _records(path):
            text += _encoded(record)
            ends.append(len(text))
            for field, known in numbers.items():
                value = record.fields.get(field)
                has = isinstance(value, (str, int))
                number = known.setdefault(json.dumps(value), len(known)) if has else -1
                rows[field].append(number)
        for field, known in numbers.items():
            if not known:
                raise ValueError(
                    f"{path}: expected a text, an integer or true or false under {field!r} in some "
                    "row, found none"
                )
        columns = {
            field: Column(numbers[field], np.frombuffer(rows[field], np.int32)) for field in rows
        }
        return cls(bytes(text), np.frombuffer(ends, np.int64), columns)

    def stand_by_id(self, ids: np.ndarray) -> bool:
        """Whether row i belongs to id i; else the rows are in the order of an index's ids.

        Raises:
            ValueError: if there are too few rows.
        """
        by_id = not len(ids) or int(ids.max()) < len(self)
        if not by_id and len(ids) != len(self):
            raise ValueError(
                f"payloads: expected a row for each id up to {int(ids.max())}, or for each of the "
                f"{len(ids)} documents in the order of index.ids, got {len(self)} rows"
            )
        return by_id

    def equals(self, field: str, value: Value) -> np.ndarray:
        """Return which rows have this value, bool [n].

        Raises:
            ValueError: if the field is not one to filter by.
        """
        if field not in self.columns:
            known = ", ".join(self.columns) or "none; start the server with --filter-by FIELD"
            raise ValueError(f"where: expected a field to filter by ({known}), got {field[:60]!r}")
        column = self.columns[field]
        return column.rows == column.numbers.get(json.dumps(value), -2)


def _records(path: Path) -> Iterator[Record]:
    if path.suffix.lower() != ".parquet":
        with path.open("rb") as stream:
            yield from read_records(stream, str(path))
        return
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(
            f"{path}: Parquet needs pyarrow: pip install 'csrkern[parquet]' ({error})"
        ) from error
    row = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(PARQUET_ROWS):
            for fields in batch.to_pylist():
                yield Record(f"{path}: row {row}", fields)
                row += 1
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no readable Parquet file: {error}") from error


def _encoded(record: Record) -> bytes:
    """Return a row in JSON, encoded once, so that no answer that contains it can fail."""
    try:
        options: dict[str, Any] = {"ensure_ascii": False, "allow_nan": False, "default": _plain}
        return json.dumps(record.fields, separators=(",", ":"), **options).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{record.where}: expected what JSON can hold: {error}") from error


def _plain(value: Any) -> str:
    """Return a date or time as ISO 8601 has it."""
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    raise TypeError(f"got {type(value).__name__}")
