from __future__ import annotations

import pytest
import torch
from adversarial import adversarial_rows, assert_selects
from digests import ISAS, assert_same_digests
from hypothesis import given, settings
from hypothesis import strategies as st
from opchecks import (
    assert_autocasts,
    assert_compiles_whole,
    assert_threads_do_not_matter,
    opcheck_calls_of,
)
from proposals import WAYS, encode_by
from sums import DTYPES, assert_sums_close, small_integers
from torch import Tensor

import csrkern
from csrkern import reference

# (n, d, h, k)
SHAPES = [(1, 1, 1, 1), (5, 3, 7, 7), (33, 24, 100, 1), (130, 17, 300, 32), (64, 20, 64, 64)]
SHAPES += [(1500, 8, 600, 3), (3, 20, 5000, 40), (1, 16, 1000, 16)]
NAMES = ["x", "weight", "bias", "pre_bias"]


def in_float64(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}


def integer_leaves(n: int, d: int, h: int, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    """Arguments whose codes and gradients are exact, and full of ties."""
    shapes = {"x": (n, d), "weight": (h, d), "bias": (h,), "pre_bias": (d,)}
    return {
        name: small_integers(*shape, limit=1 + (name == "x"), dtype=dtype, seed=seed + i)
        for i, (name, shape) in enumerate(shapes.items())
    }


def assert_exact(leaves: dict[str, Tensor], k: int, way: str = "float32") -> None:
    """Codes and all gradients equal the reference's in float64."""
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
    codes, exact = encode_by(way, **leaves, k=k), in_float64(leaves)
    expected = reference.encode(**exact, k=k)
    codes.validate()
    assert codes.dtype == leaves["x"].dtype
    assert codes.to(torch.float64).equal(expected)
    assert not codes.indices.requires_grad
    grad = small_integers(*codes.values.shape, limit=1, dtype=codes.dtype, seed=9)
    got = torch.autograd.grad(codes.values, list(leaves.values()), grad)
    want = torch.autograd.grad(expected.values, list(exact.values()), grad.double())
    for name, ours, theirs in zip(leaves, got, want, strict=True):
        assert ours.dtype == codes.dtype
        assert torch.equal(ours.double(), theirs), name


@pytest.mark.parametrize(("n", "d", "h", "k"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_integers_come_out_exactly(n, d, h, k, dtype):
    # Columns of a gradient sum over rows: few enough for the narrow dtypes to hold them.
    n = n if dtype in (torch.float32, torch.float64) else min(n, 40)
    leaves = integer_leaves(n, d, h, dtype)
    for way in WAYS:
        assert_exact(leaves, k, way)
        assert_exact({name: leaves[name] for name in ("x", "weight")}, k, way)


@settings(max_examples=60)
@given(data=st.data())
def test_any_shape(data):
    n, d = data.draw(st.integers(0, 40)), data.draw(st.integers(1, 30))
    h = data.draw(st.integers(1, 120))
    k = data.draw(st.integers(1, h))
    dtype = data.draw(st.sampled_from(DTYPES))
    leaves = integer_leaves(n, d, h, dtype, seed=data.draw(st.integers(0, 99)))
    left_out = data.draw(st.sets(st.sampled_from(NAMES[2:])))
    leaves = {name: leaf for name, leaf in leaves.items() if name not in left_out}
    assert_exact(leaves, k, data.draw(st.sampled_from(WAYS)))


def magnitudes(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Absolute values in float64, those of pre_bias added to those of x."""
    sizes = {name: leaf.double().abs() for name, leaf in leaves.items()}
    sizes["x"] = sizes["x"] + sizes.pop("pre_bias", 0.0)
    return sizes


def without_near_ties(leaves: dict[str, Tensor], k: int) -> dict[str, Tensor]:
    """The arguments with those rows of x alone whose order no rounding can change."""
    dtype, sizes = leaves["x"].dtype, magnitudes(leaves)
    top = reference.encode(**in_float64(leaves), k=k + 1).values.detach()
    unit = 2.0**-53 if dtype == torch.float64 else 2.0**-24
    error = 4 * leaves["x"].shape[1] * unit * (sizes["x"] @ sizes["weight"].T).amax(1)
    error += torch.finfo(dtype).eps * top[:, 0]
    clear = (-top.diff(dim=1)).amin(1) > 2 * error
    assert clear.sum() > 10
    return {**leaves, "x": leaves["x"][clear]}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("d", "h", "k"), [(40, 64, 4), (100, 1000, 8), (7, 3000, 3)])
def test_equals_specification_where_nothing_is_nearly_tied(d, h, k, dtype):
    leaves = {
        "x": torch.randn(300, d).to(dtype),
        "weight": (torch.randn(h, d) / d**0.5).to(dtype),
        "bias": (torch.randn(h) / 8).to(dtype),
    }
    if torch.finfo(dtype).bits >= 32:
        leaves["pre_bias"] = torch.randn(d).to(dtype)
    else:  # x - pre_bias is rounded, and few rows are free of near-ties
        k = 2
    leaves = {name: t.requires_grad_() for name, t in without_near_ties(leaves, k).items()}
    codes, exact, sizes = csrkern.encode(**leaves, k=k), in_float64(leaves), magnitudes(leaves)
    expected = reference.encode(**exact, k=k)
    assert torch.equal(codes.indices, expected.indices)
    latents, eps = codes.indices.long(), torch.finfo(dtype).eps
    size = (sizes["x"] @ sizes["weight"].T + sizes["bias"]).gather(1, latents)
    slack = eps * sizes["bias"][latents]
    assert_sums_close(codes.values.detach(), expected.values.detach(), size.detach(), d + 2, slack)

    grad = torch.randn(codes.values.shape).to(dtype)
    got = torch.autograd.grad(codes.values, list(leaves.values()), grad)
    want = torch.autograd.grad(expected.values, list(exact.values()), grad.double())
    each = torch.zeros(len(codes), h, dtype=torch.float64)
    each.scatter_(1, latents, grad.double().abs())
    rows = each @ sizes["weight"]
    bounds = {
        "x": rows,
        "weight": each.T @ sizes["x"],
        "bias": each.sum(0),
        "pre_bias": rows.sum(0),
    }
    for name, ours, theirs in zip(leaves, got, want, strict=True):
        # Sums over rows of narrow numbers may be rounded along the way.
        slack = 2 * eps * bounds[name] if name == "bias" else 0.0
        assert_sums_close(ours, theirs, bounds[name], len(codes) * k, slack)


@pytest.mark.parametrize(("h", "k"), [(1, 1), (100, 7), (1000, 32), (130, 130)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_adversarial_pre_activations(h, k, dtype):
    x, weight = torch.zeros(9, 5, dtype=dtype), torch.randn(h, 5).to(dtype)
    for name, pre in adversarial_rows(h, k).items():
        for bias in pre.to(dtype):  # all that is not zero
            try:
                for way in WAYS:
                    codes = encode_by(way, x, weight, bias, k=k)
                    assert_selects(codes, bias.repeat(len(x), 1), k)
            except (AssertionError, ValueError) as error:
                raise AssertionError(f"{name}, h={h}, k={k}, {dtype}: {error}") from error


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_that_is_not_finite_keeps_to_itself(dtype):
    leaves = integer_leaves(9, 12, 80, dtype)
    clean = csrkern.encode(**leaves, k=6)
    leaves["x"][2, 3] = torch.nan
    leaves["x"][5, 1] = torch.inf
    leaves["x"][6, :] = -torch.inf
    codes, others = csrkern.encode(**leaves, k=6), [0, 1, 3, 4, 7, 8]
    assert codes[others].equal(clean[others])
    assert codes.to(torch.float64).equal(reference.encode(**in_float64(leaves), k=6))
    assert bool(codes.values[2].isnan().all())


def test_gradients_are_exactly_zero_where_nothing_is_active():
    leaves = integer_leaves(20, 6, 50, torch.float32)
    leaves["bias"][10:] -= 100.0  # 40 dead latents
    leaves["x"][4] = leaves["pre_bias"]  # and a row with nothing at all
    leaves["bias"] -= 1.0
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    codes = csrkern.encode(**leaves, k=20)
    codes.values.backward(torch.full_like(codes.values, 7.0))
    assert not bool(codes.active[4].any())
    assert bool(codes.active.any())
    assert bool((leaves["x"].grad[4] == 0).all())
    assert bool((leaves["weight"].grad[10:] == 0).all())
    assert bool((leaves["bias"].grad[10:] == 0).all())
    counts = torch.bincount(codes.indices[codes.active].long(), minlength=50)
    assert torch.equal(leaves["bias"].grad, 7.0 * counts)


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_writes_every_place(dtype):
    assert_exact(integer_leaves(30, 7, 90, dtype), 12)
    assert_exact(integer_leaves(0, 7, 90, dtype), 12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strides(dtype):
    base, other = (small_integers(150, 150, limit=1, dtype=dtype, seed=s) for s in (1, 2))
    row = small_integers(300, dtype=dtype)
    for x in (base[:30, :20], base[:20, :30].T, base[:60:2, :60:3], base[:1, :20].expand(30, 20)):
        for weight in (other[:90, :20], other[:20, :90].T, other[1:91, 5:45:2]):
            leaves = {"x": x, "weight": weight, "bias": row[:90], "pre_bias": row[:60:3]}
            assert_exact(leaves, 8)
    leaves |= {"bias": row[:1].expand(90), "pre_bias": row[7:8].expand(20)}
    assert_exact(leaves, 8)


@pytest.mark.parametrize("k", [1, 90])
def test_no_rows(k):
    leaves = integer_leaves(0, 7, 90, torch.float32)
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    codes = csrkern.encode(**leaves, k=k)
    assert codes.shape == (0, 90)
    assert codes.values.shape == (0, k)
    codes.values.sum().backward()
    assert all(bool((leaf.grad == 0).all()) for leaf in leaves.values())


@pytest.mark.parametrize("wanted", NAMES)
def test_gradients_do_not_depend_on_which_are_wanted(wanted):
    def gradients(wants):
        leaves = integer_leaves(20, 7, 90, torch.float32)
        leaves = {name: leaf.requires_grad_(name in wants) for name, leaf in leaves.items()}
        csrkern.encode(**leaves, k=8).values.square().sum().backward()
        return {name: leaf.grad for name, leaf in leaves.items()}

    alone, together = gradients([wanted]), gradients(NAMES)
    assert [name for name in NAMES if alone[name] is not None] == [wanted]
    assert torch.equal(alone[wanted], together[wanted])


def test_gradcheck_in_float64():
    torch.manual_seed(3)
    shapes = [(4, 6), (20, 6), (20,), (6,)]
    x, weight, bias, pre_bias = (torch.randn(s, dtype=torch.float64) for s in shapes)
    inputs = [t.requires_grad_() for t in (x, weight, bias, pre_bias)]

    def values(x, weight, bias, pre_bias):
        return csrkern.encode(x, weight, bias, k=4, pre_bias=pre_bias).values

    assert torch.autograd.gradcheck(values, inputs)


def test_tied_weights_get_both_gradients():
    x = small_integers(30, 7, seed=1)
    ours, exact = small_integers(90, 7).requires_grad_(), small_integers(90, 7).double()
    exact.requires_grad_()
    csrkern.decode(csrkern.encode(x, ours, k=4), ours).square().sum().backward()
    reference.decode(reference.encode(x.double(), exact, k=4), exact).square().sum().backward()
    assert torch.equal(ours.grad.double(), exact.grad)


def test_works_in_inference_mode_and_without_gradients():
    leaves = integer_leaves(20, 7, 90, torch.float32)
    expected = csrkern.encode(**leaves, k=8)
    for mode in (torch.inference_mode(), torch.no_grad()):
        with mode:
            assert csrkern.encode(**leaves, k=8).equal(expected)
    assert not expected.values.requires_grad


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_gives_the_same_bits(isa):
    assert_same_digests("encode", isa)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_thread_count_does_not_matter_and_runs_repeat(dtype):
    leaves = integer_leaves(250, 11, 700, dtype)
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    grad = torch.zeros(250, 9, dtype=dtype)
    grad[:20] = small_integers(20, 9, dtype=dtype, limit=1)

    def results():
        codes = csrkern.encode(**leaves, k=9)
        grads = torch.autograd.grad(codes.values, list(leaves.values()), grad)
        return (codes.values, codes.indices, *grads)

    assert_threads_do_not_matter(results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck(dtype):
    for wants in (False, True):
        leaves = integer_leaves(8, 6, 40, dtype)
        leaves = {name: leaf.requires_grad_(wants) for name, leaf in leaves.items()}
        called = opcheck_calls_of(lambda leaves=leaves: csrkern.encode(**leaves, k=5).values)
        assert "encode" in called
    assert {"encode", "transpose", "gather_sum", "scatter_sum"} <= called


def test_compiles_whole_with_a_dynamic_batch():
    leaves = integer_leaves(1, 6, 64, torch.float32)
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}

    def loss(x):
        return csrkern.encode(**{**leaves, "x": x}, k=4).values.square().sum()

    assert_compiles_whole(
        loss,
        lambda n: [small_integers(n, 6, seed=n).requires_grad_()],
        [leaves[name] for name in NAMES[1:]],
    )


def test_autocast_gives_the_autocast_dtype():
    leaves = integer_leaves(20, 6, 64, torch.float32)
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    assert_autocasts(
        lambda **given: (csrkern.encode(**given, k=4),),
        lambda **given: (reference.encode(**given, k=4),),
        leaves,
    )


X, W = torch.ones(3, 4), torch.ones(9, 4)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([[1.0]], W), {}, TypeError, "x: expected a torch.Tensor, got list"),
        ((X.long(), W), {}, TypeError, "x: expected float32, .* got torch.int64"),
        ((X[0], W), {}, ValueError, r"x: expected shape \[any, any\], got \[4\]"),
        ((X, None), {}, TypeError, "weight: expected a torch.Tensor, got NoneType"),
        ((X, W.T), {}, ValueError, r"weight: expected shape \[any, 4\], got \[4, 9\]"),
        ((X, W.double()), {}, TypeError, "weight is torch.float64 but x is torch.float32"),
        ((X, W.to("meta")), {}, ValueError, "weight is on meta but x is on cpu"),
        ((X, W, X), {}, ValueError, r"bias: expected shape \[9\], got \[3, 4\]"),
        ((X, W, 1.0), {}, TypeError, "bias: expected a torch.Tensor, got float"),
        ((X, W, W[:, 0].half()), {}, TypeError, "bias is torch.float16 but x is torch.float32"),
        ((X, W), {"pre_bias": W[:, 0]}, ValueError, r"pre_bias: expected shape \[4\], got \[9\]"),
        ((X, W), {"pre_bias": X[0].double()}, TypeError, "pre_bias is torch.float64 but x is"),
        ((X, W), {"k": 0}, ValueError, "k: expected 1 <= k <= h = 9, got 0"),
        ((X, W), {"k": 10}, ValueError, "k: expected 1 <= k <= h = 9, got 10"),
        ((X, W), {"k": 2.0}, TypeError, "k: expected an int, got float"),
        ((X, W), {"k": True}, TypeError, "k: expected an int, got bool"),
        (
            (X, W),
            {"precision": "auto"},
            ValueError,
            "precision: expected one of 'exact', 'fast', got 'auto'",
        ),
    ],
)
def test_errors_teach(arguments, options, error, message):
    with pytest.raises(error, match=message):
        csrkern.encode(*arguments, **{"k": 2, **options})
