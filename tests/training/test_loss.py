"""CSRLoss against a dense reference, and against the bugs of published code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import csrkern.nn
from csrkern.codes.sparse import SparseCodes
from csrkern.nn import SparseAutoencoder
from csrtrain import CSRLoss
from csrtrain.training.loss import load

TERMS = ("recon", "recon_4k", "aux", "contrast")


def make(d=12, h=40, k=4, dead=0, seed=0, **kwargs) -> SparseAutoencoder:
    """A double-precision model with its last `dead` latents dead."""
    torch.manual_seed(seed)
    model = SparseAutoencoder(d, h, k, **kwargs).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        if dead:
            model.stats_last_nonzero[-dead:] = 1000
            model.latent_bias[-dead:] = -3.0
    return model


def batch(n=16, d=12, seed=1) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.randn(n, d, dtype=torch.float64)


def dense_code(pre: torch.Tensor, k: int) -> torch.Tensor:
    values, indices = pre.topk(k, dim=1)
    return torch.zeros_like(pre).scatter(1, indices, F.relu(values))


def dense_loss(model, x, labels=None, *, beta, gamma, temperature, contrast, ks=()):
    """The formulas of the paper on dense codes; the dead latents are those of the model."""
    if model.standardize:
        x = (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5)
    w, w_dec = model.encoder.weight, model.decoder.linear.weight
    pre = (x - model.pre_bias) @ w.T + model.latent_bias
    k = model.k

    def rebuilt(width):
        return dense_code(pre, width) @ w_dec + model.pre_bias

    def contrast_at(width):
        z = F.normalize(dense_code(pre, width), dim=1, eps=1e-30)
        scores = (z @ z.T) / temperature
        n = len(x)
        losses = []
        for i in range(n):
            others = [j for j in range(n) if j != i]
            if contrast == "self":
                rest = scores[i, others] - scores[i, i]
                losses.append(torch.log(1 + 2 * rest.exp().sum()))
            else:
                friends = [j for j in others if labels[j] == labels[i]]
                if friends:
                    normaliser = scores[i, others].exp().sum().log()
                    losses.append(normaliser - scores[i, friends].mean())
        return torch.stack(losses).mean()

    widths = (*ks, k)
    terms = {
        "recon": sum(((x - rebuilt(p)) ** 2).mean() for p in widths) / len(widths),
        "recon_4k": ((x - rebuilt(min(4 * k, len(w)))) ** 2).mean(),
        "aux": torch.zeros((), dtype=x.dtype),
        "contrast": torch.zeros((), dtype=x.dtype),
    }
    dead = model.dead
    if dead.any():
        error = (x - rebuilt(k)).detach()
        masked = pre.masked_fill(~dead, -torch.inf)
        guess = dense_code(masked, min(model.k_aux, int(dead.sum()))) @ w_dec
        terms["aux"] = ((guess - error) ** 2).mean() / ((error.mean(0) - error) ** 2).mean()
    if contrast:
        terms["contrast"] = sum(contrast_at(p) for p in widths) / len(widths)
    terms["loss"] = (
        terms["recon"] + terms["recon_4k"] / 8 + beta * terms["aux"] + gamma * terms["contrast"]
    )
    return terms


def gradients(model, loss):
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(parameters.items(), found, strict=True)
    }


@pytest.mark.parametrize("contrast", ["self", "label", None])
@pytest.mark.parametrize("dead", [0, 3, 20])
@pytest.mark.parametrize("options", [{}, {"tied": False}, {"standardize": True}, {"k_aux": 2}])
def test_every_term_and_gradient_equal_the_dense_reference(contrast, dead, options):
    settings = {"beta": 0.3, "gamma": 0.7, "temperature": 0.25, "contrast": contrast}
    model, x = make(dead=dead, **options), batch()
    labels = torch.arange(16) % 5
    loss = CSRLoss(**settings).eval()
    terms = loss(model, x, labels)
    expected = dense_loss(model, x, labels, **settings)
    for name in (*TERMS, "loss"):
        torch.testing.assert_close(terms[name], expected[name], msg=name)
    assert float(terms["dead"]) == pytest.approx(dead / 40)
    ours, theirs = gradients(model, terms["loss"]), gradients(model, expected["loss"])
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], msg=name)


def test_defaults_are_the_papers():
    loss = CSRLoss()
    assert (loss.beta, loss.gamma, loss.temperature) == (1 / 32, 0.1, 0.2)
    assert loss.contrast == "self"


def test_prefixes_average_over_their_widths():
    settings = {"beta": 0.1, "gamma": 0.5, "temperature": 0.2, "contrast": "self"}
    model, x = make(k=6, dead=4), batch()
    terms = CSRLoss(**settings, ks=(3, 1)).eval()(model, x)
    expected = dense_loss(model, x, **settings, ks=(1, 3))
    for name in (*TERMS, "loss"):
        torch.testing.assert_close(terms[name], expected[name], msg=name)


def test_recon_weight_weighs_reconstruction_alone():
    model, x = make(dead=4), batch()
    terms = CSRLoss(recon_weight=50.0).eval()(model, x)
    expected = (
        50 * (terms["recon"] + terms["recon_4k"] / 8) + terms["aux"] / 32 + terms["contrast"] / 10
    )
    torch.testing.assert_close(terms["loss"], expected)
    plain = CSRLoss().eval()(model, x)
    torch.testing.assert_close(terms["recon"], plain["recon"])


def test_published_bug_1_the_4k_pass_reaches_live_latents():
    """Masking live latents in place before the 4k pass leaves L(4k) untrained."""
    model, x = make(k=2, dead=4), batch()
    terms = CSRLoss(contrast=None)(model, x)
    got = gradients(model, terms["recon_4k"])
    expected = gradients(
        model,
        dense_loss(model, x, beta=0, gamma=0, temperature=1, contrast=None)["recon_4k"],
    )
    torch.testing.assert_close(got["encoder.weight"], expected["encoder.weight"])
    codes = model.encode(x, 8)
    only_in_4k = set(codes.indices.flatten().tolist()) - set(
        codes.indices[:, :2].flatten().tolist()
    )
    live = [latent for latent in only_in_4k if not model.dead[latent]]
    assert live
    assert bool((got["latent_bias"][live] != 0).any())


def test_published_bug_4_no_dead_latent_means_no_auxiliary_loss():
    model, x = make(), batch()
    terms = CSRLoss(contrast=None)(model, x)
    assert float(terms["aux"]) == 0.0
    assert not terms["aux"].requires_grad


def test_an_auxiliary_ratio_that_is_not_finite_is_zero_without_gradient():
    model = make(dead=20)
    alone = batch(n=1)  # one row: the error has no variance, the ratio is infinite
    terms = CSRLoss(contrast=None)(model, alone)
    assert terms["aux"].item() == 0.0
    for name, gradient in gradients(model, terms["aux"]).items():
        assert torch.equal(gradient, torch.zeros_like(gradient)), name


def test_published_bug_5_4k_and_k_aux_are_clipped():
    model, x = make(h=10, k=5, dead=3, k_aux=512), batch()
    terms = CSRLoss(contrast="self")(model, x)
    terms["loss"].backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    model = make(h=5, k=5)
    terms = CSRLoss(contrast=None)(model, x)
    torch.testing.assert_close(terms["recon_4k"], terms["recon"])


@pytest.mark.parametrize("which", ["loss", "model", "neither"])
def test_published_bug_6_statistics_change_in_training_mode_only(which):
    model, x, loss = make(), batch(), CSRLoss()
    if which == "loss":
        loss.eval()
    elif which == "model":
        model.eval()
    before = model.stats_last_nonzero.clone()
    loss(model, x)
    changed = not torch.equal(before, model.stats_last_nonzero)
    assert changed == (which == "neither")


def test_statistics_count_the_top_k_and_not_the_4k():
    model, x = make(k=2), batch()
    CSRLoss(contrast=None)(model, x)
    used = torch.zeros(40, dtype=torch.bool)
    used[model.encode(x, 2).indices.flatten().long()] = True
    assert torch.equal(model.stats_last_nonzero == 0, used)
    assert torch.equal(model.stats_last_nonzero == 1, ~used)


def test_batches_of_one_step_count_as_one():
    whole, split, loss = make(k=2), make(k=2), CSRLoss(contrast=None)
    for seed in range(4):
        x = batch(seed=seed)
        loss(whole, x)
        for i, part in enumerate(x.split(5)):
            loss(split, part, new_step=i == 0)
        assert torch.equal(split.stats_last_nonzero, whole.stats_last_nonzero)
    assert int(whole.stats_last_nonzero.max()) > 1


def test_k_aux_of_0_means_no_auxiliary_loss():
    without, model, x = make(dead=20, k_aux=0), make(dead=20), batch()
    terms, expected = (CSRLoss(beta=beta)(m, x) for m, beta in ((without, 1.0), (model, 0.0)))
    assert float(terms["aux"]) == 0
    torch.testing.assert_close(terms["loss"], expected["loss"])
    assert float(terms["dead"]) == float(expected["dead"]) > 0


def test_a_latent_below_the_threshold_counts_as_unused():
    model, x = make(k=2), batch()
    CSRLoss(contrast=None, threshold=1e9)(model, x)
    assert bool((model.stats_last_nonzero == 1).all())


@pytest.mark.parametrize("contrast", ["self", "label"])
def test_published_bug_7_rows_without_active_latents_do_not_give_nan(contrast):
    model, x = make(dead=5), batch()
    with torch.no_grad():
        x[3] = model.pre_bias  # pre-activations are the biases
        model.latent_bias.fill_(-0.5)
    assert not bool(model.encode(x).active[3].any())
    terms = CSRLoss(contrast=contrast)(model, x, torch.arange(16) % 4)
    terms["loss"].backward()
    assert bool(torch.isfinite(terms["loss"]))
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_one_encoder_pass_serves_k_4k_and_the_contrast(monkeypatch):
    calls = []
    encode = csrkern.nn.modules.encode

    def counted(*args, **options):
        calls.append(options["k"])
        return encode(*args, **options)

    monkeypatch.setattr(csrkern.nn.modules, "encode", counted)
    CSRLoss(ks=(1, 2))(make(k=3), batch())
    assert calls == [12]


def test_every_k_at_once():
    model, x = make(k=9), batch()
    loss = CSRLoss(ks=range(1, 9), contrast=None)(model, x)["recon"]
    loss.backward()
    grad, model.encoder.weight.grad = model.encoder.weight.grad, None
    codes, reconstructions = model.autoencode(x, range(2, 10))
    parts = [model.decode(codes.truncate(1)), *reconstructions]
    want = torch.stack([torch.nn.functional.mse_loss(part, x) for part in parts]).mean()
    want.backward()
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(grad, model.encoder.weight.grad)


def test_errors_teach():
    model, x = make(), batch()
    with pytest.raises(ValueError, match=r"labels: expected .* contrast='label'"):
        CSRLoss(contrast="label")(model, x)
    with pytest.raises(ValueError, match="ks: expected k's below the model's k = 4"):
        CSRLoss(ks=(4,))(model, x)
    with pytest.raises(
        ValueError, match="contrast: expected 'self', 'label', 'pair', 'clip' or None, got 'both'"
    ):
        CSRLoss(contrast="both")
    with pytest.raises(ValueError, match="temperature"):
        CSRLoss(temperature=0)
    with pytest.raises(ValueError, match="gamma"):
        CSRLoss(gamma=-1)
    with pytest.raises(TypeError, match="model: expected a SparseAutoencoder, or a wrapper of one"):
        CSRLoss()(torch.nn.Linear(12, 40), x)
    with pytest.raises(TypeError, match="partner_model: expected a SparseAutoencoder"):
        CSRLoss(contrast="pair")(model, x, partners=x, partner_model=torch.nn.Identity())


RATES = ("beta", "gamma", "temperature", "recon_weight", "threshold", "balance")


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize(
    ("value", "error"),
    [
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        (np.float32("-inf"), ValueError),
        (-1, ValueError),
        (True, TypeError),
        (np.bool_(True), TypeError),
        ("1", TypeError),
    ],
)
def test_rates_that_are_none_are_refused(name, value, error):
    with pytest.raises(error, match=f"{name}: expected a"):
        CSRLoss(**{name: value})


def test_numpys_numbers_are_numbers():
    loss = CSRLoss(**dict.fromkeys(RATES, np.float32(0.5)), ks=np.array([3, 1, 3]))
    assert {type(getattr(loss, name)) for name in RATES} == {float}
    assert loss.ks == (1, 3)
    assert all(type(k) is int for k in loss.ks)
    for ks in ((0,), (-1,)):
        with pytest.raises(ValueError, match="ks: expected at least 1, got"):
            CSRLoss(ks=ks)
    for ks in ((2.0,), (True,), ("2",)):
        with pytest.raises(TypeError, match="ks: expected an int, got"):
            CSRLoss(ks=ks)


def contrast_of_pairs(za, zb, labels, temperature):
    """−log of the share of a row's positives, by the formula."""
    za, zb = (F.normalize(z, dim=1, eps=1e-30) for z in (za, zb))
    scores = za @ zb.T / temperature
    losses = []
    for i in range(len(za)):
        friends = [j for j in range(len(zb)) if labels[j] == labels[i]]
        losses.append(scores[i].exp().sum().log() - scores[i, friends].mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("contrast", ["pair", "clip"])
@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("repeated", [False, True])
def test_pairs_equal_the_dense_reference(contrast, two, repeated):
    model, x, partners = make(dead=5), batch(), batch(seed=2)
    other = make(d=7, dead=4, seed=3) if two else None
    if two:
        partners = batch(d=7, seed=2)
    labels = torch.arange(16) // 2 if repeated else torch.arange(16)
    settings = {"beta": 0.3, "gamma": 0.7, "temperature": 0.25}
    loss = CSRLoss(**settings, contrast=contrast, ks=(2,)).eval()
    terms = loss(model, x, labels if repeated else None, partners=partners, partner_model=other)
    plain = {**settings, "contrast": None, "ks": (2,)}
    if two:
        sides = dense_loss(model, x, **plain), dense_loss(other, partners, **plain)
        expected = {name: (sides[0][name] + sides[1][name]) / 2 for name in TERMS}
    else:
        expected = dense_loss(model, torch.cat([x, partners]), **plain)

    def codes(m, rows, k):
        return dense_code((rows - m.pre_bias) @ m.encoder.weight.T + m.latent_bias, k)

    found = []
    for k in (2, 4):
        za, zb = codes(model, x, k), codes(other or model, partners, k)
        found.append(contrast_of_pairs(za, zb, labels, 0.25))
        if contrast == "clip":
            found[-1] = (found[-1] + contrast_of_pairs(zb, za, labels, 0.25)) / 2
    expected["contrast"] = sum(found) / 2
    expected["loss"] = (
        expected["recon"]
        + expected["recon_4k"] / 8
        + 0.3 * expected["aux"]
        + 0.7 * expected["contrast"]
    )
    for name in (*TERMS, "loss"):
        torch.testing.assert_close(terms[name], expected[name], msg=name)
    ours, theirs = gradients(model, terms["loss"]), gradients(model, expected["loss"])
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], msg=name)


def test_pairs_that_do_not_fit():
    model, x = make(), batch()
    with pytest.raises(ValueError, match="partners: expected one embedding for each row"):
        CSRLoss(contrast="pair")(model, x)
    with pytest.raises(ValueError, match="contrast is 'self'"):
        CSRLoss()(model, x, partners=x)
    with pytest.raises(ValueError, match="partner_model: expected 40 latents"):
        CSRLoss(contrast="clip")(model, x, partners=x, partner_model=make(h=30))


def test_load_is_one_for_even_use_and_dim_for_a_single_latent():
    values = torch.ones(20, 2, dtype=torch.float64)
    even = SparseCodes(values, torch.arange(40, dtype=torch.int32).reshape(20, 2), 40)
    assert float(load(even)) == pytest.approx(1.0)
    one = SparseCodes(values[:, :1], torch.full((20, 1), 7, dtype=torch.int32), 40)
    assert float(load(one)) == pytest.approx(40.0)
    none = SparseCodes(torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.int32), 40)
    assert float(load(none)) == 0.0


def test_load_equals_the_dense_reference_and_enters_the_loss():
    model, x = make(), batch()
    terms = CSRLoss(contrast=None, balance=0.4).eval()(model, x)
    z = dense_code((x - model.pre_bias) @ model.encoder.weight.T + model.latent_bias, 4)
    use = (z > 0).double().sum(0)
    expected = 40 * ((use / use.sum()) * z.sum(0) / z.sum()).sum()
    torch.testing.assert_close(terms["load"], expected)
    without = CSRLoss(contrast=None).eval()(model, x)["loss"]
    torch.testing.assert_close(terms["loss"], without + 0.4 * expected)
    got = gradients(model, terms["load"])["encoder.weight"]
    torch.testing.assert_close(got, gradients(model, expected)["encoder.weight"])


def test_a_step_at_another_k_is_the_loss_of_a_model_at_that_k():
    settings = {"beta": 0.3, "gamma": 0.7, "temperature": 0.25, "contrast": "self"}
    model, x = make(dead=3), batch()
    terms = CSRLoss(**settings).eval()(model, x, k=9)
    model.k = 9
    expected = dense_loss(model, x, **settings)
    for name in (*TERMS, "loss"):
        torch.testing.assert_close(terms[name], expected[name], msg=name)
