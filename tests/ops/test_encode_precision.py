"""encode in float32: exact sums rounded once, whatever finds the candidates for them."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from adversarial import assert_selects
from sums import small_integers
from torch import Tensor

import csrkern
from csrkern import reference
from csrkern.ops.encode import verified_rows


def twelve_bits(*shape: int, seed: int = 0) -> Tensor:
    """Numbers whose sums of products are exact in float64 and need rounding in float32."""
    return small_integers(*shape, limit=4096, seed=seed) / 4096


@pytest.mark.parametrize("precision", ["exact", "verified"])
@pytest.mark.parametrize("n", [1, 3, 40, 700])
def test_is_exact_arithmetic_rounded_once(n, precision):
    for d, h, k in [(1, 40, 7), (30, 900, 16), (129, 3000, 64), (65, 64, 64)]:
        x, weight, bias = twelve_bits(n, d), twelve_bits(h, d, seed=1), twelve_bits(h, seed=2)
        exact = (x.double() @ weight.double().T + bias.double()).float()
        codes = csrkern.encode(x, weight, bias, k=k, precision=precision)
        assert_selects(codes, exact, k)
        assert not torch.equal(exact, torch.nn.functional.linear(x, weight, bias)) or d == 1


@pytest.mark.parametrize("precision", ["exact", "verified"])
@pytest.mark.parametrize("matmul", ["highest", "high", "medium"])
def test_depends_on_nothing_but_the_row(matmul, precision):
    x, weight, pre_bias = torch.randn(300, 50), torch.randn(2000, 50), torch.randn(50)

    def encode(rows, **options):
        return csrkern.encode(rows, weight, k=24, pre_bias=pre_bias, **options)

    expected = encode(x)
    torch.set_float32_matmul_precision(matmul)
    try:
        assert encode(x, precision=precision).equal(expected)
        for rows in (slice(7, 8), slice(40, 45), slice(None, None, 7)):
            assert encode(x[rows], precision=precision).equal(expected[rows])
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
def test_verified_equals_exact_at_any_scale(scale):
    x, weight = torch.randn(60, 40) * scale, torch.randn(1500, 40)
    exact = csrkern.encode(x, weight, k=16, precision="exact")
    assert csrkern.encode(x, weight, k=16, precision="verified").equal(exact)


def test_verified_counts_its_rows():
    verified_rows.reset()
    x, weight = torch.randn(50, 30), torch.randn(4000, 30)
    csrkern.encode(x, weight, k=8, precision="verified")
    assert verified_rows.encoded == 50
    assert verified_rows.fallback < 50
    same = torch.ones(4000, 30)  # every latent is a candidate
    codes = csrkern.encode(x.abs(), same, k=8, precision="verified")
    assert codes.equal(csrkern.encode(x.abs(), same, k=8, precision="exact"))
    assert verified_rows.encoded == 100
    assert verified_rows.fallback >= 50
    verified_rows.reset()
    assert (verified_rows.encoded, verified_rows.fallback) == (0, 0)


def test_auto_is_exact():
    x, weight = torch.randn(300, 64), torch.randn(2000, 64)
    assert csrkern.encode(x, weight, k=16).equal(csrkern.encode(x, weight, k=16, precision="exact"))


@pytest.mark.parametrize("precision", ["exact", "verified"])
def test_a_row_has_one_code_in_every_batch(precision):
    x, weight, bias = torch.randn(1500, 96), torch.randn(900, 96), torch.randn(900)
    whole = csrkern.encode(x, weight, bias, k=16, precision=precision)
    for rows in (slice(3, 4), slice(1, 6), slice(700, 1100)):
        part = csrkern.encode(x[rows], weight, bias, k=16, precision=precision)
        assert part.equal(whole[rows])


@pytest.mark.parametrize("precision", ["exact", "verified"])
def test_near_ties_are_put_in_their_true_order(precision):
    weight = torch.randn(1, 200) + 3e-8 * torch.randn(600, 200)  # pre-activations within an ulp
    x = torch.randn(40, 200)
    exact = (x.double() @ weight.double().T).float()
    codes = csrkern.encode(x, weight, k=24, precision=precision)
    assert codes.equal(reference.topk_relu(exact, 24))


def test_real_embeddings_keep_their_codes_and_fall_back_rarely():
    stored = np.load(files("csrkern") / "data" / "wordnet45.npz")
    x = F.normalize(torch.from_numpy(stored["train"][:2000]).float())
    weight = x[torch.randperm(2000)[:1536]]  # latents as alike as the embeddings are
    exact = (x.double() @ weight.double().T).float()
    verified_rows.reset()
    for precision in ("exact", "verified"):
        codes = csrkern.encode(x, weight, k=32, precision=precision)
        assert codes.equal(reference.topk_relu(exact, 32))
    assert verified_rows.fallback <= 20  # 1%


@pytest.mark.parametrize("precision", ["exact", "verified"])
def test_flush_denormal_does_not_change_the_codes(precision):
    x, weight = torch.full((512, 1), 1e-41), torch.full((3000, 1), 1e20)
    before = csrkern.encode(x, weight, k=10, precision=precision)  # also starts the threads
    torch.set_flush_denormal(True)
    try:
        after = csrkern.encode(x, weight, k=10, precision=precision)
    finally:
        torch.set_flush_denormal(False)
    assert after.equal(before)
    assert bool((before.values > 0).all())


def test_a_product_in_lower_precision_does_not_change_the_codes():
    x, weight = torch.randn(64, 256), torch.randn(2048, 256)
    expected = csrkern.encode(x, weight, k=32, precision="exact")
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        assert csrkern.encode(x, weight, k=32, precision="exact").equal(expected)
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before
