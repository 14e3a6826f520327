from __future__ import annotations

import pytest
import torch
from adversarial import adversarial_rows, assert_selects

import csrkern
from csrkern import SparseCodes

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def kernels():
    from csrkern.kernels import topk_relu

    return topk_relu


def select(kernels, pre, k, device, mask=None):
    on_device = None if mask is None else mask.to(device)
    values, indices = kernels.topk_relu(pre.to(device), k, on_device)
    return SparseCodes(values.cpu(), indices.cpu(), pre.shape[1])


def one_row_of_each(h, k):
    """The hard rows of every kind, one or two of each: the interpreter takes 50 ms a row."""
    kinds = {name: rows[:1] for name, rows in adversarial_rows(h, k).items()}
    kinds["nan"] = adversarial_rows(h, k)["nan"][:3:2]
    kinds["infinite"] = adversarial_rows(h, k)["infinite"][:4:3]
    return torch.cat(list(kinds.values()))


@pytest.mark.parametrize(
    ("h", "k", "dtype"),
    [
        (1, 1, torch.float32),
        (130, 64, torch.float16),
        (127, 127, torch.bfloat16),
        (3000, 32, torch.float32),
        (2500, 200, torch.bfloat16),
    ],
    ids=str,
)
def test_equals_specification_on_adversarial_rows(kernels, device, h, k, dtype):
    pre = one_row_of_each(h, k).to(dtype)
    assert_selects(select(kernels, pre, k, device), pre, k)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_cpu_bit_for_bit(kernels, device, dtype):
    pre = torch.randn(3, 5000).to(dtype)
    codes = select(kernels, pre, 17, device)
    assert codes.equal(csrkern.topk_relu(pre, 17))


@pytest.mark.parametrize(("h", "k"), [(64, 1), (262_144, 32), (5000, 1024)])
def test_smallest_and_largest_sizes(kernels, device, h, k):
    pre = torch.randn(1, h)
    assert select(kernels, pre, k, device).equal(csrkern.topk_relu(pre, k))


def test_winners_in_one_group_leave_nothing_out(kernels, device, monkeypatch):
    # More entries reach the first bound than the buffer holds, with and without ties.
    monkeypatch.setattr(kernels, "GROUPS", (64, 64))
    h, k = 1100, 4
    plan = kernels.Plan.of(h, k)
    pre = torch.rand(2, h)
    pre[:, :: plan.GROUPS] += 10
    pre[1, :: plan.GROUPS] = 10
    assert (pre[0] > 9).sum() > plan.CAPACITY
    assert_selects(select(kernels, pre, k, device), pre, k)


def test_latent_mask(kernels, device):
    pre, mask = torch.randn(3, 1000), torch.rand(1000) < 0.3
    assert_selects(select(kernels, pre, 32, device, mask), pre, 32, mask)


def test_strides(kernels, device):
    base = torch.randn(40, 90).to(device)
    for pre in (base.T[:3], base[:3, ::3], base[::20], base[:1].expand(2, 90)):
        assert_selects(select(kernels, pre, 8, device), pre.cpu(), 8)


def test_wide_columns_give_the_same_codes(kernels, device, monkeypatch):
    pre = torch.randn(40, 90).to(device).T[:3]
    narrow = select(kernels, pre, 5, device)
    monkeypatch.setattr(kernels, "needs_int64", lambda *_: True)
    assert select(kernels, pre, 5, device).equal(narrow)


def test_when_columns_are_wide(kernels):
    assert not kernels.needs_int64(torch.empty(1, 2**31, device="meta"))
    assert kernels.needs_int64(torch.empty(1, 2**31 + 1, device="meta"))
    assert kernels.needs_int64(torch.empty(2**16, 2**15 + 1, device="meta").T[:1])


def test_more_rows_than_programs(kernels, device, monkeypatch):
    monkeypatch.setattr(kernels, "MAX_PROGRAMS", 2)
    pre = torch.randn(5, 200)
    pre[2, :] = 1.0  # the exact path between two others
    assert_selects(select(kernels, pre, 9, device), pre, 9)


@pytest.mark.parametrize("h", [64, 3000])
def test_rows_without_winners_follow_each_other(kernels, device, h, monkeypatch):
    # No warp waits for another while nothing is ranked: an emulator of PTX sees if one warp goes on
    # to the next row's counters while another has yet to read them.
    monkeypatch.setattr(kernels, "MAX_PROGRAMS", 1)
    pre = torch.zeros(4, h)
    pre[3] = torch.randn(h)
    assert_selects(select(kernels, pre, 5, device), pre, 5)


@pytest.mark.usefixtures("poisoned_empty")
def test_writes_every_slot(kernels, device):
    pre = -torch.ones(3, 50)
    pre[1, 4] = 1.0
    assert_selects(select(kernels, pre, 9, device), pre, 9)
    assert select(kernels, pre[:0], 9, device).values.shape == (0, 9)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("poisoned_empty")
def test_backward(kernels, device, dtype):
    codes = csrkern.topk_relu(torch.randn(4, 100) - 1.5, 12)
    values = codes.values.to(dtype)
    values[0, 0] = float("nan")
    grad = torch.randn(4, 12).to(dtype)
    args = (grad, values, codes.indices)
    got = kernels.topk_relu_backward(*(a.to(device) for a in args), 100).cpu()
    assert torch.equal(got, torch.ops.csrkern.topk_relu_backward(*args, 100))


def test_sizes_for_every_shape(kernels):
    for h in (1, 64, 1000, 8192, 16_384, 65_536, 262_144):
        for k in (1, 32, 100, 1024):
            plan = kernels.Plan.of(h, min(h, k))
            assert 2 * min(h, k) <= plan.CAPACITY
            assert max(kernels.READ_AT_ONCE, plan.GROUPS) >= plan.READS * plan.GROUPS


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and 5 GB there")
def test_more_than_2_to_31_elements(kernels):
    pre = torch.randn(33_000, 65_600, dtype=torch.bfloat16, device="cuda")
    assert pre.numel() > 2**31
    values, indices = kernels.topk_relu(pre, 8, None)
    last = kernels.topk_relu(pre[-3:].clone(), 8, None)
    assert torch.equal(values[-3:], last[0])
    assert torch.equal(indices[-3:], last[1])
