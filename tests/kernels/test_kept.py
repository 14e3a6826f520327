"""A rounded weight is kept while nothing can have changed it."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from csrkern.kernels.encode import kept
from csrkern.nn import SparseAutoencoder


class Maker:
    """Counts what it makes."""

    def __init__(self):
        self.made = 0

    def __call__(self, weight, bias=None):
        def make():
            self.made += 1
            return torch.zeros(1)

        return kept.kept(weight, bias, make)


@pytest.fixture
def make():
    return Maker()


@pytest.fixture
def weight():
    weight = torch.randn(5, 3)
    kept.keep(weight)
    return weight


def test_made_once(make, weight):
    first = make(weight)
    assert make(weight) is first
    kept.keep(weight)
    assert make(weight) is first
    assert make.made == 1


@pytest.mark.parametrize("change", [
    lambda weight: weight.mul_(2),
    lambda weight: setattr(weight, "data", weight.clone()),
    kept.forget,
])  # fmt: skip
def test_made_anew_after_a_change(make, weight, change):
    make(weight)
    change(weight)
    make(weight)
    assert make.made == 2


def test_another_bias(make, weight):
    first, second = torch.randn(5), torch.randn(5)
    for bias in (first, first, second, second, None, None):
        make(weight, bias)
    assert make.made == 3
    make(weight, first)
    first.add_(1)
    make(weight, first)
    assert make.made == 5


def test_another_stream(make, weight, monkeypatch):
    make(weight)
    monkeypatch.setattr(kept, "_stream", lambda _: 7)
    make(weight)
    make(weight)
    assert make.made == 2


def test_nothing_is_kept_of_other_weights_or_in_a_graph(make, weight, monkeypatch):
    other = torch.randn(5, 3)
    with torch.inference_mode():
        without_version = torch.randn(5, 3)
    kept.keep(without_version)
    for _ in range(2):
        make(other)
        make(without_version)
        make(weight, without_version)
    assert make.made == 6
    monkeypatch.setattr(kept, "_is_capturing", lambda _: True)
    make(weight)
    make(weight)
    assert make.made == 8


def test_freed_with_the_weight():
    weight = torch.randn(5, 3)
    kept.keep(weight)
    made = kept.kept(weight, None, lambda: torch.zeros(1))
    alive = weakref.ref(made)
    del made
    assert alive() is not None
    del weight
    gc.collect()
    assert alive() is None


def test_models_keep_it_where_they_are_not_trained():
    model = SparseAutoencoder(6, 12, k=2)
    x, weight = torch.randn(3, 6), model.encoder.weight

    def encode_keeps():
        model.encode(x)
        return weight in kept._known

    with torch.no_grad():
        assert not encode_keeps()
        model.eval()
        assert encode_keeps()
        model.train()
        assert weight not in kept._known
        model.eval()
        assert encode_keeps()
    assert not encode_keeps()  # a step may follow, that leaves no trace
