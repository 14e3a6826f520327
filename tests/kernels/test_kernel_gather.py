from __future__ import annotations

import pytest
import torch

import csrkern.ops.gather
import csrkern.ops.transpose  # noqa: F401  (registers the operators)
from csrkern import SparseCodes

ops = torch.ops.csrkern
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@pytest.fixture
def kernels():
    from csrkern.kernels import gather

    return gather


@pytest.fixture
def transpose():
    from csrkern.kernels import transpose

    return transpose


def some_codes(n=7, k=11, dim=40):
    """Rows of every kind: full, padded, empty, and latent 0 active."""
    dense = torch.rand(n, dim)
    dense[1, 3:] = 0
    dense[2] = 0
    return SparseCodes.from_dense(dense, k)


def close(got, want, dtype):
    torch.testing.assert_close(
        got.cpu().float(), want.float(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )


@pytest.mark.parametrize(("n", "k", "dim"), [(7, 11, 40), (40, 3, 5), (1, 1, 1), (5, 64, 300)])
def test_transpose_equals_the_cpu(transpose, device, n, k, dim, monkeypatch):
    monkeypatch.setattr(transpose, "ROWS_PER_BLOCK", (3,))
    codes = some_codes(max(n, 3), k, dim)[:n]
    got = transpose.transpose(codes.values.to(device), codes.indices.to(device), dim)
    for a, b in zip(got, ops.transpose(codes.values, codes.indices, dim), strict=True):
        assert torch.equal(a.cpu(), b)


def test_transpose_of_nothing(transpose, device):
    codes = some_codes()[:0]
    starts, *_ = transpose.transpose(codes.values.to(device), codes.indices.to(device), 40)
    assert starts.tolist() == [0] * 41


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("poisoned_empty")
def test_gather_sum(kernels, device, dtype):
    codes, ends = some_codes(), [2, 7, 11]
    for d in (70, 80, 600):  # 80: a GPU loads 16 bytes at once
        table, bias = torch.randn(40, d).to(dtype), torch.randn(d).to(dtype)
        table[39] = float("nan")  # padded slots must not read, nor zeros multiply, this
        codes.indices[codes.indices == 39] = 38
        for shift in (bias, None):
            args = codes.values, codes.indices, table, shift
            on_device = (a if a is None else a.to(device) for a in args)
            close(kernels.gather_sum(*on_device, ends), ops.gather_sum(*args, ends), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("poisoned_empty")
def test_gather_dot(kernels, device, dtype):
    codes = some_codes()
    for ends in ([11], [3, 4, 9]):
        table = torch.randn(40, 270).to(dtype)
        rows = torch.randn(len(ends), 7, 270).to(dtype) / 16
        args = codes.values, codes.indices, table, rows
        got = kernels.gather_dot(*(a.to(device) for a in args), ends).cpu()
        want = ops.gather_dot(*args, ends)
        torch.testing.assert_close(got[:, : ends[-1]], want[:, : ends[-1]], rtol=1e-5, atol=1e-5)
        assert bool((got[~codes.active] == 0).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("poisoned_empty")
def test_scatter_sum(kernels, device, dtype):
    codes = some_codes(30, 4, 20)
    starts, rows, slots, _ = ops.transpose(codes.values, codes.indices, 20)
    sources = [torch.randn(30, 70).to(dtype) for _ in range(3)]
    scales = [codes.values, torch.randn(30, 4), codes.values]
    begins, ends = [0, 0, 2], [4, 2, 3]
    want = ops.scatter_sum(starts, rows, slots, 20, sources, scales, begins, ends)
    lists = (starts.to(device), rows.to(device), slots.to(device))
    got = kernels.scatter_sum(
        *lists, 20, [s.to(device) for s in sources], [s.to(device) for s in scales], begins, ends
    )
    close(got, want, dtype)
    assert got.dtype == dtype


def test_slices_of_a_table_stay_in_cache(kernels):
    assert kernels.slice_width(4096, 768, 4) == 512
    assert kernels.slice_width(65_536, 1024, 4) == 64
    assert kernels.slice_width(100, 3, 4) == 32


def test_a_thread_takes_four_columns_where_it_loads_one_by_one(kernels):
    def widest(table):
        return max(kernels.slice_configs(table), key=lambda config: config["BLOCK"])

    table = torch.zeros(100, 528, dtype=torch.float16)
    assert widest(table[:, :512]) == {"BLOCK": 512, "num_warps": 2}
    odd = {"BLOCK": 512, "num_warps": 4}
    assert widest(table[:, 1:513]) == odd  # an address
    assert widest(table[:, :511]) == odd  # a length
    assert widest(torch.zeros(100, 513, dtype=torch.float16)[:, :512]) == odd  # a pitch
    assert widest(torch.zeros(100, 512)) == odd
