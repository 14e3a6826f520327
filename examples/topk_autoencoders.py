"""A TopK autoencoder of SAELens and one of EleutherAI's sparsify, as they come and on csrkern.

pip install sae-lens eai-sparsify
SPARSIFY_DISABLE_TRITON=1 python examples/topk_autoencoders.py  # the variable: on a CPU only
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import torch
from torch import Tensor

from csrkern.integrations import sae_lens as fast_sae_lens
from csrkern.integrations import sparsify as fast_sparsify
from csrtrain.demo.data import load_demo

Step = Callable[[Tensor], Tensor]


def sae_lens_step(d: int, h: int, k: int) -> Step:
    """The loss of a training step of SAELens, which takes rows [n, d]."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    torch.manual_seed(0)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d, d_sae=h, k=k))
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3)
    known = {field.name for field in dataclasses.fields(TrainStepInput)}

    def step(x: Tensor) -> Tensor:
        facts = {"coefficients": {}, "dead_neuron_mask": None, "n_training_steps": 0}
        facts["is_logging_step"] = False
        chosen = {name: fact for name, fact in facts.items() if name in known}
        loss = sae.training_forward_pass(TrainStepInput(sae_in=x, **chosen)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def sparsify_step(d: int, h: int, k: int) -> Step:
    """The unexplained variance in a training step of sparsify, which takes rows [n, d]."""
    from sparsify import SparseCoder, SparseCoderConfig

    torch.manual_seed(0)
    coder = SparseCoder(d, SparseCoderConfig(num_latents=h, k=k))
    optimizer = torch.optim.Adam(coder.parameters(), lr=1e-3)

    def step(x: Tensor) -> Tensor:
        loss = coder(x).fvu
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def run(step: Step, x: Tensor, steps: int, batch: int) -> tuple[Tensor, float]:
    """The last loss, and the fastest step's seconds."""
    seconds = []
    for i in range(steps):
        first = i * batch % max(1, len(x) - batch + 1)
        began = time.perf_counter()
        loss = step(x[first : first + batch])
        seconds.append(time.perf_counter() - began)
    return loss, min(seconds)


if __name__ == "__main__":
    rows = torch.from_numpy(load_demo().train).float()
    for name, make, package in (
        ("SAELens", sae_lens_step, fast_sae_lens),
        ("sparsify", sparsify_step, fast_sparsify),
    ):
        sizes = rows.shape[1], 8192, 32
        loss, seconds = run(make(*sizes), rows, steps=12, batch=1024)
        with package.accelerate():
            fast_loss, fast_seconds = run(make(*sizes), rows, steps=12, batch=1024)
        print(
            f"{name}: loss {float(loss):.5f}, {1e3 * seconds:.0f} ms a step; on csrkern "
            f"{float(fast_loss):.5f}, {1e3 * fast_seconds:.0f} ms: {seconds / fast_seconds:.1f}×"
        )
