"""build_index: an index of embeddings with fine codes, in one call."""

from __future__ import annotations

from typing import Any

import numpy as np

from csrkern import FineCodes, FineQuantizer, InvertedIndex, Projection
from csrkern.arguments import check_int
from csrkern.embeddings.dataset import Embeddings, open_embeddings
from csrkern.nn import SparseAutoencoder
from csrkern.typing import ArraySource, IdsLike
from csrtrain.progress import working
from csrtrain.training.quantizer import train_quantizer

SHORTLIST_DTYPE = "uint4"  # form of values in lists that only choose what fine codes score


def build_index(
    model: SparseAutoencoder | None,
    embeddings: ArraySource,
    k: int = 8,
    *,
    n_bytes: int = 16,
    projection: Projection | None = None,
    quantizer: FineQuantizer | None = None,
    ids: IdsLike | None = None,
    dtype: str = SHORTLIST_DTYPE,
    progress: bool = True,
    num_threads: int | None = None,
    **options: Any,
) -> InvertedIndex:
    """Build an index of embeddings with fine codes, with lists or without.

    With a model, lists choose a shortlist and fine codes put it in order; search with
    `index.search(model.encode(queries), rerank=csrkern.Refine(queries))`. A document takes k
    entries of 2 bytes (dtype "uint4", for the lists only choose) and n_bytes, and the lists a
    directory.

    Without, the index holds fine codes alone; search all of them with
    `index.search_fine(queries)`. A document takes n_bytes.

    Args:
        model: that makes the codes in the lists; None: no lists.
        embeddings: [n, d], a path or an array.
        k: latents of a code in the lists; more find better shortlists.
        n_bytes: of a fine code; more order them better.
        projection: for `train_quantizer`; see `learn_projection`.
        quantizer: of the fine codes, with a projection of its own or none; None:
            `train_quantizer` learns one from the embeddings.
        ids, dtype, num_threads: as for `InvertedIndex.build`.
        progress: say what is being done.
        options: of `InvertedIndex.build`, for example metric or cluster.

    Raises:
        ImportError: without a quantizer and without FAISS.
        TypeError, ValueError: if an argument does not fit.
    """
    width = None
    if model is not None:
        check_int("k", k, 1, model.hidden_dim)
        width = model.input_dim
    if projection is not None and quantizer is not None:
        raise ValueError("projection: expected None with a quantizer, which holds its own")
    opened = open_embeddings("embeddings", embeddings, width=width)
    if quantizer is None:
        quantizer = train_quantizer(embeddings, n_bytes, projection=projection, progress=progress)
    with working("coding", wanted=progress):
        fine = fine_codes(quantizer, opened, num_threads)
        codes = None if model is None else model.encode(opened, k)
    with working("building the index", wanted=progress):
        return InvertedIndex.build(
            codes,
            ids,
            dtype=dtype,
            fine=fine,
            num_threads=num_threads,
            **options,
        )


def fine_codes(
    quantizer: FineQuantizer, embeddings: ArraySource | Embeddings, num_threads: int | None = None
) -> FineCodes:
    """Return the fine codes of embeddings [n, d], a path or an array, read in pieces."""
    opened = open_embeddings("embeddings", embeddings, width=quantizer.dim)
    pieces = [
        quantizer.encode(piece.numpy(), num_threads=num_threads).codes for piece in opened.pieces()
    ]
    return FineCodes(np.concatenate(pieces), quantizer)
