"""TopK autoencoders of other packages: as they come, and on our kernels."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import warnings

import numpy as np
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
    outer = sae_lens.accelerate()
    ours = TopK.forward
    assert ours is not before
    with sae_lens.accelerate():
        pass
    with pytest.raises(KeyError), sae_lens.accelerate():
        raise KeyError
    assert TopK.forward is ours
    outer.restore()
    assert TopK.forward is before
    sae_lens.accelerate()
    sae_lens.accelerate()
    sae_lens.restore()
    assert TopK.forward is before


def told(call):
    """What a call returns, and what it warned of that was not accelerated."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call()
    return result, [str(w.message) for w in caught if "not accelerated" in str(w.message)]


def unusual_activations():
    from sae_lens.saes.topk_sae import TopK

    class Doubled(TopK):
        def forward(self, x):
            return 2 * super().forward(x)

    class Wider(TopK):
        def __setattr__(self, name, value):
            super().__setattr__(name, value + 1 if name == "k" else value)

    hooked, looked_at, replaced = TopK(3), TopK(3), TopK(3)
    hooked.register_forward_hook(lambda _module, _args, out: 3 * out)
    looked_at.register_full_backward_hook(lambda *_: None)
    replaced.forward = lambda x: 5 * TopK.forward(replaced, x)
    compiled = TopK(3)
    compiled.compile(backend="eager")
    return [Doubled(3), Wider(3), hooked, looked_at, replaced, compiled]


@pytest.mark.parametrize("which", range(6))
def test_sae_lens_leaves_what_it_does_not_know(sae_lens, which):
    activation = unusual_activations()[which]
    x = torch.randn(5, 20)
    expected = outcome(activation, x)
    with sae_lens.accelerate():
        (first, second), messages = told(lambda: [outcome(activation, x) for _ in range(2)])
    for found in (first, second):
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1][0], expected[1][0])
    assert len(messages) == (which != 5)  # there is nobody to tell within a compiled module


@pytest.mark.filterwarnings("error:.*not accelerated")
@pytest.mark.parametrize("k", [np.int64(2), torch.tensor(2), np.uint8(2)], ids=repr)
@pytest.mark.parametrize("sparse", [False, True])
def test_sae_lens_k_of_any_integer_type(sae_lens, k, sparse):
    from sae_lens.saes.topk_sae import TopK

    x = torch.randn(5, 20)
    expected = TopK(2, use_sparse_activations=sparse)(x)
    with sae_lens.accelerate():
        found = TopK(k, use_sparse_activations=sparse)(x)
    assert torch.equal(found.to_dense(), expected.to_dense())


@pytest.mark.parametrize("k", [0, 21, -1, 2.0, "2", torch.tensor([1, 2])], ids=repr)
def test_sae_lens_k_that_torch_refuses(sae_lens, k):
    from sae_lens.saes.topk_sae import TopK

    x, results = torch.randn(5, 20), []
    for context in (contextlib.nullcontext, sae_lens.accelerate):
        with context():
            try:
                results.append(TopK(k)(x).tolist())
            except Exception as error:
                results.append((type(error), str(error)))
    assert results[0] == results[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64, torch.uint8])
def test_sae_lens_other_dtypes(sae_lens, dtype):
    from sae_lens.saes.topk_sae import TopK

    x = torch.randperm(40).reshape(2, 20).to(dtype)
    expected = TopK(3)(x)
    with sae_lens.accelerate():
        assert torch.equal(TopK(3)(x), expected)


def test_sae_lens_gradients_of_gradients_and_torch_func(sae_lens):
    from sae_lens.saes.topk_sae import TopK

    activation, x = TopK(3), torch.randn(5, 20)

    def penalty():
        inputs = x.clone().requires_grad_()
        loss = activation(inputs).pow(3).sum()
        (grad,) = torch.autograd.grad(loss, inputs, create_graph=True)
        grad.square().sum().backward()
        return inputs.grad

    def loss(row):
        return activation(row).pow(2).sum()

    calls = [
        penalty,
        lambda: torch.func.grad(loss)(x),
        lambda: torch.func.vmap(torch.func.grad(loss))(x),
        lambda: torch.func.jvp(loss, (x,), (torch.ones_like(x),))[1],
    ]
    expected = [call() for call in calls]
    with sae_lens.accelerate():
        for call, want in zip(calls, expected, strict=True):
            assert torch.equal(call(), want)


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
    """Where the package lets gradients pass through places of value 0."""
    model = coder()
    with torch.no_grad():
        model.encoder.bias.fill_(-1.5)
    x = torch.randn(40, 24, generator=torch.Generator().manual_seed(1))
    expected, expected_grads = forward(model, x, None)
    with sparsify.accelerate():
        found, grads = forward(model, x, None)
    assert bool((expected.latent_acts == 0).any())
    assert torch.equal(found.latent_indices, expected.latent_indices)
    torch.testing.assert_close(found.sae_out, expected.sae_out, rtol=1e-5, atol=1e-5)
    for name, grad in expected_grads.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("wrong", [32, -1, 2**32 + 3, -(2**33), 2**31])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_sparsify_latents_out_of_range_are_refused(sparsify, wrong, dtype):
    from sparsify import sparse_coder

    weight = torch.randn(8, 32)
    indices = torch.randint(32, (5, 3))
    indices[2, 1] = wrong
    if indices[2, 1] != indices[2, 1].to(dtype):
        return
    with sparsify.accelerate(), pytest.raises((RuntimeError, IndexError)):
        sparse_coder.decoder_impl(indices.to(dtype), torch.rand(5, 3), weight)


ACTS = {
    "positive": lambda acts: acts + 0.1,
    "zeros": lambda acts: acts.relu(),
    "negative": lambda acts: acts,
    "repeated": lambda acts: acts.abs(),
}


@pytest.mark.parametrize("name", ACTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [2, 16])
def test_sparsify_decodes_any_values(sparsify, name, dtype, width):
    from sparsify import sparse_coder

    generator = torch.Generator().manual_seed(2)
    acts = ACTS[name](torch.randn(9, width, generator=generator)).to(dtype)
    indices = torch.randint(4 if name == "repeated" else 32, acts.shape, generator=generator)
    weight = torch.randn(8, 32, generator=generator).to(dtype)

    def decoded(*inputs):
        return outcome(lambda a, w: sparse_coder.decoder_impl(indices, a, w), *inputs)

    expected = decoded(acts, weight)
    with sparsify.accelerate():
        found = decoded(acts, weight)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    for grad, wanted in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("error:.*not accelerated")
@pytest.mark.parametrize("k", [np.int64(6), torch.tensor(6)], ids=repr)
def test_sparsify_k_of_any_integer_type(sparsify, k):
    x, model = torch.randn(40, 24), coder()
    expected = model(x)
    with sparsify.accelerate():
        model.cfg.k = k
        found = model(x)
    torch.testing.assert_close(found.sae_out, expected.sae_out, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k", [0, 97, 2.0])
def test_sparsify_k_that_the_package_refuses(sparsify, k):
    model, results = coder(), []
    model.cfg.k = k
    for context in (contextlib.nullcontext, sparsify.accelerate):
        with context():
            try:
                results.append(model.encode(torch.ones(2, 24)).top_acts.tolist())
            except Exception as error:
                results.append(type(error))
    assert results[0] == results[1]


def test_sparsify_under_autocast(sparsify):
    x, model = torch.randn(40, 24), coder()
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(x)
        with sparsify.accelerate():
            found = model(x)
    assert found.sae_out.dtype == expected.sae_out.dtype
    assert torch.equal(found.latent_indices, expected.latent_indices)
    torch.testing.assert_close(found.sae_out, expected.sae_out, rtol=1e-5, atol=1e-5)


def test_sparsify_gradients_of_gradients(sparsify):
    from sparsify import sparse_coder

    generator = torch.Generator().manual_seed(2)
    x = torch.randn(6, 8, generator=generator)
    weight = torch.nn.Parameter(torch.randn(32, 8, generator=generator))

    def penalty():
        inputs = x.clone().requires_grad_()
        weight.grad = None
        out = sparse_coder.fused_encoder(inputs, weight, None, 3, "topk")
        (grad,) = torch.autograd.grad(out.top_acts.pow(3).sum(), inputs, create_graph=True)
        grad.square().sum().backward()
        return inputs.grad, weight.grad

    expected = penalty()
    with sparsify.accelerate():
        for grad, wanted in zip(penalty(), expected, strict=True):
            torch.testing.assert_close(grad, wanted)


def test_sparsify_under_a_mode(sparsify):
    from torch.utils.flop_counter import FlopCounterMode

    x, model = torch.randn(40, 24), coder()

    def flops():
        with FlopCounterMode(display=False) as counter:
            model(x).fvu.backward()
        return counter.get_total_flops()

    expected = flops()
    with sparsify.accelerate():
        found, messages = told(lambda: [flops(), flops()])
    assert found == [expected, expected]
    assert sorted(message.split()[0] for message in messages) == ["eager_decode", "fused_encoder"]


def test_sparsify_is_put_back(sparsify):
    from sparsify import sparse_coder

    def functions():
        return sparse_coder.fused_encoder, sparse_coder.decoder_impl

    before = functions()
    with sparsify.accelerate():
        ours = functions()
        assert ours[0] is not before[0]
        assert ours[1] is not before[1]
        with sparsify.accelerate():
            pass
        assert functions() == ours
    assert functions() == before


def test_missing_packages_are_named(monkeypatch):
    from csrkern.integrations import sae_lens, sparsify

    for name in ("sae_lens.saes.topk_sae", "sparsify"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="pip install sae-lens"):
        sae_lens.accelerate()
    with pytest.raises(ImportError, match="pip install eai-sparsify"):
        sparsify.accelerate()
