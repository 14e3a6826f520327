"""The training step as one CUDA graph and as one compiled graph, as far as a CPU can tell."""

from __future__ import annotations

import copy

import pytest
import torch
from synchronizing import NoWaiting
from torch._subclasses.fake_tensor import FakeTensorMode

import csrkern
from csrkern.nn import SparseAutoencoder
from csrtrain.training.graphed import GraphedStep, _tensors, restore, step_once
from csrtrain.training.loss import CSRLoss

VARIANTS = ["self", "label", None]


def a_model(tied=True, dead=(3, 7, 50)):
    """A model of which some latents are dead."""
    model = SparseAutoencoder(12, 64, k=4, k_aux=8, tied=tied, dead_threshold=2).train()
    model.stats_last_nonzero[list(dead)] = torch.arange(3, 3 + len(dead))
    return model


def a_batch(contrast):
    labels = torch.randint(0, 3, (16,)) if contrast == "label" else None
    return torch.randn(16, 12), labels


def adam(model, **options):
    return torch.optim.Adam(model.parameters(), lr=1e-2, **options)


@pytest.mark.parametrize("dead", [(), (3, 7, 50), tuple(range(20))])
def test_static_shapes_change_no_step(dead):
    one = a_model(dead=dead)
    other = copy.deepcopy(one)
    other.dead_capacity = 64
    x, _ = a_batch("self")
    losses = [CSRLoss()(model, x) for model in (one, other)]
    for terms in losses:
        terms["loss"].backward()
    for name, term in losses[0].items():
        torch.testing.assert_close(term, losses[1][name], msg=name)
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_no_capacity_is_for_none():
    model = a_model()
    model.dead_capacity = 0
    assert model.reconstruct_dead(torch.randn(5, 12)) is None


def test_capacity_is_for_those_longest_unused():
    model = a_model(dead=(3, 7, 50))
    model.dead_capacity = 1
    x = torch.randn(5, 12)
    got = model.reconstruct_dead(x)
    model.stats_last_nonzero[[3, 7]] = 0
    model.dead_capacity = None
    torch.testing.assert_close(got, model.reconstruct_dead(x))


@pytest.mark.parametrize("contrast", VARIANTS)
@pytest.mark.parametrize("tied", [True, False])
def test_step_makes_no_host_wait(contrast, tied):
    model, loss = a_model(tied, range(20)), CSRLoss(contrast=contrast, ks=(2,))
    model.dead_capacity = 64
    x, labels = a_batch(contrast)
    with NoWaiting():
        terms = loss(model, x, labels)
        terms["loss"].backward()
    assert bool(model.dead.any())
    assert float(terms["aux"].detach()) > 0


def test_the_mode_sees_what_waits():
    model = a_model()  # looks for the dead ones
    with NoWaiting(), pytest.raises(AssertionError, match="wait"):
        CSRLoss()(model, torch.randn(16, 12))
    with NoWaiting(), pytest.raises(AssertionError, match="wait"):
        torch.randn(4)[torch.rand(4) < 0.5]


@pytest.mark.parametrize("contrast", VARIANTS)
def test_step_on_tensors_that_hold_nothing(contrast):
    # Shapes alone decide every shape.
    with FakeTensorMode():
        model = SparseAutoencoder(12, 64, k=4, k_aux=8).train()
        model.dead_capacity = 64
        x, labels = a_batch(contrast)
        terms = CSRLoss(contrast=contrast)(model, x, labels)
        terms["loss"].backward()
        assert all(p.grad.shape == p.shape for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("contrast", VARIANTS)
def test_step_compiles_whole(contrast):
    model, loss = a_model(), CSRLoss(contrast=contrast)
    other = copy.deepcopy(model)

    def step(x, labels):
        return loss(model, x, labels)["loss"]

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        x, labels = a_batch(contrast)
        got, want = compiled(x, labels), loss(other, x, labels)["loss"]
        torch.testing.assert_close(got, want)
        got.backward()
        want.backward()
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5)
        assert torch.equal(model.stats_last_nonzero, other.stats_last_nonzero)


def test_state_is_given_back():
    model, loss = a_model(), CSRLoss()
    optimizer = adam(model)
    x, _ = a_batch("self")
    fresh = copy.deepcopy(model)
    before = _tensors([model], optimizer)
    saved = [tensor.clone() for tensor in before]
    step_once(model, loss, optimizer, x, None)
    restore([model], optimizer, before, saved)
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    other = adam(fresh)
    step_once(model, loss, optimizer, x, None)
    step_once(fresh, loss, other, x, None)
    for p, q in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(p, q)


def test_what_cannot_be_captured():
    model = a_model()
    with pytest.raises(ValueError, match="model: expected it on a CUDA device, got one on cpu"):
        GraphedStep(model, CSRLoss(), adam(model, capturable=True), torch.randn(16, 12))
    with pytest.raises(ValueError, match="capturable=True"):
        GraphedStep(model, CSRLoss(), adam(model), torch.randn(16, 12))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("contrast", VARIANTS)
def test_graph_takes_the_steps_that_python_takes(contrast):
    model, loss = a_model().cuda(), CSRLoss(contrast=contrast)
    other = copy.deepcopy(model)
    x, labels = a_batch(contrast)
    step = GraphedStep(model, loss, adam(model, capturable=True), x, labels)
    optimizer = adam(other, capturable=True)
    other.dead_capacity = 64
    for _ in range(4):
        x, labels = (None if t is None else t.cuda() for t in a_batch(contrast))
        got = step(x, labels)
        want = step_once(other, loss, optimizer, x, labels)
        assert torch.equal(got["loss"], want["loss"])
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
    codes = model.encode(x)
    assert codes.equal(csrkern.encode(x, other.encoder.weight, other.latent_bias, k=4,
                                      pre_bias=other.pre_bias))  # fmt: skip
