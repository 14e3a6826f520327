"""One CSR training step against sentence-transformers' SparseAutoEncoder and CSRLoss.

Both sides take the same embeddings in memory and end with the same fused Adam. A quarter of
the latents is dead, so that the auxiliary term has its full work on both sides: their weights
are small, which keeps them out of every top-k while half their pre-activations stay positive,
and the learning rate is tiny, which keeps it so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

import csrkern.nn
import csrtrain
from benchmarks.harness.race import Missing, Race, Side, cases
from benchmarks.ops.codes import sparse_products
from csrkern import roofline
from csrkern.ops import _encode_cpu

BETA, GAMMA, TEMPERATURE = 1 / 32, 0.1, 0.2
Case = tuple[int, int, int, int, int]  # n, d, h, k, k_aux


@cases(
    tiny=[(64, 32, 256, 8, 16)],
    quick=[(4096, 768, 8192, 32, 512)],
    full=[(4096, 768, 8192, 32, 512), (1024, 384, 1536, 32, 512), (1024, 768, 8192, 32, 512)],
)
def bench_train_step(race: Race, case: Case) -> None:
    n, d, h, k, k_aux = case
    x = torch.randn(n, d)
    model = csrkern.nn.SparseAutoencoder(d, h, k, k_aux=k_aux)
    dead = kill_a_quarter(model)
    loss = csrtrain.CSRLoss(BETA, GAMMA, TEMPERATURE, contrast="self")
    step = stepper(model, lambda: loss(model, x)["loss"])

    weight, bias = torch.randn(h, d).mul_(d**-0.5), torch.zeros(h)
    out = x.new_empty(n, h)

    def gemm() -> Any:
        with torch.no_grad():
            return torch.addmm(bias, x, weight.T, out=out)

    with torch.no_grad():
        codes = model.encode(x)
    product = "bfloat16" if _encode_cpu.PROPOSE_IN_BFLOAT16 else "float32"
    race(
        "train step",
        f"B={n} d={d} h={h} k={k} k_aux={k_aux}",
        ours=step,
        peers={**sentence_transformers_steps(case, x), "one bare encoder GEMM": gemm},
        cost=roofline.train_step(n, d, h, k, k_aux, sparse_products(codes, codes), dtype=product),
        note=f"{int(dead.sum())} latents dead",
    )
    assert torch.equal(model.dead, dead), "the set of dead latents changed during the race"


def sentence_transformers_steps(case: Case, x: torch.Tensor) -> dict[str, Side]:
    """The package's own module and loss, in the order a user of its trainer gets them.

    CSRLoss wants two views of every row. "as shipped" hands it the embeddings twice, as one
    must, and its module then runs twice; "one pass" calls the two losses that CSRLoss is made
    of on a single run of the module, which is the work that ours does.
    """
    names = ("sentence-transformers, one pass", "sentence-transformers, as shipped")
    try:
        from sentence_transformers.sparse_encoder import SparseEncoder
        from sentence_transformers.sparse_encoder.losses import CSRLoss
        from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder
    except ImportError as error:
        return dict.fromkeys(names, Missing(f"pip install 'csrkern[bench]' ({error})"))
    _, d, h, k, k_aux = case

    def make() -> tuple[Any, Any]:
        encoder = SparseEncoder(
            modules=[SparseAutoEncoder(d, hidden_dim=h, k=k, k_aux=k_aux)], device="cpu"
        )
        kill_a_quarter(encoder[0])
        return encoder, CSRLoss(encoder, beta=BETA, gamma=GAMMA)

    def one_pass(encoder: Any, loss: Any) -> torch.Tensor:
        output = encoder({"sentence_embedding": x})
        terms = loss.reconstruction_loss.compute_loss_from_embeddings([output])
        codes = output["sentence_embedding"]
        contrast = loss.loss.compute_loss_from_embeddings([codes, codes], None)
        return sum(terms.values()) + loss.gamma * contrast

    def as_shipped(encoder: Any, loss: Any) -> torch.Tensor:
        return sum(loss([{"sentence_embedding": x}, {"sentence_embedding": x}]).values())

    sides: dict[str, Side] = {}
    for name, forward in zip(names, (one_pass, as_shipped), strict=True):
        encoder, loss = make()
        sides[name] = stepper(encoder, partial(forward, encoder, loss))
    return sides


def stepper(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """Zero, forward, backward, Adam."""
    model.train()
    adam = torch.optim.Adam(model.parameters(), lr=1e-8, eps=6.25e-10, fused=True)

    def step() -> None:
        adam.zero_grad(set_to_none=True)
        loss().backward()
        adam.step()

    return step


def kill_a_quarter(model: Any) -> torch.Tensor:
    """Makes the last quarter of the latents dead for good; returns the mask [h]."""
    h, d = model.encoder.weight.shape
    dead = torch.arange(h) >= h - h // 4
    with torch.no_grad():
        F.normalize(torch.randn(h, d), out=model.encoder.weight)
        model.encoder.weight[dead] *= 0.02
        model.stats_last_nonzero[dead] = model.dead_threshold + 1
    return dead
