"""TopK autoencoders of other packages: as they come, and on our kernels."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def sae_lens():
    pytest.importorskip("sae_lens", reason="pip install sae-lens")
    from csrkern.integrations import sae_lens

    yield sae_lens
    sae_lens.restore()


@pytest.fixture
def sparsify(monkeypatch):
    # Without a GPU the package's own decoder cannot be the Triton one, which is chosen at import.
    monkeypatch.setenv("SPARSIFY_DISABLE_TRITON", "1")
    pytest.importorskip("sparsify.sparse_coder", reason="pip install eai-sparsify")
    from csrkern.integrations import sparsify

    yield sparsify
    sparsify.restore()


def outcome(call, *tensors: torch.Tensor):
    """What a call gives and the gradients of a weighted sum of it, all dense."""
    inputs = [tensor.clone().requires_grad_() for tensor in tensors]
    out = call(*inputs)
    dense = out.to_dense()
    weights = torch.rand(dense.shape, generator=torch.Generator().manual_seed(3))
    (dense * weights.to(dense.dtype)).sum().backward()
    return out.detach(), [tensor.grad for tensor in inputs]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("shape", [(7,), (5, 40), (2, 3, 40), (2, 1, 4, 40), (0, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_sae_lens_activation(sae_lens, sparse, shape, dtype):
    from sae_lens.saes.topk_sae import TopK

    activation = TopK(6, use_sparse_activations=sparse)
    if sparse and len(shape) == 1:
        return  # the package itself fails on a single vector
    x = (torch.randperm(torch.Size(shape).numel()).reshape(shape) / 50 - 1).to(dtype)
    expected, expected_grads = outcome(activation, x)
    with sae_lens.accelerate():
        found, grads = outcome(activation, x)
    assert found.shape == expected.shape
    assert found.layout == expected.layout
    assert found.dtype == expected.dtype
    if dtype == torch.bfloat16:  # with equal entries, of which either side keeps some
        assert torch.equal(found.to_dense().sort(-1).values, expected.to_dense().sort(-1).values)
        return
    assert torch.equal(found.to_dense(), expected.to_dense())
    for grad, wanted in zip(grads, expected_grads, strict=True):
        assert torch.equal(grad, wanted)


def test_sae_lens_trains_to_the_same_weights(sae_lens):
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    known = {field.name for field in dataclasses.fields(TrainStepInput)}

    def trained() -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=16, d_sae=64, k=4))
        optimizer = torch.optim.Adam(sae.parameters(), lr=1e-2)
        for step in range(12):
            x = torch.randn(32, 16, generator=torch.Generator().manual_seed(step))
            dead = torch.arange(64) % 5 == 0
            facts = {"sae_in": x, "coefficients": {}, "dead_neuron_mask": dead}
            facts |= {"n_training_steps": step, "is_logging_step": False}
            inputs = TrainStepInput(**{n: v for n, v in facts.items() if n in known})
            loss = sae.training_forward_pass(inputs).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return sae.state_dict()

    expected = trained()
    with sae_lens.accelerate():
        found = trained()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


def test_sae_lens_is_put_back(sae_lens):
    from sae_lens.saes.topk_sae import TopK

    before = TopK.forward
    sae_lens.accelerate()
    assert TopK.forward is not before
    with sae_lens.accelerate():
        pass
    assert TopK.forward is before
    sae_lens.restore()
    assert TopK.forward is before


def coder(**settings):
    from sparsify import SparseCoder, SparseCoderConfig

    torch.manual_seed(0)
    made = SparseCoder(24, SparseCoderConfig(num_latents=96, k=6, **settings))
    with torch.no_grad():
        made.b_dec.normal_(std=0.1)
        made.encoder.bias.normal_(std=0.1)
    return made


def forward(model, x, dead):
    out = model(x, dead_mask=dead)
    loss = out.fvu + 0.1 * out.auxk_loss + 0.1 * out.multi_topk_fvu
    model.zero_grad()
    loss.backward()
    return out, {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("settings", [{}, {"multi_topk": True}, {"activation": "groupmax"}])
def test_sparsify_forward_and_backward(sparsify, settings):
    x = torch.randn(40, 24, generator=torch.Generator().manual_seed(1))
    dead = torch.arange(96) % 3 == 0
    model = coder(**settings)
    expected, expected_grads = forward(model, x, dead)
    with sparsify.accelerate():
        found, grads = forward(model, x, dead)
    for name in ("sae_out", "fvu", "auxk_loss", "multi_topk_fvu"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5
        )
    for field in ("latent_acts", "latent_indices"):
        theirs, ours = getattr(expected, field), getattr(found, field)
        torch.testing.assert_close(ours.sort(1).values, theirs.sort(1).values)
    for name, grad in expected_grads.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-4, atol=1e-5)


def test_sparsify_rows_with_few_positive_latents(sparsify):
    model = coder()
    with torch.no_grad():
        model.encoder.bias.fill_(-1.5)
    x = torch.randn(40, 24, generator=torch.Generator().manual_seed(1))
    expected = model(x)
    with sparsify.accelerate():
        found = model(x)
    assert bool((expected.latent_acts == 0).any())
    torch.testing.assert_close(found.sae_out, expected.sae_out, rtol=1e-5, atol=1e-5)
    assert bool((found.latent_indices[found.latent_acts == 0] == 0).all())


def test_sparsify_is_put_back(sparsify):
    from sparsify import sparse_coder

    before = sparse_coder.fused_encoder, sparse_coder.decoder_impl
    with sparsify.accelerate():
        assert sparse_coder.fused_encoder is not before[0]
        assert sparse_coder.decoder_impl is not before[1]
    assert (sparse_coder.fused_encoder, sparse_coder.decoder_impl) == before


def test_missing_packages_are_named(monkeypatch):
    from csrkern.integrations import sae_lens, sparsify

    for name in ("sae_lens.saes.topk_sae", "sparsify"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="pip install sae-lens"):
        sae_lens.accelerate()
    with pytest.raises(ImportError, match="pip install eai-sparsify"):
        sparsify.accelerate()
