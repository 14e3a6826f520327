"""csrtrain: the reference trainer for Contrastive Sparse Representation.

Importing this package does not import PyTorch; its names load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from csrkern import lazy

if TYPE_CHECKING:
    from csrtrain.data import load_embeddings, load_labels
    from csrtrain.encoding import encode_all
    from csrtrain.evaluation.least_squares import pursue, refit
    from csrtrain.training.config import TrainConfig
    from csrtrain.training.loop import StepReport
    from csrtrain.training.loss import CSRLoss
    from csrtrain.training.train import train, train_two

_HOME_OF = {
    "CSRLoss": "loss",
    "StepReport": "trainer",
    "TrainConfig": "config",
    "encode_all": "evaluate",
    "load_embeddings": "data",
    "load_labels": "data",
    "pursue": "least_squares",
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
    "pursue",
    "refit",
    "train",
    "train_two",
]

__getattr__, __dir__ = lazy.attributes(__name__, _HOME_OF)
