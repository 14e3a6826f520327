from __future__ import annotations

import pytest
import torch

import csrkern.ops.similarity
from csrkern import SparseCodes

ops = torch.ops.csrkern
DIM = 30


@pytest.fixture
def kernels():
    from csrkern.kernels import similarity

    return similarity


def some_codes(n, k=5):
    dense = torch.rand(n, DIM)
    dense[0, 2:] = 0  # padded
    dense[1] = 0  # empty
    dense[:, 7] = 2.0  # a latent that every row uses
    return SparseCodes.from_dense(dense, k)


def postings(codes, device):
    starts, rows, _, values = ops.transpose(codes.values, codes.indices, DIM)
    return starts.to(device), rows.to(device), values.to(device)


@pytest.mark.usefixtures("poisoned_empty")
def test_equals_the_cpu(kernels, device):
    a, b = some_codes(6), some_codes(90, 7)  # a posting list longer than one step
    want = ops.similarity(a.values, a.indices, b.values, b.indices, DIM)
    args = a.values.to(device), a.indices.to(device), postings(b, device), 90
    assert torch.equal(kernels.similarity(*args).cpu(), want)


@pytest.mark.usefixtures("poisoned_empty")
def test_backward_equals_the_cpu(kernels, device):
    a, b = some_codes(6), some_codes(90, 7)
    codes = a.values.to(device), a.indices.to(device)
    for grad in (torch.randn(6, 90), torch.randn(90, 6).T, torch.randn(1, 1).expand(6, 90)):
        got = kernels.similarity_backward(grad.to(device), *codes, postings(b, device))
        want = ops.similarity_backward(grad, a.values, a.indices, b.values, b.indices, DIM)
        torch.testing.assert_close(got.cpu(), want, rtol=1e-5, atol=1e-5)
        assert bool((got.cpu()[~a.active] == 0).all())


def test_no_rows(kernels, device):
    a, b = some_codes(4), some_codes(4)
    codes = a.values[:0].to(device), a.indices[:0].to(device)
    assert kernels.similarity(*codes, postings(b, device), 4).shape == (0, 4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and 10 GB there")
def test_more_than_2_to_31_scores(kernels):
    n = 46_400
    codes = csrkern.topk_relu(torch.randn(n, 512, device="cuda"), 8)
    starts, rows, _, values = ops.transpose(codes.values, codes.indices, 512)
    lists = starts, rows, values
    out = kernels.similarity(codes.values, codes.indices, lists, n)
    assert out.numel() > 2**31
    last = kernels.similarity(codes.values[-3:].clone(), codes.indices[-3:].clone(), lists, n)
    assert torch.equal(out[-3:], last)
