"""SparseCodes as list columns of tables, and back: pyarrow, pandas and what reads these.

Two columns, the latents and the values of each row's active slots, by value descending: what
Parquet files, Polars, DuckDB and Hugging Face datasets hold as lists. The number of latents is
not in a table; whoever reads one says it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from csrkern.codes.sparse import SparseCodes
from csrkern.identity import check_fingerprint
from csrkern.integrations.arrow import item_type, list_items
from csrkern.integrations.rows import codes_of, flat_rows, rows_of

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

INDICES, VALUES = "indices", "values"
FINGERPRINT = b"csrkern.fingerprint"  # in the metadata of a table's schema


def to_arrow(codes: SparseCodes, indices: str = INDICES, values: str = VALUES) -> pa.Table:
    """Return a table of two list columns: `indices` list<int32> and `values` list<float>, [n].

    float16 codes give list<halffloat>, bfloat16 ones list<float>. The fingerprint of the codes is
    in the metadata of the schema, which Parquet and Feather files keep.

    Raises:
        TypeError: if `codes` are not SparseCodes.
        ValueError: if they are not valid, or a value is not finite.
        OverflowError: if there are 2^31 active slots or more; make several tables.
    """
    import pyarrow as pa

    flat_indices, flat_values, starts = flat_rows(codes)
    if starts[-1] > np.iinfo(np.int32).max:
        raise OverflowError(
            f"codes: expected fewer than 2^31 active slots for one list column, got {starts[-1]}; "
            "make a table for each part of the rows"
        )
    offsets = pa.array(starts.astype(np.int32))
    columns = {
        indices: pa.ListArray.from_arrays(offsets, pa.array(flat_indices)),
        values: pa.ListArray.from_arrays(offsets, pa.array(flat_values)),
    }
    known = {} if codes.fingerprint is None else {FINGERPRINT: codes.fingerprint}
    return pa.table(columns, metadata=known)


def from_arrow(
    table: Any, dim: int, *, k: int | None = None, indices: str = INDICES, values: str = VALUES
) -> SparseCodes:
    """Return codes [n, k] over `dim` latents from two list columns of a pyarrow table.

    Args:
        table: a table or record batch; lists of any kind, as dictionaries and tensors of one
            dimension too. Slots of a row in any order, values 0 meaning an empty slot.
        dim: number of latents.
        k: slots a row; None: as many as the longest list has, at least 1. Of longer lists the
            largest values stay.
        indices, values: names of the columns.

    Raises:
        KeyError: if there is no such column, or there are several.
        TypeError: if `table` is no table, or a column is not of lists of numbers.
        ValueError: if lists or their items are missing (null), the two columns disagree, a value
            is negative or not finite, or a latent is out of range or repeats in a row.
    """
    latents, lengths = _lists(table, indices)
    numbers, other = _lists(table, values)
    if latents.dtype.kind not in "iu" or numbers.dtype.kind not in "fiu":
        raise TypeError(
            f"expected lists of integers in {indices!r} and of numbers in {values!r}, "
            f"got {latents.dtype} and {numbers.dtype}"
        )
    if not np.array_equal(lengths, other):
        row = int(np.flatnonzero(lengths != other)[0])
        raise ValueError(
            f"row {row}: expected as many {values!r} as {indices!r}, "
            f"got {other[row]} and {lengths[row]}"
        )
    codes = codes_of(latents, numbers, lengths, dim, k)
    metadata = table.schema.metadata or {}
    fingerprint = metadata.get(FINGERPRINT, b"").decode(errors="replace") or None
    codes.fingerprint = check_fingerprint("fingerprint of the table", fingerprint)
    return codes


def to_pandas(codes: SparseCodes, indices: str = INDICES, values: str = VALUES) -> pd.DataFrame:
    """Return a data frame of two columns of arrays: `indices` int32 and `values`.

    Raises:
        TypeError, ValueError: as `to_arrow`.
    """
    import pandas as pd

    latents, numbers = zip(*rows_of(codes), strict=True) if len(codes) else ((), ())
    return pd.DataFrame({indices: list(latents), values: list(numbers)})


def from_pandas(
    frame: pd.DataFrame,
    dim: int,
    *,
    k: int | None = None,
    indices: str = INDICES,
    values: str = VALUES,
) -> SparseCodes:
    """Return codes [n, k] from two columns of lists or arrays; see `from_arrow`."""
    import pyarrow as pa

    arrays = {}
    for name in (indices, values):
        if list(frame.columns).count(name) != 1:
            columns = ", ".join(map(str, frame.columns))
            raise KeyError(f"expected one column {name!r}; the frame has {columns}")
        try:
            arrays[name] = pa.array(frame[name], from_pandas=True)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise TypeError(f"column {name!r}: expected lists of numbers: {error}") from error
    return from_arrow(pa.table(arrays), dim, k=k, indices=indices, values=values)


def _lists(table: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a list column's items one after the other, and the length of each list.

    Chunk by chunk: Arrow cannot combine chunks of 2^31 items and more.
    """
    import pyarrow as pa

    names = getattr(getattr(table, "schema", None), "names", None)
    if not isinstance(names, list) or not hasattr(table, "column"):
        raise TypeError(
            f"table: expected a pyarrow table or record batch, got {type(table).__name__}"
        )
    if names.count(name) != 1:
        raise KeyError(
            f"no column {name!r}; the table has {', '.join(names)}"
            if name not in names
            else f"the table has {names.count(name)} columns {name!r}; rename all but one"
        )
    column = table.column(name)
    if item_type(column.type) is None:
        if len(column) == 0:  # which pandas takes for another type
            return np.zeros(0, np.int32), np.zeros(0, np.int64)
        raise TypeError(f"column {name!r}: expected lists of numbers, got {column.type}")
    chunks = getattr(column, "chunks", [column]) or [pa.array([], column.type)]
    starts = np.cumsum([0, *map(len, chunks)])
    parts = [
        list_items(f"column {name!r}", chunk, int(first))
        for chunk, first in zip(chunks, starts, strict=False)
    ]
    items, lengths = zip(*parts, strict=True)
    return np.concatenate(items), np.concatenate(lengths)


__all__ = ["from_arrow", "from_pandas", "to_arrow", "to_pandas"]
