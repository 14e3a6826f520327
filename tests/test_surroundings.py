"""What surrounds a PyTorch operator or module: every cell of the table works or says what does.

Rows are the public operators and modules, columns the ways in which PyTorch's users call them.
A result is compared with that of `csrkern.reference`, in float64.
"""

from __future__ import annotations

import contextlib
import copy
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.export import Dim

import csrkern
import csrkern.nn
from csrkern import SparseCodes, reference
from csrkern.nn import SparseAutoencoder, TopKReLU
from csrkern.ops.transpose import transpose
from csrtrain import CSRLoss

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
    "prefix_errors": Operator(
        lambda n: (some(n, D, seed=3), values_of(n, 0), some(H, D, seed=1), some(D, seed=2)),
        lambda ops, x, values, w, b: (ops.prefix_errors(x, codes(values), w, b),),
        (True, True, False, False),
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


def needs_view_rule(name: str) -> None:
    """Skip what normalizes codes under vmap, which has no rule for view(dtype) before 2.13."""
    if name.startswith(("info_nce", "loss")) and torch.__version__ < (2, 13):
        pytest.skip("needs PyTorch 2.13")


@every_operator
def test_vmap_and_gradients_of_each_sample(name):
    """Each of five samples is a batch, or each has parameters of its own."""
    needs_view_rule(name)
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
    here = sys.modules[__name__]
    monkeypatch.setattr(here, "latents", lambda n, first=0: (indices + first) % 11)
    monkeypatch.setattr(here, "classes", lambda n: labels)
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
    in_float32 = public(name) in ("topk_relu", "info_nce", "prefix_errors")
    assert {out.dtype for out in outs} == {torch.float32 if in_float32 else torch.bfloat16}
    close(outs, OPERATORS[name].call(reference, *leaves), rtol=0.05, atol=0.05 * D)
    grads = torch.autograd.grad(sum(out.float().sum() for out in outs), given)
    assert {grad.dtype for grad in grads} == {torch.float32}


@every_operator
def test_autocast_takes_what_another_operator_left(name):
    """The first argument comes in bfloat16 from a layer before, the parameters are float32."""
    leaves = OPERATORS[name].leaves(N)
    first, *rest = single(leaves)
    given = [leaf.requires_grad_() for leaf in (first.bfloat16(), *rest)]
    with torch.autocast("cpu", torch.bfloat16):
        outs = OPERATORS[name].call(csrkern, *given)
    close(outs, OPERATORS[name].call(reference, *leaves), rtol=0.05, atol=0.05 * D)
    grads = torch.autograd.grad(sum(out.float().sum() for out in outs), given)
    assert [grad.dtype for grad in grads] == [leaf.dtype for leaf in given]


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


# ---- modules ------------------------------------------------------------------------------


class Loss(nn.Module):
    """A model and its loss, as a trainer holds them."""

    def __init__(self, model: SparseAutoencoder, **options: Any) -> None:
        super().__init__()
        self.model = model
        self.loss = CSRLoss(recon_weight=0.5, **options)

    def forward(self, x: Tensor) -> Tensor:
        labels = classes(x.shape[0]) if self.loss.contrast == "label" else None
        partners = {"partners": x.flip(1)} if self.loss.contrast == "clip" else {}
        terms = self.loss(self.model, x, labels, **partners)
        return torch.stack([terms[name] for name in ("loss", "recon", "aux", "contrast")])


def autoencoder(dead: int = 0, **options: Any) -> SparseAutoencoder:
    model = SparseAutoencoder(D, H, K, k_aux=2, dtype=DOUBLE, **options)
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(some(*parameter.shape, seed=i))
        if dead:
            model.stats_last_nonzero[-dead:] = 1000
    return model


MODULES: dict[str, Callable[[], nn.Module]] = {
    "TopKReLU": lambda: TopKReLU(K),
    "TopKReLU, dense": lambda: TopKReLU(K, dense=True),
    "tied": autoencoder,
    "untied": lambda: autoencoder(tied=False),
    "standardized": lambda: autoencoder(standardize=True),
    "loss": lambda: Loss(autoencoder(dead=5), contrast="self", ks=(2,), balance=0.1),
    "loss, labels": lambda: Loss(autoencoder(tied=False), contrast="label"),
    "loss, partners": lambda: Loss(autoencoder(standardize=True), contrast="clip"),
}
every_module = pytest.mark.parametrize("name", MODULES)


def width(name: str) -> int:
    return H if name.startswith("TopKReLU") else D


def rows(name: str, n: int = N) -> Tensor:
    return some(n, width(name), seed=40)


def tensors(result: Any) -> list[Tensor]:
    """The floating-point tensors of a result."""
    leaves = torch.utils._pytree.tree_leaves(result)
    return [leaf for leaf in leaves if leaf.is_floating_point()]


def of_module(module: nn.Module) -> Callable[..., Tensor]:
    """A scalar of the module's parameters and its input."""

    def total(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        found = tensors(torch.func.functional_call(module, parameters, (x,)))
        return sum((out.square().sum() + out.sum() for out in found), torch.zeros(()))

    return total


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """The module in float32, and in float64, both in evaluation mode."""
    return MODULES[name]().float().eval(), MODULES[name]().eval()


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """Modules compute by `csrkern.reference`."""
    with pytest.MonkeyPatch.context() as patch:
        for op in ("topk_relu", "encode", "decode", "autoencode"):
            patch.setattr(csrkern.nn.modules, op, without_precision(getattr(reference, op)))
        for op in ("decode", "info_nce", "prefix_errors"):  # of the loss
            patch.setattr(csrkern, op, getattr(reference, op))
        yield


def without_precision(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, precision="exact", **options: function(*args, **options)


def near(found: Any, expected: Any) -> None:
    """Gradients are near, for their size: a loss that divides by small numbers has large ones."""
    leaves = torch.utils._pytree.tree_leaves
    for a, b in zip(leaves(found), leaves(expected), strict=True):
        close(a, b, atol=1e-4 + 1e-6 * float(b.abs().max()))


@every_module
def test_modules_equal_plain_pytorch(name):
    module, exactly = pair(name)
    x = rows(name)
    with plainly():
        expected = tensors(exactly(x))
        want = torch.func.grad(of_module(exactly), (0, 1))(parameters_of(exactly), x)
    close(tensors(module(x.float())), expected)
    leaves = [*module.parameters(), x.float().requires_grad_()]
    total = of_module(module)(dict(module.named_parameters()), leaves[-1])
    near(torch.autograd.grad(total, leaves), want)
    found = torch.func.grad(of_module(module), (0, 1))(parameters_of(module), x.float())
    near(found, want)
    compute = torch.compile(of_module(module), backend="aot_eager", fullgraph=False)
    near(torch.func.grad(compute, (0, 1))(parameters_of(module), x.float()), want)
    near(torch.func.jacrev(of_module(module), 1)(parameters_of(module), x.float()), want[1])


@every_module
def test_gradients_of_each_sample_of_a_module(name):
    needs_view_rule(name)
    module, exactly = pair(name)
    x = torch.stack([rows(name), rows(name).flip(0), 2 * rows(name)])

    def of_each(module: nn.Module, x: Tensor) -> Any:
        gradient = torch.func.grad(of_module(module), (0, 1))
        return torch.vmap(gradient, (None, 0))(parameters_of(module), x)

    with plainly():
        want = of_each(exactly, x)
    near(of_each(module, x.float()), want)


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith("TopKReLU")])
def test_ensembles_of_modules(name):
    needs_view_rule(name)
    members = [MODULES[name]().eval() for _ in range(3)]
    for i, member in enumerate(members):
        with torch.no_grad():
            for parameter in member.parameters():
                parameter.mul_(1 + 0.1 * i)
    with plainly():
        want = [tensors(member(rows(name))) for member in members]
    base = copy.deepcopy(members[0]).float()
    members = [member.float() for member in members]
    stacked, buffers = torch.func.stack_module_state(members)

    def call(parameters: Any, buffers: Any, x: Tensor) -> list[Tensor]:
        return tensors(torch.func.functional_call(base, (parameters, buffers), (x,)))

    found = torch.vmap(call, (0, 0, None))(stacked, buffers, rows(name).float())
    for i, each in enumerate(zip(*want, strict=True)):
        close(found[i], torch.stack(each))


@every_module
def test_forward_mode_of_a_module_is_right_or_an_error(name):
    module, exactly = pair(name)
    x, towards = rows(name), some(N, width(name), seed=50)
    with plainly():
        _, want = torch.func.jvp(
            lambda x: of_module(exactly)(parameters_of(exactly), x), (x,), (towards,)
        )
    try:
        _, found = torch.func.jvp(
            lambda x: of_module(module)(parameters_of(module), x), (x.float(),), (towards.float(),)
        )
    except RuntimeError as error:
        message = str(error)
        assert "has no forward-mode derivative" in message
        assert "csrkern.reference" in message
    else:
        close(found, want)


@pytest.mark.parametrize("strict", [False, True])
@every_module
def test_exported_modules(name, strict):
    module, exactly = pair(name)
    free = torch.export.export(
        module,
        (rows(name).float(),),
        dynamic_shapes=({0: Dim("rows", min=2)},),
        strict=strict,
    )
    for n in (2, N, 3 * N):
        x = rows(name, n)
        with plainly():
            want = tensors(exactly(x))
        close(tensors(free.module()(x.float())), want)


# A loss takes long to compile; strict export traces it in the same way.
@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith("loss")])
def test_compiled_modules(name):
    module, exactly = pair(name)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (3, N):
        x = rows(name, n)
        with plainly():
            want = tensors(exactly(x))
        close(tensors(compiled(x.float())), want)


@every_module
def test_autocast_of_modules(name):
    module, exactly = pair(name)
    x = rows(name).float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = tensors(module(x))
    with plainly():
        want = tensors(exactly(x.detach().double()))
    for a, b in zip(found, want, strict=True):
        assert float((a.double() - b).norm()) < 0.1 * float(b.norm())
    leaves = [x, *module.parameters()]
    grads = torch.autograd.grad(sum(out.float().sum() for out in found), leaves)
    assert {grad.dtype for grad in grads} == {torch.float32}
    assert all(bool(grad.isfinite().all()) for grad in grads)
    with torch.autocast("cpu", torch.bfloat16):
        found = tensors(module(x.detach().bfloat16()))  # as a layer before it leaves them
    for a, b in zip(found, want, strict=True):
        assert float((a.double() - b).norm()) < 0.1 * float(b.norm())


@pytest.mark.parametrize("fake", [False, True], ids=["meta", "fake"])
@every_module
def test_modules_without_data(name, fake):
    module, _ = pair(name)
    want = tensors(module(rows(name).float()))
    x = rows(name).float()
    with FakeTensorMode(allow_non_fake_inputs=True) if fake else torch.device("meta") as mode:
        if not fake:
            module = module.to("meta")
        found = tensors(module(mode.from_tensor(x) if fake else x.to("meta")))
    for a, b in zip(found, want, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


def saved_by_torch(module: nn.Module, folder: Path) -> nn.Module:
    torch.save(module.state_dict(), folder / "a.pt")
    other = fresh(module)
    other.load_state_dict(torch.load(folder / "a.pt"))
    return other


def saved_whole(module: nn.Module, folder: Path) -> nn.Module:
    torch.save(module, folder / "a.pt")
    return torch.load(folder / "a.pt", weights_only=False)


def saved_as_safetensors(module: nn.Module, folder: Path) -> nn.Module:
    save_file(module.state_dict(), folder / "a.safetensors")
    other = fresh(module)
    other.load_state_dict(load_file(folder / "a.safetensors"))
    return other


def saved_as_a_model(module: nn.Module, folder: Path) -> nn.Module:
    save_model(module, str(folder / "a.safetensors"))
    other = fresh(module)
    load_model(other, str(folder / "a.safetensors"))
    return other


def assigned(module: nn.Module, _folder: Path) -> nn.Module:
    other = fresh(module).to("meta")
    other.load_state_dict(copy.deepcopy(module.state_dict()), assign=True)
    return other


def fresh(module: nn.Module) -> nn.Module:
    """A module of the same kind with other weights."""
    other = copy.deepcopy(module)
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            tensor.zero_()
    return other


@pytest.mark.parametrize(
    "duplicate",
    [
        lambda module, _: copy.deepcopy(module),
        lambda module, _: pickle.loads(pickle.dumps(module)),
        saved_by_torch,
        saved_whole,
        saved_as_safetensors,
        saved_as_a_model,
        assigned,
    ],
    ids=["deepcopy", "pickle", "torch.save", "whole", "safetensors", "save_model", "assign"],
)
@every_module
def test_copies_and_files_of_modules(name, duplicate, tmp_path):
    module, x = MODULES[name]().float(), rows(name).float()
    copied = duplicate(module, tmp_path)
    assert [n for n, _ in copied.named_parameters()] == [n for n, _ in module.named_parameters()]
    for a, b in zip(copied.state_dict().values(), module.state_dict().values(), strict=True):
        assert torch.equal(a, b)
        assert a.data_ptr() != b.data_ptr()
    found, want = tensors(copied(x)), tensors(module(x))
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


@pytest.mark.parametrize("mode", MODES)
@every_module
def test_modules_in_modes_and_by_defaults(name, mode, monkeypatch):
    module, x = MODULES[name]().float().eval(), rows(name).float()
    labels = classes(N)
    monkeypatch.setattr(sys.modules[__name__], "classes", lambda n: labels)
    want = tensors(module(x))
    with MODES[mode]():
        found = tensors(module(x))
        made = SparseAutoencoder(D, H, K)
    for a, b in zip(found, want, strict=True):
        assert (a.dtype, a.device) == (b.dtype, b.device)
        assert torch.equal(a, b)
    # New modules follow torch's defaults, as nn.Linear does.
    dtype = DOUBLE if mode == "default dtype" else torch.float32
    device = "meta" if mode == "default device" else "cpu"
    assert {p.dtype for p in made.parameters()} == {dtype}
    assert {t.device.type for t in (*made.parameters(), *made.buffers())} == {device}


def test_a_loss_in_training_mode_under_torch_func():
    """Counts of use change in place, which torch.func refuses; evaluation mode has none."""
    module = MODULES["loss"]().float().train()
    with pytest.raises(RuntimeError, match=r"update_stats: .* torch\.func .* loss\.eval\(\)"):
        torch.func.grad(of_module(module))(parameters_of(module), rows("loss").float())
