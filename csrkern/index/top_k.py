"""similarity_top_k: the greatest inner products of one set of sparse rows with another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from csrkern import _C
from csrkern.arguments import check_int, least_float, thread_count
from csrkern.index.inverted import hits_width
from csrkern.index.rows import Rows, read_rows
from csrkern.index.segment import best_window

if TYPE_CHECKING:
    from csrkern.typing import CodesLike


def similarity_top_k(
    queries: CodesLike,
    codes: CodesLike,
    top_k: int = 10,
    *,
    dim: int | None = None,
    min_score: float | None = None,
    num_threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the `top_k` greatest positive similarities of each query, exactly.

    These are the largest entries of queries · codesᵀ, [n, m], which is never in memory. Both
    are inverted, searched and forgotten; to search the same codes again, build an
    `InvertedIndex`. Runs on CPUs, without a gradient.

    Args:
        queries: n codes: SparseCodes, a SciPy sparse matrix or torch sparse tensor [n, dim] of
            rows of any length, or a pair of arrays (values, indices), both [n, k], with `dim`.
            Values are finite, of either sign; they are rounded to float32.
        codes: m codes over the same latents, in any of these forms.
        top_k: results for each query; may exceed m. Above 1,024, no more than m.
        dim: number of latents; needed if `codes` is a pair of arrays.
        min_score: lower scores are left out.
        num_threads: None: as many as the process may run on. The results do not depend on it.

    Returns:
        scores float32 [n, top_k] and ids int64 [n, top_k], rows of `codes`: best first, equal
        scores by lower id; missing places hold score -inf and id -1. A score is the float32 sum
        over the query's entries, by value descending and then by latent.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of range, a row is not valid, or values are negative
            and so large that a sum could overflow.
    """
    if dim is not None:
        dim = check_int("dim", dim, 1, 2**31 - 1)
    of_codes = read_rows("codes", codes, dim)
    of_queries = read_rows("queries", queries, of_codes.dim)
    check_int("dim", of_codes.dim, 1, 2**31 - 1)
    _check_sums(of_queries, of_codes)
    width = hits_width(check_int("top_k", top_k, 1, 2**40), of_codes.n)
    least = -np.inf if min_score is None else least_float("min_score", min_score)
    scores, ids = _C.similarity_top_k(
        *(of_queries[:3], of_codes[:3]),
        *(of_codes.dim, best_window(of_codes), width, least, thread_count(num_threads)),
    )
    return scores, ids


def _check_sums(queries: Rows, codes: Rows) -> None:
    """Refuse what could make a sum of infinities of both signs."""
    sides = queries, codes
    if all(side.values.min(initial=0) >= 0 for side in sides):
        return
    most = [float(np.abs(side.values).max(initial=0)) for side in sides]
    bound = most[0] * most[1] * min(side.k for side in sides)
    limit = float(np.finfo(np.float32).max) / 2
    if limit < bound < np.inf:  # values that are not finite are refused with their row
        raise ValueError(
            f"codes: expected values whose sums of products stay below {limit:.2g} where some are "
            f"negative, got up to {most[0]:.2g} in queries and {most[1]:.2g} in codes; scale them"
        )
