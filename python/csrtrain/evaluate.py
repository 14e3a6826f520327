"""What codes keep and what they cost: 1-NN accuracy, variance, dead latents, skew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import csrkern
from csrkern.codes import SparseCodes
from csrkern.nn import SparseAutoencoder
from csrtrain.baselines import PCA, dense_bytes, largest_entries, sparse_bytes, truncate
from csrtrain.data import Array, Source, chunks, load_embeddings, rows

# A block of float32 scores this large stays small beside the data.
_BLOCK_SCORES = 1 << 25


@dataclass(frozen=True)
class Outcome:
    """One row of a comparison.

    Attributes:
        method: "dense", "csr", "pca", "top-k" or "first dims".
        active: numbers that a vector holds: dimensions, or active latents.
        bytes_per_vector: with float16 values and, for sparse vectors, 2-byte indices.
        accuracy: 1-NN accuracy, 0..1.
    """

    method: str
    active: int
    bytes_per_vector: int
    accuracy: float


def encode_all(model: SparseAutoencoder, embeddings: Source, k: int | None = None) -> SparseCodes:
    """Codes of all embeddings [n, d], a path or an array, encoded piece by piece, on the CPU.

    Not differentiable; `model.encode` is. Raises what `load_embeddings` raises.
    """
    parts = []
    with torch.inference_mode():
        for _, chunk in chunks(load_embeddings(embeddings, check_finite=False)):
            parts.append(model.encode(chunk.to(model.pre_bias.device), k).to("cpu"))
    return SparseCodes.cat(parts)


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
    if isinstance(database, SparseCodes):
        assert isinstance(queries, SparseCodes)
        index = csrkern.InvertedIndex.build(database, metric="cosine", values="float16")
        _, ids = index.search(queries, topk=1)
        nearest = torch.from_numpy(ids[:, 0])
    else:
        assert isinstance(queries, Tensor)
        nearest = _nearest_dense(database, queries)
    right = (database_labels[nearest.clamp(min=0)] == query_labels) & (nearest >= 0)
    return float(right.float().mean())


def unexplained_variance(
    model: SparseAutoencoder, embeddings: Array, ks: Sequence[int]
) -> dict[int, float]:
    """Σ|x − x̂_k|² / Σ|x − mean|² at each k: 0 is perfect, 1 no better than the mean."""
    error = dict.fromkeys(ks, 0.0)
    total = torch.zeros(embeddings.shape[1], dtype=torch.float64)
    for _, chunk in chunks(embeddings):
        total += chunk.sum(0, dtype=torch.float64)
    mean = total / len(embeddings)
    variance = 0.0
    with torch.inference_mode():
        for _, chunk in chunks(embeddings):
            x, offset, scale = model.standardize(chunk.to(model.pre_bias.device))
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
    return torch.bincount(codes.indices[codes.active].long(), minlength=codes.dim)


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


def compare(
    train: Array,
    train_labels: Tensor,
    test: Array,
    test_labels: Tensor,
    *,
    models: SparseAutoencoder | Mapping[int, SparseAutoencoder] | None = None,
    ks: Sequence[int] = (4, 8, 16, 32),
) -> Iterator[Outcome]:
    """1-NN accuracy of codes and baselines, at equal active dimensions and at equal bytes.

    Yields, in this order: dense; then for every k CSR-k, PCA-k (as many numbers), PCA-2k
    (as many bytes), the k largest entries, and the first k and 2k dimensions; baselines
    that need more dimensions than the embeddings have are left out.

    Args:
        train, test: embeddings [N, d] and [n, d]: the database and the queries.
        train_labels, test_labels: [N] and [n] integers.
        models: one model for every k, or a model for each k; None for baselines only.
        ks: active latents to compare at.
    """
    database, queries = rows(train, slice(None)), rows(test, slice(None))
    d = database.shape[1]

    def outcome(method: str, active: int, size: int, db: Tensor, q: Tensor) -> Outcome:
        # Every method is scored as it is stored: in float16, at norm 1.
        db, q = (torch.nn.functional.normalize(side, dim=1).half() for side in (db, q))
        accuracy = nearest_accuracy(db, train_labels, q, test_labels)
        return Outcome(method, active, size, accuracy)

    yield outcome("dense", d, dense_bytes(d), database, queries)
    pca = PCA(train)
    for k in ks:
        if models is not None:
            yield _code_outcome(models, k, train, train_labels, test, test_labels)
        for dims in (k, 2 * k):
            if dims <= d:
                sides = pca.project(database, dims), pca.project(queries, dims)
                yield outcome("pca", dims, dense_bytes(dims), *sides)
        if k <= d:
            sides = largest_entries(database, k), largest_entries(queries, k)
            yield outcome("top-k", k, sparse_bytes(k, d), *sides)
        for dims in (k, 2 * k):
            if dims <= d:
                sides = truncate(database, dims), truncate(queries, dims)
                yield outcome("first dims", dims, dense_bytes(dims), *sides)


def _code_outcome(
    models: SparseAutoencoder | Mapping[int, SparseAutoencoder],
    k: int,
    train: Array,
    train_labels: Tensor,
    test: Array,
    test_labels: Tensor,
) -> Outcome:
    model = models if isinstance(models, SparseAutoencoder) else models[k]
    database, queries = encode_all(model, train, k), encode_all(model, test, k)
    accuracy = nearest_accuracy(database, train_labels, queries, test_labels)
    return Outcome("csr", k, sparse_bytes(k, model.hidden_dim), accuracy)


def _nearest_dense(database: Tensor, queries: Tensor) -> Tensor:
    """[n] the database row of largest cosine for each query, a block of queries at a time.

    A row of zeros has cosine 0 with everything; a query of zeros matches nothing (-1).
    """
    # Normalising by max(norm, eps) leaves zero rows zero, where dividing would give NaN.
    unit = torch.nn.functional.normalize(database.float(), dim=1, eps=1e-30)
    block = max(1, _BLOCK_SCORES // len(database))
    nearest = torch.cat([(part.float() @ unit.T).argmax(1) for part in queries.split(block)])
    return torch.where((queries != 0).any(1), nearest, -1)
