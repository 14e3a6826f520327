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

    The device launches the kernels itself: at small batches, launching them from Python takes
    most of a step's time. Neither the step nor calling this waits for the device.

    Args:
        model: on a CUDA device, in training mode. Its `dead_capacity`, or all of its latents, is
            the number that the auxiliary loss looks at.
        loss: in training mode.
        optimizer: over the parameters, made with capturable=True; with a tensor for lr if that
            is to change between steps. A fused one takes no step on a loss that is not finite.
        x: a batch [n, d] to capture with; its values do not matter.
        labels: [n], if the loss needs them.
        partners: [n, d'], if the loss needs them.
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
        for member in models:
            if member.dead_capacity is None:
                member.dead_capacity = member.hidden_dim
        batch = (x, labels, partners)
        inputs = [None if part is None else part.to(device, copy=True) for part in batch]
        self._inputs = inputs

        def step() -> Terms:
            x, labels, partners = inputs
            assert x is not None
            return step_once(
                model, loss, optimizer, x, labels,
                partners=partners, partner_model=partner_model, autocast=autocast,
            )  # fmt: skip

        tensors = _tensors(models, optimizer)
        saved = [tensor.clone() for tensor in tensors]
        self.terms, self._replay = capture(step, device)
        restore(models, optimizer, tensors, saved)

    def __call__(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        partners: Tensor | None = None,
    ) -> Terms:
        """Take a step on a batch; return its terms, which the next call overwrites."""
        for captured, tensor in zip(self._inputs, (x, labels, partners), strict=True):
            if captured is not None:
                assert tensor is not None
                captured.copy_(tensor, non_blocking=True)
        self._replay()
        return self.terms


def capture(run: Callable[[], Terms], device: torch.device) -> tuple[Terms, Callable[[], None]]:
    """Return the outputs of a graph of `run`, and its replay; `run` is called a few times first."""
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
    """Take a step without a graph; return the terms of the loss, means over all processes.

    A fused optimizer takes no step on a loss that is not finite. `options` are the loss's.
    """
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
        terms = loss(model, x, labels, **options)
    total = terms["loss"]
    means = distributed.mean_(torch.stack([term.detach().float() for term in terms.values()]))
    losses = dict(zip(terms, means, strict=True))
    total.backward()
    distributed.average_gradients(p for group in optimizer.param_groups for p in group["params"])
    # As GradScaler does it: the device decides, and the host does not wait.
    fused: Any = optimizer
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        fused.found_inf = (~torch.isfinite(losses["loss"])).float()
    optimizer.step()
    fused.found_inf = None
    return losses


def _tensors(models: Sequence[SparseAutoencoder], optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return all tensors that a step changes."""
    state = [t for entry in optimizer.state.values() for t in entry.values() if torch.is_tensor(t)]
    weights = [t for model in models for t in (*model.parameters(), *model.buffers())]
    return [*weights, *state]


@torch.no_grad()
def restore(
    models: Sequence[SparseAutoencoder],
    optimizer: torch.optim.Optimizer,
    tensors: list[Tensor],
    saved: list[Tensor],
) -> None:
    """Copy `saved` back into `tensors`; optimizer state made since then becomes zero."""
    for tensor, value in zip(tensors, saved, strict=True):
        tensor.copy_(value)
    known = {id(tensor) for tensor in tensors}
    for tensor in _tensors(models, optimizer):
        if id(tensor) not in known:
            tensor.zero_()
