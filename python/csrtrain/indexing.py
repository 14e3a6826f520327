"""build_index: an index of embeddings with fine codes, in one call."""

from __future__ import annotations

from typing import Any

import numpy as np

from csrkern import FineCodes, FineQuantizer, InvertedIndex
from csrkern.arguments import check_int
from csrkern.embeddings.dataset import Embeddings, open_embeddings
from csrkern.nn import SparseAutoencoder
from csrkern.typing import ArraySource, IdsLike
from csrtrain.progress import working
from csrtrain.training.quantizer import train_quantizer


def build_index(
    model: SparseAutoencoder,
    embeddings: ArraySource,
    k: int = 8,
    *,
    n_bytes: int = 16,
    quantizer: FineQuantizer | None = None,
    ids: IdsLike | None = None,
    dtype: str = "uint8",
    progress: bool = True,
    num_threads: int | None = None,
    **options: Any,
) -> InvertedIndex:
    """Build an index that finds documents by few latents and scores them by fine codes.

    Search it with `index.search(model.encode(queries), rerank=csrkern.Refine(queries))`: the
    lists choose a shortlist, the fine codes put it in order. A document takes k entries of 3
    bytes (dtype "uint8") and n_bytes, and the lists a directory.

    Args:
        model: that makes the codes.
        embeddings: [n, d], a path or an array.
        k: latents of a code; more find better shortlists.
        n_bytes: of a fine code; more order them better.
        quantizer: of the fine codes; None: `train_quantizer` learns one from the embeddings.
        ids, dtype, num_threads: as for `InvertedIndex.build`.
        progress: say what is being done.
        options: of `InvertedIndex.build`, for example metric or cluster.

    Raises:
        ImportError: without a quantizer and without FAISS.
        TypeError, ValueError: if an argument does not fit.
    """
    check_int("k", k, 1, model.hidden_dim)
    opened = open_embeddings("embeddings", embeddings, width=model.input_dim)
    if quantizer is None:
        quantizer = train_quantizer(embeddings, n_bytes, progress=progress)
    with working("coding", wanted=progress):
        fine = fine_codes(quantizer, opened, num_threads)
        codes = model.encode(opened, k)
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
