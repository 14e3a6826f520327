"""No operator has a second derivative, and each says so instead of giving a wrong one."""

from __future__ import annotations

import pytest
import torch

import csrkern
from csrkern import SparseCodes

X, W, PRE = torch.randn(5, 8), torch.randn(40, 8), torch.randn(5, 40)


def _codes(values: torch.Tensor) -> SparseCodes:
    return SparseCodes(values, torch.arange(3, dtype=torch.int32).repeat(5, 1), 40)


VALUES = torch.rand(5, 3).sort(1, descending=True).values
CALLS = {
    "topk_relu": (PRE, lambda pre: csrkern.topk_relu(pre, 3).values),
    "encode": (X, lambda x: csrkern.encode(x, W, k=3).values),
    "decode": (W, lambda w: csrkern.decode(_codes(VALUES), w)),
    "prefix_errors": (W, lambda w: csrkern.prefix_errors(X, _codes(VALUES), w)),
    "autoencode": (W, lambda w: csrkern.autoencode(X, w, ks=[2])[1]),
    "similarity": (VALUES, lambda v: csrkern.similarity(_codes(v), _codes(VALUES))),
    "info_nce": (VALUES, lambda v: csrkern.info_nce(_codes(v), temperature=0.5, normalize=False)),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_second_derivative_is_an_error(name):
    start, call = CALLS[name]
    leaf = start.clone().requires_grad_()
    (plain,) = torch.autograd.grad(call(leaf).square().sum(), leaf)
    (grad,) = torch.autograd.grad(call(leaf).square().sum(), leaf, create_graph=True)
    assert torch.equal(grad, plain)  # making the graph is no error, using it is
    with pytest.raises(RuntimeError, match=rf"csrkern\.{name} cannot be differentiated twice"):
        grad.sum().backward()


@pytest.mark.parametrize("of_bias", [False, True])
def test_errors_are_squares_of_x_and_bias_too(of_bias):
    """Nothing else asks for a gradient, and yet this one depends on x, or on the bias."""
    leaf = (W[0] if of_bias else X).clone().requires_grad_()
    x, bias = (X, leaf) if of_bias else (leaf, None)
    errors = csrkern.prefix_errors(x, _codes(VALUES), W, bias)
    (grad,) = torch.autograd.grad(errors.sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        grad.sum().backward()
