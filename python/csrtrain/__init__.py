"""csrtrain: the reference trainer for Contrastive Sparse Representation.

Importing this package does not import PyTorch; its names load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from csrkern import lazy

if TYPE_CHECKING:
    from csrkern.embeddings.dataset import load_embeddings
    from csrkern.embeddings.labels import load_labels
    from csrtrain.evaluation.least_squares import encode_omp, refit
    from csrtrain.training.config import TrainConfig
    from csrtrain.training.loop import StepReport
    from csrtrain.training.loss import CSRLoss
    from csrtrain.training.train import train, train_two

_HOME_OF = {
    "load_embeddings": "csrkern.embeddings.dataset",
    "load_labels": "csrkern.embeddings.labels",
    "CSRLoss": ".training.loss",
    "StepReport": ".training.loop",
    "TrainConfig": ".training.config",
    "encode_omp": ".evaluation.least_squares",
    "refit": ".evaluation.least_squares",
    "train": ".training.train",
    "train_two": ".training.train",
}

__all__ = [
    "CSRLoss",
    "StepReport",
    "TrainConfig",
    "encode_omp",
    "load_embeddings",
    "load_labels",
    "refit",
    "train",
    "train_two",
]

__getattr__, __dir__ = lazy.attributes(__name__, _HOME_OF)
