"""Copies of a SparseAutoencoder, save_pretrained and from_pretrained."""

from __future__ import annotations

import copy
import json
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from test_nn import NAMES, OPTIONS, D, H, K, batch, make

from csrkern.nn import SparseAutoencoder


def assert_same_model(copied: SparseAutoencoder, model: SparseAutoencoder) -> None:
    assert copied is not model
    assert copied.config() == model.config()
    state, own = copied.state_dict(), model.state_dict()
    assert set(state) == NAMES - ({"decoder.linear.weight"} if model.tied else set())
    for name, tensor in own.items():
        assert torch.equal(state[name], tensor), name
        assert state[name].data_ptr() != tensor.data_ptr(), name
    assert (copied.encoder.weight is copied.decoder.linear.weight) == model.tied
    x = batch(dtype=torch.float32)
    assert torch.equal(copied(x)[0], model(x)[0])


def used_model(**options) -> SparseAutoencoder:
    """A model none of whose settings and tensors has its default."""
    model = make(torch.float32, k_aux=7, dead_threshold=9, **options)
    model.stats_last_nonzero.copy_(torch.arange(H))
    return model


def restored_state(model: SparseAutoencoder) -> SparseAutoencoder:
    other = SparseAutoencoder(**model.config())
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), restored_state]
)
def test_copies(duplicate, options):
    model = used_model(**options)
    assert_same_model(duplicate(model), model)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_saves_and_loads(options, tmp_path):
    model = used_model(**options)
    sizes = {"input_dim": D, "hidden_dim": H, "k": K, "k_aux": 7, "dead_threshold": 9}
    assert model.config() == {**sizes, "standardize": False, "tied": True, **options}
    model.save_pretrained(tmp_path / "new" / "folder")
    assert_same_model(SparseAutoencoder.from_pretrained(str(tmp_path / "new" / "folder")), model)
    stored = set(load_file(tmp_path / "new" / "folder" / "model.safetensors"))
    assert stored == NAMES - ({"decoder.linear.weight"} if model.tied else set())


@pytest.mark.parametrize("lacking", [None, "encoder.weight", "decoder.linear.weight"])
def test_loads_tied_files_with_either_weight_and_foreign_settings(lacking, tmp_path):
    model = used_model()
    tensors = {**model.state_dict(), "decoder.linear.weight": model.encoder.weight}
    tensors = {name: t.detach().clone() for name, t in tensors.items() if name != lacking}
    save_file(tensors, tmp_path / "model.safetensors")
    config = {**model.config(), "max_seq_length": 8, "architecture": "x"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_same_model(SparseAutoencoder.from_pretrained(tmp_path), model)


@pytest.mark.parametrize("standardize", [False, True])
def test_loads_the_published_name_of_standardize(standardize, tmp_path):
    model = used_model(standardize=standardize)
    model.save_pretrained(tmp_path)
    config = {**model.config(), "normalize": standardize}
    del config["standardize"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_same_model(SparseAutoencoder.from_pretrained(tmp_path), model)


def test_settings_that_a_file_lacks_have_their_defaults(tmp_path):
    model = make(torch.float32)
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"input_dim": D, "hidden_dim": H, "k": K}))
    assert_same_model(SparseAutoencoder.from_pretrained(tmp_path), model)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json in .*nowhere"):
        SparseAutoencoder.from_pretrained(tmp_path / "nowhere")
    make(torch.float32).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors in "):
        SparseAutoencoder.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("", "is damaged"),
        ('{"input_dim": 12', "is damaged"),
        ("\xff\xfe", "is damaged"),
        ('{"k": 4}', "lacks hidden_dim, input_dim"),
        ({"hidden_dim": 41}, "model.safetensors does not fit its config: .*size mismatch"),
        ({"input_dim": 13}, "model.safetensors does not fit its config: .*size mismatch"),
        ({"tied": False}, "does not fit its config: .*Missing key.*decoder.linear.weight"),
        ({"hidden_dim": 10**15}, "config.json: hidden_dim: expected 1 <= hidden_dim <= 2147483647"),
        ({"k_aux": -1}, "config.json: k_aux: expected at least 0, got -1"),
        ({"k": 41}, "k: expected at most hidden_dim = 40, got 41"),
        ("[]", "config.json"),
        ({"input_dim": "12"}, "input_dim"),
        ({"k_aux": None}, "k_aux"),
    ],
    ids=str,
)
def test_wrong_configs_are_named(config, message, tmp_path):
    model = make(torch.float32)
    model.save_pretrained(tmp_path)
    if isinstance(config, dict):
        config = json.dumps({**model.config(), **config})
    (tmp_path / "config.json").write_bytes(config.encode("latin-1"))
    with pytest.raises(ValueError, match=f"(?s){message}"):
        SparseAutoencoder.from_pretrained(tmp_path)


def test_wrong_weights_are_named(tmp_path):
    model = make(torch.float32)
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    whole, tensors = path.read_bytes(), load_file(path)
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=f"{tmp_path} is damaged: "):
            SparseAutoencoder.from_pretrained(tmp_path)
    save_file({k: v for k, v in tensors.items() if k != "encoder.weight"}, path)
    with pytest.raises(ValueError, match=r"Missing .*encoder\.weight.*decoder\.linear\.weight"):
        SparseAutoencoder.from_pretrained(tmp_path)
    for other in (
        {k: v for k, v in tensors.items() if k != "pre_bias"},
        {**tensors, "extra": torch.ones(1)},
        {**tensors, "encoder.weight": torch.ones(D, H)},
    ):
        save_file(other, path)
        with pytest.raises(ValueError, match="does not fit its config") as caught:
            SparseAutoencoder.from_pretrained(tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["pre_bias", "latent_bias", "encoder.weight"])
def test_weights_that_are_not_finite_are_refused(name, value, tmp_path):
    model = make(torch.float32)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[name].flatten()[-1] = value
    save_file(tensors, tmp_path / "model.safetensors")
    message = f"{name}: expected finite numbers, got 1 that are NaN or infinite"
    with pytest.raises(ValueError, match=rf"model\.safetensors: {message}"):
        SparseAutoencoder.from_pretrained(tmp_path)
    with torch.no_grad():
        model.get_parameter(name).flatten()[-1] = value
    with pytest.raises(ValueError, match=message):
        model.save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_k_aux_of_0_saves_and_loads(tmp_path):
    make(torch.float32, k_aux=np.int64(0)).save_pretrained(tmp_path)
    assert SparseAutoencoder.from_pretrained(tmp_path).k_aux == 0


def test_loading_does_not_depend_on_torchs_defaults(tmp_path):
    model = used_model()
    model.save_pretrained(tmp_path)
    before = torch.get_rng_state()
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        loaded = SparseAutoencoder.from_pretrained(tmp_path)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_model(loaded, model)


def test_safetensors_stores_a_state_dict(tmp_path):
    model = used_model()
    save_file(model.state_dict(), tmp_path / "a")
    other = SparseAutoencoder(**model.config())
    other.load_state_dict(load_file(tmp_path / "a"))
    assert_same_model(other, model)
    save_model(model, str(tmp_path / "b"))
    other = SparseAutoencoder(**model.config())
    load_model(other, str(tmp_path / "b"))
    assert_same_model(other, model)


def test_an_interrupted_save_leaves_the_old_model(tmp_path, monkeypatch):
    old = used_model()
    old.save_pretrained(tmp_path)

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        make(torch.float32, seed=5).save_pretrained(tmp_path)
    assert_same_model(SparseAutoencoder.from_pretrained(tmp_path), old)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_the_settings_may_begin_with_a_byte_order_mark_and_not_nest_without_end(tmp_path):
    model = make(torch.float32)
    model.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    assert_same_model(SparseAutoencoder.from_pretrained(tmp_path), model)
    config.write_bytes(b"[" * 100_000)
    with pytest.raises(ValueError, match="is damaged"):
        SparseAutoencoder.from_pretrained(tmp_path)
