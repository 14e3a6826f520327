"""Columns of Arrow tables as NumPy arrays, whatever the type of their lists.

Columns are read chunk by chunk: a list<> column of 2^31 numbers fits no single Arrow array.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def plain_type(kind: Any) -> Any:
    """Return the type of `plain(array)` for arrays of the type `kind`."""
    import pyarrow as pa

    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            kind = kind.value_type
        else:
            return kind


def item_type(kind: Any) -> Any | None:
    """Return the type of the items in lists of the type `kind`; None if it is no list type.

    Tensors of one dimension are lists, of other dimensions not.
    """
    if len(getattr(kind, "shape", [0])) != 1:  # which types of other kinds do not have
        return None
    kind = plain_type(kind)
    is_list = any(is_kind(kind) for is_kind in _list_kinds())
    return plain_type(kind.value_type) if is_list else None


def plain(array: Any) -> Any:
    """Return an Arrow array without extension types, dictionaries and runs."""
    import pyarrow as pa
    import pyarrow.compute

    while True:
        if isinstance(array.type, pa.BaseExtensionType):
            array = array.storage
        elif pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        elif pa.types.is_run_end_encoded(array.type):
            array = pa.compute.run_end_decode(array)
        else:
            return array


def values_of(name: str, array: Any, first: int = 0) -> np.ndarray:
    """Return the values [n] of a column that holds no lists; decimals become float64.

    Args:
        name: of the column, for messages.
        array: an Arrow array.
        first: number of its first row, for messages.

    Raises:
        ValueError: if a value is missing; the message names the row.
    """
    array = plain(array)
    if array.null_count:
        raise ValueError(f"{name}: row {first + _first_null(array)} is missing (null)")
    return _to_numpy(array)


def list_items(name: str, array: Any, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the items of n lists, one after the other, and the lengths of the lists, int64 [n].

    Args:
        name: of the column, for messages.
        array: an Arrow array of lists, of any type that has an `item_type`.
        first: number of its first row, for messages.

    Raises:
        ValueError: if a list or an item is missing; the message names the row.
    """
    array = plain(array)
    if array.null_count:
        raise ValueError(f"{name}: row {first + _first_null(array)} is missing (null)")
    lengths = array.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    items = plain(array.flatten())
    if items.null_count:
        row = np.searchsorted(np.cumsum(lengths), _first_null(items), side="right")
        raise ValueError(f"{name}: row {first + int(row)} holds a missing value (null)")
    return _to_numpy(items), lengths


def _first_null(array: Any) -> int:
    return int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))


def _to_numpy(array: Any) -> np.ndarray:
    import pyarrow as pa

    if pa.types.is_decimal(array.type):
        array = array.cast(pa.float64())
    elif pa.types.is_null(array.type):  # no items: those of lists that are all empty
        array = array.cast(pa.int32())
    return np.asarray(array.to_numpy(zero_copy_only=False))


def _list_kinds() -> list[Any]:
    import pyarrow.types as types

    names = ("is_list", "is_large_list", "is_fixed_size_list", "is_list_view", "is_large_list_view")
    # pyarrow has list views from version 16 on.
    return [getattr(types, name) for name in names if hasattr(types, name)]
