"""Whatever proposes candidates, the codes are those of the CPU's sums in double."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import csrkern
from csrkern import SparseCodes


@pytest.fixture
def kernels(monkeypatch):
    from csrkern.kernels.encode import verified as encode_verified

    monkeypatch.setattr(encode_verified, "MAXIMA_PROGRAMS", 2)
    monkeypatch.setattr(encode_verified, "ROWS_AT_ONCE", 2)
    monkeypatch.setattr(encode_verified, "LEAST_CAPACITY", 64)
    return encode_verified


@pytest.fixture(params=range(5), ids=["192 high", "256 wide", "128 wide", "32 deep", "few rows"])
def tile(kernels, request, monkeypatch):
    """One tile of the product at a time."""
    from csrkern.kernels.encode import propose

    tile = propose.TILES[request.param]
    monkeypatch.setattr(kernels.tuning, "choose", lambda *_: tile)
    return tile


def encode(kernels, device, x, weight, bias=None, pre_bias=None, k=9):
    inputs = [None if t is None else t.to(device) for t in (x, weight, bias, pre_bias)]
    values, indices = kernels.encode(*inputs, k)
    return SparseCodes(values.cpu(), indices.cpu(), len(weight))


def wanted(x, weight, bias=None, pre_bias=None, k=9):
    return csrkern.encode(x, weight, bias, k=k, pre_bias=pre_bias)


def watched(kernels, monkeypatch):
    """A list that gets the counts of every call: -1 for rows summed in full."""
    seen = []

    class Watched(kernels.Proposer):
        def __init__(self, *args):
            super().__init__(*args)
            seen.append(self.counts)

    monkeypatch.setattr(kernels, "Proposer", Watched)
    return seen


def test_every_tile_is_tested():
    from csrkern.kernels.encode import propose

    assert len(propose.TILES) == 5


@pytest.mark.usefixtures("tile", "poisoned_empty")
def test_codes_are_those_of_the_cpu(kernels, device, monkeypatch):
    from csrkern.kernels.encode import propose

    monkeypatch.setattr(propose, "LEAST_ROWS", 3)  # two blocks, the last one shorter
    monkeypatch.setattr(propose, "BLOCK_BYTES", 1)
    counts = watched(kernels, monkeypatch)
    x, weight = torch.randn(4, 45), torch.randn(500, 45)
    weight[300:] = weight[:200]  # ties, bit for bit
    x[2] = 0
    args = x, weight, torch.randn(500) / 9, torch.randn(45)
    assert encode(kernels, device, *args).equal(wanted(*args))
    normal = counts[0][[0, 1, 3]]
    assert normal.min() >= 9
    assert normal.max() < 40


def test_product_of_several_tiles(kernels, tile, device):
    """More rows and columns than a tile has, and not a multiple of either."""
    from csrkern.kernels.encode import bounds

    n, h = 200, 300
    x, weight = torch.randn(n, 70).to(device), torch.randn(h, 70).to(device)
    bias = torch.randn(h).to(device)
    numbers = torch.zeros(2, 4, dtype=torch.int32, device=device)
    _, rounded = bounds.round_rows(x, None, numbers[1])
    rounded_weight = bounds.round_weight(weight, bias, numbers[0])
    proposer = kernels.Proposer(n, h, 9, 64, tile, torch.device(device))
    proposer.multiply(0, n, rounded, rounded_weight, bias)
    scales = rounded.scales.cpu()[:, None] / rounded_weight.inverses.cpu().amax()
    expected = (x.cpu() @ weight.cpu().T) * scales
    close = {"rtol": 2e-3, "atol": float(2e-3 * expected.abs().amax())}
    torch.testing.assert_close(proposer.products[:n, :h].cpu().float(), expected, **close)
    expected += bias.cpu() * scales
    group = proposer.plan["GROUP"]
    maxima = torch.stack([part.amax(1) for part in expected.split(group, dim=1)], dim=1)
    maxima[:, -1].clamp_(min=0)  # columns beyond the last are 0
    got = proposer.maxima[:n, : maxima.shape[1]].cpu()
    torch.testing.assert_close(got, maxima, **close)


def test_sums_that_cancel(kernels, device, monkeypatch):
    """Their partial sums are a hundred times the sums, and err accordingly."""
    counts = watched(kernels, monkeypatch)
    x, weight = torch.rand(1, 1000) + 1, torch.rand(300, 1000)
    weight[:, 500:] = -weight[:, :500] * (x[:, :500] / x[:, 500:])
    weight += 0.05 * torch.randn(300, 1000)
    assert encode(kernels, device, x, weight).equal(wanted(x, weight))
    assert counts[0].min() >= 9


def test_candidates_in_pieces(kernels, device, monkeypatch):
    from csrkern.kernels.encode import propose

    plan = propose.candidates_plan
    pieces = {"BLOCK": 32, "SIFTED": 16}
    monkeypatch.setattr(propose, "candidates_plan", lambda *sizes: {**plan(*sizes), **pieces})
    counts = watched(kernels, monkeypatch)
    x, weight = torch.randn(3, 45), torch.randn(500, 45)
    weight[100:150] = weight[:1]
    x[1] = weight[0]
    assert encode(kernels, device, x, weight).equal(wanted(x, weight))
    assert counts[0].max() > 32


@pytest.mark.usefixtures("tile")
def test_order_that_float16_cannot_tell(kernels, device):
    # Scores differ by less than a float16 product can see, in two groups that hold all winners.
    base = torch.randn(1, 64)
    weight = torch.randn(512, 64) / 8
    weight[64:96] = base + 1e-5 * torch.randn(32, 64)
    x = base + 0.1 * torch.randn(1, 64)
    assert encode(kernels, device, x, weight, k=20).equal(wanted(x, weight, k=20))


def test_few_positive_entries(kernels, device):
    x, weight = torch.rand(1, 20), -torch.rand(600, 20)
    weight[5], weight[500] = 1.0, 1e-30
    codes = encode(kernels, device, x, weight)
    assert codes.equal(wanted(x, weight))
    assert int(codes.active.sum()) == 2


def test_rows_without_a_proof_are_summed_in_full(kernels, device, monkeypatch):
    counts = watched(kernels, monkeypatch)
    weight = torch.randn(400, 20)
    x = torch.randn(4, 20)
    x[1, 3], x[2, 0], x[3] = float("nan"), float("inf"), 1e38
    args = x, weight
    assert encode(kernels, device, *args).equal(wanted(*args))
    assert (counts[0].cpu() < 0).tolist() == [False, True, True, True]


def test_more_ties_than_there_is_room_for(kernels, device, monkeypatch):
    counts = watched(kernels, monkeypatch)
    x, weight = torch.rand(1, 20), torch.ones(400, 20)
    assert encode(kernels, device, x, weight).equal(wanted(x, weight))
    assert counts[0].tolist() == [-1]


def test_rows_are_repaired_in_parts(kernels, device, monkeypatch):
    """Five rows without candidates, beside others, two of them at a time."""
    counts = watched(kernels, monkeypatch)
    x, weight = torch.randn(7, 20), torch.randn(500, 20)
    weight[80:480] = weight[80]
    x[1:6] = weight[80] + 0.01 * torch.randn(5, 20)
    args = x, weight, torch.cat([torch.rand(4), torch.zeros(491), torch.rand(5)])
    assert encode(kernels, device, *args).equal(wanted(*args))
    assert (counts[0].cpu() < 0).tolist() == [False, *[True] * 5, False]


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1e-10, 1e10, 1e30])
def test_any_scale(kernels, device, monkeypatch, size):
    counts = watched(kernels, monkeypatch)
    x, weight = torch.randn(2, 40), torch.randn(300, 40)
    bias = torch.randn(300) * size
    assert encode(kernels, device, x * size, weight, bias).equal(wanted(x * size, weight, bias))
    args = x, weight * size, bias
    assert encode(kernels, device, *args).equal(wanted(*args))
    if 1e-20 < size < 1e20:
        assert min(int(c.min()) for c in counts) > 0


def test_rows_of_the_weight_of_different_sizes(kernels, device, monkeypatch):
    counts = watched(kernels, monkeypatch)
    x, weight = torch.randn(3, 40), torch.randn(300, 40)
    weight *= torch.logspace(-6, 2, 300)[:, None]
    assert encode(kernels, device, x, weight).equal(wanted(x, weight))
    assert counts[0].min() > 0


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


def test_rounding_is_that_of_float16(device):
    from csrkern.kernels.encode import bounds

    rows = torch.randn(3, 70) * torch.tensor([[1e-3], [1.0], [1e30]])
    zeros = torch.ones(5, dtype=torch.int32, device=device)
    shifted, made = bounds.round_rows(rows.to(device), None, zeros)
    assert zeros.tolist() == [0] * 5
    assert torch.equal(shifted.cpu(), rows)
    scaled = rows * made.scales.cpu()[:, None]
    assert torch.equal(made.rows[:, :70].cpu(), scaled.half())
    assert made.rows.shape == (3, 128)
    assert not made.rows[:, 70:].count_nonzero()
    assert scaled.abs().amax(1).max() < 8
    assert scaled.abs().amax(1).min() >= 4
    # A GPU's square root may be off by some units in the last place; the bounds allow for more.
    close = {"rtol": 5e-7, "atol": 0}
    rest = scaled.double() - scaled.half().double()
    torch.testing.assert_close(made.norms.cpu().double(), scaled.double().norm(dim=1), **close)
    torch.testing.assert_close(made.residuals.cpu().double(), rest.norm(dim=1), **close)


def test_limits_of_a_weight(device):
    from csrkern.kernels.encode import bounds

    weight, bias = torch.randn(30, 70) * torch.rand(30, 1), torch.randn(30)
    limits = torch.zeros(4, dtype=torch.int32, device=device)
    made = bounds.round_weight(weight.to(device), bias.to(device), limits)
    inverses = made.inverses.cpu()[:, None]
    lost = (weight.double() - (made.rows[:, :70].cpu() * inverses.double())).norm(dim=1).amax()
    most = weight.norm(dim=1).amax(), lost.float(), bias.abs().amax(), weight.abs().amax()
    torch.testing.assert_close(made.limits.cpu(), torch.stack(most), rtol=5e-7, atol=0)
    weight[3, 1] = float("nan")
    bounds.round_weight(weight.to(device), None, limits)
    assert limits.view(torch.float32)[0] == float("inf")


def test_memory_does_not_grow_with_the_rows(kernels):
    from csrkern.kernels.encode import propose

    def held(n):
        proposer = kernels.Proposer(n, 16_384, 32, 512, propose.TILES[0], torch.device("meta"))
        made = proposer.products, proposer.maxima, proposer.candidates, proposer.scratch
        return sum(t.nbytes for t in made)

    assert held(50_000) <= held(1_000_000) < 3 * 2**28


@pytest.mark.parametrize(("hip", "major", "first"), [
    (None, 9, 0), (None, 8, 2), (None, 10, 2), ("6", 9, 3),
])  # fmt: skip
def test_tiles_fit_the_device(monkeypatch, hip, major, first):
    from csrkern.kernels.encode import propose

    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (major, 0))
    device = torch.device("cuda")
    assert propose.tiles(65, device)[0] == propose.TILES[first]
    assert propose.tiles(64, device) == [propose.TILES[4], *propose.tiles(65, device)]
    assert (propose.TILES[0] in propose.tiles(1, device)) == (first == 0)


@pytest.mark.parametrize(("n", "d", "h", "k"), [
    (4096, 1024, 16_384, 32), (4096, 4096, 16_384, 32), (8192, 1024, 65_536, 64),
    (8192, 768, 4096, 16), (4096, 4096, 131_072, 256),
])  # fmt: skip
def test_ten_launches(kernels, monkeypatch, n, d, h, k):
    from csrkern.kernels.encode import bounds, propose

    launched = []

    class Kernel:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return lambda *_, **__: launched.append(self.name)

    for module in (kernels, bounds, propose):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Kernel(name))
    with torch.device("meta"):
        x, weight, bias, pre_bias = (torch.empty(*size) for size in ((n, d), (h, d), (h,), (d,)))
    operators = Operators()
    with operators:
        kernels.encode(x, weight, bias, pre_bias, k)
    assert not operators.called  # nothing but kernels of this package
    assert len(launched) <= 10


class Operators(TorchDispatchMode):
    """Remembers the operators that would launch a kernel."""

    def __init__(self):
        super().__init__()
        self.called = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").split(".")[0]
        free = "empty", "view", "slice", "select", "unbind", "detach"
        if not any(word in name for word in free):
            self.called.append(name)
        return function(*args, **(kwargs or {}))


def test_no_rows(kernels, device):
    assert encode(kernels, device, torch.randn(0, 4), torch.randn(30, 4)).values.shape == (0, 9)
