"""Tell what a file or a folder is, so that a wrong argument is explained; imports no PyTorch."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Collection
from pathlib import Path

from csrkern.hub import INDEX_FILES, is_repository, pull
from csrtrain.cli.lines import JSON_LINES
from csrtrain.cli.shared import quoted

ARRAYS = (".npy", ".npz", ".parquet", ".pt", ".pth", ".safetensors")
NOUNS = {
    "model": "a model, a folder written by train",
    "index": "an index, a folder written by index",
    "corpus": "a folder of codes, written by ray encode",
    "shards": "a sharded index, written by ray build",
    "codes": "a file of codes",
    "embeddings": "a file of embeddings",
    "lines": "a file of lines",
    "table": "a table of text",
}
# By what is expected and what came.
ADVICE = {
    (
        "embeddings",
        "table",
    ): "convert it: np.save('rows.npy', np.loadtxt('rows.csv', delimiter=','))",
    ("embeddings", "lines"): "csrkern embed makes embeddings of texts",
    ("embeddings", "codes"): "name the embeddings that the codes were made of",
    ("codes", "lines"): "csrkern embed makes codes or embeddings of texts",
    ("codes", "embeddings"): "csrkern encode makes codes of embeddings",
    ("index", "codes"): "csrkern index makes an index of codes",
    ("index", "corpus"): "csrkern ray build makes an index of it",
    ("index", "shards"): "csrkern ray serve and csrkern ray search are for it",
    ("shards", "index"): "csrkern search and csrkern serve are for it",
    ("corpus", "codes"): "csrkern index makes an index of one file of codes",
}
LARGEST_HEADER = 1 << 20


def kind_of(path: str | Path) -> str | None:
    """Return what a path leads to, a key of `NOUNS`; None: nothing, or something else."""
    path = Path(path)
    # Unlike those of Path, these take words that are too long for a name.
    if os.path.isdir(path):
        return _kind_of_folder(path)
    if not os.path.isfile(path):
        return None
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return "codes" if _holds_codes(path) else "embeddings"
    if suffix in ARRAYS:
        return "embeddings"
    if suffix in (".txt", *JSON_LINES):
        return "lines"
    return "table" if suffix in (".csv", ".tsv") else None


def _kind_of_folder(folder: Path) -> str | None:
    for name, kind in (
        ("index.json", "index"),
        ("model.safetensors", "model"),
        ("codes.json", "corpus"),
        ("shards.json", "shards"),
    ):
        if (folder / name).is_file():
            return kind
    return None


def _holds_codes(file: Path) -> bool:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        head = stream.read(min(length, LARGEST_HEADER))
    try:
        return "csrkern" in json.loads(head).get("__metadata__", {})
    except (ValueError, AttributeError, RecursionError):
        return False


def expect(path: str | Path, *kinds: str, usage: str = "") -> None:
    """Raise if a path leads to something else than one of `kinds`, or to nothing but a near name.

    What cannot be told is left to those who read it, whose errors say more.

    Args:
        path: what was given; "file:array" names an array.
        kinds: keys of `NOUNS`.
        usage: the order of the arguments, where they may have been swapped.

    Raises:
        FileNotFoundError: if nothing is there, and something of a near name is.
        ValueError: if something of another kind is there.
    """
    from csrkern.embeddings.files import split_name

    file, _ = split_name(str(path))
    expected = " or ".join(NOUNS[kind] for kind in kinds)
    if not os.path.exists(file):
        if near := _near(file, kinds):
            raise FileNotFoundError(
                f"{path}: expected {expected}, found nothing; did you mean {quoted(near)}?"
            )
        return
    kind = kind_of(file)
    if kind is None or kind in kinds:
        return
    message = f"{path}: expected {expected}, got {NOUNS[kind]}"
    for advice in (ADVICE.get((kinds[0], kind)), usage and f"the order is: {usage}"):
        message += f"; {advice}" if advice else ""
    raise ValueError(message)


def expect_model(name: str, usage: str = "") -> None:
    """Raise if a name leads to something else than a model; the Hub is not asked."""
    if not is_repository(name):
        expect(name, "model", usage=usage)


def index_folder(name: str, usage: str = "") -> Path:
    """Return the folder of an index, downloaded if the name is a repository of the Hub."""
    if is_repository(name):
        return pull(name, INDEX_FILES)
    expect(name, "index", usage=usage)
    return Path(name)


def _near(path: Path, kinds: Collection[str]) -> Path | None:
    """Return what is of a kind and has nearly this name, or this name and an ending."""
    try:
        names = sorted(os.listdir(path.parent))
    except OSError:
        return None
    found = [name for name in names if Path(name).stem == path.name]
    found = found or difflib.get_close_matches(path.name, names, 5, 0.8)
    near = [path.parent / name for name in found]
    return next((other for other in near if kind_of(other) in kinds), None)
