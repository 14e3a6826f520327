"""Scores of rankings, probes and clusterings, for dense vectors and for codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import csrkern
from csrkern.codes.sparse import SparseCodes
from csrkern.embeddings.dataset import Embeddings, open_embeddings
from csrkern.nn import SparseAutoencoder
from csrkern.typing import ArraySource

Vectors = Tensor | SparseCodes

# A block of so many float32 scores is small compared with the data.
_BLOCK_SCORES = 1 << 25


class Judgments:
    """Grades of the documents that are relevant to each query.

    Args:
        rows: [m, 3] integers (query, document, grade), or [m, 2] where every grade is 1; rows of
            grade 0 or less do not count.
        n_queries: queries without a relevant document are left out of every mean.
        n_documents: None: any number from 0 on may be a document.

    Raises:
        ValueError: if the shape does not fit, a query or a document is out of range, or nothing
            is relevant.
    """

    def __init__(self, rows: Any, n_queries: int, n_documents: int | None = None) -> None:
        judgments = np.asarray(rows)
        if judgments.ndim != 2 or judgments.shape[1] not in (2, 3):
            raise ValueError(
                f"qrels: expected rows of (query, document, grade), got {list(judgments.shape)}"
            )
        for column, side, count in ((0, "queries", n_queries), (1, "documents", n_documents)):
            numbers = judgments[:, column]
            invalid = numbers[(numbers < 0) | (numbers >= (np.inf if count is None else count))]
            if len(invalid):
                last = "" if count is None else count - 1
                raise ValueError(f"qrels: expected {side} in 0..{last}, got {invalid[0]}")
        self.relevant: dict[int, dict[int, float]] = {}
        for row in judgments.tolist():
            query, document, grade = (*row, 1)[:3]
            if grade > 0:
                self.relevant.setdefault(query, {})[document] = float(grade)
        if not self.relevant:
            raise ValueError("qrels: expected at least one relevant document, got none")

    def pairs(self) -> np.ndarray:
        """Return int64 [p, 2] of all (query, relevant document)."""
        return np.array([(q, d) for q, grades in self.relevant.items() for d in grades], np.int64)

    def ndcg(self, ids: np.ndarray, depth: int = 10) -> float:
        """Return the mean nDCG at `depth` of ranked documents ids [n, >= depth]; -1: no document.

        The ideal is over all relevant documents of a query, found or not.
        """
        return float(self.ndcg_each(ids, depth).mean())

    def ndcg_each(self, ids: np.ndarray, depth: int = 10) -> np.ndarray:
        """Return the same for each query that counts, in the order in which they were judged."""
        discounts = 1 / np.log2(np.arange(2, depth + 2))
        scores = []
        for query, grades in self.relevant.items():
            gains = [grades.get(int(i), 0.0) for i in ids[query, :depth]]
            ideal = sorted(grades.values(), reverse=True)[:depth]
            scores.append(
                float(np.dot(gains, discounts[: len(gains)]))
                / float(np.dot(ideal, discounts[: len(ideal)]))
            )
        return np.array(scores)

    def recall(self, ids: np.ndarray, depth: int) -> float:
        """Return the mean share of a query's relevant documents among its first `depth`."""
        shares = (
            len(grades.keys() & set(ids[query, :depth].tolist())) / len(grades)
            for query, grades in self.relevant.items()
        )
        return sum(shares) / len(self.relevant)

    def hits(self, ids: np.ndarray, depth: int) -> float:
        """Return the share of queries with a relevant document in the first `depth` (R@k)."""
        hit = (
            not grades.keys().isdisjoint(ids[query, :depth].tolist())
            for query, grades in self.relevant.items()
        )
        return sum(hit) / len(self.relevant)

    def mrr(self, ids: np.ndarray, depth: int = 10) -> float:
        """Return the mean 1 / rank of the first relevant document; 0 beyond `depth`."""
        total = 0.0
        for query, grades in self.relevant.items():
            ranks = (r for r, i in enumerate(ids[query, :depth], 1) if int(i) in grades)
            total += 1 / next(ranks, np.inf)
        return total / len(self.relevant)


def search(
    database: Vectors, queries: Vectors, top_k: int, norms: Tensor | None = None
) -> np.ndarray:
    """Return the rows [n, top_k] of `database` nearest to each query by cosine, best first.

    Args:
        database, queries: both dense [N, d] and [n, d], or both SparseCodes over the same
            latents, which the index searches exactly, with values in float16. A query of zeros
            finds nothing: -1.
        top_k: capped by N.
        norms: [N], to divide dense rows by; None: their own norms.

    Raises:
        ValueError: if the norm of a dense row is more than float32 holds.
    """
    top_k = min(top_k, len(database))
    if isinstance(database, SparseCodes):
        assert isinstance(queries, SparseCodes)
        index = csrkern.InvertedIndex.build(database, metric="cosine", dtype="float16")
        return index.search(queries, top_k=top_k)[1]
    assert isinstance(queries, Tensor)
    # Normalizing by max(norm, eps) leaves zero rows zero, where dividing would give NaN.
    if norms is None:
        rows = database.float()
        own = rows.norm(dim=1, keepdim=True)
        if (large := own.isinf().flatten()).any():
            row = int(large.nonzero()[0])
            raise ValueError(f"embeddings: expected norms that float32 holds, row {row} has more")
        unit = rows / own.clamp_min(1e-30)
    else:
        unit = database.float() / norms[:, None]
    block = max(1, _BLOCK_SCORES // len(database))
    rankings = [(part.float() @ unit.T).topk(top_k, 1).indices for part in queries.split(block)]
    return torch.where((queries != 0).any(1, keepdim=True), torch.cat(rankings), -1).numpy()


def linear_probe(train: Vectors, train_labels: Tensor, test: Vectors, test_labels: Tensor) -> float:
    """Return the accuracy of a logistic regression on vectors at norm 1.

    Raises:
        ImportError: if scikit-learn is missing.
    """
    regression = _sklearn("linear_model").LogisticRegression(C=10.0, max_iter=200)
    regression.fit(_matrix(train), train_labels.numpy())
    return float(regression.score(_matrix(test), test_labels.numpy()))


def v_measure(vectors: Vectors, labels: Tensor) -> float:
    """Return the V-measure of k-means on vectors at norm 1, with as many clusters as labels.

    Raises:
        ImportError: if scikit-learn is missing.
    """
    count = len(labels.unique())
    clustering = _sklearn("cluster").KMeans(count, n_init=1, random_state=0)
    clusters = clustering.fit_predict(_matrix(vectors))
    return float(_sklearn("metrics").v_measure_score(labels.numpy(), clusters))


def _matrix(vectors: Vectors) -> Any:
    """Return rows at norm 1, as a NumPy or SciPy array."""
    if isinstance(vectors, SparseCodes):
        return vectors.normalize().to_scipy()
    return torch.nn.functional.normalize(vectors.float(), dim=1).numpy()


def _sklearn(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise ImportError("this measure needs scikit-learn: pip install 'csrkern[eval]'") from error


def nearest_accuracy(
    database: Tensor | SparseCodes,
    database_labels: Tensor,
    queries: Tensor | SparseCodes,
    query_labels: Tensor,
) -> float:
    """Return the share of queries whose nearest database row by cosine has their label.

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
    correct = (database_labels[nearest.clamp(min=0)] == query_labels) & (nearest >= 0)
    return float(correct.float().mean())


def unexplained_variance(
    model: SparseAutoencoder, embeddings: ArraySource | Embeddings, ks: Sequence[int]
) -> dict[int, float]:
    """Return Σ|x − x̂_k|² / Σ|x − mean|² at each k: 0 is perfect, 1 no better than the mean."""
    embeddings = open_embeddings("embeddings", embeddings)
    error = dict.fromkeys(ks, 0.0)
    total = torch.zeros(embeddings.width, dtype=torch.float64, device="cpu")
    for chunk in embeddings.pieces():
        total += chunk.sum(0, dtype=torch.float64)
    mean = total / len(embeddings)
    variance = 0.0
    with torch.inference_mode():
        for chunk in embeddings.pieces():
            x, offset, scale = model.standardized(chunk.to(model.pre_bias))
            codes = model.encode_standardized(x, max(ks))
            for k in ks:
                rebuilt = model.decode(codes.truncate(k)) * scale + offset
                error[k] += float((chunk - rebuilt.cpu()).double().square().sum())
            variance += float((chunk - mean).square().sum())
    if variance == 0:
        raise ValueError("embeddings: expected rows that differ; all of them are equal")
    return {k: value / variance for k, value in error.items()}


def latent_use(codes: SparseCodes) -> Tensor:
    """Return the number of rows in which each latent is active, int64 [dim]."""
    return torch.bincount(codes.latents()[codes.active], minlength=codes.dim)


def use_skew(codes: SparseCodes) -> float:
    """Return the share of all active entries that lie in the most used 1% of latents.

    0.01 is perfectly even; the higher it is, the more postings an index reads per query.
    """
    use = latent_use(codes)
    hottest = use.topk(max(1, round(codes.dim / 100))).values
    return float(hottest.sum() / use.sum().clamp(min=1))


def dead_share(model: SparseAutoencoder) -> float:
    """Return the share of latents that the last training steps did not use."""
    return float(model.dead.float().mean())
