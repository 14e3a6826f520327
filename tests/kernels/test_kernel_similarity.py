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


def put(codes, device):
    return codes.values.to(device), codes.indices.to(device)


@pytest.mark.usefixtures("poisoned_empty")
def test_equals_the_cpu(kernels, device):
    a, b = some_codes(6), some_codes(90, 7)  # a posting list longer than one step
    want = ops.similarity(a.values, a.indices, b.values, b.indices, DIM)
    args = put(a, device), put(b, device), postings(b, device)
    assert torch.equal(kernels.similarity(*args).cpu(), want)


@pytest.mark.parametrize("share", [0, 5])
@pytest.mark.usefixtures("poisoned_empty")
def test_rows_of_many_postings_are_gathered(kernels, device, monkeypatch, share):
    # With no limit every row that has postings is gathered; else the one of latents all use.
    monkeypatch.setattr(kernels, "GATHER_PROGRAMS", 2)
    monkeypatch.setattr(kernels, "GATHERED_AT_ONCE", 64)
    monkeypatch.setattr(kernels, "SLOTS_AT_ONCE", 4)  # of 5
    monkeypatch.setattr(kernels, "SKEWED", share or 10**9)
    b = SparseCodes.from_dense(torch.rand(50, DIM) + 3 * (torch.arange(DIM) < 3), 6)
    a = some_codes(7)
    a.values[1] = 0
    a.indices[5, 0], a.indices[5, 1:3] = 0, torch.tensor([1, 2])
    starts, *_ = postings(b, "cpu")
    met = (starts.diff()[a.indices.long()] * a.active).sum(1)
    gathered = met > 50 * 6 // (share or 10**9)
    assert gathered.any()
    assert not gathered.all()
    want = ops.similarity(a.values, a.indices, b.values, b.indices, DIM)
    got = kernels.similarity(put(a, device), put(b, device), postings(b, device)).cpu()
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    assert torch.equal(got[~gathered], want[~gathered])


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
    none = put(a[:0], device)
    assert kernels.similarity(none, put(b, device), postings(b, device)).shape == (0, 4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and 10 GB there")
def test_more_than_2_to_31_scores(kernels):
    n = 46_400
    codes = csrkern.topk_relu(torch.randn(n, 512, device="cuda"), 8)
    starts, rows, _, values = ops.transpose(codes.values, codes.indices, 512)
    lists, all_codes = (starts, rows, values), put(codes, "cuda")
    out = kernels.similarity(all_codes, all_codes, lists)
    assert out.numel() > 2**31
    few = codes.values[-3:].clone(), codes.indices[-3:].clone()
    last = kernels.similarity(few, all_codes, lists)
    assert torch.equal(out[-3:], last)
