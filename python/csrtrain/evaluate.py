"""What codes keep and what they cost: 1-NN accuracy, variance, dead latents, skew."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from csrkern.codes.sparse import SparseCodes
from csrkern.nn import SparseAutoencoder
from csrtrain.data import Array, Source, chunks, open_embeddings
from csrtrain.metrics import search


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


def nearest_accuracy(
    database: Tensor | SparseCodes,
    database_labels: Tensor,
    queries: Tensor | SparseCodes,
    query_labels: Tensor,
) -> float:
    """Share of queries whose nearest database row by cosine has their label.

    Args:
        database, queries: both dense [N, d] and [n, d], or both SparseCodes over the same
            latents; codes are searched, exactly, with values in float16 as they would be
            stored. A query that matches nothing counts as wrong.
        database_labels, query_labels: [N] and [n].

    Raises:
        ValueError: if labels and rows differ in number, or a side is empty.
    """
    for name, vectors, labels in (
        ("database", database, database_labels),
        ("queries", queries, query_labels),
    ):
        if len(vectors) != len(labels) or len(labels) == 0:
            raise ValueError(
                f"{name}: expected as many labels as rows and at least one, "
                f"got {len(labels)} labels for {len(vectors)} rows"
            )
    nearest = torch.from_numpy(search(database, queries, 1)[:, 0].copy())
    right = (database_labels[nearest.clamp(min=0)] == query_labels) & (nearest >= 0)
    return float(right.float().mean())


def unexplained_variance(
    model: SparseAutoencoder, embeddings: Array, ks: Sequence[int]
) -> dict[int, float]:
    """Σ|x − x̂_k|² / Σ|x − mean|² at each k: 0 is perfect, 1 no better than the mean."""
    error = dict.fromkeys(ks, 0.0)
    total = torch.zeros(embeddings.shape[1], dtype=torch.float64, device="cpu")
    for _, chunk in chunks(embeddings):
        total += chunk.sum(0, dtype=torch.float64)
    mean = total / len(embeddings)
    variance = 0.0
    with torch.inference_mode():
        for _, chunk in chunks(embeddings):
            x, offset, scale = model.standardize(chunk.to(model.pre_bias))
            codes = model.encode_standardized(x, max(ks))
            for k in ks:
                rebuilt = model.decode(codes.truncate(k)) * scale + offset
                error[k] += float((chunk - rebuilt.cpu()).double().square().sum())
            variance += float((chunk - mean).square().sum())
    if variance == 0:
        raise ValueError("embeddings: expected rows that differ; all of them are equal")
    return {k: value / variance for k, value in error.items()}


def latent_use(codes: SparseCodes) -> Tensor:
    """[dim] int64: in how many rows each latent is active."""
    return torch.bincount(codes.latents()[codes.active], minlength=codes.dim)


def use_skew(codes: SparseCodes) -> float:
    """Share of all active entries that lie in the most used 1% of latents.

    0.01 is perfectly even; an index reads the more postings per query, the higher it is.
    """
    use = latent_use(codes)
    hottest = use.topk(max(1, round(codes.dim / 100))).values
    return float(hottest.sum() / use.sum().clamp(min=1))


def dead_share(model: SparseAutoencoder) -> float:
    """Share of latents that the last training steps did not use."""
    return float(model.dead.float().mean())
