"""What searches are measured on: codes of documents and queries, and their exact answers.

Five kinds of codes: "uniform", "skewed" and "text" are drawn (see `generators`); "adapter" are
those of an adapter trained here and now on the packaged definitions, "given" on embeddings of your
own, an .npz file with the arrays docs [n, d] and queries [m, d].
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from benchmarks.harness import generators
from benchmarks.harness.generators import Codes

TOP_K = 10
LIKE = 400  # queries that plans of fast searches are measured on
QUERY_TERMS = 38  # of "text"
ALL = 0  # as the number of documents: as many as there are
ADAPTER_STEPS, ADAPTER_ROWS = 300, 1024
_SLICE_SCORES = 1 << 24  # scores held at a time while the truth is found: 64 MB


@dataclass(frozen=True, eq=False)
class Dense:
    """The embeddings that codes were made of, unit rows, and the exact answer for them."""

    documents: np.ndarray
    queries: np.ndarray
    truth: np.ndarray


@dataclass(frozen=True)
class Data:
    """Codes as pairs (values float32, latents int32), [n, k] each, a value of 0 is no latent; or
    as CSR matrices."""

    documents: Codes | sp.csr_array
    queries: Codes | sp.csr_array
    dim: int
    truth: np.ndarray  # [queries, TOP_K] ids, exact in float32
    dense: Dense | None = None
    like: Codes | sp.csr_array | None = None  # other queries of the same kind, to measure plans on

    @staticmethod
    def of(
        documents: Any, queries: Any, dim: int, dense: Dense | None = None, like: Any = None
    ) -> Data:
        """With the exact answer, which is found here."""
        return Data(documents, queries, dim, exact_top_k(queries, documents, dim), dense, like)

    @staticmethod
    def make(n: int, h: int, k: int, kind: str, n_queries: int, given: Path | None) -> Data:
        """`n` documents (or `ALL`) and `n_queries` queries of `kind`."""
        if kind in ("uniform", "skewed", "text"):
            draw = getattr(generators, kind)
            entries = QUERY_TERMS if kind == "text" else k
            queries, like = (
                draw(m, h, entries, seed=seed) for seed, m in ((2, n_queries), (3, LIKE))
            )
            return Data.of(draw(n, h, k, seed=1), queries, h, like=like)
        source = given if kind == "given" else None
        dense, model = embedded(source, n, n_queries), adapter(source, n, h)
        documents, queries = (_encoded(model, rows, k) for rows in (dense.documents, dense.queries))
        return Data.of(documents, queries, h, dense)

    def save(self, folder: Path) -> None:
        """Writes documents, queries and truth for `open`."""
        for name, array in self._arrays().items():
            np.save(folder / f"{name}.npy", array)

    @staticmethod
    def open(folder: Path) -> Data:
        """Maps what `save` wrote."""
        maps = {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}
        documents, queries = (
            (maps[f"{side}_values"], maps[f"{side}_latents"]) for side in ("documents", "queries")
        )
        return Data(documents, queries, int(maps["dim"]), np.array(maps["truth"]))

    def _arrays(self) -> dict[str, Any]:
        named = {"truth": self.truth, "dim": np.int64(self.dim)}
        for side, (values, latents) in (("documents", self.documents), ("queries", self.queries)):
            named |= {f"{side}_values": values, f"{side}_latents": latents}
        return named

    def __len__(self) -> int:
        """The number of documents."""
        return number_of_rows(self.documents)

    @functools.cached_property
    def doc_csr(self) -> sp.csr_matrix:
        """Documents [n, dim]."""
        return to_csr(self.documents, self.dim)

    @functools.cached_property
    def query_csr(self) -> sp.csr_matrix:
        """Queries [m, dim]."""
        return to_csr(self.queries, self.dim)

    @functools.cached_property
    def postings(self) -> float:
        """That an exhaustive scan for all queries touches."""
        use = np.zeros(self.dim)
        for start in range(0, len(self), 1 << 20):
            use += np.bincount(self._latents(start, start + (1 << 20)), minlength=self.dim)
        return float(use[self.query_csr.indices].sum())

    def _latents(self, first: int, end: int) -> np.ndarray:
        """Those that documents have, repeated."""
        if sp.issparse(self.documents):
            return self.documents[first:end].indices
        values, latents = (side[first:end] for side in self.documents)
        return latents[values > 0]

    def query_rows(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(latents, values) of each query, latents ascending."""
        for left, right in itertools.pairwise(self.query_csr.indptr):
            yield self.query_csr.indices[left:right], self.query_csr.data[left:right]


def number_of_rows(codes: Any) -> int:
    """Return the number of rows of a pair of arrays or of a matrix."""
    return codes.shape[0] if sp.issparse(codes) else len(codes[0])


def recall(ids: np.ndarray, truth: np.ndarray) -> float:
    """Share of `truth` [m, TOP_K] that `ids` [m, TOP_K] holds."""
    return float((truth[:, :, None] == ids[:, None, :]).any(2).mean())


def to_csr(codes: Codes | sp.csr_array, dim: int) -> sp.csr_matrix:
    """[n, dim] with ascending latents and without those whose value is 0."""
    if sp.issparse(codes):
        return sp.csr_matrix(codes)
    values, latents = codes
    order = np.argsort(latents, axis=1)
    values, latents = (np.take_along_axis(side, order, 1) for side in (values, latents))
    active = values > 0
    starts = np.concatenate([[0], np.cumsum(active.sum(1))])
    starts = starts.astype(np.int32 if starts[-1] < 2**31 else np.int64)
    return sp.csr_matrix((values[active], latents[active], starts), shape=(len(values), dim))


def exact_top_k(queries: Any, documents: Any, dim: int) -> np.ndarray:
    """Ids [m, TOP_K] of the best by float32 inner product, never holding all scores."""
    left = to_csr(queries, dim)
    rows = max(TOP_K, _SLICE_SCORES // left.shape[0])

    def scores(start: int) -> np.ndarray:
        if sp.issparse(documents):
            return (left @ documents[start : start + rows].T.tocsr()).toarray()
        values, latents = (side[start : start + rows] for side in documents)
        starts = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
        part = sp.csr_matrix((values.ravel(), latents.ravel(), starts), (len(values), dim))
        return (left @ part.T.tocsr()).toarray()

    return _merged(scores(start) for start in range(0, number_of_rows(documents), rows))


def exact_dense_top_k(queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Ids [m, TOP_K] of the best by inner product of dense rows."""
    rows = max(TOP_K, _SLICE_SCORES // len(queries))
    return _merged(
        queries @ documents[start : start + rows].T for start in range(0, len(documents), rows)
    )


def _merged(slices: Iterator[np.ndarray]) -> np.ndarray:
    """The best ids of scores [m, …] that come slice by slice."""
    scores, ids, first = None, None, 0
    for part in slices:
        best = np.argpartition(-part, min(TOP_K, part.shape[1]) - 1, axis=1)[:, :TOP_K]
        here = np.take_along_axis(part, best, 1)
        scores = here if scores is None else np.hstack([scores, here])
        ids = best + first if ids is None else np.hstack([ids, best + first])
        order = np.lexsort((ids, -scores))[:, :TOP_K]
        scores, ids = (np.take_along_axis(side, order, 1) for side in (scores, ids))
        first += part.shape[1]
    assert ids is not None
    return ids


@functools.lru_cache(maxsize=2)
def embeddings(given: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Documents [n, d] and queries [m, d], float32 with rows of norm 1.

    Raises:
        ValueError: if the file given does not hold them.
    """
    if given is None:
        from csrtrain.demo.data import load_demo

        demo = load_demo()
        return demo.train, demo.test
    with np.load(given, allow_pickle=False) as file:
        if not {"docs", "queries"} <= set(file):
            raise ValueError(f"{given}: expected the arrays docs and queries, got {list(file)}")
        sides = [file[name].astype(np.float32) for name in ("docs", "queries")]
    docs, queries = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in sides)
    return docs, queries


@functools.lru_cache(maxsize=2)
def embedded(given: Path | None, n: int, n_queries: int) -> Dense:
    """The first `n` documents (or `ALL`) and queries; kept, as engines built over them are."""
    docs, queries = embeddings(given)
    docs, queries = docs[: n or None], queries[:n_queries]
    return Dense(docs, queries, exact_dense_top_k(queries, docs))


@functools.lru_cache(maxsize=4)
def adapter(given: Path | None, n: int, hidden_dim: int) -> Any:
    """Trained on the first `n` documents (or `ALL`): k = 32, without labels, seed 0.

    300 steps of 1,024 rows; fewer on less than 6,000 documents, which only test the benchmark.
    """
    from csrtrain import TrainConfig, train

    docs = embeddings(given)[0][: n or None]
    steps = min(ADAPTER_STEPS, len(docs) // 20)
    rows = min(ADAPTER_ROWS, len(docs))
    # As measured: one k, embeddings as they are, a constant rate.
    plain: dict[str, Any] = {"ks": (), "unit_scale": False, "lr": 1e-3, "decay": 0.0}
    config = TrainConfig(hidden_dim=hidden_dim, k=32, steps=steps, batch_size=rows, **plain)
    return train(docs, config=config, progress=False, device="cpu").eval()


def _encoded(model: Any, rows: np.ndarray, k: int) -> Codes:
    import torch

    with torch.no_grad():
        parts = [model.encode(torch.from_numpy(part), k) for part in _batches(rows, 4096)]
    return (
        np.concatenate([codes.values.numpy() for codes in parts]),
        np.concatenate([codes.indices.numpy() for codes in parts]),
    )


def _batches(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), size):
        yield np.ascontiguousarray(rows[start : start + size])
