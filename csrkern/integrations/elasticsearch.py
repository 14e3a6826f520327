"""Codes as documents of Elasticsearch and OpenSearch: mapping, bulk lines and queries.

No client is needed: all of it is JSON.

Both keep 9 significant bits of a value, so their scores are off by up to 0.4%.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from csrkern.arguments import check_choice
from csrkern.codes import SparseCodes
from csrkern.integrations.rows import VECTOR, Codes, collect, records

KINDS = ("sparse_vector", "rank_features")


def mapping(field: str = VECTOR, kind: str = "sparse_vector") -> dict[str, Any]:
    """The body that makes an index whose documents hold codes in `field`.

    Args:
        field: its name.
        kind: "sparse_vector" (Elasticsearch 8.15 and later) or "rank_features" (both engines).
    """
    check_choice("kind", kind, KINDS)
    return {"mappings": {"properties": {field: {"type": kind}}}}


def search_bodies(
    codes: SparseCodes, topk: int = 10, field: str = VECTOR, kind: str = "sparse_vector"
) -> list[dict[str, Any]]:
    """The body of a search by inner product for each code.

    Of rank_features the score is a sum of linear functions, one for each latent of the query.
    """
    check_choice("kind", kind, KINDS)
    bodies = []
    for _, held, _ in records(codes, None, None):
        named = {str(latent): value for latent, value in held.items()}
        query: dict[str, Any]
        if kind == "sparse_vector":
            query = {"sparse_vector": {"field": field, "query_vector": named}}
        else:
            clauses = [
                {"rank_feature": {"field": f"{field}.{latent}", "linear": {}, "boost": value}}
                for latent, value in named.items()
            ]
            query = {"bool": {"should": clauses}}
        bodies.append({"size": topk, "_source": False, "query": query})
    return bodies


def bulk_lines(
    codes: Codes,
    index: str | None = None,
    *,
    ids: Any = None,
    fields: Sequence[Mapping[str, Any]] | None = None,
    field: str = VECTOR,
) -> Iterator[str]:
    """The lines of a bulk request (`POST _bulk`): for each code an action and a document.

    Args:
        codes: n of them.
        index: name of the index; None: the one in the request's path.
        ids: n distinct integers ≥ 0; None: 0..n-1.
        fields: n dictionaries of the documents' other fields.
        field: where the code goes, as values by latent.

    Yields: 2n lines, each with its line end.
    """
    for id, held, other in records(codes, ids, fields):
        action = {"_id": str(id)} if index is None else {"_index": index, "_id": str(id)}
        document = {**other, field: {str(latent): value for latent, value in held.items()}}
        yield json.dumps({"index": action}) + "\n"
        yield json.dumps(document, ensure_ascii=False) + "\n"


def read_lines(
    lines: Iterable[str], dim: int, *, k: int | None = None, field: str = VECTOR
) -> tuple[SparseCodes, np.ndarray]:
    """Codes over `dim` latents and ids of the lines of `bulk_lines`, by id.

    Also of hits, as a search or a scroll with `_source` gives them, one a line.

    Raises:
        ValueError: if a line is not of these forms, or a vector does not fit `dim`.
    """

    def rows() -> Iterator[tuple[int, list[int], list[float]]]:
        id: str | None = None
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                if id is None and "_source" not in record:
                    id = record["index"]["_id"]
                    continue
                source = record if id is not None else record["_source"]
                held = source.get(field) or {}
                yield (
                    int(record["_id"] if id is None else id),
                    [int(latent) for latent in held],
                    list(held.values()),
                )
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"line {number}: expected an action, a document with {field!r} or a hit, "
                    f"got {line[:60]!r}"
                ) from error
            id = None

    return collect(rows(), dim, k)
