"""Codes of values of either sign as codes over twice as many latents."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import csrkern
from csrkern import InvertedIndex, PackedCodes, SparseCodes

N, H, K, D = 12, 20, 4, 6


def signed(seed: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """The K largest magnitudes of each row with their signs, in any order; one row is empty."""
    pre = torch.randn(N, H, generator=torch.Generator().manual_seed(seed)).to(dtype)
    indices = pre.abs().topk(K, sorted=False).indices
    values = pre.gather(1, indices)
    values[3] = 0
    return values, indices


def dense(values: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    return values.new_zeros(len(values), H).scatter(1, indices, values)


def codes_of(seed: int, dtype: torch.dtype = torch.float32) -> SparseCodes:
    return SparseCodes.from_signed(*signed(seed, dtype), H)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_there_and_back(dtype):
    codes, wanted = codes_of(0, dtype).validate(), dense(*signed(0, dtype))
    assert codes.dim == 2 * H
    assert torch.equal(codes.to_dense(), torch.cat([wanted.relu(), (-wanted).relu()], 1))
    values, indices = codes.to_signed()
    assert torch.equal(dense(values, indices.long()), wanted)
    back = codes.negate().validate()
    assert torch.equal(
        dense(*(t.long() if t.dtype == torch.int32 else t for t in back.to_signed())), -wanted
    )
    assert back.negate().equal(codes)


def test_selection_by_magnitude_is_that_of_twice_as_many_latents():
    pre = torch.randn(N, H, generator=torch.Generator().manual_seed(1))
    indices = pre.abs().topk(K).indices
    codes = SparseCodes.from_signed(pre.gather(1, indices), indices, H)
    assert codes.equal(csrkern.topk_relu(torch.cat([pre, -pre], 1), K))


def test_reconstructions_are_the_same():
    weight = torch.randn(H, D, generator=torch.Generator().manual_seed(2))
    codes = codes_of(0)
    found = csrkern.decode(codes, torch.cat([weight, -weight]))
    torch.testing.assert_close(found, dense(*signed(0)) @ weight)


def test_inner_products_are_those_of_two_products():
    a, b = codes_of(0), codes_of(5)
    found = csrkern.similarity(a, b) - csrkern.similarity(a, b.negate())
    torch.testing.assert_close(found, dense(*signed(0)) @ dense(*signed(5)).T)


def test_an_index_scores_latents_of_one_sign():
    a, b = codes_of(0), codes_of(5)
    x, y = dense(*signed(0)), dense(*signed(5))
    wanted = x.relu() @ y.relu().T + (-x).relu() @ (-y).relu().T
    index = InvertedIndex.build(b, metric="ip", dtype="float32")
    scores, ids = index.search(a, N)
    for row in range(N):
        hits = ids[row] >= 0
        np.testing.assert_allclose(scores[row][hits], wanted[row][ids[row][hits]], rtol=1e-5)
        assert hits.sum() == int((wanted[row] > 0).sum())
    packed = PackedCodes.pack(b).unpack()
    assert torch.equal(packed.to_dense() > 0, b.to_dense() > 0)


def test_gradients_have_their_signs():
    values, indices = signed(0)
    values = values.clone().requires_grad_()
    codes = SparseCodes.from_signed(values, indices, H)
    codes.to_signed()[0].square().sum().backward()
    torch.testing.assert_close(values.grad, 2 * values.detach())


def test_what_is_signed_is_refused_with_the_way_out():
    values, indices = signed(0)
    order = values.argsort(1, descending=True)
    codes = SparseCodes(values.gather(1, order), indices.gather(1, order).int(), H)
    calls = [
        lambda: InvertedIndex.build(codes),
        lambda: PackedCodes.pack(codes),
        lambda: SparseCodes.from_dense(dense(values, indices)),
        codes.validate,
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"negative.*SparseCodes\.from_signed splits"):
            call()


@pytest.mark.parametrize(
    ("values", "indices", "message"),
    [
        ([[1.0, -2.0]], [[0, H]], f"expected latents in 0..{H - 1}, got {H} in row 0"),
        ([[1.0, -2.0]], [[0, -1]], "got -1 in row 0"),
        ([[1.0, -2.0]], [[3, 3]], "each latent at most once"),
        ([[1.0, float("nan")]], [[0, 1]], "expected finite entries"),
        ([[1.0, -float("inf")]], [[0, 1]], "expected finite entries"),
    ],
)
def test_what_does_not_fit(values, indices, message):
    with pytest.raises(ValueError, match=message):
        SparseCodes.from_signed(torch.tensor(values), torch.tensor(indices), H)
    with pytest.raises(ValueError, match="even number of latents, got 3"):
        SparseCodes(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int32), 3).negate()


@pytest.mark.parametrize(
    ("dtype", "latent", "dim"), [(torch.uint8, 200, 300), (torch.int16, 20_000, 20_001)]
)
def test_small_integers_do_not_overflow(dtype, latent, dim):
    values = torch.tensor([[-1.0, 2.0]])
    codes = SparseCodes.from_signed(values, torch.tensor([[latent, 3]], dtype=dtype), dim)
    signed_values, latents = codes.to_signed()
    assert signed_values.tolist() == [[2, -1]]
    assert latents.tolist() == [[3, latent]]
    for wrong in (torch.tensor([[1.7, 0.0]]), torch.tensor([[True, False]])):
        with pytest.raises(TypeError, match="indices: expected integers"):
            SparseCodes.from_signed(values, wrong, dim)
