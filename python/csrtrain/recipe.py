"""The models that made codes, as files of codes and indexes name them; imports no PyTorch."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csrkern.arguments import check_int
from csrkern.codes import file as codes_file
from csrkern.identity import check_fingerprint
from csrkern.storage import write_atomically
from csrtrain.lines import parse_object

if TYPE_CHECKING:
    from csrkern.nn import SparseAutoencoder

RECIPE, ADAPTER = "text.json", "adapter"  # a file and a folder in the folder of an index
RECIPE_KEY = "csrkern-text"  # among the notes of a file of codes


@dataclass(frozen=True)
class Recipe:
    """The models that made the codes of a file or an index; queries are encoded with the same.

    Attributes:
        text_model: name or folder of a sentence-transformers model; None: not known.
        adapter: folder of the adapter that encodes its embeddings; None: not known, or the
            text model makes codes itself.
        text_fingerprint: of the text model (`TextModel.fingerprint`); None: not known.
        fingerprint: of the model that made the codes, for JSON lines; files and indexes store it
            themselves.
        codes: number of codes that an index was built of; their ids are the numbers of their
            lines. None: not known.
    """

    text_model: str | None = None
    adapter: str | None = None
    text_fingerprint: str | None = None
    fingerprint: str | None = None
    codes: int | None = None

    def __post_init__(self) -> None:
        for name in ("text_model", "adapter"):
            value = getattr(self, name)
            if not isinstance(value, (str, type(None))):
                raise ValueError(f"{name}: expected a name or a folder, got {value!r:.60}")
        for name in ("text_fingerprint", "fingerprint"):
            check_fingerprint(name, getattr(self, name))
        if self.codes is not None:
            check_int("codes", self.codes, 0, 2**63 - 1)

    def over(self, other: Recipe) -> Recipe:
        """Return this recipe, with unknown fields taken from another."""
        return dataclasses.replace(other, **self._known())

    def to_json(self) -> str:
        """Return JSON for `from_json`, with absolute paths of folders."""
        folders = {"text_model": _absolute(self.text_model), "adapter": _absolute(self.adapter)}
        return json.dumps({name: folders.get(name, value) for name, value in self._known().items()})

    def _known(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None}

    @staticmethod
    def from_json(text: str) -> Recipe:
        """Return the recipe that `to_json` wrote; raise ValueError if `text` is not one."""
        fields = parse_object("models", text)
        known = {field.name for field in dataclasses.fields(Recipe)}
        if not fields.keys() <= known:
            raise ValueError(f"expected {', '.join(sorted(known))}, got {text[:80]!r}")
        try:
            return Recipe(**fields)
        except TypeError as error:
            raise ValueError(str(error)) from error

    @staticmethod
    def of_codes(file: Path) -> Recipe:
        """Return the models that a file of codes names.

        Raises:
            ValueError: if that is damaged.
        """
        text = codes_file.notes(file).get(RECIPE_KEY)
        return Recipe() if text is None else Recipe._of(file, text)

    @staticmethod
    def of_index(folder: Path) -> Recipe:
        """Return the models that an index names; empty if it names none.

        Raises:
            ValueError: if its file is damaged.
        """
        file = folder / RECIPE
        recipe = Recipe._of(file, file.read_bytes()) if file.is_file() else Recipe()
        if recipe.adapter == ADAPTER:
            recipe = dataclasses.replace(recipe, adapter=str(folder / ADAPTER))
        return recipe

    @staticmethod
    def _of(file: Path, text: str | bytes) -> Recipe:
        try:
            return Recipe.from_json(text if isinstance(text, str) else text.decode("utf-8-sig"))
        except ValueError as error:
            raise ValueError(f"{file} is damaged: {error}") from error

    def save_to_index(self, folder: Path, adapter: SparseAutoencoder | None) -> None:
        """Write the recipe into the folder of an index, with a copy of the adapter.

        The copy moves with the index and stays when another adapter is trained under that name.
        """
        fields = json.loads(self.to_json())
        if adapter is None:
            shutil.rmtree(folder / ADAPTER, ignore_errors=True)  # of the previous index
        else:
            adapter.save_pretrained(folder / ADAPTER)
            fields["adapter"] = ADAPTER
        write_atomically(folder / RECIPE, json.dumps(fields).encode())


def _absolute(name: str | None) -> str | None:
    """Return a folder's full path; the name of a model on the Hub as it is."""
    return str(Path(name).absolute()) if name and os.path.isdir(name) else name
