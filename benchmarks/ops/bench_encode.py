"""encode against torch's linear + topk + relu, and against the bare GEMM inside both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import csrkern
from benchmarks.harness import peak_memory
from benchmarks.harness.race import Contestant, Race, Side, cases
from csrkern import roofline
from csrkern.ops import _encode_cpu

ON_GPU = True
Case = tuple[int, int, int, int]  # n, d, h, k
CASES: dict[str, list[Case]] = {
    "tiny": [(64, 32, 256, 8)],
    "quick": [(4096, 768, 8192, 32)],
    "full": [
        (4096, 768, 8192, 32),
        (4096, 768, 8192, 256),
        (4096, 384, 1536, 32),
        (4096, 2048, 8192, 32),
        (1, 768, 8192, 32),
    ],
}


def tensors(case: Case, dtype: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x [n, d], weight [h, d] and bias [h] of one autoencoder layer."""
    n, d, h, _ = case
    kind = getattr(torch, dtype)
    weight = torch.randn(h, d).mul_(d**-0.5)
    return torch.randn(n, d).to(kind), weight.to(kind), torch.randn(h).mul_(0.1).to(kind)


def torch_encode(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    values, indices = torch.topk(F.linear(x, weight, bias), k)
    return F.relu(values), indices


def ours_once(case: Case, dtype: str) -> Callable[[], Any]:
    """For peak_memory."""
    x, weight, bias = tensors(case, dtype)
    return lambda: csrkern.encode(x, weight, bias, k=case[3])


def torch_once(case: Case, dtype: str) -> Callable[[], Any]:
    """For peak_memory."""
    x, weight, bias = tensors(case, dtype)
    return lambda: torch_encode(x, weight, bias, case[3])


def product_dtype(way: str, dtype: str) -> str:
    """The dtype of the matrix product inside encode: what its floor is made of."""
    if way == "fast":
        return dtype
    return "bfloat16" if _encode_cpu.PROPOSE_IN_BFLOAT16 else dtype


@cases(**CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("way", ["exact", "float32 proposals", "bfloat16 proposals", "fast"])
def bench_encode(
    race: Race, case: Case, way: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, d, h, k = case
    if way != "exact" and dtype != "float32":
        pytest.skip("all ways are one but for float32 input")
    if way.endswith("proposals"):
        monkeypatch.setattr(_encode_cpu, "PROPOSE_IN_BFLOAT16", way.startswith("bfloat16"))
    precision = "fast" if way == "fast" else "exact"
    x, weight, bias = tensors(case, dtype)
    out = x.new_empty(n, h)

    codes = csrkern.encode(x, weight, bias, k=k, precision=precision)
    torch.testing.assert_close(codes.values, torch_encode(x, weight, bias, k)[0])

    def peak(side: str) -> dict[str, float]:
        if race.size == "tiny" or way != "exact" or race.device != "cpu":
            return {}
        found = peak_memory.measure(f"{__name__}:{side}", case, dtype, threads=race.threads)
        return {"peak_mb": found["peak_mb"]}

    race(
        "encode",
        f"B={n} d={d} h={h} k={k}" + ("" if way == "exact" else f" {way}"),
        dtype=dtype,
        ours=Contestant(
            lambda: csrkern.encode(x, weight, bias, k=k, precision=precision), peak("ours_once")
        ),
        peers={
            "linear + topk + relu": Contestant(
                lambda: torch_encode(x, weight, bias, k), peak("torch_once")
            ),
            "bare GEMM (F.linear)": lambda: F.linear(x, weight, bias),
            "bare GEMM, reused output": lambda: torch.addmm(bias, x, weight.T, out=out),
        },
        cost=roofline.encode(n, d, h, k, x.element_size(), product_dtype(way, dtype)),
    )


@cases(**CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def bench_encode_backward(race: Race, case: Case, dtype: str) -> None:
    """Forward and backward together, to weight and bias: frozen embeddings need no gradient."""
    n, d, h, k = case
    x, weight, bias = tensors(case, dtype)
    weight.requires_grad_(True)
    bias.requires_grad_(True)
    grad = torch.randn(n, k).to(x.dtype)
    out = x.new_empty(n, h)

    def ours() -> Any:
        values = csrkern.encode(x, weight, bias, k=k).values
        return torch.autograd.grad(values, (weight, bias), grad)

    def peer() -> Any:
        values, _ = torch_encode(x, weight, bias, k)
        return torch.autograd.grad(values, (weight, bias), grad)

    def gemm() -> Any:
        with torch.no_grad():
            return torch.addmm(bias, x, weight.T, out=out)

    product = product_dtype("exact", dtype)
    cost = roofline.encode(n, d, h, k, x.element_size(), product)
    # No gradient for x: half of the sparse backward.
    back = roofline.encode_backward(n, d, h, k, x.element_size(), product)
    cost += roofline.Cost(written=back.written, flops=back.flops / 2, dtype=product)
    peers: dict[str, Side] = {
        "linear + topk + relu, autograd": peer,
        "bare forward GEMM, reused output": gemm,
    }
    race(
        "encode forward+backward",
        f"B={n} d={d} h={h} k={k}",
        dtype=dtype,
        ours=ours,
        peers=peers,
        cost=cost,
    )
