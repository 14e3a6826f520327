"""Codes of a length of their own: above, threshold and trim."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from adversarial import adversarial_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from sums import DTYPES
from test_codes import random_codes

import csrkern
from csrkern import InvertedIndex, PackedCodes, SparseCodes, reference


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("each", [False, True], ids=["number", "of latents"])
def test_above_is_what_dense_codes_say(dtype, each):
    for h, k in [(1, 1), (30, 5), (300, 40)]:
        for name, pre in adversarial_rows(h, k).items():
            codes = reference.topk_relu(pre.to(dtype), k)
            threshold = torch.linspace(0, 1.5, h, dtype=dtype) if each else 0.5
            dense = codes.to_dense()
            kept = codes.above(threshold).validate()
            wanted = torch.where(dense <= threshold, 0, dense)
            case = f"{name}, h={h}, k={k}"
            assert torch.equal(kept.to_dense().nan_to_num(7), wanted.nan_to_num(7)), case
            assert kept.k == codes.k
            trimmed = kept.trim().validate()
            assert trimmed.k == max(1, int((wanted != 0).sum(1).max())), case
            assert kept.truncate(trimmed.k).equal(trimmed), case


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**31), st.floats(0.01, 9), st.booleans()
)
def test_threshold_keeps_at_most_the_mean_and_no_less_than_ties_take(n, k, seed, mean, ties):
    generator = torch.Generator().manual_seed(seed)
    pre = torch.randn(n, 8, generator=generator)
    codes = csrkern.topk_relu(pre.mul(2).round() if ties else pre, k)
    threshold = codes.threshold(mean)
    allowed = int(mean * n)
    active = codes.values[codes.active]
    assert int((active > threshold).sum()) <= allowed
    if threshold > 0:  # a lower one would keep too many
        assert int((active >= threshold).sum()) > allowed
    assert codes.above(threshold).validate().active.sum() == (active > threshold).sum()


def test_a_threshold_does_not_depend_on_the_order_of_rows():
    codes = random_codes(50)
    turned = codes[torch.arange(49, -1, -1)]
    assert codes.threshold(2.5) == turned.threshold(2.5)
    kept = turned.above(turned.threshold(2.5))
    assert kept[torch.arange(49, -1, -1)].equal(codes.above(codes.threshold(2.5)))


@pytest.mark.parametrize("each", [False, True])
def test_gradients_reach_what_is_kept(each):
    codes = random_codes(6)
    values = codes.values.clone().requires_grad_()
    threshold = torch.full((codes.dim,), 0.5) if each else 0.5
    kept = SparseCodes(values, codes.indices, codes.dim).above(threshold)
    kept.values.square().sum().backward()
    assert torch.equal(values.grad, torch.where(values > 0.5, 2 * values, 0))


def test_operators_index_and_pack_take_codes_of_any_length():
    codes = csrkern.topk_relu(torch.randn(40, 30, generator=torch.Generator().manual_seed(0)), 5)
    short = codes.above(codes.threshold(2)).trim()
    dense, weight = short.to_dense(), torch.randn(short.dim, 7)
    assert 1 <= float(short.active.sum()) <= 80
    assert not bool(short.active.all())
    torch.testing.assert_close(csrkern.decode(short, weight), dense @ weight)
    torch.testing.assert_close(csrkern.similarity(short, codes), dense @ codes.to_dense().T)
    packed = PackedCodes.pack(short).unpack()
    assert torch.equal(packed.to_dense() > 0, dense > 0)
    index = InvertedIndex.build(short, metric="ip", dtype="float32")
    assert index.stats()["postings"] == int(short.active.sum())
    scores, _ = index.search(codes, 1)
    best = (codes.to_dense() @ dense.T).max(1).values.numpy()
    np.testing.assert_allclose(scores[:, 0], np.where(best > 0, best, -np.inf), rtol=1e-5)


@pytest.mark.parametrize(
    "wrong", [-0.5, torch.zeros(4), torch.full((30,), -1.0), np.zeros((1, 30))]
)
def test_thresholds_that_do_not_fit(wrong):
    with pytest.raises(ValueError, match="threshold: expected a number"):
        random_codes(3).above(wrong)


@pytest.mark.parametrize("mean", [0, -1, float("nan")])
def test_means_that_do_not_fit(mean):
    with pytest.raises(ValueError, match="mean: expected"):
        random_codes(3).threshold(mean)


def test_no_rows():
    none = random_codes(0)
    assert none.threshold(3) == 0
    assert none.above(0.5).trim().shape == (0, 30)


def test_means_that_rounding_would_miss():
    values = torch.linspace(1, 2, 100).reshape(100, 1)
    codes = SparseCodes(values, torch.zeros(100, 1, dtype=torch.int32), 1)
    assert int(codes.above(codes.threshold(0.29)).active.sum()) == 29
    assert codes.threshold(1e308) == 0


def test_a_threshold_is_not_rounded_to_the_values():
    codes = SparseCodes(
        torch.tensor([[0.10009765625]], dtype=torch.bfloat16), torch.tensor([[3]]).int(), 30
    )
    assert bool(codes.above(0.1).active.all())


def test_thresholds_by_latent_may_be_any_real_array():
    codes = random_codes(5)
    each = np.linspace(0, 1, 60, dtype=np.float32)[::-2]
    torch.testing.assert_close(
        codes.above(each).values, codes.above(torch.from_numpy(each.copy())).values
    )
    with pytest.raises(TypeError, match="expected real numbers"):
        codes.above(torch.zeros(30, dtype=torch.complex64))
