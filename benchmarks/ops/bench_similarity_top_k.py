"""similarity_top_k against sparse_dot_topn: codes, and rows like those of a model of text."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import scipy.sparse as sp

import csrkern
from benchmarks.harness import generators
from benchmarks.harness.race import Missing, Race, Side, cases
from benchmarks.index.data import to_csr
from csrkern import roofline

TOP_K = 10
Case = tuple[int, int, int, int, str]  # queries, rows, h, k, kind


@cases(
    tiny=[(50, 500, 256, 8, "uniform"), (50, 500, 256, 8, "text")],
    quick=[
        *[(2000, 100_000, 4096, 32, kind) for kind in ("uniform", "skewed")],
        (500, 100_000, 30_522, 120, "text"),
    ],
    full=[
        *[(2000, 100_000, 4096, 32, kind) for kind in ("uniform", "skewed")],
        *[(2000, 100_000, 30_522, k, "text") for k in (38, 120)],
        (100, 100_000, 4096, 32, "uniform"),
    ],
)
def bench_similarity_top_k(race: Race, case: Case) -> None:
    n, m, h, k, kind = case
    queries, codes = (rows(kind, *shape) for shape in ((n, h, k, 1), (m, h, k, 2)))

    def ours() -> Any:
        return csrkern.similarity_top_k(queries, codes, TOP_K, num_threads=race.threads)

    use = np.bincount(codes.indices, minlength=h)
    race(
        "similarity_top_k",
        f"{n}x{m} h={h} k={k} {kind}",
        ours=ours,
        peers=sparse_dot_topn(queries, codes, ours()[0], race.threads),
        cost=roofline.search(float(use[queries.indices].sum()), n, TOP_K, 6),
        items=n,
    )


def rows(kind: str, n: int, h: int, k: int, seed: int) -> sp.csr_matrix:
    """Rows of `kind` with 32-bit indices, which sparse_dot_topn takes without a copy."""
    if kind != "text":
        return to_csr(getattr(generators, kind)(n, h, k, seed=seed), h)
    drawn = generators.text(n, h, k, seed=seed)
    starts, indices = (array.astype(np.int32) for array in (drawn.indptr, drawn.indices))
    return sp.csr_matrix((drawn.data, indices, starts), drawn.shape)


def sparse_dot_topn(
    queries: sp.csr_matrix, codes: sp.csr_matrix, scores: np.ndarray, threads: int
) -> dict[str, Side]:
    """The product with the transposed rows, which it does not pay for, in its two forms."""
    try:
        package = importlib.import_module("sparse_dot_topn")
    except ImportError as error:
        return {"sparse_dot_topn": Missing(f"pip install 'csrkern[bench]' ({error})")}
    transposed = sp.csr_matrix(codes.T)

    def product(**options: Any) -> sp.csr_matrix:
        return package.sp_matmul_topn(queries, transposed, TOP_K, n_threads=threads, **options)

    found = product(sort=True)
    best = np.repeat(np.arange(len(scores)), np.diff(found.indptr))
    place = np.arange(len(best)) - found.indptr[best]
    np.testing.assert_allclose(scores[best, place], found.data, rtol=1e-5)
    return {
        "sparse_dot_topn": product,
        "sparse_dot_topn, threshold 0": lambda: product(threshold=0.0),
    }
