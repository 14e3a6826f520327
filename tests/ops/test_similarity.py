from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from opchecks import assert_threads_do_not_matter
from torch import Tensor

import csrkern
from csrkern import SparseCodes, reference

H = 60


def random_codes(n: int, k: int, h: int = H, seed: int = 0) -> SparseCodes:
    """Rows with up to k active latents, some of them with none."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(n, h, generator=generator)
    dense[::7] = -1.0
    return csrkern.topk_relu(dense, k)


def codes_pairs() -> dict[str, tuple[SparseCodes, SparseCodes]]:
    """Named pairs of sets that break careless kernels."""
    dense = torch.rand(40, H)
    shared = dense.clone()
    shared[:, 3] = 2.0
    far = torch.zeros(6, H)
    far[:3, 0] = far[3:, H - 1] = 1.0
    return {
        "random": (random_codes(37, 8), random_codes(50, 5, seed=1)),
        "all empty": (csrkern.topk_relu(-dense, 4), random_codes(9, 4)),
        "one latent in every row": (csrkern.topk_relu(shared, 4), csrkern.topk_relu(shared, 6)),
        "k = 1": (random_codes(20, 1), random_codes(21, 1, seed=1)),
        "k = h": (random_codes(8, H), random_codes(9, H, seed=1)),
        "duplicates": (random_codes(5, 8)[[1, 1, 1]], random_codes(5, 8)[[1, 2, 1]]),
        "ties": (csrkern.topk_relu(torch.ones(30, H), 7), csrkern.topk_relu(dense.round(), 9)),
        "large": (csrkern.topk_relu(dense * 1e18, 8), csrkern.topk_relu(dense * 1e18, 8)),
        "disjoint": (csrkern.topk_relu(far, 1)[:3], csrkern.topk_relu(far, 1)[3:]),
        "no rows": (random_codes(0, 4), random_codes(5, 4)),
        "no columns": (random_codes(5, 4), random_codes(0, 4)),
        "several windows": (random_codes(3, 8), random_codes(40_000, 4, seed=1)),
        "several windows of a": (random_codes(40_000, 4), random_codes(17, 8, seed=1)),
    }


def leaves(*sides: SparseCodes, dtype: torch.dtype) -> Iterator[SparseCodes]:
    for side in sides:
        values = side.values.detach().to(dtype).requires_grad_()
        yield SparseCodes(values, side.indices, side.dim)


def assert_equals_specification(
    a: SparseCodes, b: SparseCodes, grad: Tensor | None = None, rtol: float = 1e-5
) -> None:
    """Scores and both gradients, against the reference in float64."""
    ours = tuple(leaves(a, b, dtype=torch.float32))
    exact = tuple(leaves(a, b, dtype=torch.float64))
    out, expected = csrkern.similarity(*ours), reference.similarity(*exact)
    scale = float(expected.detach().abs().max()) if expected.numel() else 1.0
    torch.testing.assert_close(out.double(), expected, rtol=rtol, atol=1e-6 * scale)
    grad = torch.randn(out.shape) if grad is None else grad
    got = torch.autograd.grad(out, [side.values for side in ours], grad)
    want = torch.autograd.grad(expected, [side.values for side in exact], grad.double())
    for mine, theirs in zip(got, want, strict=True):
        scale = float(theirs.abs().max()) if theirs.numel() else 1.0
        torch.testing.assert_close(mine.double(), theirs, rtol=rtol, atol=3e-6 * scale)


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize("name", codes_pairs())
def test_equals_specification(name):
    assert_equals_specification(*codes_pairs()[name])


def test_gradient_of_any_strides():
    a, b = random_codes(37, 8), random_codes(50, 5, seed=1)
    base = torch.randn(100, 150)
    for grad in (
        base[:50, :37].T,
        base[:37, 3:53],
        base[::2, ::3][:37],
        torch.ones(()).expand(37, 50),
        torch.randn(50).expand(37, 50),
        torch.randn(37, 1).expand(37, 50),
    ):
        assert_equals_specification(a, b, grad)


def test_truncated_codes_need_no_copy_by_the_caller():
    a, b = random_codes(30, 9), random_codes(20, 9, seed=1)
    assert_equals_specification(a.truncate(4), b.truncate(2))


def test_a_set_with_itself_gets_both_gradients():
    a = random_codes(20, 6)
    mine, exact = next(leaves(a, dtype=torch.float32)), next(leaves(a, dtype=torch.float64))
    weight = torch.randn(20, 20)
    (csrkern.similarity(mine, mine) * weight).sum().backward()
    (reference.similarity(exact, exact) * weight).sum().backward()
    torch.testing.assert_close(mine.values.grad.double(), exact.values.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_narrow_dtypes_round_once(dtype):
    a, b = random_codes(20, 6).to(dtype), random_codes(30, 6, seed=1).to(dtype)
    out = csrkern.similarity(a, b)
    assert out.dtype == dtype
    assert torch.equal(out, csrkern.similarity(a.to(torch.float32), b.to(torch.float32)).to(dtype))
    narrow = next(leaves(a, dtype=dtype))
    csrkern.similarity(narrow, b).sum().backward()
    assert narrow.values.grad.dtype == dtype


def test_autocast_gives_the_autocast_dtype():
    a, b = random_codes(20, 6), random_codes(30, 6, seed=1).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = csrkern.similarity(a, b)
    assert torch.equal(out, csrkern.similarity(a.to(torch.bfloat16), b))


def test_gradcheck_in_float64():
    a, b = leaves(random_codes(6, 4), random_codes(5, 3, seed=1), dtype=torch.float64)
    # Empty slots have no gradient, though a nudge would make them active.
    a, b = a[a.active.all(1)], b[b.active.all(1)]
    assert len(a) > 3 and len(b) > 3  # noqa: PT018

    def product(values_a, values_b):
        return csrkern.similarity(
            SparseCodes(values_a, a.indices, H), SparseCodes(values_b, b.indices, H)
        )

    inputs = (a.values.detach().requires_grad_(), b.values.detach().requires_grad_())
    assert torch.autograd.gradcheck(product, inputs)


def test_opcheck():
    a, b = random_codes(12, 5), random_codes(9, 4, seed=1)
    for grads in (False, True):
        a.values.requires_grad_(grads)
        b.values.requires_grad_(grads)
        arguments = (a.values, a.indices, b.values, b.indices, H)
        torch.library.opcheck(torch.ops.csrkern.similarity.default, arguments)
    arguments = [part.detach() if isinstance(part, Tensor) else part for part in arguments]
    backward = torch.ops.csrkern.similarity_backward.default
    torch.library.opcheck(backward, (torch.randn(12, 9), *arguments))


@pytest.mark.skipif(torch.__version__ < (2, 12), reason="needs PyTorch 2.12")
def test_compiles_whole_with_a_dynamic_batch():
    b = random_codes(30, 4, seed=1)

    def loss(values, indices):
        return csrkern.similarity(SparseCodes(values, indices, H), b).square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (3, 8, 21):
        a = random_codes(n, 5)
        eager, traced = (next(leaves(a, dtype=torch.float32)) for _ in range(2))
        loss(eager.values, a.indices).backward()
        compiled(traced.values, a.indices).backward()
        assert torch.equal(traced.values.grad, eager.values.grad)


def test_thread_count_does_not_matter():
    a, b = leaves(random_codes(300, 8), random_codes(20_000, 8, seed=1), dtype=torch.float32)
    grad = torch.randn(300, 20_000)

    def results():
        out = csrkern.similarity(a, b)
        return (out, *torch.autograd.grad(out, (a.values, b.values), grad))

    assert_threads_do_not_matter(results)


def test_errors_teach():
    a = random_codes(4, 3)
    with pytest.raises(TypeError, match="a: expected SparseCodes, got Tensor"):
        csrkern.similarity(a.values, a)
    with pytest.raises(ValueError, match="b: expected codes over 60 latents, got 50"):
        csrkern.similarity(a, random_codes(4, 3, h=50))
    with pytest.raises(TypeError, match=r"b\.values is torch.float64 but a\.values is"):
        csrkern.similarity(a, a.to(torch.float64))


def test_codes_of_two_devices_reach_no_kernel():
    from csrkern.ops import info_nce
    from csrkern.ops import similarity as operator

    here = torch.ones(3, 2), torch.zeros(3, 2, dtype=torch.int32)
    there = [tensor.to("meta") for tensor in here]
    for call in (
        lambda: operator._similarity(*here, *there, 5),
        lambda: operator._similarity_backward(torch.ones(3, 3), *here, *there, 5),
        lambda: info_nce._info_nce(*here, *there, 5, 0.2, None, None, None),
    ):
        with pytest.raises(ValueError, match="values_b is on meta but values_a is on cpu"):
            call()
