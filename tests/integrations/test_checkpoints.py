"""Adapters in the paper's .pth, and in folders of sparsify, SAELens and sentence-transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from csrkern.integrations.checkpoints import (
    load_pth,
    load_sae_lens,
    load_sparsify,
    save_pth,
    save_sae_lens,
    save_sparsify,
)
from csrkern.integrations.sentence_transformers.folder import (
    load_sentence_transformers,
    model_card,
    save_sentence_transformers,
)
from csrkern.nn import SparseAutoencoder

D, H, K = 8, 32, 5


def make(**options: Any) -> SparseAutoencoder:
    model = SparseAutoencoder(D, H, K, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.stats_last_nonzero.copy_(torch.arange(H))
    return model


def assert_same(copied: SparseAutoencoder, model: SparseAutoencoder, stats: bool = True) -> None:
    """Bitwise the same codes, reconstructions and, where the format holds them, statistics."""
    x = torch.randn(20, D)
    for got, want in zip(copied(x), model(x), strict=True):
        assert got.equal(want)
    assert (copied.encoder.weight is copied.decoder.linear.weight) == copied.tied
    if stats:
        assert torch.equal(copied.stats_last_nonzero, model.stats_last_nonzero)


# ---- the paper's .pth -----------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapped", [True, False])
def test_pth_as_the_scripts_write_it(tmp_path: Path, prefix: str, wrapped: bool) -> None:
    model = make(k_aux=9, dead_threshold=4)
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    # The image script saves its backbone with the adapter.
    state[f"{prefix}pre_trained_backbone.fc.weight"] = torch.randn(3, D)
    state[f"{prefix}pre_trained_backbone.encoder.weight"] = torch.randn(3, 3)
    adam = torch.optim.Adam(model.parameters()).state_dict()
    content = {"epoch": 10, "state_dict": state, "optimizer": adam} if wrapped else state
    torch.save(content, tmp_path / "a.pth")
    copied = load_pth(tmp_path / "a.pth", k=K, k_aux=9, dead_threshold=4)
    assert copied.config() == model.config()
    assert_same(copied, model)


def test_pth_round_trip(tmp_path: Path) -> None:
    model = make(standardize=True)
    save_pth(model, tmp_path / "a.pth")
    assert_same(load_pth(tmp_path / "a.pth", k=K, standardize=True), model)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_pth_that_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with pytest.raises(FileNotFoundError, match=r"a\.pth"):
        load_pth(path, k=K)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="damaged"):
        load_pth(path, k=K)
    torch.save({"state_dict": {"fc.weight": torch.ones(2)}}, path)
    with pytest.raises(ValueError, match=r"lacks encoder\.weight.*begin fc\.weight"):
        load_pth(path, k=K)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds no adapter"):
        load_pth(path, k=K)
    untied = make().state_dict() | {"decoder.linear.weight": torch.randn(H, D)}
    torch.save(untied, path)
    with pytest.raises(ValueError, match="differs"):
        load_pth(path, k=K)
    torch.save(make().state_dict() | {"pre_bias": torch.ones(D + 1)}, path)
    with pytest.raises(ValueError, match="one model"):
        load_pth(path, k=K)
    save_pth(make(), path)
    with pytest.raises(ValueError, match="k: expected"):
        load_pth(path, k=H + 1)
    with pytest.raises(ValueError, match="tied"):
        save_pth(make(tied=False), path)


class Runs:
    """An object whose unpickling leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_pth_never_runs_code(tmp_path: Path) -> None:
    torch.save({"state_dict": make().state_dict(), "x": Runs(tmp_path / "ran")}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="could run"):
        load_pth(tmp_path / "a.pth", k=K)
    assert not (tmp_path / "ran").exists()


# ---- sparsify -------------------------------------------------------------------------


def write_sparsify(folder: Path, **changes: Any) -> dict[str, torch.Tensor]:
    """A folder as `sparsify` writes it: expansion_factor and num_latents = 0, unit rows."""
    folder.mkdir()
    weight = torch.randn(H, D)
    tensors = {
        "encoder.weight": weight,
        "encoder.bias": torch.randn(H),
        "W_dec": torch.nn.functional.normalize(torch.randn(H, D)),
        "b_dec": torch.randn(D),
    }
    save_file(tensors, folder / "sae.safetensors")
    cfg = {"expansion_factor": H // D, "num_latents": 0, "k": K, "normalize_decoder": True}
    cfg |= {"multi_topk": False, "skip_connection": False, "d_in": D, **changes}
    (folder / "cfg.json").write_text(json.dumps(cfg))
    return tensors


def test_sparsify_gives_what_its_formula_gives(tmp_path: Path) -> None:
    tensors = write_sparsify(tmp_path / "sae")
    model = load_sparsify(tmp_path / "sae")
    assert not model.tied
    assert (model.input_dim, model.hidden_dim, model.k, model.k_aux) == (D, H, K, D // 2)
    x = torch.randn(20, D).double()
    t = {name: tensor.double() for name, tensor in tensors.items()}
    top = ((x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"]).relu().topk(K)
    dense = torch.zeros(20, H).double().scatter(1, top.indices, top.values)
    out, codes = model(x.float())
    torch.testing.assert_close(codes.to_dense().double(), dense, rtol=0, atol=1e-5)
    torch.testing.assert_close(out.double(), dense @ t["W_dec"] + t["b_dec"], rtol=0, atol=1e-5)


def test_sparsify_without_an_auxiliary_loss_and_with_a_byte_order_mark(tmp_path: Path) -> None:
    write_sparsify(tmp_path / "sae")
    cfg = tmp_path / "sae" / "cfg.json"
    cfg.write_bytes(b"\xef\xbb\xbf" + cfg.read_bytes())
    assert load_sparsify(tmp_path / "sae", k_aux=0).k_aux == 0


@pytest.mark.parametrize("tied", [True, False])
def test_sparsify_round_trip(tmp_path: Path, tied: bool) -> None:
    model = make(tied=tied)
    save_sparsify(model, tmp_path / "sae")
    assert_same(load_sparsify(tmp_path / "sae"), model, stats=False)
    assert set(load_file(tmp_path / "sae" / "sae.safetensors")) == {
        "encoder.weight",
        "encoder.bias",
        "W_dec",
        "b_dec",
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "groupmax"}, "activation: expected 'topk', got 'groupmax'"),
        ({"signed": True}, "signed"),
        ({"transcode": True}, "transcode"),
        ({"skip_connection": True}, "skip_connection"),
        ({"k": "many"}, "integer k"),
        ({"k": True}, "integer k"),
        ({"k": 5.0}, "integer k"),
    ],
)
def test_sparsify_that_is_no_topk_autoencoder(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_sparsify(tmp_path / "sae", **changes)
    with pytest.raises(ValueError, match=message):
        load_sparsify(tmp_path / "sae")


def test_sparsify_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="hookpoint"):
        load_sparsify(tmp_path)
    tensors = write_sparsify(tmp_path / "sae")
    del tensors["W_dec"]
    save_file(tensors, tmp_path / "sae" / "sae.safetensors")
    with pytest.raises(ValueError, match="lacks W_dec"):
        load_sparsify(tmp_path / "sae")
    (tmp_path / "sae" / "sae.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match="damaged"):
        load_sparsify(tmp_path / "sae")
    with pytest.raises(ValueError, match="standardize=False"):
        save_sparsify(make(standardize=True), tmp_path / "other")


# ---- sentence-transformers' folders, without the package ------------------------------


def write_backbone(folder: Path, width: int = D) -> Path:
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": width, "pooling_mode_mean_tokens": True})
    )
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {
            "idx": 1,
            "name": "1",
            "path": "1_Pooling",
            "type": "sentence_transformers.models.Pooling",
        },
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "model.safetensors").write_bytes(b"weights of the backbone")
    (folder / "README.md").write_text("the card of the backbone")
    return folder


def test_folder_round_trip(tmp_path: Path) -> None:
    model = make(k_aux=9, standardize=True, dead_threshold=4)
    backbone = write_backbone(tmp_path / "backbone")
    target = tmp_path / "models" / "csr"
    save_sentence_transformers(model, target, backbone)
    for folder in (target, target / "2_SparseAutoEncoder"):
        copied = load_sentence_transformers(folder)
        assert copied.config() == model.config()
        assert_same(copied, model)
    assert (target / "model.safetensors").read_bytes() == b"weights of the backbone"
    settings = json.loads((target / "config_sentence_transformers.json").read_text())
    assert settings["model_type"] == "SparseEncoder"
    assert (target / "README.md").read_text() == model_card(model, "csr")
    assert [path.name for path in target.parent.iterdir()] == ["csr"]


TYPES = [
    "sentence_transformers.sparse_encoder.models.SparseAutoEncoder",  # 5.1
    "sentence_transformers.sparse_encoder.modules.sparse_auto_encoder.SparseAutoEncoder",  # 6.2
]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "marked"])
def test_folders_of_all_versions_with_or_without_a_byte_order_mark(
    tmp_path: Path, kind: str, mark: bytes
) -> None:
    model = make(k_aux=9, standardize=True, dead_threshold=4)
    target = tmp_path / "csr"
    save_sentence_transformers(model, target, write_backbone(tmp_path / "backbone"))
    modules = json.loads((target / "modules.json").read_text())
    modules[-1]["type"] = kind
    (target / "modules.json").write_bytes(mark + json.dumps(modules).encode())
    for file in [*target.glob("*/config.json"), target / "config_sentence_transformers.json"]:
        file.write_bytes(mark + file.read_bytes())
    assert_same(load_sentence_transformers(target), model)
    (backbone := tmp_path / "marked").mkdir()
    (backbone / "modules.json").write_bytes(mark + json.dumps(modules[:1]).encode())
    save_sentence_transformers(model, tmp_path / "again", backbone)


@pytest.mark.parametrize("kind", ["mine.SparseAutoEncoder", "sentence_transformers.a.Other"])
def test_modules_of_other_packages_are_no_adapters(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "csr"
    save_sentence_transformers(make(), target, write_backbone(tmp_path / "backbone"))
    modules = json.loads((target / "modules.json").read_text())
    modules[-1]["type"] = kind
    (target / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match=rf"expected one SparseAutoEncoder .*{kind}"):
        load_sentence_transformers(target)


def with_nan() -> SparseAutoencoder:
    model = make()
    with torch.no_grad():
        model.encoder.weight[3, 2] = torch.nan
    return model


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    message = r"encoder\.weight: expected finite numbers, got 1 that are NaN or infinite"
    writers = {
        "pth": lambda: save_pth(with_nan(), tmp_path / "a.pth"),
        "sparsify": lambda: save_sparsify(with_nan(), tmp_path / "sae"),
        "folder": lambda: save_sentence_transformers(
            with_nan(), tmp_path / "csr", write_backbone(tmp_path / "backbone")
        ),
    }
    for write in writers.values():
        with pytest.raises(ValueError, match=message):
            write()
    assert [path.name for path in tmp_path.iterdir()] == ["backbone"]
    torch.save(with_nan().state_dict(), tmp_path / "nan.pth")
    with pytest.raises(ValueError, match=rf"nan\.pth: {message}"):
        load_pth(tmp_path / "nan.pth", k=K)
    tensors = write_sparsify(tmp_path / "sae")
    tensors["encoder.bias"][0] = torch.inf
    save_file(tensors, tmp_path / "sae" / "sae.safetensors")
    with pytest.raises(ValueError, match="latent_bias: expected finite numbers"):
        load_sparsify(tmp_path / "sae")
    save_sentence_transformers(make(), tmp_path / "csr", tmp_path / "backbone")
    weights = tmp_path / "csr" / "2_SparseAutoEncoder" / "model.safetensors"
    save_file(load_file(weights) | {"pre_bias": torch.full((D,), torch.nan)}, weights)
    with pytest.raises(ValueError, match="pre_bias: expected finite numbers"):
        load_sentence_transformers(tmp_path / "csr")


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    model, backbone = make(), write_backbone(tmp_path / "backbone")
    with pytest.raises(ValueError, match="tied"):
        save_sentence_transformers(make(tied=False), tmp_path / "a", backbone)
    with pytest.raises(FileNotFoundError, match=r"modules\.json"):
        save_sentence_transformers(model, tmp_path / "a", tmp_path)
    with pytest.raises(FileExistsError, match="not empty"):
        save_sentence_transformers(model, backbone, backbone)
    with pytest.raises(ValueError, match=f"width {D}, the model's input_dim, got 9"):
        save_sentence_transformers(model, tmp_path / "a", write_backbone(tmp_path / "wide", 9))
    save_sentence_transformers(model, tmp_path / "a", backbone)
    with pytest.raises(ValueError, match="adapter already"):
        save_sentence_transformers(model, tmp_path / "b", tmp_path / "a")
    with pytest.raises(ValueError, match="expected one SparseAutoEncoder"):
        load_sentence_transformers(backbone)
    (backbone / "modules.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        load_sentence_transformers(backbone)
    with pytest.raises(FileNotFoundError):
        load_sentence_transformers(tmp_path / "nothing")
    assert not (tmp_path / "b").exists()


def test_all_formats_agree(tmp_path: Path) -> None:
    """From a .pth over a folder and sparsify's form, the codes stay the same bits."""
    model = make()
    save_pth(model, tmp_path / "a.pth")
    first = load_pth(tmp_path / "a.pth", k=K)
    save_sentence_transformers(first, tmp_path / "st", write_backbone(tmp_path / "backbone"))
    second = load_sentence_transformers(tmp_path / "st")
    save_sparsify(second, tmp_path / "sae")
    assert_same(load_sparsify(tmp_path / "sae"), model, stats=False)


def test_naming_the_integrations_loads_no_torch() -> None:
    code = (
        "import sys, csrkern; names = dir(csrkern.integrations); "
        "assert 'torch' not in sys.modules and 'checkpoints' in names; "
        "csrkern.integrations.checkpoints.load_pth; "
        "assert 'sentence_transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- SAELens, without the package -----------------------------------------------------


def write_sae_lens(folder: Path, **changes: Any) -> dict[str, torch.Tensor]:
    """A folder as SAELens writes it."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(3)
    sizes = {"W_enc": (D, H), "b_enc": (H,), "W_dec": (H, D), "b_dec": (D,)}
    tensors = {n: torch.randn(size, generator=generator) for n, size in sizes.items()}
    cfg = {"architecture": "topk", "k": K, "d_in": D, "d_sae": H, "apply_b_dec_to_input": True}
    cfg |= {"normalize_activations": "none", "reshape_activations": "none", **changes}
    if cfg["architecture"] == "jumprelu":
        tensors["threshold"] = torch.rand(H, generator=generator)
    save_file(tensors, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(cfg))
    return tensors


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("architecture", ["topk", "abstopk", "jumprelu"])
def test_sae_lens_gives_what_its_formula_gives(
    tmp_path: Path, rescale: bool, centered: bool, architecture: str
) -> None:
    changes = {"rescale_acts_by_decoder_norm": rescale, "apply_b_dec_to_input": centered}
    tensors = write_sae_lens(tmp_path / "sae", architecture=architecture, **changes)
    t = {name: tensor.double() for name, tensor in tensors.items()}
    x = torch.randn(20, D).double()
    norms = t["W_dec"].norm(dim=1) if rescale else torch.ones(H).double()
    pre = ((x - t["b_dec"] if centered else x) @ t["W_enc"] + t["b_enc"]) * norms
    if architecture == "topk":
        model, thresholds = load_sae_lens(tmp_path / "sae")
        assert thresholds is None
        codes = model.encode(x.float())
        top = pre.relu().topk(K)
        dense = torch.zeros(20, H).double().scatter(1, top.indices, top.values)
    elif architecture == "abstopk":
        model, _ = load_sae_lens(tmp_path / "sae")
        codes = model.encode(x.float())
        top = pre.abs().topk(K).indices
        dense = torch.zeros(20, H).double().scatter(1, top, pre.gather(1, top))
        split = torch.cat([dense.relu(), (-dense).relu()], 1)
        torch.testing.assert_close(codes.to_dense().double(), split, rtol=0, atol=1e-4)
        expected = (dense / norms) @ t["W_dec"] + t["b_dec"]
        torch.testing.assert_close(model.decode(codes).double(), expected, rtol=0, atol=1e-3)
        return
    else:
        model, thresholds = load_sae_lens(tmp_path / "sae", k=H)
        assert thresholds is not None
        codes = model.encode(x.float()).above(thresholds)
        dense = pre * (pre > t["threshold"])
    torch.testing.assert_close(codes.to_dense().double(), dense, rtol=0, atol=1e-4)
    expected = (dense / norms) @ t["W_dec"] + t["b_dec"]
    torch.testing.assert_close(model.decode(codes).double(), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("thresholds", [None, 0.5, torch.linspace(0, 1, H)], ids=repr)
def test_sae_lens_round_trip(tmp_path: Path, thresholds: Any) -> None:
    model = make()
    save_sae_lens(model, tmp_path / "sae", thresholds)
    copied, found = load_sae_lens(tmp_path / "sae", k=K)
    assert_same(copied, model, stats=False)
    assert (found is None) == (thresholds is None)
    if found is not None:
        torch.testing.assert_close(found, torch.as_tensor(thresholds).expand(H))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architecture": "gated"},
            "architecture: expected 'topk', 'abstopk' or 'jumprelu', got 'gated'",
        ),
        ({"architecture": "batchtopk"}, "save_inference_model"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations: expected 'none'"),
        ({"reshape_activations": "hook_z"}, "reshape_activations: expected 'none'"),
        ({"architecture": "jumprelu"}, "k: expected the most active latents"),
        ({"k": "many"}, "k: expected an int"),
    ],
)
def test_sae_lens_that_does_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FileNotFoundError, match="a folder of SAELens"):
        load_sae_lens(tmp_path)
    write_sae_lens(tmp_path / "sae", **changes)
    with pytest.raises((ValueError, TypeError), match=message):
        load_sae_lens(tmp_path / "sae")
    with pytest.raises(ValueError, match="standardize=False"):
        save_sae_lens(make(standardize=True), tmp_path / "other")
    with pytest.raises(ValueError, match="finite numbers"):
        save_sae_lens(with_nan(), tmp_path / "other")
    assert not (tmp_path / "other").exists()
