from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import csrkern
from csrkern import SparseCodes, reference
from csrkern.embeddings import dataset
from csrkern.embeddings.dataset import Embeddings
from csrkern.nn import SparseAutoencoder, TopKReLU

D, H, K = 12, 40, 4
NAMES = {"pre_bias", "latent_bias", "encoder.weight", "decoder.linear.weight", "stats_last_nonzero"}
OPTIONS = [{}, {"tied": False}, {"standardize": True}, {"standardize": True, "tied": False}]


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
        self.standardize = model.standardize
        self.pre_bias = nn.Parameter(model.pre_bias.detach().clone())
        self.latent_bias = nn.Parameter(model.latent_bias.detach().clone())
        self.encoder = nn.Parameter(model.encoder.weight.detach().clone())
        self.decoder = self.encoder
        if not model.tied:
            self.decoder = nn.Parameter(model.decoder.linear.weight.detach().clone())

    def forward(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        mean, deviation = 0.0, 1.0
        if self.standardize:
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
    decoder = {} if tied else {"decoder.linear.weight": (H, D)}  # a tied weight is stored once
    assert shapes == {
        "pre_bias": (D,),
        "latent_bias": (H,),
        "encoder.weight": (H, D),
        **decoder,
        "stats_last_nonzero": (H,),
    }
    assert {name for name, _ in model.named_parameters(remove_duplicate=False)} == NAMES - {
        "stats_last_nonzero"
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


@pytest.mark.filterwarnings("ignore:std")  # of nothing
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_leading_dimensions_are_kept(options):
    model, x = make(**options), 3 * torch.randn(2, 3, 5, D, dtype=torch.float64)
    flat, codes = model(x.reshape(-1, D))
    out, same_codes = model(x)
    assert torch.equal(out, flat.reshape(x.shape))
    assert same_codes.equal(codes)
    row, code = model(x[1, 2, 3])
    assert torch.equal(row, model(x[1, 2, 3:4])[0][0])
    assert code.shape == (1, H)
    assert torch.equal(model(x.movedim(0, 2))[0], model(x.movedim(0, 2).contiguous())[0])
    empty, none = model(x[:, :0])
    assert (empty.shape, none.shape) == ((2, 0, 5, D), (0, H))


def test_a_wider_code_holds_the_narrower_ones():
    model, x = make(torch.float32), batch(dtype=torch.float32)
    assert model.encode(x, 16).truncate(K).equal(model.encode(x))
    assert torch.equal(model.encode(x).values, model.encode(x, K).values)


def test_standardize_and_its_inverse():
    plain, model, x = make(), make(standardize=True), batch()
    same, mean, deviation = plain.standardized(x)
    assert torch.equal(same, x)
    assert torch.equal(same * deviation + mean, x)
    seen, mean, deviation = model.standardized(x)
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
    model = make(torch.float32, tied=tied, standardize=True)
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
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    errors = []
    for _ in range(60):
        error = (model(x)[0] - x).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.5 * errors[0]
    assert model.encoder.weight is model.decoder.linear.weight


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, H, K), "input_dim: expected at least 1, got 0"),
        ((D, 0, K), "hidden_dim: expected 1 <= hidden_dim <= 2147483647, got 0"),
        ((D, H, 0), "k: expected at least 1, got 0"),
        ((D, H, K, -1), "k_aux: expected at least 0, got -1"),
        ((D, H, K, 1, False, -1), "dead_threshold: expected at least 0, got -1"),
        ((D, H, H + 1), "k: expected at most hidden_dim = 40, got 41"),
    ],
)
def test_constructor_errors_teach(arguments, message):
    with pytest.raises(ValueError, match=message):
        SparseAutoencoder(*arguments)


@pytest.mark.parametrize("name", ["input_dim", "hidden_dim", "k", "k_aux", "dead_threshold"])
@pytest.mark.parametrize("value", [True, np.bool_(True), 2.0, "2", None], ids=repr)
def test_sizes_are_integers(name, value):
    sizes = {"input_dim": D, "hidden_dim": H, "k": K}
    with pytest.raises(TypeError, match=f"{name}: expected an int, got {type(value).__name__}"):
        SparseAutoencoder(**{**sizes, name: value})
    if name == "k":
        with pytest.raises(TypeError, match="k: expected an int"):
            TopKReLU(value)


def test_sizes_and_switches_may_be_numpys():
    sizes = {"input_dim": D, "hidden_dim": H, "k": K, "k_aux": 3, "dead_threshold": 0}
    model = SparseAutoencoder(
        **{name: np.int64(size) for name, size in sizes.items()}, tied=np.bool_(False)
    )
    assert model.config() == {**sizes, "standardize": False, "tied": False}
    assert all(type(value) in (int, bool) for value in model.config().values())
    for name in ("tied", "standardize"):
        with pytest.raises(TypeError, match=f"{name}: expected a bool, got str"):
            SparseAutoencoder(D, H, K, **{name: "no"})
    assert type(TopKReLU(np.uint8(3)).k) is int
    with pytest.raises(ValueError, match="k: expected at least 1, got 0"):
        TopKReLU(0)


def test_call_errors_teach():
    model = make(torch.float32)
    with pytest.raises(ValueError, match="k: expected 1 <= k <= h = 40, got 41"):
        model(torch.ones(2, D), 41)
    with pytest.raises(ValueError, match=r"x: expected shape \[any, 12\], got \[2, 13\]$"):
        model.encode(torch.ones(2, D + 1))
    wrong = r"x: expected shape \[any, 12\], got \[2, 5, 12\]; use x\.reshape\(-1, 12\)$"
    with pytest.raises(ValueError, match=wrong):
        model.encode(torch.ones(2, 5, D))
    with pytest.raises(ValueError, match=r"got \[12\]; use x\[None\]$"):
        model.encode(torch.ones(D))
    for shape in ((), (D + 1,), (2, 3, D + 1)):
        with pytest.raises(ValueError, match=r"x: expected shape \[\.\.\., 12\], got \["):
            model(torch.ones(shape))
    with pytest.raises(ValueError, match=r"pre: .* got \[2, 3, 9\]; use pre\.reshape\(-1, 9\)$"):
        TopKReLU(5)(torch.ones(2, 3, 9))
    with pytest.raises(ValueError, match=r"pre: expected shape \[\.\.\., any\], got \[\]$"):
        TopKReLU(5, dense=True)(torch.ones(()))
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
    monkeypatch.setattr(dataset, "_PIECE_BYTES", 4 * D * 17)  # batches of 17, 17 and 16 rows
    joined = model.encode(array)
    assert torch.equal(joined.indices, expected.indices)
    torch.testing.assert_close(joined.values, expected.values)


@pytest.mark.parametrize("form", ["npz", "safetensors", "pt", "parquet", "frame"])
def test_encode_takes_what_training_takes(form, tmp_path, monkeypatch):
    model, x = make(torch.float32), batch(50, torch.float32)
    expected = model.encode(x).detach()
    path = tmp_path / f"x.{form}"
    if form == "npz":
        np.savez(path, emb=x.numpy(), other=np.arange(50))
    elif form == "safetensors":
        save_file({"emb": x}, path)
    elif form == "pt":
        torch.save({"emb": x}, path)
    else:
        frame = pytest.importorskip("pandas").DataFrame(x.numpy())
        if form == "parquet":
            pytest.importorskip("pyarrow")
            frame.apply(list, axis=1).to_frame("emb").to_parquet(path)
    given = (frame,) if form == "frame" else (path, f"{path}:emb")
    for source in given:
        seen = []
        assert model.encode(source, on_rows=seen.append).equal(expected)
        assert seen == [50]
    monkeypatch.setattr(dataset, "_PIECE_BYTES", 4 * D * 17)
    model.encode(given[0], on_rows=seen.append)
    assert seen == [50, 17, 17, 16]


def test_encode_names_the_file_and_the_row(tmp_path):
    x = batch(9, torch.float32).numpy()
    x[7, 2] = np.nan
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(ValueError, match=r"x\.npy: row 7 holds 1 values"):
        make(torch.float32).encode(tmp_path / "x.npy")
    with pytest.raises(ValueError, match=r"part: row 107 holds 1 values"):
        make(torch.float32).encode(Embeddings("part", x, 100))


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
        (x[:, 1:], ValueError, rf"x: expected embeddings of shape \[n, {D}\], got \[9, {D - 1}\]"),
        (x[0], ValueError, rf"x: expected embeddings of shape \[n, d\], got \[{D}\]"),
        (np.float64(3), ValueError, r"x: expected embeddings of shape \[n, d\], got \[\]"),
        (x.astype(int), TypeError, "x: expected floating-point embeddings, got int64"),
        ("rows.csv", FileNotFoundError, "no file at rows.csv"),
        (None, TypeError, "x: expected a path, .* or lists of numbers, got NoneType"),
    ):
        with pytest.raises(error, match=message):
            model.encode(wrong)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        model.encode(tmp_path / "nowhere.npy")
    (tmp_path / "damaged.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match=r"damaged\.npy is not a readable \.npy file"):
        model.encode(tmp_path / "damaged.npy")

    monkeypatch.setattr(dataset, "_PIECE_BYTES", 4 * D * 2)
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
    # Up to three of eight the sums are sparse, from four on they are dense products.
    for k_aux, k in [(None, 6), (1, 1), (3, 3), (4, 4), (8, 8), (9, 8), (500, 8)]:
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


def test_reconstruct_dead_takes_raw_rows():
    model, x = make(standardize=True), batch()
    with_dead(model, list(range(H)))
    seen, _, deviation = model.standardized(x)
    expected = model.decode(model.encode(x)) - model.pre_bias
    torch.testing.assert_close(model.reconstruct_dead_standardized(seen, K), expected)
    torch.testing.assert_close(model.reconstruct_dead(x, K), expected * deviation)


@pytest.mark.parametrize("capacity", [None, 0, 8])
def test_k_aux_of_0_reconstructs_nothing(capacity):
    model, x = make(k_aux=0), batch()
    with_dead(model, list(range(H)))
    model.dead_capacity = capacity
    assert model.reconstruct_dead(x) is None
    assert make(k_aux=5).reconstruct_dead(x, 0) is None


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_autoencode_is_encode_and_decode_at_each_k(options):
    model, x = make(**options), batch()
    seen, mean, deviation = model.standardized(x)
    codes, out = model.autoencode(x, [2, K, 16])
    assert codes.equal(model.encode(x, 16))
    same, inside = model.autoencode_standardized(seen, [2, K, 16])
    assert same.equal(codes)
    for part, own, k in zip(out, inside, (2, K, 16), strict=True):
        torch.testing.assert_close(own, model.decode(codes.truncate(k)))
        torch.testing.assert_close(part, own * deviation + mean)
        torch.testing.assert_close(part, model(x, k)[0])


# ---- tied weights ---------------------------------------------------------------------


def tied_and_not() -> tuple[SparseAutoencoder, SparseAutoencoder]:
    """A tied model, and an untied one with the same tensors."""
    tied, untied = make(), make(tied=False)
    untied.load_state_dict({**tied.state_dict(), "decoder.linear.weight": tied.encoder.weight})
    return tied, untied


def assert_tied(model: SparseAutoencoder) -> None:
    assert model.decoder.linear.weight is model.encoder.weight
    assert len(list(model.parameters())) == 3


def test_functional_call_leaves_the_parameters_alone():
    model, x = make(), batch()
    before = dict(model.named_parameters(remove_duplicate=False))
    other = {name: torch.randn_like(tensor) for name, tensor in model.named_parameters()}
    out, _ = torch.func.functional_call(model, other, (x,))
    replaced = make()
    replaced.load_state_dict({**model.state_dict(), **other})
    assert torch.equal(out, replaced(x)[0])
    assert dict(model.named_parameters(remove_duplicate=False)).keys() == before.keys()
    assert all(
        tensor is before[name] for name, tensor in model.named_parameters(remove_duplicate=False)
    )
    assert_tied(model)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("names", ["encoder", "decoder", "both"])
def test_a_tied_weight_loads_under_either_name(names, assign, wrapped):
    source, model = make(seed=1), make()
    state = source.state_dict()
    if names != "encoder":
        state["decoder.linear.weight"] = state["encoder.weight"].clone()
    if names == "decoder":
        del state["encoder.weight"]
    loaded = model
    if wrapped:
        loaded = nn.ModuleDict({"a": model})
        state = {f"a.{name}": tensor for name, tensor in state.items()}
    keys = loaded.load_state_dict(state, assign=assign)
    assert not keys.missing_keys
    assert not keys.unexpected_keys
    assert torch.equal(model.encoder.weight, source.encoder.weight)
    assert_tied(model)


def test_two_weights_do_not_load_as_one():
    _, untied = tied_and_not()
    state = untied.state_dict()
    make().load_state_dict(state)
    state["decoder.linear.weight"] = state["decoder.linear.weight"] + 1
    with pytest.raises(RuntimeError, match=r"decoder\.linear\.weight differs from encoder\.weight"):
        make().load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Missing key.*encoder\.weight"):
        make().load_state_dict({"pre_bias": state["pre_bias"]})


@pytest.mark.parametrize("seen", ["to_empty", "to", "double", "share_memory", "assign"])
def test_moves_keep_the_weights_tied(seen):
    if seen == "to_empty":
        model = SparseAutoencoder(D, H, K, device="meta").to_empty(device="cpu")
    elif seen == "assign":
        model = SparseAutoencoder(D, H, K, device="meta")
        model.load_state_dict(make().state_dict(), assign=True)
    else:
        model = make()
        {"to": lambda: model.to("meta"), "double": model.half, "share_memory": model.share_memory}[
            seen
        ]()
    assert_tied(model)
    assert_tied(nn.Sequential(model).to("meta")[0])


def test_a_parametrized_weight_decodes_too():
    class Twice(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    model, x = make(), batch()
    expected = copy.deepcopy(model)
    with torch.no_grad():
        expected.encoder.weight.mul_(2)
    nn.utils.parametrize.register_parametrization(model.encoder, "weight", Twice())
    assert torch.equal(model(x)[0], expected(x)[0])
    assert torch.equal(model.double()(x)[0], expected(x)[0])


def test_dtype_and_device_are_those_of_a_linear_layer():
    model = SparseAutoencoder(D, H, K, device="meta", dtype=torch.bfloat16)
    assert {t.device.type for t in model.state_dict().values()} == {"meta"}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.stats_last_nonzero.dtype == torch.int64
    untied = SparseAutoencoder(D, H, K, tied=False, dtype=torch.float64)
    assert untied.decoder.linear.weight.dtype == torch.float64
    assert untied.decoder.linear.weight.data_ptr() != untied.encoder.weight.data_ptr()


# ---- TopKReLU -------------------------------------------------------------------------


def test_topk_relu_module():
    pre = torch.randn(4, 6, 30, requires_grad=True)
    assert TopKReLU(5)(pre[0]).equal(csrkern.topk_relu(pre[0], 5))
    dense = TopKReLU(5, dense=True)(pre)
    values, indices = pre.topk(5, dim=-1)
    expected = torch.zeros_like(pre).scatter(-1, indices, values.relu())
    assert torch.equal(dense, expected)
    assert torch.equal(TopKReLU(5, dense=True)(pre[0, 0]), expected[0, 0])
    grads = [torch.autograd.grad(t.square().sum(), pre)[0] for t in (dense, expected)]
    assert torch.equal(*grads)
    assert repr(TopKReLU(5, dense=True)) == "TopKReLU(k=5, dense=True)"
