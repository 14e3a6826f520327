"""Read and write lines of texts, embeddings and codes, in files and pipes."""

from __future__ import annotations

import codecs
import json
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from csrtrain import lines
from csrtrain.lines import Record

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    from csrkern import SparseCodes
    from csrkern.integrations.rows import Stored
    from csrtrain.recipe import Recipe

JSON_LINES = (".jsonl", ".ndjson")
FIELD = "text"
MADE_BY = "csrkern"  # the recipe of a line's code
CODE_FIELDS = ("indices", "values", "dim", MADE_BY)
MOST_LATENTS = 2**31 - 1


def read_records(source: str, field: str = FIELD) -> Iterator[Record]:
    """Return a record for each line of a file, or of standard input where `source` is "-".

    Lines are JSON objects if the file's name says so or the first line begins like one; else
    records are {field: line}.

    Raises:
        OSError: at once, if the file cannot be opened.
        ValueError: later, naming the first line that differs in kind from the others.
    """
    if source != "-":
        as_json = True if Path(source).suffix.lower() in JSON_LINES else None
        return lines.read_records(open(source, "rb"), source, field, as_json=as_json)
    if sys.stdin is None:
        raise OSError("standard input is closed; expected lines there")
    if sys.stdin.isatty():
        print("csrkern: reading lines; Ctrl-D ends them", file=sys.stderr)
    return lines.read_records(sys.stdin.buffer, "standard input", field)


def count_lines(source: str) -> int | None:
    """Return the most records that `read_records` can yield; None: a pipe, which is read once."""
    if source == "-" or not stat.S_ISREG(os.stat(source).st_mode):
        return None
    with open(source, "rb") as stream:
        return sum(1 for _ in stream)


def field_of(record: Record, name: str, kind: type) -> Any:
    """Return the field that a line holds under a name.

    Raises:
        ValueError: if it holds nothing under that name, or something of another kind.
    """
    if not isinstance(record.fields.get(name), kind):
        expected = {str: "a text", list: "a list", int: "an integer"}[kind]
        names = ", ".join(record.fields) or "nothing"
        raise ValueError(
            f"{record.where}: expected {expected} under {name!r} in every line, "
            f"got one with {names}"
        )
    return record.fields[name]


def text_of(record: Record, field: str = FIELD) -> str:
    """Return the text of a line, for a model to read.

    Raises:
        ValueError: if it holds none, or one with half of a surrogate pair.
    """
    return lines.check_text(record.where, field_of(record, field, str))


def numbers_in(record: Record, name: str, *kinds: type) -> list[Any]:
    """Return the list of numbers that a line holds under a name; booleans are not numbers."""
    numbers = field_of(record, name, list)
    for value in numbers:
        if type(value) not in kinds:
            expected = "numbers" if float in kinds else "integers"
            shown = json.dumps(value)[:60]
            raise ValueError(f"{record.where}: {name}: expected {expected}, got {shown}")
    return numbers


def embeddings_of(records: Sequence[Record]) -> np.ndarray:
    """Return the embeddings float32 [n, d] of JSON lines.

    Raises:
        ValueError: naming the first line that has none, or one of another width.
    """
    import numpy as np

    from csrkern.arguments import float32_array

    rows: list[np.ndarray] = []
    for record in records:
        numbers = numbers_in(record, "embedding", int, float)
        rows.append(float32_array(f"{record.where}: embedding", numbers))
        invalid = rows[-1][~np.isfinite(rows[-1])]
        if len(invalid):
            raise ValueError(
                f"{record.where}: embedding: expected finite float32 numbers, got {invalid[0]}"
            )
        if len(rows[-1]) != len(rows[0]):
            raise ValueError(
                f"{record.where}: embedding: expected {len(rows[0])} numbers, as in the first "
                f"line, got {len(rows[-1])}"
            )
    return np.stack(rows)


def codes_of_records(records: Sequence[Record], dim: int | None = None) -> SparseCodes:
    """Return the codes of JSON lines with indices, values and dim, as `embed` writes them.

    They have the fingerprint that the lines name.

    Raises:
        ValueError: naming the first line that lacks these fields or has another dim or model.
    """
    from csrkern.integrations.rows import collect

    if not records:
        raise ValueError("expected at least one JSON line with codes, got none")
    if dim is None:
        dim = _dim_of(records[0])
    stored = (_stored(record, row, dim) for row, record in enumerate(records))
    codes, _ = collect(stored, dim, None)
    codes.fingerprint = recipe_of_records(records).fingerprint
    return codes


def recipe_of_records(records: Sequence[Record]) -> Recipe:
    """Return the models that made the lines' codes, as `embed` notes them; empty if unknown.

    Raises:
        ValueError: naming the first line that says something else.
    """
    from csrtrain.recipe import Recipe

    marked = [record for record in records if record.fields.get(MADE_BY) is not None]
    for record in marked:
        if record.fields[MADE_BY] != marked[0].fields[MADE_BY]:
            raise ValueError(
                f"{record.where}: expected codes of the models of {marked[0].where}, got codes of "
                f"others: {json.dumps(record.fields[MADE_BY])[:200]}"
            )
    if not marked:
        return Recipe()
    try:
        return Recipe.from_json(json.dumps(marked[0].fields[MADE_BY]))
    except ValueError as error:
        raise ValueError(f"{marked[0].where}: {MADE_BY}: {error}") from error


def _dim_of(record: Record) -> int:
    from csrkern.arguments import check_int

    return check_int(f"{record.where}: dim", field_of(record, "dim", int), 1, MOST_LATENTS)


def _stored(record: Record, row: int, dim: int) -> Stored:
    from csrkern.integrations.rows import Stored

    if "dim" in record.fields and (record_dim := _dim_of(record)) != dim:
        raise ValueError(f"{record.where}: expected codes over {dim} latents, got {record_dim}")
    latents = numbers_in(record, "indices", int)
    return Stored(record.where, row, latents, numbers_in(record, "values", int, float))


def numbers_of(row: np.ndarray) -> list[float]:
    """Return float32 numbers in their shortest form: 0.1, not 0.10000000149011612."""
    return [float(str(value)) for value in row]


def emit(record: dict[str, Any], stream: TextIO | None = None) -> None:
    """Print a line of JSON at once, so that a reader need not wait for the next."""
    stream = stream or sys.stdout
    # JSON is UTF-8, or ASCII if the stream has another encoding.
    utf_8 = codecs.lookup(stream.encoding or "utf-8").name == "utf-8"
    line = lines.to_json(record, ascii_only=not utf_8)
    stream.write(line + "\n")  # in one piece, or not at all
    stream.flush()
