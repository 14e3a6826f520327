"""train_quantizer: codebooks for the fine codes of an index."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csrkern import FineQuantizer, Projection
from csrkern.arguments import check_bool, check_int, check_within
from csrkern.embeddings.dataset import open_embeddings
from csrkern.index.fine import WORDS
from csrkern.index.projection import LARGEST
from csrkern.typing import ArraySource
from csrtrain.progress import working

ROWS = 10_000  # trained on, 39 a word; more gain little
MOST_BOOKS = 32  # of a part: inner products of their words take 268 MB
_ROUNDS = 2
_BEAM = 5
_STEPS = 12  # of conjugate gradients in a round
# A word that stands in n rows moves as if it stood in so many more, which do not move it.
RIDGE = 100.0


def train_quantizer(
    embeddings: ArraySource,
    n_bytes: int = 16,
    *,
    cosine: bool = True,
    projection: Projection | None = None,
    parts: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> FineQuantizer:
    """Learn codebooks for the fine codes of embeddings; needs FAISS.

    FAISS trains residual codebooks, one after the other. Then rows are coded with them, all words
    are fitted together to the rows that they stand in; both twice.

    Args:
        embeddings: [n, d], a path or an array, of at least 256 rows; 10,000 of them, evenly
            spaced, are learned from.
        n_bytes: of a code.
        cosine: the last byte stores the norm, so that scores are cosines; False: all bytes choose
            words, and scores are inner products.
        projection: that embeddings go through first; see `learn_projection`.
        parts: of the dimensions, with as many codebooks each; a divisor of the number of
            codebooks and of d, or of the projection's width. More are learned and searched
            faster; fewer lose less. None: as few as keep a part to 32 codebooks.
        seed: of the start of each codebook.
        progress: say what is being done.

    Returns:
        The quantizer; `encode` of it makes the codes.

    Raises:
        ImportError: without FAISS; `pip install 'csrkern[eval]'`.
        TypeError, ValueError: if an argument does not fit.

    Source: residual quantization with a beam (Liu et al., arXiv 1509.05195) as FAISS trains it;
        fitting of all words together as in additive quantization (Babenko & Lempitsky, CVPR 2014).
    """
    check_bool("cosine", cosine)
    check_int("seed", seed, 0, 2**31 - 1)
    books = check_int("n_bytes", n_bytes, 1 + cosine, 4096) - cosine
    with working("learning the codebooks", wanted=progress):
        x = _learned_from(embeddings, projection)
        parts = _parts(books, x.shape[1], parts)
        codebooks = residual_codebooks(x - x.mean(0), parts, books // parts, seed)
        return fitted_quantizer(codebooks, x, cosine=cosine, projection=projection)


def train_quantizers(
    embeddings: ArraySource, sizes: Iterable[int], projection: Projection | None = None
) -> dict[int, FineQuantizer]:
    """Return what `train_quantizer` learns for each of several n_bytes.

    Takes hardly longer than the largest alone, for all sizes of as many parts begin alike.
    """
    x = _learned_from(embeddings, projection)
    parts = {size: _parts(size - 1, x.shape[1], None) for size in sizes}
    centered, learned = x - x.mean(0), {}
    for count in set(parts.values()):
        books = max(size - 1 for size in parts if parts[size] == count) // count
        learned[count] = residual_codebooks(centered, count, books, 0)
    return {
        size: fitted_quantizer(learned[count][:, : (size - 1) // count], x, projection=projection)
        for size, count in parts.items()
    }


def _learned_from(embeddings: ArraySource, projection: Projection | None) -> Tensor:
    """Return up to `ROWS` rows, evenly spaced, of what the projection makes of embeddings."""
    if find_spec("faiss") is None:
        raise ImportError("train_quantizer needs FAISS: pip install 'csrkern[eval]'")
    opened = open_embeddings("embeddings", embeddings)
    n = len(opened)
    if n < WORDS:
        raise ValueError(f"embeddings: expected at least {WORDS} rows to learn from, got {n}")
    step = max(1, n // ROWS)
    rows = opened.rows(torch.arange(0, n, step)[:ROWS]).float().numpy()
    check_within("embeddings", rows, LARGEST)
    return torch.from_numpy(rows if projection is None else projection(rows))


def residual_codebooks(rows: Tensor, parts: int, books: int, seed: int) -> Tensor:
    """Return what FAISS trains for rows [n, d]: [parts, books, 256, d / parts].

    A book depends on those before it alone, so that the first few of each part are what a smaller
    number of books gives.
    """
    import faiss

    width = rows.shape[1] // parts
    learned = []
    for p in range(parts):
        part = np.ascontiguousarray(rows[:, p * width : (p + 1) * width].numpy())
        quantizer = residual_quantizer(part, books, seed + p)
        words = torch.from_numpy(faiss.vector_to_array(quantizer.codebooks).copy())
        learned.append(words.reshape(books, WORDS, width))
    return torch.stack(learned)


def fitted_quantizer(
    codebooks: Tensor, x: Tensor, *, cosine: bool = True, projection: Projection | None = None
) -> FineQuantizer:
    """Return a quantizer of `residual_codebooks` whose words are fitted together to x [n, d].

    With a projection, x is what it made of embeddings.
    """
    parts, _, _, width = codebooks.shape
    mean = x.mean(0)
    fitted = [
        _fit_part(part, words)
        for part, words in zip((x - mean).split(width, dim=1), codebooks, strict=True)
    ]
    made = FineQuantizer(torch.cat(fitted), mean, parts=parts)
    if not cosine:
        return FineQuantizer(made.codebooks, mean, parts=parts, projection=projection)
    norms = np.linalg.norm(made.encode(x.numpy(), beam=_BEAM).decode(), axis=1)
    return FineQuantizer(
        made.codebooks, mean, parts=parts, lengths=_lengths(norms), projection=projection
    )


def most_bytes(n_bytes: int, width: int) -> int:
    """Return the most bytes up to n_bytes >= 2 of a code, with a norm, for rows of so many numbers.

    `train_quantizer` takes them without `parts`.
    """
    return next(
        n
        for n in range(n_bytes, 1, -1)
        if any(_fit(n - 1, width, parts) for parts in range(1, min(n, width + 1)))
    )


def _fit(books: int, d: int, parts: int) -> bool:
    return books % parts == 0 == d % parts and books // parts <= MOST_BOOKS


def _parts(books: int, d: int, given: int | None) -> int:
    """Return the number of parts: that given, or the least with at most `MOST_BOOKS` codebooks."""
    tried = range(1, books + 1) if given is None else [check_int("parts", given, 1, books)]
    for parts in tried:
        if _fit(books, d, parts):
            return parts
    name = "n_bytes" if given is None else "parts"
    raise ValueError(
        f"{name}: expected codebooks that parts of {d} dimensions can share equally, at most "
        f"{MOST_BOOKS} each, got {books} codebooks"
        + ("" if given is None else f" in {given} parts")
    )


def _lengths(norms: np.ndarray) -> np.ndarray:
    """Return 256 norms in equal proportions that span those of the rows, and a little more."""
    tiny = float(np.finfo(np.float32).tiny)
    low, high = 0.8 * max(float(norms.min()), 1e-3 * float(norms.max())), 1.25 * norms.max()
    low = max(low, tiny)
    return np.geomspace(low, max(float(high), 2 * low), WORDS)


def _fit_part(x: Tensor, codebooks: Tensor) -> Tensor:
    """Return codebooks [books, 256, w] whose words are fitted together to rows [n, w]."""
    books = len(codebooks)
    words = codebooks.reshape(books * WORDS, -1)
    nothing = np.zeros(x.shape[1], np.float32)
    first = WORDS * torch.arange(books)
    for _ in range(_ROUNDS):
        made = FineQuantizer(words.reshape(books, WORDS, -1), nothing)
        codes = torch.from_numpy(made.encode(x.numpy(), beam=_BEAM).codes)
        words = fit_words(x, codes.long() + first, words)
    return words.reshape(books, WORDS, -1)


def residual_quantizer(rows: np.ndarray, books: int, seed: int) -> Any:
    """Return FAISS's residual quantizer of `books` codebooks, trained on rows float32 [n, d]."""
    import faiss

    quantizer = faiss.ResidualQuantizer(rows.shape[1], books, WORDS.bit_length() - 1)
    quantizer.max_beam_size = _BEAM
    quantizer.cp.min_points_per_centroid = 1  # else it warns for every codebook
    quantizer.cp.seed = seed
    # The tables, which this search does not read, take 256² · books² / 2 numbers.
    quantizer.train_type |= quantizer.Skip_codebook_tables
    if len(rows) < rows.shape[1]:  # too few for the principal directions that it begins with
        quantizer.train_type = quantizer.Train_default | quantizer.Skip_codebook_tables
    quantizer.train(rows)
    return quantizer


def fit_words(x: Tensor, chosen: Tensor, words: Tensor) -> Tensor:
    """Return words moved so that those chosen add up to rows [n, w] as nearly as they can.

    Minimizes ‖x − sum of words[chosen]‖² + ‖moves‖² by conjugate gradients.

    Args:
        x: [n, w].
        chosen: int64 [n, books], the words of each row.
        words: [m, w].
    """

    def summed(moves: Tensor) -> Tensor:  # [n, w]
        return torch.nn.functional.embedding_bag(chosen, moves, mode="sum")

    def gathered(rows: Tensor) -> Tensor:  # [m, w]
        out = torch.zeros_like(words)
        for column in chosen.unbind(1):
            out.index_add_(0, column, rows)
        return out

    moves = torch.zeros_like(words)
    residual = gathered(x - summed(words))
    direction, square = residual.clone(), residual.square().sum(0)
    for _ in range(_STEPS):
        image = gathered(summed(direction)) + RIDGE * direction
        size = square / (direction * image).sum(0).clamp(min=1e-30)
        moves += size * direction
        residual -= size * image
        before, square = square, residual.square().sum(0)
        direction = residual + square / before.clamp(min=1e-30) * direction
    return words + moves
