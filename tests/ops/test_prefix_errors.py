from __future__ import annotations

import pytest
import torch
from adversarial import adversarial_rows
from digests import ISAS, assert_same_digests
from opchecks import assert_compiles_whole, assert_threads_do_not_matter, opcheck_calls_of
from sums import DTYPES, small_integers
from torch import Tensor

import csrkern
from csrkern import SparseCodes, reference

# n, h, k, d
SHAPES = [(1, 1, 1, 1), (9, 20, 20, 3), (7, 40, 5, 64), (70, 300, 32, 100), (130, 50, 3, 200)]


def random_codes(n: int, h: int, k: int, dtype: torch.dtype = torch.float32) -> SparseCodes:
    """Rows with up to k active latents, every seventh with none, odd latents dead."""
    pre = torch.rand(n, h) - 0.3
    pre[::7] = -1.0
    pre[:, 1::2] = -1.0
    return csrkern.topk_relu(pre, k).to(dtype)


def leaves_of(codes: SparseCodes, d: int, bias: bool = True) -> list[Tensor]:
    """x, values, weight and bias, of normal numbers."""
    n, h, dtype = len(codes), codes.dim, codes.dtype
    leaves = [torch.randn(n, d).to(dtype), codes.values.detach(), torch.randn(h, d).to(dtype)]
    leaves += [torch.randn(d).to(dtype)] * bias
    return [leaf.clone().requires_grad_() for leaf in leaves]


def errors_of(module, codes: SparseCodes, leaves: list[Tensor]) -> Tensor:
    x, values, weight, *bias = leaves
    return module.prefix_errors(x, SparseCodes(values, codes.indices, codes.dim), weight, *bias)


def both(codes: SparseCodes, leaves: list[Tensor], grad: Tensor) -> tuple[list[Tensor], ...]:
    """The errors and all gradients, of the operator and of the reference in float64."""
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]
    found = []
    for module, given in ((csrkern, leaves), (reference, doubles)):
        errors = errors_of(module, codes, given)
        grads = torch.autograd.grad(errors, given, grad.to(errors.dtype))
        found.append([errors.detach(), *grads])
    return found[0], found[1]


def assert_equals_specification(codes: SparseCodes, leaves: list[Tensor]) -> None:
    got, want = both(codes, leaves, torch.rand(codes.k).to(codes.dtype))
    assert got[0].shape == (codes.k,)
    for ours, theirs in zip(got, want, strict=True):
        assert ours.dtype == codes.dtype
        # Sums are in float32, which residuals and what is summed of them lose a few bits of.
        eps = max(torch.finfo(ours.dtype).eps, 8e-7 if ours.dtype != torch.float64 else 0)
        scale = float(theirs.abs().max()) if theirs.numel() else 0.0
        torch.testing.assert_close(ours.double(), theirs, rtol=2 * eps, atol=4 * eps * scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("poisoned_empty")
def test_equals_specification(shape, dtype):
    n, h, k, d = shape
    codes = random_codes(n, h, k, dtype)
    for bias in (True, False):
        assert_equals_specification(codes, leaves_of(codes, d, bias))


@pytest.mark.parametrize(("h", "k", "d"), [(257, 4, 5), (300, 32, 64), (40, 40, 100)])
def test_equals_specification_on_adversarial_rows(h, k, d):
    for name, pre in adversarial_rows(h, k).items():
        codes = csrkern.topk_relu(pre, k)
        x, weight, bias = torch.randn(len(pre), d), torch.randn(h, d), torch.randn(d)
        got = csrkern.prefix_errors(x, codes, weight, bias)
        exact = reference.prefix_errors(
            x.double(), codes.to(torch.float64), weight.double(), bias.double()
        )
        # Squares that float32 cannot hold are infinite, and differences of infinities NaN.
        fits = exact < 3e38
        torch.testing.assert_close(
            got[fits].double(), exact[fits], rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
        assert not bool(got[~fits].isfinite().any()), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [8, 64, 128])
def test_is_exact_where_sums_are(d, dtype):
    n, h, k = 16, 60, 9
    codes = csrkern.topk_relu(small_integers(n, h, dtype=dtype), k)
    x, weight = small_integers(n, d, dtype=dtype), small_integers(h, d, dtype=dtype, seed=1)
    leaves = [x, codes.values, weight, small_integers(d, dtype=dtype, seed=2)]
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    for weights in (torch.ones(k), small_integers(k), torch.eye(k)[2], torch.eye(k)[-1]):
        got, want = both(codes, leaves, weights.to(dtype))  # 2 / (n d) is a power of two
        for ours, theirs in zip(got, want, strict=True):
            assert torch.equal(ours, theirs.to(dtype))


def test_is_the_mean_squared_error_of_each_decoded_prefix():
    codes = random_codes(40, 200, 8)
    x, _, weight, bias = (leaf.detach() for leaf in leaves_of(codes, 30))
    errors = csrkern.prefix_errors(x, codes, weight, bias)
    decoded = csrkern.decode(codes, weight, bias, ks=range(1, 9))
    want = torch.stack([torch.nn.functional.mse_loss(part, x) for part in decoded])
    torch.testing.assert_close(errors, want)


def test_gradients_of_one_k_are_those_of_decoding_at_it():
    codes = random_codes(40, 200, 8)
    for k in (1, 5, 8):
        x, values, weight, bias = leaves_of(codes, 70)
        code = SparseCodes(values, codes.indices, 200)
        one = torch.nn.functional.mse_loss(csrkern.decode(code.truncate(k), weight, bias), x)
        every = csrkern.prefix_errors(x, code, weight, bias)[k - 1]
        got, want = (torch.autograd.grad(e, [x, values, weight, bias]) for e in (every, one))
        for ours, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_gradients_are_exactly_zero_where_nothing_is_active():
    codes = random_codes(40, 300, 20)
    leaves = leaves_of(codes, 9)
    _, _, grad_values, grad_weight, _ = both(codes, leaves, torch.ones(20))[0]
    empty, used = ~codes.active, codes.indices[codes.active].long().unique()
    assert bool(empty.any())
    assert bool((grad_values[empty] == 0).all())
    unused = torch.ones(300, dtype=torch.bool).index_fill(0, used, False)
    assert bool((grad_weight[unused] == 0).all())
    assert bool((grad_values[~empty] != 0).any())


def test_padding_means_nothing_even_where_its_row_of_the_dictionary_is_not_a_number():
    codes = random_codes(20, 60, 9)
    codes.indices[~codes.active] = 1  # a dead latent
    leaves = leaves_of(codes, 70)
    leaves[2].data[1] = torch.nan
    errors = errors_of(csrkern, codes, leaves)
    assert bool(errors.isfinite().all())
    grads = torch.autograd.grad(errors.sum(), leaves)
    assert all(bool(grad.isfinite().all()) for grad in grads)


def test_strides():
    base, codes = torch.randn(400, 400), random_codes(12, 60, 8)
    for x, weight in [(base[:30, :12].T, base[:60, 1:31]), (base[:12, ::9], base[:45, :60].T)]:
        leaves = [x, codes.values.T.contiguous().T, weight, base[: x.shape[1], 0]]
        assert_equals_specification(codes, [leaf.detach().requires_grad_() for leaf in leaves])
    strided = torch.empty(24, 16, dtype=torch.int32)[::2, ::2]
    strided.copy_(codes.indices)
    same = SparseCodes(codes.values, strided, 60)
    assert_equals_specification(same, leaves_of(same, 20))


def test_no_rows_and_no_slots():
    codes = random_codes(0, 30, 3)
    leaves = leaves_of(codes, 6)
    errors = errors_of(csrkern, codes, leaves)
    assert bool(errors.isnan().all())  # as the mean of nothing is
    _, _, grad_weight, _ = torch.autograd.grad(errors.sum(), leaves)
    assert torch.equal(grad_weight, torch.zeros(30, 6))
    none = SparseCodes(torch.empty(5, 0), torch.empty(5, 0, dtype=torch.int32), 30)
    assert csrkern.prefix_errors(torch.randn(5, 6), none, torch.randn(30, 6)).shape == (0,)


@pytest.mark.parametrize("wanted", range(4))
def test_gradients_do_not_depend_on_which_are_wanted(wanted):
    codes = random_codes(9, 200, 5)
    made = leaves_of(codes, 11)

    def gradients(wants):
        leaves = [
            leaf.detach().requires_grad_(want) for leaf, want in zip(made, wants, strict=True)
        ]
        errors_of(csrkern, codes, leaves).sum().backward()
        return [leaf.grad for leaf in leaves]

    alone, together = gradients([i == wanted for i in range(4)]), gradients([True] * 4)
    assert [grad is not None for grad in alone] == [i == wanted for i in range(4)]
    assert torch.equal(alone[wanted], together[wanted])


def test_gradcheck_in_float64():
    codes = csrkern.topk_relu(torch.rand(4, 10, dtype=torch.float64) + 0.1, 3)
    leaves = leaves_of(codes, 5)
    assert torch.autograd.gradcheck(lambda *given: errors_of(csrkern, codes, given), leaves)


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_gives_the_same_exact_sums(isa):
    assert_same_digests("prefix_errors exact", isa)


def test_vector_instruction_sets_round_the_same_way():
    # The portable code cannot fuse multiply and add where the processor does not.
    assert_same_digests("prefix_errors rounded", "avx2", like="avx512")


def test_thread_count_does_not_matter_and_runs_repeat():
    codes = random_codes(500, 2000, 16)
    leaves, grad = leaves_of(codes, 400), torch.rand(16)

    def results():
        errors = errors_of(csrkern, codes, leaves)
        return (errors, *torch.autograd.grad(errors, leaves, grad))

    assert_threads_do_not_matter(results)


def test_more_rows_than_hold_their_inner_products_at_once():
    codes = random_codes(4500, 2048, 1024)
    leaves = leaves_of(codes, 5)
    grads = torch.autograd.grad(errors_of(csrkern, codes, leaves)[-1], leaves)
    half = len(codes) // 2
    for part in (slice(0, half), slice(half, None)):
        some = SparseCodes(codes.values[part], codes.indices[part], 2048)
        given = [leaves[0][part], leaves[1][part], *leaves[2:]]
        given = [leaf.detach().requires_grad_() for leaf in given]
        want = torch.autograd.grad(errors_of(csrkern, some, given)[-1], given)
        torch.testing.assert_close(grads[1][part], want[1] / 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype):
    codes = random_codes(6, 64, 4, dtype)
    leaves = leaves_of(codes, 10)
    for grads in (False, True):
        given = [leaf.detach().requires_grad_(grads) for leaf in leaves]
        called = opcheck_calls_of(lambda g=given: errors_of(csrkern, codes, g))
        assert "prefix_errors" in called
    assert "prefix_errors_backward" in called


def test_compiles_whole_with_a_dynamic_batch():
    weight, bias = torch.randn(90, 7, requires_grad=True), torch.randn(7, requires_grad=True)

    def loss(x, values, indices):
        codes = SparseCodes(values, indices, 90)
        return csrkern.prefix_errors(x, codes, weight, bias).square().sum()

    def given(n):
        made = random_codes(n, 90, 5)
        return torch.randn(n, 7).requires_grad_(), made.values.requires_grad_(), made.indices

    assert_compiles_whole(loss, given, [weight, bias])


def test_under_autocast_it_is_float32_of_a_narrow_dictionary():
    codes = random_codes(9, 90, 5)
    leaves = leaves_of(codes, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        errors = errors_of(csrkern, codes, leaves)
    assert errors.dtype == torch.float32
    narrow = [leaf.detach().bfloat16().float() for leaf in leaves[1:3]]
    want = errors_of(csrkern, codes, [leaves[0], *narrow, leaves[3]])
    assert torch.equal(errors, want)
    errors.sum().backward()
    assert {leaf.grad.dtype for leaf in leaves} == {torch.float32}


X, WEIGHT = torch.ones(3, 4), torch.ones(9, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X.numpy(), WEIGHT), TypeError, r"x: expected a torch.Tensor, got ndarray; use torch"),
        ((X[0], WEIGHT), ValueError, r"x: expected shape \[any, any\], got \[4\]"),
        ((X[:2], WEIGHT), ValueError, "codes: expected 2 rows, one for each row of x, got 3"),
        ((X, WEIGHT[:8]), ValueError, r"weight: expected shape \[9, 4\], got \[8, 4\]"),
        ((X, WEIGHT.T), ValueError, r"weight: expected shape \[9, 4\], got \[4, 9\]"),
        ((X, WEIGHT.half()), TypeError, "weight is torch.float16 but x is torch.float32"),
        ((X.half(), WEIGHT.half()), TypeError, "weight is torch.float16 but codes.values is"),
        ((X, WEIGHT.to("meta")), ValueError, "weight is on meta but x is on cpu"),
        ((X, WEIGHT, torch.ones(5)), ValueError, r"bias: expected shape \[4\], got \[5\]"),
        ((X, WEIGHT, X[0].half()), TypeError, "bias is torch.float16 but x is torch.float32"),
    ],
)
def test_errors_teach(arguments, error, message):
    x, *rest = arguments
    with pytest.raises(error, match=message):
        csrkern.prefix_errors(x, random_codes(3, 9, 2), *rest)


def test_error_for_dense_codes_names_the_converters():
    with pytest.raises(TypeError, match=r"codes: expected SparseCodes, got Tensor; .*from_dense"):
        csrkern.prefix_errors(X, torch.ones(3, 9), WEIGHT)
