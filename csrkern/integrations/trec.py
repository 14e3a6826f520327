"""Runs and relevance judgments in the files of trec_eval, ranx, ir_measures and Pyserini.

These name queries and documents by strings without blanks; here they are rows of queries and ids
of documents, so names come as sequences, or as mappings from ids.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from csrkern.arguments import integers
from csrkern.storage import write_atomically

Names = Sequence[str] | Mapping[int, str]
RUN, QRELS = "query Q0 document rank score name", "query 0 document grade"


def write_run(
    path: str | os.PathLike[str],
    results: tuple[Any, Any],
    *,
    queries: Names | None = None,
    documents: Names | None = None,
    name: str = "csrkern",
) -> None:
    """Write what searches found: a line `query Q0 document rank score name` for each hit.

    trec_eval ranks by score alone, and equal scores by the names of documents, descending.

    Args:
        path: of the file, which is renamed into place.
        results: scores [n, k] and ids [n, k] of a search, best first; -1 is no hit.
        queries: names of the n queries; None: "0", "1" and so on.
        documents: the name of each id, by its number; None: the ids.
        name: of the run.

    Raises:
        TypeError, ValueError: if results do not fit, or a name is missing or holds a blank.
    """
    scores, ids = np.asarray(results[0], np.float32), integers("ids", results[1])
    if scores.ndim != 2 or scores.shape != ids.shape:
        raise ValueError(
            f"results: expected scores and ids [n, k], got {list(scores.shape)} and "
            f"{list(ids.shape)}"
        )
    name = _checked("name", name)
    query_name, document_name = _namer("queries", queries), _namer("documents", documents)
    lines = []
    for row in range(len(ids)):
        query = query_name(row)
        hits = ids[row] >= 0
        best = zip(ids[row][hits].tolist(), scores[row][hits].tolist(), strict=True)
        for rank, (document, score) in enumerate(best, 1):
            lines.append(f"{query} Q0 {document_name(document)} {rank} {score:.9g} {name}\n")
    write_atomically(path, "".join(lines).encode())


def read_run(
    path: str | os.PathLike[str], queries: Sequence[str], documents: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Read a run: scores float32 and ids int64 [n, k], best first, equal scores by lower id.

    Args:
        path: of a file as `write_run` writes it; ranks are not read.
        queries: names of the n queries; lines of others are passed over.
        documents: names, whose places are the ids.

    Returns:
        For each query as many places as the longest ranking has; missing ones hold (-inf, -1).

    Raises:
        OSError: if the file cannot be read.
        ValueError: that names the line that is no hit, or whose document is not known or comes
            twice.
    """
    row_of, id_of = _numbers("queries", queries), _numbers("documents", documents)
    found: list[dict[int, float]] = [{} for _ in row_of]
    for where, (query, _, document, _, score, _) in _lines(path, RUN):
        if query not in row_of:
            continue
        hits, number = found[row_of[query]], _number(where, document, id_of)
        if number in hits:
            raise ValueError(f"{where}: expected a document once for each query, got {document}")
        hits[number] = _float(where, score)
    width = max(map(len, found), default=0)
    scores = np.full((len(found), width), -np.inf, np.float32)
    ids = np.full((len(found), width), -1, np.int64)
    for row, hits in enumerate(found):
        ranked = sorted(hits.items(), key=lambda hit: (-np.float32(hit[1]), hit[0]))
        for place, hit in enumerate(ranked):
            ids[row, place], scores[row, place] = hit
    return scores, ids


def read_qrels(
    path: str | os.PathLike[str], queries: Sequence[str], documents: Sequence[str]
) -> np.ndarray:
    """Read relevance judgments: int64 rows [m, 3] of (query, document, grade), by their numbers.

    These are the `qrels` of `csrtrain.tune` and of `csrkern eval`.

    Args:
        path: of lines `query 0 document grade`.
        queries: names of the queries; lines of others are passed over.
        documents: names, whose places are the ids.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if a line is no judgment, its document is not known, or the same document was
            judged for the query before; it names the line.
    """
    row_of, id_of = _numbers("queries", queries), _numbers("documents", documents)
    grades: dict[tuple[int, int], int] = {}
    for where, (query, _, document, grade) in _lines(path, QRELS):
        if query not in row_of:
            continue
        pair = row_of[query], _number(where, document, id_of)
        if pair in grades:
            raise ValueError(f"{where}: expected a document once for each query, got {document}")
        grades[pair] = _grade(where, grade)
    return np.array([(*pair, grade) for pair, grade in grades.items()], np.int64).reshape(-1, 3)


def _lines(path: str | os.PathLike[str], form: str) -> Iterator[tuple[str, list[str]]]:
    """Yield where each line stands, and its fields, as many as `form` has."""
    name = os.fsdecode(path)
    with open(path, encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(file, 1):
                fields = line.split()
                if fields and len(fields) != len(form.split()):
                    got = line.strip()
                    raise ValueError(f"{name}, line {number}: expected {form!r}, got {got!r:.100}")
                if fields:
                    yield f"{name}, line {number}", fields
        except UnicodeDecodeError as error:
            raise ValueError(f"{name}: expected UTF-8: {error}") from error


def _numbers(argument: str, names: Sequence[str]) -> dict[str, int]:
    numbers = {name: number for number, name in enumerate(names)}
    if len(numbers) != len(names):
        twice = next(name for number, name in enumerate(names) if numbers[name] != number)
        raise ValueError(f"{argument}: expected distinct names, got {twice!r} twice")
    return numbers


def _number(where: str, document: str, id_of: Mapping[str, int]) -> int:
    if document not in id_of:
        raise ValueError(f"{where}: expected a document among those named, got {document!r}")
    return id_of[document]


def _grade(where: str, grade: str) -> int:
    try:
        return int(np.int64(int(grade)))
    except (ValueError, OverflowError):
        raise ValueError(f"{where}: expected a whole number, got {grade!r:.60}") from None


def _float(where: str, score: str) -> float:
    try:
        number = float(score)
    except ValueError:
        number = np.nan
    if np.isnan(number):
        raise ValueError(f"{where}: expected a number for a score, got {score!r}")
    return number


def _namer(argument: str, names: Names | None) -> Callable[[int], str]:
    """Return what gives the name of a number."""
    if names is None:
        return str

    def name(number: int) -> str:
        try:
            return _checked(f"{argument}[{number}]", names[number])
        except LookupError:
            raise ValueError(f"{argument}: expected a name of {number}, got none") from None

    return name


def _checked(argument: str, name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{argument}: expected a str, got {type(name).__name__}")
    if len(name.split()) != 1 or name != name.strip():
        raise ValueError(f"{argument}: expected a name without blanks, got {name!r}")
    return name


__all__ = ["read_qrels", "read_run", "write_run"]
