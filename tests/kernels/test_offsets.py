"""Offsets of 2^31 elements and more, in rows of memory so far apart that what lies between is free.

Nothing touches the memory in between, so on Linux there is none behind it. On a GPU the tests
named more_than_2_to_31 fill as much.
"""

from __future__ import annotations

import pytest
import torch

import csrkern.ops.transpose  # noqa: F401  (registers the operators)
from csrkern import SparseCodes

ops = torch.ops.csrkern
APART = 2**30 + 8
ROWS, COLUMNS = 3, 40


@pytest.fixture
def far(device):
    """float16 [3, 40], of which the last row begins 2^31 + 16 elements after the first."""
    memory = torch.empty(2 * APART + 64, dtype=torch.float16, device=device)
    rows = memory.as_strided((ROWS, COLUMNS), (APART, 1))
    return rows.copy_(torch.randn(ROWS, COLUMNS))


@pytest.fixture
def codes():
    """Over 3 latents."""
    return SparseCodes.from_dense(torch.rand(4, ROWS) + 0.1, 2)


def test_gathers(far, codes, device):
    from csrkern.kernels import gather

    on_device = codes.values.to(device), codes.indices.to(device)
    near = far.contiguous()
    sums = [gather.gather_sum(*on_device, table, None, [2]) for table in (far, near)]
    assert torch.equal(*sums)
    x = torch.randn(1, 4, COLUMNS, device=device).half()
    dots = [gather.gather_dot(*on_device, table, x, [2]) for table in (far, near)]
    assert torch.equal(*dots)


def test_prefix_errors(far, codes, device):
    from csrkern.kernels import prefix_errors

    x, weights = torch.randn(4, COLUMNS, device=device), torch.ones(2, device=device)
    found = []
    for table in (far, far.contiguous()):
        args = codes.values.to(device), codes.indices.to(device), table
        left = x.clone()
        errors = prefix_errors.prefix_errors(*args, left)
        found.append([errors, *prefix_errors.prefix_errors_backward(weights, left, *args)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_scatters(far, device):
    from csrkern.kernels import gather

    codes = SparseCodes.from_dense(torch.rand(ROWS, 5) + 0.1, 3)
    starts, rows, slots, _ = ops.transpose(codes.values, codes.indices, 5)
    lists = starts.to(device), rows.to(device), slots.to(device), 5
    scale = [codes.values.to(device)]
    sums = [
        gather.scatter_sum(*lists, [source], scale, [0], [3]) for source in (far, far.contiguous())
    ]
    assert torch.equal(*sums)


@pytest.mark.parametrize("turned", [False, True])
def test_selects(far, turned):
    from csrkern.kernels import topk_relu

    pre = far.T if turned else far
    assert topk_relu.needs_int64(pre[:1]) == turned
    far_codes, near_codes = (topk_relu.topk_relu(p, 2, None) for p in (pre, pre.contiguous()))
    assert torch.equal(far_codes[0], near_codes[0])
    assert torch.equal(far_codes[1], near_codes[1])


@pytest.mark.parametrize("turned", [False, True])
def test_gradient_of_scores(far, device, turned):
    from csrkern.kernels import similarity

    grad = far.T if turned else far
    a, b = (SparseCodes.from_dense(torch.rand(size, 6), 3) for size in grad.shape)
    starts, rows, _, values = ops.transpose(b.values, b.indices, 6)
    lists = starts.to(device), rows.to(device), values.to(device)
    of_a = a.values.to(device), a.indices.to(device)
    gradients = [similarity.similarity_backward(g, *of_a, lists) for g in (grad, grad.contiguous())]
    assert torch.equal(*gradients)
