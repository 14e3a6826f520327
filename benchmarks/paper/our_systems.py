"""Our systems, at several settings; see `cases.py`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from cases import MOST, PRODUCTS, Case, System

from csrkern import FineQuantizer, InvertedIndex, Projection, Refine, Rerank, SparseCodes
from csrkern.nn import SparseAutoencoder
from csrtrain import refit
from csrtrain.training.quantizer import fitted_quantizer

BY_CODES, BY_DENSE, WITH_FINE = "CSR codes", "CSR codes, dense queries", "CSR + fine codes"
ALONE, TAUGHT = "fine codes alone", "fine codes alone, learned projection"
PRINCIPAL = "fine codes alone, principal directions"
OURS = (BY_CODES, BY_DENSE, WITH_FINE, ALONE, PRINCIPAL, TAUGHT)
# Bytes of a fine code, and the numbers of latents that fill 16, 32 and 64 bytes with it.
FINE = {8: (2,), 11: (1, 2), 17: (4,), 33: (2, 4, 8)}
FINE_PRODUCTS = {45: (4,), 57: (1,), 65: (8, 16)}
# Bytes of a fine code that is searched alone, and the parts of the dimensions to try.
ALONE_BYTES = {4: (1,), 6: (1,), 8: (1,), 12: (1,), 16: (1, 3), 32: (1,), 61: (4,)}
PRINCIPAL_BYTES = {8: (1,), 16: (1,), 32: (1,)}
NARROW = (16, 32, 64)
NARROW_BYTES = {4: (1,), 6: (1,), 8: (1,), 12: (1,)}
CELLS = (2, 4, 8, 16, 32)  # of 256, that a search reads


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
        if n_bytes - 1 > books.shape[1]:
            continue
        quantizer = fitted_quantizer(books[:, : n_bytes - 1], case.sample)
        yield from _two_stages(case, quantizer, ks)


def fine_alone(case: Case) -> Iterator[System]:
    """Ours: fine codes alone, of embeddings as they are."""
    yield from _fine_alone(case, ALONE, case)


def fine_alone_principal(case: Case) -> Iterator[System]:
    """Ours: fine codes alone, of principal directions, which need neither labels nor pairs."""
    for setting, turn, own in case.behind_principal():
        yield from _fine_alone(case, PRINCIPAL, own, turn, f"{setting}, ", PRINCIPAL_BYTES)


def fine_alone_projected(case: Case) -> Iterator[System]:
    """Ours: fine codes alone, of what a projection makes that labels or pairs have taught."""
    own = case.behind_projection()
    if own is not None:
        yield from _fine_alone(case, TAUGHT, own, case.projection)


def fine_alone_narrow(case: Case) -> Iterator[System]:
    """Ours: the same behind the strongest directions of the projection alone."""
    whole = case.projection
    for width in NARROW:
        if whole is not None and width < whole.width:
            turn = whole.truncate(width)
            own = case.behind(turn, f"projected-to-{width}")
            yield from _fine_alone(case, TAUGHT, own, turn, f"{width} directions, ", NARROW_BYTES)


def _fine_alone(
    case: Case,
    method: str,
    own: Case,
    projection: Projection | None = None,
    setting: str = "",
    sizes: Mapping[int, Sequence[int]] = ALONE_BYTES,
) -> Iterator[System]:
    for n_bytes, parts in {8: (1,)}.items() if case.quick else sizes.items():
        for part in parts:
            each = (n_bytes - 1) // part
            if own.d % part or (case.large and (part > 1 or each > MOST[1])):
                continue
            books = own.codebooks(part)
            books = books[:, :each]
            quantizer = fitted_quantizer(books, own.sample, projection=projection)
            fine = quantizer.encode(case.database)
            index = InvertedIndex.build(None, fine=fine)
            size = f"{quantizer.n_bytes} bytes" + (f", {part} parts" if part > 1 else "")
            stored = index.stats()["bytes_per_code"]
            shared = sum(array.nbytes for array in quantizer.arrays.values())
            search = partial(_by_fine_codes, index, case.depth)
            whole = {"": partial(search, None)}
            yield System(method, setting + size, stored, shared, whole)
            if part > 1:
                continue
            search(1, case.database[:1])  # notes in memory which documents begin with which word
            stored += index.stats()["forward_bytes"] / len(index)
            some = {f"{probes} cells": partial(search, probes) for probes in CELLS}
            yield System(method, f"{setting}{size},", stored, shared, some)


def _by_fine_codes(
    index: InvertedIndex, depth: int, probes: int | None, queries: np.ndarray
) -> np.ndarray:
    return index.search_fine(queries, depth, probes=probes, num_threads=1)[1]


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
        for k, dtype in itertools.product(ks, ("uint8", "uint4")):
            index = InvertedIndex.build(codes.truncate(k), dtype=dtype, fine=fine)
            yield System(
                WITH_FINE,
                f"h={hidden_dim} k={k} {dtype} + {quantizer.n_bytes} bytes",
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
        (" uint4", "uint4", 1.0, (32,)),
        (" roots uint4", "uint4", 0.5, (32,)),
    ):
        index = InvertedIndex.build(codes.power(power), dtype=dtype)
        yield System(
            BY_CODES,
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
        BY_DENSE,
        f"{setting} lists",
        index.stats()["bytes_per_code"],
        shared,
        {"256 latents of queries": partial(_by_lists, case, model, index, 256)},
    )
    index = InvertedIndex.build(fitted, metric="ip", dtype="uint8", norms=norms.numpy())
    stats = index.stats()
    yield System(
        BY_DENSE,
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
