"""Fine codes: a few bytes a document, by which an index scores its shortlist; NumPy alone.

The lists of an index choose documents; how near those are to an embedding is then read off their
fine codes. Each byte of a code chooses one of the 256 words of a codebook, and the words add up
to the document's embedding, so that the inner product with a query is a sum of as many entries
of the query's tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from csrkern import _C
from csrkern.arguments import (
    array_of,
    check_int,
    check_width,
    check_within,
    float32_array,
    float32_rows,
    row_numbers,
    thread_count,
)
from csrkern.identity import digest
from csrkern.index.projection import FIRST, LARGEST, Projection, bounded_array

if TYPE_CHECKING:
    from csrkern.typing import VectorsLike

WORDS = 256  # of a codebook
LEAST_LENGTH = np.finfo(np.float32).tiny  # its inverse is finite
_ROWS = 4096  # coded at a time


class FineQuantizer:
    """Codebooks whose words add up to embeddings; `csrtrain.train_quantizer` learns them.

    An embedding without the mean consists of `parts` equal parts, and each part is stored as the
    sum of one word of each of its codebooks. With one part this is a residual quantizer, with as
    many parts as codebooks a product quantizer. With a projection all this holds for what it
    makes of embeddings, of p dimensions instead of d.

    Args:
        codebooks: [books, 256, d / parts], finite; book b belongs to part b // (books / parts).
            Kept in float32, a copy, as are the others. With a projection, p stands for d here.
        mean: [d], finite.
        parts: a divisor of the number of codebooks.
        lengths: [256], ascending, from 1.2e-38 on: the norms that one byte more of a code
            stands for, so that scores are cosines; None: scores are inner products.
        projection: that embeddings and queries go through first; None: as they are.

    Raises:
        TypeError, ValueError: if shapes disagree or a number is not finite or beyond 1e15.

    Source: additive codebooks searched with a beam, as Babenko & Lempitsky (CVPR 2014) and Liu et
        al. (arXiv 1509.05195) use them.

    Example:
        >>> import numpy as np
        >>> codebooks = np.random.default_rng(0).standard_normal((4, 256, 32))
        >>> quantizer = csrkern.FineQuantizer(codebooks, mean=np.zeros(64), parts=2)
        >>> quantizer.n_bytes
        4
    """

    def __init__(
        self,
        codebooks: VectorsLike,
        mean: VectorsLike,
        *,
        parts: int = 1,
        lengths: VectorsLike | None = None,
        projection: Projection | None = None,
    ) -> None:
        self.codebooks = bounded_array("codebooks", codebooks, 3)
        self.mean = bounded_array("mean", mean, 1)
        books, words, width = self.codebooks.shape
        self.parts = check_int("parts", parts, 1, max(books, 1))
        whole = len(self.mean)
        shaped = books > 0 and words == WORDS and width > 0
        if not shaped or books % self.parts or width * self.parts != whole:
            raise ValueError(
                f"codebooks: expected [books, {WORDS}, w], none of them 0, with parts = "
                f"{self.parts} a divisor of books and parts * w = {whole}, the length of mean, got "
                f"{list(self.codebooks.shape)}"
            )
        self.lengths = None if lengths is None else bounded_array("lengths", lengths, 1)
        if self.lengths is not None and (
            self.lengths.shape != (WORDS,)
            or self.lengths[0] < LEAST_LENGTH
            or (np.diff(self.lengths) < 0).any()
        ):
            raise ValueError(
                f"lengths: expected {WORDS} ascending numbers of at least {LEAST_LENGTH:.2g}"
            )
        if projection is not None and not isinstance(projection, Projection):
            raise TypeError(
                f"projection: expected a Projection, got {type(projection).__name__}; "
                "csrtrain.learn_projection learns one"
            )
        if projection is not None and projection.width != whole:
            raise ValueError(
                f"projection: expected one to {whole} dimensions, the length of mean, got one to "
                f"{projection.width}"
            )
        self.projection = projection
        self.files: dict[str, dict[str, Any]] = {}  # that hold the arrays, by folder

    @property
    def books(self) -> int:
        """Number of codebooks."""
        return len(self.codebooks)

    @property
    def n_bytes(self) -> int:
        """Bytes of a code."""
        return self.books + (self.lengths is not None)

    @property
    def dim(self) -> int:
        """Width d of the embeddings."""
        return len(self.mean) if self.projection is None else self.projection.dim

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Everything it holds but `parts`, by the names of the arguments."""
        arrays = {"codebooks": self.codebooks, "mean": self.mean}
        if self.lengths is not None:
            arrays["lengths"] = self.lengths
        if self.projection is not None:
            arrays["directions"] = self.projection.directions
            arrays["center"] = self.projection.center
        return arrays

    @cached_property
    def fingerprint(self) -> str:
        """Of all it holds: codes of two quantizers do not mix."""
        facts = {"parts": self.parts, "shapes": {n: list(a.shape) for n, a in self.arrays.items()}}
        return digest(facts, self.arrays.values())

    def encode(
        self, embeddings: VectorsLike, *, beam: int = 5, num_threads: int | None = None
    ) -> FineCodes:
        """Return the fine codes of embeddings [n, d].

        Args:
            embeddings: finite, up to 1e15; of any length, mapped arrays are read in pieces.
            beam: beginnings of a code that are kept from one codebook to the next.
            num_threads: None: as many as the process may run on.

        Raises:
            TypeError, ValueError: if embeddings or arguments are not as expected.
        """
        check_int("beam", beam, 1, WORDS)
        threads = thread_count(num_threads)
        pieces = [
            self._encode(rows, beam, threads)
            for rows in self._pieces("embeddings", embeddings, threads)
        ]
        return FineCodes(np.concatenate(pieces), self)

    def decode(self, codes: np.ndarray | FineCodes) -> np.ndarray:
        """Return the embeddings float32 [n, d] that codes uint8 [n, n_bytes] stand for.

        With a projection: what it makes of them, [n, p].

        Raises:
            TypeError, ValueError: if codes are not as expected, or another quantizer made them.
        """
        if isinstance(codes, FineCodes):
            made_by = codes.quantizer
            if made_by is not self and made_by.fingerprint != self.fingerprint:
                raise ValueError(
                    f"codes: expected those of quantizer {self.fingerprint}, got those of "
                    f"{made_by.fingerprint}; codes.decode() decodes them"
                )
            codes = codes.codes
        chosen = check_codes(codes, self)
        return np.concatenate(
            [self._decode(chosen[i : i + _ROWS]) for i in range(0, max(len(chosen), 1), _ROWS)]
        )

    def tables(
        self, queries: VectorsLike, *, num_threads: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what scores of codes are added up from, for queries [m, d].

        Returns:
            tables float32 [m, books, 256], inner products with words, and offsets float32 [m],
            those with the mean. With `lengths`, queries are brought to norm 1 before.

        Raises:
            TypeError, ValueError: if queries are not finite numbers [m, d] of at most 1e15.
        """
        rows = checked_rows("queries", queries, self)
        return tables_of(self, rows, thread_count(num_threads))

    @cached_property
    def scales(self) -> np.ndarray | None:
        """Return the factors of scores that the last byte of a code chooses from, float32 [256]."""
        return None if self.lengths is None else 1 / self.lengths

    def _encode(self, rows: np.ndarray, beam: int, threads: int) -> np.ndarray:
        products = self._products(rows - self.mean, threads)
        codes: np.ndarray = _C.fine_encode(
            products, self._squares, self._crossed, self.parts, beam, threads
        )
        if self.lengths is None:
            return codes
        norms = np.sqrt(np.square(self._decode(codes), dtype=np.float64).sum(1))
        middles = np.sqrt(self.lengths[1:].astype(np.float64) * self.lengths[:-1])
        return np.column_stack([codes, np.searchsorted(middles, norms).astype(np.uint8)])

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        each = self.books // self.parts
        parts = [
            sum(self.codebooks[b][codes[:, b]] for b in range(first, first + each))
            for first in range(0, self.books, each)
        ]
        rows: np.ndarray = np.concatenate(parts, axis=1) + self.mean
        return rows

    def _products(self, rows: np.ndarray, threads: int) -> np.ndarray:
        products: np.ndarray = _C.block_products(rows, self._blocks, self._first, threads)
        return products

    @cached_property
    def _blocks(self) -> np.ndarray:
        """The codebooks as products read them, [books, w, 256]."""
        return np.ascontiguousarray(self.codebooks.transpose(0, 2, 1))

    @cached_property
    def _first(self) -> np.ndarray:
        """The first column of each codebook's part, int64 [books]."""
        each, width = self.books // self.parts, self.codebooks.shape[2]
        return np.arange(self.books, dtype=np.int64) // each * width

    @cached_property
    def _squares(self) -> np.ndarray:
        with np.errstate(all="ignore"):  # the least squares become 0
            return np.square(self.codebooks, dtype=np.float64).sum(2).astype(np.float32)

    @cached_property
    def _crossed(self) -> np.ndarray:
        """Inner products of words with those of their part, [books, 256, books / parts, 256]."""
        each = self.books // self.parts
        threads = thread_count(None)
        parts = [
            _C.block_products(
                self.codebooks[p : p + each].reshape(-1, self.codebooks.shape[2]),
                self._blocks[p : p + each],
                np.zeros(each, np.int64),
                threads,
            )
            for p in range(0, self.books, each)
        ]
        return np.concatenate(parts)

    def _projected(self, rows: np.ndarray, threads: int) -> np.ndarray:
        return rows if self.projection is None else self.projection.apply(rows, threads)

    def _pieces(self, name: str, given: Any, threads: int) -> Iterator[np.ndarray]:
        if not isinstance(given, np.ndarray):
            given = float32_array(name, given)
        check_width(name, given, self.dim)
        for start in range(0, max(len(given), 1), _ROWS):
            rows = float32_array(name, given[start : start + _ROWS])
            check_within(name, rows, LARGEST, start)
            yield self._projected(rows, threads)

    def __reduce__(self) -> tuple[Any, ...]:
        return restore_quantizer, (self.parts, self.arrays)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(dim={self.dim}, n_bytes={self.n_bytes}, parts={self.parts}, "
            f"projection={self.projection}, "
            f"fingerprint={self.fingerprint!r})"
        )


def checked_rows(name: str, given: Any, quantizer: FineQuantizer) -> np.ndarray:
    """Return embeddings as float32 [n, d], finite and not too large for sums of squares."""
    return float32_rows(name, given, quantizer.dim, LARGEST)


def tables_of(
    quantizer: FineQuantizer, rows: np.ndarray, threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return `quantizer.tables` of rows that `checked_rows` returned."""
    rows = quantizer._projected(rows, threads)
    if quantizer.lengths is not None and quantizer.projection is None:
        rows = _C.unit_rows(rows, None, threads)
    offsets = _C.block_products(rows, quantizer.mean[None, :, None], FIRST, threads)[:, 0, 0]
    return quantizer._products(rows, threads), offsets


def check_probes(probes: Any) -> int | None:
    """Return how many cells a search by fine codes reads; None: all."""
    return None if probes is None else check_int("probes", probes, 1, WORDS)


def restore_quantizer(parts: int, arrays: Mapping[str, np.ndarray]) -> FineQuantizer:
    """Return the quantizer of which these are `parts` and `arrays`."""
    own = dict(arrays)
    directions, center = own.pop("directions", None), own.pop("center", None)
    projection = None
    if directions is not None and center is not None:
        projection = Projection(directions, center)
    elif directions is not None or center is not None:
        raise ValueError("projection: expected directions and a center, or neither")
    return FineQuantizer(**own, parts=parts, projection=projection)


@dataclass(frozen=True, eq=False)
class FineCodes:
    """Fine codes of n embeddings, as `InvertedIndex.build(fine=)` takes them.

    Attributes:
        codes: uint8 [n, quantizer.n_bytes]; a mapped array will do.
        quantizer: that made them.
    """

    codes: np.ndarray
    quantizer: FineQuantizer

    def __post_init__(self) -> None:
        if not isinstance(self.quantizer, FineQuantizer):
            raise TypeError(
                f"quantizer: expected a FineQuantizer, got {type(self.quantizer).__name__}"
            )
        object.__setattr__(self, "codes", check_codes(self.codes, self.quantizer))

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: int | slice | np.ndarray | Sequence[int]) -> FineCodes:
        """Return rows by number, slice, list of numbers or boolean mask, as FineCodes [m].

        Raises:
            IndexError: if `rows` is anything else, or names a row that is not there.
        """
        return FineCodes(self.codes[row_numbers(rows, len(self))], self.quantizer)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        """Say what to call: NumPy would make an array of objects of them, row by row."""
        raise TypeError(
            "FineCodes are no array: fine.codes are their bytes, fine.decode() embeddings"
        )

    def decode(self) -> np.ndarray:
        """Return the embeddings float32 [n, d] that they stand for."""
        return self.quantizer.decode(self)


def check_codes(codes: Any, quantizer: FineQuantizer) -> np.ndarray:
    """Return codes uint8 [n, quantizer.n_bytes] as an array."""
    array = array_of("codes", codes)
    if array.dtype != np.uint8:
        raise TypeError(f"codes: expected uint8, got {array.dtype}")
    if array.ndim != 2 or array.shape[1] != quantizer.n_bytes:
        raise ValueError(f"codes: expected shape [n, {quantizer.n_bytes}], got {list(array.shape)}")
    return array


def quantizer_of(fine: Any) -> FineQuantizer | None:
    """Return the quantizer of fine codes, None if there are none; TypeError for anything else."""
    if fine is None:
        return None
    if not isinstance(fine, FineCodes):
        raise TypeError(
            "fine: expected FineCodes, which FineQuantizer.encode(embeddings) makes, got "
            f"{type(fine).__name__}"
        )
    return fine.quantizer


def check_fine(fine: Any, n: int, quantizer: FineQuantizer | None) -> np.ndarray | None:
    """Return the fine codes that come with n codes for an index of this quantizer.

    Raises:
        TypeError, ValueError: if there are none where the index holds some, or the reverse,
            if they are not n, or another quantizer made them.
    """
    given = quantizer_of(fine)
    if given is None and quantizer is None:
        return None
    if given is None:
        raise ValueError(
            "fine: expected each code with its fine code, as those of the index; "
            "index.quantizer.encode(embeddings) makes them"
        )
    if quantizer is None:
        raise ValueError("fine: expected None, as the index was built without fine codes")
    if given.fingerprint != quantizer.fingerprint:
        raise ValueError(
            f"fine: expected codes of the index's quantizer {quantizer.fingerprint}, got those of "
            f"{given.fingerprint}; index.quantizer.encode(embeddings) makes them"
        )
    if len(fine) != n:
        raise ValueError(f"fine: expected one for each of {n} codes, got {len(fine)}")
    codes: np.ndarray = fine.codes
    return codes


__all__ = ["FineCodes", "FineQuantizer"]
