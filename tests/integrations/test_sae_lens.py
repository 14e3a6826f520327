"""SAELens' autoencoders on our kernels give what they give on their own."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.usefixtures("one_thread")

pytest.importorskip("sae_lens", reason="pip install sae-lens")
D, H, K = 16, 512, 4


@pytest.fixture
def ours():
    from csrkern.integrations import sae_lens

    yield sae_lens
    sae_lens.restore()


def make(kind: str, **changes: Any) -> Any:
    """An autoencoder that is to be trained, the same each time."""
    import sae_lens as package

    torch.manual_seed(0)
    shared = {"d_in": D, "d_sae": H, **changes}
    if kind.startswith("jumprelu"):
        shared = {"jumprelu_init_threshold": 0.25, **shared}
        shared["jumprelu_ste_to_input"] = kind == "jumprelu to input"
        return package.JumpReLUTrainingSAE(package.JumpReLUTrainingSAEConfig(**shared))
    if kind == "batchtopk":
        return package.BatchTopKTrainingSAE(package.BatchTopKTrainingSAEConfig(k=K, **shared))
    if kind == "matryoshka":
        config = package.MatryoshkaBatchTopKTrainingSAEConfig(
            k=K, matryoshka_widths=[32, 128, H], **shared
        )
        return package.MatryoshkaBatchTopKTrainingSAE(config)
    if kind == "topk sparse":  # with scales, the package itself fails
        shared |= {"use_sparse_activations": True, "rescale_acts_by_decoder_norm": False}
    return package.TopKTrainingSAE(package.TopKTrainingSAEConfig(k=K, **shared))


KINDS = ["topk", "topk sparse", "batchtopk", "matryoshka", "jumprelu", "jumprelu to input"]


def rows(step: int = 0, shape: tuple[int, ...] = (24, D)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(step))


def forward(sae: Any, x: torch.Tensor, dead: torch.Tensor | None) -> Any:
    from sae_lens.saes.sae import TrainStepInput

    known = {field.name for field in dataclasses.fields(TrainStepInput)}
    facts = {"sae_in": x, "coefficients": {"l0": 0.1}, "dead_neuron_mask": dead}
    facts |= {"n_training_steps": 0, "is_logging_step": False}
    facts = {name: fact for name, fact in facts.items() if name in known}
    return sae.training_forward_pass(TrainStepInput(**facts))


def trained(sae: Any, dead: torch.Tensor | None) -> tuple[Any, dict[str, torch.Tensor]]:
    """The first step's output, and the weights after eight."""
    optimizer = torch.optim.SGD(sae.parameters(), lr=1e-2)
    first = None
    for step in range(8):
        out = forward(sae, rows(step).to(sae.dtype), dead)
        first = first or out
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    return first, sae.state_dict()


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.layout == expected.layout
    torch.testing.assert_close(found.to_dense(), expected.to_dense(), rtol=1e-4, atol=1e-5)


def served(acts: torch.Tensor) -> bool:
    """Whether decoders know which few latents these activations are."""
    from csrkern.integrations.sae_lens import _some_of

    return _some_of.get(acts) is not None


@pytest.mark.filterwarnings("error:.*not accelerated")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dead", [None, torch.arange(H) % 20 == 0], ids=["", "dead"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_training_is_the_same(ours, kind, dead, dtype):
    expected, weights = trained(make(kind, dtype=dtype), dead)
    with ours.accelerate():
        found, own = trained(make(kind, dtype=dtype), dead)
        assert served(found.feature_acts)
    assert not served(found.feature_acts)
    for name in ("sae_out", "feature_acts", "hidden_pre", "loss"):
        assert_same(getattr(found, name), getattr(expected, name))
    assert found.losses.keys() == expected.losses.keys()
    for name, loss in expected.losses.items():
        assert_same(found.losses[name], loss)
    for name, tensor in weights.items():
        assert_same(own[name], tensor)


OPTIONS = [
    ("topk", {"rescale_acts_by_decoder_norm": False}),
    ("topk", {"apply_b_dec_to_input": False}),
    ("topk", {"normalize_activations": "layer_norm"}),
    ("matryoshka", {"rescale_acts_by_decoder_norm": False, "use_matryoshka_aux_loss": True}),
    ("jumprelu", {"jumprelu_sparsity_loss_mode": "tanh"}),
    ("jumprelu", {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": 4.0}),
    ("jumprelu", {"pre_act_loss_coefficient": 1e-2}),
    ("jumprelu", {"jumprelu_init_threshold": 0.0}),  # half of the latents are active
]


@pytest.mark.parametrize(("kind", "options"), OPTIONS, ids=str)
def test_options_of_training(ours, kind, options):
    dead = None if "normalize_activations" in options else torch.arange(H) % 20 == 0
    expected, weights = trained(make(kind, **options), dead)
    with ours.accelerate():
        found, own = trained(make(kind, **options), dead)
        assert served(found.feature_acts) == ("jumprelu_init_threshold" not in options)
    assert_same(found.loss, expected.loss)
    for name, tensor in weights.items():
        assert_same(own[name], tensor)


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
@pytest.mark.parametrize("shape", [(D,), (5, D), (2, 3, D), (0, D)])
def test_saved_models(ours, tmp_path, kind, shape):
    """At inference BatchTopK is a JumpReLU."""
    from sae_lens import SAE

    sae = make(kind)
    trained(sae, None)
    if kind == "batchtopk":
        sae.topk_threshold.fill_(0.025)
    sae.save_inference_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    x = rows(9, shape)
    expected = loaded.encode(x), loaded(x)
    with ours.accelerate():
        acts = loaded.encode(x)
        assert served(acts) == (x.numel() > 0)
        found = acts, loaded(x)
        assert_same(loaded.decode(acts), expected[1])
    for got, wanted in zip(found, expected, strict=True):
        assert_same(got, wanted)


@pytest.mark.parametrize("thresholds", [None, 0.3])
def test_checkpoints_in_and_out(tmp_path, thresholds):
    from sae_lens import SAE

    from csrkern.integrations.checkpoints import load_sae_lens, save_sae_lens
    from csrkern.nn import SparseAutoencoder

    torch.manual_seed(0)
    model = SparseAutoencoder(D, H, K, tied=False)
    save_sae_lens(model, tmp_path / "ours", thresholds)
    theirs = SAE.load_from_disk(tmp_path / "ours")
    k = K if thresholds is None else H
    codes = model.encode(rows(), k).above(thresholds or 0)
    assert_same(theirs.encode(rows()), codes.to_dense())
    assert_same(theirs(rows()), model.decode(codes))
    theirs.save_model(tmp_path / "theirs")
    copied, found = load_sae_lens(tmp_path / "theirs", k=k)
    assert copied.encode(rows()).above(found if found is not None else 0).equal(codes)


def gradients(sae: Any, x: torch.Tensor, change: Any = None) -> list[torch.Tensor]:
    acts, hidden_pre = sae.encode_with_hidden_pre(x)
    if change is not None:
        change(acts)
    loss = sae.decode(acts).square().sum() + acts.sum() + 0.1 * hidden_pre.sum()
    return list(torch.autograd.grad(loss, [*sae.parameters()]))


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "jumprelu"])
def test_activations_that_are_used_and_changed(ours, kind):
    sae, x = make(kind), rows()
    for change in (None, lambda acts: acts.mul_(2)):
        expected = gradients(sae, x, change)
        with ours.accelerate():
            found = gradients(sae, x, change)
        for got, wanted in zip(found, expected, strict=True):
            assert_same(got, wanted)


def told(call: Any) -> tuple[Any, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call()
    return result, [str(w.message) for w in caught if "not accelerated" in str(w.message)]


@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
@pytest.mark.parametrize("how", ["hook", "subclass", "replaced"])
def test_what_we_do_not_know_is_left(ours, kind, how):
    sae, x = make(kind), rows()
    if how == "hook":
        sae.hook_sae_acts_post.add_hook(lambda acts, hook: 2 * acts)
    elif how == "subclass":
        sae.__class__ = type("Own", (type(sae),), {})
    else:
        sae.decode = lambda acts: 3 * type(sae).decode(sae, acts)
    expected = gradients(sae, x)
    with ours.accelerate():
        found, messages = told(lambda: gradients(sae, x))
    assert len(messages) == 1
    for got, wanted in zip(found, expected, strict=True):
        assert_same(got, wanted)


@pytest.mark.parametrize("kind", ["batchtopk", "jumprelu"])
def test_under_autocast(ours, kind):
    sae, x = make(kind), rows()
    with torch.autocast("cpu", torch.bfloat16):
        expected = sae(x)
        with ours.accelerate():
            assert torch.equal(sae(x), expected)


def test_gradients_of_gradients(ours):
    sae = make("topk", rescale_acts_by_decoder_norm=False)

    def penalty() -> list[torch.Tensor]:
        x = rows().requires_grad_()
        (grad,) = torch.autograd.grad(sae(x).pow(3).sum(), x, create_graph=True)
        return list(torch.autograd.grad(grad.square().sum(), [x, sae.W_enc, sae.W_dec]))

    expected = penalty()
    with ours.accelerate():
        found = penalty()
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("most", [3, 8, 64])
def test_batch_top_k_is_exact(most):
    from csrkern.integrations.sae_lens import _batch_top_k

    pre = torch.randint(-3, 4, (6, 64), generator=torch.Generator().manual_seed(1)).float()
    pre[2] = pre[2].abs() + 3  # the largest values are all of one row
    for total in (1, 5, 70, 200, 384):
        order = (-pre.flatten()).sort(stable=True).indices[:total]
        expected = torch.zeros(pre.numel()).scatter(0, order, pre.flatten()[order].relu())
        expected = expected.reshape(pre.shape)
        codes = _batch_top_k(pre, total, most)
        if int((expected > 0).sum(1).max()) > most:
            assert codes is None
        elif codes is not None:  # it may have to look further to be sure
            assert torch.equal(codes.validate().to_dense(), expected)
        else:
            assert most < 64
    assert _batch_top_k(pre, 0, most) is None


def test_everything_is_put_back(ours):
    from sae_lens.saes import jumprelu_sae, matryoshka_batchtopk_sae, sae, topk_sae

    def functions() -> list[Any]:
        return [
            topk_sae.TopK.forward,
            topk_sae.TopKSAE.encode,
            topk_sae.TopKTrainingSAE.encode_with_hidden_pre,
            topk_sae.act_times_W_dec,
            topk_sae.calculate_topk_aux_acts,
            matryoshka_batchtopk_sae.MatryoshkaBatchTopKTrainingSAE._iterable_decode,
            jumprelu_sae.JumpReLUTrainingSAE.encode_with_hidden_pre,
            jumprelu_sae.JumpReLUTrainingSAE.calculate_aux_loss,
            jumprelu_sae.JumpReLUSAE.encode,
            jumprelu_sae.JumpReLUSAE.decode,
            sae.TrainingSAE.decode,
        ]

    before = functions()
    with ours.accelerate():
        assert not set(before) & set(functions())
    assert functions() == before
