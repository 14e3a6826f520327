"""Rerank and Refine: the best documents of a sparse search, scored again by a dense query."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from csrkern import _C
from csrkern.arguments import check_int, check_within, float32_array, float32_rows
from csrkern.index.fine import WORDS, FineQuantizer, checked_rows, tables_of

if TYPE_CHECKING:
    from csrkern.index.rows import Rows
    from csrkern.typing import VectorsLike


@dataclass(frozen=True, eq=False)
class Rerank:
    """How `InvertedIndex.search` scores its best documents again.

    The new score of a document is the float32 sum over its latents, ascending, of
    dense_queries[latent] times stored value, plus the query's offset, divided by the norm that
    the index holds for the document, if it holds norms.

    With a decoder W [dim, d] (one row a latent) two choices of dense_queries are of use:

    - W q, for an embedding q [d]: the inner product of q itself with the document's
      reconstruction, at the storage of sparse codes ("asymmetric");
    - W x̂, for the reconstruction x̂ of the query's code: the inner product of both
      reconstructions.

    A decoder bias b adds ⟨q, b⟩ (or ⟨x̂, b⟩), which is what `offsets` are for.

    Attributes:
        dense_queries: [n, dim], finite; one row a query.
        shortlist: documents a query that are scored again.
        offsets: [n], added to all scores of a query; matters to scores and, with norms, to
            the order.
        fingerprint: of the model whose decoder the dense queries were multiplied with; None: not
            known. `SparseAutoencoder.rerank` sets it.
    """

    dense_queries: VectorsLike
    shortlist: int = 100
    offsets: VectorsLike | None = None
    fingerprint: str | None = None

    def arrays(self, n: int, dim: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Dense queries float32 [n, dim] and offsets float32 [n], checked."""
        check_int("shortlist", self.shortlist, 1, 2**40)
        dense = float32_rows("dense_queries", self.dense_queries, dim)
        if len(dense) != n:
            raise ValueError(f"dense_queries: expected {n} rows, one a query, got {len(dense)}")
        if self.offsets is None:
            return dense, None
        offsets = float32_array("offsets", self.offsets)
        if offsets.shape != (n,):
            raise ValueError(
                f"offsets: expected {n} numbers, one a query, got {list(offsets.shape)}"
            )
        check_within("offsets", offsets)
        return dense, offsets


# Of the tables of queries that are searched at once, and of a thread.
_TABLES_BYTES, _TABLES_CACHED = 128 << 20, 2 << 20
_GROUP = 64  # queries that a native search scans together


@dataclass(frozen=True, eq=False)
class Refine:
    """Score the best documents of `InvertedIndex.search` again, by their fine codes.

    The new score of a document is the inner product of the query with the embedding that its
    fine code stands for; divided by the norms of both, a cosine, where the quantizer has
    `lengths`. It is the float32 sum of the entries of the query's tables, codebook by codebook,
    plus the inner product with the quantizer's mean, times the scale.

    Attributes:
        queries: embeddings [n, d] of any real dtype, finite, up to 1e15; one row a query.
        shortlist: documents a query that are scored again.

    Example:
        >>> scores, ids = index.search(  # doctest: +SKIP
        ...     model.encode(queries), rerank=csrkern.Refine(queries)
        ... )
    """

    queries: VectorsLike
    shortlist: int = 200


def fine_queries(name: str, queries: VectorsLike, quantizer: FineQuantizer | None) -> np.ndarray:
    """Return embeddings float32 [n, d] that are compared with fine codes."""
    if quantizer is None:
        raise ValueError(
            f"{name}: this index holds no fine codes; build it with "
            "fine=quantizer.encode(embeddings), or search by codes"
        )
    return checked_rows(name, queries, quantizer)


def search_refined(
    refine: Refine,
    quantizer: FineQuantizer | None,
    segments: list[tuple[Any, np.ndarray | None]],
    rows: Rows,
    options: dict[str, Any],
) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and ids of the native search for `rows`, refined."""
    queries = fine_queries("queries of rerank", refine.queries, quantizer)
    assert quantizer is not None
    check_int("shortlist", refine.shortlist, 1, 2**40)
    if len(queries) != rows.n:
        raise ValueError(
            f"queries of rerank: expected {rows.n} rows, one a query, got {len(queries)}"
        )
    scores = np.empty((rows.n, options["top_k"]), np.float32)
    ids = np.empty((rows.n, options["top_k"]), np.int64)
    step = max(1, _TABLES_BYTES // (quantizer.books * WORDS * 4))
    for first in range(0, max(rows.n, 1), step):
        some = slice(first, min(first + step, rows.n))
        tables, offsets = tables_of(quantizer, queries[some], options["num_threads"])
        own = [(native, bits_of(bits, some)) for native, bits in segments]
        scores[some], ids[some] = _C.search(
            own,
            *rows.between(some.start, some.stop)[:4],
            **options,
            shortlist=refine.shortlist,
            tables=tables,
            offsets=offsets,
            scales=quantizer.scales,
        )
    return scores, ids


def search_fine(
    queries: np.ndarray,
    quantizer: FineQuantizer,
    segments: list[tuple[Any, np.ndarray | None]],
    top_k: int,
    min_score: float,
    probes: int | None,
    threads: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and ids of the native search by fine codes alone."""
    n = len(queries)
    scores, ids = np.empty((n, top_k), np.float32), np.empty((n, top_k), np.int64)
    # Few enough for a cache, and whole groups; in cells many, so that each is read for a batch.
    room = threads * (_TABLES_CACHED if probes is None else 4 * _TABLES_CACHED)
    step = max(1, room // (quantizer.books * WORDS * 4) // _GROUP) * _GROUP
    for first in range(0, n, step):
        some = slice(first, min(first + step, n))
        tables, offsets = tables_of(quantizer, queries[some], threads)
        own = [(native, bits_of(bits, some)) for native, bits in segments]
        scores[some], ids[some] = _C.search_fine(
            own,
            tables=tables,
            offsets=offsets,
            scales=quantizer.scales,
            top_k=top_k,
            min_score=min_score,
            probes=probes or WORDS,
            num_threads=threads,
        )
    return scores, ids


def bits_of(bits: np.ndarray | None, queries: slice) -> np.ndarray | None:
    """Return what some of the queries may find, of bits for all of them or one for each."""
    return bits if bits is None or bits.ndim == 1 else bits[queries]


def search_dense(
    index: Any, rerank: Rerank, top_k: int, latents: int, **options: Any
) -> tuple[Any, Any]:
    """Return what `index.search` finds for the `latents` strongest latents of dense queries."""
    dense = float32_rows("dense_queries", rerank.dense_queries, index.dim)
    latents = min(index.dim, check_int("latents", latents, 1, 2**31 - 1))
    indices = np.argpartition(-dense, latents - 1, axis=1)[:, :latents].astype(np.int32)
    values = np.maximum(np.take_along_axis(dense, indices, 1), 0)
    rerank = replace(rerank, dense_queries=dense)
    scores, ids = index.search((values, indices), top_k, rerank=rerank, **options)
    return scores, ids


__all__ = ["Refine", "Rerank"]
