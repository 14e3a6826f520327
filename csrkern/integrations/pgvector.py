"""Codes in PostgreSQL, in a column of pgvector's type `sparsevec` (pgvector 0.7 or later).

`ORDER BY csr <#> query` scores exactly, in float32, by the negative inner product. An index
`USING hnsw (csr sparsevec_ip_ops)` finds approximately, and takes at most 1,000 latents a code.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from csrkern.codes.sparse import SparseCodes
from csrkern.index.rows import starts_of
from csrkern.integrations.rows import (
    VECTOR,
    Codes,
    codes_of,
    codes_of_pairs,
    flat_float32_rows,
    float32_rows,
    read_codes,
)

KEY = "id"
MOST_LATENTS, LARGEST_DIM = 16_000, 10**9  # that a sparsevec holds
_STAGED = "csrkern_codes"  # a temporary table
_INTEGERS = ("bigint", "integer", "smallint")
_CHUNK = 10_000  # rows that are written at once
# The header of a row in PostgreSQL's binary COPY format, up to the sparsevec's latents.
_ROW = np.dtype(
    [
        ("fields", ">i2"),
        ("id_bytes", ">i4"),
        ("id", ">i8"),
        ("vector_bytes", ">i4"),
        ("dim", ">i4"),
        ("latents", ">i4"),
        ("unused", ">i4"),
    ]
)
_PAIR = r"\d+:-?\d+(?:\.\d+)?(?:e[-+]?\d+)?"
_TEXT = re.compile(rf"\{{((?:{_PAIR}(?:,{_PAIR})*)?)\}}/(\d+)")
_BEGIN, _END = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"


def upload(
    codes: Codes, connection: Any, table: str, *, ids: Any = None, vector: str = VECTOR
) -> None:
    """Put codes into a table of PostgreSQL, made if it is not there; rows of an id are updated.

    Everything is checked before anything is sent, and it is one transaction, which is part of
    the one that is open on the connection, if one is. Other columns of a table stay as they are.

    Args:
        codes: n of them.
        connection: a `psycopg.Connection` (psycopg 3).
        table: its name, or "schema.name"; one made here has the primary key `id`, a bigint, and
            the vector.
        ids: n distinct integers ≥ 0; None: 0..n-1.
        vector: name of the column.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if codes are not valid or not finite, or are more than a sparsevec holds
            (16,000 latents of 10^9); if ids do not fit the codes, the table has other columns, or
            the database has no sparsevec.
    """
    from psycopg import sql

    codes, ids = read_codes(codes, ids)
    content = _copied(codes, ids)
    name, column = _name(table), sql.Identifier(vector)
    with connection.transaction(), connection.cursor() as cursor:
        there = _check(cursor, table, vector, codes.dim)
        if there:
            made = "CREATE TEMPORARY TABLE {} (id bigint, {} sparsevec)"
            target = sql.Identifier(_STAGED)
        else:
            made = "CREATE TABLE {} (id bigint PRIMARY KEY, {} sparsevec({}))"
            target = name
        cursor.execute(sql.SQL(made).format(target, column, codes.dim))
        into = sql.SQL("COPY {} (id, {}) FROM STDIN (FORMAT BINARY)").format(target, column)
        with cursor.copy(into) as copy:
            for chunk in content:
                copy.write(chunk)
        if there:
            moved = (
                "INSERT INTO {table} (id, {column}) SELECT id, {column} FROM {staged}"
                " ON CONFLICT (id) DO UPDATE SET {column} = EXCLUDED.{column}"
            )
            cursor.execute(sql.SQL(moved).format(table=name, column=column, staged=target))
            cursor.execute(sql.SQL("DROP TABLE {}").format(target))


def queries(codes: SparseCodes) -> list[str]:
    """Return each code as text that PostgreSQL reads, for any driver: "{1:0.5,8:0.25}/4096".

    Example: ORDER BY csr <#> %s::sparsevec LIMIT 10

    Raises:
        TypeError, ValueError: if codes are not valid or not finite.
    """
    texts = []
    for latents, values in float32_rows(codes):
        order = np.argsort(latents)
        pairs = zip(map(str, latents[order] + 1), map(str, values[order]), strict=True)
        texts.append(f"{{{','.join(map(':'.join, pairs))}}}/{codes.dim}")
    return texts


def read(texts: Iterable[str], *, k: int | None = None) -> SparseCodes:
    """Return the codes [n, k] of texts as PostgreSQL shows them, and `queries` returns them.

    Raises:
        ValueError: naming the row, if one is no sparsevec or no code, a weight being negative,
            for one; or if they have different dimensions.
    """
    dims: dict[int, int] = {}  # and the first row of each

    def rows() -> Iterator[tuple[list[int], list[float]]]:
        for row, text in enumerate(texts):
            held = _TEXT.fullmatch(text)
            if held is None:
                raise ValueError(f"row {row}: expected a text like {{1:0.5}}/8, got {text!r:.60}")
            dims.setdefault(int(held[2]), row)
            pairs = [pair.split(":") for pair in held[1].split(",") if pair]
            yield [int(latent) - 1 for latent, _ in pairs], [float(value) for _, value in pairs]

    pairs = list(rows())
    if len(dims) != 1:
        found = ", ".join(f"{dim} (row {row})" for dim, row in dims.items()) or "no rows"
        raise ValueError(f"texts: expected rows of one dimension, got {found}")
    (dim,) = dims
    return codes_of_pairs(pairs, dim, k)


def download(
    connection: Any, table: str, dim: int, *, k: int | None = None, vector: str = VECTOR
) -> tuple[SparseCodes, np.ndarray]:
    """Return all codes over `dim` latents in a table, and their ids, by id.

    Rows whose vector is NULL are codes without an active latent.

    Raises:
        ValueError: if there is no such table, it has other columns, or a vector is no code over
            `dim` latents: a weight is negative, for one.
    """
    from psycopg import sql

    query = "COPY (SELECT id::bigint, {} FROM {} ORDER BY id) TO STDOUT (FORMAT BINARY)"
    with connection.transaction(), connection.cursor() as cursor:
        if not _check(cursor, table, vector, dim):
            raise ValueError(f"table: this database has no {table!r}")
        with cursor.copy(sql.SQL(query).format(sql.Identifier(vector), _name(table))) as copy:
            copy.set_types(["int8", "bytea"])
            rows = list(copy.rows())
    ids = [id for id, _ in rows]
    for before, id in itertools.pairwise([None, *ids]):
        if id is None or id < 0:
            raise ValueError(f"{table}: expected integers ≥ 0 as ids, got {id}")
        if id == before:
            raise ValueError(f"{table}: id {id} occurs twice")
    nothing = np.array([dim, 0, 0], ">i4").tobytes()
    held = [one or nothing for _, one in rows]
    words = np.frombuffer(b"".join(held), ">i4")  # of a row: dim, n, 0, n latents, n values
    lengths = np.array([len(row) // 8 - 1 for row in held], np.int64)
    starts = starts_of(3 + 2 * lengths)
    other = np.flatnonzero(words[starts[:-1]] != dim)
    if len(other):
        row = int(other[0])
        raise ValueError(
            f"{table}: id {ids[row]}: expected {dim} latents, got {words[starts[row]]}"
        )
    within = np.arange(starts[-1]) - np.repeat(starts[:-1], 3 + 2 * lengths)
    end = np.repeat(3 + lengths, 3 + 2 * lengths)  # of the latents
    latents = words[(within >= 3) & (within < end)]
    values = words[within >= end].view(">f4").astype(np.float32)
    codes = codes_of(latents, values, lengths, dim, k, lambda row: f"{table}: id {ids[row]}")
    return codes, np.array(ids, np.int64)


def _name(table: str) -> Any:
    from psycopg import sql

    return sql.Identifier(*table.split("."))


def _check(cursor: Any, table: str, vector: str, dim: int) -> bool:
    """Return whether a table is there; raise ValueError if it has not the columns for codes."""
    if cursor.execute("SELECT to_regtype('sparsevec')").fetchone() == (None,):
        raise ValueError(
            "connection: this database has no type sparsevec; run CREATE EXTENSION vector with "
            "pgvector 0.7 or later"
        )
    name = _name(table).as_string(cursor)
    if cursor.execute("SELECT to_regclass(%s)", (name,)).fetchone() == (None,):
        return False
    columns = (
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped"
    )
    kinds = dict(cursor.execute(columns, (name,)).fetchall())
    if kinds.get(KEY) not in _INTEGERS:
        raise ValueError(
            f"table: expected a column {KEY!r} of {', '.join(_INTEGERS)} in {table!r}, "
            f"got {kinds.get(KEY, 'none')}"
        )
    if kinds.get(vector) not in ("sparsevec", f"sparsevec({dim})"):
        raise ValueError(
            f"table: expected a column {vector!r} of sparsevec({dim}) in {table!r}, "
            f"got {kinds.get(vector, 'none')}; name another with vector="
        )
    return True


def _copied(codes: SparseCodes, ids: np.ndarray) -> Iterator[bytes]:
    """Return codes in PostgreSQL's binary COPY format, a chunk at a time; checks them at once."""
    latents, values, starts = flat_float32_rows(codes)
    lengths = np.diff(starts)
    if codes.dim > LARGEST_DIM or lengths.max(initial=0) > MOST_LATENTS:
        raise ValueError(
            f"codes: expected at most {MOST_LATENTS:,} active latents of {LARGEST_DIM:,}, which a "
            f"sparsevec holds, got {lengths.max(initial=0):,} of {codes.dim:,}"
        )

    def chunks() -> Iterator[bytes]:
        yield _BEGIN
        for first in range(0, len(codes), _CHUNK):
            some = slice(first, first + _CHUNK)
            n, (begin, *ends) = lengths[some], starts[first : first + _CHUNK + 1].tolist()
            slots = slice(begin, ends[-1])
            order = np.lexsort((latents[slots], np.repeat(np.arange(len(n)), n)))  # by latent
            rows = np.zeros(len(n), _ROW)
            rows["fields"], rows["id_bytes"], rows["id"] = 2, 8, ids[some]
            rows["vector_bytes"], rows["dim"], rows["latents"] = 12 + 8 * n, codes.dim, n
            heads = rows.tobytes()
            where = latents[slots][order].astype(">i4").tobytes()
            what = values[slots][order].astype(">f4").tobytes()
            at = 0
            out: list[bytes] = []
            for row, end in enumerate(4 * (np.array(ends) - begin)):
                out += (heads[30 * row : 30 * row + 30], where[at:end], what[at:end])
                at = end
            yield b"".join(out)
        yield _END

    return chunks()


__all__ = ["download", "queries", "read", "upload"]
