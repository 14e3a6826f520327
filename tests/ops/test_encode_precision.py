"""encode in float32: exact sums rounded once, whatever finds the candidates for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from adversarial import assert_selects
from proposals import EXACT_WAYS, encode_by
from sums import small_integers
from torch import Tensor

import csrkern
from csrkern import reference
from csrkern.ops.encode import verified_rows
from csrtrain.demo.data import data_folder


def twelve_bits(*shape: int, seed: int = 0) -> Tensor:
    """Numbers whose sums of products are exact in float64 and need rounding in float32."""
    return small_integers(*shape, limit=4096, seed=seed) / 4096


@pytest.mark.parametrize("way", EXACT_WAYS)
@pytest.mark.parametrize("n", [1, 3, 40, 700])
def test_is_exact_arithmetic_rounded_once(n, way):
    for d, h, k in [(1, 40, 7), (30, 900, 16), (129, 3000, 64), (65, 64, 64)]:
        x, weight, bias = twelve_bits(n, d), twelve_bits(h, d, seed=1), twelve_bits(h, seed=2)
        exact = (x.double() @ weight.double().T + bias.double()).float()
        codes = encode_by(way, x, weight, bias, k=k)
        assert_selects(codes, exact, k)
        assert not torch.equal(exact, torch.nn.functional.linear(x, weight, bias)) or d == 1


@pytest.mark.parametrize("way", EXACT_WAYS)
@pytest.mark.parametrize("matmul", ["highest", "high", "medium"])
def test_depends_on_nothing_but_the_row(matmul, way):
    x, weight, pre_bias = torch.randn(300, 50), torch.randn(2000, 50), torch.randn(50)

    def encode(rows):
        return encode_by(way, rows, weight, k=24, pre_bias=pre_bias)

    expected = encode(x)
    torch.set_float32_matmul_precision(matmul)
    try:
        assert encode(x).equal(expected)
        for rows in (slice(7, 8), slice(40, 45), slice(None, None, 7)):
            assert encode(x[rows]).equal(expected[rows])
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
def test_verified_equals_exact_at_any_scale(scale):
    x, weight = torch.randn(60, 40) * scale, torch.randn(1500, 40)
    exact = encode_by("float32", x, weight, k=16)
    assert encode_by("bfloat16", x, weight, k=16).equal(exact)


def test_verified_counts_its_rows():
    verified_rows.reset()
    x, weight = torch.randn(50, 30), torch.randn(4000, 30)
    encode_by("bfloat16", x, weight, k=8)
    assert verified_rows.encoded == 50
    assert verified_rows.fallback < 50
    same = torch.ones(4000, 30)  # every latent is a candidate
    codes = encode_by("bfloat16", x.abs(), same, k=8)
    assert codes.equal(encode_by("float32", x.abs(), same, k=8))
    assert verified_rows.encoded == 100
    assert verified_rows.fallback >= 50
    verified_rows.reset()
    assert (verified_rows.encoded, verified_rows.fallback) == (0, 0)


@pytest.mark.parametrize("way", EXACT_WAYS)
def test_exact_is_the_default(way):
    x, weight = torch.randn(300, 64), torch.randn(2000, 64)
    assert csrkern.encode(x, weight, k=16).equal(encode_by(way, x, weight, k=16))


@pytest.mark.parametrize("way", EXACT_WAYS)
def test_a_row_has_one_code_in_every_batch(way):
    x, weight, bias = torch.randn(1500, 96), torch.randn(900, 96), torch.randn(900)
    whole = encode_by(way, x, weight, bias, k=16)
    for rows in (slice(3, 4), slice(1, 6), slice(700, 1100)):
        part = encode_by(way, x[rows], weight, bias, k=16)
        assert part.equal(whole[rows])


@pytest.mark.parametrize("way", EXACT_WAYS)
def test_near_ties_are_put_in_their_true_order(way):
    weight = torch.randn(1, 200) + 3e-8 * torch.randn(600, 200)  # pre-activations within an ulp
    x = torch.randn(40, 200)
    exact = (x.double() @ weight.double().T).float()
    codes = encode_by(way, x, weight, k=24)
    assert codes.equal(reference.topk_relu(exact, 24))


def test_real_embeddings_keep_their_codes_and_fall_back_rarely():
    stored = np.load(data_folder() / "wordnet45.npz")
    x = F.normalize(torch.from_numpy(stored["train"][:2000]).float())
    weight = x[torch.randperm(2000)[:1536]]  # latents as alike as the embeddings are
    exact = (x.double() @ weight.double().T).float()
    verified_rows.reset()
    for way in EXACT_WAYS:
        codes = encode_by(way, x, weight, k=32)
        assert codes.equal(reference.topk_relu(exact, 32))
    assert verified_rows.fallback <= 20  # 1%


@pytest.mark.parametrize("way", EXACT_WAYS)
def test_flush_denormal_does_not_change_the_codes(way):
    x, weight = torch.full((512, 1), 1e-41), torch.full((3000, 1), 1e20)
    before = encode_by(way, x, weight, k=10)  # also starts the threads
    torch.set_flush_denormal(True)
    try:
        after = encode_by(way, x, weight, k=10)
    finally:
        torch.set_flush_denormal(False)
    assert after.equal(before)
    assert bool((before.values > 0).all())


def test_a_product_in_lower_precision_does_not_change_the_codes():
    x, weight = torch.randn(64, 256), torch.randn(2048, 256)
    expected = encode_by("float32", x, weight, k=32)
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        assert encode_by("float32", x, weight, k=32).equal(expected)
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before
