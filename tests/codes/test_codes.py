from __future__ import annotations

import numpy as np
import pytest
import torch
from sums import DTYPES
from torch.utils import _pytree

import csrkern
from csrkern import PackedCodes, SparseCodes, reference

NAN, INF = float("nan"), float("inf")


def make(values, indices, dim=10, dtype=torch.float32) -> SparseCodes:
    return SparseCodes(
        torch.tensor(values, dtype=dtype), torch.tensor(indices, dtype=torch.int32), dim
    )


def random_codes(n=6, h=30, k=5, dtype=torch.float32) -> SparseCodes:
    """The same each time: ties, rows that are not full, and every fourth row empty."""
    pre = torch.randint(-5, 4, (n, h), generator=torch.Generator().manual_seed(0)).to(dtype)
    pre[::4] = -1.0
    return reference.topk_relu(pre, k)


def test_attributes():
    codes = random_codes(dtype=torch.bfloat16)
    assert (codes.k, codes.dim, codes.shape, len(codes)) == (5, 30, (6, 30), 6)
    assert (codes.dtype, codes.device) == (torch.bfloat16, torch.device("cpu"))
    assert repr(codes) == "SparseCodes(n=6, k=5, dim=30, torch.bfloat16, cpu)"
    assert make([[2.0, NAN, 0.0, -0.0]], [[1, 2, 0, 0]]).active.tolist() == [
        [True, True, False, False]
    ]


ONE = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("values", "indices", "dim", "error", "message"),
    [
        (ONE, ONE[:1].int(), 9, ValueError, r"one shape \[n, k\], got \[2, 3\] and \[1, 3\]"),
        (ONE[0], ONE[0].int(), 9, ValueError, r"one shape \[n, k\], got \[3\] and \[3\]"),
        (ONE, ONE.long(), 9, TypeError, "indices: expected int32, got torch.int64; use"),
        (
            ONE.int(),
            ONE.int(),
            9,
            TypeError,
            "values: expected a floating-point dtype, got torch.i",
        ),
        (ONE, ONE.int(), 2, ValueError, "dim: expected at least k = 3 latents, got 2"),
    ],
)
def test_constructor_errors_teach(values, indices, dim, error, message):
    with pytest.raises(error, match=message):
        SparseCodes(values, indices, dim)


def test_constructor_wants_one_device():
    with pytest.raises(ValueError, match="device"):
        SparseCodes(ONE, ONE.int().to("meta"), 9)


@pytest.mark.parametrize("arrays", [(ONE.numpy(), ONE.int().numpy()), ([[1.0]], [[0]])])
def test_constructor_wants_tensors(arrays):
    with pytest.raises(TypeError, match="expected"):
        SparseCodes(*arrays, 9)


def test_truncate():
    codes = random_codes(5, 40, 9)
    for k in (1, 4, 9):
        narrow = codes.truncate(k)
        assert narrow.k == k
        assert narrow.validate().equal(SparseCodes.from_dense(codes.to_dense(), k))
        assert narrow.values.data_ptr() == codes.values.data_ptr()
    for k in (0, 10):
        with pytest.raises(ValueError, match=f"k: expected 1 <= k <= 9, got {k}"):
            codes.truncate(k)


def test_rows():
    codes = random_codes(6)
    flags = [True, False, True, False, False, True]
    for rows, want in [
        (2, [2]),
        (np.int64(2), [2]),
        (-1, [5]),
        (-6, [0]),
        (slice(1, 4), [1, 2, 3]),
        (slice(None, None, 2), [0, 2, 4]),
        (slice(4, 2), []),
        ([3, 0, 3], [3, 0, 3]),
        (flags, [0, 2, 5]),
        (np.array(flags), [0, 2, 5]),
        (np.array([4, -2]), [4, 4]),
        (torch.tensor(flags), [0, 2, 5]),
        (torch.tensor([5, 0]), [5, 0]),
        (torch.tensor([], dtype=torch.long), []),
    ]:
        part = codes[rows]
        assert isinstance(part, SparseCodes)
        assert part.dim == 30
        assert torch.equal(part.values, codes.values[torch.tensor(want, dtype=torch.long)])
        assert torch.equal(part.indices, codes.indices[torch.tensor(want, dtype=torch.long)])
    for row in (6, -7):
        with pytest.raises(IndexError, match=f"row {row} is out of range for 6 codes"):
            codes[row]
    assert [part.shape for part in codes] == [(1, 30)] * 6  # by rows, as it ends with IndexError


@pytest.mark.parametrize("kind", [SparseCodes, PackedCodes.pack])
def test_rows_are_selected_by_integers_and_bools_alone(kind):
    codes = random_codes(3)
    codes = codes if kind is SparseCodes else PackedCodes.pack(codes)
    pd = pytest.importorskip("pandas")
    for rows in (
        [0.9, 1.9],
        ["1", "2"],
        [None],
        [[0, 1]],
        [True, 2],
        0.0,
        "1",
        None,
        ...,
        True,
        np.True_,
        (0, 1),
        (),
        (slice(None), 0),
        np.array([True, False, True], object),
        np.array([0, 1], object),
        np.array([[0, 1]]),
        np.array(1.0),
        np.array(True),
        np.array([True, False]),
        [True] * 4,
        [2**63],
        [2**70],
        np.array([2**64 - 1], np.uint64),
        pd.Series([1, None]),
        pd.Series([True, None, True]),
        torch.tensor([0.0, 1.0]),
        torch.tensor([0.0, 1.0]).bfloat16(),
        torch.tensor([True, False]),
        torch.tensor([[0, 1]]),
        torch.tensor(True),
    ):
        with pytest.raises(IndexError) as caught:
            codes[rows]
        assert len(str(caught.value)) > 20


@pytest.mark.parametrize("kind", [SparseCodes, PackedCodes.pack])
def test_integers_and_masks_of_any_type_select(kind):
    codes = random_codes(3)
    made = codes if kind is SparseCodes else PackedCodes.pack(codes)
    for rows, want in (
        (np.array([2, 1], np.uint8), [2, 1]),
        (np.array([2, -3], ">i2"), [2, 0]),
        (torch.tensor([1, 0], dtype=torch.uint8), [1, 0]),
        (torch.tensor([1, -1], dtype=torch.int32), [1, 2]),
        (torch.tensor(2), [2]),
        (np.array(-1), [2]),
        (np.uint64(1), [1]),
        (2, [2]),
        ([], []),
        (range(1, 3), [1, 2]),
        ([True, False, True], [0, 2]),
        ([np.True_, np.False_, np.True_], [0, 2]),
        (np.array([1, 0, 1], bool)[::-1], [0, 2]),
    ):
        part = made[rows]
        assert type(part) is type(made)
        values = (part if kind is SparseCodes else part.unpack()).indices
        assert torch.equal(values, codes.indices[torch.tensor(want, dtype=torch.long)])


def test_a_row_that_is_not_there_is_named():
    codes = random_codes(3)
    for rows, row in (
        ([0, 3], 3),
        (np.array([-4, 0]), -4),
        (np.int8(3), 3),
        (torch.tensor([9]), 9),
    ):
        for made in (codes, PackedCodes.pack(codes)):
            with pytest.raises(IndexError, match=str(row)):
                made[rows]


@pytest.mark.parametrize("rows", [[], torch.tensor(2), np.array([1, 2], np.uint16)], ids=str)
def test_rows_by_less_common_indices(rows):
    assert random_codes(6)[rows].k == 5


def test_to_converts_values_alone():
    codes = random_codes()
    for same in (codes.to("cpu"), codes.to(torch.float32), codes.to(device="cpu")):
        assert same.equal(codes)
        assert same.values.data_ptr() == codes.values.data_ptr()
    for dtype in DTYPES:
        other = codes.to(dtype)
        assert (other.dtype, other.indices.dtype, other.dim) == (dtype, torch.int32, 30)
        assert torch.equal(other.values, codes.values.to(dtype))
        assert codes.to("cpu", dtype).equal(other)
    moved = codes.to("meta")
    assert (moved.values.device.type, moved.indices.device.type) == ("meta", "meta")
    with pytest.raises(TypeError, match="values: expected a floating-point dtype"):
        codes.to(torch.int32)


@pytest.mark.parametrize("values", [[1 + 1e-6, 1.0], [1.0, 1e-9]], ids=["tie", "underflow"])
def test_to_a_narrow_dtype_keeps_the_invariants(values):
    make([values], [[5, 2]]).validate().to(torch.float16).validate()


def test_detach_leaves_the_graph():
    codes = random_codes()
    codes.values.requires_grad_()
    assert not codes.detach().values.requires_grad
    assert codes.values.requires_grad


def test_normalize():
    codes = make([[3.0, 4.0][::-1], [2.0, 0.0], [0.0, 0.0]], [[7, 1], [3, 0], [0, 0]])
    codes.values.requires_grad_()
    unit = codes.normalize()
    expected = torch.tensor([[0.8, 0.6], [1.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(unit.values, expected)
    assert torch.equal(unit.indices, codes.indices)
    unit.values[:, 0].sum().backward()
    expected = torch.tensor([[0.36 / 5, -0.48 / 5], [0.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(codes.values.grad[:2], expected[:2])
    assert bool(codes.values.grad.isfinite().all())


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(300.0, torch.float16), (1e-4, torch.float16), (1e20, torch.float32), (1e-25, torch.float32)],
)
def test_normalize_large_and_small_values(size, dtype):
    unit = make([[size, size]], [[0, 1]], dtype=dtype).normalize()
    torch.testing.assert_close(unit.values, torch.full((1, 2), 0.5, dtype=dtype).sqrt())


def test_cat():
    parts = [random_codes(n) for n in (3, 0, 2)]
    whole = SparseCodes.cat(iter(parts))
    assert len(whole) == 5
    assert whole[:3].equal(parts[0])
    assert whole[3:].equal(parts[2])
    with pytest.raises(ValueError, match="parts: expected at least one SparseCodes, got none"):
        SparseCodes.cat([])
    with pytest.raises(TypeError, match="parts: expected SparseCodes, got tuple"):
        SparseCodes.cat([parts[0], parts[0].numpy()])
    for other in (random_codes(k=4), random_codes(h=31)):
        with pytest.raises(ValueError, match=r"parts: expected one \(k, dim\), got \[\(5, 30\), "):
            SparseCodes.cat([parts[0], other])


def test_equal():
    codes = make([[2.0, NAN]], [[3, 4]])
    assert codes.equal(make([[2.0, NAN]], [[3, 4]]))
    for other in (
        make([[2.0, NAN]], [[3, 4]], dim=11),
        make([[2.0, NAN]], [[3, 5]]),
        make([[2.5, NAN]], [[3, 4]]),
        make([[NAN, NAN]], [[3, 4]]),
        make([[2.0, NAN, 0.0]], [[3, 4, 0]]),
        make([[2.0, NAN]] * 2, [[3, 4]] * 2),
    ):
        assert not codes.equal(other)
        assert not other.equal(codes)


@pytest.mark.parametrize(
    ("rule", "values", "indices"),
    [
        ("indices in 0..dim-1", [2.0, 1.0], [10, 1]),
        ("indices in 0..dim-1", [2.0, 1.0], [1, -1]),
        ("indices in 0..dim-1", [2.0, 0.0], [1, 10]),
        ("values not negative", [2.0, -1.0], [1, 2]),
        ("values not negative", [2.0, -INF], [1, 2]),
        ("values non-increasing (NaN first)", [1.0, 2.0], [1, 2]),
        ("values non-increasing (NaN first)", [0.0, 2.0], [0, 2]),
        ("values non-increasing (NaN first)", [INF, NAN], [1, 2]),
        ("equal values by lower index", [1.0, 1.0], [2, 1]),
        ("equal values by lower index", [INF, INF], [2, 1]),
        ("padded slots with index 0", [1.0, 0.0], [1, 2]),
        ("distinct latents", [2.0, 1.0], [1, 1]),
        ("distinct latents", [NAN, 1.0], [0, 0]),
        ("distinct latents", [NAN, NAN], [4, 4]),
    ],
)
def test_validate_names_what_is_broken_and_where(rule, values, indices):
    good = [[2.0, 1.0], [3, 0]]
    codes = make([good[0], good[0], values], [good[1], good[1], indices])
    with pytest.raises(ValueError) as caught:
        codes.validate()
    message, *_ = str(caught.value).split(";")  # behind it, what to do
    assert message == f"not SparseCodes: {rule} is broken in row 2"


def test_validate_accepts_what_is_whole():
    for codes in (
        make([[NAN, NAN, INF, 1.0, 1.0, 0.0, 0.0]], [[1, 4, 0, 2, 9, 0, 0]]),
        make([[1.0, -0.0]], [[0, 0]]),
        random_codes(0),
        random_codes(5, 7, 7),
    ):
        codes.values.requires_grad_()
        assert codes.validate() is codes


def test_to_dense_is_differentiable_and_padding_means_nothing():
    codes = make([[3.0, 1.0, 0.0], [0.0, 0.0, 0.0]], [[0, 7, 0], [0, 0, 0]])
    values = codes.values.requires_grad_()
    dense = codes.to_dense()
    assert torch.equal(dense[0].nonzero()[:, 0], torch.tensor([0, 7]))
    (dense * torch.arange(1.0, 11.0)).sum().backward()
    assert values.grad.tolist() == [[1.0, 8.0, 0.0], [0.0, 0.0, 0.0]]


def test_is_a_pytree_of_two_tensors():
    codes = random_codes()
    leaves, spec = _pytree.tree_flatten({"codes": codes})
    assert [leaf is part for leaf, part in zip(leaves, (codes.values, codes.indices), strict=True)]
    restored = _pytree.tree_unflatten(leaves, _pytree.treespec_loads(_pytree.treespec_dumps(spec)))
    assert restored["codes"].equal(codes)
    doubled = _pytree.tree_map(lambda leaf: leaf * 2, codes)
    assert torch.equal(doubled.indices, codes.indices * 2)
    names = _pytree.tree_map(type, codes)  # leaves need not be tensors
    assert names.values is torch.Tensor


def test_passes_through_compiled_functions():
    def step(codes, scale):
        codes = codes.truncate(3)[1:]
        return SparseCodes(codes.values * scale, codes.indices, codes.dim), codes.to_dense()

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (4, 9):
        codes = random_codes(n)
        got, dense = compiled(codes, 2.0)
        want, want_dense = step(codes, 2.0)
        assert got.equal(want)
        assert torch.equal(dense, want_dense)


def test_compiled_gradients_reach_the_values():
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda codes: codes.normalize().to_dense().square().square().sum(),
        fullgraph=True,
        backend="aot_eager",
    )
    eager, traced = csrkern.topk_relu(torch.rand(4, 20), 3), csrkern.topk_relu(torch.rand(4, 20), 3)
    traced.values.copy_(eager.values)
    traced.indices.copy_(eager.indices)
    for codes in (eager, traced):
        codes.values.requires_grad_()
    compiled(traced).backward()
    eager.normalize().to_dense().square().square().sum().backward()
    torch.testing.assert_close(traced.values.grad, eager.values.grad)


def test_power_acts_on_active_values_alone():
    codes = SparseCodes(
        torch.tensor([[4.0, 0.25, 0.0], [0.0, 0.0, 0.0]], requires_grad=True),
        torch.tensor([[5, 2, 0], [0, 0, 0]], dtype=torch.int32),
        8,
    )
    roots = codes.power(0.5).validate()
    assert roots.values.tolist() == [[2.0, 0.5, 0.0], [0.0, 0.0, 0.0]]
    assert torch.equal(roots.indices, codes.indices)
    roots.values.sum().backward()
    assert codes.values.grad.tolist() == [[0.25, 1.0, 0.0], [0.0, 0.0, 0.0]]
    for exponent in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"exponent: expected a (positive|finite) number"):
            codes.power(exponent)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_native_check_agrees_with_the_rules(dtype, monkeypatch):
    """On codes of few latents and values, of which most are broken somewhere."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.tensor([0.0, -0.0, 1.0, 1.0, 2.0, 3.0, -1.0, NAN, INF]).to(dtype)
    n, k = 3000, 3
    values = numbers[torch.randint(0, len(numbers), (n, k), generator=generator)]
    values[: n // 2] = values[: n // 2].sort(1, descending=True).values
    indices = torch.randint(-1, 5, (n, k), generator=generator).int()
    good = 0
    for row in range(n):
        codes = SparseCodes(values[row : row + 1], indices[row : row + 1], 4)
        with monkeypatch.context() as without:
            without.setattr(SparseCodes, "_is_valid", lambda self: False)
            try:
                codes.validate()
                valid = True
            except ValueError:
                valid = False
        assert codes._is_valid() == valid, codes.numpy()
        good += valid
    assert 20 < good < n - 20
    values[:], indices[:] = torch.tensor([3.0, 2.0, 1.0]), torch.arange(k)
    for row in (0, 1700, n - 1):
        indices[row, 1] = 0
        with pytest.raises(ValueError, match=f"distinct latents is broken in row {row}"):
            SparseCodes(values, indices, 4).validate()
        indices[row, 1] = 1


def test_norms_of_any_order_and_sign():
    codes = make([[1e-30, 1e30], [-1e30, 1e-30], [3.0, -4.0]], [[1, 2], [1, 2], [1, 2]])
    np.testing.assert_allclose(codes.normalize().values, [[0, 1], [-1, 0], [0.6, -0.8]], atol=1e-6)
    none = SparseCodes(torch.empty(3, 0), torch.empty(3, 0).int(), 5)
    assert none.normalize().shape == (3, 5)
