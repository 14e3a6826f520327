"""What the server holds: an index mapped from disk, and what is known of its documents."""

from __future__ import annotations

import json
import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from csrkern import InvertedIndex
from csrtrain.lines import Record, read_records

log = logging.getLogger("uvicorn.error")


class Document(NamedTuple):
    """What is known of one document: its JSON, ready to be sent, and its text fields."""

    text: str
    fields: dict[str, str]

    @classmethod
    def of(cls, record: Record) -> Document:
        """Encoded once, so that no answer that contains it can fail.

        Raises:
            ValueError: if JSON cannot hold it: NaN, 1e999, half of a surrogate pair.
        """
        try:
            text = json.dumps(record.fields, ensure_ascii=False, allow_nan=False)
            text.encode()
        except ValueError as error:
            raise ValueError(f"{record.where}: expected what JSON can hold: {error}") from error
        return cls(text, {name: v for name, v in record.fields.items() if isinstance(v, str)})


@dataclass(frozen=True)
class Column:
    """One text field of all documents, in the order of `index.ids`: numbers of its values."""

    numbers: dict[str, int]
    rows: np.ndarray  # int32 [n]; -1 where a document has no such field

    def equals(self, value: str) -> np.ndarray:
        """Which documents have this value, bool [n]."""
        return self.rows == self.numbers.get(value, -2)


@dataclass(frozen=True)
class Library:
    """An index with its documents; never changed, only replaced as a whole."""

    index: InvertedIndex
    nothing: InvertedIndex  # the same without documents
    documents: dict[int, Document]
    columns: dict[str, Column]
    loaded_at: float

    @classmethod
    def load(cls, folder: Path, documents: Path | None) -> Library:
        """Maps the index in `folder`; `documents` has a JSON object with an "id" on each line.

        Raises:
            FileNotFoundError, ValueError: if either is missing or damaged.
        """
        index = InvertedIndex.load(folder)
        none = np.zeros((0, 1), np.float32), np.zeros((0, 1), np.int32)
        nothing = InvertedIndex.build(none, dim=index.dim)
        known = {} if documents is None else read_documents(documents)
        return cls(index, nothing, known, columns_of(index.ids, known), time.time())

    def mask(self, where: dict[str, str] | None) -> np.ndarray | None:
        """Which documents have all of these fields, bool [n]; None: no matter which.

        Raises:
            ValueError: if no document has such a field.
        """
        if not where:
            return None
        unknown = sorted(where.keys() - self.columns.keys())
        if unknown:
            raise ValueError(
                f"where: no document has a text field {unknown[0]!r}; there are "
                f"{sorted(self.columns) or 'none'}"
            )
        return np.logical_and.reduce([self.columns[f].equals(v) for f, v in where.items()])


class Shelf:
    """The library in use. Requests take it once and keep it until they are answered."""

    def __init__(self, folder: Path, documents: Path | None) -> None:
        self._where = (folder, documents)
        self._loading = threading.Lock()
        self.library = Library.load(folder, documents)
        self.reload_error: str | None = None

    def reload(self) -> None:
        """Takes what is on disk now; if that cannot be read, stays with what there is."""
        with self._loading:
            try:
                self.library = Library.load(*self._where)
                self.reload_error = None
                log.info("reloaded: %d documents", len(self.library.index))
            except Exception as error:
                self.reload_error = str(error)
                log.error("not reloaded, still serving the old index: %s", error)


def read_documents(path: Path) -> dict[int, Document]:
    """Documents by id. What an answer could not hold is refused here: it would spoil the others.

    Raises:
        ValueError: naming the line that is not a JSON object with an integer "id" of its own.
    """
    found: dict[int, Document] = {}
    with path.open("rb") as stream:
        for record in read_records(stream, str(path), as_json=True):
            id = record.fields.get("id")
            if type(id) is not int or not 0 <= id < 2**63:
                raise ValueError(f'{record.where}: expected an integer "id" >= 0, got {id!a:.60}')
            if id in found:
                raise ValueError(f'{record.where}: expected each "id" once, got {id} twice')
            found[id] = Document.of(record)
    return found


def columns_of(ids: np.ndarray, documents: dict[int, Document]) -> dict[str, Column]:
    """A column for each field that holds text in some document."""
    fields = {name for document in documents.values() for name in document.fields}
    columns = {}
    for name in fields:
        numbers: dict[str, int] = {}
        rows = np.full(len(ids), -1, np.int32)
        for row, id in enumerate(ids.tolist()):
            if id in documents and name in documents[id].fields:
                rows[row] = numbers.setdefault(documents[id].fields[name], len(numbers))
        columns[name] = Column(numbers, rows)
    return columns
