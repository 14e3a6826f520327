"""Codes of tokens pooled into one code a text: SparseCodes.max_pool."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from adversarial import adversarial_rows
from hypothesis import given
from hypothesis import strategies as st
from sums import DTYPES
from test_codes import random_codes

import csrkern
from csrkern import SparseCodes


def dense_pool(codes: SparseCodes, lengths: list[int]) -> torch.Tensor:
    """The largest value of each latent in each text, [n, dim]; zeros for a text of no token."""
    texts = codes.to_dense().split(lengths)
    empty = codes.values.new_zeros(codes.dim)
    return torch.stack([text.amax(0) if len(text) else empty for text in texts])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k_out", [None, 1, 12])
def test_a_pooled_code_is_the_maximum_of_dense_codes(dtype, k_out):
    for h, k in [(12, 4), (300, 40)]:
        for name, pre in adversarial_rows(h, k).items():
            codes = csrkern.topk_relu(pre.to(dtype), k)
            n = len(codes)
            lengths = [0, n // 3, 1, 0, n - n // 3 - 1] if n > 2 else [0, n]
            pooled = codes.max_pool(lengths, k_out).validate()
            wanted = csrkern.topk_relu(dense_pool(codes, lengths), k_out or k)
            assert pooled.equal(wanted), f"{name}, h={h}, k={k}"


@given(
    st.lists(st.integers(0, 5), max_size=6),
    st.integers(1, 8),
    st.integers(1, 10),
    st.integers(0, 2**31),
)
def test_pooling_with_many_ties(lengths, k, k_out, seed):
    generator = torch.Generator().manual_seed(seed)
    pre = torch.randint(-1, 3, (sum(lengths), 10), generator=generator).float()
    codes = csrkern.topk_relu(pre, k)
    pooled = codes.max_pool(np.array(lengths, np.int64), k_out).validate()
    assert len(pooled) == len(lengths)
    if lengths:
        assert pooled.equal(csrkern.topk_relu(dense_pool(codes, lengths), k_out))


def test_gradients_flow_to_the_values_that_were_kept():
    pre = torch.randn(20, 30, dtype=torch.float64)
    codes = csrkern.topk_relu(pre, 5)
    lengths, weight = [7, 0, 12, 1], torch.randn(4, 30, dtype=torch.float64)
    values = codes.values.requires_grad_()
    (codes.max_pool(lengths, 8).to_dense() * weight).sum().backward()
    got, values.grad = values.grad, None
    (csrkern.topk_relu(dense_pool(codes, lengths), 8).to_dense() * weight).sum().backward()
    assert torch.equal(got, values.grad)
    torch.autograd.gradcheck(
        lambda v: SparseCodes(v, codes.indices, 30).max_pool(lengths, 8).values, values
    )


def test_of_equal_values_the_first_token_has_the_gradient():
    values = torch.tensor([[2.0], [3.0], [3.0]], requires_grad=True)
    codes = SparseCodes(values, torch.tensor([[4], [4], [4]], dtype=torch.int32), 6)
    codes.max_pool([3]).values.sum().backward()
    assert values.grad.flatten().tolist() == [0, 1, 0]


def test_pooled_codes_are_of_the_same_model():
    codes = random_codes(10)
    codes.fingerprint = "0123456789abcdef"
    assert codes.max_pool(torch.tensor([4, 6])).fingerprint == codes.fingerprint


@pytest.mark.parametrize(
    ("lengths", "k", "error", "message"),
    [
        ([4, 5], None, ValueError, r"lengths: expected .* add up to 10, .* a sum of 9"),
        ([11, -1], None, ValueError, "lengths: expected .* none negative"),
        ([[10]], None, ValueError, r"lengths: expected \[n\] .* got shape \[1, 1\]"),
        ([4.0, 6.0], None, TypeError, "lengths: expected integers, got float64"),
        ([10], 0, ValueError, "k: expected 1 <= k <= dim"),
        ([10], 1.5, TypeError, "k: expected an int"),
    ],
)
def test_what_cannot_be_pooled_is_refused(lengths, k, error, message):
    with pytest.raises(error, match=message):
        random_codes(10).max_pool(lengths, k)
