from __future__ import annotations

import pytest
import torch

import csrkern
from csrkern import SparseCodes, reference


@pytest.fixture
def kernels():
    from csrkern.kernels.encode import product as encode

    return encode


def put(device, *tensors):
    return [None if t is None else t.to(device) for t in tensors]


@pytest.mark.parametrize("biased", [False, True])
def test_exact_codes_are_those_of_the_cpu(kernels, device, biased, monkeypatch):
    monkeypatch.setattr(kernels, "LEAST_ROWS", 3)  # several blocks, the last one shorter
    monkeypatch.setattr(kernels, "BLOCK_BYTES", 1)
    x, weight = torch.randn(7, 24), torch.randn(300, 24)
    weight[200:] = weight[:100]  # ties, bit for bit
    bias, pre_bias = (torch.randn(300) / 9, torch.randn(24)) if biased else (None, None)
    values, indices = kernels.encode(*put(device, x, weight, bias, pre_bias), 9, True)
    codes = SparseCodes(values.cpu(), indices.cpu(), 300)
    assert codes.equal(csrkern.encode(x, weight, bias, k=9, pre_bias=pre_bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("streams", [1, 2])
def test_fast_codes_are_those_of_the_product(kernels, device, dtype, streams, monkeypatch):
    monkeypatch.setattr(kernels, "LEAST_ROWS", 2)
    monkeypatch.setattr(kernels, "BLOCK_BYTES", 1)
    choose = kernels.tuning.choose

    def choose_streams(kernel, *rest):
        return {"streams": streams} if kernel == "encode fast" else choose(kernel, *rest)

    monkeypatch.setattr(kernels.tuning, "choose", choose_streams)
    # Small integers: every product is exact in both dtypes, whoever sums it.
    x = torch.randint(-2, 3, (7, 16)).to(dtype)
    weight = torch.randint(-2, 3, (200, 16)).to(dtype)
    values, indices = kernels.encode(*put(device, x, weight), None, None, 5, False)
    codes = SparseCodes(values.cpu(), indices.cpu(), 200)
    assert codes.equal(reference.encode(x, weight, k=5))


def test_more_slots_than_the_kernel_takes(kernels, device, monkeypatch):
    monkeypatch.setattr(kernels, "MAX_K", 3)
    monkeypatch.setattr(kernels, "LEAST_ROWS", 2)
    monkeypatch.setattr(kernels, "BLOCK_BYTES", 1)
    x, weight = torch.randn(5, 24), torch.randn(90, 24)
    values, indices = kernels.encode(*put(device, x, weight), None, None, 9, True)
    codes = SparseCodes(values.cpu(), indices.cpu(), 90)
    assert codes.equal(csrkern.encode(x, weight, k=9))


def test_blocks_stay_in_cache(kernels):
    assert kernels.block_rows(100_000, 16_384, 2) == 384
    assert kernels.block_rows(100_000, 131_072, 4) == kernels.LEAST_ROWS
    assert kernels.block_rows(5, 131_072, 4) == 5


def test_no_rows(kernels, device):
    weight = torch.randn(10, 4).to(device)
    values, indices = kernels.encode(weight[:0], weight, None, None, 3, True)
    assert values.shape == indices.shape == (0, 3)
