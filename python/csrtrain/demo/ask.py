"""`csrkern demo --ask`: the words for a definition that the user types."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from rich.markup import escape

from csrkern import InvertedIndex
from csrkern.nn import SparseAutoencoder
from csrtrain.demo import run as demo
from csrtrain.demo.data import dictionary
from csrtrain.encoding import encode_all
from csrtrain.evaluation.baselines import dense_bytes, sparse_bytes
from csrtrain.lines import read_lines
from csrtrain.texts import MINILM, TextModel

if TYPE_CHECKING:
    from rich.console import Console

HITS = 5


class Hit(NamedTuple):
    """A word's definition that was found."""

    score: float
    words: str
    definition: str


class Answer(NamedTuple):
    """The nearest definitions, best first, by codes and by embeddings, and what these take."""

    hits: list[Hit]
    dense: list[Hit]
    code_bytes: int
    dense_bytes: int


def answer(
    folder: Path,
    definition: str,
    text_model: str | None,
    *,
    quick: bool = False,
    out: Console | None = None,
) -> Answer:
    """Return the words whose definitions are nearest; run the demo first if need be.

    Args:
        folder: where a demo has been, or shall be, written.
        definition: what the user typed.
        text_model: name or folder of the sentence-transformers model; None: all-MiniLM-L6-v2,
            which the packaged embeddings were computed with.
        quick: if the demo has to run first, whether it is the short one.
        out: where it prints.

    Raises:
        ImportError: if sentence-transformers is not installed; the message says what to do.
        ValueError: if the definition is empty, or the text model cannot be had or does not fit.
    """
    if not definition.strip():
        raise ValueError("--ask: expected a definition, got nothing")
    embedding = embed(definition, text_model or MINILM)
    if not (folder / demo.RESULTS).is_file():
        demo.run(folder, quick=quick, out=out)
    model = SparseAutoencoder.from_pretrained(folder / demo.MODELS["self"]).eval()
    if embedding.shape[1] != model.input_dim:
        raise ValueError(
            f"--text-model: expected embeddings of {model.input_dim} dimensions, "
            f"got {embedding.shape[1]}; {MINILM} fits"
        )
    index = InvertedIndex.load(folder / demo.INDEX)
    with open(folder / demo.WORDS, "rb") as stream:
        lines = [text for _, text in read_lines(stream, demo.WORDS)]
    scores, ids = index.search(encode_all(model, embedding), top_k=HITS)
    hits = [
        Hit(float(score), *lines[row].split("\t"))
        for score, row in zip(scores[0], ids[0], strict=True)
        if row >= 0
    ]
    rows, texts = dictionary()
    dense = (rows @ embedding[0]).astype(float)
    nearest = np.argsort(-dense)[:HITS]
    return Answer(
        hits,
        [Hit(dense[row], *texts[row]) for row in nearest],
        sparse_bytes(index.k, index.dim),
        dense_bytes(rows.shape[1]),
    )


def show(definition: str, found: Answer, out: Console) -> None:
    """Print what was found."""
    out.print(f"“{definition}”", style="italic", markup=False, highlight=False)
    for title, hits in (
        (f"by codes, {found.code_bytes} bytes a definition", found.hits),
        (f"by the embeddings themselves, {found.dense_bytes} bytes", found.dense),
    ):
        out.print(title, style="dim")
        for hit in hits:
            out.print(
                f"  {hit.score:.2f}  [bold]{escape(hit.words)}[/bold]: {escape(hit.definition)}",
                highlight=False,
            )


def embed(definition: str, text_model: str) -> np.ndarray:
    """Return the definition's embedding, float32 [1, d] at L2 norm 1."""
    model = TextModel(text_model, device="cpu")
    if model.sparse:
        raise ValueError(f"--text-model: expected a dense model, got {text_model}, a sparse one")
    embedding = model.embed([definition], query=True)
    return embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
