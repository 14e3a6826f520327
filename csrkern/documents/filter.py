"""Filters by metadata, as conditions in SQL."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

FilterLike: TypeAlias = Mapping[str, Any]
"""A choice of documents by their metadata; all entries must hold.

- `"field": value`: the field equals a string, a number, a bool or a list; None: it is null or not
  there. `"a.b"` is the field b of the object a, `"$id"` the document's id, `"$text"` its text.
- `"field": {"$ne": value}`, and instead of "$ne": "$eq", "$in" and "$nin" (a list of values),
  "$gt", "$gte", "$lt" and "$lte" (numbers among numbers, strings among strings), "$contains" (the
  field is a list that holds the value), "$substring" (the field is a string that holds the string,
  upper and lower case apart). Several of one field must all hold.
- `"$and": [...]`, `"$or": [...]`: filters; `"$not": {...}`: a filter.
"""

# Not after a backslash of its own.
NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_HALF = re.compile("[\ud800-\udfff]")  # of a character
_ORDERS = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
OPERATORS = ("$eq", "$ne", "$in", "$nin", *_ORDERS, "$contains", "$substring")
# What every document has besides its metadata, and its type.
_COLUMNS = {"$id": ("documents.id", "'text'"), "$text": ("documents.text", "'text'")}
_VALUES = "a string, a number, a bool or None"


class Condition(NamedTuple):
    """An SQL condition that is true or false, never NULL, and its parameters."""

    sql: str
    parameters: tuple[Any, ...] = ()

    def __and__(self, other: Condition) -> Condition:
        return _joined("AND", [self, other])

    def __invert__(self) -> Condition:
        return Condition(f"NOT {self.sql}", self.parameters)


ALL = Condition("1")
_NONE = Condition("0")


def condition(chosen: FilterLike | None) -> Condition:
    """Return the condition on a row of the table of documents that a filter states.

    Raises:
        TypeError, ValueError: if it is no filter.
    """
    if chosen is None:
        return ALL
    try:
        return _all_entries(chosen)
    except RecursionError:
        raise ValueError("filter: expected one that is not nested that deeply") from None


def _all_entries(chosen: Any) -> Condition:
    if not isinstance(chosen, Mapping):
        raise TypeError(f"filter: expected a mapping of fields, got {type(chosen).__name__}")
    return _joined("AND", [_entry(name, value) for name, value in chosen.items()])


def _joined(word: str, conditions: list[Condition]) -> Condition:
    """Join conditions by halves: SQLite allows a depth of 1,000."""
    if not conditions:
        return ALL if word == "AND" else _NONE
    if len(conditions) == 1:
        return conditions[0]
    half = len(conditions) // 2
    first, second = (_joined(word, part) for part in (conditions[:half], conditions[half:]))
    return Condition(f"({first.sql} {word} {second.sql})", first.parameters + second.parameters)


def _entry(name: Any, value: Any) -> Condition:
    if not isinstance(name, str):
        raise TypeError(f"filter: expected strings as fields, got {type(name).__name__}")
    if name == "$not":
        return ~_all_entries(value)
    if name in ("$and", "$or"):
        if not isinstance(value, (list, tuple)):
            raise TypeError(f"filter: {name}: expected a list of filters, got {value!r:.60}")
        return _joined(name[1:].upper(), [_all_entries(part) for part in value])
    if name.startswith("$") and name not in _COLUMNS:
        raise ValueError(f"filter: expected a field, $id, $text, $and, $or or $not, got {name!r}")
    if not isinstance(value, Mapping):
        return _compared(name, "$eq", value)
    if not value:
        raise ValueError(f"filter: {name}: expected one of {', '.join(OPERATORS)}, got none")
    return _joined("AND", [_compared(name, *comparison) for comparison in value.items()])


def _compared(name: str, operator: Any, operand: Any) -> Condition:
    if operator in ("$ne", "$nin"):
        return ~_compared(name, "$eq" if operator == "$ne" else "$in", operand)
    value, kind = _COLUMNS.get(name) or expressions(name)
    if operator == "$eq" and isinstance(operand, (list, tuple)):
        same = f"({kind} IS 'array' AND {value} IS json(?))"
        return Condition(same, (_as_json(name, operand),))
    if operator == "$eq":
        return Condition(f"({value} IS ?)", (_scalar(name, operand),))
    if operator == "$in":
        if not isinstance(operand, (list, tuple)):
            raise TypeError(f"filter: {name}: $in: expected a list, got {operand!r:.60}")
        values = [_scalar(name, each) for each in operand if each is not None]
        held = f"({value} IN (SELECT value FROM json_each(?)))"
        some = Condition(f"({value} IS NOT NULL AND {held})", (json.dumps(values),))
        none = Condition(f"({value} IS NULL)")
        return _joined("OR", [some, none]) if None in operand else some
    if operator == "$contains":
        if name in _COLUMNS:
            raise ValueError(f"filter: {name}: a string is no list that $contains could look into")
        items = f"json_each(documents.metadata, {_path(name)})"
        held = f"EXISTS (SELECT 1 FROM {items} WHERE value IS ?)"
        return Condition(f"({kind} IS 'array' AND {held})", (_scalar(name, operand),))
    if operator == "$substring":
        if not isinstance(operand, str):
            raise TypeError(f"filter: {name}: $substring: expected a string, got {operand!r:.60}")
        held = f"({kind} IS 'text' AND instr({value}, ?) > 0)"
        return Condition(held, (_scalar(name, operand),))
    if operator in _ORDERS:
        if isinstance(operand, bool) or not isinstance(operand, (int, float, str)):
            raise TypeError(
                f"filter: {name}: {operator}: expected a number or a string, got {operand!r:.60}"
            )
        kinds = "('text')" if isinstance(operand, str) else "('integer', 'real')"
        within = f"({kind} IS NOT NULL AND {kind} IN {kinds} AND {value} {_ORDERS[operator]} ?)"
        return Condition(within, (_scalar(name, operand),))
    raise ValueError(f"filter: {name}: expected one of {', '.join(OPERATORS)}, got {operator!r}")


def expressions(name: str, column: str = "documents.metadata") -> tuple[str, str]:
    """Return a field's value and its type in SQL: the same text always, which an index needs.

    Raises:
        ValueError: if it is no name of a field.
    """
    path = _path(name)
    return f"json_extract({column}, {path})", f"json_type({column}, {path})"


def _path(name: str) -> str:
    plain = json.dumps(name, ensure_ascii=False) == f'"{name}"' and not _HALF.search(name)
    if not plain or not all(name.split(".")):
        raise ValueError(
            "filter: expected the name of a field, without quotes, backslashes, control characters "
            f"and halves of characters, got {name!r}"
        )
    path = "".join(f'."{part}"' for part in name.replace("'", "''").split("."))
    return f"'${path}'"


def _scalar(name: str, value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int, float)):
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            try:
                return float(value)  # as SQLite reads such numbers
            except OverflowError as error:
                raise ValueError(f"filter: {name}: expected a number that floats reach") from error
        _as_json(name, value)
        return value
    raise TypeError(f"filter: {name}: expected {_VALUES}, got {type(value).__name__}")


def without_nul(written: str) -> str:
    """Return JSON as it is.

    Raises:
        ValueError: if a string in it has the character NUL, at which SQLite would end it, or half
            of a character.
    """
    if "\\u0000" in written and NUL.search(written):
        raise ValueError("a string has the character NUL, which SQLite cannot compare")
    written.encode()
    return written


def _as_json(name: str, value: Any) -> str:
    try:
        return without_nul(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"filter: {name}: expected {_VALUES}, got {value!r:.60}: {error}"
        ) from error


__all__ = ["ALL", "Condition", "FilterLike", "condition", "expressions"]
