from __future__ import annotations

import re

import pytest
import torch
from adversarial import adversarial_rows
from digests import ISAS, assert_same_digests
from hypothesis import given, settings
from hypothesis import strategies as st
from opchecks import assert_compiles_whole, assert_threads_do_not_matter, opcheck_calls_of
from sums import DTYPES, as_float64, assert_sums_close, small_integers
from torch import Tensor

import csrkern
from csrkern import SparseCodes, reference

# (h, k, d); codes that use half of the latents or fewer are gathered, others multiplied densely.
SHAPES = [(1, 1, 1), (7, 7, 3), (63, 32, 16), (64, 32, 16), (200, 1, 1), (300, 300, 40)]
SHAPES += [(520, 32, 300), (1000, 32, 100), (1000, 62, 129), (200, 3, 600)]


def random_codes(n: int, h: int, k: int, dtype: torch.dtype = torch.float32) -> SparseCodes:
    """Rows with up to k active latents, every seventh with none, odd latents dead."""
    pre = torch.randn(n, h)
    pre[::7] = -1.0
    pre[:, 1::2] = -1.0
    return csrkern.topk_relu(pre, k).to(dtype)


def assert_equals_specification(
    codes: SparseCodes, weight: Tensor, bias: Tensor | None = None, grad: Tensor | None = None
) -> None:
    """The sums and every gradient, against the reference in float64."""
    leaves = [codes.values.detach().requires_grad_(), weight.detach().requires_grad_()]
    leaves += [] if bias is None else [bias.detach().requires_grad_()]
    out = csrkern.decode(SparseCodes(leaves[0], codes.indices, codes.dim), *leaves[1:])
    assert out.dtype == codes.dtype
    assert out.shape == (len(codes), weight.shape[1])

    exact = as_float64(codes)
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves[1:]]
    expected = reference.decode(exact, *doubles)
    sizes, table = exact.detach().to_dense().abs(), weight.detach().double().abs()
    # A dense product rounds the sum before it adds the bias.
    shift = 0.0 if bias is None else bias.detach().double().abs()
    magnitude = sizes @ table + shift
    slack = torch.finfo(out.dtype).eps * shift
    assert_sums_close(out.detach(), expected.detach(), magnitude, codes.k + 1, slack)

    # Small enough for sums with the largest float32 numbers to stay finite on the way.
    grad = ((torch.rand(out.shape) - 0.5) / 2).to(out.dtype) if grad is None else grad
    got = torch.autograd.grad(out, leaves, grad)
    want = torch.autograd.grad(expected, [exact.values, *doubles], grad.double())
    assert [g.dtype for g in got] == [codes.dtype] * len(got)
    d, n = weight.shape[1], len(codes)
    each = (grad.double().abs() @ table.T).gather(1, codes.indices.long())
    assert_sums_close(got[0], want[0], each, d)
    assert_sums_close(got[1], want[1], sizes.T @ grad.double().abs(), n)
    if bias is not None:
        # PyTorch's own sum over rows, which may round along the way.
        torch.testing.assert_close(got[2].double(), want[2], rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("h", "k", "d"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_specification_on_adversarial_rows(h, k, d, dtype):
    weight, bias = (torch.rand(h, d) - 0.5).to(dtype), torch.randn(d).to(dtype)
    for name, pre in adversarial_rows(h, k).items():
        codes = reference.topk_relu(pre.to(dtype), k)
        try:
            assert_equals_specification(codes, weight, bias if h % 2 else None)
        except AssertionError as error:
            raise AssertionError(f"{name}, h={h}, k={k}, d={d}, {dtype}: {error}") from error


@pytest.mark.parametrize(("h", "k", "d"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_integers_come_out_exactly(h, k, d, dtype):
    pre = small_integers(30, h, limit=3, dtype=dtype)
    codes = csrkern.topk_relu(pre, min(k, 20))
    weight, bias = small_integers(h, d, dtype=dtype, seed=1), small_integers(d, dtype=dtype)
    leaves = [t.requires_grad_() for t in (codes.values.detach(), weight, bias)]
    out = csrkern.decode(SparseCodes(leaves[0], codes.indices, h), *leaves[1:])
    exact = [t.detach().double().requires_grad_() for t in leaves]
    expected = reference.decode(SparseCodes(exact[0], codes.indices, h), *exact[1:])
    grad = small_integers(30, d, limit=1, dtype=dtype, seed=2)
    got = torch.autograd.grad(out, leaves, grad)
    want = torch.autograd.grad(expected, exact, grad.double())
    for ours, theirs in zip((out, *got), (expected, *want), strict=True):
        assert torch.equal(ours.double(), theirs)


@settings(max_examples=60)
@given(data=st.data())
def test_any_codes(data):
    h, d = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 70))
    k, n = data.draw(st.integers(1, h)), data.draw(st.integers(0, 9))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    dtype = data.draw(st.sampled_from(DTYPES))
    weight = torch.randn(h, d).to(dtype)
    bias = torch.randn(d).to(dtype) if data.draw(st.booleans()) else None
    assert_equals_specification(random_codes(n, h, k, dtype), weight, bias)


@pytest.mark.parametrize("h", [12, 2000])
def test_one_latent_in_every_row(h):
    pre = torch.rand(300, h)
    pre[:, 5] = 2.0
    assert_equals_specification(csrkern.topk_relu(pre, 9), torch.randn(h, 20))


@pytest.mark.parametrize("h", [30, 2000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_are_exactly_zero_where_nothing_is_active(h, dtype):
    codes = random_codes(40, h, 20, dtype)
    values, weight = codes.values.requires_grad_(), torch.randn(h, 9).to(dtype).requires_grad_()
    csrkern.decode(SparseCodes(values, codes.indices, h), weight).square().sum().backward()
    empty, used = ~codes.active, codes.indices[codes.active].long().unique()
    assert bool(empty.any())
    assert bool((values.grad[empty] == 0).all())
    unused = torch.ones(h, dtype=torch.bool).index_fill(0, used, False)
    assert bool((weight.grad[unused] == 0).all())
    assert bool((values.grad[~empty] != 0).any())


@pytest.mark.parametrize("odd", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_padding_means_nothing_whatever_its_row_of_the_dictionary_holds(dtype, odd):
    weight = torch.randn(200, 20).to(dtype)
    weight[0] = odd
    pre = torch.randn(9, 200).to(dtype)
    pre[:, 0] = -1.0
    pre[4] = -1.0
    codes = csrkern.topk_relu(pre, 12)
    padded = SparseCodes.from_dense(codes.to_dense() * (torch.rand(9, 200) < 0.5), 12)
    out = csrkern.decode(padded, weight)
    assert torch.equal(out[4], torch.zeros(20, dtype=dtype))
    exact = reference.decode(as_float64(padded), weight.double())
    for sums in (out, exact):
        assert bool(sums.isfinite().all())
    torch.testing.assert_close(out.double(), exact, rtol=0.02, atol=0.02)
    x = torch.randn(9, 20).to(dtype)
    for work in (
        lambda: csrkern.decode(padded, weight).sum(),
        lambda: csrkern.decode(padded, weight, ks=[3, 12]).sum(),
        lambda: csrkern.prefix_errors(x, padded, weight).sum(),
    ):
        padded.values.grad = None
        padded.values.requires_grad_()
        result = work()
        result.backward()
        assert bool(result.isfinite())
        assert bool(padded.values.grad.isfinite().all())


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_writes_every_place(dtype):
    for h, k, d in [(200, 5, 37), (14, 9, 37)]:
        codes = random_codes(20, h, k, dtype)
        assert_equals_specification(codes, torch.randn(h, d).to(dtype), torch.randn(d).to(dtype))


@pytest.mark.parametrize("h", [15, 600])
def test_strides(h):
    codes = random_codes(12, h, 8)
    base, biases = torch.randn(1200, 1200), torch.randn(300)
    for weight in (
        base[:30, :h].T,
        base[:h, :60:2],
        base[: 2 * h : 2, 3:20],
        base[:h, :1],
        base[:1, :20].expand(h, 20),
        base[:h, :1].expand(h, 20),
    ):
        d = weight.shape[1]
        for bias in (biases[:d], biases[: 3 * d : 3], biases[:1].expand(d)):
            assert_equals_specification(codes, weight, bias)
    for grad in (base[:20, :12].T, base[:12, 1:41:2], torch.ones(()).expand(12, 20)):
        assert_equals_specification(codes, base[:h, :20], grad=grad)
    assert_equals_specification(codes.truncate(3), base[:h, :20])
    assert_equals_specification(codes[::2], base[:h, :20])


@pytest.mark.parametrize("h", [4, 300])
def test_no_rows(h):
    weight, bias = torch.randn(h, 6, requires_grad=True), torch.randn(6, requires_grad=True)
    out = csrkern.decode(random_codes(0, h, 3), weight, bias)
    assert out.shape == (0, 6)
    out.sum().backward()
    assert torch.equal(weight.grad, torch.zeros(h, 6))
    assert torch.equal(bias.grad, torch.zeros(6))


@pytest.mark.parametrize("wanted", range(3))
def test_gradients_do_not_depend_on_which_are_wanted(wanted):
    codes, weight, bias = random_codes(9, 200, 5), torch.randn(200, 11), torch.randn(11)

    def gradients(wants):
        leaves = [codes.values.detach(), weight.detach(), bias.detach()]
        for leaf, want in zip(leaves, wants, strict=True):
            leaf.requires_grad_(want)
        csrkern.decode(
            SparseCodes(leaves[0], codes.indices, 200), *leaves[1:]
        ).sin().sum().backward()
        return [leaf.grad for leaf in leaves]

    alone, together = gradients([i == wanted for i in range(3)]), gradients([True] * 3)
    assert [grad is not None for grad in alone] == [i == wanted for i in range(3)]
    assert torch.equal(alone[wanted], together[wanted])


@pytest.mark.parametrize("h", [5, 100])
def test_gradcheck_in_float64(h):
    codes = csrkern.topk_relu(torch.rand(4, h, dtype=torch.float64) + 0.1, 3)
    weight = torch.randn(h, 5, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    values = codes.values.requires_grad_()

    def decode(values, weight, bias):
        return csrkern.decode(SparseCodes(values, codes.indices, h), weight, bias)

    assert torch.autograd.gradcheck(decode, (values, weight, bias))


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_gives_the_same_exact_sums(isa):
    assert_same_digests("decode exact", isa)


def test_vector_instruction_sets_round_the_same_way():
    # The portable code cannot fuse multiply and add where the processor does not.
    assert_same_digests("decode rounded", "avx2", like="avx512")


def test_thread_count_does_not_matter_and_runs_repeat():
    codes = random_codes(500, 2000, 16)
    values, weight = codes.values.requires_grad_(), torch.randn(2000, 200, requires_grad=True)
    grad = torch.randn(500, 200)

    def results():
        out = csrkern.decode(SparseCodes(values, codes.indices, 2000), weight)
        return (out, *torch.autograd.grad(out, (values, weight), grad))

    assert_threads_do_not_matter(results)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype):
    codes = random_codes(6, 64, 4, dtype)
    for grads, ks in [(False, None), (True, None), (True, [1, 4])]:
        values = codes.values.detach().requires_grad_(grads)
        weight = torch.randn(64, 10).to(dtype).requires_grad_(grads)
        bias = torch.randn(10).to(dtype).requires_grad_(grads)
        code = SparseCodes(values, codes.indices, 64)
        called = opcheck_calls_of(
            lambda c=code, w=weight, b=bias, k=ks: csrkern.decode(c, w, b, ks=k)
        )
        assert "decode" in called
    assert {"decode", "transpose", "gather_dot", "scatter_sum"} <= called


@pytest.mark.parametrize("h", [10, 300])  # through dense products, and gathered
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_several_k_at_once(h, dtype):
    codes = csrkern.topk_relu(small_integers(20, h, dtype=dtype), 9)
    weight, bias = small_integers(h, 11, dtype=dtype, seed=1), small_integers(11, dtype=dtype)
    for ks in ([9], [3], [1, 4, 9], (2, 7), list(range(1, 9))):
        leaves = [t.detach().requires_grad_() for t in (codes.values, weight, bias)]
        exact = [t.detach().double().requires_grad_() for t in leaves]
        out = csrkern.decode(SparseCodes(leaves[0], codes.indices, h), *leaves[1:], ks=ks)
        expected = reference.decode(SparseCodes(exact[0], codes.indices, h), *exact[1:], ks=ks)
        assert torch.equal(out.double(), expected)
        grad = small_integers(len(ks), 20, 11, limit=1, dtype=dtype)
        got = torch.autograd.grad(out, leaves, grad)
        want = torch.autograd.grad(expected, exact, grad.double())
        for ours, theirs in zip(got, want, strict=True):
            assert torch.equal(ours, theirs.to(dtype))


@pytest.mark.parametrize(
    ("ks", "error", "message"),
    [
        ([], ValueError, "ks: expected 1 to 8 ascending numbers, got []"),
        ([2, 2], ValueError, "ks: expected 1 to 8 ascending numbers, got [2, 2]"),
        ([3, 1], ValueError, "ks: expected 1 to 8 ascending numbers, got [3, 1]"),
        (list(range(1, 10)), ValueError, "ks: expected 1 to 8 ascending numbers, got [1, 2,"),
        ([0, 2], ValueError, "ks[0]: expected 1 <= ks[0] <= k = 9, got 0"),
        ([2, 10], ValueError, "ks[1]: expected 1 <= ks[1] <= k = 9, got 10"),
        ([2.0], TypeError, "ks[0]: expected an int, got float"),
        (5, TypeError, "ks: expected a list of ints, got int; use ks=[5]"),
    ],
)
def test_errors_of_several_k_teach(ks, error, message):
    with pytest.raises(error, match=re.escape(message)):
        csrkern.decode(random_codes(3, 300, 9), torch.ones(300, 4), ks=ks)


@pytest.mark.parametrize("h", [8, 400])
def test_compiles_whole_with_a_dynamic_batch(h):
    weight, bias = torch.randn(h, 7, requires_grad=True), torch.randn(7, requires_grad=True)

    def loss(values, indices):
        return csrkern.decode(SparseCodes(values, indices, h), weight, bias).square().sum()

    def codes(n):
        made = random_codes(n, h, 5)
        return made.values.requires_grad_(), made.indices

    assert_compiles_whole(loss, codes, [weight, bias])


@pytest.mark.parametrize("h", [8, 400])
def test_autocast_gives_the_autocast_dtype(h):
    codes = random_codes(9, h, 5)
    values, weight = codes.values.requires_grad_(), torch.randn(h, 7, requires_grad=True)
    bias = torch.randn(7, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = csrkern.decode(SparseCodes(values, codes.indices, h), weight, bias)
    narrow = [t.detach().to(torch.bfloat16) for t in (values, weight, bias)]
    assert torch.equal(out, csrkern.decode(SparseCodes(narrow[0], codes.indices, h), *narrow[1:]))
    out.sum().backward()
    assert {t.grad.dtype for t in (values, weight, bias)} == {torch.float32}


WEIGHT = torch.ones(9, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[1.0]],), TypeError, "weight: expected a torch.Tensor, got list"),
        ((WEIGHT.long(),), TypeError, "weight: expected float32, .* got torch.int64"),
        ((WEIGHT[0],), ValueError, r"weight: expected shape \[9, any\], got \[4\]"),
        ((WEIGHT[:8],), ValueError, r"weight: expected shape \[9, any\], got \[8, 4\]"),
        (
            (WEIGHT.double(),),
            TypeError,
            "weight is torch.float64 but codes.values is torch",
        ),
        ((WEIGHT.to("meta"),), ValueError, "weight is on meta but codes.values is on cpu"),
        ((WEIGHT, [1.0]), TypeError, "bias: expected a torch.Tensor, got list"),
        ((WEIGHT, torch.ones(5)), ValueError, r"bias: expected shape \[4\], got \[5\]"),
        (
            (WEIGHT, WEIGHT[0].half()),
            TypeError,
            "bias is torch.float16 but weight is torch",
        ),
        ((WEIGHT, WEIGHT[0].to("meta")), ValueError, "bias is on meta but weight is on cpu"),
    ],
)
def test_errors_teach(arguments, error, message):
    with pytest.raises(error, match=message):
        csrkern.decode(random_codes(3, 9, 2), *arguments)


def test_error_for_dense_codes_names_the_converters():
    with pytest.raises(TypeError, match=r"codes: expected SparseCodes, got Tensor; .*from_dense"):
        csrkern.decode(torch.ones(2, 9), WEIGHT)
