"""Which subspace to train in, found by short trainings judged on rows held out of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

import csrkern
from csrkern.nn import SparseAutoencoder
from csrtrain.data import Source, load_labels, open_embeddings, read_through, rows
from csrtrain.encoding import encode_all
from csrtrain.evaluation.metrics import nearest_accuracy
from csrtrain.training.config import TrainConfig
from csrtrain.training.prepare import read_pairs

# Held-out rows decide between candidates to about a point; fitting rows bound the time taken.
FITTING, HELD_OUT = 20_000, 2_000
STEPS = 200
WIDTHS = (32, 64, 128, 256)
NEIGHBOURS = 10


def choose_subspace(
    embeddings: Source,
    labels: Source | None,
    config: TrainConfig,
    partners: Source | None = None,
    pairs: Source | None = None,
    *,
    device: str | torch.device | None = None,
) -> TrainConfig:
    """`config` with the input_subspace that serves it best in place of "auto".

    Candidates are all directions, as they are and with the whitening of `config`, and the
    leading `WIDTHS` as they are. Each is trained for a few hundred steps on some of the rows and
    judged on others, at the smallest and the largest k of the config. What is judged, where it
    is given: labels by 1-NN accuracy; pairs by how often a row finds its partner first. With
    neither: by how many of a row's nearest neighbours among the embeddings are nearest by codes
    as well.
    That asks the codes to keep what the embeddings say of similarity, noise included, so it
    errs on the side of too wide a subspace.

    Arguments as for `csrtrain.train`. Raises what that raises.
    """
    config = config.settle_contrast(labels=labels is not None, partners=partners is not None)
    # Checked here, since a short training would number the rows of its sample.
    name, array = open_embeddings("embeddings", embeddings)
    read_through(name, array)
    d = array.shape[1]
    candidates = [
        dataclasses.replace(config, input_subspace=width, whitening=whitening)
        for width, whitening in (
            *((None, whitening) for whitening in dict.fromkeys((config.whitening, 0.0))),
            *((width, 0.0) for width in reversed(WIDTHS) if width < d),
        )
    ]
    judge: Any
    fitting: tuple[Tensor, Tensor | None]
    if partners is not None:
        name, other = open_embeddings("partners", partners)
        read_through(name, other)
        both = read_pairs(pairs, len(array), len(other))
        fit, held = _split(len(both), config.seed)
        fitting = (rows(array, both[fit, 0]), None)
        options = {"partners": rows(other, both[fit, 1])}
        sides = rows(array, both[held, 0]), rows(other, both[held, 1]), both[held, 1]

        def judge(model: SparseAutoencoder, k: int) -> float:
            return _partners_found(model, k, *sides)
    else:
        fit, held = _split(len(array), config.seed)
        x, queries = rows(array, fit), rows(array, held)
        y = None if labels is None else load_labels(labels, n=len(array))
        fitting, options = (x, None if y is None else y[fit]), {}
        dense = _nearest(x, queries) if y is None else None

        def judge(model: SparseAutoencoder, k: int) -> float:
            database, asked = encode_all(model, x, k), encode_all(model, queries, k)
            if y is not None:
                return nearest_accuracy(database, y[fit], asked, y[held])
            assert dense is not None
            return _agreement(database, asked, dense)

    ks = {min((*config.prefixes, config.k)), config.k}
    best, best_score = config, -1.0
    for candidate in candidates:
        model = _short_training(*fitting, candidate, options, device)
        score = sum(judge(model, k) for k in ks) / len(ks)
        if score > best_score:
            best, best_score = candidate, score
    return best


def _short_training(
    x: Tensor,
    y: Tensor | None,
    config: TrainConfig,
    options: dict[str, Any],
    device: str | torch.device | None,
) -> SparseAutoencoder:
    from csrtrain.training.train import train

    resolved = config.resolve(len(x), x.shape[1])
    assert resolved.steps is not None
    short = dataclasses.replace(resolved, steps=min(STEPS, resolved.steps), epochs=None)
    labels = y if config.contrast == "label" else None
    return train(x, labels, short, **options, progress=False, device=device)


def _split(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to fit on and rows to judge by, at most a fifth of all."""
    order = torch.randperm(n, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    held = min(HELD_OUT, max(1, n // 5))
    return order[held : held + FITTING].sort().values, order[:held].sort().values


def _nearest(x: Tensor, queries: Tensor) -> np.ndarray:
    """[n, NEIGHBOURS] rows of x nearest to each query by cosine."""
    x, queries = (torch.nn.functional.normalize(side, dim=1) for side in (x, queries))
    count = min(NEIGHBOURS, len(x))
    return torch.cat([(q @ x.T).topk(count, 1).indices for q in queries.split(500)]).numpy()


def _agreement(
    database: csrkern.SparseCodes, queries: csrkern.SparseCodes, dense: np.ndarray
) -> float:
    """Share of the dense neighbours that are among as many neighbours by codes."""
    index = csrkern.InvertedIndex.build(database, metric="cosine")
    _, ids = index.search(queries, topk=dense.shape[1])
    return float((ids[:, :, None] == dense[:, None, :]).any(1).mean())


def _partners_found(
    model: SparseAutoencoder, k: int, x: Tensor, partners: Tensor, numbers: Tensor
) -> float:
    """Share of rows whose nearest partner by codes is their own, or a copy of it."""
    return nearest_accuracy(
        encode_all(model, partners, k), numbers, encode_all(model, x, k), numbers
    )
