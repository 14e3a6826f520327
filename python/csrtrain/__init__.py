"""csrtrain: the reference trainer for Contrastive Sparse Representation.

Importing this package does not import PyTorch; its names load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from csrkern import lazy

if TYPE_CHECKING:
    from csrkern.embeddings.dataset import load_embeddings as load_embeddings
    from csrkern.embeddings.labels import load_labels as load_labels
    from csrtrain.evaluation.least_squares import encode_omp as encode_omp
    from csrtrain.evaluation.least_squares import refit as refit
    from csrtrain.indexing import build_index as build_index
    from csrtrain.training.config import TrainConfig as TrainConfig
    from csrtrain.training.loop import StepReport as StepReport
    from csrtrain.training.loss import CSRLoss as CSRLoss
    from csrtrain.training.projection import learn_projection as learn_projection
    from csrtrain.training.projection import principal_projection as principal_projection
    from csrtrain.training.quantizer import train_quantizer as train_quantizer
    from csrtrain.training.train import train as train
    from csrtrain.training.train import train_two as train_two
    from csrtrain.tuning import tune as tune

_HOME_OF = {
    "load_embeddings": "csrkern.embeddings.dataset",
    "load_labels": "csrkern.embeddings.labels",
    "CSRLoss": ".training.loss",
    "StepReport": ".training.loop",
    "TrainConfig": ".training.config",
    "build_index": ".indexing",
    "encode_omp": ".evaluation.least_squares",
    "refit": ".evaluation.least_squares",
    "learn_projection": ".training.projection",
    "principal_projection": ".training.projection",
    "train": ".training.train",
    "train_quantizer": ".training.quantizer",
    "train_two": ".training.train",
    "tune": ".tuning",
}

__all__ = sorted(_HOME_OF)

__getattr__, __dir__ = lazy.attributes(__name__, _HOME_OF)
