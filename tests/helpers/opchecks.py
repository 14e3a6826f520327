"""What every operator is checked for: torch.library.opcheck, compilation, autocast, threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


def assert_compiles_whole(
    loss: Callable[..., Tensor],
    arguments: Callable[[int], Sequence[Tensor]],
    leaves: Sequence[Tensor] = (),
) -> None:
    """Compiled for any number of rows n, `loss` has the gradients that it has uncompiled."""
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (3, 8, 21):
        given = arguments(n)
        inputs = [*(part for part in given if part.requires_grad), *leaves]
        got = torch.autograd.grad(compiled(*given), inputs)
        want = torch.autograd.grad(loss(*given), inputs)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def assert_autocasts(
    encoder: Callable[..., tuple], exactly: Callable[..., tuple], leaves: dict[str, Tensor]
) -> None:
    """Under autocast, codes and what follows them are bfloat16, and gradients float32.

    Of leaves small enough to be exact in it, results equal those of `exactly` in float64.
    """
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes, *outs = encoder(**leaves)
    assert {part.dtype for part in (codes, *outs)} == {torch.bfloat16}
    doubles = {name: leaf.detach().double() for name, leaf in leaves.items()}
    expected_codes, *expected = exactly(**doubles)
    assert codes.to(torch.float64).equal(expected_codes)
    assert all(torch.equal(a.double(), b) for a, b in zip(outs, expected, strict=True))
    sum(part.sum() for part in (codes.values, *outs)).backward()
    assert {leaf.grad.dtype for leaf in leaves.values()} == {torch.float32}


def assert_threads_do_not_matter(results: Callable[[], Sequence[Tensor]]) -> None:
    """The same bits for every number of threads, and again."""
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5, 5):
            torch.set_num_threads(threads)
            found.append(results())
    finally:
        torch.set_num_threads(before)
    for result in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(result, found[0], strict=True))
