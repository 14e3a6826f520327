"""topk_relu against torch.topk followed by ReLU, both from pre-activations in memory."""

from __future__ import annotations

import pytest
import torch

import csrkern
from benchmarks.harness.race import Race, cases
from csrkern import roofline

ON_GPU = True


@cases(tiny=[(16, 2048)], quick=[(1024, 8192)], full=[(1024, 8192), (2048, 8192), (4096, 8192)])
@pytest.mark.parametrize("k", [8, 32, 64, 128, 256, 512, 1024])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def bench_topk_relu(race: Race, case: tuple[int, int], dtype: str, k: int) -> None:
    n, h = case
    pre = torch.randn(n, h).to(getattr(torch, dtype))

    def peer() -> tuple[torch.Tensor, torch.Tensor]:
        values, indices = torch.topk(pre, k)
        return values.relu_(), indices

    assert torch.equal(csrkern.topk_relu(pre, k).values, peer()[0])
    race(
        "topk_relu",
        f"[{n}, {h}] k={k}",
        dtype=dtype,
        ours=lambda: csrkern.topk_relu(pre, k),
        peers={"torch.topk + relu": peer},
        cost=roofline.topk_relu(n, h, k, pre.element_size()),
    )
