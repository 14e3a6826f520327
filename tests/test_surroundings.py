"""What surrounds a PyTorch operator or module: every cell of the table works or says what does.

Rows are the public operators and modules, columns the ways in which PyTorch's users call them.
A result is compared with that of `csrkern.reference`, in float64.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.export import Dim

import csrkern
from csrkern import SparseCodes, reference
from csrkern.ops.transpose import transpose

pytestmark = pytest.mark.usefixtures("one_thread")

N, D, H, K = 6, 8, 40, 3
DOUBLE = torch.float64


# ---- the rows of the table ----------------------------------------------------------------


def latents(n: int, first: int = 0) -> Tensor:
    """Indices [n, K], distinct within a row and shared between rows."""
    return (torch.arange(n)[:, None] + torch.tensor([0, 3, 7]) + first).remainder(11).int()


def some(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def values_of(n: int, seed: int) -> Tensor:
    return (some(n, K, seed=seed).abs() + 0.1).sort(1, descending=True).values


class Operator(NamedTuple):
    """An operator as a function of its floating-point arguments.

    Attributes:
        leaves: the arguments for n rows; those of `batched` have n rows.
        call: of the operators of a module, csrkern or csrkern.reference, and the arguments.
    """

    leaves: Callable[[int], tuple[Tensor, ...]]
    call: Callable[..., tuple[Tensor, ...]]
    batched: tuple[bool, ...]


def encoder(n: int) -> tuple[Tensor, ...]:
    return some(n, D, seed=0), some(H, D, seed=1), some(H, seed=2), some(D, seed=3)


def codes(values: Tensor, first: int = 0) -> SparseCodes:
    return SparseCodes(values, latents(values.shape[0], first), H)


def autoencoded(ops: Any, x: Tensor, w: Tensor, b: Tensor, p: Tensor) -> tuple[Tensor, ...]:
    found, out = ops.autoencode(x, w, b, ks=[1, K], pre_bias=p)
    return found.values, out


def classes(n: int) -> Tensor:
    return torch.arange(n).remainder(3)


OPERATORS = {
    "topk_relu": Operator(
        lambda n: (some(n, H, seed=0),),
        lambda ops, pre: (ops.topk_relu(pre, K).values,),
        (True,),
    ),
    "encode": Operator(
        encoder,
        lambda ops, x, w, b, p: (ops.encode(x, w, b, k=K, pre_bias=p).values,),
        (True, False, False, False),
    ),
    "decode": Operator(
        lambda n: (values_of(n, 0), some(H, D, seed=1), some(D, seed=2)),
        lambda ops, values, w, b: (ops.decode(codes(values), w, b, ks=[2, K]),),
        (True, False, False),
    ),
    "autoencode": Operator(encoder, autoencoded, (True, False, False, False)),
    "similarity": Operator(
        lambda n: (values_of(n, 0), values_of(n, 1)),
        lambda ops, a, b: (ops.similarity(codes(a), codes(b, 1)),),
        (True, True),
    ),
    "info_nce": Operator(
        lambda n: (values_of(n, 0), values_of(n, 1)),
        lambda ops, a, b: (ops.info_nce(codes(a), codes(b, 1), temperature=0.3),),
        (True, True),
    ),
    "info_nce of one set": Operator(
        lambda n: (values_of(n, 0),),
        lambda ops, a: (ops.info_nce(codes(a), temperature=0.3, normalize=False, reduction="sum"),),
        (True,),
    ),
    "info_nce with labels": Operator(
        lambda n: (values_of(n, 0),),
        lambda ops, a: (
            ops.info_nce(codes(a), temperature=0.3, labels=classes(a.shape[0]), reduction="none"),
        ),
        (True,),
    ),
}
every_operator = pytest.mark.parametrize("name", OPERATORS)


def public(name: str) -> str:
    return name.split()[0]


def single(leaves: tuple[Tensor, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    return tuple(leaf.to(dtype) for leaf in leaves)


def ours(name: str) -> Callable[..., Tensor]:
    """The operator, summed with weights, so that every result counts."""
    return summed(lambda *leaves: OPERATORS[name].call(csrkern, *leaves))


def exact(name: str) -> Callable[..., Tensor]:
    return summed(lambda *leaves: OPERATORS[name].call(reference, *leaves))


def summed(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Tensor]:
    def total(*leaves: Tensor) -> Tensor:
        return sum((out.square().sum() + out.sum() for out in function(*leaves)), torch.zeros(()))

    return total


def close(found: Any, expected: Any, rtol: float = 1e-4, atol: float = 1e-4) -> None:
    found, expected = (torch.utils._pytree.tree_leaves(side) for side in (found, expected))
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a.double(), b.double(), rtol=rtol, atol=atol)


class Calls(nn.Module):
    """A function as a module, which torch.export wants."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *leaves: Tensor) -> Any:
        return self.function(*leaves)


# ---- operators: torch.func and forward mode -----------------------------------------------


@every_operator
def test_gradients_by_torch_func(name):
    leaves = OPERATORS[name].leaves(N)
    every = tuple(range(len(leaves)))
    want = torch.func.grad(exact(name), every)(*leaves)
    close(torch.func.grad(ours(name), every)(*single(leaves)), want)
    close(torch.func.grad_and_value(ours(name), every)(*single(leaves))[0], want)
    out, pull = torch.func.vjp(ours(name), *single(leaves))
    close(out, exact(name)(*leaves))
    close(pull(torch.ones_like(out)), want)
    plain = [leaf.clone().requires_grad_() for leaf in single(leaves)]
    close(torch.autograd.grad(ours(name)(*plain), plain), want)
    with torch.no_grad():
        close(torch.func.grad(ours(name), every)(*single(leaves)), want)


@every_operator
def test_jacobians_in_reverse_mode(name):
    leaves, call = OPERATORS[name].leaves(N), OPERATORS[name].call
    every = tuple(range(len(leaves)))
    for i in range(len(call(csrkern, *single(leaves)))):
        found, want = (
            torch.func.jacrev(lambda *a, ops=ops, i=i: call(ops, *a)[i], every)(*given)
            for ops, given in ((csrkern, single(leaves)), (reference, leaves))
        )
        close(found, want)


@every_operator
def test_vmap_and_gradients_of_each_sample(name):
    """Each of five samples is a batch, or each has parameters of its own."""
    leaves = [torch.stack([leaf, 1.1 * leaf, leaf.flip(0)]) for leaf in OPERATORS[name].leaves(N)]
    call, every = OPERATORS[name].call, tuple(range(len(leaves)))
    for dims in {(0,) * len(leaves), OPERATORS[name].batched}:
        in_dims = tuple(0 if dim in (0, True) and dim is not False else None for dim in dims)
        given = [leaf if dim == 0 else leaf[0] for leaf, dim in zip(leaves, in_dims, strict=True)]
        found, want = (
            torch.vmap(lambda *a, ops=ops: call(ops, *a), in_dims)(*side)
            for ops, side in ((csrkern, single(given)), (reference, given))
        )
        close(found, want)
        found, want = (
            torch.vmap(torch.func.grad(total(name), every), in_dims)(*side)
            for total, side in ((ours, single(given)), (exact, given))
        )
        close(found, want)
        mapped = torch.vmap(ours(name), in_dims)
        outside = torch.func.grad(lambda *a, mapped=mapped: mapped(*a).sum(), every)
        wanted = [w.sum(0) if dim is None else w for w, dim in zip(want, in_dims, strict=True)]
        close(outside(*single(given)), wanted)


def forward_mode(name: str, compute: Callable[..., Any]) -> Any:
    """The result of `compute`, or None where it raises what it should."""
    try:
        return compute()
    except RuntimeError as error:
        message = str(error)
    assert f"csrkern.{public(name)} has no forward-mode derivative" in message
    assert f"csrkern.reference.{public(name)} has, in plain PyTorch" in message
    return None


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
@every_operator
def test_forward_mode_is_right_or_an_error(name, dtype):
    leaves = OPERATORS[name].leaves(N)
    tangents = tuple(some(*leaf.shape, seed=9) for leaf in leaves)
    given, towards = single(leaves, dtype), single(tangents, dtype)
    _, want = torch.func.jvp(exact(name), leaves, tangents)
    assert float(want) != 0
    found = forward_mode(name, lambda: torch.func.jvp(ours(name), given, towards)[1])
    if found is not None:
        close(found, want)

    def dual() -> Tensor:
        with forward_ad.dual_level():
            made = [forward_ad.make_dual(a, b) for a, b in zip(given, towards, strict=True)]
            return forward_ad.unpack_dual(ours(name)(*made)).tangent

    found = forward_mode(name, dual)
    if found is not None:
        close(found, want)
    every = tuple(range(len(leaves)))
    found = forward_mode(name, lambda: torch.func.jacfwd(ours(name), every)(*given))
    if found is not None:
        close(found, torch.func.jacrev(exact(name), every)(*leaves))
    # Constants have no derivative, and are none of its business.
    with forward_ad.dual_level():
        close(ours(name)(*given), exact(name)(*leaves))


@every_operator
def test_second_derivatives_are_right_or_an_error(name):
    leaves = OPERATORS[name].leaves(N)
    given = single(leaves)

    def twice(total: Callable[..., Tensor]) -> Callable[..., Any]:
        inner = torch.func.grad(total)
        return torch.func.grad(lambda first, *rest: inner(first, *rest).square().sum())

    refused = pytest.raises(
        RuntimeError, match=f"csrkern.{public(name)} cannot be differentiated tw"
    )
    with refused:
        twice(ours(name))(*given)
    with pytest.raises(RuntimeError, match=rf"csrkern\.{public(name)} .* csrkern\.reference\."):
        torch.func.hessian(ours(name))(*given)
    assert bool(twice(exact(name))(*leaves).isfinite().all())


def test_transpose_is_not_differentiable_and_says_so():
    values = values_of(N, 0).float()
    plain = transpose(codes(values))
    tracked = transpose(codes(values.clone().requires_grad_()))
    assert not any(part.requires_grad for part in tracked)
    assert all(torch.equal(a, b) for a, b in zip(plain, tracked, strict=True))
    for part in range(4):
        batched = torch.vmap(lambda v, part=part: transpose(codes(v))[part])(values[None])
        assert torch.equal(batched[0], plain[part])

    def through(v: Tensor) -> Tensor:
        return transpose(codes(v)).values

    assert float(torch.func.grad(lambda v: through(v).sum())(values).abs().sum()) == 0
    for function in (through, torch.func.grad(lambda v: through(v).sum())):
        with pytest.raises(RuntimeError, match=r"csrkern\.transpose has no derivative: call"):
            torch.func.jvp(function, (values,), (values,))
        with pytest.raises(RuntimeError, match=r"csrkern\.transpose has no derivative: call"):
            torch.func.jacfwd(function)(values)


# ---- operators: torch.export and torch.compile --------------------------------------------


@pytest.mark.parametrize("strict", [False, True])
@every_operator
def test_export(name, strict):
    leaves, call, batched = OPERATORS[name]
    module = Calls(lambda *a: call(csrkern, *a))
    fixed = torch.export.export(module, single(leaves(N)), strict=strict)
    close(fixed.module()(*single(leaves(N))), call(reference, *leaves(N)))
    rows = Dim("rows", min=2)
    shapes = (tuple({0: rows} if each else None for each in batched),)
    free = torch.export.export(module, single(leaves(N)), dynamic_shapes=shapes, strict=strict)
    for n in (2, N, 3 * N):
        close(free.module()(*single(leaves(n))), call(reference, *leaves(n)))


@every_operator
def test_compiled_gradients(name):
    torch._dynamo.reset()
    compiled = torch.compile(ours(name), fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (3, N):
        leaves = OPERATORS[name].leaves(n)
        given = [leaf.requires_grad_() for leaf in single(leaves)]
        want = torch.func.grad(exact(name), tuple(range(len(leaves))))(*leaves)
        close(torch.autograd.grad(compiled(*given), given), want)
    torch._dynamo.reset()
    every = tuple(range(len(leaves)))
    of_func = torch.compile(torch.func.grad(ours(name), every), backend="aot_eager")
    close(of_func(*single(leaves)), want)


# ---- operators: modes, devices and defaults -----------------------------------------------


@contextlib.contextmanager
def default(dtype: torch.dtype | None = None, device: str | None = None) -> Iterator[None]:
    """torch's default dtype or device, for a while."""
    try:
        if dtype is not None:
            torch.set_default_dtype(dtype)
        if device is not None:
            torch.set_default_device(device)
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "default dtype": lambda: default(dtype=DOUBLE),
    "default device": lambda: default(device="meta"),
    "deterministic": lambda: deterministic(),
}


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("mode", MODES)
@every_operator
def test_modes_and_defaults_do_not_matter(name, mode, monkeypatch):
    leaves, call, _ = OPERATORS[name]
    given = single(leaves(N))
    indices, labels = latents(N), classes(N)
    monkeypatch.setattr(__import__(__name__), "latents", lambda n, first=0: (indices + first) % 11)
    monkeypatch.setattr(__import__(__name__), "classes", lambda n: labels)
    want = call(csrkern, *given)
    with MODES[mode]():
        found = call(csrkern, *given)
        if mode not in ("no_grad", "inference_mode"):
            tracked = [leaf.clone().requires_grad_() for leaf in given]
            total = sum(out.sum() for out in call(csrkern, *tracked))
            torch.autograd.grad(total, tracked)
    for a, b in zip(found, want, strict=True):
        assert a.dtype == b.dtype
        assert a.device == b.device
        assert torch.equal(a, b)


@every_operator
def test_autocast(name):
    """As torch does: matrix products in bfloat16, the loss in float32, gradients in float32."""
    leaves = OPERATORS[name].leaves(N)
    given = [leaf.requires_grad_() for leaf in single(leaves)]
    with torch.autocast("cpu", torch.bfloat16):
        outs = OPERATORS[name].call(csrkern, *given)
    in_float32 = public(name) in ("topk_relu", "info_nce")
    assert {out.dtype for out in outs} == {torch.float32 if in_float32 else torch.bfloat16}
    close(outs, OPERATORS[name].call(reference, *leaves), rtol=0.05, atol=0.05 * D)
    grads = torch.autograd.grad(sum(out.float().sum() for out in outs), given)
    assert {grad.dtype for grad in grads} == {torch.float32}


@pytest.mark.parametrize("fake", [False, True], ids=["meta", "fake"])
@every_operator
def test_shapes_without_data(name, fake):
    leaves, call, _ = OPERATORS[name]
    given = single(leaves(N))
    want = call(csrkern, *given)
    with FakeTensorMode() if fake else torch.device("meta") as mode:
        move = mode.from_tensor if fake else lambda leaf: leaf.to("meta")
        given = [move(leaf).requires_grad_() for leaf in given]
        found = call(csrkern, *given)
        grads = torch.autograd.grad(sum(out.sum() for out in found), given)
    for a, b in zip((*found, *grads), (*want, *given), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


def test_shapes_of_a_transpose_without_data():
    given = codes(values_of(N, 0).float())
    for a, b in zip(transpose(given.to("meta")), transpose(given), strict=True):
        assert (a.shape, a.dtype, a.device.type) == (b.shape, b.dtype, "meta")


@every_operator
def test_copies_are_no_views_of_arguments(name):
    """A result changed in place leaves the arguments, and the gradient, alone."""
    leaves = OPERATORS[name].leaves(N)
    given = [leaf.requires_grad_() for leaf in single(leaves)]
    before = [leaf.detach().clone() for leaf in given]
    with torch.no_grad():
        for out in OPERATORS[name].call(csrkern, *given):
            out.fill_(7.0)
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))
