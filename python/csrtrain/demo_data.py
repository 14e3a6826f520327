"""The data inside the package: WordNet definitions, their words, classes and embeddings."""

from __future__ import annotations

import gzip
from importlib.resources import as_file, files
from typing import NamedTuple

import numpy as np


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


def load_demo() -> DemoData:
    """Reads the packaged data (WordNet 3.0, see csrkern/data/NOTICE-wordnet.txt)."""
    folder = files("csrkern") / "data"
    with as_file(folder / "wordnet45.npz") as path, np.load(path, allow_pickle=False) as stored:
        arrays = dict(stored)
    lines = gzip.decompress((folder / "wordnet45.tsv.gz").read_bytes()).decode().splitlines()
    return DemoData(
        train=_unit_scale(arrays["train"]),
        test=_unit_scale(arrays["test"]),
        train_labels=arrays["train_labels"].astype(np.int64),
        test_labels=arrays["test_labels"].astype(np.int64),
        texts=[Text(*line.split("\t")) for line in lines],
        label_names=arrays["label_names"].tolist(),
    )


def _unit_scale(stored: np.ndarray) -> np.ndarray:
    """float32 rows at L2 norm 1 from int8 rows, whose scale was dropped."""
    rows = stored.astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
