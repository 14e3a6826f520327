"""Compare ways to a smaller vector, at equal dimensions and at equal bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from csrkern.codes.packed import PackedCodes, packed_bytes, packed_k
from csrkern.codes.sparse import SparseCodes
from csrkern.nn import SparseAutoencoder
from csrkern.ops.decode import decode
from csrkern.reference import stored_values
from csrtrain.evaluation.baselines import (
    dense_bytes,
    int8,
    largest_entries,
    search_binary,
    sparse_bytes,
    truncate,
)
from csrtrain.evaluation.least_squares import encode_omp, refit
from csrtrain.evaluation.metrics import Judgments, Vectors, linear_probe, search, v_measure
from csrtrain.evaluation.quantizers import obstacle, quantize
from csrtrain.pca import PCA

SOFT = 0.5
# What learns within a minute or two; the others do within an hour.
QUICK_QUANTIZERS = ("PQ", "OPQ", *(f"RaBitQ-{bits}" for bits in range(1, 5)))
MOST_PACKED = 128  # latents; fitting the values of 200, which 256 bytes hold, takes 3 ms a row


@dataclass(frozen=True)
class Task:
    """Embeddings to search, and the labels or relevance judgments to score the results by.

    Attributes:
        database, queries: embeddings [N, d] and [n, d].
        database_labels, query_labels: [N] and [n], for 1-NN accuracy and more.
        judgments: relevance, for nDCG@10 and more, where there are no labels.
        probes: also a linear probe and k-means on the labels; needs scikit-learn.
    """

    database: Tensor
    queries: Tensor
    database_labels: Tensor | None = None
    query_labels: Tensor | None = None
    judgments: Judgments | None = None
    probes: bool = False

    @property
    def depth(self) -> int:
        """Number of neighbors that the scores need."""
        return 10 if self.judgments is not None else 1

    def scores(self, ids: np.ndarray) -> dict[str, float]:
        """Return scores 0..1 of neighbors ids [n, depth], the main one first."""
        if self.judgments is not None:
            return {
                "ndcg@10": self.judgments.ndcg(ids),
                "recall@10": self.judgments.recall(ids, 10),
                "mrr@10": self.judgments.mrr(ids),
                "hit@1": self.judgments.hits(ids, 1),
                "hit@5": self.judgments.hits(ids, 5),
                "hit@10": self.judgments.hits(ids, 10),
            }
        assert self.database_labels is not None
        assert self.query_labels is not None
        nearest = torch.from_numpy(ids[:, 0].copy())
        correct = (self.database_labels[nearest.clamp(min=0)] == self.query_labels) & (nearest >= 0)
        return {"1-nn": float(correct.float().mean())}

    def probe(self, database: Vectors, queries: Vectors) -> dict[str, float]:
        """Return scores of a linear probe and of k-means, if `probes` is set."""
        if not self.probes or self.database_labels is None or self.query_labels is None:
            return {}
        return {
            "linear": linear_probe(database, self.database_labels, queries, self.query_labels),
            "v-measure": v_measure(queries, self.query_labels),
        }


@dataclass(frozen=True)
class Result:
    """One row of a comparison.

    Attributes:
        method: its name.
        active: numbers that a vector holds: dimensions, or active latents.
        bytes_per_vector: as stored for the database; float16 numbers, 2-byte indices.
        scores: 0..1 by name, the main one first.
    """

    method: str
    active: int
    bytes_per_vector: int
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def main(self) -> float:
        """The main score."""
        return next(iter(self.scores.values()))


def compare_dense(task: Task, train: Tensor, ks: Sequence[int]) -> Iterator[Result]:
    """Yield results of untrained baselines: dense, PCA, first dimensions, top-k, and fewer bits.

    All dimensions: dense, int8 and signs. For every k: PCA and the first dimensions at k numbers
    and at the bytes of a k-sparse code (2k numbers), the k largest entries, and int8 on 4k
    principal directions.
    """
    d = train.shape[1]
    vectors = task.database, task.queries
    yield _dense(task, "dense", d, dense_bytes(d), *vectors)
    yield _dense(task, "int8", d, d, int8(train, vectors[0]), vectors[1])
    ids = search_binary(*vectors, train.mean(0), task.depth)
    yield Result("binary, re-scored", d, -(-d // 8), task.scores(ids))
    pca = PCA(train)
    for dims in sorted({*ks, *(2 * k for k in ks)}):
        if dims <= d:
            sides = (pca.project(side, dims) for side in vectors)
            yield _dense(task, "PCA", dims, dense_bytes(dims), *sides)
            sides = (truncate(side, dims) for side in vectors)
            yield _dense(task, "first dims", dims, dense_bytes(dims), *sides)
    for k in ks:
        if k <= d:
            sides = (largest_entries(side, k) for side in vectors)
            yield _dense(task, "top-k, untrained", k, sparse_bytes(k, d), *sides)
        if 4 * k <= d:
            x, database, queries = (pca.project(side, 4 * k) for side in (train, *vectors))
            yield _dense(task, "PCA int8", 4 * k, 4 * k, int8(x, database), queries)


def left_out(train: Tensor, quantizers: Sequence[str]) -> dict[str, str]:
    """Return, by name, why `compare_quantizers` omits those that cannot learn from `train`."""
    reasons = {name: obstacle(name, train) for name in quantizers}
    return {name: reason for name, reason in reasons.items() if reason}


def compare_quantizers(
    task: Task, train: Tensor, ks: Sequence[int], quantizers: Sequence[str], seed: int = 0
) -> Iterator[Result]:
    """Yield results of quantizers in at most the bytes of a k-sparse code, with dense queries.

    More bytes than all dimensions take at its bits are no use to RaBitQ or TurboQuant, nor to PQ.

    Args:
        quantizers: names of `csrtrain.evaluation.quantizers.QUANTIZERS`. Those in `left_out` are
            omitted.
    """
    for name in quantizers:
        if not obstacle(name, train):
            smaller = 0
            for k in sorted(ks):
                stored = quantize(name, train, task.database, 4 * k, seed)
                if stored.n_bytes > smaller:
                    size = smaller = stored.n_bytes
                    yield _dense(task, name, stored.active, size, stored.rows, task.queries)


def compare_adapter(
    task: Task,
    adapter: Callable[[Tensor], Tensor],
    ks: Sequence[int],
    method: str = "Matryoshka adapter",
) -> Iterator[Result]:
    """Yield results of a map [n, d] to [n, p], cut to k dimensions and to the bytes of a code."""
    database, queries = (adapter(side) for side in (task.database, task.queries))
    for dims in sorted({*ks, *(2 * k for k in ks)}):
        if dims <= database.shape[1]:
            sides = database[:, :dims], queries[:, :dims]
            yield _dense(task, method, dims, dense_bytes(dims), *sides)


@torch.no_grad()
def compare_codes(
    task: Task,
    models: SparseAutoencoder | Mapping[int, SparseAutoencoder],
    ks: Sequence[int],
    method: str = "CSR",
    *,
    asymmetric: bool = True,
) -> Iterator[Result]:
    """Yield results of the codes of one model for every k, or of a model for each k.

    At every k, all in the same bytes:

    - codes with codes, as they are and with the square roots of the values (`SparseCodes.power`);
    - with `asymmetric`, dense queries with the reconstructions of stored codes, as encoded and
      with values fitted again (`csrtrain.refit`). The latter also in the adapter's space
      (`SparseAutoencoder.rerank`) and with more latents: as many as fit with values of one byte,
      as in `InvertedIndex.build(dtype="uint8")`, and packed (`PackedCodes.pack`).
    """
    for k in ks:
        model = models if isinstance(models, SparseAutoencoder) else models[k]
        size = sparse_bytes(k, model.hidden_dim)
        one_byte = min(size // sparse_bytes(1, model.hidden_dim, 1), model.hidden_dim)
        packed = min(packed_k(size, model.hidden_dim), MOST_PACKED)
        queries = model.encode(task.queries.numpy(), k)
        wide = model.encode(task.database.numpy(), max(k, one_byte, packed) if asymmetric else k)
        database = wide.truncate(k)
        for name, codes, query_codes in (
            (method, database, queries),
            (f"{method}, roots", database.power(SOFT), queries.power(SOFT)),
        ):
            scores = task.scores(search(codes, query_codes, task.depth))
            yield Result(name, k, size, {**scores, **task.probe(codes, query_codes)})
        if asymmetric:
            name = f"{method}, asymmetric"
            yield _asymmetric(task, model, name, _half(database), size)
            fitted = partial(refit, model, task.database)
            for n_latents, form, stored_as, n_bytes in (
                (k, "refitted", _half, size),
                (one_byte, "uint8", _one_byte, sparse_bytes(one_byte, model.hidden_dim, 1)),
                (packed, "packed", _packed, packed_bytes(packed, model.hidden_dim)),
            ):
                codes = stored_as(fitted(wide.truncate(n_latents)))
                yield _asymmetric(task, model, f"{name}, {form}", codes, n_bytes)
                if form != "uint8" and "adapter" in model.spaces:
                    yield _in_adapter_space(task, model, f"{name}, adapter, {form}", codes, n_bytes)


def compare_omp(
    task: Task, model: SparseAutoencoder, ks: Sequence[int], method: str = "CSR"
) -> Iterator[Result]:
    """Yield results of dense queries with codes by `csrtrain.encode_omp`, in both spaces.

    At every k: k latents with values in float16, and as many packed latents as fit in the same
    bytes.
    """
    for k in ks:
        size = sparse_bytes(k, model.hidden_dim)
        packed = min(packed_k(size, model.hidden_dim), MOST_PACKED)
        for space in model.spaces:
            score = _asymmetric if space == "embeddings" else _in_adapter_space
            name = f"{method}, asymmetric" + ("" if space == "embeddings" else ", adapter")
            codes = _half(encode_omp(model, task.database, k, space=space))
            yield score(task, model, f"{name}, OMP", codes, size)
            codes = _packed(encode_omp(model, task.database, packed, space=space))
            n_bytes = packed_bytes(packed, model.hidden_dim)
            yield score(task, model, f"{name}, OMP, packed", codes, n_bytes)


def _half(codes: SparseCodes) -> SparseCodes:
    return SparseCodes(codes.values.half().float(), codes.indices, codes.dim, codes.fingerprint)


def _one_byte(codes: SparseCodes) -> SparseCodes:
    """Return codes with values as an index of dtype="uint8" stores them."""
    largest = 2.0 ** math.ceil(math.log2(max(float(codes.values.max()), 1e-30)))
    values = torch.from_numpy(stored_values(codes.values.numpy(), "uint8", largest))
    return SparseCodes(values, codes.indices, codes.dim, codes.fingerprint)


def _packed(codes: SparseCodes) -> SparseCodes:
    return PackedCodes.pack(codes).unpack()


def _asymmetric(
    task: Task, model: SparseAutoencoder, method: str, codes: SparseCodes, size: int
) -> Result:
    """Score queries by cosine with the reconstructions of the stored codes."""
    _, mean, deviation = model.standardized(task.database)
    rebuilt = torch.cat([model.decode(part) for part in _parts(codes)]) * deviation + mean
    return _dense(task, method, codes.k, size, rebuilt, task.queries, half=False)


def _in_adapter_space(
    task: Task, model: SparseAutoencoder, method: str, codes: SparseCodes, size: int
) -> Result:
    """Score the same by the products of `SparseAutoencoder.rerank` with space="adapter"."""
    mapped = torch.cat([decode(part, model.encoder.weight) for part in _parts(codes)])
    norms = torch.cat([model.norms(part, "adapter") for part in _parts(codes)])
    ids = search(mapped, task.queries - model.pre_bias, task.depth, norms)
    return Result(method, codes.k, size, task.scores(ids))


def _parts(codes: SparseCodes) -> Iterator[SparseCodes]:
    return (codes[begin : begin + 4096] for begin in range(0, len(codes), 4096))


def _dense(
    task: Task,
    method: str,
    active: int,
    size: int,
    *sides: Tensor,
    half: bool = True,
) -> Result:
    database, queries = sides
    if half and size >= dense_bytes(active):
        # Score vectors as stored: float16 at norm 1.
        unit: Callable[[Tensor], Tensor] = torch.nn.functional.normalize
        database, queries = unit(database).half(), unit(queries).half()
    scores = task.scores(search(database, queries, task.depth))
    return Result(method, active, size, {**scores, **task.probe(database, queries)})
