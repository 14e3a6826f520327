"""Codes in Qdrant, which searches them exactly, in float32, as named sparse vectors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from csrkern.codes.sparse import SparseCodes
from csrkern.integrations.rows import (
    VECTOR,
    Codes,
    Stored,
    batches,
    check_batch_size,
    collect,
    records,
)


def upload(
    codes: Codes,
    client: Any,
    collection: str,
    *,
    ids: Any = None,
    payloads: Iterable[Mapping[str, Any]] | None = None,
    vector: str = VECTOR,
    batch_size: int = 1000,
) -> None:
    """Put codes into a collection of Qdrant, made if it is not there; points of an id replace.

    Everything is checked before the collection is made or anything is sent.

    Args:
        codes: n of them.
        client: a `qdrant_client.QdrantClient`, of a server or local.
        collection: its name.
        ids: n distinct integers ≥ 0; None: 0..n-1.
        payloads: n dictionaries to store beside the codes.
        vector: name of the sparse vector.
        batch_size: points a request, at least 1.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if codes are not valid or not finite, ids or payloads do not fit them, or the
            collection is there and would not score by inner product in float32.
    """
    from qdrant_client import models

    points = batches(records(codes, ids, payloads, name="payloads"), batch_size)
    if client.collection_exists(collection):
        _check(client, collection, vector)
    else:
        client.create_collection(
            collection,
            vectors_config={},
            sparse_vectors_config={vector: models.SparseVectorParams()},
        )
    for batch in points:
        client.upsert(
            collection,
            [
                models.PointStruct(id=id, vector={vector: _vector(held)}, payload=payload)
                for id, held, payload in batch
            ],
        )


def _check(client: Any, collection: str, vector: str) -> None:
    """Raise ValueError unless a collection has the sparse vector and scores by what it holds."""
    from qdrant_client import models

    held = client.get_collection(collection).config.params.sparse_vectors or {}
    if vector not in held:
        raise ValueError(
            f"collection: {collection!r} has no sparse vector {vector!r}, but "
            f"{', '.join(map(repr, held)) or 'none'}; name another with vector="
        )
    index = held[vector].index
    changes = {
        "modifier": (held[vector].modifier, models.Modifier.NONE),
        "datatype": (index.datatype if index else None, models.Datatype.FLOAT32),
    }
    for name, (setting, plain) in changes.items():
        if setting not in (None, plain):
            raise ValueError(
                f"collection: {vector!r} of {collection!r} has the {name} {setting.value!r}, with "
                "which scores are not the inner products of codes; use another collection"
            )


def _vector(held: Mapping[int, float]) -> Any:
    from qdrant_client import models

    return models.SparseVector(indices=list(held), values=list(held.values()))


def queries(codes: SparseCodes) -> list[Any]:
    """Return a `SparseVector` for each code, for `client.query_points`.

    Example: client.query_points(collection, query=queries(codes)[0], using="csr")

    Raises:
        TypeError, ValueError: if codes are not valid or not finite.
    """
    return [_vector(held) for _, held, _ in records(codes)]


def download(
    client: Any,
    collection: str,
    dim: int,
    *,
    k: int | None = None,
    vector: str = VECTOR,
    batch_size: int = 1000,
) -> tuple[SparseCodes, np.ndarray]:
    """Return all codes over `dim` latents in a collection, and their ids, by id.

    Points without the vector are codes without an active latent.

    Raises:
        ValueError: if the collection has no such vector, an id is not an integer, or a vector is
            no code over `dim` latents: a weight is negative, for one.
    """
    batch_size = check_batch_size(batch_size)
    _check(client, collection, vector)

    def points() -> Iterator[Stored]:
        offset = None
        while True:
            page, offset = client.scroll(
                collection,
                limit=batch_size,
                offset=offset,
                with_payload=False,
                with_vectors=[vector],
            )
            for point in page:
                held = (point.vector or {}).get(vector)
                latents, values = (held.indices, held.values) if held else ([], [])
                yield Stored(f"{collection}: point {point.id!r}", point.id, latents, values)
            if offset is None:
                return

    return collect(points(), dim, k)
