"""Checks and conversions of arguments, shared by operators and index; imports no PyTorch.

Every message names the argument, what was expected and what was given. A NumPy integer is an
integer everywhere, and a bool is not.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from csrkern import _C


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
    """The smallest float32 that is at least `value`."""
    exact = as_float(name, value)
    with np.errstate(all="ignore"):
        least = np.float32(exact)
        if float(least) < exact:
            least = np.nextafter(least, np.float32(np.inf))
    if np.isnan(least):
        raise ValueError(f"{name}: expected a number, got nan")
    return float(least)


def array_of(name: str, given: Any) -> np.ndarray:
    """An array, a torch tensor wherever it is, nested lists, or what only speaks DLPack."""
    if hasattr(given, "detach"):
        given = given.detach().cpu()
        given = (given.float() if str(given.dtype) == "torch.bfloat16" else given).numpy()
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


def float32_array(name: str, given: Any) -> np.ndarray:
    """Real numbers as contiguous float32; those that are too large become infinite."""
    array = array_of(name, given)
    if _of_python_integers(array):
        raise ValueError(f"{name}: expected float32 numbers, got {shown(max(array.flat, key=abs))}")
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected real numbers, got {array.dtype}")
    with np.errstate(all="ignore"):  # the caller says which number it was
        return np.ascontiguousarray(array, dtype=np.float32)


def integers(name: str, given: Any) -> np.ndarray:
    """Integers of some NumPy type; an empty list is of any type, and a bool is no integer."""
    array = array_of(name, given)
    if array.dtype.kind in "iu":
        if _holds_bool(given):
            raise TypeError(f"{name}: expected integers, got a list with a bool in it")
        return array
    if array.size == 0:
        return array.astype(np.int64)
    # Lists of integers that no one type of NumPy holds become objects or floats.
    whole = np.array(given, dtype=object) if isinstance(given, (list, tuple)) else array
    if _of_python_integers(whole):
        wrong = max(map(int, whole.flat), key=abs)
        if abs(wrong) < 2**63:
            return whole.astype(np.int64)
        raise ValueError(f"{name}: expected integers in 0..2^63-1, got {shown(wrong)}")
    raise TypeError(f"{name}: expected integers, got {array.dtype}")


def _holds_bool(given: Any) -> bool:
    """Whether lists hold a bool, which NumPy makes an integer of among integers."""
    if not isinstance(given, (list, tuple)):
        return isinstance(given, np.ndarray) and given.dtype == bool
    kinds = set(map(type, given))
    if kinds & {bool, np.bool_}:
        return True
    return any(map(_holds_bool, given)) if kinds & {list, tuple, np.ndarray} else False


def _of_python_integers(array: np.ndarray) -> bool:
    if array.dtype != object or array.size == 0:
        return False
    return all(
        isinstance(one, (int, np.integer)) and not isinstance(one, bool) for one in array.flat
    )


def shown(number: Any) -> str:
    """A number for a message; Python refuses to write out integers of 4,300 digits."""
    bits = int(number).bit_length()
    return str(number) if bits <= 128 else f"an integer of {bits} bits"
