"""Lines of text and of JSON, read and written; imports neither NumPy nor PyTorch.

Every reader of lines in this project is this one, so that a file has the same lines everywhere.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

MOST_NESTED = 100  # brackets; Python's own limit depends on its version and on the caller
_JSON_BEGINS = re.compile(r'\s*\{\s*["}]')
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SURROGATE = re.compile("[\ud800-\udfff]")
# Characters that a terminal obeys, or that change the order of text, instead of being shown.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Record:
    """The fields of one line, and its position for messages: "lines.txt: line 3"."""

    where: str
    fields: dict[str, Any]


def read_lines(stream: BinaryIO, name: str) -> Iterator[tuple[str, str]]:
    r"""Yield the position (for messages) and the text of each line of UTF-8.

    Only \n ends a line (U+2028, form feed and the like are characters of a text); a \r before it
    and a byte-order mark at the beginning do not belong to the text.

    Raises:
        ValueError: naming the line that is not text in UTF-8.
    """
    for number, raw in enumerate(stream, start=1):
        where = f"{name}: line {number}"
        if number == 1:
            if raw.startswith(_UTF_16):
                raise ValueError(f"{where} is not UTF-8 but UTF-16; convert it with iconv")
            raw = raw.removeprefix(codecs.BOM_UTF8)
            if not raw:
                return
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{where} is not UTF-8: {error.reason}") from error
        if "\0" in text:
            raise ValueError(f"{where} holds a NUL byte; expected text in UTF-8")
        yield where, text.removesuffix("\n").removesuffix("\r")


def read_records(
    stream: BinaryIO, name: str, field: str = "text", *, as_json: bool | None = None
) -> Iterator[Record]:
    """Yield a record for each line: a JSON object as it is, a text as {`field`: text}.

    Blank lines among JSON are skipped.

    Args:
        stream: bytes to read.
        name: of the stream, for messages.
        field: name for plain texts.
        as_json: whether lines are JSON objects; None: they are if the first that is not blank
            begins like one, `{"`.

    Raises:
        ValueError: naming the line that differs in kind from the others.
    """
    blank: list[Record] = []  # lines before the first that is not blank
    for where, text in read_lines(stream, name):
        if as_json is None and text.strip():
            as_json = _JSON_BEGINS.match(text) is not None
            if not as_json:
                yield from blank
            blank.clear()
        if as_json:
            if text.strip():
                yield Record(where, parse_object(where, text))
        elif as_json is None:
            blank.append(Record(where, {field: text}))
        else:
            yield Record(where, {field: text})
    yield from blank


def parse_object(where: str, text: str) -> dict[str, Any]:
    """Return the JSON object in `text`.

    Raises:
        ValueError: naming `where`, if there is none, or one that is nested too deeply.
    """
    expected = f"{where}: expected a JSON object"
    try:
        parsed = json.loads(text)
        if not isinstance(parsed, dict):
            raise ValueError(f"it is {_KINDS.get(type(parsed), 'a number')}")
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{expected}, got {text[:60]!r} ({error.msg}, character {error.pos + 1})"
        ) from error
    except ValueError as error:
        raise ValueError(f"{expected}, got {text[:60]!r} ({error})") from error
    except RecursionError as error:
        raise ValueError(f"{expected} of at most {MOST_NESTED} nested brackets") from error
    if text.count("[") + text.count("{") > MOST_NESTED and _nested(parsed) > MOST_NESTED:
        raise ValueError(f"{expected} of at most {MOST_NESTED} nested brackets")
    return parsed


_KINDS = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}


def _nested(value: Any) -> int:
    level, depth = [value], 0
    while level:
        depth += 1
        children = (x.values() if isinstance(x, dict) else x for x in level)
        level = [x for items in children for x in items if isinstance(x, (dict, list))]
    return depth


def to_json(record: dict[str, Any], *, ascii_only: bool = False) -> str:
    """Return a record as one line of JSON, which every reader accepts, without the line's end.

    NaN and infinite numbers, which JSON does not have, become null; halves of surrogate pairs,
    which UTF-8 does not have, and the control characters that terminals obey are escaped.
    """
    try:
        text = json.dumps(record, ensure_ascii=ascii_only, allow_nan=False)
    except ValueError:
        finite = json.loads(json.dumps(record), parse_constant=lambda _: None)
        text = json.dumps(finite, ensure_ascii=ascii_only)
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def set_aside(fields: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return the fields of a line, renamed so that `names` can be added.

    A field that has one of these names gets an underscore at its end: "query_".
    """
    renamed = {}
    for name, value in fields.items():
        new = name
        while new in names or (new != name and new in fields):
            new += "_"
        renamed[new] = value
    return renamed


def check_text(where: str, text: str) -> str:
    """Return `text`, which must hold characters only, as the models that read it require.

    Raises:
        ValueError: naming `where`, if it holds half of a surrogate pair (JSON's "\\ud83d" alone),
            as which Python also gives bytes of an argument that are not UTF-8.
    """
    if (surrogate := _SURROGATE.search(text)) is not None:
        raise ValueError(
            f"{where}: expected a text of characters, got one with {surrogate[0]!a} at "
            f"{surrogate.start() + 1}, half of a surrogate pair"
        )
    return text


def printable(text: str, *, keep: str = "") -> str:
    """Return `text` with the characters escaped that a terminal would obey, except `keep`.

    Python keeps bytes of a file's name that are not UTF-8 as surrogates: they show as bytes.
    """
    return _CONTROL.sub(lambda match: match[0] if match[0] in keep else _escaped(match[0]), text)


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else ascii(character)[1:-1]
