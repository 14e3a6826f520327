"""The active slots of codes, row after row: the form in which other packages take and give them.

Search engines score by inner product; for cosine they want `codes.normalize()`, or the codes of a
cosine index, and normalised queries.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from csrkern.codes import SparseCodes
from csrkern.index import InvertedIndex
from csrkern.index_input import check_ids, pad_rows

Codes = SparseCodes | InvertedIndex
VECTOR = "csr"  # what engines call the vector, or its field, unless another name is given


def flat_rows(codes: SparseCodes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latents and values of all active slots, and where each row begins, int64 [n + 1]."""
    values, indices = codes.numpy()
    active = codes.active.cpu().numpy()
    starts = np.zeros(len(codes) + 1, np.int64)
    np.cumsum(active.sum(1), out=starts[1:])
    return indices[active], values[active], starts


def rows_of(codes: SparseCodes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Latents and values of each row's active slots, by value descending."""
    latents, values, starts = flat_rows(codes)
    for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        yield latents[begin:end], values[begin:end]


def codes_of(
    latents: np.ndarray, values: np.ndarray, lengths: np.ndarray, dim: int, k: int | None = None
) -> SparseCodes:
    """Codes [n, k] of rows that lie one after the other; what `rows_of` gives comes back.

    Args:
        latents, values: of all rows; values ≤ 0 mean an empty slot.
        lengths: [n], slots of each row, in any order.
        dim: number of latents.
        k: slots a row; None: as many as the longest has, at least 1. Of longer rows the largest
            values stay.

    Raises:
        ValueError: if a latent is out of range or comes twice in a row.
    """
    width = max(1, k or 0, int(lengths.max(initial=0)))
    floats = values if values.dtype.kind == "f" else values.astype(np.float32)
    codes = SparseCodes.from_numpy(*pad_rows(floats, latents, lengths, width), dim)
    return codes if k is None else codes.truncate(k)


def codes_of_pairs(rows: Iterable[tuple[Any, Any]], dim: int, k: int | None = None) -> SparseCodes:
    """`codes_of` (latents, values) pairs, one for each row, with float32 values."""
    pairs = [(np.asarray(i, np.int64), np.asarray(v, np.float32)) for i, v in rows]
    for row, (latents, values) in enumerate(pairs):
        if latents.ndim != 1 or latents.shape != values.shape:
            raise ValueError(
                f"row {row}: expected as many values as latents, "
                f"got shapes {list(values.shape)} and {list(latents.shape)}"
            )
    lengths = np.array([len(latents) for latents, _ in pairs], np.int64)
    empty = [(np.zeros(0, np.int64), np.zeros(0, np.float32))]  # what concatenates to no rows
    all_latents, all_values = map(np.concatenate, zip(*(pairs + empty), strict=True))
    return codes_of(all_latents, all_values, lengths, dim, k)


def read_codes(codes: Codes, ids: Any) -> tuple[SparseCodes, np.ndarray]:
    """Codes and their ids, int64 [n]; an index has its own, and values as they are stored."""
    if isinstance(codes, InvertedIndex):
        if ids is not None:
            raise ValueError("ids: an InvertedIndex has its own; give None with it")
        return SparseCodes.from_numpy(*codes.to_numpy(), codes.dim), codes.ids
    if not isinstance(codes, SparseCodes):
        raise TypeError(
            f"codes: expected SparseCodes or an InvertedIndex, got {type(codes).__name__}"
        )
    return codes, check_ids(np.arange(len(codes)) if ids is None else ids, len(codes))


def records(
    codes: Codes, ids: Any, fields: Sequence[Mapping[str, Any]] | None
) -> Iterator[tuple[int, dict[int, float], dict[str, Any]]]:
    """Each code's id, its values by latent, and what else is to be stored with it."""
    codes, ids = read_codes(codes, ids)
    if fields is not None and len(fields) != len(codes):
        raise ValueError(f"fields: expected one for each of {len(codes)} codes, got {len(fields)}")
    for row, (latents, values) in enumerate(rows_of(codes)):
        held = dict(zip(latents.tolist(), values.tolist(), strict=True))
        yield int(ids[row]), held, {} if fields is None else dict(fields[row])


def chunks(source: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """The items of `source` in lists of `size`, the last one perhaps shorter."""
    chunk: list[Any] = []
    for record in source:
        chunk.append(record)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def collect(
    rows: Iterable[tuple[Any, Any, Any]], dim: int, k: int | None
) -> tuple[SparseCodes, np.ndarray]:
    """Codes and ids of (id, latents, values), by id."""
    found = sorted(rows, key=lambda row: row[0])
    codes = codes_of_pairs([(latents, values) for _, latents, values in found], dim, k)
    return codes, np.array([row[0] for row in found], np.int64)
