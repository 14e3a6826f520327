"""csrtrain: the reference trainer for Contrastive Sparse Representation.

Importing this package does not import PyTorch; its names load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from csrtrain.config import TrainConfig
    from csrtrain.data import load_embeddings, load_labels
    from csrtrain.evaluate import encode_all
    from csrtrain.least_squares import refit
    from csrtrain.loss import CSRLoss
    from csrtrain.trainer import StepReport, train, train_two

_HOME_OF = {
    "CSRLoss": "loss",
    "StepReport": "trainer",
    "TrainConfig": "config",
    "encode_all": "evaluate",
    "load_embeddings": "data",
    "load_labels": "data",
    "refit": "least_squares",
    "train": "trainer",
    "train_two": "trainer",
}

__all__ = [
    "CSRLoss",
    "StepReport",
    "TrainConfig",
    "encode_all",
    "load_embeddings",
    "load_labels",
    "refit",
    "train",
    "train_two",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'csrtrain' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"csrtrain.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
