"""A whole training step as one CUDA graph: loss, backward pass and optimizer, one launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from csrkern.nn import SparseAutoencoder
from csrtrain.training import distributed
from csrtrain.training.loss import CSRLoss

WARM_UP_STEPS = 3
Terms = dict[str, Tensor]


class GraphedStep:
    """An optimizer step on batches of one size, captured once and replayed.

    Kernels are launched by the device alone: at small batches launching them from Python is what
    a step costs. Nothing in the step waits for the device; neither does calling this.

    Args:
        model: on a CUDA device, in training mode. Its `dead_capacity`, or all of its latents, is
            what the auxiliary loss looks at.
        loss: in training mode.
        optimizer: over the parameters, made with capturable=True; with a tensor for lr if that
            is to change between steps. A fused one takes no step on a loss that is not finite.
        x: a batch [n, d] to capture with; what it holds does not matter.
        labels: [n], where the loss wants them.
        partners: [n, d'], where the loss wants them.
        partner_model: the adapter of the partners, if it has one of its own.
        autocast: compute in bfloat16 where that is safe.

    Models and optimizer are as they were after capturing: no step has been taken.

    Raises:
        ValueError: if the model is not on a CUDA device, or the optimizer cannot be captured.
    """

    def __init__(
        self,
        model: SparseAutoencoder,
        loss: CSRLoss,
        optimizer: torch.optim.Optimizer,
        x: Tensor,
        labels: Tensor | None = None,
        *,
        partners: Tensor | None = None,
        partner_model: SparseAutoencoder | None = None,
        autocast: bool = False,
    ) -> None:
        device = model.pre_bias.device
        if not all(group.get("capturable") for group in optimizer.param_groups):
            raise ValueError("optimizer: expected one made with capturable=True")
        models = [model] if partner_model is None else [model, partner_model]
        for each in models:
            if each.dead_capacity is None:
                each.dead_capacity = each.hidden_dim
        given = (x, labels, partners)
        inputs = [None if part is None else part.to(device, copy=True) for part in given]
        self._inputs = inputs

        def step() -> Terms:
            x, labels, partners = inputs
            assert x is not None
            return step_once(
                model, loss, optimizer, x, labels,
                partners=partners, partner_model=partner_model, autocast=autocast,
            )  # fmt: skip

        before = _tensors(models, optimizer)
        saved = [tensor.clone() for tensor in before]
        self.terms, self._replay = capture(step, device)
        restore(models, optimizer, before, saved)

    def __call__(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        partners: Tensor | None = None,
    ) -> Terms:
        """Take a step on a batch; return its terms, which the next call overwrites."""
        for held, part in zip(self._inputs, (x, labels, partners), strict=True):
            if held is not None:
                assert part is not None
                held.copy_(part, non_blocking=True)
        self._replay()
        return self.terms


def capture(run: Callable[[], Terms], device: torch.device) -> tuple[Terms, Callable[[], None]]:
    """Return what a graph of `run` writes, and its replay; `run` is called a few times before."""
    if device.type != "cuda":
        raise ValueError(f"model: expected it on a CUDA device, got one on {device}")
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):  # compiles, and makes the optimizer's state
        for _ in range(WARM_UP_STEPS):
            run()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        terms = run()
    return terms, graph.replay


def step_once(
    model: SparseAutoencoder,
    loss: CSRLoss,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    labels: Tensor | None,
    *,
    autocast: bool = False,
    **options: Any,
) -> Terms:
    """One step, launched from here; returns the terms of the loss, means over all processes.

    A fused optimizer takes no step on a loss that is not finite. `options` are the loss's.
    """
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
        terms = loss(model, x, labels, **options)
    total = terms["loss"]
    means = distributed.mean_(torch.stack([term.detach().float() for term in terms.values()]))
    found = dict(zip(terms, means, strict=True))
    total.backward()
    distributed.average_gradients(p for group in optimizer.param_groups for p in group["params"])
    # As GradScaler tells it: the device decides, and the host need not wait to learn.
    told: Any = optimizer
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        told.found_inf = (~torch.isfinite(found["loss"])).float()
    optimizer.step()
    told.found_inf = None
    return found


def _tensors(models: Sequence[SparseAutoencoder], optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All that a step changes."""
    state = [t for per in optimizer.state.values() for t in per.values() if torch.is_tensor(t)]
    held = [t for model in models for t in (*model.parameters(), *model.buffers())]
    return [*held, *state]


@torch.no_grad()
def restore(
    models: Sequence[SparseAutoencoder],
    optimizer: torch.optim.Optimizer,
    before: list[Tensor],
    saved: list[Tensor],
) -> None:
    """Give `before` what was saved of it; optimizer state made since then becomes zero."""
    for tensor, value in zip(before, saved, strict=True):
        tensor.copy_(value)
    old = {id(tensor) for tensor in before}
    for tensor in _tensors(models, optimizer):
        if id(tensor) not in old:
            tensor.zero_()
