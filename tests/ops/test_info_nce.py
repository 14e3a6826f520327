from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from digests import ISAS, assert_runs_with
from opchecks import assert_threads_do_not_matter
from test_similarity import H, codes_pairs, leaves, random_codes
from torch import Tensor

import csrkern
from csrkern import SparseCodes, reference

VARIANTS = ["self", "pair", "labels", "labels of two sets"]


def arguments(variant: str, a: SparseCodes, b: SparseCodes) -> tuple[SparseCodes, ...]:
    return (a, b) if variant in ("pair", "labels of two sets") else (a,)


def labels_for(variant: str, a: SparseCodes, b: SparseCodes) -> Any:
    """A few classes with one member, some shared, negative and far apart."""
    generator = torch.Generator().manual_seed(5)
    names = torch.tensor([-(2**62), -7, -1, 0, 3, 2**40, 2**62])
    labels_a, labels_b = (
        names[torch.randint(len(names), (len(side),), generator=generator)] for side in (a, b)
    )
    labels_a[:1] = 99
    return {"labels": labels_a, "labels of two sets": (labels_a, labels_b)}.get(variant)


def comparable() -> list[tuple[str, str]]:
    """Codes and variants that the reference can do in float64; the rest has its own tests."""
    return [
        (name, variant)
        for name in codes_pairs()
        for variant in VARIANTS
        if name != "large"
        and not (name.startswith("several windows") and variant in ("self", "labels"))
        and (name, variant) != ("no columns", "labels of two sets")
    ]


def assert_equals_specification(
    sides: tuple[SparseCodes, ...], weight: Tensor | None = None, **options: Any
) -> None:
    """The loss of each row and the gradients, against the reference in float64.

    A score is a float32 sum and a logit is it over the temperature, so errors are measured
    against the largest logit. Gradients cancel, between positives and the rest and in the
    projection that normalizing adds: they are measured against what one pair alone exerts.
    """
    ours = tuple(leaves(*sides, dtype=torch.float32))
    exact = tuple(leaves(*sides, dtype=torch.float64))
    loss = csrkern.info_nce(*ours, reduction="none", **options)
    expected = reference.info_nce(*exact, reduction="none", **options)
    logit, pull = magnitudes(sides, **options)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=3e-7 * (1 + logit))
    weight = torch.rand(len(loss)) if weight is None else weight
    got = torch.autograd.grad(loss, [side.values for side in ours], weight)
    want = torch.autograd.grad(expected, [side.values for side in exact], weight.double())
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=3e-7 * (1 + logit) * pull)


def magnitudes(
    sides: tuple[SparseCodes, ...], temperature: float, normalize: bool = True, **_: Any
) -> tuple[float, float]:
    """The largest logit, and the largest gradient that one pair of rows can cause."""
    norms = torch.cat([side.values.detach().double().norm(dim=1) for side in sides])
    norms = norms[norms > 0] if norms.any() else torch.ones(1)
    if normalize:
        return 1 / temperature, float(1 / norms.min()) / temperature
    return float(norms.max() ** 2) / temperature, float(norms.max()) / temperature


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("name", "variant"), comparable())
def test_equals_specification(name, variant, normalize):
    a, b = codes_pairs()[name]
    if variant == "pair":
        a, b = a[: len(b)], b[: len(a)]
    labels = labels_for(variant, a, b)
    for temperature in (0.01, 0.2, 100.0):
        assert_equals_specification(
            arguments(variant, a, b), temperature=temperature, labels=labels, normalize=normalize
        )


def test_no_columns_have_no_positives():
    a, b = random_codes(5, 4), random_codes(0, 4)
    a.values.requires_grad_()
    labels = torch.zeros(5, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    loss = csrkern.info_nce(a, b, temperature=0.2, labels=labels, reduction="none")
    assert loss.tolist() == [0.0] * 5
    (grad,) = torch.autograd.grad(loss.sum(), a.values)
    assert not grad.any()


@pytest.mark.parametrize("variant", ["self", "labels"])
def test_several_windows_of_one_set(variant):
    """33,000 rows, of which five have a loss: their scores are small enough to hold."""
    n, rows = 33_000, torch.tensor([0, 16_383, 16_384, 20_000, 32_999])
    codes = random_codes(n, 6)
    weight = torch.zeros(n)
    weight[rows] = torch.rand(5) + 0.5
    labels = torch.arange(n) % 1000 if variant == "labels" else None
    ours, exact = next(leaves(codes, dtype=torch.float32)), next(leaves(codes, dtype=torch.float64))
    loss = csrkern.info_nce(ours, temperature=0.05, labels=labels, reduction="none")

    unit = exact.normalize()
    logits = reference.similarity(unit[rows], unit) / 0.05
    itself = rows[:, None] == torch.arange(n)
    if labels is None:
        rest = (logits - logits[itself][:, None]).masked_fill(itself, -math.inf)
        expected = torch.nn.functional.softplus(torch.logsumexp(rest, 1) + math.log(2))
    else:
        positive = (labels[rows, None] == labels) & ~itself
        log_sum = torch.logsumexp(logits.masked_fill(itself, -math.inf), 1)
        expected = log_sum - (logits * positive).sum(1) / positive.sum(1)
    torch.testing.assert_close(loss[rows].double(), expected, rtol=1e-6, atol=1e-5)
    (got,) = torch.autograd.grad(loss, ours.values, weight)
    (want,) = torch.autograd.grad(expected, exact.values, weight[rows].double())
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=2e-5 * float(want.abs().max()))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("variant", VARIANTS)
def test_large_values_stay_finite(variant, seed):
    """At logits of 1e10 rounding decides who wins, but no probability may exceed 1."""
    torch.manual_seed(seed)
    a, b = codes_pairs()["large"]
    options: dict[str, Any] = {"temperature": 0.01, "labels": labels_for(variant, a, b)}
    for size, normalize in ((1e10, True), (1e4, False)):
        sides = tuple(
            SparseCodes(side.values * (size / 1e18), side.indices, H)
            for side in arguments(variant, a, b)
        )
        assert_equals_specification(sides, normalize=normalize, **options)


@pytest.mark.parametrize("variant", VARIANTS)
def test_zero_codes_give_no_nan_under_cosine(variant):
    """The published loss divides by the norm of every row: one dead row made all of it NaN."""
    dense = torch.randn(12, H)
    dense[4:] = -1.0
    codes = csrkern.topk_relu(dense, 5)
    codes.values.requires_grad_()
    labels = labels_for(variant, codes, codes)
    loss = csrkern.info_nce(*arguments(variant, codes, codes), temperature=0.2, labels=labels)
    loss.backward()
    assert loss.isfinite()
    assert codes.values.grad.isfinite().all()
    assert not codes.values.grad[4:].any()


def test_empty_rows_cost_the_logarithm_of_the_batch():
    empty = csrkern.topk_relu(-torch.ones(10, H), 4)
    for sides, cost in (((empty,), math.log(1 + 2 * 9)), ((empty, empty), math.log(10))):
        loss = csrkern.info_nce(*sides, temperature=0.1)
        assert loss.item() == pytest.approx(cost, rel=1e-6)


def test_a_tiny_loss_keeps_its_digits():
    """Where the partner has all the probability, 1 − p is far below float32 resolution."""
    dense = torch.eye(6, H) + 0.01 * torch.rand(6, H)
    ours = next(leaves(csrkern.topk_relu(dense, 5), dtype=torch.float32))
    exact = next(leaves(ours, dtype=torch.float64))
    loss = csrkern.info_nce(ours, temperature=0.03, reduction="none")
    expected = reference.info_nce(exact, temperature=0.03, reduction="none")
    assert float(expected.detach().max()) < 1e-10
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=0.0)
    (got,) = torch.autograd.grad(loss.sum(), ours.values)
    (want,) = torch.autograd.grad(expected.sum(), exact.values)
    torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-3 * float(want.abs().max()))


@pytest.mark.parametrize("labels", [None, torch.tensor([4])])
def test_a_row_alone_costs_nothing(labels):
    codes = random_codes(2, 4)[1]
    codes.values.requires_grad_()
    loss = csrkern.info_nce(codes, temperature=0.1, labels=labels)
    loss.backward()
    assert loss.item() == 0.0
    assert not codes.values.grad.any()


def test_labels_may_be_all_one_or_all_different():
    a, b = random_codes(20, 6), random_codes(25, 6, seed=1)
    one, many = torch.full((20,), -3), torch.arange(20)
    assert_equals_specification((a,), temperature=0.1, labels=one)
    assert_equals_specification((a, b), temperature=0.1, labels=(one, torch.full((25,), -3)))
    ours = next(leaves(a, dtype=torch.float32))
    for reduction in ("mean", "sum", "none"):
        loss = csrkern.info_nce(ours, temperature=0.1, labels=many, reduction=reduction)
        assert not loss.any()
        (grad,) = torch.autograd.grad(loss.sum(), ours.values)
        assert not grad.any()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32], ids=str)
def test_labels_of_any_integer_dtype(dtype):
    a = random_codes(20, 6)
    labels = torch.arange(20) % 3
    expected = csrkern.info_nce(a, temperature=0.1, labels=labels)
    assert torch.equal(csrkern.info_nce(a, temperature=0.1, labels=labels.to(dtype)), expected)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reductions(variant, reduction):
    a, b = random_codes(20, 6), random_codes(20, 6, seed=1)
    options: dict[str, Any] = {
        "temperature": 0.1,
        "labels": labels_for(variant, a, b),
        "reduction": reduction,
    }
    sides = arguments(variant, a, b)
    loss = csrkern.info_nce(*sides, **options)
    exact = reference.info_nce(*(side.to(torch.float64) for side in sides), **options)
    assert loss.shape == ()
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=1e-6)


def test_a_nan_is_seen():
    codes = random_codes(10, 4)
    codes.values[3, 0] = torch.nan
    assert csrkern.info_nce(codes, temperature=0.1).isnan()
    loss = csrkern.info_nce(codes, temperature=0.1, normalize=False, reduction="none")
    assert loss[3].isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_narrow_dtypes_are_computed_in_float32(dtype):
    a, b = random_codes(20, 6).to(dtype), random_codes(20, 6, seed=1).to(dtype)
    wide = csrkern.info_nce(a.to(torch.float32), b.to(torch.float32), temperature=0.1)
    narrow = next(leaves(a, dtype=dtype))
    loss = csrkern.info_nce(narrow, b, temperature=0.1)
    assert torch.equal(loss, wide.to(dtype))
    loss.backward()
    assert narrow.values.grad.dtype == dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(csrkern.info_nce(a, b, temperature=0.1), wide)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradcheck_in_float64(variant):
    a = random_codes(9, 4)
    a = a[a.active.all(1)][:5]
    b = random_codes(12, 3, seed=1)
    b = b[b.active.all(1)][:5]
    labels = torch.tensor([0, 1, 0, 1, 2])
    labels = {"labels": labels, "labels of two sets": (labels, labels.flip(0))}.get(variant)
    sides = tuple(leaves(*arguments(variant, a, b), dtype=torch.float64))

    def loss(*values):
        codes = [SparseCodes(v, side.indices, H) for v, side in zip(values, sides, strict=True)]
        return csrkern.info_nce(*codes, temperature=0.3, labels=labels)

    assert torch.autograd.gradcheck(loss, [side.values for side in sides])


@pytest.mark.parametrize("variant", VARIANTS)
def test_opcheck(variant):
    a, b = leaves(random_codes(12, 5), random_codes(12, 4, seed=1), dtype=torch.float32)
    labels = labels_for(variant, a, b)
    classes: tuple[Tensor | None, ...] = (None, None, None)
    if labels is not None:
        pair = labels if isinstance(labels, tuple) else (labels, labels)
        match = torch.ops.csrkern.match_labels.default
        torch.library.opcheck(match, (*pair, variant == "labels"))
        classes = match(*pair, variant == "labels")
    second = (b.values, b.indices) if len(arguments(variant, a, b)) == 2 else (None, None)
    inputs = (a.values, a.indices, *second, H, 0.2, *classes)
    torch.library.opcheck(torch.ops.csrkern.info_nce.default, inputs)
    inputs = tuple(part.detach() if isinstance(part, Tensor) else part for part in inputs)
    _, peak, log_total = torch.ops.csrkern.info_nce(*inputs)
    backward = torch.ops.csrkern.info_nce_backward.default
    torch.library.opcheck(backward, (torch.rand(12), peak, log_total, *inputs))


@pytest.mark.parametrize("variant", VARIANTS)
def test_compiles_whole_with_a_dynamic_batch(variant):
    def loss(sides, labels):
        return csrkern.info_nce(*sides, temperature=0.2, labels=labels)

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (4, 9, 21):
        a, b = random_codes(n, 5), random_codes(n, 5, seed=1)
        labels = labels_for(variant, a, b)
        eager, traced = (
            tuple(leaves(*arguments(variant, a, b), dtype=torch.float32)) for _ in range(2)
        )
        loss(eager, labels).backward()
        compiled(traced, labels).backward()
        for mine, theirs in zip(traced, eager, strict=True):
            assert torch.equal(mine.values.grad, theirs.values.grad)


@pytest.mark.parametrize("variant", VARIANTS)
def test_thread_count_does_not_matter(variant):
    a, b = leaves(random_codes(700, 8), random_codes(700, 8, seed=1), dtype=torch.float32)
    labels = labels_for(variant, a, b)
    sides = arguments(variant, a, b)

    def results():
        loss = csrkern.info_nce(
            *sides, temperature=0.1, labels=labels, normalize=False, reduction="none"
        )
        grads = torch.autograd.grad(loss, [side.values for side in sides], torch.ones(700))
        return (loss, *grads)

    assert_threads_do_not_matter(results)


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa):
    assert_runs_with(
        isa,
        "import test_similarity\n"
        "from test_info_nce import *\n"
        "torch.manual_seed(0)\n"
        "for name in ('random', 'one latent in every row', 'k = h', 'ties', 'all empty'):\n"
        "    a, b = codes_pairs()[name]\n"
        "    test_similarity.assert_equals_specification(a, b)\n"
        "    for variant in VARIANTS:\n"
        "        n = min(len(a), len(b)) if variant == 'pair' else 100\n"
        "        sides = arguments(variant, a[:n], b[:n])\n"
        "        labels = labels_for(variant, a[:n], b[:n])\n"
        "        assert_equals_specification(sides, temperature=0.05, labels=labels)\n"
        "test_several_windows_of_one_set('self')\n"
        "test_large_values_stay_finite('labels', 0)\n"
        "test_a_tiny_loss_keeps_its_digits()\n",
    )


def test_memory_does_not_grow_with_pairs():
    """24,000 rows: one [n, n] matrix in float32 would take 2.3 GB."""
    script = (
        "import resource, torch, csrkern\n"
        "codes = csrkern.SparseCodes(torch.rand(24_000, 8).sort(1, descending=True)[0], "
        "torch.randint(0, 4096, (24_000, 8), dtype=torch.int32), 4096)\n"
        "codes.values.requires_grad_()\n"
        "csrkern.info_nce(codes[:64], temperature=0.1).backward()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "csrkern.info_nce(codes, temperature=0.1).backward()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 100_000  # KiB


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temperature": 0.0}, ValueError, "temperature: expected a positive number, got 0.0"),
        ({"temperature": "x"}, TypeError, "temperature: expected a number, got str"),
        ({"reduction": "median"}, ValueError, "reduction: expected one of 'mean', 'sum', 'none'"),
        ({"labels": torch.ones(4)}, TypeError, "labels_a: expected an integer tensor"),
        ({"labels": torch.ones(5).int()}, ValueError, r"labels_a: expected shape \[4\], got \[5\]"),
        ({"labels": (torch.ones(4).int(),) * 2}, ValueError, "labels: a pair"),
        ({"b": random_codes(5, 3)}, ValueError, "b: expected 4 rows"),
        ({"b": random_codes(4, 3, h=50)}, ValueError, "b: expected codes over 60 latents"),
    ],
)
def test_errors_teach(options, error, message):
    with pytest.raises(error, match=message):
        csrkern.info_nce(random_codes(4, 3), **{"temperature": 0.1, **options})
