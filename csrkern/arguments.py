"""Checks and conversions of arguments, shared by operators and index; imports no PyTorch.

Every message names the argument, what was expected and what was given. A NumPy integer is an
integer everywhere, and a bool is not.
"""

from __future__ import annotations

import operator
import sys
from typing import Any

import numpy as np

from csrkern import _C

# What an error about negative values ends in.
OF_SIGNED = "; SparseCodes.from_signed splits latents of values of either sign into two"


def as_int(name: str, value: Any) -> int:
    """Return `value` as an int: Python's, NumPy's, or any number with `__index__`; no bool."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value  # also a size that torch.compile keeps open
    try:
        if not isinstance(value, bool) and not str(getattr(value, "dtype", "")).endswith("bool"):
            return operator.index(value)
    except TypeError:
        pass
    raise TypeError(f"{name}: expected an int, got {type(value).__name__}")


def check_int(name: str, value: Any, low: int, high: int) -> int:
    """Return `value` as an int in low..high."""
    number = as_int(name, value)
    if not low <= number <= high:
        raise ValueError(f"{name}: expected {low} <= {name} <= {high}, got {shown(number)}")
    return number


def check_at_least(name: str, value: Any, low: int) -> int:
    """Return `value` as an int of at least `low`."""
    number = as_int(name, value)
    if number < low:
        raise ValueError(f"{name}: expected at least {low}, got {shown(number)}")
    return number


def check_bool(name: str, value: Any) -> bool:
    """Return `value` as a bool: Python's or NumPy's."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected a bool, got {type(value).__name__}")
    return bool(value)


def check_number(name: str, value: Any) -> float:
    """Return `value` as a finite float: Python's or NumPy's int or float; no bool."""
    number = as_float(name, value)
    if not abs(number) < float("inf"):
        raise ValueError(f"{name}: expected a finite number, got {number}")
    return number


def check_positive(name: str, value: Any) -> float:
    """Return `value` as a finite float above 0."""
    number = check_number(name, value)
    if number <= 0:
        raise ValueError(f"{name}: expected a positive number, got {number}")
    return number


def check_not_negative(name: str, value: Any) -> float:
    """Return `value` as a finite float of at least 0."""
    number = check_number(name, value)
    if number < 0:
        raise ValueError(f"{name}: expected a number >= 0, got {number}")
    return number


def as_float(name: str, value: Any) -> float:
    """Return `value` as a float: Python's or NumPy's int or float; no bool."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(
            f"{name}: expected a number that a float holds, got {shown(value)}"
        ) from None


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """`value` is one of `choices`."""
    expected = f"{name}: expected one of {', '.join(map(repr, choices))}"
    if not isinstance(value, str):
        raise TypeError(f"{expected}, got {type(value).__name__}")
    if value not in choices:
        raise ValueError(f"{expected}, got {value[:40]!r}")


def thread_count(num_threads: int | None) -> int:
    """Return the number asked for, or that of the processors that the process may run on.

    Far more threads than processors gain nothing, and where the system refuses one, OpenMP ends
    the process: beyond 64, there are as many as processors.
    """
    available = _C.available_threads()
    if num_threads is None:
        return available
    return min(check_int("num_threads", num_threads, 1, 4096), max(available, 64))


def least_float(name: str, value: Any) -> float:
    """Return the smallest float32 that is at least `value`."""
    exact = as_float(name, value)
    with np.errstate(all="ignore"):
        least = np.float32(exact)
        if float(least) < exact:
            least = np.nextafter(least, np.float32(np.inf))
    if np.isnan(least):
        raise ValueError(f"{name}: expected a number, got nan")
    return float(least)


def array_of(name: str, given: Any) -> np.ndarray:
    """Return an array, a torch tensor wherever it is, nested lists, or what only speaks DLPack."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(given, torch.Tensor):
        try:
            given = given.detach().cpu()
            given = (given.float() if given.dtype == torch.bfloat16 else given).numpy()
        except (NotImplementedError, TypeError) as error:
            raise TypeError(
                f"{name}: a tensor of {given.dtype} does not fit NumPy ({error}); "
                "expected dense numbers of a type that NumPy has"
            ) from error
    if hasattr(given, "__dlpack__") and not hasattr(given, "__array__"):
        try:
            return np.from_dlpack(given)
        except (BufferError, RuntimeError) as error:
            raise TypeError(
                f"{name}: {type(given).__name__} does not fit NumPy ({error}); "
                "expected numbers in host memory"
            ) from error
    if isinstance(given, np.ma.MaskedArray) and np.ma.is_masked(given):
        raise ValueError(f"{name}: expected an array without masked values; fill them first")
    try:
        return np.asarray(given)
    except ValueError as error:
        raise ValueError(f"{name}: expected an array, got lists of unlike lengths") from error


# The least positive float32.
_LEAST = np.float32(2.0**-149)
_LARGEST = float(np.finfo(np.float32).max)


def float32_array(name: str, given: Any) -> np.ndarray:
    """Real numbers as contiguous float32.

    Those that are too large become infinite, and none but 0 becomes 0: a weak latent stays active.
    """
    array = array_of(name, given)
    # The rest takes microseconds, which a search of one query notices.
    if array.dtype == np.float32:
        return np.ascontiguousarray(array)
    if _of_python_integers(array):
        largest = max(map(int, array.flat), key=abs)
        if abs(largest) >= 2**63:
            raise ValueError(f"{name}: expected float32 numbers, got {shown(largest)}")
        array = array.astype(np.int64)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected real numbers, got {array.dtype}")
    with np.errstate(all="ignore"):  # the caller says which number it was
        floats = np.ascontiguousarray(array, dtype=np.float32)
        if array.dtype.kind == "f" and array.dtype.itemsize > 4:
            lost = (floats == 0) & (array != 0)
            np.copyto(floats, np.copysign(_LEAST, array), where=lost, casting="same_kind")
    return floats


def float32_rows(name: str, given: Any, width: int, largest: float = _LARGEST) -> np.ndarray:
    """Return `given` as finite float32 [n, width], up to `largest`; raises as `float32_array`."""
    rows = float32_array(name, given)
    check_width(name, rows, width)
    check_within(name, rows, largest)
    return rows


def check_width(name: str, rows: np.ndarray, width: int) -> None:
    """Rows are of shape [n, width]."""
    if rows.ndim != 2 or rows.shape[1] != width:
        raise ValueError(f"{name}: expected shape [n, {width}], got {list(rows.shape)}")


def check_within(name: str, rows: np.ndarray, largest: float = _LARGEST, first: int = 0) -> None:
    """All numbers of a contiguous float32 array are finite and at most `largest` in magnitude.

    Args:
        first: what an error adds to the number of a row.
    """
    if not _C.within(rows, largest):
        wrong = ~(np.abs(rows) <= largest)
        limit = f" up to {largest:g}" if largest < _LARGEST else ""
        row, *column = np.argwhere(wrong)[0].tolist()
        raise ValueError(
            f"{name}: expected finite numbers{limit}, got {rows[wrong][0]!s} at "
            f"{[first + row, *column]}"
        )


def integers(name: str, given: Any) -> np.ndarray:
    """Integers of some NumPy type; an empty list is of any type, and no bool is an integer."""
    array = array_of(name, given)
    if array.size == 0 and array.dtype.kind not in "iu":
        return array.astype(np.int64)
    if _holds_bool(given):
        raise TypeError(f"{name}: expected integers, got a bool")
    if array.dtype.kind in "iu":
        return array
    # Integers of a list that no one NumPy type holds become objects or floats.
    whole = np.array(given, dtype=object) if isinstance(given, (list, tuple)) else array
    if _of_python_integers(whole):
        wrong = max(map(int, whole.flat), key=abs)
        if abs(wrong) < 2**63:
            return whole.astype(np.int64)
        raise ValueError(f"{name}: expected integers in 0..2^63-1, got {shown(wrong)}")
    raise TypeError(f"{name}: expected integers, got {array.dtype}")


def int64_array(name: str, given: Any) -> np.ndarray:
    """Integers as int64."""
    array = integers(name, given)
    if array.dtype.kind == "u" and array.size and array.max() >= 2**63:
        raise ValueError(f"{name}: expected integers in 0..2^63-1, got {array.max()}")
    return array.astype(np.int64)


def row_numbers(rows: Any, n: int) -> np.ndarray | slice:
    """Return what selects from n rows: a slice, numbers int64 [m] or a mask bool [n].

    Raises:
        IndexError: if `rows` is neither a slice, nor an integer, nor integers or bools in one
            dimension, or names a row that is not there.
    """
    if isinstance(rows, slice):
        return rows
    if isinstance(rows, tuple):
        raise IndexError("rows: expected one index, got several; codes[[0, 1]] are two rows")
    try:
        array = array_of("rows", rows)
    except (TypeError, ValueError) as error:
        raise IndexError(str(error)) from error
    if isinstance(rows, list) and not rows:
        array = array.astype(np.int64)
    if array.dtype == bool:
        if array.shape != (n,):
            raise IndexError(f"rows: expected a mask [{n}], got bools of shape {list(array.shape)}")
        return array.copy(order="C")
    if array.dtype.kind not in "iu" or array.ndim > 1 or _holds_bool(rows):
        raise IndexError(
            "rows: expected a slice, an integer, or a list of integers or of bools, "
            f"got {array.dtype} of shape {list(array.shape)}"
        )
    wrong = array[(array < -n) | (array >= n)]
    if wrong.size:
        raise IndexError(f"row {wrong.flat[0]} is out of range for {n} codes")
    if array.ndim == 0:
        return slice(int(array), int(array) + 1 or None)
    return array.astype(np.int64, order="C")


def row_starts(name: str, starts: Any, n: int, entries: int) -> np.ndarray:
    """Where each of n rows of a sparse matrix starts, and the last ends, as int64 [n + 1]."""
    array = np.ascontiguousarray(int64_array(f"starts of {name}", starts))
    if (
        array.shape != (n + 1,)
        or array[0] != 0
        or array[-1] > entries
        or (np.diff(array) < 0).any()
    ):
        raise ValueError(
            f"{name}: expected {n + 1} row starts from 0 that never decrease and end within "
            f"the {entries} entries"
        )
    return array


def check_places(name: str, rows: Any, latents: Any, shape: tuple[int, int]) -> None:
    """Rows and latents of entries, both arrays or both tensors, are numbers within `shape`."""
    if len(rows.shape) != 1 or rows.shape != latents.shape:
        raise ValueError(
            f"{name}: expected a row and a latent for each entry, "
            f"got {list(rows.shape)} and {list(latents.shape)}"
        )
    n, dim = shape
    wrong = (rows < 0) | (rows >= n) | (latents < 0) | (latents >= dim)
    if wrong.any():
        row, latent = (int(part[wrong][0]) for part in (rows, latents))
        if not 0 <= row < n:
            raise ValueError(f"{name}: expected rows in 0..{n - 1}, got {row}")
        raise ValueError(f"{name}: expected latents in 0..{dim - 1}, got {latent} in row {row}")


def matrix_entries(name: str, matrix: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns (int64) and values of what a SciPy sparse matrix [n, m] stores, in any order.

    Nothing is asked of SciPy that trusts the arrays: what is out of range would crash it.

    Raises:
        TypeError, ValueError: if the arrays of the matrix do not fit together.
    """
    n, m = matrix.shape
    if matrix.format in ("csr", "csc"):
        along = n if matrix.format == "csr" else m
        entries = min(len(matrix.indices), len(matrix.data))
        starts = row_starts(name, matrix.indptr, along, entries)
        major = np.repeat(np.arange(along), np.diff(starts))
        minor = int64_array(f"indices of {name}", matrix.indices[: len(major)])
        rows, columns = (major, minor) if matrix.format == "csr" else (minor, major)
        data = matrix.data[: len(major)]
    else:
        if matrix.format == "bsr":
            entries = min(len(matrix.indices), len(matrix.data))
            row_starts(name, matrix.indptr, n // matrix.blocksize[0], entries)
        matrix = matrix.tocoo()
        rows, columns = (int64_array(f"indices of {name}", i) for i in (matrix.row, matrix.col))
        data = matrix.data
    check_places(name, rows, columns, (n, m))
    if data.shape != rows.shape:
        raise ValueError(f"{name}: expected a value for each of {len(rows)} entries")
    return rows, columns, data


def as_csr(name: str, matrix: Any) -> Any:
    """Return a SciPy sparse matrix [n, m] of any format as CSR; errors of `matrix_entries`."""
    import scipy.sparse

    rows, columns, data = matrix_entries(name, matrix)
    return scipy.sparse.csr_array((data, (rows, columns)), shape=matrix.shape)


def _holds_bool(given: Any) -> bool:
    """Whether a bool is among these numbers; NumPy makes integers of bools in lists."""
    if isinstance(given, np.ndarray):
        objects = given.dtype == object and any(
            isinstance(item, (bool, np.bool_)) for item in given.flat
        )
        return given.dtype == bool or objects
    if not isinstance(given, (list, tuple)):
        return False
    kinds = set(map(type, given))
    if kinds & {bool, np.bool_}:
        return True
    return bool(kinds & {list, tuple, np.ndarray}) and any(map(_holds_bool, given))


def _of_python_integers(array: np.ndarray) -> bool:
    if array.dtype != object or array.size == 0:
        return False
    return all(
        isinstance(item, (int, np.integer)) and not isinstance(item, bool) for item in array.flat
    )


def shown(number: Any) -> str:
    """Return a number for a message; Python refuses to write out integers of 4,300 digits."""
    bits = int(number).bit_length()
    return str(number) if bits <= 128 else f"an integer of {bits} bits"
