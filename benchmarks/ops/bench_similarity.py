"""similarity against the dense product and against sparse matrix packages."""

from __future__ import annotations

import importlib
from typing import Any

import torch

import csrkern
from benchmarks.harness.race import Missing, Race, Side, cases
from benchmarks.ops.codes import sparse_products, two_sets
from csrkern import roofline

ON_GPU = True
Case = tuple[int, int, int, str]  # rows on both sides, h, k, kind of codes
CASES: dict[str, list[Case]] = {
    "tiny": [(64, 256, 8, "uniform")],
    "quick": [(4096, 8192, 32, "uniform"), (4096, 8192, 32, "skewed")],
    "full": [(4096, 8192, k, kind) for k in (8, 32, 128) for kind in ("uniform", "skewed")],
}


@cases(**CASES)
def bench_similarity(race: Race, case: Case) -> None:
    n, h, k, kind = case
    a, b = two_sets(kind, n, n, h, k)
    dense_a, dense_b = a.to_dense(), b.to_dense()
    torch.testing.assert_close(csrkern.similarity(a, b), dense_a @ dense_b.T)
    peers: dict[str, Side] = {
        "dense product": lambda: dense_a @ dense_b.T,
        "write a fresh output": lambda: torch.empty(n, n).zero_(),
    }
    peers |= sparse_packages(a, b, race.threads)
    race(
        "similarity",
        f"{n}x{n} h={h} k={k} {kind}",
        ours=lambda: csrkern.similarity(a, b),
        peers=peers,
        cost=roofline.similarity(n, n, k, sparse_products(a, b)),
    )


def sparse_packages(
    a: csrkern.SparseCodes, b: csrkern.SparseCodes, threads: int
) -> dict[str, Side]:
    """Sparse times sparse, transposed and in their own layout beforehand; a sparse result."""
    left, right = a.to_torch_csr(), b.to_dense().T.to_sparse_csr()
    sides: dict[str, Side] = {"torch.sparse CSR": lambda: left @ right}
    try:
        import scipy.sparse as sp
    except ImportError as error:
        sides["SciPy CSR"] = Missing(str(error))
    else:
        first, second = sp.csr_matrix(a.to_scipy()), sp.csr_matrix(b.to_scipy().T)
        sides["SciPy CSR (1 thread)"] = lambda: first @ second
        sides["sparse_dot_topn"] = _sparse_dot_topn(first, second, threads)
    return sides


def _sparse_dot_topn(first: Any, second: Any, threads: int) -> Side:
    try:
        package = importlib.import_module("sparse_dot_topn")
    except ImportError as error:
        return Missing(f"pip install 'csrkern[bench]' ({error})")
    return lambda: package.sp_matmul(first, second, n_threads=threads)


@cases(tiny=CASES["tiny"], quick=[(4096, 8192, 32, "uniform")])
def bench_similarity_backward(race: Race, case: Case) -> None:
    """The gradients to both sets of values from a dense gradient [n, n]."""
    n, h, k, kind = case
    a, b = two_sets(kind, n, n, h, k)
    leaves = (a.values.requires_grad_(True), b.values.requires_grad_(True))
    dense = tuple(side.to_dense().detach().requires_grad_(True) for side in (a, b))
    grad = torch.randn(n, n)
    ours_out, dense_out = csrkern.similarity(a, b), dense[0] @ dense[1].T
    cost = roofline.Cost(
        read=grad.nbytes + roofline.codes_bytes(2 * n, k, 4),
        written=2.0 * n * k * 4,
        flops=4.0 * sparse_products(a, b),
    )
    race(
        "similarity backward",
        f"{n}x{n} h={h} k={k} {kind}",
        ours=lambda: torch.autograd.grad(ours_out, leaves, grad, retain_graph=True),
        peers={
            "dense product": lambda: torch.autograd.grad(dense_out, dense, grad, retain_graph=True)
        },
        cost=cost,
    )
