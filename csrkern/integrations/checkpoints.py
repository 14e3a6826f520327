"""Adapters to and from three published kinds of checkpoint.

- the `.pth` that the paper's training scripts write: {"state_dict", "epoch", …}, names with
  `module.` in front after distributed training, and the backbone's weights beside the adapter's;
- the folder of an EleutherAI `sparsify` TopK autoencoder: cfg.json and sae.safetensors;
- the folder of a SAELens TopK, BatchTopK or JumpReLU autoencoder: cfg.json and
  sae_weights.safetensors.

Nothing here runs code from a file: weights are read with `weights_only` or as safetensors.
"""

from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from csrkern.nn import SparseAutoencoder
from csrkern.ops.validation import check_tensors_finite
from csrkern.storage import read_json, write_atomically

_ENCODER, _DECODER = "encoder.weight", "decoder.linear.weight"
_ADAPTER = {"pre_bias", "latent_bias", _ENCODER, _DECODER, "stats_last_nonzero"}
CFG_NAME, SAE_NAME, SAE_LENS_NAME = "cfg.json", "sae.safetensors", "sae_weights.safetensors"


def load_pth(
    path: str | os.PathLike[str],
    *,
    k: int,
    k_aux: int = 512,
    standardize: bool = False,
    dead_threshold: int = 30,
) -> SparseAutoencoder:
    """Return the adapter in a `.pth` of the paper's scripts (or a bare state dict of its names).

    The file holds tensors only, so what it was trained with is for the caller to say.

    Args:
        path: the file. Optimizer state, `module.` in front of names and the weights of a
            backbone are passed over.
        k: active latents per row; `k_aux`, `standardize`, `dead_threshold` as for
            `SparseAutoencoder`, with the scripts' defaults.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a file of weights, holds no adapter, or one with weights that
            are NaN or infinite.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}; expected a .pth of the paper's scripts there")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{path} is damaged or holds more than weights, which is not loaded as it could run "
            f"code: {reason}"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = {
        name.removeprefix("module."): tensor
        for name, tensor in state.items()
        if isinstance(name, str) and isinstance(tensor, Tensor)
    }
    adapter = {name: tensor for name, tensor in tensors.items() if name in _ADAPTER}
    missing = {"pre_bias", "latent_bias", _ENCODER} - adapter.keys()
    if missing:
        raise ValueError(
            f"{path} holds no adapter: it lacks {', '.join(sorted(missing))}; "
            f"its names begin {', '.join(sorted(tensors)[:4]) or 'nowhere'}"
        )
    return _model(
        path, adapter, k=k, k_aux=k_aux, standardize=standardize, dead_threshold=dead_threshold
    )


def save_pth(model: SparseAutoencoder, path: str | os.PathLike[str]) -> None:
    """Write {"state_dict": …} with the names of the paper's scripts, renamed into place.

    Raises:
        ValueError: if the model is not tied, which those scripts always are, or a weight is NaN
            or infinite; nothing is written then.
    """
    if not model.tied:
        raise ValueError("model: expected tied weights, the only kind that the scripts have")
    payload = io.BytesIO()
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    check_tensors_finite("the model", state)
    torch.save({"state_dict": {**state, _DECODER: state[_ENCODER]}}, payload)
    write_atomically(path, payload.getvalue())


def load_sparsify(
    directory: str | os.PathLike[str], *, k_aux: int | None = None
) -> SparseAutoencoder:
    """Return the TopK autoencoder in a folder that EleutherAI's `sparsify` saved; untied.

    Args:
        directory: holds cfg.json and sae.safetensors (one hookpoint's folder).
        k_aux: None: half the width, as `sparsify` trains with.

    Raises:
        FileNotFoundError: if one of the two files is missing.
        ValueError: if they are damaged, hold weights that are NaN or infinite, or are of a coder
            that `SparseAutoencoder` cannot express: another activation than TopK, signed,
            transcoding, with skip connections.
    """
    folder = Path(directory)
    cfg, tensors = _read(folder, SAE_NAME, "one hookpoint's folder")
    if type(cfg.get("k")) is not int:
        raise ValueError(f"{folder / CFG_NAME}: expected settings with an integer k")
    if cfg.get("activation", "topk") != "topk":
        raise ValueError(
            f"{folder / CFG_NAME}: activation: expected 'topk', got {cfg['activation']!r}; "
            "a SparseAutoencoder keeps the k largest latents of all"
        )
    for feature in ("signed", "transcode", "skip_connection", "embed_skip", "gram_lookup"):
        if cfg.get(feature):
            raise ValueError(
                f"{folder / CFG_NAME}: {feature} is on; a SparseAutoencoder reconstructs its "
                "input from its codes alone"
            )
    names = {
        "b_dec": "pre_bias",
        "encoder.bias": "latent_bias",
        "encoder.weight": _ENCODER,
        "W_dec": _DECODER,
    }
    missing = names.keys() - tensors.keys()
    if missing:
        raise ValueError(f"{folder / SAE_NAME} lacks {', '.join(sorted(missing))}")
    adapter = {ours: tensors[theirs] for theirs, ours in names.items()}
    half = max(1, adapter["pre_bias"].numel() // 2)
    return _model(folder, adapter, k=cfg["k"], k_aux=half if k_aux is None else k_aux, tied=False)


def save_sparsify(model: SparseAutoencoder, directory: str | os.PathLike[str]) -> None:
    """Write cfg.json and sae.safetensors, from which `sparsify` loads the same autoencoder.

    Raises:
        ValueError: if the model standardizes its input, which `sparsify` cannot express, or a
            weight is NaN or infinite; nothing is written then.
    """
    from safetensors.torch import save

    if model.standardize:
        raise ValueError("model: expected standardize=False; sparsify has no such step")
    folder = Path(directory)
    tensors = {
        "b_dec": model.pre_bias,
        "encoder.bias": model.latent_bias,
        "encoder.weight": model.encoder.weight,
        "W_dec": model.decoder.linear.weight,
    }
    check_tensors_finite("the model", tensors)
    folder.mkdir(parents=True, exist_ok=True)
    cfg = {
        "activation": "topk",
        "expansion_factor": max(1, model.hidden_dim // model.input_dim),
        # Says whether training keeps rows at norm 1; loading changes nothing.
        "normalize_decoder": False,
        "num_latents": model.hidden_dim,
        "k": model.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": model.input_dim,
    }
    # Copies: safetensors refuses two names for one tensor, which tied weights are.
    payload = save({name: tensor.detach().cpu().clone() for name, tensor in tensors.items()})
    write_atomically(folder / SAE_NAME, payload)
    write_atomically(folder / CFG_NAME, (json.dumps(cfg, indent=2) + "\n").encode())


def load_sae_lens(
    directory: str | os.PathLike[str], *, k: int | None = None, k_aux: int = 512
) -> tuple[SparseAutoencoder, Tensor | None]:
    """Return the autoencoder in a folder of SAELens, untied, and thresholds [h] if it has them.

    A JumpReLU autoencoder, which BatchTopK ones are saved as, keeps all latents above thresholds
    of their own: `model.encode(x).above(thresholds)` gives the strongest k of these. An AbsTopK
    autoencoder becomes one of twice as many latents: see `SparseCodes.from_signed`.

    Args:
        directory: holds cfg.json and sae_weights.safetensors, as `save_inference_model` and
            the package's checkpoints do.
        k: active latents of a row, at most; None: that of a TopK autoencoder. Others have none.
        k_aux: as for `SparseAutoencoder`.

    Raises:
        FileNotFoundError: if one of the two files is missing.
        ValueError: if they are damaged, hold weights that are NaN or infinite, or are of an
            autoencoder that `SparseAutoencoder` cannot express: of another architecture, or with
            activations that are normalized or reshaped.
    """
    folder = Path(directory)
    cfg, tensors = _read(folder, SAE_LENS_NAME, "a folder of SAELens")
    kind = cfg.get("architecture")
    if kind not in ("topk", "abstopk", "jumprelu"):
        raise ValueError(
            f"{folder / CFG_NAME}: architecture: expected 'topk', 'abstopk' or 'jumprelu', got "
            f"{kind!r}; the package saves BatchTopK as 'jumprelu' by save_inference_model"
        )
    for feature in ("normalize_activations", "reshape_activations"):
        if cfg.get(feature, "none") != "none":
            raise ValueError(
                f"{folder / CFG_NAME}: {feature}: expected 'none', got {cfg[feature]!r}; "
                "a SparseAutoencoder takes its input as it is"
            )
    names = ["W_enc", "b_enc", "W_dec", "b_dec", *(["threshold"] if kind == "jumprelu" else [])]
    missing = [name for name in names if name not in tensors]
    if missing:
        raise ValueError(f"{folder / SAE_LENS_NAME} lacks {', '.join(missing)}")
    k = cfg.get("k") if k is None and kind != "jumprelu" else k
    if k is None:
        raise ValueError("k: expected the most active latents of a row, which this folder lacks")
    weight, bias, dictionary, pre_bias = (tensors[name] for name in names[:4])
    if cfg.get("rescale_acts_by_decoder_norm"):
        norms = dictionary.norm(dim=1)
        weight, bias, dictionary = weight * norms, bias * norms, dictionary / norms[:, None]
    if not cfg.get("apply_b_dec_to_input", True):
        bias = bias + pre_bias @ weight
    if kind == "abstopk":
        weight, bias = torch.cat([weight, -weight], 1), torch.cat([bias, -bias])
        dictionary = torch.cat([dictionary, -dictionary])
    adapter = {
        "pre_bias": pre_bias,
        "latent_bias": bias,
        _ENCODER: weight.T.contiguous(),
        _DECODER: dictionary,
    }
    thresholds = tensors.get("threshold")
    if thresholds is not None:
        check_tensors_finite(os.fspath(folder), {"threshold": thresholds})
    return _model(folder, adapter, k=k, k_aux=k_aux, tied=False), thresholds


def save_sae_lens(
    model: SparseAutoencoder,
    directory: str | os.PathLike[str],
    thresholds: float | Tensor | None = None,
) -> None:
    """Write cfg.json and sae_weights.safetensors, from which SAELens loads the same autoencoder.

    Args:
        model: one that does not standardize its input.
        directory: made if it is not there.
        thresholds: a number, as of `SparseCodes.threshold`, or [h]: write a JumpReLU
            autoencoder, which keeps all latents above them. None: a TopK one.

    Raises:
        ValueError: if the model standardizes its input, which SAELens does otherwise, or a weight
            is NaN or infinite; nothing is written then.
    """
    from safetensors.torch import save

    if model.standardize:
        raise ValueError("model: expected standardize=False; SAELens has another such step")
    tensors = {
        "W_enc": model.encoder.weight.T,
        "b_enc": model.latent_bias,
        "W_dec": model.dictionary,
        "b_dec": model.pre_bias,
    }
    cfg: dict[str, Any] = {
        "architecture": "topk" if thresholds is None else "jumprelu",
        "d_in": model.input_dim,
        "d_sae": model.hidden_dim,
        "dtype": str(model.pre_bias.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {},
    }
    if thresholds is None:
        cfg |= {"k": model.k, "rescale_acts_by_decoder_norm": False}
    else:
        each = torch.as_tensor(thresholds, device=model.pre_bias.device)
        tensors["threshold"] = each.to(model.pre_bias.dtype).expand(model.hidden_dim)
    check_tensors_finite("the model", tensors)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    payload = save({name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()})
    write_atomically(folder / SAE_LENS_NAME, payload)
    write_atomically(folder / CFG_NAME, (json.dumps(cfg, indent=2) + "\n").encode())


def _read(folder: Path, weights: str, expected: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the settings in a folder's cfg.json, and the tensors in its file `weights`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for name in (CFG_NAME, weights):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no {name} in {folder}; expected {expected}")
    cfg = read_json(folder / CFG_NAME)
    if not isinstance(cfg, dict):
        raise ValueError(f"{folder / CFG_NAME}: expected settings by name")
    try:
        return cfg, load_file(folder / weights)
    except SafetensorError as error:
        raise ValueError(f"{folder / weights} is damaged: {error}") from error


def _model(
    source: str | os.PathLike[str], tensors: dict[str, Tensor], *, tied: bool = True, **config: Any
) -> SparseAutoencoder:
    """Return a model with these tensors, its sizes read off the encoder's weight."""
    check_tensors_finite(os.fspath(source), tensors)
    weight = tensors[_ENCODER]
    if weight.dim() != 2:
        raise ValueError(f"{source}: {_ENCODER}: expected [h, d], got {list(weight.shape)}")
    if tied and not torch.equal(tensors.setdefault(_DECODER, weight), weight):
        raise ValueError(
            f"{source}: {_DECODER} differs from {_ENCODER}; expected one tied weight under both"
        )
    h, d = weight.shape
    unused = torch.zeros(h, dtype=torch.long, device="cpu")
    tensors.setdefault("stats_last_nonzero", unused)
    model = SparseAutoencoder(d, h, tied=tied, device="cpu", dtype=weight.dtype, **config)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{source} does not hold one model: {error}") from error
    return model
