from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import csrkern
from csrkern import SparseCodes, reference
from csrkern.nn import SparseAutoencoder, TopKReLU

D, H, K = 12, 40, 4
NAMES = {"pre_bias", "latent_bias", "encoder.weight", "decoder.linear.weight", "stats_last_nonzero"}
OPTIONS = [{}, {"tied": False}, {"normalize": True}, {"normalize": True, "tied": False}]


def make(dtype=torch.float64, seed=0, **options) -> SparseAutoencoder:
    torch.manual_seed(seed)
    model = SparseAutoencoder(D, H, K, **options).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def batch(n=9, dtype=torch.float64) -> Tensor:
    return 3 * torch.randn(n, D, dtype=dtype) + 1


class Twin(nn.Module):
    """The model in plain PyTorch, dense, with the parameters of another."""

    def __init__(self, model: SparseAutoencoder) -> None:
        super().__init__()
        self.normalize = model.normalize
        self.pre_bias = nn.Parameter(model.pre_bias.detach().clone())
        self.latent_bias = nn.Parameter(model.latent_bias.detach().clone())
        self.encoder = nn.Parameter(model.encoder.weight.detach().clone())
        self.decoder = self.encoder
        if not model.tied:
            self.decoder = nn.Parameter(model.decoder.linear.weight.detach().clone())

    def forward(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        mean, deviation = 0.0, 1.0
        if self.normalize:
            mean, deviation = x.mean(1, keepdim=True), x.std(1, keepdim=True) + 1e-5
        pre = ((x - mean) / deviation - self.pre_bias) @ self.encoder.T + self.latent_bias
        values, indices = pre.topk(k, dim=1)
        dense = torch.zeros_like(pre).scatter(1, indices, F.relu(values))
        return (dense @ self.decoder + self.pre_bias) * deviation + mean, dense


# ---- the model ------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_tensor_names_and_shapes(tied):
    model = SparseAutoencoder(D, H, K, tied=tied)
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    assert shapes == {
        "pre_bias": (D,),
        "latent_bias": (H,),
        "encoder.weight": (H, D),
        "decoder.linear.weight": (H, D),
        "stats_last_nonzero": (H,),
    }
    assert model.stats_last_nonzero.dtype == torch.int64
    trained = {name for name, _ in model.named_parameters()}
    assert trained == NAMES - {"stats_last_nonzero"} - (
        {"decoder.linear.weight"} if tied else set()
    )
    assert (model.encoder.weight is model.decoder.linear.weight) == tied
    assert torch.equal(model.encoder.weight, model.decoder.linear.weight)  # at first, in any case
    assert f"tied={tied}" in repr(model)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("k", [None, 1, 17, H])
def test_equals_plain_pytorch(options, k):
    model, x = make(**options), batch()
    twin = Twin(model)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, codes = model(ours, k)
    expected, dense = twin(theirs, k or K)
    assert codes.validate().k == (k or K)
    torch.testing.assert_close(codes.to_dense(), dense)
    torch.testing.assert_close(out, expected)
    assert model.encode(x, k).equal(codes.detach())

    weight = torch.randn_like(out)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    pairs = {
        "pre_bias": twin.pre_bias,
        "latent_bias": twin.latent_bias,
        "encoder.weight": twin.encoder,
        "decoder.linear.weight": twin.decoder,
    }
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, pairs[name].grad, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_narrow_models_follow_the_double_one(dtype):
    exact, x = make(), batch(40)
    narrow = copy.deepcopy(exact).to(dtype)
    out, codes = narrow(x.to(dtype))
    assert out.dtype == codes.dtype == dtype
    expected, _ = exact(x)
    error = (out.double() - expected).norm(dim=1) / expected.norm(dim=1)
    assert float(error.detach().median()) < 8 * torch.finfo(dtype).eps


def test_a_wider_code_holds_the_narrower_ones():
    model, x = make(torch.float32), batch(dtype=torch.float32)
    assert model.encode(x, 16).truncate(K).equal(model.encode(x))
    assert torch.equal(model.encode(x).values, model.encode(x, K).values)


def test_standardize_and_its_inverse():
    plain, model, x = make(), make(normalize=True), batch()
    same, mean, deviation = plain.standardize(x)
    assert torch.equal(same, x)
    assert torch.equal(same * deviation + mean, x)
    seen, mean, deviation = model.standardize(x)
    assert (mean.shape, deviation.shape) == ((9, 1), (9, 1))
    torch.testing.assert_close(seen.mean(1), torch.zeros(9, dtype=x.dtype))
    torch.testing.assert_close(seen.std(1), torch.ones(9, dtype=x.dtype), rtol=1e-4, atol=0)
    torch.testing.assert_close(seen * deviation + mean, x)
    assert model.encode_standardized(seen).equal(model.encode(x))
    decoded = model.decode(model.encode(x))
    torch.testing.assert_close(decoded * deviation + mean, model(x)[0])
    constant = torch.full((2, D), 7.0, dtype=x.dtype)
    assert bool(model(constant)[0].isfinite().all())  # no deviation to divide by


@pytest.mark.filterwarnings("ignore:std")  # of nothing
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_no_rows(options):
    model = make(**options)
    out, codes = model(batch(0))
    assert out.shape == (0, D)
    assert codes.shape == (0, H)
    out.sum().backward()
    assert bool((model.encoder.weight.grad == 0).all())


@pytest.mark.parametrize("tied", [True, False])
def test_compiles_whole_with_a_dynamic_batch(tied):
    model = make(torch.float32, tied=tied, normalize=True)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (3, 8, 21):
        x = batch(n, torch.float32)
        out, codes = model(x)
        traced, traced_codes = compiled(x)
        torch.testing.assert_close(traced, out)
        assert torch.equal(traced_codes.indices, codes.indices)
        parameters = list(model.parameters())
        want = torch.autograd.grad(out.square().sum(), parameters)
        got = torch.autograd.grad(traced.square().sum(), parameters)
        for ours, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_training_lowers_the_error():
    model, x = make(torch.float32), batch(64, torch.float32)
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    errors = []
    for _ in range(60):
        error = (model(x)[0] - x).square().mean()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        errors.append(error.item())
    assert errors[-1] < 0.5 * errors[0]
    assert model.encoder.weight is model.decoder.linear.weight


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, H, K), "input_dim: expected at least 1, got 0"),
        ((D, 0, K), "hidden_dim: expected at least 1, got 0"),
        ((D, H, 0), "k: expected at least 1, got 0"),
        ((D, H, K, 0), "k_aux: expected at least 1, got 0"),
        ((D, H, H + 1), "k: expected at most hidden_dim = 40, got 41"),
    ],
)
def test_constructor_errors_teach(arguments, message):
    with pytest.raises(ValueError, match=message):
        SparseAutoencoder(*arguments)


def test_call_errors_teach():
    model = make(torch.float32)
    with pytest.raises(ValueError, match="k: expected 1 <= k <= h = 40, got 41"):
        model(torch.ones(2, D), 41)
    with pytest.raises(ValueError, match=r"x: expected shape \[any, 12\], got \[2, 13\]"):
        model.encode(torch.ones(2, D + 1))
    with pytest.raises(TypeError, match=r"weight is torch\.float32 but x is torch\.float64"):
        model.encode(torch.ones(2, D).double())


# ---- arrays and files -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", "longdouble", "list"])
@pytest.mark.parametrize("model_dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_encode_takes_arrays_of_any_float_type(model_dtype, dtype, tmp_path, monkeypatch):
    model, x = make(model_dtype), batch(50, torch.float16)
    expected = model.encode(x.to(model_dtype)).detach()
    array = x.tolist() if dtype == "list" else x.numpy().astype(dtype)
    codes = model.encode(array)
    assert codes.equal(expected)
    assert codes.dtype == model_dtype
    assert not codes.values.requires_grad
    if dtype == "list":
        return
    np.save(tmp_path / "x.npy", array)
    for path in (tmp_path / "x.npy", str(tmp_path / "x.npy")):
        assert model.encode(path, 3).equal(expected.truncate(3))
    monkeypatch.setattr(csrkern.nn, "_BATCH_BYTES", 4 * D * 17)  # batches of 17, 17 and 16 rows
    joined = model.encode(array)
    assert torch.equal(joined.indices, expected.indices)
    torch.testing.assert_close(joined.values, expected.values)


def test_encode_of_a_tensor_keeps_its_gradient():
    model, x = make(), batch().requires_grad_()
    model.encode(x).values.sum().backward()
    assert bool(x.grad.any())


def test_encode_of_arrays_leaves_them_alone():
    model, x = make(torch.float32), np.ones((4, D), np.float32)
    x.flags.writeable = False
    assert len(model.encode(x)) == 4
    assert model.encode(np.empty((0, D), np.float32)).values.shape == (0, K)
    strided = np.repeat(batch(6, torch.float32).numpy(), 2, axis=0)[::-2]
    assert model.encode(strided).equal(model.encode(torch.from_numpy(strided.copy())).detach())


def test_encode_refuses_what_is_not_embeddings(tmp_path, monkeypatch):
    model, x = make(torch.float32), np.ones((9, D))
    for wrong, error, message in (
        (x[:, 1:], ValueError, rf"x: expected shape \[n, {D}\], got \[9, {D - 1}\]"),
        (x[0], ValueError, rf"x: expected shape \[n, {D}\], got \[{D}\]"),
        (np.float64(3), ValueError, rf"x: expected shape \[n, {D}\], got \[\]"),
        (x.astype(int), TypeError, "x: expected floating-point embeddings, got int64"),
        ("rows.parquet", ValueError, r"got 'rows.parquet'; csrtrain.load_embeddings"),
        (None, TypeError, "x: expected floating-point embeddings, got object"),
    ):
        with pytest.raises(error, match=message):
            model.encode(wrong)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        model.encode(tmp_path / "nowhere.npy")
    (tmp_path / "damaged.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match=r"damaged\.npy is not a readable \.npy file"):
        model.encode(tmp_path / "damaged.npy")

    monkeypatch.setattr(csrkern.nn, "_BATCH_BYTES", 4 * D * 2)
    for value in (np.nan, np.inf, 1e300):  # the last is infinite in float32
        x[7, 2] = value
        with pytest.raises(ValueError, match="x: row 7 holds 1 values that are not finite"):
            model.encode(x)


# ---- dead latents ---------------------------------------------------------------------


def codes_of(values, indices) -> SparseCodes:
    return SparseCodes(torch.tensor(values), torch.tensor(indices, dtype=torch.int32), H)


def test_update_stats_counts_steps_since_use():
    model = make(torch.float32, dead_threshold=2)
    codes = codes_of([[5.0, 1e-4, 0.0], [3.0, 1e-5, 1e-6]], [[7, 9, 0], [9, 3, 4]])
    for steps in (1, 2, 3):
        model.update_stats(codes)
        stats = model.stats_last_nonzero
        assert (stats == 0).nonzero()[:, 0].tolist() == [7, 9]  # 0 is padding; 3, 4 are too small
        assert stats.unique().tolist() == [0, steps]
        dead = model.dead
        assert int(dead.sum()) == (H - 2 if steps > 2 else 0)
    assert dead.dtype == torch.bool
    assert not bool(dead[[7, 9]].any())
    model.update_stats(codes, threshold=1.0)
    assert bool(model.stats_last_nonzero[[7, 9]].eq(0).all())
    model.update_stats(codes, threshold=4.0)
    assert model.stats_last_nonzero[[7, 9]].tolist() == [0, 1]
    model.update_stats(codes, threshold=0.0)
    assert (model.stats_last_nonzero == 0).nonzero()[:, 0].tolist() == [3, 4, 7, 9]
    model.update_stats(codes[:0])
    assert (model.stats_last_nonzero == 1).nonzero()[:, 0].tolist() == [3, 4, 7, 9]


def test_forward_and_encode_leave_the_statistics_alone():
    for model in (make(), make().eval()):
        model(batch())
        model.encode(batch())
        model.autoencode(batch(), [K])
        assert bool((model.stats_last_nonzero == 0).all())


def with_dead(model: SparseAutoencoder, latents: list[int]) -> Tensor:
    """Marks the latents as dead, all others as not quite; returns the mask [h]."""
    dead = torch.zeros(H, dtype=torch.bool)
    dead[latents] = True
    model.stats_last_nonzero[dead] = model.dead_threshold + 1
    model.stats_last_nonzero[~dead] = model.dead_threshold
    return dead


@pytest.mark.parametrize("tied", [True, False])
def test_reconstruct_dead_uses_dead_latents_only(tied):
    model, x = make(k_aux=6, tied=tied), batch(30)
    assert model.reconstruct_dead(x) is None
    dead = with_dead(model, [0, 3, 17, 20, 21, 30, 33, 39])
    twin = Twin(model)
    pre = (x - twin.pre_bias) @ twin.encoder.T + twin.latent_bias
    parameters = dict(model.named_parameters())
    pairs = dict(zip(parameters, twin.parameters(), strict=True))
    for k_aux, k in [(None, 6), (1, 1), (8, 8), (9, 8), (500, 8)]:
        out = model.reconstruct_dead(x, k_aux)
        expected = reference.topk_relu(pre, k, dead).to_dense() @ twin.decoder
        torch.testing.assert_close(out, expected)
        weight = torch.randn_like(out)
        got = torch.autograd.grad(out, list(parameters.values()), weight)
        want = torch.autograd.grad(expected, list(pairs.values()), weight, retain_graph=True)
        for name, ours, theirs in zip(parameters, got, want, strict=True):
            torch.testing.assert_close(ours, theirs, msg=name)
            if name != "pre_bias":
                assert bool((ours[~dead] == 0).all()), name


def test_reconstruct_dead_takes_standardized_rows():
    model, x = make(normalize=True), batch()
    with_dead(model, list(range(H)))
    seen, _, _ = model.standardize(x)
    expected = model.decode(model.encode(x)) - model.pre_bias
    torch.testing.assert_close(model.reconstruct_dead(seen, K), expected)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_autoencode_is_encode_and_decode_at_each_k(options):
    model, x = make(**options), batch()
    seen, _, _ = model.standardize(x)
    codes, out = model.autoencode(seen, [2, K, 16])
    assert codes.equal(model.encode(x, 16))
    for part, k in zip(out, (2, K, 16), strict=True):
        torch.testing.assert_close(part, model.decode(codes.truncate(k)))


# ---- TopKReLU -------------------------------------------------------------------------


def test_topk_relu_module():
    pre = torch.randn(4, 6, 30, requires_grad=True)
    assert TopKReLU(5)(pre[0]).equal(csrkern.topk_relu(pre[0], 5))
    dense = TopKReLU(5, dense=True)(pre)
    values, indices = pre.topk(5, dim=-1)
    expected = torch.zeros_like(pre).scatter(-1, indices, values.relu())
    assert torch.equal(dense, expected)
    grads = [torch.autograd.grad(t.square().sum(), pre)[0] for t in (dense, expected)]
    assert torch.equal(*grads)
    assert repr(TopKReLU(5, dense=True)) == "TopKReLU(k=5, dense=True)"
