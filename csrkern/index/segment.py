"""The segments of an index: built once, never changed, searched as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from csrkern import _C
from csrkern.arguments import OF_SIGNED, check_choice, check_int, least_float
from csrkern.index.fine import FineQuantizer
from csrkern.index.rows import Rows, concatenate_rows

# Scores of 32,768 documents, 128 KB: with more, the scan of a window costs more than the
# longer lists save; with fewer, the reverse (10% at 16,384, 5 to 25% at 65,536). Where the mean
# list is long, it sweeps all of a window, and one of 48 KB, which the first cache holds, is
# 5 to 15% faster (k = 64 of 4,096 or 1,024 latents); where it is short, 5 to 10% slower.
USUAL_WINDOW, SMALL_WINDOW = 32_768, 12_288
LONG_LIST = 1 / 80  # of all documents
# Documents whose maxima are kept together where codes are clustered: 32 bytes a code at
# 8,192 latents, 1 in 200 blocks read; 128 reads fewer but costs twice the memory.
DEFAULT_BLOCK = 256
# Fewer codes are scanned faster than their blocks are chosen.
LEAST_WORTH_CLUSTERING = 65_536
# Mean cosine of a code's 8 strongest entries with the nearest of 1 in 128 codes. Evenly drawn
# codes have 0.3 and gain nothing; it is known after a hundredth of the work of clustering.
LEAST_SIMILARITY = 0.4
# A gain that the estimate must promise to be believed.
LEAST_GAIN = 1.25


NATIVE_ARRAYS = (
    *("terms", "offsets", "checksums", "postings"),
    *("ids", "maxima", "scales", "norms", "fine", "neighbors"),
)


SIZES = ("documents", "window", "block")  # of a segment, in a header
METRICS = ("ip", "cosine")
VALUE_DTYPES = ("float16", "uint8", "uint4", "float32")
# Values that are squares of whole numbers; csrc/include/csrkern/index_values.hpp. Between these
# powers of two the largest square leaves all others normal float32.
SQUARES = ("uint8", "uint4")
LEAST_EXPONENT, MOST_EXPONENT = -94, 127
MOST_GROUPED = 65_472  # documents of a window of lists in uint4


class Form(NamedTuple):
    """How codes are stored, the same for all segments of an index.

    With uint8 and uint4 the largest value is 2^exponent. It is chosen once: were it to
    change, what is stored already would have to be rounded again.
    """

    dtype: str
    metric: str
    cluster: bool | None
    window: int | None  # None: each segment chooses
    exponent: int | None = None  # not yet known, or of no meaning
    quantizer: FineQuantizer | None = None  # of the fine codes, where there are some

    def holding(self, values: np.ndarray) -> Form:
        """Return the same, with an exponent that suits the first codes if there is none yet."""
        if self.dtype not in SQUARES or self.exponent is not None:
            return self
        largest = float(values.max(initial=0))
        return self if largest <= 0 else self._replace(exponent=exponent_of(largest))

    @property
    def largest(self) -> float | None:
        """The largest value that can be stored, where there is such a bound and it is known."""
        return None if self.exponent is None else 2.0**self.exponent


def exponent_of(largest: float) -> int:
    """Of the least power of two that is at least `largest`, within what float32 allows."""
    if not np.isfinite(largest):
        return MOST_EXPONENT  # the codes are refused, with their row, when they are read
    mantissa, exponent = math.frexp(largest)
    return max(LEAST_EXPONENT, min(exponent - (mantissa == 0.5), MOST_EXPONENT))


def check_form(
    metric: str, dtype: str, cluster: bool | None, window: int | None, largest: Any = None
) -> Form:
    """Return the form that these arguments of `InvertedIndex.build` ask for, checked."""
    check_choice("metric", metric, METRICS)
    check_choice("dtype", dtype, VALUE_DTYPES)
    check_window(window)
    if cluster is not None and not isinstance(cluster, bool):
        raise TypeError(f"cluster: expected None, True or False, got {type(cluster).__name__}")
    if dtype == "uint4":
        if cluster:
            raise ValueError(
                "cluster: lists in uint4 are not in order, as blocks need them; dtype='uint8' is"
            )
        if window is not None and window > MOST_GROUPED:
            raise ValueError(f"window: expected at most {MOST_GROUPED:,} with dtype='uint4'")
        cluster = False
    return Form(dtype, metric, cluster, window, _exponent(metric, dtype, largest))


def check_window(window: int | None) -> int | None:
    """Return a number of documents, a multiple of 64 up to 65,536, or None."""
    if window is not None and check_int("window", window, 64, 65_536) % 64:
        raise ValueError(f"window: expected a multiple of 64, got {window}")
    return window


def _exponent(metric: str, dtype: str, largest: Any) -> int | None:
    if largest is None:
        return 0 if dtype in SQUARES and metric == "cosine" else None
    if dtype not in SQUARES or metric == "cosine":
        raise ValueError(
            "largest: only with dtype='uint8' or 'uint4' and metric='ip'; "
            "floats need no such bound, and with cosine it is 1"
        )
    largest = least_float("largest", largest)
    if not 0 < largest <= 2.0**MOST_EXPONENT:
        raise ValueError(f"largest: expected 0 < largest <= 2^{MOST_EXPONENT}, got {largest}")
    return exponent_of(largest)


class Beside(NamedTuple):
    """Arrays that an index holds beside its codes, one row a document; None where it has none.

    Attributes:
        norms: float32 [n], what dense scores are divided by.
        fine: uint8 [n, bytes], fine codes.
    """

    norms: np.ndarray | None = None
    fine: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> Beside:
        """Return the same of the rows of these numbers, or of a mask."""
        return Beside(*(None if array is None else array[rows] for array in self))


class Lookup:
    """From ids to documents."""

    def __init__(self, ids: np.ndarray | None, documents: int) -> None:
        self._ids = ids
        self._documents = documents

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray | None]:
        assert self._ids is not None
        if (np.diff(self._ids) > 0).all():
            return self._ids, None
        order = np.argsort(self._ids, kind="stable")
        return self._ids[order], order

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Return the document of each id, -1 where there is none."""
        if self._ids is None or self._documents == 0:
            return np.where((ids >= 0) & (ids < self._documents), ids, -1)
        ascending, order = self._sorted
        at = np.minimum(np.searchsorted(ascending, ids), self._documents - 1)
        is_held = ascending[at] == ids
        return np.where(is_held, at if order is None else order[at], -1)


class Segment:
    """Codes that were built together, and which of them have been removed since.

    Attributes:
        native: the lists.
        documents: codes in the lists, removed ones among them.
        alive: a bit for each, in words of 64; None: all are.
        removed: how many are not.
        lookup: from ids to documents.
        files: names of the files that hold `native`, by folder; see index_file.
    """

    def __init__(
        self,
        native: _C.Index,
        *,
        alive: np.ndarray | None = None,
        lookup: Lookup | None = None,
        files: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        self.native = native
        self.documents: int = native.n_docs
        self.window: int = native.window
        self.block: int = native.block
        self.alive = alive
        self.removed = 0 if alive is None else self.documents - int(self.mask().sum())
        self.lookup = lookup or Lookup(native.ids, self.documents)
        self.files = {} if files is None else files

    def __len__(self) -> int:
        return self.documents - self.removed

    def mask(self) -> np.ndarray:
        """Return which codes have not been removed, bool [documents]."""
        if self.alive is None:
            return np.ones(self.documents, bool)
        bits = np.unpackbits(self.alive.view(np.uint8), count=self.documents, bitorder="little")
        return bits.view(bool)

    @property
    def ids(self) -> np.ndarray:
        """Of the living codes, int64 [len(self)], a copy."""
        native = self.native.ids
        ids = np.arange(self.documents, dtype=np.int64) if native is None else native
        return np.array(ids) if self.alive is None else ids[self.mask()]

    def id_range(self) -> tuple[int, int]:
        """Return the least and the largest id, removed codes included; without any, (0, -1)."""
        ids = self.native.ids
        if ids is None or len(ids) == 0:
            return 0, self.documents - 1
        return int(ids.min()), int(ids.max())

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Return the living document of each id, -1 where there is none."""
        docs = self.lookup.find(ids)
        if self.alive is not None:
            at = np.maximum(docs, 0)
            live = self.alive[at >> 6] >> (at & 63).astype(np.uint64) & np.uint64(1)
            docs = np.where(live == 1, docs, -1)
        return docs

    def without(self, docs: np.ndarray) -> Segment:
        """Return the same with some of its documents removed."""
        mask = self.mask()
        mask[docs] = False
        return Segment(self.native, alive=pack(mask), lookup=self.lookup, files=self.files)

    def with_native(self, native: _C.Index) -> Segment:
        """Return the same with lists of the same documents that hold more."""
        if native is self.native:
            return self
        return Segment(native, alive=self.alive, lookup=self.lookup)

    def rows(self) -> Rows:
        """Return the living codes, with starts."""
        starts, latents, values = self.native.rows()
        rows = Rows(values, latents, starts, self.native.dim)
        return rows if self.alive is None else rows.take(np.flatnonzero(self.mask()))

    @property
    def beside(self) -> Beside:
        """The arrays beside the living codes."""
        all_of_them = Beside(self.native.norms, self.native.fine)
        return all_of_them if self.alive is None else all_of_them.take(self.mask())


def best_window(rows: Rows) -> int:
    """Return the documents of a window by the mean length of the lists."""
    is_long = rows.values.size > LONG_LIST * rows.dim * rows.n  # not where there are none
    return SMALL_WINDOW if is_long else USUAL_WINDOW


def build_segment(
    rows: Rows,
    ids: np.ndarray | None,
    beside: Beside,
    form: Form,
    threads: int,
    *,
    normalize: bool,
) -> Segment:
    """Return a segment of `rows`, clustered if `form` says so or leaves it open and it pays.

    Raises:
        ValueError: if a latent is out of range or repeats in a row, or a value is negative or not
            finite.
    """
    try:
        return _segment(rows, ids, beside, form, threads, normalize)
    except ValueError as error:
        if not (rows.values < 0).any():
            raise
        raise ValueError(f"{error}{OF_SIGNED}") from None


def _segment(
    rows: Rows, ids: np.ndarray | None, beside: Beside, form: Form, threads: int, normalize: bool
) -> Segment:
    """Return `build_segment`, with errors that know nothing of signed codes."""
    window = form.window or best_window(rows)
    stored = {"dtype": form.dtype, "exponent": form.exponent or 0}

    def assemble(order: np.ndarray | None, block: int) -> _C.Index:
        arrays = _C.build_index(
            *rows[:4], order, window, block, *stored.values(), normalize, threads
        )
        in_order, beside_in_order = ids, beside
        has_rows = beside.fine is not None
        if ids is None and not _C.plausible_documents(rows.n, arrays["offsets"][-1], has_rows):
            in_order = np.arange(rows.n)  # says that the empty ones among them are meant
        if order is not None:
            in_order = order if ids is None else ids[order]
            beside_in_order = beside.take(order)
        sizes = {"n_docs": rows.n, "dim": rows.dim, "window": window, "block": block}
        side = {"ids": in_order, **beside_in_order._asdict()}
        return _C.Index(**sizes, **stored, trusted=True, **side, **arrays)

    native = None
    least = 1 if form.cluster else LEAST_WORTH_CLUSTERING
    if form.cluster is not False and rows.n >= least:
        order = _C.cluster_order(*rows[:4], 0 if form.cluster else LEAST_SIMILARITY, threads)
        if len(order) == rows.n:
            native = assemble(order, _block(rows, window))
        if native is not None and form.cluster is None:
            sample = np.linspace(0, rows.n - 1, 32).astype(np.int64)
            if native.gain_of_blocks(*rows[:3], sample, normalize) < LEAST_GAIN:
                native = None
    return Segment(assemble(None, 0) if native is None else native)


def merge(segments: Sequence[Segment], form: Form, threads: int) -> Segment:
    """One segment of the living codes of several."""
    rows = concatenate_rows([segment.rows() for segment in segments])
    ids = np.concatenate([segment.ids for segment in segments])
    beside = beside_of(segments)
    plain = (ids == np.arange(len(ids))).all()
    # What is stored has been brought to norm 1 and rounded: it is kept as it is.
    return build_segment(rows, None if plain else ids, beside, form, threads, normalize=False)


def beside_of(segments: Sequence[Segment]) -> Beside:
    """Return the arrays beside all living codes of an index."""
    held = [segment.beside for segment in segments if len(segment)]
    held = held or [segment.beside for segment in segments[:1]]

    def joined(arrays: list[np.ndarray | None]) -> np.ndarray | None:
        known = [array for array in arrays if array is not None]
        return np.concatenate(known) if known and len(known) == len(arrays) else None

    return Beside(joined([b.norms for b in held]), joined([b.fine for b in held]))


def arrays_of(segment: Segment) -> dict[str, np.ndarray]:
    """All that a segment holds, by name, as plain arrays."""
    named = {name: getattr(segment.native, name) for name in NATIVE_ARRAYS}
    named["alive"] = segment.alive
    return {name: np.asarray(array) for name, array in named.items() if array is not None}


def restore_segment(
    form: Form, dim: int, entry: dict[str, Any], arrays: dict[str, np.ndarray]
) -> Segment:
    """Return the segment that a header's entry and its arrays, all unchecked, came from.

    Raises:
        ValueError: if they cannot be one.
    """
    arrays = dict(arrays)
    alive = arrays.pop("alive", None)
    documents, window, block = (entry[name] for name in SIZES)
    n_bytes = form.quantizer.n_bytes if form.quantizer is not None else 0
    fine = arrays.pop("fine", np.empty(0, np.uint8))
    neighbors = arrays.pop("neighbors", None)
    if neighbors is not None:
        if neighbors.size != documents * _C.NEIGHBORS:
            raise ValueError("the index is damaged: its neighbors disagree in size")
        arrays["neighbors"] = neighbors.reshape(documents, _C.NEIGHBORS)
    if fine.size != documents * n_bytes:
        raise ValueError("the index is damaged: its fine codes disagree in size")
    native = _C.Index(
        n_docs=documents,
        dim=dim,
        window=window,
        block=block,
        dtype=form.dtype,
        exponent=form.exponent or 0,
        trusted=False,
        fine=fine.reshape(documents, n_bytes) if n_bytes else None,
        **arrays,
    )
    if alive is not None:
        words, spare = -(-documents // 64), -documents % 64
        if alive.shape != (words,) or (spare and int(alive[-1]) >> (64 - spare)):
            raise ValueError("the index is damaged: its removed codes disagree in size")
    norms = native.norms
    if norms is not None and not (np.isfinite(norms) & (norms > 0)).all():
        raise ValueError("the index is damaged: its norms are not all positive")
    return Segment(native, alive=alive)


def pack(mask: np.ndarray) -> np.ndarray:
    """Return the last axis of a boolean array as bits, in words of 64."""
    n = mask.shape[-1]
    packed = np.zeros((*mask.shape[:-1], -(-n // 64) * 8), np.uint8)
    bits = np.packbits(mask, axis=-1, bitorder="little")
    packed[..., : bits.shape[-1]] = bits
    return packed.view("<u8")


def _block(rows: Rows, window: int) -> int:
    """Documents a block: more than usual where the maxima would outgrow half the postings."""
    block = math.gcd(window, DEFAULT_BLOCK)
    latents = min(rows.dim, rows.values.size)
    while block < window and window % (2 * block) == 0:
        if latents * (rows.n // block) <= 2 * rows.values.size:
            break
        block *= 2
    return block
