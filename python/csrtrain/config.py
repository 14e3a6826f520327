"""TrainConfig: everything that decides what a training run computes."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

_DEFAULT_BATCH = 1024


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run; None means chosen from the data by `resolve`.

    Attributes:
        hidden_dim: latents h (None: 4 times the embedding's width, the paper's best).
        k: active latents per row.
        prefixes: further k's, below `k`, that the one model is trained for as well.
        k_aux: dead latents per row in the auxiliary loss; clipped to what is there.
        beta: weight of the auxiliary loss.
        gamma: weight of the contrast (None: 0.1, as published; 1 for contrast="label").
        temperature: of the contrast.
        contrast: "self", "label" (needs labels) or None.
        relative_recon: count reconstruction as a share of the variance of the embeddings, so
            that gamma means the same at any scale; False counts the mean squared error
            itself, as published.
        normalize: standardise each embedding before it is encoded.
        tied: decode with the encoder's weight.
        dead_threshold: steps without use after which a latent is dead.
        lr: peak learning rate of Adam.
        decay: share of the steps, at the end, over which the rate falls linearly to 0.
        batch_size: rows a step (None: 1024, or all rows where there are fewer).
        epochs: passes over the data, in fractions if need be; at most one of epochs and
            steps (None for both: see `resolve`).
        steps: optimiser steps.
        seed: of the initial weights and the order of the rows.

    Raises:
        TypeError, ValueError: naming the field that does not fit.
    """

    hidden_dim: int | None = None
    k: int = 32
    prefixes: tuple[int, ...] = ()
    k_aux: int = 512
    beta: float = 1 / 32
    gamma: float | None = None
    temperature: float = 0.2
    contrast: str | None = "self"
    relative_recon: bool = True
    normalize: bool = False
    tied: bool = True
    dead_threshold: int = 30
    lr: float = 1e-3
    decay: float = 0.0
    batch_size: int | None = None
    epochs: float | None = None
    steps: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefixes", tuple(sorted(set(self.prefixes))))
        for name in ("hidden_dim", "k", "k_aux", "dead_threshold", "batch_size", "steps"):
            _check_count(name, getattr(self, name))
        for name in ("beta", "gamma"):
            _check_number(name, getattr(self, name), zero_fits=True)
        for name in ("temperature", "lr", "epochs"):
            _check_number(name, getattr(self, name), zero_fits=False)
        if self.contrast not in ("self", "label", None):
            raise ValueError(f"contrast: expected 'self', 'label' or None, got {self.contrast!r}")
        if self.hidden_dim is not None and self.k > self.hidden_dim:
            raise ValueError(f"k: expected at most hidden_dim = {self.hidden_dim}, got {self.k}")
        for k in self.prefixes:
            _check_count("prefixes", k)
        if self.prefixes and self.prefixes[-1] >= self.k:
            raise ValueError(f"prefixes: expected k's below k = {self.k}, got {self.prefixes}")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay: expected a share of the steps in 0..1, got {self.decay}")
        if self.epochs is not None and self.steps is not None:
            raise ValueError(
                f"epochs, steps: expected at most one of the two, got {self.epochs} and "
                f"{self.steps}; a step is one batch"
            )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise TypeError(f"seed: expected an integer, got {self.seed!r}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: expected 0 <= seed < 2**32, got {self.seed}")

    def resolve(self, n: int, d: int) -> TrainConfig:
        """The same settings with nothing left open, for n embeddings of width d.

        Raises:
            ValueError: if k exceeds the number of latents that follows from d.
        """
        hidden_dim = self.hidden_dim or 4 * d
        if self.k > hidden_dim:
            raise ValueError(f"k: expected at most 4 * {d} = {hidden_dim} latents, got {self.k}")
        batch_size = min(self.batch_size or _DEFAULT_BATCH, n)
        steps = self.steps
        if steps is None and self.epochs is not None:
            steps = max(1, round(self.epochs * (n // batch_size)))
        elif steps is None:
            steps = _default_steps(n, batch_size)
        gamma = self.gamma
        if gamma is None:
            # On 16,060 definitions in 45 classes, label contrast: CSR-8 48.5% at 0.1, 57.4% at 1.
            gamma = 1.0 if self.contrast == "label" else 0.1
        return dataclasses.replace(
            self,
            hidden_dim=hidden_dim,
            gamma=gamma,
            batch_size=batch_size,
            steps=steps,
            epochs=None,
        )

    def lr_at(self, step: int) -> float:
        """The learning rate of step 0 ≤ step < steps."""
        assert self.steps is not None, "resolve first"
        left = (self.steps - step) / self.steps
        return self.lr * min(1.0, left / self.decay) if self.decay else self.lr

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values; `TrainConfig(**d)` makes an equal one."""
        return {**dataclasses.asdict(self), "prefixes": list(self.prefixes)}


def _default_steps(n: int, batch_size: int) -> int:
    """Ten epochs, as the paper trains, but enough steps for a small set and no waste on a
    huge one: at least 400 steps, and past 2 million rows seen ten times, 20 million in all.
    """
    per_epoch = n // batch_size
    return max(400, min(10 * per_epoch, 20_000_000 // batch_size), per_epoch)


def _check_count(name: str, value: Any) -> None:
    if value is None and name in ("hidden_dim", "batch_size", "steps"):
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")


def _check_number(name: str, value: Any, *, zero_fits: bool) -> None:
    if value is None and name in ("epochs", "gamma"):
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    fits = value >= 0 if zero_fits else value > 0
    if not fits or not math.isfinite(value):
        bound = ">= 0" if zero_fits else "> 0"
        raise ValueError(f"{name}: expected a finite number {bound}, got {value}")
