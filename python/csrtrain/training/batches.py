"""The batches of a run: their order, and reading them ahead of time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Batches read ahead: one being read while another waits, so that reading hides behind a step.
AHEAD = 2


class Batch(NamedTuple):
    """The examples that one step trains on.

    Attributes:
        numbers: [n], of its rows, or of its pairs where partners are given.
        x: embeddings [n, d].
        labels: [n], or None.
        partners: [n, d'], or None.
    """

    numbers: Tensor
    x: Tensor
    labels: Tensor | None
    partners: Tensor | None


class BatchOrder:
    """The rows of every batch: whole batches of one shuffle per epoch.

    They follow from the seed and the step alone, so a resumed run needs no other state.
    """

    def __init__(self, n: int, batch_size: int, seed: int) -> None:
        self._n = n
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.long, device="cpu")

    def __call__(self, step: int) -> Tensor:
        """Return the row numbers [batch_size] of a step counted from 0, ascending."""
        epoch, batch = divmod(step, self._n // self._batch_size)
        if epoch != self._epoch:
            # Random numbers that follow from the seed and the epoch alone.
            mixed = np.random.SeedSequence((self._seed, epoch)).generate_state(1)
            generator = torch.Generator("cpu").manual_seed(int(mixed[0]))
            self._order = torch.randperm(self._n, generator=generator, device="cpu")
            self._epoch = epoch
        rows = self._order[batch * self._batch_size : (batch + 1) * self._batch_size]
        # Ascending rows read a mapped file forwards; the loss does not depend on the order.
        return rows.sort().values


def read_ahead(read: Callable[[int], Batch], start: int, stop: int) -> Iterator[Batch]:
    """Yield read(start), ..., read(stop - 1), each begun early by another thread."""
    with ThreadPoolExecutor(1, "csrtrain-reader") as reader:
        waiting: list[Future[Batch]] = []
        for step in range(start, stop):
            while len(waiting) < AHEAD and step + len(waiting) < stop:
                waiting.append(reader.submit(read, step + len(waiting)))
            yield waiting.pop(0).result()
