"""The SQLite file of a `DocumentStore`: documents, their codes and the words of their texts.

A row never changes. A document that is replaced gets a new row, and a row a number that no other
row had before it. So an index holds the right codes as soon as it holds the right numbers.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from csrkern.documents.filter import Condition, expressions
from csrkern.index.rows import Rows, starts_of

FILE = "documents.sqlite"
VERSION = 1
_APPLICATION = 0x43535244  # "CSRD", for the header of the file
_SECONDS = 60.0  # to wait for another process that writes

# The texts of `words` are those of `documents`. The partial index gives the numbers of all codes
# without reading any text.
_SCHEMA = (
    """CREATE TABLE documents (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        text TEXT NOT NULL,
        metadata TEXT NOT NULL,
        code BLOB
    )""",
    "CREATE INDEX coded ON documents (number) WHERE code IS NOT NULL",
    """CREATE VIRTUAL TABLE words USING fts5(
        text, content='documents', content_rowid='number',
        tokenize='unicode61 remove_diacritics 2'
    )""",
    """CREATE TRIGGER words_come AFTER INSERT ON documents BEGIN
        INSERT INTO words(rowid, text) VALUES (new.number, new.text);
    END""",
    """CREATE TRIGGER words_go AFTER DELETE ON documents BEGIN
        INSERT INTO words(words, rowid, text) VALUES ('delete', old.number, old.text);
    END""",
    "CREATE TABLE settings (name TEXT PRIMARY KEY, value)",
    # Numbers begin at a random one: those of two files are different.
    "INSERT INTO sqlite_sequence VALUES ('documents', abs(random() / 4))",
    f"PRAGMA application_id = {_APPLICATION}",
    f"PRAGMA user_version = {VERSION}",
)
CODED = Condition("code IS NOT NULL")
_DAMAGED = ("malformed", "no such", "Could not decode")
# Accents that follow their letters belong to a word, as in the file.
_WORD = re.compile("[\\w\u0300-\u0331]+")
_AMONG = "IN (SELECT value FROM json_each(?))"


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Raise what SQLite says of a file as errors that name it.

    Raises:
        OSError: if it cannot be read or written.
        ValueError: if it is damaged.
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        said = str(error)
        if said.startswith(_DAMAGED):
            raise ValueError(f"{path} is damaged: {said}") from error
        raise OSError(
            f"{path}: {said}; expected a file that this process may write, on a disk with room, "
            f"which no other process keeps for more than {_SECONDS:.0f} s"
        ) from error
    except (sqlite3.DatabaseError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


class Table:
    """Rows in one SQLite file, or in memory; the caller sees to threads and transactions."""

    def __init__(self, path: str, read_only: bool = False) -> None:
        # Transactions are begun by name. Those that are committed survive a loss of power:
        # otherwise a number in a saved index could come again with another code.
        with naming(path):
            self._db = _opened_to_read(path) if read_only else _connected(path)
            try:
                if not read_only:
                    self._db.execute("PRAGMA journal_mode = WAL")
                    self._db.execute("PRAGMA synchronous = FULL")
                    self.begin()
                    if not self._is_made(path):
                        self._make()
                    self.commit()
                elif not self._is_made(path):
                    raise ValueError(f"{path}: expected a file of a DocumentStore, found no tables")
                self._path = None if path == ":memory:" else path
                self._place = _place(self._path)
            except BaseException:
                self._db.close()
                raise

    def _is_made(self, path: str) -> bool:
        """Return whether the file holds the tables, or nothing yet."""
        (application,) = self._row("PRAGMA application_id")
        (version,) = self._row("PRAGMA user_version")
        if (application, version) == (_APPLICATION, VERSION):
            return True
        if application == _APPLICATION:
            raise ValueError(
                f"{path} has format version {version}; this release reads version {VERSION}"
            )
        if self._row("SELECT count(*) FROM sqlite_master") != (0,):
            raise ValueError(f"{path}: expected a file of a DocumentStore, found other tables")
        return False

    def _make(self) -> None:
        try:
            for statement in _SCHEMA:
                self._db.execute(statement)
        except sqlite3.OperationalError as error:
            raise RuntimeError(
                f"this Python's SQLite ({sqlite3.sqlite_version}) cannot hold documents: {error}"
            ) from error

    def begin(self) -> None:
        """Begin a change; no other process can begin one before this one ends."""
        self._db.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """End a change; from now on it survives any crash."""
        self._db.execute("COMMIT")

    def roll_back(self) -> None:
        """Undo the change that is open, if one is."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def is_there(self) -> bool:
        """Return whether the path still leads to this file."""
        return _place(self._path) == self._place

    def version(self) -> int:
        """Return a number that changes when another process or store changes the file."""
        return int(self._row("PRAGMA data_version")[0])

    def setting(self, name: str) -> Any:
        """Return the value of a setting, or None."""
        row = self._db.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        return None if row is None else row[0]

    def set(self, name: str, value: Any) -> None:
        """Change a setting."""
        self._db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, value))

    def insert(
        self,
        ids: Sequence[str],
        texts: Sequence[str],
        metadata: Sequence[str],
        codes: Sequence[bytes | None],
    ) -> np.ndarray:
        """Insert rows and return their numbers, int64 [n]."""
        first = self.last() + 1
        numbers = range(first, first + len(ids))
        self._db.executemany(
            "INSERT INTO documents VALUES (?, ?, ?, ?, ?)",
            zip(numbers, ids, texts, metadata, codes, strict=True),
        )
        return np.array(numbers, np.int64)

    def last(self) -> int:
        """Return the greatest number that a row has had."""
        (last,) = self._row("SELECT seq FROM sqlite_sequence WHERE name = 'documents'")
        return int(last)

    def cannot_hold(self, metadata: Sequence[str]) -> int | None:
        """Return the place of the first JSON that is too deep for SQLite, or None."""
        tests = (self._row("SELECT json_valid(?)", (written,)) for written in metadata)
        return next((place for place, (valid,) in enumerate(tests) if not valid), None)

    def delete(self, chosen: Condition) -> tuple[int, np.ndarray]:
        """Delete rows; return how many, and the numbers of those with a code, int64."""
        coded = self.numbers(chosen & CODED)
        sql, parameters = chosen
        deleted = self._db.execute(f"DELETE FROM documents WHERE {sql}", parameters)
        return deleted.rowcount, coded

    def count(self, chosen: Condition) -> int:
        """Return the number of rows."""
        sql, parameters = chosen
        return int(self._row(f"SELECT count(*) FROM documents WHERE {sql}", parameters)[0])

    def numbers(self, chosen: Condition) -> np.ndarray:
        """Return the numbers of rows, int64, ascending."""
        sql, parameters = chosen
        found = self._db.execute(f"SELECT number FROM documents WHERE {sql}", parameters)
        # Ordered by SQLite, some queries would not use the index of a field.
        return np.sort(np.array(found.fetchall(), np.int64).ravel())

    def index_field(self, name: str) -> None:
        """Keep the values of a field of the metadata in order, for filters that compare it."""
        value, kind = expressions(name, "metadata")
        own = f"field_{name.encode().hex()}"  # SQLite takes "a" and "A" for one name
        self._db.execute(f"CREATE INDEX IF NOT EXISTS {own} ON documents ({value}, {kind})")

    def documents(self, chosen: Condition) -> Iterator[tuple[int, str, str, str]]:
        """Yield number, id, text and metadata of rows, by number."""
        yield from self._db.execute(
            f"SELECT number, id, text, metadata FROM documents WHERE {chosen.sql} ORDER BY number",
            chosen.parameters,
        )

    def codes(self, numbers: np.ndarray, dim: int) -> tuple[Rows, np.ndarray]:
        """Return the codes of those of some rows that there are, and their numbers."""
        among = (json.dumps(numbers.tolist()),)
        found = self._db.execute(f"SELECT number, code FROM documents WHERE number {_AMONG}", among)
        rows = found.fetchall()
        return unpacked([code for _, code in rows], dim), np.array([n for n, _ in rows], np.int64)

    def matching(self, text: str, top_k: int, chosen: Condition) -> tuple[np.ndarray, np.ndarray]:
        """Return the best rows by BM25: scores float32 [1, m] and numbers int64 [1, m].

        A row needs one of the words of `text`.
        """
        words = dict.fromkeys(_WORD.findall(text))
        if not words:
            return np.zeros((1, 0), np.float32), np.zeros((1, 0), np.int64)
        sought = " OR ".join(f'"{word}"' for word in words)
        found = self._db.execute(
            "SELECT words.rank, documents.number FROM words"
            " JOIN documents ON documents.number = words.rowid"
            f" WHERE words MATCH ? AND {chosen.sql}"
            " ORDER BY words.rank, documents.number LIMIT ?",
            (sought, *chosen.parameters, top_k),
        ).fetchall()
        scores = np.array([[-rank for rank, _ in found]], np.float32)
        return scores, np.array([[number for _, number in found]], np.int64)

    def _row(self, sql: str, parameters: Iterable[Any] = ()) -> Any:
        return self._db.execute(sql, tuple(parameters)).fetchone()


def _connected(path: str, **options: Any) -> sqlite3.Connection:
    return sqlite3.connect(
        path, timeout=_SECONDS, isolation_level=None, check_same_thread=False, **options
    )


def _opened_to_read(path: str) -> sqlite3.Connection:
    """Open a file that is there.

    SQLite keeps track of readers in a file beside it. Where none can be made, nothing can be
    written, and the file is read as one that does not change.
    """
    address = f"{Path(path).absolute().as_uri()}?mode=ro"
    file = _connected(address, uri=True)
    try:
        file.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.OperationalError:
        file.close()
        # Changes that are still in a file of their own cannot be read without that of readers.
        if os.access(Path(path).parent, os.W_OK) or Path(f"{path}-wal").exists():
            raise
        return _connected(f"{address}&immutable=1", uri=True)
    return file


def _place(path: str | None) -> tuple[int, int] | None:
    if path is None:
        return None
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def of_ids(ids: Sequence[str]) -> Condition:
    """Return the condition of having one of these ids."""
    return Condition(f"documents.id {_AMONG}", (json.dumps(ids),))


def of_numbers(numbers: Sequence[int]) -> Condition:
    """Return the condition of having one of these numbers."""
    return Condition(f"documents.number {_AMONG}", (json.dumps(numbers),))


def packed(rows: Rows) -> list[bytes]:
    """Return each code's latents (int32) and then its values (float32), little-endian."""
    flat = rows.flat()
    assert flat.starts is not None
    kept = np.flatnonzero(flat.values != 0)
    lengths = np.bincount(np.repeat(np.arange(rows.n), flat.lengths)[kept], minlength=rows.n)
    latents = flat.indices[kept].astype("<i4").tobytes()
    values = flat.values[kept].astype("<f4").tobytes()
    ends = (4 * starts_of(lengths)).tolist()
    return [latents[first:end] + values[first:end] for first, end in itertools.pairwise(ends)]


def unpacked(codes: Sequence[bytes], dim: int) -> Rows:
    """Return the codes that `packed` returned the bytes of, over `dim` latents."""
    lengths = np.array([len(code) // 8 for code in codes], np.int64)
    entries = np.frombuffer(b"".join(codes), "<i4")
    is_latent = np.zeros(len(entries), bool)
    starts = starts_of(lengths)
    within = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
    is_latent[within + np.repeat(2 * starts[:-1], lengths)] = True
    latents = entries[is_latent].astype(np.int32)
    values = entries[~is_latent].view("<f4").astype(np.float32)
    return Rows(values, latents, starts, dim)
