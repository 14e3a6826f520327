"""torch.library.opcheck of whichever of our operators a computation calls."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class _OurCalls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.namespace == "csrkern":
            self.calls.append((function, args, kwargs))
        return function(*args, **kwargs)


def opcheck_calls_of(compute: Callable[[], Tensor]) -> set[str]:
    """Checks what `compute` and its backward pass call; returns the operators' names."""
    with _OurCalls() as forward:
        out = compute()
    with _OurCalls() as backward:
        if out.requires_grad:
            out.backward(torch.ones_like(out))
    for function, args, kwargs in forward.calls:
        torch.library.opcheck(function, args, kwargs)
    for function, *arguments in backward.calls:
        torch.library.opcheck(function, *tree_map_only(Tensor, Tensor.detach, arguments))
    return {function.name().split("::")[1] for function, *_ in forward.calls + backward.calls}
