"""InvertedIndex, and other engines for sparse vectors, each by its own package."""

from __future__ import annotations

import io
import itertools
import json
import sys
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
# The second is what its authors publish for recall .99 of SPLADE on MS MARCO.
SEISMIC_BUILDS = (
    {"n_postings": 4000, "centroid_fraction": 0.1, "summary_energy": 0.5, "max_fraction": 6.0},
    {"n_postings": 4000, "centroid_fraction": 0.2, "summary_energy": 0.5, "max_fraction": 4.0},
)
SEISMIC_CUTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
SEISMIC_HEAP_FACTORS = (0.8, 0.9, 1.0)
# Its authors publish m = 32, lists of 10 to 16 and exits at .01 to .15 for SPLADE on MS MARCO, on
# a graph made with lists of 2,000: ten times the time of 200, its default.
KANNOLO_DEGREES, KANNOLO_CONSTRUCTION = (16, 32), 200
KANNOLO_LISTS = (10, 12, 16, 24, 32, 48, 64, 128, 256)
KANNOLO_EXITS = (None, 0.02, 0.05, 0.1, 0.15, 0.3)
PISA_SCALE, PISA_QUERY_SCALES = 100, (10, 30, 100)  # its values and weights are integers
PISA_ENCODINGS = ("block_simdbp", "block_streamvbyte")
PISA_ALGORITHMS = ("maxscore", "block_max_maxscore", "block_max_wand")
ROWS = 64  # queries whose scores for all documents are held at once: 256 MB at a million
QDRANT_POINTS = 2000  # a call


def grid(**options: Sequence[Any]) -> list[dict[str, Any]]:
    """All combinations."""
    chosen = itertools.product(*options.values())
    return [dict(zip(options, values, strict=True)) for values in chosen]


def ours(data: Data, threads: int, dtype: str = "float16") -> list[Engine]:
    """InvertedIndex by inner product, exact."""
    index, seconds = _built(data, threads, dtype)
    return [_engine_of(index, data, seconds, [{}])]


def ours_fast(data: Data, threads: int) -> list[Engine]:
    """The same, approximate at several recalls asked for, without and with a graph.

    Plans that walk along a graph are measured on other queries alone.
    """
    engines = []
    for graph in (False, True) if data.like is not None else (False,):
        index, seconds = _built(data, threads)
        start = time.perf_counter()
        if graph:
            index.build_graph(num_threads=threads)
        seconds += time.perf_counter() - start
        if data.like is not None:
            for recall in FAST_RECALLS:
                index.calibrate(data.like, recall)
        # The first search makes a copy of the codes by document.
        start = time.perf_counter()
        index.search(data.queries, TOP_K, num_threads=threads, mode="fast")
        seconds += time.perf_counter() - start
        settings = grid(mode=["fast"], recall=FAST_RECALLS)
        engines.append(_engine_of(index, data, seconds, settings, "graph" if graph else ""))
    return engines


def _built(data: Data, threads: int, dtype: str = "float16") -> tuple[Any, float]:
    start = time.perf_counter()
    try:
        index = csrkern.InvertedIndex.build(
            data.documents, dim=data.dim, metric="ip", dtype=dtype, num_threads=threads
        )
    except ValueError as error:  # a form of values that this build does not know
        raise Unable(str(error)) from error
    return index, time.perf_counter() - start


def _engine_of(
    index: Any, data: Data, seconds: float, settings: list[dict[str, Any]], built: str = ""
) -> Engine:
    def run(threads: int, **options: Any) -> Any:
        return index.search(data.queries, TOP_K, num_threads=threads, **options)[1]

    stats = index.stats()
    known = figures(seconds, stats["bytes"] + stats["forward_bytes"], len(data), built)
    return Engine(run, np.asarray, data.truth, known, settings, index)


def sindi(data: Data, threads: int, form: str = "float32") -> list[Engine]:
    """VSAG's SINDI, which Python can search with one thread only.

    "float32" and "8-bit" leave nothing out; "re-scored" has 8-bit lists, whose best are scored
    again in float32; "pruned" also leaves out the smallest values of documents and queries.
    """
    if "pyterrier_pisa" in sys.modules:
        raise Unable("crashes in a process that has imported pyterrier-pisa")
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
    queries = [(latents.astype(np.int32), values) for latents, values in data.query_rows()]

    def ids(hits: Any) -> np.ndarray:
        return pad([[hit[-1] for hit in row] for row in hits])

    engines = []
    for options in SEISMIC_BUILDS:
        with quiet_stdout():
            start = time.perf_counter()
            index = SeismicIndexRaw.build(documents, **options)
            seconds = time.perf_counter() - start

        def run(
            threads: int,
            query_cut: int,
            heap_factor: float,
            index: Any = index,
            _folder: Any = folder,
        ) -> Any:
            options = TOP_K, query_cut, heap_factor, 0, True
            if threads == 1:
                return [index.search(*query, *options) for query in queries]
            return index.batch_search(query_file, *options, num_threads=threads)

        built = f"centroid_fraction={options['centroid_fraction']}"
        engines.append(
            Engine(
                run,
                ids,
                data.truth,
                figures(seconds, saved_bytes(index.save), len(data), built),
                grid(query_cut=SEISMIC_CUTS, heap_factor=SEISMIC_HEAP_FACTORS),
            )
        )
    Path(documents).unlink()
    return engines


def kannolo(data: Data, threads: int) -> list[Engine]:
    """kANNolo's graphs (HNSW) over sparse vectors: approximate; float16 values, nodes reordered."""
    from kannolo import SparsePlainHNSW

    documents, queries = (
        (csr.indices.astype(np.int32), csr.data, csr.indptr.astype(np.int64))
        for csr in (data.doc_csr, data.query_csr)
    )

    def ids(found: Any) -> np.ndarray:
        return np.asarray(found[1]).reshape(-1, TOP_K)

    engines = []
    for degree in KANNOLO_DEGREES:
        start = time.perf_counter()
        index = SparsePlainHNSW.build_from_arrays(
            *documents, m=degree, ef_construction=KANNOLO_CONSTRUCTION, graph_type="permuted"
        )
        seconds = time.perf_counter() - start

        def run(threads: int, ef: int, early_exit: float | None, index: Any = index) -> Any:
            return index.batch_search(*queries, TOP_K, ef, early_exit, num_threads=threads)

        engines.append(
            Engine(
                run,
                ids,
                data.truth,
                figures(seconds, saved_bytes(index.save), len(data), f"m={degree}"),
                grid(ef=KANNOLO_LISTS, early_exit=KANNOLO_EXITS),
            )
        )
    return engines


def splade_index(data: Data, threads: int) -> list[Engine]:
    """splade-index's scorer, compiled by numba, which its class calls after encoding texts."""
    from splade_index.numba.retrieve_utils import _retrieve_numba_functional as retrieve

    start = time.perf_counter()
    columns = data.doc_csr.tocsc()
    index = {"data": columns.data, "indptr": columns.indptr, "indices": columns.indices}
    seconds = time.perf_counter() - start
    latents, values = zip(*data.query_rows(), strict=True)

    def run(threads: int) -> Any:
        scores = {**index, "num_docs": len(data)}
        return retrieve(latents, values, scores, TOP_K, return_as="doc_ids", n_threads=threads)

    return [Engine(run, np.asarray, data.truth, figures(seconds, csr_bytes(columns), len(data)))]


def pisa(data: Data, threads: int) -> list[Engine]:
    """PISA by pyterrier-pisa: exact sums of values rounded to hundredths, so approximate.

    It repeats a query's term as often as the weight says, so smaller weights are faster and
    coarser.
    """
    if "pyvsag" in sys.modules:
        raise Unable("crashes in a process that has imported pyvsag")
    try:
        import pandas as pd
        import pyterrier_pisa
    except ImportError as error:  # not in csrkern[bench]: it wants an old libtbb
        raise Unable(f"see benchmarks/README.md ({error})") from error

    folder = tempfile.TemporaryDirectory()
    path = f"{folder.name}/index"

    def tokens(latents: np.ndarray, values: np.ndarray) -> dict[str, float]:
        return dict(zip(map(str, latents.tolist()), values.tolist(), strict=True))

    csr = data.doc_csr
    rows = (slice(*bounds) for bounds in itertools.pairwise(csr.indptr))
    documents = (
        {"docno": str(number), "toks": tokens(csr.indices[row], csr.data[row])}
        for number, row in enumerate(rows)
    )
    with quiet_stdout():
        start = time.perf_counter()
        pyterrier_pisa.PisaToksIndexer(path, scale=PISA_SCALE).index(documents)
        seconds = time.perf_counter() - start
    asked = [tokens(*query) for query in data.query_rows()]
    queries = pd.DataFrame({"qid": [str(i) for i in range(len(asked))], "query_toks": asked})

    def ids(found: Any) -> np.ndarray:
        hits = np.full((len(asked), TOP_K), -1)
        hits[found["qid"].astype(int), found["rank"].astype(int)] = found["docno"].astype(int)
        return hits

    engines = []
    for encoding in PISA_ENCODINGS:
        index = pyterrier_pisa.PisaIndex(
            path, stemmer="none", index_encoding=encoding, stops="none"
        )
        settings = grid(algorithm=PISA_ALGORITHMS, query_scale=PISA_QUERY_SCALES)
        with quiet_stdout():
            start = time.perf_counter()
            searches = {
                tuple(setting.values()): index.quantized(
                    TOP_K, query_algorithm=setting["algorithm"], toks_scale=setting["query_scale"]
                )
                for setting in settings
            }
            more = time.perf_counter() - start

        def run(
            threads: int,
            algorithm: str,
            query_scale: int,
            searches: Any = searches,
            _folder: Any = folder,
        ) -> Any:
            search = searches[algorithm, query_scale]
            search.threads = threads
            return search(queries)

        kept = [*Path(path).glob(f"quantized*.{encoding}"), *Path(path).glob("quantized*.64")]
        total = sum(file.stat().st_size for file in (*kept, Path(f"{path}/fwd.termlex")))
        built = figures(seconds + more, total, len(data), f"encoding={encoding}")
        engines.append(Engine(run, ids, data.truth, built, settings))
    return engines


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
    "csrkern fast": ours_fast,
    "SINDI float32": at_most(3_000_000, sindi),
    "SINDI 8-bit": partial(sindi, form="8-bit"),
    "SINDI 8-bit, re-scored": partial(sindi, form="re-scored"),
    "SINDI pruned": partial(sindi, form="pruned"),
    "Seismic": at_most(1_000_000, seismic),
    "kANNolo": at_most(100_000, kannolo),
    "splade-index": at_most(1_000_000, splade_index),
    "PISA": at_most(1_000_000, pisa),
    "sparse_dot_topn": at_most(1_000_000, sparse_dot_topn),
    "SciPy": at_most(1_000_000, scipy_csr),
    "torch.sparse": at_most(100_000, torch_sparse),
    "Qdrant Edge": at_most(100_000, qdrant_edge),
}
