"""Codes in Milvus, which searches them exactly, in float32, in a sparse field."""

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
    read_codes,
    records,
)

KEY = "id"


def upload(
    codes: Codes,
    client: Any,
    collection: str,
    *,
    ids: Any = None,
    fields: Iterable[Mapping[str, Any]] | None = None,
    vector: str = VECTOR,
    batch_size: int = 1000,
) -> None:
    """Put codes into a collection of Milvus, made if it is not there; entities of an id replace.

    Everything is checked before the collection is made or anything is sent.

    Args:
        codes: n of them.
        client: a `pymilvus.MilvusClient`, of a server or of a file (milvus-lite).
        collection: its name; one made here has the key `id`, an inverted index by inner
            product, and takes any `fields`.
        ids: n distinct integers ≥ 0; None: 0..n-1.
        fields: n dictionaries to store beside the codes.
        vector: name of the sparse field.
        batch_size: entities a request, at least 1.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if codes are not valid or not finite, or one has no active latent, which
            Milvus refuses to store; if ids or fields do not fit the codes, or the collection is
            there and has another key, or another metric than the inner product.
    """
    from pymilvus import DataType

    codes, ids = read_codes(codes, ids)
    entities = batches(records(codes, ids, fields, taken=(KEY, vector)), batch_size)
    empty = (~codes.active.any(1)).nonzero()
    if len(empty):
        raise ValueError(
            f"codes: row {int(empty[0])} has no active latent, and Milvus takes no empty vectors; "
            f"leave such rows out ({len(empty)} in all)"
        )
    if client.has_collection(collection):
        _check(client, collection, vector)
    else:
        schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
        schema.add_field(KEY, DataType.INT64, is_primary=True)
        schema.add_field(vector, DataType.SPARSE_FLOAT_VECTOR)
        params = client.prepare_index_params()
        params.add_index(vector, index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
        client.create_collection(collection, schema=schema, index_params=params)
    for batch in entities:
        client.upsert(collection, [{**other, KEY: id, vector: held} for id, held, other in batch])


def _check(client: Any, collection: str, vector: str) -> None:
    """Raise ValueError unless a collection has our key and sparse field, by inner product."""
    from pymilvus import DataType

    fields = {field["name"]: field for field in client.describe_collection(collection)["fields"]}
    key, held = fields.get(KEY, {}), fields.get(vector, {})
    if key.get("type") != DataType.INT64 or not key.get("is_primary") or key.get("auto_id"):
        raise ValueError(
            f"collection: {collection!r} has not the integer {KEY!r}, given with each entity, as "
            "its key; use another collection"
        )
    if held.get("type") != DataType.SPARSE_FLOAT_VECTOR:
        raise ValueError(
            f"collection: {collection!r} has no sparse field {vector!r}, but "
            f"{', '.join(map(repr, fields))}; name another with vector="
        )
    for name in client.list_indexes(collection, field_name=vector):
        metric = client.describe_index(collection, name)["metric_type"]
        if metric != "IP":
            raise ValueError(
                f"collection: {vector!r} of {collection!r} is searched by {metric}, with which "
                "scores are not the inner products of codes; use another collection"
            )


def queries(codes: SparseCodes) -> list[dict[int, float]]:
    """Return the values by latent of each code, for `client.search`.

    Example: client.search(collection, data=queries(codes), anns_field="csr")

    Raises:
        TypeError, ValueError: if codes are not valid or not finite.
    """
    return [held for _, held, _ in records(codes)]


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

    Raises:
        ValueError: if the collection has another key or no such field, or a vector is no code
            over `dim` latents: a weight is negative, for one.
    """
    batch_size = check_batch_size(batch_size)
    _check(client, collection, vector)

    def entities() -> Iterator[Stored]:
        pages = client.query_iterator(
            collection, batch_size=batch_size, output_fields=[KEY, vector]
        )
        try:
            while page := pages.next():
                for entity in page:
                    held = entity[vector] or {}
                    name = f"{collection}: entity {entity[KEY]!r}"
                    yield Stored(name, entity[KEY], list(held), list(held.values()))
        finally:
            pages.close()

    return collect(entities(), dim, k)
