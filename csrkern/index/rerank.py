"""Rerank: the best documents of a sparse search, scored again by a dense query."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from csrkern.arguments import check_int, float32_array

if TYPE_CHECKING:
    from csrkern.typing import VectorsLike


@dataclass(frozen=True)
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
        dense = dense_rows("dense_queries", self.dense_queries, dim)
        if len(dense) != n:
            raise ValueError(f"dense_queries: expected {n} rows, one a query, got {len(dense)}")
        if self.offsets is None:
            return dense, None
        offsets = float32_array("offsets", self.offsets)
        if offsets.shape != (n,) or not np.isfinite(offsets).all():
            raise ValueError(f"offsets: expected {n} finite numbers, got {list(offsets.shape)}")
        return dense, offsets


def dense_rows(name: str, rows: Any, dim: int) -> np.ndarray:
    """`rows` as finite float32 [n, dim]."""
    rows = float32_array(name, rows)
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise ValueError(f"{name}: expected shape [n, {dim}], got {list(rows.shape)}")
    if not np.isfinite(rows).all():
        raise ValueError(f"{name}: expected finite numbers")
    return rows


def search_dense(
    index: Any, rerank: Rerank, top_k: int, latents: int, **options: Any
) -> tuple[Any, Any]:
    """Return what `index.search` finds for the `latents` strongest latents of dense queries."""
    dense = dense_rows("dense_queries", rerank.dense_queries, index.dim)
    latents = min(index.dim, check_int("latents", latents, 1, 2**31 - 1))
    indices = np.argpartition(-dense, latents - 1, axis=1)[:, :latents].astype(np.int32)
    values = np.maximum(np.take_along_axis(dense, indices, 1), 0)
    rerank = replace(rerank, dense_queries=dense)
    scores, ids = index.search((values, indices), top_k, rerank=rerank, **options)
    return scores, ids


__all__ = ["Rerank"]
