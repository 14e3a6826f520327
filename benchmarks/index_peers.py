"""Search engines to compare InvertedIndex with, each by its own package at its best settings."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from benchmarks.codes import two_sets
from benchmarks.harness import Contestant, Missing, Side
from csrkern import SparseCodes

TOPK = 10
INSTALL = "pip install 'csrkern[bench]'"
# SINDI's fastest window here of 10k to 60k documents; it accepts no more than 60k.
SINDI_WINDOW = 50_000
# Seismic is approximate: the fastest of these with at least this recall, on these very queries.
SEISMIC_RECALL = 0.99
SEISMIC_BUILD = {
    **{"n_postings": 4000, "centroid_fraction": 0.1},
    **{"summary_energy": 0.5, "max_fraction": 6.0},
}
SEISMIC_CUTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
SEISMIC_HEAP_FACTORS = (0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Data:
    """Documents, queries from the same law, and the exact answer in float32."""

    documents: SparseCodes
    queries: SparseCodes
    doc_csr: sp.csr_matrix
    query_csr: sp.csr_matrix
    truth: np.ndarray  # [queries, TOPK] ids
    postings: float  # that an exhaustive scan of all queries touches

    @staticmethod
    def draw(n: int, h: int, k: int, kind: str, n_queries: int) -> Data:
        """`n` documents and `n_queries` queries of `kind`, see `generators`."""
        documents, queries = two_sets(kind, n, n_queries, h, k)
        doc_csr, query_csr = (sp.csr_matrix(side.to_scipy()) for side in (documents, queries))
        use = np.bincount(doc_csr.indices, minlength=h)
        truth = scipy_topk(query_csr, doc_csr.T.tocsr())
        postings = float(use[query_csr.indices].sum())
        return Data(documents, queries, doc_csr, query_csr, truth, postings)

    def recall(self, ids: Any) -> float:
        """Share of the true TOPK that `ids` [queries, TOPK] holds."""
        hits = [
            len(set(found) & set(best))
            for found, best in zip(np.asarray(ids).tolist(), self.truth.tolist(), strict=True)
        ]
        return sum(hits) / self.truth.size

    def figures(self, ids: Any, built: float, bytes_per_code: float) -> dict[str, float | str]:
        """What every engine reports beside its time."""
        return {
            "recall": self.recall(ids),
            "build_s": built,
            "bytes_per_code": float(bytes_per_code),
        }

    def rows(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(latents, values) of each query, latents ascending."""
        starts = self.query_csr.indptr
        for left, right in itertools.pairwise(starts):
            yield self.query_csr.indices[left:right], self.query_csr.data[left:right]


def peers(data: Data, threads: int) -> dict[str, Side]:
    """Every engine that can use `threads` threads, or why it is missing."""
    engines: dict[str, Callable[[Data, int], Contestant]] = {
        "Seismic": seismic,
        "sparse_dot_topn": sparse_dot_topn,
        "FAISS flat, dense d=k": faiss_flat,
    }
    if threads == 1:
        engines = {
            "SINDI float32": sindi,
            "SINDI 8-bit": lambda data, threads: sindi(data, threads, quantized=True),
            **engines,
            "SciPy CSR + argpartition": scipy_csr,
        }
    sides: dict[str, Side] = {}
    for name, make in engines.items():
        try:
            sides[name] = make(data, threads)
        except ImportError as error:
            sides[name] = Missing(f"{INSTALL} ({error})")
    return sides


def sindi(data: Data, threads: int, quantized: bool = False) -> Contestant:
    """VSAG's SINDI without pruning: exact in float32, approximate with 8-bit values."""
    import pyvsag

    pyvsag.set_logger_off()
    settings = {
        "dtype": "sparse",
        "dim": data.documents.dim,
        "metric_type": "ip",
        "index_param": {
            "window_size": SINDI_WINDOW,
            "doc_prune_ratio": 0.0,
            "use_quantization": quantized,
        },
    }
    csr = data.doc_csr
    start = time.perf_counter()
    index = pyvsag.Index("sindi", json.dumps(settings))
    index.build(
        csr.indptr.astype(np.uint32),
        csr.indices.astype(np.uint32),
        csr.data,
        np.arange(csr.shape[0], dtype=np.int64),
    )
    built = time.perf_counter() - start
    search = json.dumps(
        {"sindi": {"query_prune_ratio": 0, "term_prune_ratio": 0, "n_candidate": TOPK}}
    )
    queries = [
        (np.array([0, len(latents)], np.uint32), latents.astype(np.uint32), values)
        for latents, values in data.rows()
    ]

    def run() -> list[np.ndarray]:
        return [index.knn_search(*query, TOPK, search)[0][0] for query in queries]

    return Contestant(run, data.figures(run(), built, saved_bytes(index.save) / csr.shape[0]))


def seismic(data: Data, threads: int) -> Contestant:
    """Seismic's integer interface; its query settings tuned on the queries themselves."""
    from seismic import SeismicIndexRaw

    with tempfile.TemporaryDirectory() as folder, quiet_stdout():
        documents, query_file = f"{folder}/documents.bin", f"{folder}/queries.bin"
        write_seismic(documents, data.doc_csr)
        start = time.perf_counter()
        index = SeismicIndexRaw.build(documents, **SEISMIC_BUILD)
        built = time.perf_counter() - start
        write_seismic(query_file, data.query_csr)
        n_bytes = saved_bytes(index.save) / data.doc_csr.shape[0]
    queries = [(latents.astype(np.int32), values) for latents, values in data.rows()]

    def run(cut: int, heap_factor: float) -> list[list[int]]:
        found = [index.search(*query, TOPK, cut, heap_factor, 0, True) for query in queries]
        return [[document for _, document in hits] for hits in found]

    trials = []
    for cut in SEISMIC_CUTS:
        for heap_factor in SEISMIC_HEAP_FACTORS:
            start = time.perf_counter()
            ids = pad(run(cut, heap_factor))
            seconds = time.perf_counter() - start
            trials.append((data.recall(ids), seconds, cut, heap_factor, ids))
    good = [trial for trial in trials if trial[0] >= SEISMIC_RECALL]
    best = min(good, key=lambda t: t[1]) if good else max(trials, key=lambda t: t[0])
    _, _, cut, heap_factor, ids = best
    figures = data.figures(ids, built, n_bytes)
    figures["settings"] = f"query_cut {cut} heap_factor {heap_factor}"
    if threads == 1:
        return Contestant(lambda: run(cut, heap_factor), figures)

    query_path = Path(tempfile.mkdtemp()) / "queries.bin"
    write_seismic(str(query_path), data.query_csr)

    def run_batch() -> Any:
        return index.batch_search(
            str(query_path), TOPK, cut, heap_factor, 0, True, num_threads=threads
        )

    return Contestant(run_batch, figures)


def sparse_dot_topn(data: Data, threads: int) -> Contestant:
    """The sparse product that keeps only the best of each row."""
    from sparse_dot_topn import sp_matmul_topn

    start = time.perf_counter()
    right = data.doc_csr.T.tocsr()
    built = time.perf_counter() - start

    def run() -> Any:
        return sp_matmul_topn(data.query_csr, right, top_n=TOPK, sort=True, n_threads=threads)

    found = run()
    ids = pad([found.indices[a:b].tolist() for a, b in itertools.pairwise(found.indptr)])
    return Contestant(run, data.figures(ids, built, csr_bytes(right) / data.doc_csr.shape[0]))


def scipy_csr(data: Data, threads: int) -> Contestant:
    """SciPy's product, the best ten of each row by argpartition."""
    start = time.perf_counter()
    right = data.doc_csr.T.tocsr()
    built = time.perf_counter() - start
    n_bytes = csr_bytes(right) / data.doc_csr.shape[0]
    figures = data.figures(scipy_topk(data.query_csr, right), built, n_bytes)
    return Contestant(lambda: scipy_topk(data.query_csr, right), figures)


def faiss_flat(data: Data, threads: int) -> Contestant:
    """Exhaustive dense search over k float32 dimensions: a truncated embedding at equal k.

    Other vectors than the codes, so its recall is that of exact search, 1, by construction.
    """
    import faiss

    rng, k = np.random.default_rng(0), data.documents.k
    vectors = rng.standard_normal((data.doc_csr.shape[0], k), np.float32)
    queries = rng.standard_normal((data.query_csr.shape[0], k), np.float32)
    for block in (vectors, queries):
        faiss.normalize_L2(block)
    index = faiss.IndexFlatIP(k)
    start = time.perf_counter()
    index.add(vectors)
    built = time.perf_counter() - start

    def run() -> Any:
        faiss.omp_set_num_threads(threads)
        return index.search(queries, TOPK)

    return Contestant(run, {"build_s": built, "bytes_per_code": 4.0 * k, "note": "other vectors"})


def scipy_topk(queries: sp.csr_matrix, documents: sp.csr_matrix) -> np.ndarray:
    """Ids of the exact best in float32, [n, TOPK]; documents [h, N]."""
    found = []
    for start in range(0, queries.shape[0], 64):  # 64 rows of a million scores: 256 MB
        scores = (queries[start : start + 64] @ documents).toarray()
        best = np.argpartition(-scores, TOPK - 1, axis=1)[:, :TOPK]
        order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable")
        found.append(np.take_along_axis(best, order, 1))
    return np.concatenate(found)


def pad(rows: list[list[int]]) -> np.ndarray:
    """[n, TOPK] ids, -1 where an engine found fewer."""
    return np.array([(row + [-1] * TOPK)[:TOPK] for row in rows])


def csr_bytes(matrix: sp.csr_matrix) -> int:
    """What a SciPy matrix holds in memory."""
    return matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes


def saved_bytes(save: Callable[[str], Any]) -> int:
    """The size of an index as its own package stores it."""
    with tempfile.TemporaryDirectory() as folder, quiet_stdout():
        save(f"{folder}/index")
        return sum(file.stat().st_size for file in Path(folder).iterdir())


def write_seismic(path: str, matrix: sp.csr_matrix) -> None:
    """Seismic's binary rows: a count, then for each row its length, latents and values."""
    out = io.BytesIO()
    out.write(np.uint32(matrix.shape[0]).tobytes())
    latents, values = matrix.indices.astype(np.uint32), matrix.data.astype(np.float32)
    for left, right in itertools.pairwise(matrix.indptr):
        out.write(np.uint32(right - left).tobytes())
        out.write(latents[left:right].tobytes())
        out.write(values[left:right].tobytes())
    Path(path).write_bytes(out.getvalue())


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """Some engines print from native code: their standard output goes nowhere meanwhile."""
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
