"""The folder of a SparseAutoencoder: config.json and model.safetensors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from csrkern.ops.validation import check_tensors_finite
from csrkern.storage import read_json, write_atomically

if TYPE_CHECKING:
    from csrkern.nn.modules import SparseAutoencoder

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
CONFIG_NAMES = ("input_dim", "hidden_dim", "k", "k_aux", "standardize", "dead_threshold", "tied")
ENCODER, DECODER = "encoder.weight", "decoder.linear.weight"
_PUBLISHED_NAME = "normalize"  # of "standardize", in the files of sentence-transformers


def save(model: SparseAutoencoder, directory: str | os.PathLike[str]) -> None:
    """Write a model into `directory`; see `SparseAutoencoder.save_pretrained`."""
    from safetensors.torch import save as packed

    folder = Path(directory)
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    check_tensors_finite("the model", tensors)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS_NAME, packed(tensors))
    text = json.dumps(model.config(), indent=2) + "\n"
    write_atomically(folder / CONFIG_NAME, text.encode())


def load(kind: type[SparseAutoencoder], directory: str | os.PathLike[str]) -> SparseAutoencoder:
    """Return a model from `directory`; see `SparseAutoencoder.from_pretrained`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(directory)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no {name} in {folder}; expected a saved model there")
    config = read_json(folder / CONFIG_NAME)
    if isinstance(config, dict) and _PUBLISHED_NAME in config:
        config["standardize"] = config.pop(_PUBLISHED_NAME)
    try:
        with torch.device("cpu"):  # safetensors 0.4 reads to the default device
            tensors = load_file(folder / WEIGHTS_NAME)
    except SafetensorError as error:
        raise ValueError(f"{folder} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{folder / CONFIG_NAME} holds no settings")
    known = {name: value for name, value in config.items() if name in CONFIG_NAMES}
    missing = {"input_dim", "hidden_dim", "k"} - known.keys()
    if missing:
        raise ValueError(f"{folder / CONFIG_NAME} lacks {', '.join(sorted(missing))}")
    try:
        # No memory or random numbers before the checks.
        model = kind(**known, partner=config.get("partner"), device="meta")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / CONFIG_NAME}: {error}") from error
    check_tensors_finite(f"{folder / WEIGHTS_NAME}", tensors)
    does_not_fit = f"{folder / WEIGHTS_NAME} does not fit its config"
    own = {}
    for name, tensor in tensors.items():
        dtype = torch.long if name == "stats_last_nonzero" else torch.float32
        if dtype.is_floating_point != tensor.is_floating_point():
            wanted = "floating-point numbers" if dtype.is_floating_point else "integers"
            raise ValueError(f"{does_not_fit}: {name}: expected {wanted}, got {tensor.dtype}")
        own[name] = tensor.to(dtype, copy=True)
    try:
        model.load_state_dict(own, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{does_not_fit}: {' '.join(str(error).split())}") from error
    return model.eval()
