"""Codes in Milvus, which searches them exactly, in float32, in a sparse field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from csrkern.codes import SparseCodes
from csrkern.integrations.rows import VECTOR, Codes, chunks, collect, read_codes, records


def upload(
    codes: Codes,
    client: Any,
    collection: str,
    *,
    ids: Any = None,
    fields: Sequence[Mapping[str, Any]] | None = None,
    vector: str = VECTOR,
    batch_size: int = 1000,
) -> None:
    """Puts codes into a collection of Milvus, made if it is not there; entities of an id replace.

    Args:
        codes: n of them.
        client: a `pymilvus.MilvusClient`, of a server or of a file (milvus-lite).
        collection: its name; one made here has the key `id`, an inverted index by inner
            product, and takes any `fields`.
        ids: n distinct integers ≥ 0; None: 0..n-1.
        fields: n dictionaries to store beside the codes.
        vector: name of the sparse field.
        batch_size: entities a request.

    Raises:
        ValueError: if a code has no active latent, which Milvus refuses to store; nothing is put
            in then.
    """
    from pymilvus import DataType

    codes, ids = read_codes(codes, ids)
    empty = (~codes.active.any(1)).nonzero()
    if len(empty):
        raise ValueError(
            f"codes: row {int(empty[0])} has no active latent, and Milvus takes no empty vectors; "
            f"leave such rows out ({len(empty)} in all)"
        )
    if not client.has_collection(collection):
        schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field(vector, DataType.SPARSE_FLOAT_VECTOR)
        params = client.prepare_index_params()
        params.add_index(vector, index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
        client.create_collection(collection, schema=schema, index_params=params)
    for chunk in chunks(records(codes, ids, fields), batch_size):
        client.upsert(collection, [{**other, "id": id, vector: held} for id, held, other in chunk])


def queries(codes: SparseCodes) -> list[dict[int, float]]:
    """Values by latent for each code: client.search(collection, data=..., anns_field="csr")."""
    return [held for _, held, _ in records(codes, None, None)]


def download(
    client: Any,
    collection: str,
    dim: int,
    *,
    k: int | None = None,
    vector: str = VECTOR,
    batch_size: int = 1000,
) -> tuple[SparseCodes, np.ndarray]:
    """All codes over `dim` latents in a collection, and their ids, by id."""

    def rows() -> Iterator[tuple[int, list[int], list[float]]]:
        pages = client.query_iterator(
            collection, batch_size=batch_size, output_fields=["id", vector]
        )
        while page := pages.next():
            for entity in page:
                held = entity[vector]
                yield entity["id"], list(held), list(held.values())
        pages.close()

    return collect(rows(), dim, k)
