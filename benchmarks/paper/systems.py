"""Search systems as `compare.py` measures them: ours, and every peer at many settings.

A system is what is stored of a database, with one or more searches of it. All learn from the same
rows, all rows are at norm 1.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import recipes
import sets
import torch
from torch import Tensor

from csrkern import FineQuantizer, InvertedIndex, Projection, Refine, Rerank, SparseCodes
from csrkern.nn import SparseAutoencoder
from csrtrain import learn_projection, refit, train
from csrtrain.training.matryoshka import train_matryoshka
from csrtrain.training.quantizer import ROWS, fitted_quantizer, residual_codebooks

Search = Callable[[np.ndarray], np.ndarray]
"""Embeddings of queries [n, d] to ids [n, depth]; -1: none found."""

OURS = (
    *("CSR codes", "CSR codes, dense queries", "CSR + fine codes"),
    *("fine codes alone", "fine codes alone, learned projection"),
)
BEHIND = ", behind our projection"
"""At the end of a peer's name: it learns from what our projection makes of the rows."""
STEPS = 400
HIDDEN = (4096, 1024)
# Bytes of a fine code, and the numbers of latents that fill 16, 32 and 64 bytes with it.
FINE = {8: (2,), 11: (1, 2), 17: (4,), 33: (2, 4, 8)}
PRODUCTS = 4  # parts of the dimensions for fine codes of more bytes
# Bytes of a fine code that is searched alone, and the parts of the dimensions to try.
ALONE = {4: (1,), 6: (1,), 8: (1,), 12: (1,), 16: (1, 3), 32: (1,)}
FINE_PRODUCTS = {45: (4,), 57: (1,), 65: (8, 16)}
MOST = 32, 16  # codebooks of one part, and of each of several
CODEWORDS = 256
LISTS = 64  # of an inverted file
PROBES = (1, 2, 4, 8, 16, 32)
EFFORTS = (16, 32, 64, 128, 256)


class System(NamedTuple):
    """A way to store the database, and ways to search it.

    Attributes:
        method: its name.
        setting: what it was built with.
        n_bytes: of a document: all that is stored to search and grows with the documents.
        shared: bytes of what does not: codebooks, rotations, centroids, a model.
        searches: by setting.
    """

    method: str
    setting: str
    n_bytes: float
    shared: int
    searches: dict[str, Search]


@dataclass(frozen=True)
class Case:
    """A set at norm 1, and what is trained once for several systems.

    Attributes:
        data: the set.
        seed: of all trainings.
        folder: keeps trainings, so that a run that was stopped need not repeat them.
        quick: train less.
    """

    data: sets.Set
    seed: int
    folder: Path
    quick: bool

    @cached_property
    def sample(self) -> Tensor:
        """Rows that codebooks are learned from."""
        step = max(1, len(self.fitted) // ROWS)
        return self.fitted[::step][:ROWS]

    @cached_property
    def fitted(self) -> Tensor:
        """Rows that all systems but ScaNN learn from; models learn from queries too."""
        return unit(self.data.train if self.data.alike is None else self.data.alike)

    @cached_property
    def database(self) -> np.ndarray:
        """The rows that queries search, at norm 1."""
        return unit(self.data.task.database).numpy()

    @cached_property
    def projection(self) -> Projection | None:
        """What is learned from the labels or pairs that models may be trained with."""
        path = self._kept("projection").with_suffix(".npz")
        if not path.exists():
            learned = self._learn_projection()
            held = ("directions", "center") if learned is not None else ()
            np.savez(path, **{name: getattr(learned, name) for name in held})
        with np.load(path) as file:
            return Projection(file["directions"], file["center"]) if file.files else None

    def _learn_projection(self) -> Projection | None:
        data = self.data
        if data.labels is not None:
            return learn_projection(data.train, data.labels, seed=self.seed, progress=False)
        if data.asked is None or data.pairs is None:
            return None
        partners = None if data.partners is data.asked else data.partners
        return learn_projection(
            data.asked, partners=partners, pairs=data.pairs, seed=self.seed, progress=False
        )

    def behind_projection(self) -> Case | None:
        """The same of what the projection makes of all rows; None without one."""
        if self.projection is None:
            return None
        turn = self.projection

        def turned(rows: Tensor) -> Tensor:
            return torch.from_numpy(turn(rows.numpy()))

        data, task = self.data, self.data.task
        task = dataclasses.replace(
            task, database=turned(task.database), queries=turned(task.queries)
        )
        own = dataclasses.replace(
            data,
            name=f"{data.name}-projected",
            train=turned(data.train),
            task=task,
            alike=None if data.alike is None else turned(data.alike),
        )
        return dataclasses.replace(self, data=own)

    @property
    def depth(self) -> int:
        """Results of a query."""
        return self.data.task.depth

    @property
    def d(self) -> int:
        """Width of an embedding."""
        return self.database.shape[1]

    @property
    def hidden(self) -> tuple[int, ...]:
        """Numbers of latents to try."""
        return HIDDEN[-1:] if self.quick else HIDDEN

    def model(self, hidden_dim: int) -> SparseAutoencoder:
        """The default recipe with this number of latents."""
        path = self._kept(f"h{hidden_dim}")
        if not path.exists():
            config = recipes.recommended(
                32, hidden_dim=hidden_dim, steps=100 if self.quick else STEPS, seed=self.seed
            )
            train(unit(self.data.train), config=config, progress=False).save_pretrained(path)
        return SparseAutoencoder.from_pretrained(path)

    def codebooks(self, parts: int) -> Tensor:
        """Residual codebooks of the sample about its mean, [parts, books, 256, d / parts]."""
        books = 8 if self.quick else MOST[parts > 1] if parts in (1, PRODUCTS) else 5
        path = self._kept(f"rq{parts}x{books}").with_suffix(".npy")
        if not path.exists():
            centered = self.sample - self.sample.mean(0)
            np.save(path, residual_codebooks(centered, parts, books, self.seed).numpy())
        return torch.from_numpy(np.load(path))

    def _kept(self, name: str) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{self.data.name}-{name}-seed{self.seed}"


Build = Callable[[Case], Iterator[System]]


def unit(rows: Tensor) -> Tensor:
    """Rows at norm 1."""
    return torch.nn.functional.normalize(rows.double(), dim=1, eps=1e-300).float()


# Ours


def one_stage(case: Case) -> Iterator[System]:
    """Ours: lists alone, for two numbers of latents; queries are encoded in the search."""
    for hidden_dim in case.hidden:
        model = case.model(hidden_dim)
        shared = _size(model)
        codes = model.encode(case.database)
        for k in (2, 8, 32) if case.quick else (2, 4, 8, 16, 32):
            setting = f"h={hidden_dim} k={k}"
            yield from _lists(case, model, codes.truncate(k), setting, shared)


def two_stages(case: Case) -> Iterator[System]:
    """Ours: lists that choose, and fine codes of up to 33 bytes that score."""
    books = case.codebooks(1)
    for n_bytes, ks in {8: (1, 2)}.items() if case.quick else FINE.items():
        quantizer = fitted_quantizer(books[:, : n_bytes - 1], case.sample)
        yield from _two_stages(case, quantizer, ks)


def fine_alone(case: Case) -> Iterator[System]:
    """Ours: fine codes alone, of embeddings as they are."""
    yield from _fine_alone(case, OURS[3], None)


def fine_alone_projected(case: Case) -> Iterator[System]:
    """Ours: fine codes alone, of what a projection makes that labels or pairs have taught."""
    if case.projection is not None:
        yield from _fine_alone(case, OURS[4], case.projection)


def _fine_alone(case: Case, method: str, projection: Projection | None) -> Iterator[System]:
    own = case if projection is None else case.behind_projection()
    assert own is not None
    for n_bytes, parts in {8: (1,)}.items() if case.quick else ALONE.items():
        for part in parts:
            if own.d % part:
                continue
            each = (n_bytes - 1) // part
            books = own.codebooks(part)[:, :each]
            quantizer = fitted_quantizer(books, own.sample, projection=projection)
            fine = quantizer.encode(case.database)
            index = InvertedIndex.build(None, fine=fine)
            search = partial(_by_fine_codes, index, case.depth)
            yield System(
                method,
                f"{quantizer.n_bytes} bytes" + (f", {part} parts" if part > 1 else ""),
                index.stats()["bytes_per_code"],
                sum(array.nbytes for array in quantizer.arrays.values()),
                {"": search},
            )


def _by_fine_codes(index: InvertedIndex, depth: int, queries: np.ndarray) -> np.ndarray:
    return index.search_fine(queries, depth, num_threads=1)[1]


def two_stages_of_products(case: Case) -> Iterator[System]:
    """Ours: the same with fine codes of more bytes, which share the dimensions among four parts."""
    books = case.codebooks(PRODUCTS)
    for n_bytes, ks in {9: (2,)}.items() if case.quick else FINE_PRODUCTS.items():
        each = (n_bytes - 1) // PRODUCTS
        yield from _two_stages(case, fitted_quantizer(books[:, :each], case.sample), ks)


def _two_stages(case: Case, quantizer: FineQuantizer, ks: Sequence[int]) -> Iterator[System]:
    fine = quantizer.encode(case.database)
    beside = sum(array.nbytes for array in quantizer.arrays.values())
    for hidden_dim in case.hidden:
        model = case.model(hidden_dim)
        codes = model.encode(case.database, max(ks))
        for k in ks:
            index = InvertedIndex.build(codes.truncate(k), dtype="uint8", fine=fine)
            yield System(
                OURS[2],
                f"h={hidden_dim} k={k} + {quantizer.n_bytes} bytes",
                index.stats()["bytes_per_code"],
                _size(model) + beside,
                {
                    f"queries of {latents}, shortlist {shortlist}": partial(
                        _refined, case, model, index, latents, shortlist
                    )
                    for latents, shortlist in ((32, 200), (128, 1000))
                },
            )


def _lists(
    case: Case, model: SparseAutoencoder, codes: Any, setting: str, shared: int
) -> Iterator[System]:
    for form, dtype, power, ks in (
        ("", "uint8", 1.0, (8, 32)),
        (" roots", "uint8", 0.5, (32,)),
        (" float16", "float16", 1.0, (32,)),
    ):
        index = InvertedIndex.build(codes.power(power), dtype=dtype)
        yield System(
            OURS[0],
            setting + form,
            index.stats()["bytes_per_code"],
            shared,
            {f"queries of {k}": partial(_by_codes, case, model, index, power, k) for k in ks},
        )
    fitted = refit(model, torch.from_numpy(case.database), codes)
    norms = model.norms(fitted)
    # Values over the norm of what they reconstruct: the lists alone give cosines.
    scaled = SparseCodes(fitted.values / norms[:, None], fitted.indices, codes.dim)
    index = InvertedIndex.build(scaled, metric="ip", dtype="uint8")
    yield System(
        OURS[1],
        f"{setting} lists",
        index.stats()["bytes_per_code"],
        shared,
        {"256 latents of queries": partial(_by_lists, case, model, index, 256)},
    )
    index = InvertedIndex.build(fitted, metric="ip", dtype="uint8", norms=norms.numpy())
    stats = index.stats()
    yield System(
        OURS[1],
        f"{setting} re-scored",
        stats["bytes_per_code"] + stats["forward_bytes"] / len(index),
        shared,
        {"shortlist 100": partial(_rescored, case, model, index, 100)},
    )


def _size(model: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def _encoded(model: SparseAutoencoder, queries: np.ndarray, k: int, power: float) -> Any:
    with torch.no_grad():
        codes = model.encode(torch.from_numpy(queries), min(k, model.hidden_dim))
        return codes if power == 1.0 else codes.power(power)


def _by_codes(
    case: Case, model: SparseAutoencoder, index: Any, power: float, k: int, queries: np.ndarray
) -> np.ndarray:
    return index.search(_encoded(model, queries, k, power), case.depth, num_threads=1)[1]


def _refined(
    case: Case,
    model: SparseAutoencoder,
    index: Any,
    latents: int,
    shortlist: int,
    queries: np.ndarray,
) -> np.ndarray:
    codes = _encoded(model, queries, latents, 1.0)
    again = Refine(queries, shortlist)
    return index.search(codes, case.depth, rerank=again, num_threads=1)[1]


def _by_lists(
    case: Case, model: SparseAutoencoder, index: Any, latents: int, queries: np.ndarray
) -> np.ndarray:
    with torch.no_grad():
        dense = torch.from_numpy(queries) @ model.dictionary.T
        values, indices = dense.clamp(min=0).topk(min(latents, model.hidden_dim), 1)
    pair = values.numpy(), indices.int().numpy()
    return index.search(pair, case.depth, num_threads=1)[1]


def _rescored(
    case: Case, model: SparseAutoencoder, index: Any, shortlist: int, queries: np.ndarray
) -> np.ndarray:
    codes = _encoded(model, queries, model.k, 1.0)
    with torch.no_grad():
        again: Rerank = model.rerank(torch.from_numpy(queries), shortlist)
    return index.search(codes, case.depth, rerank=again, num_threads=1)[1]


# FAISS


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
        yield from _factory(case, "FAISS RQ fast scan", [f"RQ{m}x4fs" for m in (32, 64)], "i")
        specs = [f"RQ{m}x4fs_32_Nrq2x4" for m in (30, 62)]
        yield from _factory(case, "FAISS RQ fast scan", specs)
        specs = [f"IVF{LISTS},RQ{m}x4fs_32_Nrq2x4" for m in (14, 46)]
        yield from _factory(case, "FAISS IVF-RQ fast scan", specs)
    spec = "LSQ8x4fs" if case.quick else "LSQ32x4fs"
    yield from _factory(case, "FAISS LSQ fast scan", [spec], "i")


def faiss_rabitq(case: Case) -> Iterator[System]:
    """FAISS: RaBitQ of 1, 2 and 4 bits on the principal directions that fit, flat and in lists."""
    for bits in (1, 2, 4):
        overhead = 8 if bits == 1 else 20  # float factors of a code
        for n_bytes in (16, 32, 64, 128):
            for lists in (0, LISTS):
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
    specs = [f"IVF{LISTS},PQ{m}x4fsr" for m in pairs]
    yield from _factory(case, "FAISS IVF-PQ fast scan", specs)
    specs = [f"PCA{p},L2norm,IVF{LISTS},SQ8" for p in (24, 56, 120) if p <= d]
    yield from _factory(case, "FAISS PCA + IVF-SQ8", specs, "i")
    specs = [f"IVF{LISTS},PQ{m}x4fs" for m in pairs]
    yield from _factory(case, "FAISS IVF-PQ fast scan, rows", specs)
    specs = [f"OPQ{m},IVF{LISTS},PQ{m}x4fsr" for m in pairs[:2]]
    yield from _factory(case, "FAISS OPQ + IVF-PQ fast scan", specs)


def faiss_pq(case: Case) -> Iterator[System]:
    """FAISS: PQ of 8 bits, which takes minutes to train, flat and in lists."""
    d = case.d
    yield from _factory(case, "FAISS PQ", [f"PQ{divisor(d, 16)}x8"], "il")
    yield from _factory(case, "FAISS IVF-PQ", [f"IVF{LISTS},PQ{divisor(d, 8)}x8"])


def faiss_graphs(case: Case) -> Iterator[System]:
    """FAISS: HNSW over one-byte numbers, of all dimensions and of principal directions."""
    d = case.d
    specs = [f"HNSW{m},SQ8" for m in (8, 16)]
    specs += [f"PCA{p},L2norm,HNSW{m},SQ8" for p in (32, 64) if p <= d for m in (4, 8)]
    yield from _factory(case, "FAISS HNSW + SQ8", specs, "i")


def faiss_residual(case: Case) -> Iterator[System]:
    """FAISS: scans of RQ of 8 bits."""
    for books in (7,) if case.quick else (15, 31):
        yield _additive(case, case.codebooks(1)[:, :books], lists=False)


def faiss_residual_lists(case: Case) -> Iterator[System]:
    """FAISS: RQ of 8 bits in lists (of rows, not of residuals)."""
    for books in (7,) if case.quick else (7, 23):
        yield _additive(case, case.codebooks(1)[:, :books], lists=True)


def faiss_products(case: Case) -> Iterator[System]:
    """FAISS: RQ of 8 bits for each of four parts of the dimensions."""
    for books in (2,) if case.quick else (7, 15):
        yield _additive(case, case.codebooks(PRODUCTS)[:, :books], lists=False)


def _additive(case: Case, words: Tensor, lists: bool) -> System:
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
    index = faiss.IndexIVFResidualQuantizer(coarse, case.d, LISTS, *shape, *form)
    index.by_residual = False
    centroids = faiss.Kmeans(case.d, LISTS, seed=1234 + case.seed)
    with quiet():
        centroids.train(rows)
    coarse.add(centroids.centroids)
    index.rq = flat.rq
    index.is_trained = True
    return _centered_system(case, "FAISS IVF-RQ", f"IVF{LISTS},{setting}", index, mean)


def _centered_system(case: Case, method: str, setting: str, index: Any, mean: np.ndarray) -> System:
    import faiss

    empty = len(faiss.serialize_index(index))
    index.add(case.database - mean)
    probes = [n for n in PROBES if n <= index.nlist] if "IVF" in setting else [0]
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
            index.train(case.sample.numpy())
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
    if own is None:
        return
    assert case.projection is not None
    for system in build(own):
        yield system._replace(
            method=system.method + BEHIND,
            shared=system.shared + 4 * case.d * (own.d + 1),
            searches={
                setting: partial(_behind, case.projection, search)
                for setting, search in system.searches.items()
            },
        )


def _projected_scans(case: Case) -> Iterator[System]:
    halves = [m for m in (16, 24, 32) if case.d % m == 0]
    if case.quick:
        halves = halves[:1]
    yield from _factory(case, "FAISS PQ fast scan", [f"PQ{m}x4fs" for m in halves], "il")
    specs = [f"IVF{LISTS},PQ{m}x4fs" for m in halves]
    yield from _factory(case, "FAISS IVF-PQ fast scan, rows", specs)


def _behind(projection: Projection, search: Search, queries: np.ndarray) -> np.ndarray:
    return search(projection(queries, num_threads=1))


# Others


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
        for connectivity in (4, 8, 16):
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
    for connectivity in (8, 16):
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
    for block in (12, 6, 3, 2):
        for leaves in (0, 64):
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
                tries = (2, 4, 8, 16) if leaves else (0,)
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


FAMILIES: dict[str, tuple[Build, str]] = {
    "dense": (faiss_dense, "faiss"),
    "lists": (one_stage, "csrkern"),
    "fine": (two_stages, "faiss"),
    "alone": (fine_alone, "faiss"),
    "alone-projected": (fine_alone_projected, "faiss"),
    "residual": (faiss_residual, "faiss"),
    "projected": (faiss_projected, "faiss"),
    "residual-lists": (faiss_residual_lists, "faiss"),
    "flat": (faiss_flat, "faiss"),
    "scann": (scann, "scann"),
    "scann-projected": (scann_projected, "scann"),
    "rabitq": (faiss_rabitq, "faiss"),
    "inverted": (faiss_lists, "faiss"),
    "graphs": (faiss_graphs, "faiss"),
    "usearch": (usearch, "usearch"),
    "matryoshka": (matryoshka, "faiss"),
    "fast": (faiss_additive_fast, "faiss"),
    "pq": (faiss_pq, "faiss"),
    "fine-products": (two_stages_of_products, "faiss"),
    "products": (faiss_products, "faiss"),
}
"""Systems that are measured together, and the package that they need."""


def missing() -> dict[str, str]:
    """Families whose package is not installed, with a sentence each."""
    return {
        name: f"{name}: not measured, for {package} is not installed"
        for name, (_, package) in FAMILIES.items()
        if find_spec(package) is None
    }
