"""Codes of known statistics for index benchmarks.

`uniform` and `skewed` give NumPy pairs (values, indices): rows have L2 norm 1 and stand in
SparseCodes order, by value descending, then by latent. `text` gives a CSR matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import scipy.sparse as sp

Codes = tuple[np.ndarray, np.ndarray]
_CHUNK = 100_000
_PROTOTYPES = 1_000
_TOPICS, _TOPIC_TERMS = 1_000, 400


def uniform(n: int, dim: int = 8192, k: int = 32, *, seed: int = 0) -> Codes:
    """k distinct latents drawn evenly; values 0.05 + Exp(1)."""
    rng = np.random.default_rng(seed)
    return _in_chunks(n, k, lambda rows: (_values(rng, (rows, k), 1), _even(rng, rows, dim, k)))


def skewed(n: int, dim: int = 8192, k: int = 32, *, seed: int = 0, law_seed: int = 0) -> Codes:
    """Clustered codes over latents of Zipf-like popularity.

    A latent of popularity rank r is drawn in proportion to (r + 30)^-0.9. 1,000 prototypes
    of 2k such latents, used in proportion to (rank + 10)^-0.5, hold values 0.2 + Exp(1). A
    code takes 0.8k latents of its prototype, strong ones rather (Gumbel top-k on the log
    value, scale 0.7), their values times exp(0.5 N(0, 1)), and 0.2k latents by popularity
    with values 0.05 + Exp(0.4). `law_seed` fixes ranks and prototypes: documents and
    queries of one law take one law_seed and different seeds.
    """
    latents, strengths, uses, cumulative = skew_law(dim, k, law_seed)
    rng = np.random.default_rng([seed, 2])
    n_own = round(0.8 * k)

    def chunk(rows: int) -> Codes:
        of = rng.choice(_PROTOTYPES, rows, p=uses)
        uniforms = rng.random((rows, 2 * k), dtype=np.float32)
        gumbel = -np.log(-np.log(np.clip(uniforms, 1e-7, 1 - 1e-7)))
        own = np.argpartition(-(np.log(strengths[of]) + 0.7 * gumbel), n_own - 1, axis=1)[:, :n_own]
        spread = np.exp(0.5 * rng.standard_normal((rows, n_own), dtype=np.float32))
        values = np.take_along_axis(strengths[of], own, 1) * spread
        free = _values(rng, (rows, k - n_own), 0.4)
        indices = np.empty((rows, k), np.int32)
        indices[:, :n_own] = np.take_along_axis(latents[of], own, 1)
        redraw = np.zeros((rows, k), bool)
        redraw[:, n_own:] = True
        _draw_distinct(
            indices,
            redraw,
            lambda n: np.minimum(np.searchsorted(cumulative, rng.random(n)), dim - 1),
        )
        return np.hstack([values, free]), indices

    return _in_chunks(n, k, chunk)


def text(
    n: int, dim: int = 30_522, terms: float = 120, *, seed: int = 0, law_seed: int = 0
) -> sp.csr_array:
    """Rows like those of a learned sparse model of text (SPLADE), float32 [n, dim].

    `terms` is the mean number of entries of a row: 120 is that of passages, 38 of queries. It is
    lognormal with deviation 0.35. A term of popularity rank r is drawn in proportion to
    (r + 10)^-1. Each of 1,000 topics has 400 such terms, used in proportion to (rank + 5)^-0.8;
    a row draws seven tenths of its terms from its topic and the others by popularity. Values are
    log(1 + x), x exponential with mean 1.5, and 0.5 for terms that are not of the topic.
    `law_seed` as for `skewed`.
    """
    law = np.random.default_rng([law_seed, 3])
    popularity = (law.permutation(dim) + 10.0) ** -1
    n_terms = min(_TOPIC_TERMS, dim // 2)
    topics = np.empty((_TOPICS, n_terms), np.int32)
    for topic in topics:
        keys = np.log(popularity) + law.gumbel(size=dim)
        best = np.argpartition(-keys, n_terms)[:n_terms]
        topic[:] = best[np.argsort(-keys[best])]
    ranks = _urn(popularity, 1 << 22)
    places = _urn((np.arange(n_terms) + 5.0) ** -0.8, 1 << 16)
    rng = np.random.default_rng([seed, 4])
    pieces = []
    for begin in range(0, n, _CHUNK // 4):
        rows = min(_CHUNK // 4, n - begin)
        mean = terms * (1.05 + terms / 560)  # drawn, repeats among them
        lengths = rng.lognormal(np.log(mean) - 0.35**2 / 2, 0.35, rows).astype(int) + 1
        row = np.repeat(np.arange(rows), lengths)
        own = rng.random(len(row), dtype=np.float32) < 0.7
        place = places[rng.integers(0, len(places), int(own.sum()))]
        drawn = np.empty(len(row), np.int64)
        drawn[own] = topics[rng.integers(0, _TOPICS, rows)[row[own]], place]
        drawn[~own] = ranks[rng.integers(0, len(ranks), int((~own).sum()))]
        key = np.sort((row * dim + drawn) * 2 + ~own)
        key = key[np.concatenate([[True], key[1:] >> 1 != key[:-1] >> 1])]
        means = np.where(key & 1, np.float32(0.5), np.float32(1.5))
        values = np.log1p(means * rng.standard_exponential(len(key), dtype=np.float32))
        key >>= 1
        starts = np.searchsorted(key, np.arange(rows + 1) * dim)
        pieces.append(sp.csr_array((values, (key % dim).astype(np.int32), starts), (rows, dim)))
    return sp.vstack(pieces, format="csr")


def _urn(weights: np.ndarray, size: int) -> np.ndarray:
    """About `size` numbers of weights, each in proportion to its weight, to be drawn evenly."""
    return np.repeat(np.arange(len(weights)), np.ceil(size * weights / weights.sum()).astype(int))


def skew_law(
    dim: int, k: int, law_seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What `skewed` draws from: latents and strengths of the prototypes, [prototypes, 2k], how
    often each is used, and the cumulative popularity of latents."""
    law = np.random.default_rng([law_seed, 1])
    popularity = (law.permutation(dim) + 30.0) ** -0.9
    keys = np.log(popularity) + law.gumbel(size=(_PROTOTYPES, dim))
    latents = np.argpartition(-keys, 2 * k, axis=1)[:, : 2 * k].astype(np.int32)
    strengths = _values(law, latents.shape, 1, least=0.2)
    uses = (np.arange(_PROTOTYPES) + 10.0) ** -0.5
    uses /= uses.sum()
    return latents, strengths, uses, np.cumsum(popularity / popularity.sum())


def _values(
    rng: np.random.Generator, shape: tuple[int, ...], mean: float, least: float = 0.05
) -> np.ndarray:
    return least + mean * rng.standard_exponential(shape, dtype=np.float32)


def _even(rng: np.random.Generator, rows: int, dim: int, k: int) -> np.ndarray:
    if k > dim // 8:
        return np.argsort(rng.random((rows, dim), dtype=np.float32))[:, :k].astype(np.int32)
    indices = np.empty((rows, k), np.int32)
    draw = partial(rng.integers, 0, dim, dtype=np.int32)
    _draw_distinct(indices, np.ones((rows, k), bool), draw)
    return indices


def _draw_distinct(
    indices: np.ndarray, redraw: np.ndarray, draw: Callable[[int], np.ndarray]
) -> None:
    """Draws the marked entries, again and again where a row has a latent twice."""
    rows = np.arange(len(indices))
    while len(rows):
        some = indices[rows]
        some[redraw] = draw(int(redraw.sum()))
        indices[rows] = some
        redraw = _repeats(some)
        wrong = redraw.any(1)
        rows, redraw = rows[wrong], redraw[wrong]


def _repeats(indices: np.ndarray) -> np.ndarray:
    """True where a latent stands at an earlier slot of its row too."""
    repeats = np.zeros(indices.shape, bool)
    ordered = np.sort(indices, axis=1)
    rows = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(1))
    order = np.argsort(indices[rows], axis=1, kind="stable")
    ordered = np.take_along_axis(indices[rows], order, 1)
    again = np.zeros(ordered.shape, bool)
    np.put_along_axis(again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], 1)
    repeats[rows] = again
    return repeats


def _in_chunks(n: int, k: int, chunk: Callable[[int], Codes]) -> Codes:
    values, indices = np.empty((n, k), np.float32), np.empty((n, k), np.int32)
    for begin in range(0, n, _CHUNK):
        rows = slice(begin, min(begin + _CHUNK, n))
        drawn_values, drawn_indices = chunk(rows.stop - begin)
        drawn_values /= np.linalg.norm(drawn_values, axis=1, keepdims=True)
        # One 64-bit key a slot, as positive floats sort like their bits: a fifth of a lexsort.
        keys = (~drawn_values.view(np.uint32)).astype(np.uint64) << 32
        keys |= drawn_indices.view(np.uint32)
        keys.sort(axis=1)
        values[rows] = (~(keys >> 32).astype(np.uint32)).view(np.float32)
        indices[rows] = keys.astype(np.uint32).view(np.int32)
    return values, indices
