"""Texts, and codes and embeddings of their words, for the tests of documents; no PyTorch."""

from __future__ import annotations

import zlib

import numpy as np

from csrkern.index.rows import Rows, starts_of

DIM = 4096


def words_embedding(texts: list[str], d: int = 32) -> np.ndarray:
    """Sum a random vector of each word: texts that share words are similar."""
    rows = np.zeros((len(texts), d), np.float32)
    for row, text in zip(rows, texts, strict=True):
        for word in text.lower().split():
            row += np.random.default_rng(zlib.crc32(word.encode())).standard_normal(d)
    return rows


def words_codes(texts: list[str]) -> Rows:
    """Return a code of each text: a latent for each of its words, of value 1."""
    latents = [
        sorted({zlib.crc32(w.encode()) % DIM for w in text.lower().split()}) for text in texts
    ]
    indices = np.array([latent for row in latents for latent in row], np.int32)
    return Rows(np.ones(len(indices), np.float32), indices, starts_of([*map(len, latents)]), DIM)
