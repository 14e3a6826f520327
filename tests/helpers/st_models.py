"""Small sentence-transformers models: a static word embedding, no download."""

from __future__ import annotations

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
from sentence_transformers import SparseEncoder  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402

D, H, K = 16, 64, 4
WORDS = [f"w{i}" for i in range(40)]


def words_backbone() -> StaticEmbedding:
    vocabulary = {word: i for i, word in enumerate(["?", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return StaticEmbedding(tokenizer, embedding_weights=torch.randn(len(vocabulary), D).numpy())


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
