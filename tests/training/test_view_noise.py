"""`view_noise`: what the second views of a training are."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from csrtrain import TrainConfig, train
from csrtrain.training import batches
from csrtrain.training import loop as trainer

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = TrainConfig(hidden_dim=64, k=4, batch_size=64, steps=30, dead_threshold=3)


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    """Rows around 10 centres, far from the origin."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((10, 16))
    noise = 0.3 * rng.standard_normal((500, 16))
    return (3.0 + centres[np.arange(500) % 10] + noise).astype(np.float32)


def views_of(x, config, steps=2):
    """[steps, batch, d] of the rows of a run, and as many of their views."""
    seen = []

    class Watched(trainer.CSRLoss):
        def forward(self, model, x, *args, views=None, **options):
            seen.append(torch.stack([x, x if views is None else views]))
            return super().forward(model, x, *args, views=views, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "CSRLoss", Watched)
        train(x, config=dataclasses.replace(config, steps=steps), progress=False)
    return torch.stack(seen, 1)


@pytest.mark.parametrize("mapping", [{}, {"input_subspace": 8}, {"whitening": 0.5}])
def test_views_are_the_rows_with_noise_of_one_size_in_every_direction(x, mapping):
    """And independent from step to step, from row to row and from direction to direction."""
    config = dataclasses.replace(SMALL, **mapping, batch_size=500, view_noise=0.3)
    rows, views = views_of(x, config, steps=40)
    noise = views - rows
    deviation = float(rows[0].var(0, correction=0).mean().sqrt())
    assert float(noise.mean().abs()) < 0.02 * deviation
    torch.testing.assert_close(
        noise.std((0, 1)), torch.full(noise.shape[2:], 0.3 * deviation), rtol=0.05, atol=0
    )
    for part in (noise.flatten(1), noise.transpose(0, 1).flatten(1), noise.flatten(0, 1).T):
        correlation = torch.corrcoef(part).fill_diagonal_(0)
        assert float(correlation.abs().max()) < 6 / part.shape[1] ** 0.5


def test_views_are_drawn_anew_for_each_step_and_seed(x):
    config = dataclasses.replace(SMALL, view_noise=0.3)
    noise = batches.view_noise(0, 5, 64, 16)
    assert torch.equal(noise, batches.view_noise(0, 5, 64, 16))
    for other in ((0, 6, 64, 16), (1, 5, 64, 16)):
        assert not torch.equal(noise, batches.view_noise(*other))
    rows, views = views_of(x, dataclasses.replace(config, view_noise=0.0))
    assert torch.equal(rows, views)
    noisy, plain = (train(x, config=c, progress=False) for c in (config, SMALL))
    assert not torch.equal(noisy.encoder.weight, plain.encoder.weight)
