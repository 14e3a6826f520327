"""A GPU is not waited for: kernels take a latent out of range for an empty slot."""

from __future__ import annotations

import pytest
import torch

import csrkern.ops.gather
import csrkern.ops.info_nce
import csrkern.ops.prefix_errors
import csrkern.ops.topk_relu
import csrkern.ops.transpose  # noqa: F401  (registers the operators)
from csrkern import SparseCodes

ops = torch.ops.csrkern
N, K, H, D = 7, 5, 40, 12


@pytest.fixture(params=[H, -1, 2**30, -(2**31)])
def codes(request) -> tuple[SparseCodes, SparseCodes]:
    """Codes of which some latents are out of range, and the same with those slots empty."""
    wrong = SparseCodes.from_dense(torch.rand(N, H) + 0.1, K)
    wrong.values[4, 3:] = wrong.indices[4, 3:] = 0
    places = ([0, 2, 2, 6], [4, 0, 2, 1])
    wrong.indices[places] = request.param
    empty = wrong.clone()
    empty.values[places] = empty.indices[places] = 0
    wrong.indices[4, 4] = request.param  # an empty slot, of which the index means nothing
    return wrong, empty


def put(device, *tensors):
    return tuple(t.to(device) if isinstance(t, torch.Tensor) else t for t in tensors)


def assert_same(got, want):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-6, atol=1e-6)


def test_transpose(codes, device):
    from csrkern.kernels import transpose

    wrong, empty = codes
    got = transpose.transpose(*put(device, wrong.values, wrong.indices), H)
    assert_same(got, ops.transpose(empty.values, empty.indices, H))


def test_gather(codes, device):
    from csrkern.kernels import gather

    wrong, empty = codes
    wrong.values[6, 1] = torch.nan  # not even its product with nothing
    table, rows, ends = torch.randn(H, D), torch.randn(2, N, D), [2, K]
    got = gather.gather_sum(*put(device, wrong.values, wrong.indices, table), None, ends)
    assert_same([got], [ops.gather_sum(empty.values, empty.indices, table, None, ends)])
    got = gather.gather_dot(*put(device, wrong.values, wrong.indices, table, rows), ends)
    assert_same([got], [ops.gather_dot(empty.values, empty.indices, table, rows, ends)])


def test_prefix_errors(codes, device):
    from csrkern.kernels import prefix_errors

    wrong, empty = codes
    wrong.values[6, 1] = torch.nan  # not even its product with nothing
    table, x, weights = torch.randn(H, D), torch.randn(N, D), torch.rand(K)
    left = x.to(device, copy=True)
    got = prefix_errors.prefix_errors(*put(device, wrong.values, wrong.indices, table), left)
    want = ops.prefix_errors(x, empty.values, empty.indices, table, None)
    assert_same([got, left], want)
    args = weights, want[1]
    got = prefix_errors.prefix_errors_backward(
        *put(device, *args, wrong.values, wrong.indices, table)
    )
    assert_same(got, ops.prefix_errors_backward(*args, empty.values, empty.indices, table))


@pytest.mark.parametrize("number", [-1, 2**30, -(2**31), N])
def test_scatter_sum(device, number, monkeypatch):
    """Lists that `transpose` did not make."""
    from csrkern.kernels import gather

    monkeypatch.setattr(gather, "PIECE", 8)
    dense = torch.rand(N, H) + 0.1
    dense[:, 3] = 2.0  # a list of several pieces
    codes = SparseCodes.from_dense(dense.repeat(5, 1), K)
    source, scale = torch.randn(5 * N, D), codes.values.clone()
    starts, rows, slots, _ = ops.transpose(codes.values, codes.indices, H)

    def scattered(*lists):
        lists = put(device, *lists)
        sources = [source.to(device)], [scale.to(device)]
        return gather.scatter_sum(*lists, H, *sources, [0], [K + 9]).cpu()

    want = scattered(starts, rows, slots)
    wild = number if number < 0 else number + 5 * N
    assert_same([want], [ops.scatter_sum(starts, rows, slots, H, [source], [scale], [0], [K])])
    for at in (1, 2):
        forged = [starts, rows.clone(), slots.clone()]
        forged[at][0] = wild
        got = scattered(*forged)
        latent = int((starts > 0).nonzero()[0]) - 1  # the one whose first entry was taken away
        kept = torch.arange(H) != latent
        assert torch.equal(got[kept], want[kept])
        scale[rows[0], slots[0]], before = 0, scale[rows[0], slots[0]].clone()
        assert_same([got], [scattered(starts, rows, slots)])
        scale[rows[0], slots[0]] = before
    for place in (0, 3, 4, H):
        forged = starts.clone()
        forged[place] = number
        assert scattered(forged, rows, slots).shape == (H, D)


def test_similarity(codes, device, monkeypatch):
    from csrkern.kernels import similarity

    wrong, empty = codes
    other = SparseCodes.from_dense(torch.rand(30, H), K)
    one, another = (wrong.values, wrong.indices), (other.values, other.indices)
    starts, rows, _, values = ops.transpose(*another, H)
    of_other = put(device, starts, rows, values)
    for skewed in (10**9, 2):  # summed from postings, and gathered
        monkeypatch.setattr(similarity, "SKEWED", skewed)
        got = similarity.similarity(put(device, *one), put(device, *another), of_other)
        want = ops.similarity(empty.values, empty.indices, *another, H)
        assert_same([got], [want])
        starts, rows, _, values = ops.transpose(empty.values, empty.indices, H)
        of_one = put(device, starts, rows, values)
        got = similarity.similarity(put(device, *another), put(device, *one), of_one)
        assert_same([got], [want.T])
    grad = torch.randn(N, 30)
    got = similarity.similarity_backward(*put(device, grad, *one), of_other)
    assert_same([got], [ops.similarity_backward(grad, empty.values, empty.indices, *another, H)])


@pytest.mark.parametrize("labeled", [False, True])
def test_info_nce(codes, device, labeled, monkeypatch):
    from csrkern.kernels import info_nce

    monkeypatch.setattr(info_nce, "PROGRAMS", (2,))
    wrong, empty = codes
    labels = (None, None, None)
    if labeled:
        labels = ops.match_labels(torch.arange(N) // 2, torch.arange(N) // 2, True)
    inputs = (empty.values, empty.indices, None, None, H, 0.2, *labels)
    want = ops.info_nce(*inputs)
    starts, rows, _, values = ops.transpose(empty.values, empty.indices, H)
    lists = put(device, starts, rows, values)
    one = put(device, wrong.values, wrong.indices)
    got = info_nce.info_nce(*one, lists, N, True, 0.2, *put(device, *labels))
    assert_same(got, want)
    grad = torch.rand(N)
    got = info_nce.info_nce_backward(
        *put(device, grad, *want[1:]), *one, lists, N, True, False, 0.2, *put(device, *labels)
    )
    assert_same([got], [ops.info_nce_backward(grad, *want[1:], *inputs)[0]])


def test_topk_relu_backward(codes, device):
    from csrkern.kernels import topk_relu

    wrong, empty = codes
    grad = torch.randn(N, K)
    got = topk_relu.topk_relu_backward(*put(device, grad, wrong.values, wrong.indices), H)
    assert_same([got], [ops.topk_relu_backward(grad, empty.values, empty.indices, H)])
