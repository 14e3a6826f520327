from __future__ import annotations

import pytest
import torch

import csrkern.ops.prefix_errors  # noqa: F401  (registers the operators)
from csrkern import SparseCodes

ops = torch.ops.csrkern
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
N, DIM = 7, 40


@pytest.fixture
def kernels():
    from csrkern.kernels import prefix_errors

    return prefix_errors


def some_codes(k):
    """Rows of every kind: full, padded, empty, and latent 0 active."""
    dense = torch.rand(N, DIM)
    dense[1, 3:] = 0
    dense[2] = 0
    dense[:, DIM - 1] = 0
    return SparseCodes.from_dense(dense, k)


def some_table(d, dtype, stride):
    """A table whose last row must not be read, nor multiplied with 0, for padded slots."""
    table = torch.randn(DIM, d + stride).to(dtype)[:, :d]
    table[DIM - 1] = float("nan")
    return table


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("k", "d"), [(1, 5), (8, 128), (11, 300)])
@pytest.mark.usefixtures("poisoned_empty")
def test_errors(kernels, device, k, d, dtype):
    codes, table, x = some_codes(k), some_table(d, dtype, k % 2), torch.randn(N, d)
    want, want_left = ops.prefix_errors(x, codes.values, codes.indices, table, None)
    left = x.to(device, copy=True)
    args = (a.to(device) for a in (codes.values, codes.indices))
    on_device = table.to(device) if device != "cpu" else table
    got = kernels.prefix_errors(*args, on_device, left)
    torch.testing.assert_close(got.cpu(), want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(left.cpu(), want_left, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("k", "d", "rows"), [(1, 5, 100), (8, 128, 3), (11, 300, 2)])
@pytest.mark.usefixtures("poisoned_empty")
def test_gradients(kernels, device, k, d, rows, dtype, monkeypatch):
    monkeypatch.setattr(kernels, "SCRATCH_BYTES", rows * 4 * k * d)  # several parts of the rows
    codes, table, left = some_codes(k), some_table(d, dtype, k % 2), torch.randn(N, d)
    weights = torch.rand(k)
    weights[k // 2] = 0
    args = weights, left, codes.values, codes.indices
    want = ops.prefix_errors_backward(*args, table)
    on_device = table.to(device) if device != "cpu" else table
    got = kernels.prefix_errors_backward(*(a.to(device) for a in args), on_device)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-5, atol=1e-4)
    assert bool((got[0][~codes.active] == 0).all())


def test_of_nothing(kernels, device):
    codes = some_codes(4)[:0].to(device)
    table, left = torch.randn(DIM, 6, device=device), torch.randn(0, 6, device=device)
    assert bool(kernels.prefix_errors(codes.values, codes.indices, table, left).isnan().all())
    weights = torch.rand(4, device=device)
    got = kernels.prefix_errors_backward(weights, left, codes.values, codes.indices, table)
    assert [tuple(g.shape) for g in got] == [(0, 4), (DIM, 6), (0, 6)]
    assert not bool(got[1].any())
