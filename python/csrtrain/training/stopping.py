"""Periodic evaluation of a run, and early stopping."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from csrkern.nn import SparseAutoencoder
from csrtrain.training import distributed

Evaluate = Callable[[SparseAutoencoder], float]


@dataclass
class Evaluation:
    """Scores a model every so often and remembers the best one.

    Attributes:
        evaluate: scores a model in evaluation mode; more is better. None: never evaluate.
        every: steps from one evaluation to the next.
        patience: evaluations in a row without a better score after which to stop; None: never.
        best: score, step, evaluations since, and weights of the best model so far.
    """

    evaluate: Evaluate | None
    every: int
    patience: int | None
    best: dict[str, Any] = field(
        default_factory=lambda: {"score": -math.inf, "step": 0, "since": 0, "model": None}
    )

    def due(self, done: int, steps: int) -> bool:
        """Whether to evaluate after `done` steps."""
        return self.evaluate is not None and (done % self.every == 0 or done == steps)

    def score(self, done: int, models: nn.ModuleList, finish: Callable[[], Any]) -> float:
        """Return the score after `done` steps; `finish()` returns the model as users get it.

        Raises:
            ValueError: if the score is not a finite number.
        """
        score = None
        if distributed.rank() == 0:
            assert self.evaluate is not None
            score = float(self.evaluate(finish()))
        score = distributed.from_first(score)
        if not math.isfinite(score):
            raise ValueError(f"evaluate: expected a finite score after step {done}, got {score}")
        if score > self.best["score"]:
            state = copy.deepcopy(models.state_dict())
            self.best = {"score": score, "step": done, "since": 0, "model": state}
        else:
            self.best["since"] += 1
        return score

    @property
    def over(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.best["since"] >= self.patience
