"""Embeddings and labels in Arrow tables and Parquet files; imports no PyTorch."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple

import numpy as np

from csrkern.embeddings.arrays import Held
from csrkern.embeddings.files import Check, choose
from csrkern.integrations.arrow import item_type, list_items, plain_type, values_of

# Rows of one Arrow batch: 100 MB of 3,000 float32 numbers each.
BATCH_ROWS = 8192


class Columns(NamedTuple):
    """The column, or the columns of floats, that make up an array.

    Attributes:
        names: of the columns.
        is_lists: whether it is one column of lists.
        name: for messages.
        held: the array.
    """

    names: tuple[str, ...]
    is_lists: bool
    name: str
    held: Held


def table_columns(
    where: str, schema: Any, key: str | None, check: Check, argument: str = ""
) -> Columns:
    """Choose the column called `key`, or the only one that would do; it is checked.

    A key with * or ? that names no column stands for all columns of floats that it fits, which
    then are the columns of a matrix, in the order of the table.

    Args:
        where: the file, for messages.
        schema: of pyarrow.
        key: the name asked for, or None.
        check: what it must be.
        argument: the caller's for `key`; empty: it is part of the name, as in "file:key".

    Raises:
        ValueError: if there is no such column, not exactly one that would do, or several have
            this name.
        TypeError, ValueError: if it is not what `check` takes.
    """
    held = {field.name: _held_column(field.type) for field in schema}
    if key is not None and key not in held and any(sign in key for sign in "*?"):
        fitting = [name for name in schema.names if fnmatch.fnmatchcase(name, key)]
        if fitting:
            columns = _wide(where, schema, held, key, fitting)
            check(columns.name, columns.held)
            return columns
    single = [name for name, one in held.items() if one.kind == "float" and len(one.shape) == 1]
    try:
        name = choose(where, held, key, check, argument)
    except ValueError as error:
        if key is not None or len(single) < 2:
            raise
        pattern = f"{argument}='emb_*'" if argument else f"{where}:emb_*"
        raise ValueError(
            f"{error}; a pattern such as {pattern} takes columns of single numbers "
            "as the columns of a matrix"
        ) from None
    _check_names(where, schema, [name])
    is_lists = len(held[name].shape) > 1
    return Columns((name,), is_lists, f"{where}[{name}]", held[name])


def _wide(where: str, schema: Any, held: Mapping[str, Held], key: str, names: list[str]) -> Columns:
    _check_names(where, schema, names)
    for name in names:
        if held[name].kind != "float" or len(held[name].shape) != 1:
            raise ValueError(
                f"{where}: expected columns of single floats for {key!r}, got {name} {held[name]}"
            )
    shape = ("rows", len(names))
    return Columns(tuple(names), False, f"{where}[{key}]", Held(shape, "columns", "float"))


def _check_names(where: str, schema: Any, names: list[str]) -> None:
    for name in names:
        if schema.names.count(name) > 1:
            raise ValueError(f"{where} has {schema.names.count(name)} columns called {name!r}")


def _held_column(kind: Any) -> Held:
    items = item_type(kind)
    if items is not None:
        # Lists of a fixed size say it.
        size = getattr(plain_type(kind), "list_size", "list")
        return Held(("rows", size), str(items), _kind_of(items))
    if hasattr(kind, "shape"):  # of a fixed_shape_tensor
        return Held(("rows", *kind.shape), str(kind.value_type), _kind_of(kind.value_type))
    return Held(("rows",), str(plain_type(kind)), _kind_of(plain_type(kind)))


def _kind_of(kind: Any) -> str:
    import pyarrow.types as types

    is_text = types.is_string(kind) or types.is_large_string(kind)
    is_view = getattr(types, "is_string_view", lambda kind: False)(kind)  # pyarrow 16 or later
    if types.is_floating(kind) or types.is_decimal(kind):
        return "float"
    if is_text or is_view:
        return "str"
    return "int" if types.is_integer(kind) else "other"


def read_batches(columns: Columns, batches: Iterable[Any], first: int = 0) -> Iterator[np.ndarray]:
    """Yield the rows of Arrow batches as arrays, [m, d] of lists or several columns, else [m].

    Args:
        columns: what to read.
        batches: record batches that hold these columns, and perhaps others.
        first: number of the first row, for messages.

    Raises:
        ValueError: if values are missing or lists differ in length; the message names the row.
    """
    width: int | None = None
    for batch in batches:
        if not len(batch):
            continue
        # By name in the batch: pyarrow reads "a.b" as a path too, and then gives `a` as well.
        parts = [batch.column(batch.schema.names.index(name)) for name in columns.names]
        if columns.is_lists:
            items, lengths = list_items(columns.name, parts[0], first)
            width = int(lengths[0]) if width is None else width
            wrong = np.flatnonzero(lengths != width)
            if len(wrong):
                raise ValueError(
                    f"{columns.name}: expected lists of one length, got {lengths[wrong[0]]} "
                    f"numbers in row {first + int(wrong[0])} and {width} in those before"
                )
            yield items.reshape(len(batch), width)
        else:
            values = [
                values_of(
                    f"{columns.name}, {name}" if len(parts) > 1 else columns.name, part, first
                )
                for name, part in zip(columns.names, parts, strict=True)
            ]
            yield np.stack(values, 1) if len(columns.held.shape) > 1 else values[0]
        first += len(batch)


class ParquetTable:
    """A Parquet file, opened with pyarrow.

    Args:
        file: a path, or a file open for reading.
        where: its name, for messages.

    Attributes:
        schema: of pyarrow.
        rows: how many.

    Raises:
        ImportError: without pyarrow.
    """

    def __init__(self, file: str | os.PathLike[str] | IO[bytes], where: str) -> None:
        try:
            import pyarrow.parquet as pq
        except ImportError as error:
            raise ImportError(
                f"reading {where} needs pyarrow: pip install 'csrkern[parquet]'"
            ) from error
        self._file = pq.ParquetFile(file)
        self.schema = self._file.schema_arrow
        self.rows = int(self._file.metadata.num_rows)

    def batches(self, names: Sequence[str], first: int, count: int) -> Iterator[Any]:
        """Yield rows first..first + count of columns, in batches of some thousand rows."""
        facts = self._file.metadata
        sizes = [facts.row_group(i).num_rows for i in range(facts.num_row_groups)]
        ends = np.cumsum([0, *sizes])
        groups = [i for i in range(len(sizes)) if ends[i] < first + count and ends[i + 1] > first]
        if not groups:
            return
        skipped = first - int(ends[groups[0]])
        size = min(BATCH_ROWS, skipped + count)
        for batch in self._file.iter_batches(size, row_groups=groups, columns=list(names)):
            left_out = min(skipped, len(batch))
            part = batch.slice(left_out, count)
            skipped -= left_out
            count -= len(part)
            yield part
            if not count:
                return


def read_rows(table: Any, columns: Columns, first: int, count: int) -> np.ndarray:
    """Return rows first..first + count of a table, fewer where it ends earlier.

    Only these and one batch are in memory.

    Args:
        table: with the attributes and methods of `ParquetTable`.
        columns: what to read.
        first, count: rows.

    Raises:
        ValueError: as `read_batches`.
    """
    out, filled = np.zeros((0,) * len(columns.held.shape), np.float32), 0
    for part in read_batches(columns, table.batches(columns.names, first, count), first):
        if not filled:
            out = np.empty((count, *part.shape[1:]), part.dtype)
        out[filled : filled + len(part)] = part
        filled += len(part)
    return out[:filled]
