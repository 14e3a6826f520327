"""The data of csrkern-demo-data: WordNet definitions, their words, classes and embeddings."""

from __future__ import annotations

import gzip
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np

# Twelve questions in our own words about things that the packaged definitions hold, written down
# before any of them was searched for. None was changed or left out because of its results.
QUESTIONS = {
    "a device for telling time": ("clock", "watch", "timepiece"),
    "a large animal with a trunk": ("elephant",),
    "sweet stuff that bees make": ("honey",),
    "someone who fixes water pipes": ("plumber",),
    "a vehicle with two wheels and pedals": ("bicycle",),
    "white flakes that fall in winter": ("snow",),
    "a thing to sleep on": ("bed",),
    "what keeps you dry in the rain": ("umbrella",),
    "the season when leaves fall": ("autumn",),
    "a place where books are lent": ("library",),
    "a machine that keeps food cold": ("refrigerator",),
    "where sick people are treated": ("hospital",),
}
"""The demo's questions, each with the words that answer it."""


class Text(NamedTuple):
    """One WordNet synset."""

    words: str
    definition: str


class DemoData(NamedTuple):
    """19,937 definitions, 45 classes; rows of `texts` are the train rows, then the test rows.

    train [16060, 384] and test [3877, 384] are float32 with rows at L2 norm 1
    (all-MiniLM-L6-v2, mean-pooled); the labels are int64 and index `label_names`.
    """

    train: np.ndarray
    test: np.ndarray
    train_labels: np.ndarray
    test_labels: np.ndarray
    texts: list[Text]
    label_names: list[str]

    @property
    def test_texts(self) -> list[Text]:
        """The texts of the test rows."""
        return self.texts[len(self.train) :]


class Everyday(NamedTuple):
    """2,786 everyday things, so that there is an answer to an everyday question.

    They are the nouns for animals, artifacts, body parts, food, objects, people, phenomena, plants,
    substances and times that occur at least twice in WordNet's sense-tagged texts and are not in
    `DemoData` (scripts/make_everyday_data.py).

    things [2786, 384] has the rows of `texts`, questions [12, 384] those of `QUESTIONS`; both are
    stored as those of `DemoData`.
    """

    things: np.ndarray
    questions: np.ndarray
    texts: list[Text]


def load_demo() -> DemoData:
    """Read the definitions (WordNet 3.0; its license is in the package csrkern-demo-data).

    Raises:
        ImportError: without csrkern-demo-data, except where csrkern runs from its source tree.
    """
    arrays, texts = _read("wordnet45")
    return DemoData(
        train=_unit_scale(arrays["train"]),
        test=_unit_scale(arrays["test"]),
        train_labels=arrays["train_labels"].astype(np.int64),
        test_labels=arrays["test_labels"].astype(np.int64),
        texts=texts,
        label_names=arrays["label_names"].tolist(),
    )


def load_everyday() -> Everyday:
    """Read the everyday things and questions."""
    arrays, texts = _read("everyday")
    return Everyday(_unit_scale(arrays["things"]), _unit_scale(arrays["questions"]), texts)


def dictionary() -> tuple[np.ndarray, list[Text]]:
    """Return all embeddings [22723, 384] and their texts: train, test, then everyday rows."""
    data, everyday = load_demo(), load_everyday()
    return np.concatenate([data.train, data.test, everyday.things]), data.texts + everyday.texts


def data_folder() -> Path:
    """Return the folder of csrkern-demo-data: installed, or in the source tree that this runs from.

    Raises:
        ImportError: if it is in neither.
    """
    try:
        return Path(str(files("csrkern_demo_data")))
    except ModuleNotFoundError as error:
        tree = Path(__file__).resolve().parents[3] / "demo-data" / "csrkern_demo_data"
        if tree.is_dir():
            return tree
        raise ImportError(
            "the demo's data is a package of its own: pip install csrkern-demo-data, "
            "or pip install ./demo-data in a checkout"
        ) from error


def _read(name: str) -> tuple[dict[str, np.ndarray], list[Text]]:
    """Return the arrays and the texts of a set."""
    folder = data_folder()
    with np.load(folder / f"{name}.npz", allow_pickle=False) as stored:
        arrays = dict(stored)
    lines = gzip.decompress((folder / f"{name}.tsv.gz").read_bytes()).decode().splitlines()
    return arrays, [Text(*line.split("\t")) for line in lines]


def _unit_scale(stored: np.ndarray) -> np.ndarray:
    """Return float32 rows at L2 norm 1 from int8 rows, whose scale was dropped."""
    rows = stored.astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
