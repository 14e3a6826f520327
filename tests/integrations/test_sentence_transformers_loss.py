"""sentence-transformers' CSRLoss: the package's own, and on our kernels.

Tests with the fixture `side` run both ways and know nothing of the other one.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from st_models import VERSION, D, H, SparseEncoder, adapter

from csrkern.integrations.sentence_transformers import patch as integration

losses = pytest.importorskip("sentence_transformers.sparse_encoder.losses")
util = pytest.importorskip("sentence_transformers.util")
trains = pytest.mark.skipif(VERSION < (6, 2), reason="training stays the package's own until 6.1")
pytestmark = [
    pytest.mark.usefixtures("restored"),
    pytest.mark.filterwarnings("error:.*is not accelerated"),
]


def dead_adapter(dead: int, **options: Any) -> Any:
    module = adapter(**options)
    module.stats_last_nonzero[H - dead :] = module.dead_threshold + 5
    return module


def same_adapter(module: Any, dtype: torch.dtype) -> Any:
    """A second one: the function for dead latents of a copy reads the statistics of the first."""
    again = type(module)(**module.get_config_dict()).to(dtype)
    again.load_state_dict(module.state_dict())
    return again


def run_loss(module: Any, views: list[torch.Tensor], make: Any = None, **weights: float) -> Any:
    """Terms, gradients and statistics of one CSRLoss step; `make` makes the base loss."""
    module = same_adapter(module, views[0].dtype)
    model = SparseEncoder(modules=[module], device="cpu").train()
    loss = losses.CSRLoss(model, loss=make and make(model), **weights)
    views = [view.clone().requires_grad_() for view in views]  # a backbone may train too
    terms = loss([{"sentence_embedding": view} for view in views])
    sum(terms.values()).backward()
    grads = {name: p.grad for name, p in module.named_parameters()}
    grads |= {f"view {i}": view.grad for i, view in enumerate(views)}
    return terms, grads, module.stats_last_nonzero


def assert_same_step(got: Any, want: Any) -> None:
    """Within float32: 1e-5 of the largest entry of each tensor."""
    assert list(got[0]) == list(want[0])
    for mine, truth in ((got[0], want[0]), (got[1], want[1])):
        for name, tensor in truth.items():
            bound = 1e-5 * max(1e-3, float(tensor.detach().abs().max()))
            torch.testing.assert_close(mine[name].double(), tensor, rtol=0, atol=bound, msg=name)
    assert torch.equal(got[2], want[2])


@trains
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dead", [0, 5, 30])
@pytest.mark.parametrize("views", [2, 3])
def test_csr_loss_terms_gradients_and_statistics(
    side: str, normalize: bool, dead: int, views: int
) -> None:
    """Against the package's own module in float64."""
    module = dead_adapter(dead, normalize=normalize)
    rows = [torch.randn(24, D) for _ in range(views)]
    got = run_loss(module, rows, beta=0.3, gamma=0.7)
    integration.restore()
    want = run_loss(module, [row.double() for row in rows], beta=0.3, gamma=0.7)
    assert_same_step(got, want)


def ranking(**options: Any) -> Any:
    return lambda model: losses.SparseMultipleNegativesRankingLoss(model, **options)


@trains
@pytest.mark.parametrize(
    "make",
    [
        ranking(scale=20.0, similarity_fct=util.cos_sim),
        ranking(directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"),
        ranking(hardness_mode="hard_negatives", hardness_strength=2.0),
        lambda model: losses.SparseTripletLoss(model),
    ],
    ids=["cosine", "directions", "hardness", "triplet"],
)
def test_other_base_losses(side: str, make: Any) -> None:
    module, rows = dead_adapter(6), [torch.randn(12, D) for _ in range(3)]
    got = run_loss(module, rows, make)
    integration.restore()
    assert_same_step(got, run_loss(module, [row.double() for row in rows], make))


@trains
def test_csr_loss_in_evaluation_changes_no_statistics(side: str) -> None:
    module = dead_adapter(6)
    model = SparseEncoder(modules=[module], device="cpu").eval()
    before = module.stats_last_nonzero.clone()
    with torch.no_grad():
        terms = losses.CSRLoss(model)(
            [{"sentence_embedding": torch.randn(5, D)}] * 1
            + [{"sentence_embedding": torch.randn(5, D)}]
        )
    assert all(torch.isfinite(term) for term in terms.values())
    assert torch.equal(module.stats_last_nonzero, before)


@trains
def test_training_goes_the_same_way(side: str) -> None:
    """Twenty steps of Adam, against the package in float64."""
    module, rows = adapter(dead_threshold=3), [torch.randn(32, D) for _ in range(20)]

    def trained(dtype: torch.dtype) -> list[float]:
        own = same_adapter(module, dtype)
        model = SparseEncoder(modules=[own], device="cpu").train()
        loss = losses.CSRLoss(model, gamma=0.1)
        adam = torch.optim.Adam(model.parameters(), lr=1e-3)
        curve = []
        for x in rows:
            adam.zero_grad()
            view = x.to(dtype)
            total = sum(loss([{"sentence_embedding": view}, {"sentence_embedding": view}]).values())
            total.backward()
            adam.step()
            curve.append(float(total))
        return curve

    got = trained(torch.float32)
    integration.restore()
    assert got == pytest.approx(trained(torch.float64), rel=1e-3)


@trains
def test_too_few_latents_for_4k_train_when_accelerated() -> None:
    """An error in the package; here 4k and k_aux mean all the latents there are."""
    module = dead_adapter(20, k=30, k_aux=500)
    x = torch.randn(12, D)
    with integration.accelerate():
        terms, grads, _ = run_loss(module, [x, x])
    assert float(terms["reconstruction_loss_4k"]) * 8 <= float(terms["reconstruction_loss_k"])
    assert all(torch.isfinite(grad).all() for grad in grads.values())


@trains
def test_the_loss_runs_our_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    autoencode = integration.csrkern.autoencode

    def spy(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(x))
        return autoencode(x, *args, **kwargs)

    module, x = dead_adapter(9), torch.randn(8, D)
    model = SparseEncoder(modules=[module], device="cpu").train()
    monkeypatch.setattr(integration.csrkern, "autoencode", spy, raising=False)
    with integration.accelerate(model):
        losses.CSRLoss(model)([{"sentence_embedding": x}, {"sentence_embedding": x}])
    assert calls == [8, 8]
    losses.CSRLoss(model)([{"sentence_embedding": x}, {"sentence_embedding": x}])
    assert calls == [8, 8]
