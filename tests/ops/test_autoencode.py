from __future__ import annotations

import re
from functools import partial

import pytest
import torch
from digests import ISAS, assert_same_digests
from opchecks import (
    assert_autocasts,
    assert_compiles_whole,
    assert_threads_do_not_matter,
    opcheck_calls_of,
)
from proposals import WAYS, proposals_in
from sums import DTYPES, small_integers
from torch import Tensor

import csrkern
from csrkern import reference

NAMES = ["x", "weight", "bias", "pre_bias"]


def integer_leaves(n: int, d: int, h: int, dtype: torch.dtype) -> dict[str, Tensor]:
    shapes = {"x": (n, d), "weight": (h, d), "bias": (h,), "pre_bias": (d,)}
    return {
        name: small_integers(*shape, limit=1, dtype=dtype, seed=i).requires_grad_()
        for i, (name, shape) in enumerate(shapes.items())
    }


def assert_equals_specification(leaves: dict[str, Tensor], ks: list[int], **options) -> None:
    """Codes, reconstructions and all gradients, by way of both, of integers."""
    dtype = leaves["x"].dtype
    exact = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}
    codes, out = csrkern.autoencode(**leaves, ks=ks, **options)
    expected_codes, expected = reference.autoencode(**exact, ks=ks)
    assert out.dtype == codes.dtype == dtype
    assert codes.validate().to(torch.float64).equal(expected_codes)
    assert torch.equal(out.double(), expected)
    grads = [small_integers(*t.shape, limit=1, dtype=dtype) for t in (codes.values, out)]
    got = torch.autograd.grad([codes.values, out], list(leaves.values()), grads)
    doubles = [grad.double() for grad in grads]
    want = torch.autograd.grad([expected_codes.values, expected], list(exact.values()), doubles)
    for name, ours, theirs in zip(leaves, got, want, strict=True):
        # Where a sum leaves the integers that a narrow dtype holds, it is rounded a few times.
        rtol = 0.0 if dtype in (torch.float32, torch.float64) else 4 * torch.finfo(dtype).eps
        scale = rtol * float(theirs.abs().max()) if theirs.numel() else 0.0
        torch.testing.assert_close(ours.double(), theirs, rtol=0.0, atol=scale, msg=name)


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize("ks", [[1], [2, 5, 9], [9], [1, 2, 3, 4, 5, 6, 7, 8], [40]], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_specification(dtype, ks):
    for n, d in [(0, 3), (1, 5), (20, 6)]:
        leaves = integer_leaves(n, d, 40, dtype)
        assert_equals_specification(leaves, ks)
        assert_equals_specification({name: leaves[name] for name in NAMES[:2]}, ks)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_and_several_blocks(way):
    leaves = integer_leaves(1200, 7, 300, torch.float32)
    with proposals_in(way):
        precision = "fast" if way == "fast" else "exact"
        assert_equals_specification(leaves, [3, 11], precision=precision)


def test_is_encode_and_decode():
    x, weight, bias, pre_bias = (torch.randn(s) for s in [(50, 16), (200, 16), 200, 16])
    codes, out = csrkern.autoencode(x, weight, bias, ks=[2, 8], pre_bias=pre_bias)
    assert codes.equal(csrkern.encode(x, weight, bias, k=8, pre_bias=pre_bias))
    assert torch.equal(out, csrkern.decode(codes, weight, pre_bias, ks=[2, 8]))


def test_gradcheck_in_float64():
    torch.manual_seed(3)
    shapes = [(4, 6), (20, 6), (20,), (6,)]
    leaves = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes]

    def both(x, weight, bias, pre_bias):
        codes, out = csrkern.autoencode(x, weight, bias, ks=[1, 4], pre_bias=pre_bias)
        return codes.values, out

    assert torch.autograd.gradcheck(both, leaves)


def test_strides():
    base = small_integers(150, 150, limit=1)
    for x, weight in [(base[:30, :20].mT, base[40:100, :30]), (base[::5, ::5], base[:30, :60].mT)]:
        leaves = {"x": x.detach().requires_grad_(), "weight": weight.detach().requires_grad_()}
        assert_equals_specification(leaves, [2, 9])


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_gives_the_same_exact_sums(isa):
    assert_same_digests("autoencode", isa)


def test_thread_count_does_not_matter_and_runs_repeat():
    leaves = [torch.randn(300, 40), torch.randn(800, 40), torch.randn(800)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    grad = torch.randn(2, 300, 40)

    def results():
        codes, out = csrkern.autoencode(*leaves, ks=[4, 16])
        return (codes.values, out, *torch.autograd.grad(out, leaves, grad))

    assert_threads_do_not_matter(results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck(dtype):
    leaves = integer_leaves(8, 6, 40, dtype)
    called = opcheck_calls_of(lambda: csrkern.autoencode(**leaves, ks=[2, 5])[1])
    assert {"autoencode", "gather_dot", "scatter_sum"} <= called


def test_compiles_whole_with_a_dynamic_batch():
    leaves = integer_leaves(1, 6, 64, torch.float32)

    def loss(x):
        codes, out = csrkern.autoencode(**{**leaves, "x": x}, ks=[2, 5])
        return codes.values.sum() + out.square().sum()

    assert_compiles_whole(
        loss,
        lambda n: [small_integers(n, 6, seed=n).requires_grad_()],
        [leaves[name] for name in NAMES[1:]],
    )


def test_autocast_gives_the_autocast_dtype():
    leaves = integer_leaves(20, 6, 64, torch.float32)
    assert_autocasts(
        partial(csrkern.autoencode, ks=[2, 5]), partial(reference.autoencode, ks=[2, 5]), leaves
    )


X, W = torch.ones(3, 4), torch.ones(9, 4)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X, W.T), {}, ValueError, "weight: expected shape [any, 4], got [4, 9]"),
        ((X, W, X), {}, ValueError, "bias: expected shape [9], got [3, 4]"),
        ((X, W), {"ks": []}, ValueError, "ks: expected 1 to 8 ascending numbers, got []"),
        ((X, W), {"ks": [3, 3]}, ValueError, "ks: expected 1 to 8 ascending numbers, got [3, 3]"),
        ((X, W), {"ks": [2, 10]}, ValueError, "ks[1]: expected 1 <= ks[1] <= h = 9, got 10"),
        ((X, W), {"ks": 2}, TypeError, "ks: expected a list of ints, got int; use ks=[2]"),
        ((X, W), {"precision": "best"}, ValueError, "precision: expected one of 'exact', 'fast'"),
    ],
)
def test_errors_teach(arguments, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        csrkern.autoencode(*arguments, **{"ks": [2], **options})
