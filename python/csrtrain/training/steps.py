"""The optimizer steps of a run: launched from Python, or replayed as CUDA graphs."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from csrkern.nn import SparseAutoencoder
from csrtrain.training import distributed
from csrtrain.training.batches import Batch
from csrtrain.training.config import TrainConfig
from csrtrain.training.graphed import GraphedStep, step_once
from csrtrain.training.loss import CSRLoss

ADAM_EPS = 6.25e-10
LEAST_DEAD = 256  # dead latents that a graph is captured for, at least


class Steps:
    """Takes the steps of a run, one batch at a time.

    On a CUDA device a step is a graph, captured when the first batch comes, unless `graphs` is
    False, several processes train together, or k is annealed and changes from step to step. Each
    graph is captured for a fixed number of dead latents: 0, or a power of two not below the
    largest possible count. So it looks at all of them, as the step without a graph does.
    """

    def __init__(
        self,
        config: TrainConfig,
        models: nn.ModuleList,
        loss: CSRLoss,
        device: torch.device,
        graphs: bool = True,
    ) -> None:
        self.config, self.loss, self.device = config, loss, device
        self.models = cast(list[SparseAutoencoder], [*models])
        # A tensor, so that graphs see it change.
        lr: Any = config.lr
        if _on_gpu(device):
            lr = torch.tensor(config.lr, dtype=torch.float32, device=device)
        self.optimizer = torch.optim.Adam(
            models.parameters(), lr=lr, eps=ADAM_EPS, fused=True, capturable=_on_gpu(device)
        )
        single_process = distributed.world_size() == 1
        self.graphs = graphs and _on_gpu(device) and single_process and not config.anneal
        self._graphs: dict[int, GraphedStep] = {}
        self._capacity: int | None = None

    def load(self, state: dict[str, Any]) -> None:
        """Continue from the state of another run's optimizer, on whichever device that ran."""
        settings = [{name: g[name] for name in ("lr", "capturable")} for g in self._groups]
        self.optimizer.load_state_dict(state)
        for group, group_settings in zip(self._groups, settings, strict=True):
            group.update(group_settings)

    @property
    def _groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def __call__(self, step: int, batch: Batch) -> dict[str, float]:
        """Take one optimizer step and return the terms of its loss.

        Raises:
            FloatingPointError: if the loss is not finite; then no step was taken.
        """
        for group in self._groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(self.config.lr_at(step))
            else:
                group["lr"] = self.config.lr_at(step)
        terms = self._graph(batch)(*batch[1:]) if self.graphs else self._launch(step, batch)
        scalars = [*terms.values()]
        if self.graphs:
            scalars.append(self._may_die().to(scalars[0].dtype))
        # One transfer for all: each would make the GPU wait.
        values = torch.stack(scalars).tolist()
        if self.graphs:
            self._capacity = room_for(int(values.pop()))
        losses = dict(zip(terms, values, strict=True))
        check_finite_loss(losses, step, batch)
        return losses

    def _launch(self, step: int, batch: Batch) -> dict[str, Tensor]:
        x, labels, partners = (
            None if part is None else part.to(self.device, non_blocking=True) for part in batch[1:]
        )
        assert x is not None
        return step_once(
            self.models[0],
            self.loss,
            self.optimizer,
            x,
            labels,
            partners=partners,
            partner_model=self._partner_model,
            k=self.config.k_at(step),
            autocast=self.config.autocast,
        )

    @property
    def _partner_model(self) -> SparseAutoencoder | None:
        return self.models[1] if len(self.models) == 2 else None

    def _may_die(self) -> Tensor:
        """Return how many latents of a model can be dead in the next step, at most."""
        counts = [(model.stats_last_nonzero >= model.dead_threshold).sum() for model in self.models]
        return torch.stack(counts).max()

    def _graph(self, batch: Batch) -> GraphedStep:
        """Return the graph with room for the dead latents of the next step."""
        if self._capacity is None:
            self._capacity = room_for(int(self._may_die()))
        capacity = self._capacity
        if capacity not in self._graphs:
            for model in self.models:
                model.dead_capacity = capacity
            self._graphs[capacity] = GraphedStep(
                self.models[0],
                self.loss,
                self.optimizer,
                batch.x,
                batch.labels,
                partners=batch.partners,
                partner_model=self._partner_model,
                autocast=self.config.autocast,
            )
            for model in self.models:
                model.dead_capacity = None
        return self._graphs[capacity]


def room_for(dead: int) -> int:
    """Return how many dead latents a graph is captured for, given the largest possible count."""
    return max(LEAST_DEAD, 1 << (dead - 1).bit_length()) if dead else 0


def _on_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


def check_finite_loss(losses: dict[str, float], step: int, batch: Batch) -> None:
    """Raise FloatingPointError, with remedies, unless the loss is finite."""
    if math.isfinite(losses["loss"]):
        return
    terms = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
    first = ", ".join(map(str, batch.numbers[:5].tolist()))
    raise FloatingPointError(
        f"step {step + 1}: the loss is not finite ({terms}) on the batch of rows {first}, ... "
        f"(largest magnitude {float(batch.x.abs().max()):.4g}); no step was taken on it. "
        "Try a lower learning rate (lr), a temperature and weights of terms nearer 1, or "
        "unit_scale=True for embeddings of large magnitude"
    )
