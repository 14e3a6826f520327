"""Whatever proposes candidates, the codes are those of the CPU's sums in double."""

from __future__ import annotations

import pytest
import torch

import csrkern
from csrkern import SparseCodes


@pytest.fixture
def kernels(monkeypatch):
    from csrkern.kernels.encode import verified as encode_verified

    monkeypatch.setattr(encode_verified, "REPAIR_PROGRAMS", 2)
    monkeypatch.setattr(encode_verified, "RESCORE_PROGRAMS", 2)
    monkeypatch.setattr(encode_verified, "LEAST_CAPACITY", 64)
    return encode_verified


@pytest.fixture(params=range(5), ids=["A, 2 streams", "A", "B 256", "B 128", "B 128, 32 deep"])
def config(kernels, request, monkeypatch):
    """One way of proposing candidates at a time."""
    config = kernels.CONFIGS[request.param]
    monkeypatch.setattr(kernels.tuning, "choose", lambda *_: config)
    return config


def encode(kernels, device, x, weight, bias=None, pre_bias=None, k=9):
    inputs = [None if t is None else t.to(device) for t in (x, weight, bias, pre_bias)]
    values, indices = kernels.encode(*inputs, k)
    return SparseCodes(values.cpu(), indices.cpu(), len(weight))


def wanted(x, weight, bias=None, pre_bias=None, k=9):
    return csrkern.encode(x, weight, bias, k=k, pre_bias=pre_bias)


def repaired(kernels, monkeypatch):
    """A list that gets the counts of every call: -1 for rows summed in full."""
    seen = []

    class Watched(kernels.Proposer):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            seen.append(self.counts)

    monkeypatch.setattr(kernels, "Proposer", Watched)
    return seen


def test_every_configuration_is_tested(kernels):
    assert len(kernels.CONFIGS) == 5


@pytest.mark.usefixtures("config", "poisoned_empty")
def test_codes_are_those_of_the_cpu(kernels, device, monkeypatch):
    from csrkern.kernels.encode import product as blocks

    monkeypatch.setattr(blocks, "LEAST_ROWS", 3)  # several blocks, the last one shorter
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1)
    counts = repaired(kernels, monkeypatch)
    x, weight = torch.randn(4, 45), torch.randn(500, 45)
    weight[300:] = weight[:200]  # ties, bit for bit
    x[2] = 0
    args = x, weight, torch.randn(500) / 9, torch.randn(45)
    assert encode(kernels, device, *args).equal(wanted(*args))
    normal = counts[0][[0, 1, 3]]
    assert normal.min() >= 9
    assert normal.max() < 120


@pytest.mark.parametrize("sifted", [True, False])
def test_candidates_in_pieces_and_of_one_bound(kernels, device, monkeypatch, sifted):
    from csrkern.kernels.encode import propose

    monkeypatch.setattr(kernels.tuning, "choose", lambda *_: kernels.CONFIGS[1])
    plan = {**propose.candidates_plan(256), "TILE": 8, "SIFTED": sifted}
    monkeypatch.setattr(propose, "candidates_plan", lambda capacity: plan)
    counts = repaired(kernels, monkeypatch)
    x, weight = torch.randn(3, 45), torch.randn(500, 45)
    assert encode(kernels, device, x, weight).equal(wanted(x, weight))
    assert counts[0].min() > 8


@pytest.mark.usefixtures("config")
def test_order_that_bfloat16_cannot_tell(kernels, device):
    # Scores differ by less than a bfloat16 product can see, in a group that holds all winners.
    base = torch.randn(1, 64)
    weight = torch.randn(512, 64) / 8
    weight[64:96] = base + 1e-4 * torch.randn(32, 64)
    x = base + 0.1 * torch.randn(1, 64)
    assert encode(kernels, device, x, weight, k=20).equal(wanted(x, weight, k=20))


def test_few_positive_entries(kernels, device):
    x, weight = torch.rand(1, 20), -torch.rand(600, 20)
    weight[5], weight[500] = 1.0, 1e-30
    codes = encode(kernels, device, x, weight)
    assert codes.equal(wanted(x, weight))
    assert int(codes.active.sum()) == 2


def test_rows_without_a_proof_are_summed_in_full(kernels, device, monkeypatch):
    counts = repaired(kernels, monkeypatch)
    weight = torch.randn(400, 20)
    x = torch.randn(4, 20)
    x[1, 3], x[2, 0], x[3] = float("nan"), float("inf"), 1e38
    args = x, weight
    assert encode(kernels, device, *args).equal(wanted(*args))
    assert (counts[0].cpu() < 0).tolist() == [False, True, True, True]


def test_more_ties_than_there_is_room_for(kernels, device, monkeypatch):
    counts = repaired(kernels, monkeypatch)
    x, weight = torch.rand(1, 20), torch.ones(400, 20)
    assert encode(kernels, device, x, weight).equal(wanted(x, weight))
    assert counts[0].tolist() == [-1]


def test_nan_in_the_weight(kernels, device):
    x, weight = torch.randn(1, 20), torch.randn(300, 20)
    weight[77, 3] = float("nan")
    codes, expected = encode(kernels, device, x, weight), wanted(x, weight)
    assert torch.equal(codes.indices, expected.indices)
    assert torch.equal(codes.values[:, 1:], expected.values[:, 1:])
    assert bool(codes.values[:, 0].isnan().all())


@pytest.mark.parametrize(("h", "k"), [(1, 1), (40, 40), (130, 30), (257, 100)])
def test_small_shapes(kernels, device, h, k):
    x, weight = torch.randn(2, 33), torch.randn(h, 33)
    assert encode(kernels, device, x, weight, k=k).equal(wanted(x, weight, k=k))


def test_more_groups_than_are_held(kernels, device, monkeypatch):
    from csrkern.kernels.encode import propose as encode_propose

    monkeypatch.setattr(encode_propose, "MOST_GROUPS", 32)
    x, weight = torch.randn(1, 16), torch.randn(1100, 16)
    assert encode(kernels, device, x, weight, k=4).equal(wanted(x, weight, k=4))


def test_rounding_is_that_of_bfloat16(kernels, device):
    rows = torch.randn(3, 70) * torch.tensor([[1e-3], [1.0], [1e30]])
    rounded, bounds = kernels.round_rows(rows.to(device))
    assert torch.equal(rounded.cpu(), rows.bfloat16())
    rest = rows.double() - rows.bfloat16().double()
    # A GPU's square root may be off by some units in the last place; the bounds allow for more.
    close = {"rtol": 5e-7, "atol": 0}
    norms, residuals = (part[:2].cpu().double() for part in (bounds.norm, bounds.residual))
    torch.testing.assert_close(norms, rows[:2].double().norm(dim=1), **close)
    torch.testing.assert_close(residuals, rest[:2].norm(dim=1), **close)


def test_memory_does_not_grow_with_the_rows(kernels):
    from csrkern.kernels.encode.bounds import Bounds

    def held(n):
        with torch.device("meta"):
            x, weight = torch.empty(n, 64), torch.empty(16_384, 64)
            bounds = Bounds(x[:, 0], x[:, 0])
            counts = torch.empty(n, dtype=torch.int32)
            proposer = kernels.Proposer(
                x, weight, None, bounds, x[0, :3], 32, 512, counts, **kernels.CONFIGS[0]
            )
        made = proposer.products, proposer.maxima, proposer.candidates, proposer.lists
        return sum(t.nbytes for t in made)

    assert held(1000) == held(100_000) < 48 * 2**20


def test_no_rows(kernels, device):
    assert encode(kernels, device, torch.randn(0, 4), torch.randn(30, 4)).values.shape == (0, 9)
