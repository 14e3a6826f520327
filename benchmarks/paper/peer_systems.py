"""Every peer's systems, at many settings; see `cases.py`."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from cases import PRODUCTS, STEPS, Build, Case, Search, System
from torch import Tensor

from csrkern import Projection
from csrtrain.training.matryoshka import train_matryoshka

BEHIND = ", behind our projection"
"""At the end of a peer's name: it learns from what our projection makes of the rows."""
CODEWORDS = 256
PROBES = (1, 2, 4, 8, 16, 32)
LEAVES = (2, 4, 8, 16)  # that ScaNN searches
EFFORTS = (16, 32, 64, 128, 256)


def faiss_dense(case: Case) -> Iterator[System]:
    """FAISS: scans of whole embeddings."""
    yield from _factory(case, "FAISS dense, float32", ["Flat"], "i")
    yield from _factory(case, "FAISS SQ8", ["SQ8"], "i")


def faiss_flat(case: Case) -> Iterator[System]:
    """FAISS: scans of PQ and OPQ codes of 4 bits and of principal directions in one byte."""
    d = case.d
    widths = [p for p in (16, 32, 64, 128) if p <= d]
    yield from _factory(case, "FAISS PCA + SQ8", [f"PCA{p},L2norm,SQ8" for p in widths], "i")
    pairs = sorted({divisor(d, 2 * m) for m in (16, 32, 64)})
    yield from _factory(case, "FAISS PQ fast scan", [f"PQ{m}x4fs" for m in pairs], "il")
    yield from _factory(case, "FAISS OPQ fast scan", [f"OPQ{m},PQ{m}x4fs" for m in pairs[:2]], "il")


def faiss_additive_fast(case: Case) -> Iterator[System]:
    """FAISS: RQ and LSQ of 4 bits with fast scan, flat and in lists."""
    if not case.quick:
        if not case.large:
            yield from _factory(case, "FAISS RQ fast scan", [f"RQ{m}x4fs" for m in (32, 64)], "i")
        specs = [f"RQ{m}x4fs_32_Nrq2x4" for m in (30, 62)]
        yield from _factory(case, "FAISS RQ fast scan", specs)
        specs = _in_lists(case, [f"RQ{m}x4fs_32_Nrq2x4" for m in (14, 46)])
        yield from _factory(case, "FAISS IVF-RQ fast scan", specs)
    if not case.large:
        spec = "LSQ8x4fs" if case.quick else "LSQ32x4fs"
        yield from _factory(case, "FAISS LSQ fast scan", [spec], "i")


def _in_lists(case: Case, stored: Sequence[str]) -> list[str]:
    return [f"IVF{lists},{spec}" for lists in case.lists for spec in stored]


def faiss_rabitq(case: Case) -> Iterator[System]:
    """FAISS: RaBitQ of 1, 2 and 4 bits on the principal directions that fit, flat and in lists."""
    for bits in (1, 2) if case.large else (1, 2, 4):
        overhead = 8 if bits == 1 else 20  # float factors of a code
        for n_bytes in (32, 64) if case.large else (16, 32, 64, 128):
            for lists in (0, *case.lists):
                room = n_bytes - overhead - (8 if lists else 0)  # of an id
                dims = min(case.d, 8 * room // bits // 8 * 8)
                if dims < 8:
                    continue
                inverted = f"IVF{lists}," if lists else ""
                method = f"FAISS {'IVF-' if lists else ''}RaBitQ fast scan"
                spec = f"PCAR{dims},{inverted}RaBitQfs{bits if bits > 1 else ''}"
                yield from _factory(case, method, [spec])


def faiss_lists(case: Case) -> Iterator[System]:
    """FAISS: PQ of 4 bits, and one-byte numbers, in inverted lists."""
    d = case.d
    pairs = sorted({divisor(d, 2 * (n - 8)) for n in (16, 32, 64, 128)})
    specs = _in_lists(case, [f"PQ{m}x4fsr" for m in pairs])
    yield from _factory(case, "FAISS IVF-PQ fast scan", specs)
    widths = [p for p in (24, 56, 120) if p <= d]
    specs = [f"PCA{p},L2norm,{spec}" for p in widths for spec in _in_lists(case, ["SQ8"])]
    yield from _factory(case, "FAISS PCA + IVF-SQ8", specs, "i")
    specs = _in_lists(case, [f"PQ{m}x4fs" for m in pairs])
    yield from _factory(case, "FAISS IVF-PQ fast scan, rows", specs)
    specs = [f"OPQ{m},{spec}" for m in pairs[:2] for spec in _in_lists(case, [f"PQ{m}x4fsr"])]
    yield from _factory(case, "FAISS OPQ + IVF-PQ fast scan", specs)


def faiss_pq(case: Case) -> Iterator[System]:
    """FAISS: PQ of 8 bits, which takes minutes to train, flat and in lists."""
    d = case.d
    yield from _factory(case, "FAISS PQ", [f"PQ{divisor(d, 16)}x8"], "il")
    yield from _factory(case, "FAISS IVF-PQ", _in_lists(case, [f"PQ{divisor(d, 8)}x8"]))


def faiss_graphs(case: Case) -> Iterator[System]:
    """FAISS: HNSW over one-byte numbers, of all dimensions and of principal directions."""
    d = case.d
    links, widths = ((16,), (64,)) if case.large else ((8, 16), (32, 64))
    specs = [f"HNSW{m},SQ8" for m in links]
    specs += [f"PCA{p},L2norm,HNSW{m // 2},SQ8" for p in widths if p <= d for m in links]
    yield from _factory(case, "FAISS HNSW + SQ8", specs, "i")


def faiss_residual(case: Case) -> Iterator[System]:
    """FAISS: scans of RQ of 8 bits."""
    for books in (7,) if case.quick else (3, 7, 15) if case.large else (15, 31):
        yield _additive(case, case.codebooks(1)[:, :books])


def faiss_residual_principal(case: Case) -> Iterator[System]:
    """FAISS: scans of RQ of 8 bits of principal directions."""
    for setting, turn, own in case.behind_principal():
        for system in _behind(turn, faiss_residual(own)):
            yield system._replace(method="FAISS PCA + RQ", setting=f"{setting}, {system.setting}")


def faiss_principal_lists(case: Case) -> Iterator[System]:
    """FAISS: PQ of 4 bits of principal directions, in lists."""
    for setting, turn, own in case.behind_principal():
        halves = [m for m in (16, 40, 48) if own.d % m == 0]
        specs = [f"OPQ{m},{spec}" for m in halves for spec in _in_lists(case, [f"PQ{m}x4fsr"])]
        for system in _behind(turn, _factory(own, "FAISS PCA + OPQ + IVF-PQ fast scan", specs)):
            yield system._replace(setting=f"{setting}, {system.setting}")


def faiss_residual_lists(case: Case) -> Iterator[System]:
    """FAISS: RQ of 8 bits in lists (of rows, not of residuals)."""
    for books in (7,) if case.quick else (7, 15) if case.large else (7, 23):
        for lists in case.lists:
            yield _additive(case, case.codebooks(1)[:, :books], lists)


def faiss_products(case: Case) -> Iterator[System]:
    """FAISS: RQ of 8 bits for each of four parts of the dimensions."""
    for books in (2,) if case.quick else (7,) if case.large else (7, 15):
        yield _additive(case, case.codebooks(PRODUCTS)[:, :books])


def _additive(case: Case, words: Tensor, lists: int = 0) -> System:
    """Scored by distances, with a byte for the norm: inner products alone rank less well."""
    import faiss

    parts, books = words.shape[:2]
    shape = books, CODEWORDS.bit_length() - 1
    form = faiss.METRIC_L2, faiss.AdditiveQuantizer.ST_norm_qint8
    mean = case.sample.mean(0).numpy()
    rows = case.sample.numpy() - mean
    if parts == 1:
        flat = faiss.IndexResidualQuantizer(case.d, *shape, *form)
        quantizer, own = flat.rq, [flat.rq]
    else:
        flat = faiss.IndexProductResidualQuantizer(case.d, parts, *shape, *form)
        quantizer = flat.prq
        own = [faiss.downcast_AdditiveQuantizer(quantizer.subquantizer(p)) for p in range(parts)]
        faiss.copy_array_to_vector(words.numpy().ravel(), quantizer.codebooks)
        quantizer.is_trained = True
    for part, codebooks in zip(own, words.numpy(), strict=True):
        faiss.copy_array_to_vector(codebooks.ravel(), part.codebooks)
        part.max_beam_size, part.is_trained = 5, True
    rebuilt = quantizer.decode(quantizer.compute_codes(rows))
    squares = np.ascontiguousarray((rebuilt**2).sum(1))
    quantizer.train_norm(len(squares), faiss.swig_ptr(squares))
    flat.is_trained = True
    kind = "RQ" if parts == 1 else "PRQ"
    setting = f"{kind}{parts}x{books}"
    if not lists:
        return _centered_system(case, f"FAISS {kind}", setting, flat, mean)
    coarse = faiss.IndexFlatL2(case.d)
    index = faiss.IndexIVFResidualQuantizer(coarse, case.d, lists, *shape, *form)
    index.by_residual = False
    centroids = faiss.Kmeans(case.d, lists, seed=1234 + case.seed)
    with quiet():
        centroids.train(case.rows(lists).numpy() - mean)
    coarse.add(centroids.centroids)
    index.rq = flat.rq
    index.is_trained = True
    return _centered_system(case, "FAISS IVF-RQ", f"IVF{lists},{setting}", index, mean)


def _centered_system(case: Case, method: str, setting: str, index: Any, mean: np.ndarray) -> System:
    import faiss

    empty = len(faiss.serialize_index(index))
    index.add(case.database - mean)
    probes = (PROBES[:4] if case.large else PROBES) if "IVF" in setting else (0,)
    return System(
        method,
        setting,
        _grown(index, index if "IVF" in setting else None, empty),
        empty,
        {
            f"nprobe {n}" if n else "": partial(_centered, index, mean, case.depth, n)
            for n in probes
        },
    )


def _centered(
    index: Any, mean: np.ndarray, depth: int, nprobe: int, queries: np.ndarray
) -> np.ndarray:
    if nprobe:
        index.nprobe = nprobe
    return index.search(queries - mean, depth)[1]


def _factory(case: Case, method: str, specs: Sequence[str], metrics: str = "l") -> Iterator[System]:
    """Indexes of FAISS's factory, by inner product ("i"), distance ("l") or both.

    Both are of one training. Rows are at norm 1, so that distances rank as cosines do.
    """
    import faiss

    kinds = {"i": faiss.METRIC_INNER_PRODUCT, "l": faiss.METRIC_L2}
    for spec in specs:
        index = faiss.index_factory(case.d, spec, kinds[metrics[-1]])
        inverted = faiss.try_extract_index_ivf(index) if "IVF" in spec else None
        if "OPQ" in spec:
            rotation = faiss.downcast_VectorTransform(index.chain.at(0))
            quantizer = faiss.ProductQuantizer(case.d, rotation.M, 4)
            rotation.niter, rotation.pq = 10, quantizer
        with quiet():
            index.train(case.rows(inverted.nlist if inverted is not None else 0).numpy())
        empty = len(faiss.serialize_index(index))
        index.add(case.database)
        name, settings = "", [0]
        if inverted is not None:
            name, settings = "nprobe", [n for n in PROBES if n <= inverted.nlist]
        elif "HNSW" in spec:
            name, settings = "efSearch", [*EFFORTS]
        for metric in metrics:
            own = faiss.deserialize_index(faiss.serialize_index(index))
            own.metric_type = kinds[metric]
            if "," in spec and len(metrics) > 1:
                faiss.downcast_index(own.index).metric_type = kinds[metric]
            yield System(
                method,
                f"{spec} {'ip' if metric == 'i' else 'l2'}",
                _grown(index, inverted, empty),
                empty,
                {
                    f"{name} {n}" if name else "": partial(
                        _by_faiss, own, case.depth, {name: n} if name else {}
                    )
                    for n in settings
                },
            )


def _grown(index: Any, inverted: Any, empty: int) -> float:
    """Bytes that each document adds to the file of `index`, which took `empty` bytes before."""
    import faiss

    # The length of each list, which the file of an empty index leaves out.
    lengths = 8 * inverted.nlist if inverted is not None else 0
    return (len(faiss.serialize_index(index)) - empty - lengths) / index.ntotal


def _by_faiss(index: Any, depth: int, settings: dict[str, int], queries: np.ndarray) -> np.ndarray:
    import faiss

    for name, value in settings.items():
        faiss.ParameterSpace().set_index_parameter(index, name, value)
    return index.search(queries, depth)[1]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """FAISS warns of every codebook with fewer than 39 rows a word: its output goes nowhere."""
    kept, nowhere = [os.dup(1), os.dup(2)], os.open(os.devnull, os.O_WRONLY)
    try:
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        yield
    finally:
        for stream, own in zip((1, 2), kept, strict=True):
            os.dup2(own, stream)
            os.close(own)
        os.close(nowhere)


def faiss_projected(case: Case) -> Iterator[System]:
    """FAISS: its strongest behind our projection."""
    yield from _projected(case, faiss_residual)
    yield from _projected(case, _projected_scans)


def _projected(case: Case, build: Build) -> Iterator[System]:
    own = case.behind_projection()
    if own is not None and case.projection is not None:
        for system in _behind(case.projection, build(own)):
            yield system._replace(method=system.method + BEHIND)


def _behind(turn: Projection, systems: Iterator[System]) -> Iterator[System]:
    """Put a projection before searches; what it takes is shared."""
    for system in systems:
        yield system._replace(
            shared=system.shared + turn.directions.nbytes + turn.center.nbytes,
            searches={
                setting: partial(_search_behind, turn, search)
                for setting, search in system.searches.items()
            },
        )


def _projected_scans(case: Case) -> Iterator[System]:
    """The first two say how well the projected rows themselves score."""
    yield from _factory(case, "FAISS dense, float32", ["Flat"], "i")
    yield from _factory(case, "FAISS SQ8", ["SQ8"], "i")
    halves = [m for m in (8, 16, 24, 32) if case.d % m == 0]
    if case.quick:
        halves = halves[:1]
    else:
        specs = [f"RQ{m}x4fs_32_Nrq2x4" for m in (6, 14, 30)]
        yield from _factory(case, "FAISS RQ fast scan", specs)
    yield from _factory(case, "FAISS PQ fast scan", [f"PQ{m}x4fs" for m in halves], "il")
    specs = _in_lists(case, [f"PQ{m}x4fs" for m in halves])
    yield from _factory(case, "FAISS IVF-PQ fast scan, rows", specs)
    specs = [f"OPQ{m},{spec}" for m in halves for spec in _in_lists(case, [f"PQ{m}x4fsr"])]
    yield from _factory(case, "FAISS OPQ + IVF-PQ fast scan", specs)
    yield from _factory(case, "FAISS IVF-SQ8", _in_lists(case, ["SQ8"]), "i")
    yield from _factory(case, "FAISS HNSW + SQ8", ["HNSW16,SQ8"], "i")


def _search_behind(projection: Projection, search: Search, queries: np.ndarray) -> np.ndarray:
    return search(projection(queries, num_threads=1))


def matryoshka(case: Case) -> Iterator[System]:
    """First dimensions in one byte each, of embeddings and of a Matryoshka-Adaptor; FAISS scans."""
    import faiss

    steps = 100 if case.quick else STEPS
    adapter = train_matryoshka(case.fitted, [16, 32, 64, 128], steps=steps, seed=case.seed)
    for method, mapped in (
        ("first dims, int8", lambda rows: rows),
        ("Matryoshka-Adaptor, int8", lambda rows: adapter(torch.from_numpy(rows)).numpy()),
    ):
        for width in (16, 32, 64, 128):
            if width > case.d:
                continue
            cut = partial(_first, mapped, width)
            index = faiss.IndexScalarQuantizer(
                width, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
            )
            index.train(cut(case.sample.numpy()))
            index.add(cut(case.database))
            own = sum(p.numel() for p in adapter.parameters()) * 4 if "Ad" in method else 0
            yield System(
                method,
                f"{width} dims",
                index.sa_code_size(),
                own,
                {"": partial(_mapped, index, cut, case.depth)},
            )


@torch.no_grad()
def _first(mapped: Callable[[np.ndarray], np.ndarray], width: int, rows: np.ndarray) -> np.ndarray:
    first = mapped(rows)[:, :width]
    norms = np.linalg.norm(first, axis=1, keepdims=True)
    return np.ascontiguousarray(first / np.maximum(norms, 1e-30))


def _mapped(
    index: Any, mapped: Callable[[np.ndarray], np.ndarray], depth: int, queries: np.ndarray
) -> np.ndarray:
    return index.search(mapped(queries), depth)[1]


def usearch(case: Case) -> Iterator[System]:
    """usearch: graphs over one-byte numbers, and over signs, re-scored by one-byte rows."""
    from usearch.index import Index, MetricKind, ScalarKind

    n = len(case.database)
    keys = np.arange(n)
    pca = _principal(case)
    for width in sorted({case.d, min(case.d, 64)}):
        turn = partial(_turned, pca, width) if width < case.d else np.asarray
        for connectivity in (16,) if case.large else (4, 8, 16):
            index = Index(
                ndim=width, metric=MetricKind.Cos, dtype=ScalarKind.I8, connectivity=connectivity
            )
            index.add(keys, turn(case.database), threads=1)
            yield System(
                "usearch i8",
                f"{width} dims, connectivity {connectivity}",
                index.serialized_length / n,
                0 if width == case.d else 4 * case.d * width,
                {
                    f"ef {ef}": partial(_by_usearch, index, turn, case.depth, ef)
                    for ef in EFFORTS[:4]
                },
            )
    mean = case.sample.numpy().mean(0)
    scale = 127 / np.abs(case.database).max()
    rows = np.rint(case.database * scale).astype(np.int8)
    signs = partial(_signs, mean)
    for connectivity in (16,) if case.large else (8, 16):
        index = Index(
            ndim=case.d, metric=MetricKind.Hamming, dtype=ScalarKind.B1, connectivity=connectivity
        )
        index.add(keys, signs(case.database), threads=1)
        yield System(
            "usearch b1, re-scored",
            f"connectivity {connectivity}",
            (index.serialized_length + rows.nbytes) / n,
            0,
            {
                f"ef {ef}": partial(_rescored_signs, index, signs, rows, case.depth, ef)
                for ef in EFFORTS[1:]
            },
        )


def _by_usearch(
    index: Any,
    turn: Callable[[np.ndarray], np.ndarray],
    depth: int,
    ef: int,
    queries: np.ndarray,
) -> np.ndarray:
    index.expansion_search = ef
    found = index.search(turn(queries), depth, threads=1).keys
    return np.asarray(found).astype(np.int64).reshape(len(queries), -1)


def _rescored_signs(
    index: Any,
    signs: Callable[[np.ndarray], np.ndarray],
    rows: np.ndarray,
    depth: int,
    ef: int,
    queries: np.ndarray,
) -> np.ndarray:
    index.expansion_search = ef
    found = np.asarray(index.search(signs(queries), ef, threads=1).keys).astype(np.int64)
    found = found.reshape(len(queries), -1)
    ids = np.empty((len(queries), depth), np.int64)
    for i, (query, near) in enumerate(zip(queries, found, strict=True)):
        order = np.argsort(-(rows[near].astype(np.float32) @ query))[:depth]
        ids[i] = near[order]
    return ids


def _signs(mean: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.packbits(rows > mean, axis=1)


def _principal(case: Case) -> tuple[np.ndarray, np.ndarray]:
    mean = case.sample.numpy().mean(0)
    _, axes = np.linalg.eigh(np.cov((case.sample.numpy() - mean).T))
    return mean, np.ascontiguousarray(axes[:, ::-1].astype(np.float32))


def _turned(pca: tuple[np.ndarray, np.ndarray], width: int, rows: np.ndarray) -> np.ndarray:
    mean, axes = pca
    turned = (rows - mean) @ axes[:, :width]
    norms = np.linalg.norm(turned, axis=1, keepdims=True)
    return np.ascontiguousarray(turned / np.maximum(norms, 1e-30))


def scann(case: Case) -> Iterator[System]:
    """ScaNN: anisotropic codes of 4 bits; it learns from the database that it stores.

    In memory 4 bits a block; with leaves an id of 4 bytes; where rows are re-scored, their bytes.
    """
    from scann import ScannBuilder, scann_ops_pybind

    n, d = case.database.shape
    blocks = (12, 6, 3, 2)
    if case.large:
        blocks = (6, 3) if d > 128 else (4, 2) if d > 32 else (2, 1)
    for block in blocks:
        for leaves in case.lists if case.large else (0, *case.lists):
            for again in (0, 50):
                builder: ScannBuilder = scann_ops_pybind.builder(
                    case.database, case.depth, "dot_product"
                )
                if leaves:
                    builder = builder.tree(leaves, 8, training_sample_size=n)
                builder = builder.score_ah(block, anisotropic_quantization_threshold=0.2)
                if again:
                    builder = builder.reorder(again, quantize=True)
                with quiet():
                    searcher = builder.set_n_training_threads(1).build()
                codes = math.ceil(math.ceil(d / block) / 2)
                size = codes + (4 if leaves else 0) + (d if again else 0)
                tries = LEAVES if leaves else (0,)
                yield System(
                    "ScaNN" + (", re-scored int8" if again else ""),
                    f"{block} dims a block" + (f", {leaves} leaves" if leaves else ""),
                    size,
                    d * 16 * 4 + leaves * d * 4,
                    {
                        f"{probes} leaves" if probes else "": partial(
                            _by_scann, searcher, probes, case.depth
                        )
                        for probes in tries
                    },
                )


def scann_principal(case: Case) -> Iterator[System]:
    """ScaNN of principal directions."""
    for setting, turn, own in case.behind_principal():
        for system in _behind(turn, scann(own)):
            method = system.method.replace("ScaNN", "PCA + ScaNN")
            yield system._replace(method=method, setting=f"{setting}, {system.setting}")


def scann_projected(case: Case) -> Iterator[System]:
    """ScaNN behind our projection."""
    yield from _projected(case, scann)


def _by_scann(searcher: Any, probes: int, depth: int, queries: np.ndarray) -> np.ndarray:
    options = {"leaves_to_search": probes} if probes else {}
    if len(queries) == 1:
        return np.asarray(searcher.search(queries[0], depth, **options)[0])[None].astype(np.int64)
    return np.asarray(searcher.search_batched(queries, depth, **options)[0]).astype(np.int64)


def divisor(d: int, most: int) -> int:
    """The largest divisor of d up to `most`."""
    return max(parts for parts in range(1, most + 1) if d % parts == 0)
