"""TrainConfig: the settings that determine the result of a training run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from csrkern import arguments

_DEFAULT_BATCH = 512
# The smaller k's that a model serves by default.
_SERVED = (4, 8, 16, 32, 64, 128)
# CSRv2 (arXiv 2602.05735): k falls from 64 over the first 70% of the steps.
ANNEAL_FROM, ANNEAL_SHARE = 64, 0.7


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run; None means chosen from the data by `resolve`.

    The defaults are the recommended recipe: many latents, all k's at once, rows at one scale and a
    rate that falls at the end. `preset` has the published settings.

    Attributes:
        hidden_dim: number of latents h. None: 4 times the embedding's width, as published, which
            is more where that is above 1,024.
        k: active latents per row.
        ks: smaller k's that the one model is trained for as well. None: 4, 8, 16, 32, 64 and 128,
            those below `k`; (): none.
        k_aux: dead latents per row in the auxiliary loss, at most; 0: no such loss.
        beta: weight of the auxiliary loss.
        gamma: weight of the contrast (None: 0.1, as published; 1 for "label", "pair", "clip").
        temperature: of the contrast.
        contrast: "self", "label" (needs labels), "pair" or "clip" (need partners) or None; see
            `CSRLoss`. "auto": "label" if labels are given, "clip" if partners are, else "self".
        relative_recon: count reconstruction as a share of the variance of the embeddings, so
            that gamma means the same at any scale; False counts the mean squared error
            itself, as published.
        standardize: standardize each embedding before it is encoded.
        tied: decode with the encoder's weight.
        unit_scale: start from encoder rows of norm 1, and train on centered embeddings brought
            to one norm, so that `lr` means the same for any; folded into the model.
        anneal: start with 64 active latents (at most h/4) and come down to k over the first
            70% of the steps, as CSRv2 does; helps k of 2 and 4.
        balance: weight of the load term, which evens out the use of latents.
        input_subspace: train on this many leading principal directions of the embeddings, then
            fold the projection into the model: codes of few latents spend none of them on
            noise, at no cost in serving. None: all directions.
        whitening: from 0, the embeddings as they are, to 1, every principal direction of the
            same variance; below 0, to -1, strong directions are made stronger still. Folded
            into the model, whose weights it unties. What serves best differs by embeddings:
            `csrtrain.tune` finds it on rows that are held out.
        autocast: train in bfloat16 where that is safe; weights stay float32.
        dead_threshold: steps without use after which a latent is dead.
        lr: peak learning rate of Adam.
        decay: share of the steps, at the end, over which the rate falls linearly to 0.
        batch_size: rows a step (None: 512, or all rows where there are fewer).
        epochs: passes over the data, in fractions if need be; at most one of epochs and
            steps (None for both: see `resolve`).
        steps: optimizer steps.
        seed: of the initial weights and the order of the rows.

    Raises:
        TypeError, ValueError: naming the field that does not fit.
    """

    hidden_dim: int | None = 4096
    k: int = 32
    ks: tuple[int, ...] | None = None
    k_aux: int = 512
    beta: float = 1 / 32
    gamma: float | None = None
    temperature: float = 0.2
    contrast: str | None = "auto"
    relative_recon: bool = True
    standardize: bool = False
    tied: bool = True
    unit_scale: bool = True
    anneal: bool = False
    balance: float = 0.0
    input_subspace: int | None = None
    whitening: float = 0.0
    autocast: bool = False
    dead_threshold: int = 30
    lr: float = 2e-3
    decay: float = 0.3
    batch_size: int | None = None
    epochs: float | None = None
    steps: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for names, check in _CHECKS:
            for name in names:
                value = getattr(self, name)
                if value is not None or name not in _OPEN:
                    object.__setattr__(self, name, check(name, value))
        if self.ks is not None:
            object.__setattr__(self, "ks", check_ks(self.ks))
        if self.contrast != "auto":
            check_contrast(self.contrast)
        if self.standardize and (self.input_subspace or self.whitening or self.unit_scale):
            raise ValueError(
                "standardize: expected False with input_subspace, whitening or unit_scale: "
                "standardizing each row is not linear, so these could not be folded into the "
                "model; pass unit_scale=False with standardize=True"
            )
        if self.hidden_dim is not None and self.k > self.hidden_dim:
            raise ValueError(f"k: expected at most hidden_dim = {self.hidden_dim}, got {self.k}")
        if self.ks and self.ks[-1] >= self.k:
            raise ValueError(f"ks: expected k's below k = {self.k}, got {self.ks}")
        if self.decay > 1:
            raise ValueError(f"decay: expected a share of the steps in 0..1, got {self.decay}")
        if self.epochs is not None and self.steps is not None:
            raise ValueError(
                f"epochs, steps: expected at most one of the two, got {self.epochs} and "
                f"{self.steps}; a step is one batch"
            )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> TrainConfig:
        """Return settings by name, with `changes` to them.

        "imagenet", "text" and "clip" are the paper's, "csrv2" its follow-up's.

        Raises:
            TypeError, ValueError: if there is no such preset or a change does not fit.
        """
        arguments.check_choice("preset", name, tuple(PRESETS))
        fields = {**_PUBLISHED, **PRESETS[name]}
        if "steps" in changes:
            fields.pop("epochs", None)
        return cls(**{**fields, **changes})

    def settle_contrast(self, *, labels: bool = False, partners: bool = False) -> TrainConfig:
        """Return the same settings with the contrast that fits the given data.

        Raises:
            ValueError: if the contrast is "auto" and both labels and partners are given.
        """
        if self.contrast != "auto":
            return self
        if labels and partners:
            raise ValueError(
                "labels, partners: expected one of the two with contrast='auto'; choose 'label', "
                "'pair' or 'clip'"
            )
        contrast = "label" if labels else "clip" if partners else "self"
        return dataclasses.replace(self, contrast=contrast)

    def resolve(self, n: int, d: int) -> TrainConfig:
        """Return the same settings with nothing left open, for n embeddings of width d.

        A contrast "auto" that was not settled becomes "self".

        Raises:
            ValueError: if k exceeds the number of latents that follows from d.
        """
        hidden_dim = self.hidden_dim or 4 * d
        if self.k > hidden_dim:
            raise ValueError(f"k: expected at most 4 * {d} = {hidden_dim} latents, got {self.k}")
        if self.input_subspace is not None and self.input_subspace > d:
            raise ValueError(
                f"input_subspace: expected at most the {d} dimensions of the embeddings, "
                f"got {self.input_subspace}"
            )
        batch_size = min(self.batch_size or _DEFAULT_BATCH, n)
        steps = self.steps
        if steps is None and self.epochs is not None:
            steps = max(1, round(self.epochs * (n // batch_size)))
        elif steps is None:
            steps = _default_steps(n, batch_size)
        contrast, gamma = self.settle_contrast().contrast, self.gamma
        if gamma is None:
            # On 16,060 definitions in 45 classes, label contrast: CSR-8 48.5% at 0.1, 57.4% at 1.
            gamma = 0.1 if contrast in ("self", None) else 1.0
        return dataclasses.replace(
            self,
            contrast=contrast,
            hidden_dim=hidden_dim,
            ks=tuple(k for k in _SERVED if k < self.k) if self.ks is None else self.ks,
            gamma=gamma,
            batch_size=batch_size,
            steps=steps,
            epochs=None,
        )

    def lr_at(self, step: int) -> float:
        """Return the learning rate of step 0 ≤ step < steps."""
        assert self.steps is not None, "resolve first"
        share = (self.steps - step) / self.steps  # of the steps that remain
        return self.lr * min(1.0, share / self.decay) if self.decay else self.lr

    def k_at(self, step: int) -> int:
        """Return the active latents in step 0 ≤ step < steps: k, or more while k is annealed."""
        assert self.steps is not None, "resolve first"
        assert self.hidden_dim is not None, "resolve first"
        if not self.anneal:
            return self.k
        first = max(self.k, min(ANNEAL_FROM, self.hidden_dim // 4))
        progress = min(1.0, step / (ANNEAL_SHARE * self.steps))
        return round(first * (1 - progress) + self.k * progress)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values; `TrainConfig(**d)` makes an equal one."""
        return {**dataclasses.asdict(self), "ks": None if self.ks is None else list(self.ks)}


CONTRASTS = ("self", "label", "pair", "clip", None)


def check_contrast(contrast: str | None) -> None:
    """Raise ValueError unless `contrast` is one of `CONTRASTS`."""
    if contrast not in CONTRASTS:
        names = ", ".join(repr(name) for name in CONTRASTS[:-1])
        raise ValueError(f"contrast: expected {names} or None, got {contrast!r}")


def check_ks(ks: Any) -> tuple[int, ...]:
    """Return k's in ascending order, each once."""
    if isinstance(ks, str) or not isinstance(ks, Iterable):
        raise TypeError(f"ks: expected a list of ints, got {type(ks).__name__}")
    return tuple(sorted({arguments.check_at_least("ks", k, 1) for k in ks}))


def _default_steps(n: int, batch_size: int) -> int:
    """Return the steps of ten epochs, as the paper trains, within bounds.

    A small set gets at least 400 steps; one above 2 million rows gets 20 million rows in all, or
    one epoch if that is more.
    """
    per_epoch = n // batch_size
    return max(400, min(10 * per_epoch, 20_000_000 // batch_size), per_epoch)


def _check_whitening(name: str, value: Any) -> float:
    number = arguments.check_number(name, value)
    if abs(number) > 1:
        raise ValueError(f"{name}: expected a number in -1..1, got {value!r}")
    return number


_OPEN = ("hidden_dim", "gamma", "batch_size", "epochs", "steps", "input_subspace")
_CHECKS: tuple[tuple[tuple[str, ...], Callable[[str, Any], Any]], ...] = (
    (
        ("hidden_dim", "k", "dead_threshold", "batch_size", "steps", "input_subspace"),
        partial(arguments.check_at_least, low=1),
    ),
    (("k_aux",), partial(arguments.check_at_least, low=0)),
    (("seed",), partial(arguments.check_int, low=0, high=2**32 - 1)),
    (("beta", "gamma", "balance", "decay"), arguments.check_not_negative),
    (("temperature", "lr", "epochs"), arguments.check_positive),
    (
        ("relative_recon", "standardize", "tied", "unit_scale", "anneal", "autocast"),
        arguments.check_bool,
    ),
    (("whitening",), _check_whitening),
)


# As published: 4 latents a dimension, one k, mean squared error of the embeddings as they are, tied
# weights, a constant learning rate.
_PUBLISHED: dict[str, Any] = {
    "hidden_dim": None,
    "ks": (),
    "relative_recon": False,
    "tied": True,
    "unit_scale": False,
    "decay": 0.0,
    "epochs": 10,
    "temperature": 0.2,
    "k_aux": 512,
    "beta": 1 / 32,
    "gamma": 1.0,
}
_TEXT = {"lr": 4e-5, "batch_size": 128, "k_aux": 1024, "beta": 0.1}

PRESETS: dict[str, dict[str, Any]] = {
    # The released code; the paper's table has lr=4e-5 and its text gamma=1.
    "imagenet": {"lr": 4e-4, "batch_size": 4096, "gamma": 0.1},
    "text": _TEXT,
    # The paper names batches of 64 to 1024, and k_aux of 512 to 1024.
    "clip": {"lr": 4e-4, "batch_size": 1024, "epochs": 5, "contrast": "clip"},
    # The follow-up's two changes, k-annealing and label contrast, on the paper's text settings.
    "csrv2": {**_TEXT, "contrast": "label", "anneal": True},
}
