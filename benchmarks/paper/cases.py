"""A set, what is trained on it once for several systems, and what a system is.

A system is what is stored of a database, with one or more searches of it. All learn from the same
rows, all rows are at norm 1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import recipes
import sets
import torch
from torch import Tensor

from csrkern import Projection
from csrkern.nn import SparseAutoencoder
from csrtrain import learn_projection, principal_projection, train
from csrtrain.training.quantizer import ROWS, residual_codebooks

Search = Callable[[np.ndarray], np.ndarray]
"""Embeddings of queries [n, d] to ids [n, depth]; -1: none found."""

STEPS = 400
HIDDEN = (4096, 1024)
LARGE = 50_000  # documents from which fewer settings are tried, with more lists
PRODUCTS = 4  # parts of the dimensions for codes of more bytes
A_LIST = 39  # rows that k-means wants for each
MOST = 32, 16  # codebooks of one part, and of each of several
DIRECTIONS = ((80, 0.0), (192, 0.0), (192, 0.5))
"""Principal directions, and by how much they are whitened."""


class System(NamedTuple):
    """A way to store the database, and ways to search it.

    Attributes:
        method: its name.
        setting: what it was built with.
        n_bytes: of a document: all that is stored to search and grows with the documents.
        shared: bytes of what does not: codebooks, rotations, centroids, a model.
        searches: by setting.
    """

    method: str
    setting: str
    n_bytes: float
    shared: int
    searches: dict[str, Search]


@dataclass(frozen=True)
class Case:
    """A set at norm 1, and what is trained once for several systems.

    Attributes:
        data: the set.
        seed: of all trainings.
        folder: keeps trainings, so that a run that was stopped need not repeat them.
        quick: train less.
    """

    data: sets.Set
    seed: int
    folder: Path
    quick: bool

    @cached_property
    def sample(self) -> Tensor:
        """Rows that codebooks are learned from."""
        step = max(1, len(self.fitted) // ROWS)
        return self.fitted[::step][:ROWS]

    @cached_property
    def fitted(self) -> Tensor:
        """Rows that all systems but ScaNN learn from; models learn from queries too."""
        return unit(self.data.train if self.data.alike is None else self.data.alike)

    @cached_property
    def database(self) -> np.ndarray:
        """The rows that queries search, at norm 1."""
        return unit(self.data.task.database).numpy()

    @cached_property
    def projection(self) -> Projection | None:
        """The projection learned from the set's labels or pairs; None: nothing is gained by one."""
        path = self._kept("projection", ".npz")
        if not path.exists():
            learned = self._learn_projection()
            held = ("directions", "center") if learned is not None else ()
            np.savez(path, **{name: getattr(learned, name) for name in held})
        with np.load(path) as file:
            return Projection(file["directions"], file["center"]) if file.files else None

    def _learn_projection(self) -> Projection | None:
        data = self.data
        if data.labels is not None:
            return learn_projection(data.train, data.labels, seed=self.seed, progress=False)
        if data.asked is None or data.pairs is None:
            return None
        partners = None if data.partners is data.asked else data.partners
        return learn_projection(
            data.asked, partners=partners, pairs=data.pairs, seed=self.seed, progress=False
        )

    def behind_projection(self) -> Case | None:
        """Return this case behind the projection of `projection`; None without one."""
        return None if self.projection is None else self.behind(self.projection, "projected")

    def behind_principal(self) -> Iterator[tuple[str, Projection, Case]]:
        """Yield a setting, its principal directions, and this case behind them."""
        for width, whitening in DIRECTIONS[:1] if self.quick or self.large else DIRECTIONS:
            width = min(width, self.d)
            setting = f"{width} directions" + (f" whitened by {whitening:g}" if whitening else "")
            turn = principal_projection(self.fitted.numpy(), width, whitening=whitening)
            yield setting, turn, self.behind(turn, setting.replace(" ", "-"))

    def behind(self, turn: Projection, name: str) -> Case:
        """Return this case with all rows projected; `name` is of what is trained on them."""

        def turned(rows: Tensor) -> Tensor:
            return torch.from_numpy(turn(rows.numpy()))

        data, task = self.data, self.data.task
        task = dataclasses.replace(
            task, database=turned(task.database), queries=turned(task.queries)
        )
        own = dataclasses.replace(
            data,
            name=f"{data.name}-{name}",
            train=turned(data.train),
            task=task,
            alike=None if data.alike is None else turned(data.alike),
        )
        return dataclasses.replace(self, data=own)

    @property
    def depth(self) -> int:
        """Results of a query."""
        return self.data.task.depth if self.data.near is None else sets.NEAREST

    @property
    def large(self) -> bool:
        """Whether fewer settings are tried: codes and graphs of so many documents take minutes."""
        return len(self.database) > LARGE

    @property
    def lists(self) -> tuple[int, ...]:
        """Numbers of lists of inverted files."""
        return (256, 1024) if self.large else (64,)

    def rows(self, lists: int) -> Tensor:
        """Rows that so many lists, and what is stored in them, are learned from."""
        n = A_LIST * lists
        return self.sample if n <= ROWS else self.fitted[:: math.ceil(len(self.fitted) / n)]

    @property
    def d(self) -> int:
        """Width of an embedding."""
        return self.database.shape[1]

    @property
    def hidden(self) -> tuple[int, ...]:
        """Numbers of latents to try."""
        return HIDDEN[-1:] if self.quick or self.large else HIDDEN

    def model(self, hidden_dim: int) -> SparseAutoencoder:
        """The default recipe with this number of latents."""
        path = self._kept(f"h{hidden_dim}")
        if not path.exists():
            config = recipes.recommended(
                32, hidden_dim=hidden_dim, steps=100 if self.quick else STEPS, seed=self.seed
            )
            train(unit(self.data.train), config=config, progress=False).save_pretrained(path)
        return SparseAutoencoder.from_pretrained(path)

    def codebooks(self, parts: int) -> Tensor:
        """Residual codebooks of the sample about its mean, [parts, books, 256, d / parts]."""
        books = 8 if self.quick else MOST[parts > 1] if parts in (1, PRODUCTS) else 5
        if self.large:
            books = min(books, MOST[1])
        path = self._kept(f"rq{parts}x{books}", ".npy")
        if not path.exists():
            centered = self.sample - self.sample.mean(0)
            np.save(path, residual_codebooks(centered, parts, books, self.seed).numpy())
        return torch.from_numpy(np.load(path))

    def _kept(self, name: str, suffix: str = "") -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{self.data.name}-{name}-seed{self.seed}{suffix}"


Build = Callable[[Case], Iterator[System]]


def unit(rows: Tensor) -> Tensor:
    """Rows at norm 1."""
    return torch.nn.functional.normalize(rows.double(), dim=1, eps=1e-300).float()
