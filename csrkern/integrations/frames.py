"""SparseCodes as list columns of tables, and back: pyarrow, pandas and what reads these.

Two columns, the latents and the values of each row's active slots, by value descending: what
Parquet files, Polars, DuckDB and Hugging Face datasets hold as lists. The number of latents is
not in a table; whoever reads one says it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from csrkern.codes import SparseCodes
from csrkern.integrations.rows import codes_of, flat_rows, rows_of

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

INDICES, VALUES = "indices", "values"


def to_arrow(codes: SparseCodes, indices: str = INDICES, values: str = VALUES) -> pa.Table:
    """A table of two list columns: `indices` list<int32> and `values` list<float>, [n].

    float16 codes give list<halffloat>, bfloat16 ones list<float>.

    Raises:
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
    return pa.table(columns)


def from_arrow(
    table: Any, dim: int, *, k: int | None = None, indices: str = INDICES, values: str = VALUES
) -> SparseCodes:
    """Codes [n, k] over `dim` latents from two list columns of a pyarrow table or record batch.

    Args:
        table: slots of a row in any order, values ≤ 0 meaning an empty slot.
        dim: number of latents.
        k: slots a row; None: as many as the longest list has, at least 1. Of longer lists the
            largest values stay.
        indices, values: names of the columns.

    Raises:
        KeyError: if there is no such column.
        TypeError: if a column is not of lists of numbers.
        ValueError: if lists or their items are missing (null), the two columns disagree, or a
            latent is out of range or comes twice in a row.
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
    return codes_of(latents, numbers, lengths, dim, k)


def to_pandas(codes: SparseCodes, indices: str = INDICES, values: str = VALUES) -> pd.DataFrame:
    """A data frame of two columns of arrays: `indices` int32 and `values`."""
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
    """Codes [n, k] from two columns of lists or arrays; arguments and errors of `from_arrow`."""
    import pyarrow as pa

    arrays = {name: pa.array(frame[name], from_pandas=True) for name in (indices, values)}
    return from_arrow(pa.table(arrays), dim, k=k, indices=indices, values=values)


def _lists(table: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A list column's items one after the other, and the length of each list."""
    import pyarrow as pa

    if name not in table.schema.names:
        raise KeyError(f"no column {name!r}; the table has {', '.join(table.schema.names)}")
    column = table.column(name)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    kind = column.type
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(is_kind(kind) for is_kind in lists):
        if len(column) == 0:  # which pandas takes for another type
            return np.zeros(0, np.int32), np.zeros(0, np.int64)
        raise TypeError(f"column {name!r}: expected lists of numbers, got {kind}")
    items = column.flatten()
    if column.null_count or items.null_count:
        raise ValueError(f"column {name!r} has missing (null) entries; remove such rows first")
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    if pa.types.is_null(items.type):  # as of lists that are all empty
        items = items.cast(pa.int32())
    return items.to_numpy(zero_copy_only=False), lengths.astype(np.int64)


__all__ = ["from_arrow", "from_pandas", "to_arrow", "to_pandas"]
