"""InvertedIndex, and other engines for sparse vectors, each by its own package."""

from __future__ import annotations

import io
import itertools
import json
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

import csrkern
from benchmarks.index.data import TOP_K, Data
from benchmarks.index.engine import (
    Engine,
    Unable,
    at_most,
    figures,
    folder_bytes,
    pad,
    quiet_stdout,
    saved_bytes,
)

FAST_RECALLS = (0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)
# SINDI accepts windows of 10k to 60k; beyond 200k documents the widest always won.
SINDI_WINDOWS, SINDI_WIDE, SINDI_MANY = (10_000, 20_000, 50_000), 50_000, 200_000
SEISMIC_BUILD = {
    **{"n_postings": 4000, "centroid_fraction": 0.1},
    **{"summary_energy": 0.5, "max_fraction": 6.0},
}
SEISMIC_CUTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
SEISMIC_HEAP_FACTORS = (0.8, 0.9, 1.0)
ROWS = 64  # queries whose scores for all documents are held at once: 256 MB at a million
QDRANT_POINTS = 2000  # a call


def grid(**options: Sequence[Any]) -> list[dict[str, Any]]:
    """All combinations."""
    chosen = itertools.product(*options.values())
    return [dict(zip(options, values, strict=True)) for values in chosen]


def ours(data: Data, threads: int, dtype: str = "float16", fast: bool = False) -> list[Engine]:
    """InvertedIndex by inner product: exact, or approximate at several recalls asked for."""
    start = time.perf_counter()
    try:
        index = csrkern.InvertedIndex.build(
            data.documents, dim=data.dim, metric="ip", dtype=dtype, num_threads=threads
        )
    except ValueError as error:  # a form of values that this build does not know
        raise Unable(str(error)) from error
    seconds = time.perf_counter() - start
    stats = index.stats()

    def run(threads: int, **options: Any) -> Any:
        return index.search(data.queries, TOP_K, num_threads=threads, **options)[1]

    if fast:  # its first search makes a copy of the codes by document
        start = time.perf_counter()
        run(threads, mode="fast")
        seconds += time.perf_counter() - start
        stats = index.stats()
    total = stats["bytes"] + stats["forward_bytes"]
    settings = grid(mode=["fast"], recall=FAST_RECALLS) if fast else [{}]
    built = figures(seconds, total, len(data))
    return [Engine(run, np.asarray, data.truth, built, settings, index)]


def sindi(data: Data, threads: int, form: str = "float32") -> list[Engine]:
    """VSAG's SINDI, which Python can search with one thread only.

    "float32" and "8-bit" leave nothing out; "re-scored" has 8-bit lists, whose best are scored
    again in float32; "pruned" also leaves out the smallest values of documents and queries.
    """
    import pyvsag

    pyvsag.set_logger_off()
    csr = data.doc_csr
    arrays = csr.indptr.astype(np.uint32), csr.indices.astype(np.uint32), csr.data
    queries = [
        (np.array([0, len(latents)], np.uint32), latents.astype(np.uint32), values)
        for latents, values in data.query_rows()
    ]
    windows = SINDI_WINDOWS if len(data) <= SINDI_MANY else (SINDI_WIDE,)
    wide_enough = next((w for w in windows if w >= len(data)), windows[-1])
    prunings = (0.0, 0.2, 0.4) if form == "pruned" else (0.0,)
    engines = []
    for window, pruning in itertools.product((w for w in windows if w <= wide_enough), prunings):
        rescored = form == "re-scored" or pruning > 0
        start = time.perf_counter()
        settings = {
            "window_size": window,
            "doc_prune_ratio": pruning,
            "use_quantization": rescored or form == "8-bit",
            "use_reorder": rescored,
            "term_id_limit": data.dim,
            "avg_doc_term_length": round(csr.nnz / max(len(data), 1)),
        }
        common = {"dtype": "sparse", "dim": data.dim, "metric_type": "ip"}
        index = pyvsag.Index("sindi", json.dumps({**common, "index_param": settings}))
        index.build(*arrays, np.arange(csr.shape[0], dtype=np.int64))
        seconds = time.perf_counter() - start

        def run(
            threads: int, heap: bool, shortlist: int, query_prune: float, index: Any = index
        ) -> Any:
            options = {
                "query_prune_ratio": query_prune,
                "term_prune_ratio": 0,
                "n_candidate": shortlist,
                "use_term_lists_heap_insert": heap,
            }
            search = json.dumps({"sindi": options})
            return [index.knn_search(*query, TOP_K, search)[0][0] for query in queries]

        engines.append(
            Engine(
                run,
                pad,
                data.truth,
                figures(
                    seconds,
                    saved_bytes(index.save),
                    len(data),
                    f"window={window}" + (f" doc_prune={pruning}" if pruning else ""),
                ),
                grid(
                    heap=(False, True),
                    shortlist=(TOP_K, 2 * TOP_K, 5 * TOP_K) if rescored else (TOP_K,),
                    query_prune=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5) if form == "pruned" else (0.0,),
                ),
            )
        )
    return engines


def seismic(data: Data, threads: int) -> list[Engine]:
    """Seismic's integer interface: approximate; its query settings decide how much."""
    from seismic import SeismicIndexRaw

    folder = tempfile.TemporaryDirectory()
    documents, query_file = f"{folder.name}/documents.bin", f"{folder.name}/queries.bin"
    write_seismic(documents, data.doc_csr)
    write_seismic(query_file, data.query_csr)
    with quiet_stdout():
        start = time.perf_counter()
        index = SeismicIndexRaw.build(documents, **SEISMIC_BUILD)
        seconds = time.perf_counter() - start
    Path(documents).unlink()
    queries = [(latents.astype(np.int32), values) for latents, values in data.query_rows()]

    def run(threads: int, query_cut: int, heap_factor: float, _folder: Any = folder) -> Any:
        if threads == 1:
            return [
                index.search(*query, TOP_K, query_cut, heap_factor, 0, True) for query in queries
            ]
        return index.batch_search(
            query_file, TOP_K, query_cut, heap_factor, 0, True, num_threads=threads
        )

    def ids(hits: Any) -> np.ndarray:
        return pad([[hit[-1] for hit in row] for row in hits])

    return [
        Engine(
            run,
            ids,
            data.truth,
            figures(seconds, saved_bytes(index.save), len(data)),
            grid(query_cut=SEISMIC_CUTS, heap_factor=SEISMIC_HEAP_FACTORS),
        )
    ]


def sparse_dot_topn(data: Data, threads: int) -> list[Engine]:
    """The sparse product that keeps only the best of each row."""
    from sparse_dot_topn import sp_matmul_topn

    start = time.perf_counter()
    right = data.doc_csr.T.tocsr()
    seconds = time.perf_counter() - start

    def run(threads: int) -> Any:
        return sp_matmul_topn(data.query_csr, right, top_n=TOP_K, sort=True, n_threads=threads)

    def ids(found: Any) -> np.ndarray:
        return pad([found.indices[a:b].tolist() for a, b in itertools.pairwise(found.indptr)])

    return [Engine(run, ids, data.truth, figures(seconds, csr_bytes(right), len(data)))]


def scipy_csr(data: Data, threads: int) -> list[Engine]:
    """SciPy's product, the best ten of each row by argpartition."""
    start = time.perf_counter()
    right = data.doc_csr.T.tocsr()
    seconds = time.perf_counter() - start

    def run(threads: int) -> np.ndarray:
        found = []
        for begin in range(0, data.query_csr.shape[0], ROWS):
            scores = (data.query_csr[begin : begin + ROWS] @ right).toarray()
            best = np.argpartition(-scores, TOP_K - 1, axis=1)[:, :TOP_K]
            order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable")
            found.append(np.take_along_axis(best, order, 1))
        return np.concatenate(found)

    return [Engine(run, np.asarray, data.truth, figures(seconds, csr_bytes(right), len(data)))]


def torch_sparse(data: Data, threads: int) -> list[Engine]:
    """torch.sparse, then topk: queries times documents, both sparse; or documents times queries,
    the queries dense."""
    import torch

    start = time.perf_counter()
    documents, transposed = torch_csr(data.doc_csr), torch_csr(data.doc_csr.T.tocsr())
    seconds = time.perf_counter() - start
    begins = range(0, data.query_csr.shape[0], ROWS)
    blocks = [data.query_csr[begin : begin + ROWS] for begin in begins]
    sparse = [torch_csr(block) for block in blocks]
    dense = [torch.from_numpy(block.toarray()).T.contiguous() for block in blocks]

    def run(threads: int, queries: str) -> Any:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            if queries == "sparse":
                return [(left @ transposed).to_dense().topk(TOP_K).indices for left in sparse]
            return [(documents @ right).topk(TOP_K, dim=0).indices.T for right in dense]
        finally:
            torch.set_num_threads(before)

    def ids(found: Any) -> np.ndarray:
        return torch.cat(found).numpy()

    n_bytes = csr_bytes(data.doc_csr)
    settings = grid(queries=("sparse", "dense"))
    return [Engine(run, ids, data.truth, figures(seconds, n_bytes, len(data)), settings)]


def qdrant_edge(data: Data, threads: int) -> list[Engine]:
    """Qdrant in process: one optimized segment in memory, one batch of queries a call."""
    import qdrant_edge as qdrant

    folder = tempfile.TemporaryDirectory()
    config = qdrant.EdgeConfig(
        sparse_vectors={
            "codes": qdrant.EdgeSparseVectorParams(
                full_scan_threshold=1, memory=qdrant.Memory.Pinned
            )
        },
        max_search_threads=threads,
        wal_enabled=False,
        optimizers=qdrant.EdgeOptimizersConfig(default_segment_number=1, indexing_threshold=1),
    )

    def rows(csr: sp.csr_matrix) -> list[Any]:
        bounds = itertools.pairwise(csr.indptr)
        return [
            qdrant.SparseVector(csr.indices[a:b].tolist(), csr.data[a:b].tolist())
            for a, b in bounds
        ]

    start = time.perf_counter()
    shard = qdrant.EdgeShard.create(folder.name, config)
    for begin in range(0, len(data), QDRANT_POINTS):
        vectors = rows(data.doc_csr[begin : begin + QDRANT_POINTS])
        points = [qdrant.Point(begin + i, {"codes": vector}) for i, vector in enumerate(vectors)]
        shard.update(qdrant.UpdateOperation.upsert_points(points))
    shard.optimize()
    seconds = time.perf_counter() - start
    shard.flush()
    batch = qdrant.QueryBatchRequest(
        [
            qdrant.QueryRequest(TOP_K, query=qdrant.Query.Nearest(vector, using="codes"))
            for vector in rows(data.query_csr)
        ]
    )

    def run(threads: int, _folder: Any = folder) -> Any:
        return shard.query_batch(batch)

    def ids(hits: Any) -> np.ndarray:
        return pad([[point.id for point in row] for row in hits])

    n_bytes = folder_bytes(f"{folder.name}/segments")
    return [Engine(run, ids, data.truth, figures(seconds, n_bytes, len(data)))]


def csr_bytes(matrix: sp.csr_matrix) -> int:
    """What a SciPy matrix holds in memory."""
    return matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes


def torch_csr(matrix: sp.csr_matrix) -> Any:
    """The same as a torch tensor."""
    import torch

    parts = (torch.from_numpy(part) for part in (matrix.indptr, matrix.indices, matrix.data))
    return torch.sparse_csr_tensor(*parts, matrix.shape, check_invariants=False)


def write_seismic(path: str, matrix: sp.csr_matrix) -> None:
    """Seismic's binary rows: a count, then for each row its length, latents and values."""
    out = io.BytesIO()
    out.write(np.uint32(matrix.shape[0]).tobytes())
    latents, values = matrix.indices.astype(np.uint32), matrix.data.astype(np.float32)
    for left, right in itertools.pairwise(matrix.indptr):
        out.write(np.uint32(right - left).tobytes())
        out.write(latents[left:right].tobytes())
        out.write(values[left:right].tobytes())
    Path(path).write_bytes(out.getbuffer())


OURS = "csrkern"
ONE_THREAD = ("SINDI", "SciPy")  # engines whose names begin so cannot use a second one
SPARSE = {
    OURS: ours,
    "csrkern uint8": partial(ours, dtype="uint8"),
    "csrkern fast": partial(ours, fast=True),
    "SINDI float32": at_most(3_000_000, sindi),
    "SINDI 8-bit": partial(sindi, form="8-bit"),
    "SINDI 8-bit, re-scored": partial(sindi, form="re-scored"),
    "SINDI pruned": partial(sindi, form="pruned"),
    "Seismic": at_most(300_000, seismic),
    "sparse_dot_topn": at_most(1_000_000, sparse_dot_topn),
    "SciPy": at_most(1_000_000, scipy_csr),
    "torch.sparse": at_most(100_000, torch_sparse),
    "Qdrant Edge": at_most(100_000, qdrant_edge),
}
