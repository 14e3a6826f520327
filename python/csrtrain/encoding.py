"""Encode embeddings of any size with a trained model."""

from __future__ import annotations

from collections.abc import Callable

import torch

from csrkern.codes.sparse import SparseCodes
from csrkern.nn import SparseAutoencoder
from csrtrain.data import Array, Source, chunks, open_embeddings


def encode_all(
    model: SparseAutoencoder,
    embeddings: Source,
    k: int | None = None,
    *,
    on_rows: Callable[[int], object] | None = None,
) -> SparseCodes:
    """Return codes of all embeddings [n, d], a path or an array, encoded piece by piece.

    The codes are on the CPU. `on_rows` is told of each piece how many rows it had. Not
    differentiable; `model.encode` is. Raises what `load_embeddings` raises.
    """
    name, array = open_embeddings("embeddings", embeddings)
    return encode_rows(model, array, k, name=name, on_rows=on_rows)


def encode_rows(
    model: SparseAutoencoder,
    array: Array,
    k: int | None = None,
    *,
    name: str,
    first: int = 0,
    on_rows: Callable[[int], object] | None = None,
) -> SparseCodes:
    """`encode_all` of an opened array, which messages call `name`, with rows from `first` on."""
    parts = []
    with torch.no_grad():
        for _, chunk in chunks(array, name, first):
            parts.append(model.encode(chunk.to(model.pre_bias), k).to("cpu"))
            if on_rows is not None:
                on_rows(len(chunk))
    codes = SparseCodes.cat(parts)
    codes.fingerprint = model.fingerprint  # also of a model in training mode
    return codes
