"""The active slots of codes, row after row: the form in which other packages take and give them.

Search engines score by inner product; for cosine they want `codes.normalize()`, or the codes of a
cosine index, and normalized queries.

What goes out is checked before any of it is written, and what comes in before any of it is used:
engines keep negative weights, numbers that are not finite and latents that occur twice, which
codes do not hold.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from csrkern.arguments import check_int, float32_array, integers
from csrkern.codes.sparse import SparseCodes, check_codes
from csrkern.index.inverted import InvertedIndex
from csrkern.index.rows import check_ids, pad_rows, starts_of
from csrkern.ops.validation import check_rows_finite

Codes = SparseCodes | InvertedIndex
VECTOR = "csr"  # what engines call the vector, or its field, unless another name is given
MOST = 2**31 - 1  # of what clients count in 32 bits: records a request, hits, latents


class Stored(NamedTuple):
    """A code as another package holds it."""

    name: str  # of its record, for messages
    id: Any
    latents: Any
    values: Any


# ---- out ------------------------------------------------------------------------------


def flat_rows(codes: SparseCodes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the latents and values of all active slots, and where each row begins, int64 [n + 1].

    Raises:
        TypeError: if `codes` are not SparseCodes.
        ValueError: if they are not valid, or a value is not finite.
    """
    check_codes("codes", codes).validate()
    check_rows_finite(codes.values, 0, "codes")
    values, indices = codes.numpy()
    active = codes.active.cpu().numpy()
    return indices[active], values[active], starts_of(active.sum(1))


def rows_of(codes: SparseCodes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Return the latents and values of each row's active slots, by value descending.

    Raises:
        TypeError, ValueError: as `flat_rows`, at once.
    """
    return _split(*flat_rows(codes))


def float32_rows(codes: SparseCodes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Return `rows_of` with values in float32, the form that engines keep.

    Raises:
        TypeError, ValueError: as `flat_float32_rows`, at once.
    """
    return _split(*flat_float32_rows(codes))


def flat_float32_rows(codes: SparseCodes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return `flat_rows` with values in float32.

    Raises:
        TypeError, ValueError: as `flat_rows`, or if float32 does not hold a value.
    """
    latents, values, starts = flat_rows(codes)
    with np.errstate(over="ignore", under="ignore"):  # told below, with the row
        narrow = values.astype(np.float32)
    wrong = np.flatnonzero(np.isinf(narrow) | (narrow == 0))
    if len(wrong):
        raise ValueError(
            f"codes: row {_row_of(wrong[0], starts)} holds {values[wrong[0]]:.4g}, which float32, "
            "the form of engines, does not hold; scale the values of all codes and queries"
        )
    return latents, narrow, starts


def _split(
    latents: np.ndarray, values: np.ndarray, starts: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        yield latents[begin:end], values[begin:end]


def _row_of(slot: int, starts: np.ndarray) -> int:
    return int(np.searchsorted(starts, slot, "right")) - 1


def read_codes(codes: Codes, ids: Any) -> tuple[SparseCodes, np.ndarray]:
    """Return codes and their ids, int64 [n]; an index has its own, and values as it stores them."""
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
    codes: Codes,
    ids: Any = None,
    fields: Iterable[Mapping[str, Any]] | None = None,
    *,
    name: str = "fields",
    taken: Sequence[str] = (),
) -> Iterator[tuple[int, dict[int, float], dict[str, Any]]]:
    """Return each code's id, its values by latent, and what else is to be stored with it.

    Args:
        codes, ids: see `read_codes`.
        fields: a dictionary for each code.
        name: what the caller calls `fields`.
        taken: keys that `fields` may not have.

    Raises:
        TypeError, ValueError: if an argument does not fit; at once, before the first record.
    """
    codes, ids = read_codes(codes, ids)
    rows = float32_rows(codes)
    others: list[Any] = [{}] * len(codes) if fields is None else list(fields)
    if len(others) != len(codes):
        raise ValueError(f"{name}: expected one for each of {len(codes)} codes, got {len(others)}")
    for row, other in enumerate(others):
        if not isinstance(other, Mapping):
            raise TypeError(
                f"{name}: expected a dictionary for each code, got {type(other).__name__} "
                f"for row {row}"
            )
        for key in taken:
            if key in other:
                raise ValueError(f"{name}: row {row} has the key {key!r}, which the code is given")
    return (
        (id, dict(zip(latents.tolist(), values.tolist(), strict=True)), dict(other))
        for id, (latents, values), other in zip(ids.tolist(), rows, others, strict=True)
    )


def check_batch_size(batch_size: Any) -> int:
    """Return `batch_size` as an int, the number of records in a request."""
    return check_int("batch_size", batch_size, 1, MOST)


def batches(source: Iterable[Any], batch_size: int) -> Iterator[list[Any]]:
    """Return the items of `source` in lists of `batch_size`, which is checked at once."""
    items, size = iter(source), check_batch_size(batch_size)
    return iter(lambda: list(itertools.islice(items, size)), [])


# ---- in -------------------------------------------------------------------------------


def codes_of(
    latents: np.ndarray,
    values: np.ndarray,
    lengths: np.ndarray,
    dim: int,
    k: int | None = None,
    name: Callable[[int], str] = "row {}".format,
) -> SparseCodes:
    """Return the codes [n, k] of rows that lie one after the other, as `rows_of` gives them.

    Args:
        latents, values: of all rows, integers and real numbers; values 0 mean an empty slot.
        lengths: [n], slots of each row, in any order.
        dim: number of latents.
        k: slots a row; None: as many as the longest has, at least 1. Of longer rows the largest
            values stay.
        name: what messages call a row.

    Raises:
        TypeError: if `dim` or `k` is not an integer.
        ValueError: if `dim` or `k` is out of range, a value is negative or not finite, or a
            latent is out of range or occurs twice in a row.
    """
    dim = check_int("dim", dim, 1, MOST)
    k = None if k is None else check_int("k", k, 1, dim)
    if (slot := _wrong_slot(latents, values, dim)) is not None:
        row = _row_of(slot, starts_of(lengths))
        raise ValueError(f"{name(row)}: {_complaint(latents[slot], values[slot], dim)}")
    width = max(1, k or 0, int(lengths.max(initial=0)))
    floats = values if values.dtype.kind == "f" else values.astype(np.float32)
    codes = SparseCodes.from_numpy(*pad_rows(floats, latents, lengths, width), dim)
    return codes if k is None else codes.truncate(k)


def codes_of_pairs(rows: Iterable[tuple[Any, Any]], dim: int, k: int | None = None) -> SparseCodes:
    """Return `codes_of` (latents, values) pairs, one for each row, with float32 values."""
    return _codes_of_stored(
        (Stored(f"row {row}", row, latents, values) for row, (latents, values) in enumerate(rows)),
        dim,
        k,
    )[0]


def collect(stored: Iterable[Stored], dim: int, k: int | None) -> tuple[SparseCodes, np.ndarray]:
    """Return the codes and ids of what another package held, by id.

    Raises:
        ValueError: naming the record, if an id is not an integer or occurs twice, weights are
            negative or not finite, or latents are no integers in 0..dim-1, or occur twice.
    """

    def checked() -> Iterator[Stored]:
        seen: set[int] = set()
        for record in stored:
            id = record.id
            if isinstance(id, bool) or not isinstance(id, int) or not 0 <= id < 2**63:
                raise ValueError(f"{record.name}: expected integers as ids, got {id!r}")
            if id in seen:
                raise ValueError(f"{record.name}: id {id} occurs twice")
            seen.add(id)
            yield record

    codes, ids = _codes_of_stored(checked(), dim, k)
    order = np.argsort(ids)
    return codes[order], ids[order]


def _codes_of_stored(
    stored: Iterable[Stored], dim: int, k: int | None
) -> tuple[SparseCodes, np.ndarray]:
    dim = check_int("dim", dim, 1, MOST)
    ids: list[int] = []
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.float32))]  # what concatenates to no rows
    for record in stored:
        ids.append(record.id)
        parts.append(_checked(record, dim))
    latents, values = map(np.concatenate, zip(*parts, strict=True))
    lengths = np.array([len(latents) for latents, _ in parts[1:]], np.int64)
    return codes_of(latents, values, lengths, dim, k), np.array(ids, np.int64)


def _checked(record: Stored, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Latents int64 and values float32 of a record, which is named if they are no code."""
    for what, given in (("latents", record.latents), ("values", record.values)):
        # NumPy takes True for 1 where it stands beside other numbers.
        if isinstance(given, (list, tuple)) and any(isinstance(each, bool) for each in given):
            raise ValueError(f"{record.name}: {what}: expected numbers, got a bool")
    try:
        latents = integers("latents", record.latents)
        values = float32_array("values", record.values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{record.name}: {error}") from error
    if latents.ndim != 1 or latents.shape != values.shape:
        raise ValueError(
            f"{record.name}: expected as many values as latents, "
            f"got shapes {list(values.shape)} and {list(latents.shape)}"
        )
    if (slot := _wrong_slot(latents, values, dim)) is not None:
        raise ValueError(f"{record.name}: {_complaint(latents[slot], values[slot], dim)}")
    once, counts = np.unique(latents[values > 0], return_counts=True)
    if counts.max(initial=1) > 1:
        raise ValueError(f"{record.name}: latent {once[counts > 1][0]} occurs twice")
    return latents.astype(np.int64), values


def _wrong_slot(latents: np.ndarray, values: np.ndarray, dim: int) -> int | None:
    """Return the first slot that no code has, if there is one; those of value 0 are empty."""
    good = (values >= 0) & (values < np.inf)
    good &= (values == 0) | ((latents >= 0) & (latents < dim))
    wrong = np.flatnonzero(~good)
    return int(wrong[0]) if len(wrong) else None


def _complaint(latent: Any, value: Any, dim: int) -> str:
    if 0 <= value < np.inf:
        return f"expected latents in 0..{dim - 1}, got {latent}"
    return (
        f"expected finite weights of at least 0, which codes have, got {value} for latent {latent}"
    )
