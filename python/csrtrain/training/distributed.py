"""Training on several processes: the sums and gathers by which they act as one.

Every process holds the whole model and a slice of each batch, in the order of the ranks. The
contrast is computed on the gathered codes of all ranks by each of them, so that the joint
batch has the same positives and negatives as on one process.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from csrkern.codes.sparse import SparseCodes

if dist.is_available():
    # PyTorch's optimizers import it later, and functions of it that are defined while a process
    # group exists keep the group in their defaults: its threads would then outlive the
    # interpreter, and one that is just freeing a tensor aborts a process that has done its work.
    import torch.distributed.nn.functional


@contextmanager
def process_group() -> Iterator[None]:
    """Hold the group of the processes that torchrun started, this one among them."""
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if gpu else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def active() -> bool:
    """Whether this process is one of several of a process group."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Return the number of this process, 0 where it is alone."""
    return dist.get_rank() if active() else 0


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if active() else 1


def own_share(index: Tensor) -> Tensor:
    """Return the slice of a batch's rows [n] that this process trains on."""
    size = len(index) // world_size()
    return index[rank() * size : (rank() + 1) * size]


def mean_(tensor: Tensor) -> Tensor:
    """Replace `tensor` by its mean over all processes and return it."""
    if active():
        dist.all_reduce(tensor)
        tensor /= world_size()
    return tensor


def minimum_(tensor: Tensor) -> Tensor:
    """Replace `tensor` by its minimum over all processes and return it."""
    if active():
        dist.all_reduce(tensor, dist.ReduceOp.MIN)
    return tensor


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace gradients by their means over all processes, in one message."""
    if not active():
        return
    trained = [p for p in parameters if p.requires_grad]
    for p, gradient in zip(trained, averaged(trained, [p.grad for p in trained]), strict=True):
        p.grad = gradient


def averaged(
    parameters: Sequence[torch.nn.Parameter], gradients: Sequence[Tensor | None]
) -> Sequence[Tensor | None]:
    """Return the gradients' means over all processes, found in one message."""
    if not active() or not parameters:
        return gradients
    pairs = zip(parameters, gradients, strict=True)
    flat = torch.cat([(p.new_zeros(p.shape) if g is None else g).flatten() for p, g in pairs])
    parts = mean_(flat).split([p.numel() for p in parameters])
    return [part.view_as(p) for p, part in zip(parameters, parts, strict=True)]


def from_first(value: Any) -> Any:
    """Return the value that rank 0 passes, on every rank."""
    if not active():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_codes(codes: SparseCodes) -> SparseCodes:
    """Return the codes of all processes, in the order of the ranks.

    This is for a loss that every process computes in full: its gradients are averaged over the
    processes afterwards, so each passes on its own rows' gradient times the number of processes.
    """
    if not active():
        return codes
    return SparseCodes(_Gather.apply(codes.values), torch.cat(_all(codes.indices)), codes.dim)


def gather_rows(tensor: Tensor | None) -> Tensor | None:
    """Return the rows [n, ...] of all processes, without gradient."""
    return tensor if tensor is None or not active() else torch.cat(_all(tensor))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.rows = len(values)
        return torch.cat(_all(values))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        begin = rank() * ctx.rows
        return grads[0][begin : begin + ctx.rows] * world_size()


def _all(tensor: Tensor) -> list[Tensor]:
    parts = [
        torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        for _ in range(world_size())
    ]
    dist.all_gather(parts, tensor.detach().contiguous())
    return parts
