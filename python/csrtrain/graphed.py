"""A whole training step as one CUDA graph: loss, backward pass and optimiser, one launch."""

from __future__ import annotations

import torch
from torch import Tensor

from csrkern.nn import SparseAutoencoder
from csrtrain.loss import CSRLoss

WARM_UP_STEPS = 3


class GraphedStep:
    """An optimiser step on batches of one size, captured once and replayed.

    Kernels are launched by the device alone: at small batches launching them from Python is what
    a step costs. Nothing in the step waits for the device; neither does calling this.

    Args:
        model: on a CUDA device, in training mode. Its `dead_capacity`, or all of its latents, is
            what the auxiliary loss looks at.
        loss: in training mode.
        optimizer: over the model's parameters, made with capturable=True; with a tensor for lr
            if that is to change between steps.
        x: a batch [n, d] to capture with; what it holds does not matter.
        labels: [n], where the loss wants them.

    Model and optimiser are as they were after capturing: no step has been taken.

    Raises:
        ValueError: if the model is not on a CUDA device, or the optimiser cannot be captured.
    """

    def __init__(
        self,
        model: SparseAutoencoder,
        loss: CSRLoss,
        optimizer: torch.optim.Optimizer,
        x: Tensor,
        labels: Tensor | None = None,
    ) -> None:
        device = model.pre_bias.device
        if device.type != "cuda":
            raise ValueError(f"model: expected it on a CUDA device, got one on {device}")
        if not all(group.get("capturable") for group in optimizer.param_groups):
            raise ValueError("optimizer: expected one made with capturable=True")
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.x = x.to(device, copy=True)
        self.labels = None if labels is None else labels.to(device, copy=True)
        if model.dead_capacity is None:
            model.dead_capacity = model.hidden_dim

        before = _tensors(model, optimizer)
        saved = [tensor.clone() for tensor in before]
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):  # compiles, and makes the optimiser's state
            for _ in range(WARM_UP_STEPS):
                step_once(model, loss, optimizer, self.x, self.labels)
        torch.cuda.current_stream(device).wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.terms = step_once(model, loss, optimizer, self.x, self.labels)
        restore(model, optimizer, before, saved)

    def __call__(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Takes a step on a batch; returns its terms, which the next call overwrites."""
        self.x.copy_(x, non_blocking=True)
        if self.labels is not None:
            assert labels is not None
            self.labels.copy_(labels, non_blocking=True)
        self.graph.replay()
        return self.terms


def step_once(
    model: SparseAutoencoder,
    loss: CSRLoss,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    labels: Tensor | None,
) -> dict[str, Tensor]:
    """One step, launched from here; returns the terms of the loss."""
    optimizer.zero_grad(set_to_none=True)
    terms = loss(model, x, labels)
    terms["loss"].backward()
    optimizer.step()
    return {name: term.detach() for name, term in terms.items()}


def _tensors(model: SparseAutoencoder, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All that a step changes."""
    state = [t for per in optimizer.state.values() for t in per.values() if torch.is_tensor(t)]
    return [*model.parameters(), *model.buffers(), *state]


@torch.no_grad()
def restore(
    model: SparseAutoencoder,
    optimizer: torch.optim.Optimizer,
    before: list[Tensor],
    saved: list[Tensor],
) -> None:
    """Gives `before` what was saved of it; optimiser state made since then becomes zero."""
    for tensor, value in zip(before, saved, strict=True):
        tensor.copy_(value)
    old = {id(tensor) for tensor in before}
    for tensor in _tensors(model, optimizer):
        if id(tensor) not in old:
            tensor.zero_()
