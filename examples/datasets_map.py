"""Codes as columns of a Hugging Face dataset, made by `map`.

pip install datasets
python examples/datasets_map.py
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from datasets import Dataset

from csrkern import InvertedIndex, SparseCodes
from csrkern.integrations.frames import from_arrow, to_arrow
from csrkern.nn import SparseAutoencoder
from csrtrain import TrainConfig, train
from csrtrain.demo.data import load_demo


def encode_column(
    dataset: Dataset, *, column: str = "embedding", **settings: Any
) -> tuple[SparseAutoencoder, Dataset]:
    """An adapter trained on a column of embeddings, and the dataset with codes beside it."""
    embeddings = np.stack(dataset.with_format("numpy")[column][:]).astype(np.float32)
    model = train(embeddings, config=TrainConfig(**settings))

    def encode(batch: dict[str, Any]) -> dict[str, Any]:
        with torch.inference_mode():
            codes = model.encode(batch[column].float())
        return to_arrow(codes).to_pydict()

    coded = dataset.with_format("torch").map(encode, batched=True, batch_size=4096)
    return model, coded.with_format(None)


def codes_of(dataset: Dataset, dim: int) -> SparseCodes:
    """The codes in a dataset's columns."""
    return from_arrow(dataset.with_format("arrow")[:], dim)


if __name__ == "__main__":
    data = load_demo()
    words = [text.words for text in data.texts[: len(data.train)]]
    model, coded = encode_column(Dataset.from_dict({"word": words, "embedding": data.train}), k=16)
    print(coded)
    index = InvertedIndex.build(codes_of(coded, model.hidden_dim))
    _, ids = index.search(model.encode(torch.from_numpy(data.test[:1])), top_k=5)
    print(data.test_texts[0].definition, "→", coded[ids[0]]["word"])
