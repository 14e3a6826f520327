"""Lines in and out: texts and JSON, from files and pipes."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from csrkern import SparseCodes


def read_records(source: str, field: str) -> Iterator[dict[str, Any]]:
    """A record for each line of a file, or of standard input where `source` is "-".

    JSON objects as they are, or {field: line}: the first line decides.

    Raises:
        OSError: at once, if the file cannot be opened.
        ValueError: later, naming the first line that is not as the first one was.
    """
    if source != "-":
        return _records(open(source, "rb"), source, field)
    if sys.stdin.isatty():
        print("csrkern: reading lines; Ctrl-D ends them", file=sys.stderr)
    return _records(sys.stdin.buffer, "standard input", field)


def count_lines(source: str) -> int | None:
    """How many records `read_records` will give at most; None: there is no telling."""
    if source == "-":
        return None
    with open(source, "rb") as stream:
        return sum(1 for _ in stream)


def _records(stream: BinaryIO, name: str, field: str) -> Iterator[dict[str, Any]]:
    as_json = False
    for number, raw in enumerate(stream, start=1):
        try:
            line = raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{name}: line {number} is not UTF-8: {error.reason}") from error
        record = _json_object(line)
        as_json |= number == 1 and record is not None
        if not as_json:
            yield {field: line}
        elif record is not None:
            yield record
        elif line.strip():
            raise ValueError(f"{name}: line {number}: expected a JSON object, got {line[:60]!r}")


def _json_object(line: str) -> dict[str, Any] | None:
    if not line.lstrip().startswith("{"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def field_of(record: dict[str, Any], name: str, kind: type) -> Any:
    """What a JSON line holds under a name.

    Raises:
        ValueError: if it holds nothing there, or something of another kind.
    """
    if not isinstance(record.get(name), kind):
        wanted = {str: "a text", list: "a list", int: "an integer"}[kind]
        held = ", ".join(record) or "nothing"
        raise ValueError(f"expected {wanted} under {name!r} in every line, got one with {held}")
    return record[name]


def codes_of_records(records: list[dict[str, Any]], dim: int | None = None) -> SparseCodes:
    """Codes of JSON lines with indices, values and dim, as `embed` writes them.

    Raises:
        ValueError: if there is none, or a line has not these fields or another dim.
    """
    from csrkern.integrations.rows import codes_of_pairs

    if not records:
        raise ValueError("expected at least one JSON line with codes, got none")
    width = field_of(records[0], "dim", int) if dim is None else dim
    for record in records:
        if record.get("dim", width) != width:
            raise ValueError(f"expected codes over {width} latents, got {record['dim']}")
    lists = ((field_of(r, "indices", list), field_of(r, "values", list)) for r in records)
    return codes_of_pairs(lists, width)


def numbers_of(row: np.ndarray) -> list[float]:
    """float32 numbers in their shortest form: a tenth as 0.1, not as 0.10000000149011612."""
    return [float(str(value)) for value in row]


def emit(record: dict[str, Any]) -> None:
    """Prints a line of JSON at once, so that a reader need not wait for the next."""
    sys.stdout.write(json.dumps(record, ensure_ascii=False) + "\n")  # in one piece, or not at all
    sys.stdout.flush()
