"""Codes as documents of Elasticsearch and OpenSearch: mapping, bulk lines and queries.

No client is needed: all of it is JSON.

Both keep 9 significant bits of a value, so their scores are off by up to 0.4%.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from csrkern.arguments import check_choice, check_int
from csrkern.codes.sparse import SparseCodes
from csrkern.integrations.rows import MOST, VECTOR, Codes, Stored, collect, records

KINDS = ("sparse_vector", "rank_features")


def mapping(field: str = VECTOR, kind: str = "sparse_vector") -> dict[str, Any]:
    """Return the body that makes an index whose documents hold codes in `field`.

    Args:
        field: its name.
        kind: "sparse_vector" (Elasticsearch 8.19, 9.1 and later) or "rank_features" (both
            engines; OpenSearch 2.0 and later). Elasticsearch prunes weak latents of queries from
            these versions on unless a sparse_vector field says not to, as this one does; 8.15 to
            8.18 and 9.0, which do not prune, do not know `index_options`: leave it out there.
    """
    check_choice("kind", kind, KINDS)
    options = {"index_options": {"prune": False}} if kind == "sparse_vector" else {}
    return {"mappings": {"properties": {field: {"type": kind, **options}}}}


def search_bodies(
    codes: SparseCodes, top_k: int = 10, field: str = VECTOR, kind: str = "sparse_vector"
) -> list[dict[str, Any]]:
    """Return the body of a search by inner product for each code.

    Of rank_features the score is a sum of linear functions, one for each latent of the query. A
    code without an active latent matches nothing.

    Raises:
        TypeError, ValueError: if codes are not valid or not finite, `top_k` is no integer of at
            least 1, or `kind` is unknown.
    """
    check_choice("kind", kind, KINDS)
    top_k = check_int("top_k", top_k, 1, MOST)
    bodies = []
    for _, held, _ in records(codes):
        named = {str(latent): value for latent, value in held.items()}
        query: dict[str, Any]
        if not named:
            query = {"match_none": {}}
        elif kind == "sparse_vector":
            # Of a field whose index prunes, too, whoever made that.
            query = {"sparse_vector": {"field": field, "query_vector": named, "prune": False}}
        else:
            clauses = [
                {"rank_feature": {"field": f"{field}.{latent}", "linear": {}, "boost": value}}
                for latent, value in named.items()
            ]
            query = {"bool": {"should": clauses}}
        bodies.append({"size": top_k, "_source": False, "query": query})
    return bodies


def bulk_lines(
    codes: Codes,
    index: str | None = None,
    *,
    ids: Any = None,
    fields: Iterable[Mapping[str, Any]] | None = None,
    field: str = VECTOR,
) -> Iterator[str]:
    """Return the lines of a bulk request (`POST _bulk`): for each code an action and a document.

    Args:
        codes: n of them.
        index: name of the index; None: the one in the request's path.
        ids: n distinct integers ≥ 0; None: 0..n-1.
        fields: n dictionaries of the documents' other fields.
        field: where the code goes, as values by latent.

    Returns:
        2n lines, each with its line end.

    Raises:
        TypeError, ValueError: if codes are not valid or not finite, or ids or fields do not fit
            them; at once, before the first line.
    """
    return _lines(records(codes, ids, fields, taken=(field,)), index, field)


def _lines(codes: Iterable[Any], index: str | None, field: str) -> Iterator[str]:
    for id, held, other in codes:
        action = {"_id": str(id)} if index is None else {"_index": index, "_id": str(id)}
        document = {**other, field: {str(latent): value for latent, value in held.items()}}
        yield json.dumps({"index": action}) + "\n"
        try:
            yield json.dumps(document, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise ValueError(f"fields: those of id {id} are no JSON: {error}") from error


def read_lines(
    lines: Iterable[str], dim: int, *, k: int | None = None, field: str = VECTOR
) -> tuple[SparseCodes, np.ndarray]:
    """Return the codes over `dim` latents and the ids of the lines of `bulk_lines`, by id.

    Also of hits, as a search or a scroll with `_source` gives them, one a line.

    Raises:
        ValueError: naming the line, if it is not of these forms, ids are no integers or come
            twice, or a vector is no code over `dim` latents: a weight is negative, for one.
    """

    def documents() -> Iterator[Stored]:
        id: Any = None
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line, object_pairs_hook=_distinct)
                if id is None and "_source" not in record:
                    id = record["index"]["_id"]
                    continue
                source = record if id is not None else record["_source"]
                if field not in source:
                    raise ValueError(f"no field {field!r}")
                held = source[field] or {}
                yield Stored(
                    f"line {number}",
                    _integer(record["_id"] if id is None else id),
                    [_integer(latent) for latent in held],
                    list(held.values()),
                )
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                why = f" ({error})" if isinstance(error, ValueError) else ""
                raise ValueError(
                    f"line {number}: expected an action, a document with {field!r} or a hit, "
                    f"got {line[:60]!r}{why}"
                ) from error
            id = None
        if id is not None:
            raise ValueError(f"the document of id {id!r} is missing after the last action")

    return collect(documents(), dim, k)


def _integer(written: Any) -> int:
    """Return an id or a latent, which JSON holds as a name."""
    if isinstance(written, str) and written.isascii() and written.isdigit():
        return int(written)
    if isinstance(written, int) and not isinstance(written, bool):
        return written
    raise ValueError(f"expected an integer, got {written!r}")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; refuse repeated names, of which a reader keeps one."""
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("a name occurs twice")
    return record
