"""FAISS over dense vectors: what one would search instead of codes.

Where data has embeddings, it is these that FAISS gets, and recall counts against the exact
answer for them ("dense_recall" says for every engine how much of that answer it finds). Drawn
codes have none: FAISS flat then scans random vectors, which takes the same time.
"""

from __future__ import annotations

import functools
import time
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp

from benchmarks.index.data import TOP_K, Data, Dense, exact_dense_top_k
from benchmarks.index.engine import Engine, Unable, figures
from benchmarks.index.peers import grid

HNSW_NEIGHBOURS = (16, 32)
HNSW_BUILD_EFFORT = 200
HNSW_EFFORTS = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256)
# Dimensions that share a code of 4 bits, and its form; RFlat keeps the vectors in float32, too, to
# score a shortlist again. Codes of 8 bits are several times slower to scan.
PQ_FORMS = ((2, "x4fs"), (2, "x4fs,RFlat"), (4, "x4fs,RFlat"))
PQ_SHORTLISTS = (1, 2, 4, 8, 16)
PQ_TRAINING_ROWS = 20_000


def flat(data: Data, threads: int, at_k: bool = False) -> list[Engine]:
    """Exhaustive search in float32, over whole embeddings or their k principal dimensions."""
    import faiss

    if data.dense is None and (not at_k or sp.issparse(data.documents)):
        raise Unable("no embeddings of these rows")
    k = data.documents[0].shape[1]
    if data.dense is None:
        rng = np.random.default_rng(0)
        shapes = ((len(side[0]), k) for side in (data.documents, data.queries))
        vectors, queries = (_unit(rng.standard_normal(shape, np.float32)) for shape in shapes)
        truth = None
    else:
        vectors, queries, truth = data.dense.documents, data.dense.queries, data.dense.truth
        if at_k:
            _, axes = np.linalg.eigh(vectors.T @ vectors)
            vectors, queries = (_unit(side @ axes[:, -k:]) for side in (vectors, queries))
            truth = exact_dense_top_k(queries, vectors)
    index = faiss.IndexFlatIP(vectors.shape[1])
    seconds = _add(index, vectors, threads)
    n_bytes = 4.0 * vectors.shape[1] * len(data)

    def run(threads: int) -> Any:
        faiss.omp_set_num_threads(threads)
        return index.search(queries, TOP_K)[1]

    truth = run(threads) if truth is None else truth
    built = "" if data.dense else "random vectors"
    return [Engine(run, np.asarray, truth, figures(seconds, n_bytes, len(data), built))]


def hnsw(data: Data, threads: int) -> list[Engine]:
    """A graph over whole embeddings."""
    return _graphs(_dense(data), threads)


def product_quantizer(data: Data, threads: int) -> list[Engine]:
    """Product quantisation of whole embeddings, scanned exhaustively."""
    return _quantized(_dense(data), threads)


@functools.lru_cache(maxsize=2)  # codes of every k share them
def _graphs(dense: Dense, threads: int) -> list[Engine]:
    import faiss

    engines = []
    n, d = dense.documents.shape
    for neighbors in HNSW_NEIGHBOURS:
        index = faiss.IndexHNSWFlat(d, neighbors, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = HNSW_BUILD_EFFORT
        seconds = _add(index, dense.documents, threads)

        def run(threads: int, ef: int, index: Any = index) -> Any:
            faiss.omp_set_num_threads(threads)
            index.hnsw.efSearch = ef
            return index.search(dense.queries, TOP_K)[1]

        built = figures(seconds, len(faiss.serialize_index(index)), n, f"M={neighbors}")
        engines.append(Engine(run, np.asarray, dense.truth, built, grid(ef=HNSW_EFFORTS)))
    return engines


@functools.lru_cache(maxsize=2)
def _quantized(dense: Dense, threads: int) -> list[Engine]:
    import faiss

    engines = []
    n, d = dense.documents.shape
    for share, form in PQ_FORMS:
        spec = f"PQ{next(p for p in range(d // share, 0, -1) if d % p == 0)}{form}"
        index = faiss.index_factory(d, spec, faiss.METRIC_INNER_PRODUCT)
        start = time.perf_counter()
        faiss.omp_set_num_threads(threads)
        index.train(dense.documents[:PQ_TRAINING_ROWS])
        seconds = time.perf_counter() - start + _add(index, dense.documents, threads)

        def run(threads: int, shortlist: int = 0, index: Any = index) -> Any:
            faiss.omp_set_num_threads(threads)
            if shortlist:
                index.k_factor = shortlist
            return index.search(dense.queries, TOP_K)[1]

        built = figures(seconds, len(faiss.serialize_index(index)), n, spec)
        settings = grid(shortlist=PQ_SHORTLISTS) if spec.endswith("RFlat") else [{}]
        engines.append(Engine(run, np.asarray, dense.truth, built, settings))
    return engines


def _add(index: Any, vectors: np.ndarray, threads: int) -> float:
    import faiss

    faiss.omp_set_num_threads(threads)
    start = time.perf_counter()
    index.add(np.ascontiguousarray(vectors))
    return time.perf_counter() - start


def _dense(data: Data) -> Dense:
    if data.dense is None:
        raise Unable("drawn codes have no embeddings")
    return data.dense


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


DENSE = {
    "FAISS flat, d=k": partial(flat, at_k=True),
    "FAISS flat, embeddings": flat,
    "FAISS HNSW, embeddings": hnsw,
    "FAISS PQ, embeddings": product_quantizer,
}
