"""train: the smallest and largest settings and embeddings that are allowed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csrkern.nn import SparseAutoencoder
from csrtrain import TrainConfig, train


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32)


def quiet(x: np.ndarray, config: TrainConfig) -> SparseAutoencoder:
    return train(x, config=config, progress=False)


@pytest.mark.parametrize(
    "options",
    [
        {"k": 4, "k_aux": 0},
        {"k": 4, "k_aux": 10_000},
        {"k": 12, "hidden_dim": 16},  # 4k > h
        {"k": 16, "hidden_dim": 16},
        {"k": 2, "hidden_dim": 4},  # h < d
        {"k": 1, "hidden_dim": 1},
        {"k": 2, "batch_size": 1},
        {"k": 2, "batch_size": 10_000},
        {"k": 9, "ks": (1, 2, 3, 5, 7, 8)},
        {"k": 2, "whitening": 1.0, "input_subspace": 1},
        {"k": 2, "gamma": 0.0, "beta": 0.0, "contrast": None},
        {"k": 2, "steps": 1, "anneal": True},
    ],
    ids=str,
)
def test_every_legal_corner_trains(x, options):
    config = TrainConfig(**{"hidden_dim": 64, "steps": 3, **options})
    model = quiet(x[:100], config=config)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    codes = model.encode(x[:50])
    assert codes.k == options["k"]
    assert bool(codes.active.any())


@pytest.mark.parametrize("factor", [1e-9, 1e9])
def test_embeddings_of_other_sizes_train_as_well(x, factor):
    config = TrainConfig(k=4, ks=(), hidden_dim=64, batch_size=64, steps=5)
    plain, scaled = (quiet(rows, config=config) for rows in (x, x * np.float32(factor)))
    codes, others = plain.encode(x[:50]), scaled.encode(x[:50] * np.float32(factor))
    assert (codes.indices == others.indices).float().mean() > 0.9


@pytest.mark.parametrize("contrast", ["self", None])
def test_one_feature(x, contrast):
    config = TrainConfig(k=1, hidden_dim=4, steps=3, contrast=contrast)
    model = quiet(x[:100, :1], config=config)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
