"""Codes in Qdrant, which searches them exactly, in float32, as named sparse vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from csrkern.codes import SparseCodes
from csrkern.integrations.rows import VECTOR, Codes, chunks, collect, records


def upload(
    codes: Codes,
    client: Any,
    collection: str,
    *,
    ids: Any = None,
    payloads: Sequence[Mapping[str, Any]] | None = None,
    vector: str = VECTOR,
    batch_size: int = 1000,
) -> None:
    """Puts codes into a collection of Qdrant, made if it is not there; points of an id replace.

    Args:
        codes: n of them.
        client: a `qdrant_client.QdrantClient`, of a server or local.
        collection: its name.
        ids: n distinct integers ≥ 0; None: 0..n-1.
        payloads: n dictionaries to store beside the codes.
        vector: name of the sparse vector.
        batch_size: points a request.
    """
    from qdrant_client import models

    if not client.collection_exists(collection):
        client.create_collection(
            collection,
            vectors_config={},
            sparse_vectors_config={vector: models.SparseVectorParams()},
        )
    for chunk in chunks(records(codes, ids, payloads), batch_size):
        points = [
            models.PointStruct(id=id, vector={vector: _vector(held)}, payload=payload)
            for id, held, payload in chunk
        ]
        client.upsert(collection, points)


def _vector(held: Mapping[int, float]) -> Any:
    from qdrant_client import models

    return models.SparseVector(indices=list(held), values=list(held.values()))


def queries(codes: SparseCodes) -> list[Any]:
    """A `SparseVector` for each code: client.query_points(collection, query=..., using="csr")."""
    return [_vector(held) for _, held, _ in records(codes, None, None)]


def download(
    client: Any,
    collection: str,
    dim: int,
    *,
    k: int | None = None,
    vector: str = VECTOR,
    batch_size: int = 1000,
) -> tuple[SparseCodes, np.ndarray]:
    """All codes over `dim` latents in a collection, and their ids, by id.

    Raises:
        ValueError: if an id is not an integer, or a vector does not fit `dim`.
    """

    def rows() -> Iterator[tuple[int, list[int], list[float]]]:
        offset = None
        while True:
            points, offset = client.scroll(
                collection,
                limit=batch_size,
                offset=offset,
                with_payload=False,
                with_vectors=[vector],
            )
            for point in points:
                if not isinstance(point.id, int):
                    raise ValueError(f"{collection}: expected integers as ids, got {point.id!r}")
                held = (point.vector or {}).get(vector)
                yield point.id, held.indices if held else [], held.values if held else []
            if offset is None:
                return

    return collect(rows(), dim, k)
