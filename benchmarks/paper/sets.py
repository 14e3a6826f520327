"""The embeddings that the scripts here run on: .npz files of one layout, or any two arrays.

A set with labels holds train_emb, train_label, test_emb, test_label; one for retrieval holds
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

from csrtrain.comparison import Task
from csrtrain.demo_data import load_demo
from csrtrain.metrics import Judgements

DATA = Path(os.environ.get("CSRKERN_DATA", "data"))


@dataclass(frozen=True)
class Set:
    """Embeddings to train on, the task, and what more there is.

    Attributes:
        name: of the file.
        train: all embeddings that may be trained on, [m, d].
        task: what is judged.
        labels: [m] of `train`, or None.
        asked: queries [q, d] whose documents are known, or None.
        pairs: [p, 2] rows of `asked` and of `task.database` that belong together, or None.
    """

    name: str
    train: Tensor
    task: Task
    labels: Tensor | None = None
    asked: Tensor | None = None
    pairs: Tensor | None = None


PACKAGED = "wordnet45"


def available(folder: Path) -> list[str]:
    """The sets in a folder, and the one that the package brings."""
    return sorted({PACKAGED, *(path.stem for path in folder.glob("*.npz"))})


def load(path: Path) -> Set:
    """The set in a .npz file; wordnet45 comes with the package where there is no such file."""
    if path.stem == PACKAGED and not path.exists():
        data = load_demo()
        labels, asked = map(torch.from_numpy, (data.train_labels, data.test_labels))
        train = torch.from_numpy(data.train)
        return Set(PACKAGED, train, Task(train, torch.from_numpy(data.test), labels, asked), labels)
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}

    def rows(name: str) -> Tensor:
        return torch.from_numpy(arrays[name].astype(np.float32))

    if "train_label" in arrays:
        labels = torch.from_numpy(arrays["train_label"].astype(np.int64))
        asked = torch.from_numpy(arrays["test_label"].astype(np.int64))
        train = rows("train_emb")
        return Set(path.stem, train, Task(train, rows("test_emb"), labels, asked), labels)
    corpus, queries = rows("corpus_emb"), rows("query_test_emb")
    task = Task(corpus, queries, judgements=Judgements(arrays["qrels_test"], len(queries)))
    if "query_train_emb" not in arrays:
        return Set(path.stem, rows("train_emb"), task)
    asked = rows("query_train_emb")
    pairs = torch.from_numpy(arrays["qrels_train"][:, :2].astype(np.int64))
    return Set(path.stem, torch.cat([corpus, asked]), task, None, asked, pairs)
