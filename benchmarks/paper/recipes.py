"""The trainings that the scripts here compare, and the sizes they are compared at."""

from __future__ import annotations

from typing import Any

from csrtrain import TrainConfig

KS = (4, 8, 16, 32, 64)
PAPER_LOSS: dict[str, Any] = {
    "hidden_dim": None,
    "ks": (),
    "unit_scale": False,
    "lr": 1e-3,
    "decay": 0.0,
    "batch_size": 1024,
}


def paper_loss(k: int, **changes: Any) -> TrainConfig:
    """The paper's loss and h = 4d at this k, at our learning rate and number of steps.

    Its own rates, batches and epochs (`TrainConfig.preset("text")`) are meant for sets of a
    hundred times as many rows.
    """
    return TrainConfig(**{"k": k, **PAPER_LOSS, **changes})


def recommended(k: int, **changes: Any) -> TrainConfig:
    """The default recipe, for every one of `KS` up to k."""
    ks = tuple(below for below in KS if below < k)
    return TrainConfig(**{"k": k, "ks": ks, **changes})


BOTH = {"CSR, the paper's loss": paper_loss, "CSR recommended": recommended}
