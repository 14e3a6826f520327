"""The data of a run: opened and checked once, and read batch by batch."""

from __future__ import annotations

import copy
import math
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from csrkern.embeddings.dataset import Embeddings, open_embeddings
from csrkern.embeddings.labels import load_labels, read_integers
from csrkern.nn import SparseAutoencoder
from csrkern.typing import ArraySource
from csrtrain.pca import PCA
from csrtrain.training import distributed
from csrtrain.training.batches import Batch
from csrtrain.training.config import TrainConfig
from csrtrain.training.subspace import Subspace

_FAR = 1e12  # from 1: float32 has room for sums of squares of such numbers


@dataclass(frozen=True)
class Side:
    """The embeddings that one adapter is for.

    Attributes:
        width: of the adapter's input, d or the dimensions of the subspace.
        mean: [width], of the adapter's input.
        variance: of the adapter's input, per dimension.
        subspace: the subspace that rows are projected to, or None.
        checksum: of all rows in order, to identify the data set.
    """

    width: int
    mean: Tensor
    variance: float
    subspace: Subspace | None
    checksum: int

    def rows(self, embeddings: Embeddings, index: Tensor) -> Tensor:
        """Return the rows at `index` as the adapter sees them."""
        rows = embeddings.rows(index)
        return rows if self.subspace is None else self.subspace.project(rows)


@dataclass(frozen=True)
class Dataset:
    """The rows, or pairs of rows, that a run trains on, opened and checked once.

    Attributes:
        config: resolved.
        embeddings: [n, d].
        labels: [n], or None.
        partners: [m, d'], or None.
        pairs: [p, 2] rows of embeddings and of partners that belong together; None without
            partners.
        sides: one for each adapter.
    """

    config: TrainConfig
    embeddings: Embeddings
    labels: Tensor | None
    partners: Embeddings | None
    pairs: Tensor | None
    sides: Sequence[Side]

    @staticmethod
    def of(
        embeddings: ArraySource,
        labels: ArraySource | None,
        config: TrainConfig | None,
        partners: ArraySource | None = None,
        pairs: ArraySource | None = None,
        *,
        two: bool = False,
    ) -> Dataset:
        """Read everything once and check it; arguments as for `train`.

        Raises:
            TypeError, ValueError: if the data or the settings do not fit.
        """
        config = (config or TrainConfig()).settle_contrast(
            labels=labels is not None, partners=partners is not None
        )
        if labels is not None and config.contrast != "label":
            warnings.warn(
                f"labels are not used, since contrast={config.contrast!r}; leave it out, or set "
                "contrast='label', to train on them",
                stacklevel=5,  # past `train` and its two decorators
            )
        rows = open_embeddings("embeddings", embeddings)
        if len(rows) < 2:
            raise ValueError(f"embeddings: expected at least 2 rows to train on, got {len(rows)}")
        partner_rows = None if partners is None else open_embeddings("partners", partners)
        if (config.contrast in ("pair", "clip")) != (partner_rows is not None):
            raise ValueError(
                "partners: expected embeddings with contrast='pair' or 'clip', and none otherwise; "
                f"contrast is {config.contrast!r}"
            )
        if pairs is not None and partner_rows is None:
            raise ValueError("pairs: expected partners as well, whose rows they name")
        class_numbers = None
        if config.contrast == "label":
            if labels is None:
                raise ValueError(
                    "labels: expected one per embedding, since contrast='label'; "
                    "use contrast='self' for data without labels"
                )
            class_numbers = load_labels(labels, n=len(rows))
        pair_rows = (
            None if partner_rows is None else _read_pairs(pairs, len(rows), len(partner_rows))
        )
        if partner_rows is not None and not two and partner_rows.width != rows.width:
            raise ValueError(
                f"partners: expected {rows.width} dimensions as the embeddings have, got "
                f"{partner_rows.width}; train_two trains an adapter for each"
            )
        config = config.resolve(len(rows) if pair_rows is None else len(pair_rows), rows.width)
        sources = [rows] if partner_rows is None else [rows, partner_rows]
        sides = [
            _side(members, config)
            for members in ([[source] for source in sources] if two else [sources])
        ]
        return Dataset(config, rows, class_numbers, partner_rows, pair_rows, sides)

    def __len__(self) -> int:
        return len(self.embeddings) if self.pairs is None else len(self.pairs)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Return facts that identify the data, for checkpoints."""
        sources = [self.embeddings] if self.partners is None else [self.embeddings, self.partners]
        extra = self.labels if self.pairs is None else self.pairs
        return {
            "shape": [[len(source), source.width] for source in sources],
            "rows": [side.checksum for side in self.sides],
            "labels": None if extra is None else zlib.crc32(extra.numpy().tobytes()),
        }

    @property
    def variance(self) -> float:
        """Variance of the adapters' inputs, per dimension."""
        return sum(side.variance for side in self.sides) / len(self.sides)

    def read(self, index: Tensor) -> Batch:
        """Return this process's share of the joint batch of examples at `index`."""
        index = distributed.own_share(index)
        first, last = self.sides[0], self.sides[-1]
        if self.pairs is None or self.partners is None:
            labels = None if self.labels is None else self.labels[index]
            return Batch(index, first.rows(self.embeddings, index), labels, None)
        rows, partner_rows = self.pairs[index].T
        x, partners = first.rows(self.embeddings, rows), last.rows(self.partners, partner_rows)
        # A partner may be in several pairs of a batch: its row number serves as its label.
        return Batch(index, x, partner_rows, partners)

    def new_models(self) -> list[SparseAutoencoder]:
        """Return an untrained float32 adapter for each side, its pre_bias at the mean."""
        names = ("hidden_dim", "k", "k_aux", "standardize", "dead_threshold", "tied")
        settings: dict[str, Any] = {name: getattr(self.config, name) for name in names}
        models = []
        for side in self.sides:
            model = SparseAutoencoder(side.width, **settings, device="cpu", dtype=torch.float32)
            with torch.no_grad():
                model.pre_bias.copy_(side.mean)
                if self.config.unit_scale:
                    for linear in (model.encoder, model.decoder.linear):
                        linear.weight.copy_(nn.functional.normalize(linear.weight, dim=1))
            models.append(model)
        return models

    def finish(self, models: nn.ModuleList) -> list[SparseAutoencoder]:
        """Return copies of the models for raw embeddings, in evaluation mode, on the CPU."""
        finished = []
        for side, model in zip(self.sides, models, strict=True):
            assert isinstance(model, SparseAutoencoder)
            copied = copy.deepcopy(model).cpu()
            finished.append(
                (copied if side.subspace is None else side.subspace.fold(copied)).eval()
            )
        if len(finished) == 2:
            finished[0].share_latents_with(finished[1])
        return finished


def _side(embeddings: Sequence[Embeddings], config: TrainConfig) -> Side:
    """Return the facts of one side: named embeddings that an adapter is trained for."""
    # Without weights, since it only standardizes.
    model = SparseAutoencoder(
        embeddings[0].width, 1, 1, standardize=config.standardize, device="meta"
    )
    mean, variance, checksum = _moments(embeddings, model)
    if config.input_subspace is None and not config.whitening and not config.unit_scale:
        return Side(len(mean), mean, variance, None, checksum)
    width = config.input_subspace or len(mean)
    subspace = Subspace(PCA(*embeddings), width, config.whitening)
    return Side(width, mean.new_zeros(width), subspace.variance, subspace, checksum)


def _moments(
    embeddings: Sequence[Embeddings], model: SparseAutoencoder
) -> tuple[Tensor, float, int]:
    """Return mean [d] and variance per dimension in the model's space, and a checksum of the rows.

    Raises ValueError for rows that are not finite, all equal, or far from the size of 1.
    """
    d = embeddings[0].width
    total = torch.zeros(d, dtype=torch.float64, device="cpu")
    first: Tensor | None = None
    square, checksum = 0.0, 0
    for part in embeddings:
        for piece in part.pieces():
            checksum = zlib.crc32(piece.contiguous().numpy().data, checksum)
            x = model.standardized(piece)[0].double()
            # Relative to the first row: far from the origin the variance would cancel out.
            first = x[0].clone() if first is None else first
            x -= first
            total += x.sum(0)
            square += float(x.square().sum())
    assert first is not None
    n = sum(map(len, embeddings))
    offset = total / n
    variance = square / (n * d) - float(offset.square().mean())
    # Equal rows may differ by rounding once they are standardized.
    if variance <= (1e-12 if model.standardize else 0.0):
        raise ValueError("embeddings: expected rows that differ; all of them are equal")
    deviation = math.sqrt(variance)
    if not 1 / _FAR <= deviation <= _FAR:
        raise ValueError(
            f"embeddings: expected numbers that differ by {1 / _FAR:g} to {_FAR:g}, got a "
            f"standard deviation of {deviation:.2g}, where float32 has no room for sums of "
            f"squares; multiply them by {1 / deviation:.0e}"
        )
    return (first + offset).float(), variance, checksum


def _read_pairs(pairs: ArraySource | None, n: int, m: int) -> Tensor:
    """Return the rows [p, 2] int64 of n embeddings and m partners that belong together, checked."""
    if pairs is None:
        if n != m:
            raise ValueError(
                f"partners: expected {n} rows, one for each embedding, got {m}; "
                "give pairs=[p, 2] where they do not belong together row by row"
            )
        return torch.arange(n, device="cpu")[:, None].expand(n, 2).contiguous()
    row_pairs = torch.from_numpy(read_integers(pairs, argument="pairs").astype(np.int64))
    if row_pairs.shape[1] != 2 or len(row_pairs) < 2:
        raise ValueError(
            f"pairs: expected integers [p, 2] and at least 2 pairs, got {list(row_pairs.shape)}"
        )
    low, high = row_pairs.amin(0).tolist(), row_pairs.amax(0).tolist()
    if min(low) < 0 or high[0] >= n or high[1] >= m:
        raise ValueError(
            f"pairs: expected rows of {n} embeddings and {m} partners, got {low[0]}..{high[0]} "
            f"and {low[1]}..{high[1]}"
        )
    return row_pairs
