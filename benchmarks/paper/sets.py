"""The embeddings that the scripts here run on: .npz files of one layout, or any two arrays.

A set with labels holds train_emb, train_label, test_emb, test_label and, where recall is wanted,
nearest_test: the ten rows of train_emb nearest to each of test_emb. One for retrieval holds
corpus_emb, query_test_emb, qrels_test [m, 3] and, where they exist, query_train_emb,
qrels_train, train_emb.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from csrtrain.demo.data import load_demo
from csrtrain.evaluation.comparison import Task
from csrtrain.evaluation.metrics import Judgments

DATA = Path(os.environ.get("CSRKERN_DATA", "data"))


@dataclass(frozen=True)
class Set:
    """Embeddings to train on, the task, and what more there is.

    Attributes:
        name: of the file.
        train: all embeddings that may be trained on, [m, d].
        task: what is judged.
        labels: [m] of `train`, or None.
        asked, partners, pairs: queries [q, d], documents [r, d], and the rows [p, 2] of both that
            belong together, to train on; or all None.
        alike: those of `train` that are like what is searched, which linear baselines fit better
            to (None: all of them).
        preset: of the paper's settings, the one for embeddings of this kind.
        near: the NEAREST rows of the database to each query, to find besides; or None.
    """

    name: str
    train: Tensor
    task: Task
    labels: Tensor | None = None
    asked: Tensor | None = None
    partners: Tensor | None = None
    pairs: Tensor | None = None
    alike: Tensor | None = None
    preset: str = "text"
    near: Judgments | None = None


PACKAGED = "wordnet45"
NEAREST = 10


def available(folder: Path) -> list[str]:
    """The sets in a folder, and the one that the package brings."""
    return sorted({PACKAGED, *(path.stem for path in folder.glob("*.npz"))})


def load(path: Path) -> Set | None:
    """The set in a .npz file, None if there is none; the package brings wordnet45."""
    if path.stem == PACKAGED and not path.exists():
        data = load_demo()
        labels, asked = map(torch.from_numpy, (data.train_labels, data.test_labels))
        train = torch.from_numpy(data.train)
        return Set(PACKAGED, train, Task(train, torch.from_numpy(data.test), labels, asked), labels)
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}

    def rows(name: str) -> Tensor:
        return torch.from_numpy(arrays[name].astype(np.float32))

    def numbers(name: str) -> Tensor:
        return torch.from_numpy(arrays[name].astype(np.int64))

    if "train_label" in arrays:
        train, labels = rows("train_emb"), numbers("train_label")
        task = Task(train, rows("test_emb"), labels, numbers("test_label"))
        near = None
        if (found := arrays.get("nearest_test")) is not None:
            query, _ = np.indices(found.shape)
            near = Judgments(np.stack([query.ravel(), found.ravel()], axis=1), len(found))
        return Set(path.stem, train, task, labels, preset=_preset(path.stem), near=near)
    corpus, queries = rows("corpus_emb"), rows("query_test_emb")
    task = Task(corpus, queries, judgments=Judgments(arrays["qrels_test"], len(queries)))
    if "query_train_emb" in arrays:
        asked, pairs = rows("query_train_emb"), numbers("qrels_train")[:, :2]
        train = torch.cat([corpus, asked])
        return Set(path.stem, train, task, None, asked, corpus, pairs, alike=corpus)
    train = rows("train_emb")
    if "train_image" not in arrays:
        return Set(path.stem, train, task)
    pairs = captions_of_one_image(numbers("train_image"))
    return Set(path.stem, train, task, None, train, train, pairs)


def captions_of_one_image(image: Tensor) -> Tensor:
    """[p, 2] the first caption of each image [n] with each of its others."""
    order = image.argsort(stable=True)
    start = torch.ones(len(order), dtype=torch.bool)
    start[1:] = image[order][1:] != image[order][:-1]
    first = order[start][start.cumsum(0) - 1]
    return torch.stack([first, order], 1)[~start]


def _preset(name: str) -> str:
    return "imagenet" if "mnist" in name else "text"
