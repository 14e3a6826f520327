"""Subspaces and whitening fold into the model; refitted values reconstruct best."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from csrkern.nn import SparseAutoencoder
from csrtrain import TrainConfig, train
from csrtrain.evaluation.least_squares import encode_omp, refit
from csrtrain.pca import PCA
from csrtrain.training.subspace import ROW_NORM, Subspace

D = 12


def rows(n: int = 300) -> torch.Tensor:
    """Rows off the origin whose directions differ in variance."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(D, D, generator=generator) * torch.linspace(2, 0.1, D)
    return 3 + torch.randn(n, D, generator=generator) @ mixing


def model(p: int, tied: bool = True, seed: int = 0) -> SparseAutoencoder:
    torch.manual_seed(seed)
    made = SparseAutoencoder(p, 40, 4, tied=tied)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    made.stats_last_nonzero[3] = 99
    return made


@given(p=st.integers(1, D), whitening=st.sampled_from([-0.5, 0.0, 0.5, 1.0]), tied=st.booleans())
@settings(max_examples=20)
def test_the_folded_model_does_what_the_projected_one_does(p, whitening, tied):
    x = rows()
    subspace = Subspace(PCA(x), p, whitening)
    small = model(p, tied)
    folded = subspace.fold(small)
    assert folded.input_dim == D
    assert folded.tied == (tied and (whitening == 0 or p == 1))
    assert torch.equal(folded.stats_last_nonzero, small.stats_last_nonzero)
    inside, outside = small.encode(subspace.project(x)), folded.encode(x)
    torch.testing.assert_close(
        outside.to_dense() * subspace.scale, inside.to_dense(), rtol=1e-3, atol=1e-3
    )
    rebuilt = subspace.project(folded.decode(outside))
    torch.testing.assert_close(rebuilt, small.decode(inside), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("whitening", [-0.5, 0.0, 0.5, 1.0])
def test_projected_rows_are_centred_at_the_norm_and_as_white_as_asked(whitening):
    x = rows(2000)
    pca = PCA(x)
    z = Subspace(pca, 8, whitening).project(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(8), atol=1e-3, rtol=0)
    assert float(z.square().sum(1).mean().sqrt()) == pytest.approx(ROW_NORM, rel=1e-3)
    variances = z.var(0)
    expected = (pca.variances[0] / pca.variances[7]) ** (1 - whitening)
    assert float(variances[0] / variances[7]) == pytest.approx(float(expected), rel=2e-2)


def test_a_direction_without_variance_does_not_break_whitening():
    x = rows()
    x[:, 0] = 1.0
    z = Subspace(PCA(x), D, 1.0).project(x)
    assert bool(torch.isfinite(z).all())


@pytest.mark.parametrize(
    "changes",
    [
        {"input_subspace": 4},
        {"whitening": 0.5},
        {"unit_scale": True},
        {"input_subspace": 6, "whitening": 0.5, "contrast": "label"},
    ],
)
def test_training_in_a_subspace_gives_a_model_for_the_embeddings(changes):
    x, y = rows(), np.arange(300) % 4
    config = TrainConfig(hidden_dim=48, k=4, batch_size=64, steps=60, lr=5e-3)
    config = dataclasses.replace(config, **changes)
    trained = train(x, y, config, progress=False)
    assert trained.input_dim == D
    x_hat, _ = trained(x)
    unexplained = float((x - x_hat.detach()).square().sum() / (x - x.mean(0)).square().sum())
    assert unexplained < 0.7


def test_settings_that_cannot_be_folded_are_refused():
    with pytest.raises(ValueError, match="standardize: expected False"):
        TrainConfig(standardize=True, unit_scale=False, input_subspace=8)
    with pytest.raises(ValueError, match="input_subspace: expected at most the 12 dimensions"):
        TrainConfig(k=4, input_subspace=13).resolve(100, 12)
    with pytest.raises(ValueError, match="whitening"):
        TrainConfig(whitening=1.5)
    with pytest.raises(TypeError, match="whitening: expected a number"):
        TrainConfig(whitening="auto")
    with pytest.raises(TypeError, match="input_subspace: expected an int"):
        TrainConfig(input_subspace="auto")


@pytest.mark.parametrize("tied", [True, False])
def test_refitted_values_reconstruct_better_and_solve_the_least_squares(tied):
    x, made = rows(), model(D, tied)
    codes = made.encode(x).detach()
    fitted = refit(made, x, codes).validate()
    assert set(codes.indices[7].tolist()) >= set(fitted.indices[7][fitted.active[7]].tolist())

    def error(c):
        return (x - made.decode(c).detach()).square().sum(1)

    assert bool((error(fitted) <= error(codes) * 1.001).all())
    # At the solution the rest is orthogonal to every latent that is left.
    rest = x - made.decode(fitted).detach()
    atoms = made.decoder.linear.weight.detach()[fitted.indices.long()]
    slopes = (atoms @ rest[:, :, None])[:, :, 0][fitted.active]
    assert float(slopes.abs().max()) < 0.02 * float(x.norm(dim=1).mean())


def test_refitting_rows_without_active_latents():
    made = model(D)
    codes = made.encode(rows(3)).detach()
    codes.values.zero_()
    codes.indices.zero_()
    fitted = refit(made, rows(3), codes)
    assert not bool(fitted.active.any())


def test_at_unit_scale_embeddings_of_any_scale_train_alike():
    config = TrainConfig(hidden_dim=48, k=4, batch_size=64, steps=30, unit_scale=True)
    x = rows()
    small, large = (train(scale * x, config=config, progress=False) for scale in (1.0, 64.0))
    codes = [model.encode(scale * x) for model, scale in ((small, 1.0), (large, 64.0))]
    same = (codes[0].indices == codes[1].indices).float().mean()
    assert float(same) > 0.98
    assert small.tied


def unexplained(made, x, codes):
    return float((x - made.decode(codes)).square().sum().detach())


@pytest.mark.parametrize("rounds", [1, 3, 16])
def test_omp_reconstructs_better_than_the_encoder(rounds):
    x, made = rows(300), model(D, seed=2)
    codes = made.encode(x, 6)
    codes_omp = encode_omp(made, x, 6, rounds=rounds).validate()
    assert codes_omp.k == 6
    assert unexplained(made, x, codes_omp) < unexplained(made, x, refit(made, x, codes))
    # Values are least squares of the latents found: fitted again, they stay.
    torch.testing.assert_close(
        refit(made, x, codes_omp).to_dense(), codes_omp.to_dense(), rtol=1e-3, atol=1e-3
    )
    fewer = encode_omp(made, x, 3, rounds=rounds)
    assert unexplained(made, x, fewer) > unexplained(made, x, codes_omp)


def test_omp_one_latent_at_a_time_takes_what_gains_most():
    x, made = rows(40), model(D, seed=2)
    codes = encode_omp(made, x, 1)
    atoms = made.decoder.linear.weight.detach()
    target = x - made.pre_bias.detach()
    value = (target @ atoms.T).clamp(min=0) / atoms.square().sum(1)
    left = (target[:, None] - value[:, :, None] * atoms).square().sum(2)
    assert torch.equal(codes.indices[:, 0].long(), left.argmin(1))


def test_fits_in_the_adapters_space_are_those_of_the_projected_model():
    x = rows()
    subspace = Subspace(PCA(x), D - 2, 0.5)
    small = model(D - 2)
    folded = subspace.fold(small)
    inside = encode_omp(small, subspace.project(x), 5)
    outside = encode_omp(folded, x, 5, space="adapter")
    same = (inside.indices.sort(1).values == outside.indices.sort(1).values).all(1)
    assert float(same.float().mean()) > 0.97  # but for ties
    torch.testing.assert_close(
        outside.to_dense()[same] * subspace.scale, inside.to_dense()[same], rtol=1e-2, atol=1e-2
    )
    codes = folded.encode(x)
    torch.testing.assert_close(
        refit(folded, x, codes, "adapter").to_dense() * subspace.scale,
        refit(small, subspace.project(x), small.encode(subspace.project(x))).to_dense(),
        rtol=1e-2,
        atol=1e-2,
    )
    apart = SparseAutoencoder(D, 40, 4, tied=False)
    torch.nn.init.normal_(apart.decoder.linear.weight)
    with pytest.raises(ValueError, match="trained apart"):
        encode_omp(apart, x, space="adapter")


def test_omp_of_what_the_dictionary_cannot_say():
    made = model(D)
    nothing = encode_omp(made, made.pre_bias.detach()[None].repeat(3, 1))
    assert int(nothing.active.sum()) == 0
    with pytest.raises(ValueError, match="hidden_dim = 40"):
        encode_omp(made, rows(3), 41)
    with pytest.raises(ValueError, match="rounds"):
        encode_omp(made, rows(3), rounds=0)
    whole = encode_omp(made, rows(3), 40).validate()
    assert whole.k == 40
    for wrong in (torch.nan, torch.inf):
        x = rows(3)
        x[1, 5] = wrong
        for fit in (lambda: encode_omp(made, x), lambda: refit(made, x, made.encode(x))):  # noqa: B023
            with pytest.raises(ValueError, match="finite numbers, got others in row 1"):
                fit()
    with pytest.raises(TypeError, match=r"torch.from_numpy\(x\)"):
        encode_omp(made, rows(3).numpy())
    with pytest.raises(TypeError, match=r"x is torch\.float64 but the model is torch\.float32"):
        encode_omp(made, rows(3).double())
    with pytest.raises(ValueError, match="one for each of 1 rows of x, got 3"):
        refit(made, rows(1), made.encode(rows(3)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_fits_of_models_of_any_dtype(dtype):
    narrow, wide = model(D, seed=2).to(dtype), model(D, seed=2).to(dtype).float()
    x = rows(60).to(dtype)
    codes = narrow.encode(x, 6).detach()
    for found, expected in (
        (encode_omp(narrow, x, 6), encode_omp(wide, x.float(), 6)),
        (refit(narrow, x, codes), refit(wide, x.float(), codes.to(dtype=torch.float32))),
    ):
        assert found.validate().dtype == dtype
        least = unexplained(wide, x.float(), expected)
        assert unexplained(wide, x.float(), found.to(dtype=torch.float32)) <= 1.1 * least


def test_fits_of_no_rows_and_of_latents_that_say_nothing():
    made = model(D)
    assert len(encode_omp(made, rows(3)[:0])) == 0
    assert len(refit(made, rows(3)[:0], made.encode(rows(3)[:0]))) == 0
    with torch.no_grad():
        made.encoder.weight[7] = 0
        made.latent_bias[7] = 1000
    x = rows(20)
    alone = made.encode(x, 1)
    assert bool((alone.indices == 7).all())
    assert not bool(refit(made, x, alone).active.any())
    assert not bool((encode_omp(made, x, 39).to_dense()[:, 7] > 0).any())
