"""`csrkern demo --ask`: the words for a definition that the user types."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from rich.markup import escape
from torch.nn.functional import cosine_similarity

from csrkern import InvertedIndex
from csrkern.nn import SparseAutoencoder
from csrtrain.demo import run as demo
from csrtrain.demo.data import dictionary
from csrtrain.evaluation.baselines import dense_bytes, sparse_bytes
from csrtrain.lines import read_lines
from csrtrain.pca import PCA
from csrtrain.texts import MINILM, TextModel

if TYPE_CHECKING:
    from rich.console import Console

HITS = 5


class Hit(NamedTuple):
    """A definition that a search found, and its words."""

    score: float
    words: str
    definition: str


class Answer(NamedTuple):
    """The hits of one kind of search, best first, and the bytes it stores for a definition."""

    bytes: int
    hits: list[Hit]


def answer(
    folder: Path,
    definition: str,
    text_model: str | None,
    *,
    quick: bool = False,
    out: Console | None = None,
) -> dict[str, Answer]:
    """Return the nearest definitions by codes, by PCA in as many bytes and by embeddings.

    Runs the demo first if need be.

    Args:
        folder: where a demo was, or is to be, written.
        definition: what the user typed.
        text_model: name or folder of the sentence-transformers model; None: all-MiniLM-L6-v2,
            which the packaged embeddings were computed with.
        quick: run the short demo, if the demo has to run first.
        out: where the demo prints.

    Raises:
        ImportError: if sentence-transformers is not installed; the message says what to do.
        ValueError: if the definition is empty, or the text model cannot be had or does not fit.
    """
    if not definition.strip():
        raise ValueError("--ask: expected a definition, got nothing")
    embedding = embed(definition, text_model or MINILM)
    if not (folder / demo.RESULTS).is_file():
        demo.run(folder, quick=quick, out=out)
    model = SparseAutoencoder.from_pretrained(folder / demo.MODELS["self"])
    if embedding.shape[1] != model.input_dim:
        raise ValueError(
            f"--text-model: expected embeddings of {model.input_dim} dimensions, "
            f"got {embedding.shape[1]}; {MINILM} fits"
        )
    index = InvertedIndex.load(folder / demo.INDEX)
    with open(folder / demo.WORDS, "rb") as stream:
        lines = [text for _, text in read_lines(stream, demo.WORDS)]
    scores, ids = index.search(model.encode(embedding), top_k=HITS)
    rows, texts = dictionary()
    answers = {
        "codes": Answer(
            sparse_bytes(index.k, index.dim),
            [
                Hit(float(score), *lines[row].split("\t"))
                for score, row in zip(scores[0], ids[0], strict=True)
                if row >= 0
            ],
        )
    }
    pca, width = PCA(rows), demo.EXAMPLE_PCA
    stored, query = torch.from_numpy(rows), torch.from_numpy(embedding)
    for name, vectors, vector in (
        ("PCA", pca.project(stored, width), pca.project(query, width)),
        ("dense", stored, query),
    ):
        best = cosine_similarity(vectors, vector).topk(HITS)
        hits = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        answers[name] = Answer(
            dense_bytes(vectors.shape[1]), [Hit(score, *texts[row]) for score, row in hits]
        )
    return answers


def show(definition: str, answers: dict[str, Answer], out: Console) -> None:
    """Print the hits of each kind of search."""
    out.print(f"“{definition}”", style="italic", markup=False, highlight=False)
    for name, answer in answers.items():
        out.print(f"by {name}, {answer.bytes} bytes a definition", style="dim")
        for hit in answer.hits:
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
