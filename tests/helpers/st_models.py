"""Small sentence-transformers models: a static word embedding, no download."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

st = pytest.importorskip("sentence_transformers", reason="pip install 'csrkern[st]'")
VERSION = tuple(int(part) for part in st.__version__.split(".")[:2])
if VERSION < (5, 1):
    pytest.skip("sentence-transformers 5.1 or later", allow_module_level=True)
if VERSION >= (6, 2):
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder
else:
    from sentence_transformers.models import StaticEmbedding
    from sentence_transformers.sparse_encoder.models import SparseAutoEncoder
from sentence_transformers import SentenceTransformer, SparseEncoder  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402

D, H, K = 16, 64, 4
WORDS = [f"w{i}" for i in range(40)]


def words_backbone() -> StaticEmbedding:
    vocabulary = {word: i for i, word in enumerate(["?", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return StaticEmbedding(tokenizer, embedding_weights=torch.randn(len(vocabulary), D).numpy())


def tiny_transformer(folder: Path, dropout: float = 0.0) -> SentenceTransformer:
    """A transformer of two layers and random weights over the same words, mean-pooled."""
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "?", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=D,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    BertModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="?"
    ).save_pretrained(folder)
    transformer = Transformer(str(folder))
    return SentenceTransformer(modules=[transformer, Pooling(D)], device="cpu")


def adapter(**options) -> SparseAutoEncoder:
    module = SparseAutoEncoder(D, **{"hidden_dim": H, "k": K, "k_aux": 12, **options})
    with torch.no_grad():
        module.pre_bias.normal_(std=0.1)
        module.latent_bias.normal_(std=0.1)
    return module


def text_encoder(**options) -> SparseEncoder:
    return SparseEncoder(modules=[words_backbone(), adapter(**options)], device="cpu")


def texts(n: int) -> list[str]:
    """Of very different lengths, so that the package sorts them."""
    picks = torch.randint(len(WORDS), (n, 9)).tolist()
    return [" ".join(WORDS[i] for i in row[: 1 + n_ % 9]) for n_, row in enumerate(picks)]
