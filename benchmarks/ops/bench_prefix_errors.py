"""Errors at every k, forward and backward, against decoding at several k and at the last alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import csrkern
from benchmarks.harness import peak_memory
from benchmarks.harness.race import Contestant, Race, cases
from csrkern import roofline

ON_GPU = True
Case = tuple[int, int, int, int]  # n, d, h, k
CASES: dict[str, list[Case]] = {
    "tiny": [(64, 32, 256, 8)],
    "quick": [(4096, 768, 8192, 128)],
    "full": [(4096, 768, 8192, 128), (4096, 768, 8192, 32), (512, 1024, 4096, 128)],
}


class Batch:
    """Rows, codes of random pre-activations, and a dictionary; values and dictionary are leaves."""

    def __init__(self, case: Case) -> None:
        n, d, h, k = case
        made = csrkern.topk_relu(torch.randn(n, h), k)
        self.x = torch.randn(n, d)
        self.weight = torch.randn(h, d).mul_(d**-0.5).requires_grad_(True)
        self.codes = csrkern.SparseCodes(made.values.requires_grad_(True), made.indices, h)

    def gradients(self, loss: Tensor) -> Any:
        """Differentiate the loss."""
        return torch.autograd.grad(loss, (self.codes.values, self.weight))

    def every_k(self) -> Tensor:
        """Mean of the errors at every k."""
        return csrkern.prefix_errors(self.x, self.codes, self.weight).mean()

    def decoded(self, ks: Sequence[int]) -> Tensor:
        """Mean of the errors at some k, by decoding at each."""
        parts = csrkern.decode(self.codes, self.weight, ks=ks)
        return torch.stack([F.mse_loss(part, self.x) for part in parts]).mean()

    def decoded_at_every_k(self) -> Tensor:
        """Mean of the errors at every k, by decoding at eight of them at a time."""
        every = range(1, self.codes.k + 1)
        parts = [every[first : first + 8] for first in range(0, self.codes.k, 8)]
        return torch.stack([self.decoded(part) * len(part) for part in parts]).sum() / self.codes.k


@cases(**CASES)
def bench_prefix_errors(race: Race, case: Case) -> None:
    n, d, h, k = case
    batch = Batch(case)
    some = [width for width in (4, 8, 16, 32, 64, 128) if width <= k]

    def passes(loss: Callable[[], Tensor]) -> Callable[[], Any]:
        return lambda: batch.gradients(loss())

    memory = {
        name: peak_memory.measure(f"{__name__}:{name}", case, threads=race.threads)["peak_mb"]
        for name in ("every_k_once", "last_k_once")
    }
    torch.testing.assert_close(batch.every_k(), batch.decoded_at_every_k())
    race(
        "prefix_errors forward+backward",
        f"B={n} d={d} h={h} k={k}",
        ours=Contestant(passes(batch.every_k), {"peak_mb": memory["every_k_once"]}),
        peers={
            "decode at the last k": Contestant(
                passes(lambda: batch.decoded([k])), {"peak_mb": memory["last_k_once"]}
            ),
            f"decode at {len(some)} k": passes(lambda: batch.decoded(some)),
            "decode at every k": passes(batch.decoded_at_every_k),
        },
        cost=roofline.prefix_errors(n, d, h, k) + roofline.prefix_errors_backward(n, d, h, k),
    )


def every_k_once(case: Case) -> Callable[[], Any]:
    """For peak_memory."""
    batch = Batch(case)
    return lambda: batch.gradients(batch.every_k())


def last_k_once(case: Case) -> Callable[[], Any]:
    """For peak_memory."""
    batch = Batch(case)
    return lambda: batch.gradients(batch.decoded([case[3]]))
