"""Encode embeddings of any size with a trained model."""

from __future__ import annotations

from collections.abc import Callable

from csrkern.codes.sparse import SparseCodes
from csrkern.nn import SparseAutoencoder
from csrtrain.data import Source, open_embeddings
from csrtrain.evaluation.metrics import encode_rows


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
