"""The steps of a run: graphs of them, as far as a CPU can tell, give what no graph gives."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from synchronizing import NoWaiting

import csrtrain.training.graphed as graphed
import csrtrain.training.steps as steps
from csrkern.nn import SparseAutoencoder
from csrtrain import TrainConfig, train
from csrtrain.training.graphed import step_once
from csrtrain.training.loss import CSRLoss
from csrtrain.training.train import train_two

pytestmark = pytest.mark.usefixtures("one_thread")

# A rate that a float32 tensor, which graphs read it from, holds exactly.
SMALL = TrainConfig(hidden_dim=64, k=4, k_aux=8, batch_size=64, steps=24, lr=2**-10)
NEVER, OFTEN = {"dead_threshold": 1000}, {"dead_threshold": 3}


@pytest.fixture
def x() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (3 + rng.standard_normal((10, 16))[np.arange(500) % 10]).astype(
        np.float32
    ) + 0.3 * rng.standard_normal((500, 16)).astype(np.float32)


@pytest.fixture
def captured(monkeypatch) -> list[int]:
    """Steps are taken as on a GPU, but for replays, which run again what would be captured.

    A list that gets the room for dead latents of every graph.
    """
    rooms: list[int] = []

    def capture(run, device):
        terms = run()

        def replay():
            for held, new in zip(terms.values(), run().values(), strict=True):
                held.copy_(new)

        return terms, replay

    class Watched(graphed.GraphedStep):
        def __init__(self, model, *args, **options):
            rooms.append(model.dead_capacity)
            super().__init__(model, *args, **options)

    monkeypatch.setattr(graphed, "capture", capture)
    monkeypatch.setattr(steps, "GraphedStep", Watched)
    monkeypatch.setattr(steps, "_on_gpu", lambda device: True)
    monkeypatch.setattr(steps, "LEAST_DEAD", 8)
    return rooms


def run(x, y, config, **options):
    """A model and the losses of its steps."""
    history = []
    model = train(x, y, config, progress=False, on_step=history.append, **options)
    return model, [report.losses for report in history]


def close(a, b, **tolerance):
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, **tolerance)


@pytest.mark.parametrize("contrast", ["self", "label", None])
@pytest.mark.parametrize("changes", [{}, {"ks": (2,), "balance": 0.1}])
def test_graphs_give_the_same_model_bit_for_bit(x, captured, contrast, changes):
    config = dataclasses.replace(SMALL, contrast=contrast, **{**NEVER, **changes})
    y = np.arange(500) % 10 if contrast == "label" else None
    graphs = run(x, y, config)
    assert captured == [0]  # one graph serves all steps
    eager = run(x, y, config, graphs=False)
    assert captured == [0]
    assert graphs[1] == eager[1]
    close(graphs[0], eager[0], rtol=0, atol=0)


def test_graphs_look_at_all_that_are_dead(x, captured):
    config = dataclasses.replace(SMALL, **OFTEN)
    graphs, eager = run(x, None, config), run(x, None, config, graphs=False)
    assert captured[0] == 0
    assert len(captured) > 1
    assert any(losses["aux"] > 0 for losses in eager[1])
    for got, want in zip(graphs[1], eager[1], strict=True):
        assert got == pytest.approx(want, rel=1e-4, abs=1e-6)
    close(graphs[0], eager[0], rtol=1e-3, atol=1e-4)
    assert graphs[0].dead_capacity is None


def test_room_for_the_dead(monkeypatch):
    monkeypatch.setattr(steps, "LEAST_DEAD", 8)
    assert [steps.room_for(dead) for dead in (0, 1, 8, 9, 64, 65)] == [0, 8, 8, 16, 64, 128]


@pytest.mark.usefixtures("captured")
def test_a_run_resumes_between_graphs_and_steps_without(x, tmp_path):
    config = dataclasses.replace(SMALL, **NEVER, decay=0.5)
    want, _ = run(x, None, config)

    class Killed(Exception):
        pass

    def stop(report):
        if report.step == 13:
            raise Killed

    options = {"checkpoint_dir": tmp_path, "checkpoint_every": 5, "progress": False}
    with pytest.raises(Killed):
        train(x, None, config, on_step=stop, **options)
    resumed = train(x, None, config, resume=True, graphs=False, **options)
    close(resumed, want, rtol=0, atol=0)


@pytest.mark.usefixtures("captured")
def test_two_adapters(x):
    config = dataclasses.replace(SMALL, contrast="clip", **NEVER)
    graphs = train_two(x, x[:, :9].copy(), config, progress=False)
    eager = train_two(x, x[:, :9].copy(), config, progress=False, graphs=False)
    for got, want in zip(graphs, eager, strict=True):
        close(got, want, rtol=0, atol=0)


def test_annealed_runs_have_no_graph(x, captured):
    config = dataclasses.replace(SMALL, anneal=True, steps=3)
    run(x, None, config)
    assert captured == []


@pytest.mark.parametrize("graphs", [True, False])
def test_no_step_is_taken_on_a_loss_that_is_not_finite(x, captured, monkeypatch, graphs):
    config = dataclasses.replace(SMALL, steps=2)
    taken = []

    class Broken(CSRLoss):
        def forward(self, model, x, *args, **options):
            taken.append({name: p.detach().clone() for name, p in model.named_parameters()})
            taken.append(model)
            terms = super().forward(model, x, *args, **options)
            return {**terms, "loss": terms["loss"] * float("nan")}

    monkeypatch.setattr("csrtrain.training.loop.CSRLoss", Broken)
    with pytest.raises(FloatingPointError, match=r"step 1: .* no step was taken"):
        run(x, None, config, graphs=graphs)
    before, model = taken[-2:]
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
    assert bool(captured) == graphs


@pytest.mark.parametrize("contrast", ["pair", "clip"])
@pytest.mark.parametrize("adapters", [1, 2])
def test_step_makes_no_host_wait(contrast, adapters):
    first, second = (SparseAutoencoder(16, 640, k=4, k_aux=8).train() for _ in range(2))
    for model in (first, second):
        model.dead_capacity = 640
        model.stats_last_nonzero[:] = 100  # few of them can be used by one batch
    parameters = [*first.parameters(), *second.parameters()]
    optimizer = torch.optim.Adam(parameters, fused=True)
    x, partners, labels = (*torch.randn(2, 32, 16).unbind(), torch.arange(32) // 2)
    options = {"partners": partners, "partner_model": second if adapters == 2 else None}
    with NoWaiting():
        terms = step_once(
            first, CSRLoss(contrast=contrast, balance=0.1), optimizer, x, labels, **options
        )
    assert float(terms["aux"]) > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("changes", [NEVER, OFTEN, {"autocast": True, **NEVER}])
def test_graphs_on_a_gpu(x, changes):
    config = dataclasses.replace(SMALL, **changes)
    graphs, eager = run(x, None, config), run(x, None, config, graphs=False)
    exact = {"rtol": 0, "atol": 0} if changes is NEVER else {"rtol": 1e-2, "atol": 1e-3}
    close(graphs[0], eager[0], **exact)
