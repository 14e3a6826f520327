"""Codes for the index tests, in SparseCodes order, as NumPy arrays."""

from __future__ import annotations

import functools
import hashlib

import numpy as np

from csrkern import InvertedIndex, Rerank, reference


def in_order(values: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows by value descending, then by latent; empty slots at the end with latent 0."""
    values = values.astype(np.float32)
    order = np.lexsort((np.where(values > 0, indices, 2**31 - 1), -values))
    values = np.take_along_axis(values, order, 1)
    indices = np.take_along_axis(indices, order, 1)
    return values, np.where(values > 0, indices, 0).astype(np.int32)


def distinct_latents(rng: np.random.Generator, n: int, dim: int, k: int, weights=None):
    """[n, k] distinct latents a row, drawn evenly or by `weights` [dim]."""
    keys = rng.random((n, dim), dtype=np.float32)
    if weights is not None:
        keys = -np.log1p(-keys) / weights.astype(np.float32)
    return np.argpartition(keys, k - 1, axis=1)[:, :k].astype(np.int32)


def uniform(n: int, dim: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    values = 0.05 + rng.exponential(1, (n, k))
    return in_order(values, distinct_latents(rng, n, dim, k))


def skewed(n: int, dim: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    popularity = (np.arange(dim) + 3.0) ** -1.2
    values = 0.05 + rng.exponential(1, (n, k))
    return in_order(values, distinct_latents(rng, n, dim, k, popularity))


def ties(n: int, dim: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Few distinct values and many equal rows."""
    rng = np.random.default_rng(seed)
    latents = distinct_latents(rng, max(n // 8, 1), dim, k)[rng.integers(0, max(n // 8, 1), n)]
    return in_order(rng.integers(0, 3, (n, k)) / 2, latents)


def normalized(values: np.ndarray) -> np.ndarray:
    """Rows at L2 norm 1, in float64 and then rounded."""
    norm = np.sqrt((values.astype(np.float64) ** 2).sum(1, keepdims=True))
    return (values / np.where(norm > 0, norm, 1)).astype(np.float32)


def stored(values: np.ndarray, form: str, largest: float | None) -> np.ndarray:
    """Values as an index holds them."""
    return reference.stored_values(values, form, 1.0 if largest is None else largest)


KINDS = {"uniform": uniform, "skewed": skewed, "ties": ties}


@functools.cache
def digest() -> str:
    """Of results that touch every kernel; run in a process of its own per instruction set."""
    result = hashlib.sha256()
    for kind, dtype, k in [
        ("uniform", "float16", 11),
        ("ties", "float32", 6),
        ("skewed", "uint8", 9),
        ("skewed", "uint4", 9),
        ("uniform", "float16", 7),
    ]:
        codes = KINDS[kind](9001, 96, k)
        index = InvertedIndex.build(
            codes, dim=96, dtype=dtype, window=2048, metric="cosine", cluster=k < 8
        )
        for top_k in (1, 10, 400):
            for chosen in (None, np.arange(9001) % 3 > 0):
                for part in index.search((codes[0][:50], codes[1][:50]), top_k, filter=chosen):
                    result.update(part.tobytes())
        index.snapshot().segments[0].native.make_forward(1)
        queries = codes[0][:50], codes[1][:50]
        dense = np.sin(np.arange(50 * 96)).reshape(50, 96)
        for found in (
            index.search(queries, filter=np.arange(0, 9001, 100)),
            index.search(queries, rerank=Rerank(dense, 40)),
            index.search(queries, mode="fast", recall=0.6),
            index.search_above(queries, 0.5),
        ):
            for part in found:
                result.update(part.tobytes())
        for array in index.to_numpy():
            result.update(array.tobytes())
        result.update(index.snapshot().segments[0].native.checksums.tobytes())
    return result.hexdigest()
