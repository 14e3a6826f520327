"""The codes of an index: how they come, go, and are stored."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from csrkern import _C, hub
from csrkern.arguments import check_bool, integers, thread_count
from csrkern.identity import check_fingerprint, check_same_model
from csrkern.index import file as index_file
from csrkern.index.fast import Plans
from csrkern.index.fine import check_fine, quantizer_of
from csrkern.index.graph import with_graph
from csrkern.index.rows import Rows, check_ids, check_norms, no_lists, read_rows
from csrkern.index.segment import (
    SIZES,
    SQUARES,
    Beside,
    Form,
    Segment,
    arrays_of,
    build_segment,
    merge,
    restore_segment,
)
from csrkern.locks import ForkLock

if TYPE_CHECKING:
    from csrkern.index.fine import FineCodes, FineQuantizer
    from csrkern.typing import CodesLike, IdsLike, VectorsLike

# Added codes are merged into segments of at least twice the size of the next, as long as that
# makes no segment larger than this (0.1 s without clusters); `compact` merges the rest.
LARGEST_MERGED = 131_072

Self = TypeVar("Self", bound="Collection")


class Snapshot(NamedTuple):
    """All that changes when codes come and go, as it was at one instant.

    Attributes:
        segments: they never change themselves.
        form: how codes are stored; the first codes fix what it leaves open.
        k: the most slots that a document had when it came.
        next_id: one more than the highest id that there ever was.
    """

    segments: tuple[Segment, ...]
    form: Form
    k: int = 0
    next_id: int = 0

    @property
    def n(self) -> int:
        """Number of codes, without those that were removed."""
        return sum(len(segment) for segment in self.segments)

    @property
    def only_fine(self) -> bool:
        """Whether there are fine codes and nothing in the lists."""
        return self.k == 0 < self.n and self.form.quantizer is not None

    @property
    def ids(self) -> np.ndarray:
        """The id of each code, int64 [n]."""
        return np.concatenate([segment.ids for segment in self.segments])

    def build(
        self,
        rows: Rows,
        ids: Any,
        norms: Any,
        fine: FineCodes | None,
        threads: int,
        *,
        plain: bool = False,
    ) -> tuple[Segment, Form]:
        """Return a segment of new codes, and the form with what they fix.

        Args:
            ids: None: the next ones after the highest; with `plain`, 0..n-1, not stored.
        """
        if ids is not None:
            ids = check_ids(ids, rows.n)
        elif not plain:
            ids = self.next_id + np.arange(rows.n, dtype=np.int64)
        if norms is not None:
            norms = check_norms(norms, rows.n)
        codes = check_fine(fine, rows.n, self.form.quantizer)
        beside = Beside(norms, None if codes is None else np.array(codes, order="C"))
        form = self.form.holding(rows.values)
        normalize = form.metric == "cosine"
        return build_segment(rows, ids, beside, form, threads, normalize=normalize), form

    def with_segment(self, segment: Segment, form: Form, k: int, replaced: int = 0) -> Snapshot:
        """Return a snapshot in which a segment takes the place of the last `replaced` ones."""
        kept = self.segments[: len(self.segments) - replaced]
        next_id = max(self.next_id, segment.id_range()[1] + 1)
        return Snapshot((*kept, segment), form, max(self.k, k), next_id)


class Collection:
    """Codes in segments that never change; a change replaces the snapshot of them as a whole."""

    dim: int
    metric: str
    dtype: str
    fingerprint: str | None
    _snapshot: Snapshot
    _changing: ForkLock
    _plans: Plans

    @classmethod
    def of(cls: type[Self], snapshot: Snapshot, dim: int, fingerprint: str | None = None) -> Self:
        """Return an index that holds these segments."""
        index = cls.__new__(cls)
        index.dim = dim
        index.metric = snapshot.form.metric
        index.dtype = snapshot.form.dtype
        index.fingerprint = fingerprint
        index._snapshot = snapshot
        index._changing = ForkLock()  # held by whoever replaces the snapshot
        index._plans = Plans()
        return index

    def snapshot(self) -> Snapshot:
        """Return the segments and what is known of them, as they are now."""
        return self._snapshot

    @property
    def k(self) -> int:
        """The most slots that a document had when it came."""
        return self._snapshot.k

    @property
    def only_fine(self) -> bool:
        """Whether it holds fine codes and no lists, to be searched by `search_fine`."""
        return self._snapshot.only_fine

    @property
    def quantizer(self) -> FineQuantizer | None:
        """The quantizer of the fine codes; None: the index holds none."""
        return self._snapshot.form.quantizer

    def add(
        self,
        codes: CodesLike | None,
        ids: IdsLike | None = None,
        *,
        norms: VectorsLike | None = None,
        fine: FineCodes | None = None,
        replace: bool = False,
        any_model: bool = False,
        num_threads: int | None = None,
    ) -> None:
        """Add n codes; searches that begin from now on find them.

        They are in memory until `save`. Small segments are merged as they come, so that there
        are never many; after adding much to a large index, `compact` makes one again.

        Args:
            codes: as for `build`; a pair of arrays needs no dim. None: fine codes alone.
            ids: n distinct integers ≥ 0; None: the next ones after the highest that the index
                ever had.
            norms, fine: needed if the index was built with them.
            replace: codes of the index with one of these ids are removed in the same instant;
                False: no code may have one.
            any_model: take codes of another model than the index's, too.
            num_threads: None: as many as the process may run on.

        Raises:
            TypeError, ValueError: as `build`, if an id is taken, a value is larger than
                the index holds (uint8), or (ModelMismatchError) another model made the
                codes; nothing is added then.
        """
        rows = rows_to_store(codes, fine, self.dim)
        threads = thread_count(num_threads)
        if check_bool("replace", replace) and ids is None:
            raise ValueError("ids: expected those to replace or to add, got None")
        if rows.n == 0:
            return
        with self._changing:
            now = self._snapshot
            if now.n:
                check_same_model("codes", rows.fingerprint, self.fingerprint, any_model=any_model)
            _check_norms_match(now.segments, norms)
            if now.next_id + rows.n > 2**63 and ids is None:
                raise ValueError("ids: no numbers are left above the highest one; give ids")
            if ids is not None:
                now = _free(check_ids(ids, rows.n), now, replace)
            segment, form = now.build(rows, ids, norms, fine, threads)
            replaced = _to_merge(now.segments, segment)
            if replaced:
                together = [*now.segments[len(now.segments) - replaced :], segment]
                segment = merge(together, form, threads)
            if now.n == 0 and rows.fingerprint is not None:
                self.fingerprint = rows.fingerprint
            self._snapshot = now.with_segment(segment, form, rows.k, replaced)

    def remove(self, ids: IdsLike) -> None:
        """Remove codes; searches that begin from now on do not find them.

        Their memory is freed when their segment is merged or by `compact`.

        Raises:
            TypeError: if ids are not integers.
            ValueError: if an id repeats or is not in the index; nothing is removed then.
        """
        array = np.atleast_1d(integers("ids", ids))
        if array.size == 0:
            return
        array = check_ids(array, array.size)
        with self._changing:
            now = self._snapshot
            docs_of = _documents_of(array, now)
            self._snapshot = _without(docs_of, now)

    def compact(self, *, num_threads: int | None = None) -> None:
        """Merge all segments into one, without the codes that were removed.

        Takes as long as a build, and 260 bytes a code of k = 32 beside both indexes; with a graph,
        as long as `build_graph`.
        """
        threads = thread_count(num_threads)
        with self._changing:
            now = self._snapshot
            if len(now.segments) == 1 and now.segments[0].removed == 0:
                return
            merged = merge(now.segments, now.form, threads)
            if any(segment.native.neighbors is not None for segment in now.segments):
                merged = merged.with_native(with_graph(merged, now.form, threads))
            self._snapshot = now._replace(segments=(merged,))

    def build_graph(
        self,
        *,
        num_threads: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Connect each code with those that are most like it, for fast searches.

        `calibrate(queries)` then measures whether such searches should walk along these edges
        instead of reading lists: where codes are many and have near neighbors, two to three times
        as fast. Takes as long as an exact search for every code, and 128 bytes a code, which are
        saved with the index. Codes that are added later are searched exactly, until `compact` or
        another call connects them. A segment of fewer than 4,096 codes, as well scanned, has no
        graph. In the meantime the index may be searched and changed.

        Args:
            num_threads: None: as many as the process may run on.
            progress: called with the codes that are done and the number of all, segment by segment.
        """
        threads = thread_count(num_threads)
        if progress is not None and not callable(progress):
            raise TypeError(f"progress: expected a function, got {type(progress).__name__}")
        made: dict[_C.Index, _C.Index] = {}
        while True:
            for segment in self._snapshot.segments:
                if segment.native not in made:
                    form = self._snapshot.form
                    made[segment.native] = with_graph(segment, form, threads, progress)
            with self._changing:
                now = self._snapshot
                # Others may have come in the meantime.
                if all(segment.native in made for segment in now.segments):
                    segments = (s.with_native(made[s.native]) for s in now.segments)
                    self._snapshot = now._replace(segments=tuple(segments))
                    return

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index to a directory, replacing an index that is there.

        A crash at any instant leaves the old index or the new one. Processes that have
        loaded the old one keep it. Lists that the directory holds already are not written
        again. One process at a time may save to a directory.

        Raises:
            OSError: if a file cannot be written.
            ValueError: if `path` is a file.
        """
        with index_file.SAVING:
            facts, segments = self._facts()
            index_file.write(path, facts, segments)

    def push_to_hub(self, repo_id: str, *, results: str | None = None, **options: Any) -> str:
        """Write the index, and a card, into a repository of the Hugging Face Hub.

        Args:
            repo_id: "org/name"; made if it does not exist.
            results: Markdown of what was measured, for the card.
            options: of `csrkern.hub.push`: private, revision, message, token.

        Returns: the address of the commit.

        Raises:
            ImportError: without huggingface_hub.
            ValueError: if `repo_id` is not "org/name".
            OSError: if the Hub cannot be reached, or refuses.
        """
        snapshot = self._snapshot
        lines = [
            f"An inverted index of {len(self):,} sparse codes over {self.dim:,} latents, "
            f"{snapshot.form.dtype} values, metric {snapshot.form.metric}.",
            "",
            "```python",
            "import csrkern",
            "",
            f'index = csrkern.InvertedIndex.from_pretrained("{repo_id}")',
            "scores, ids = index.search(codes, top_k=10)",
            "```",
        ]
        card = hub.card_of(repo_id.split("/")[-1], ("sparse-retrieval",), lines, results)
        return hub.push(self.save, repo_id, hub.INDEX_FILES, card, **options)

    @classmethod
    def from_pretrained(
        cls: type[Self],
        repo_id: str,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        mmap: bool = True,
        verify: bool = False,
    ) -> Self:
        """Load an index from a repository of the Hugging Face Hub, or from a folder.

        Args:
            repo_id: "org/name", or a folder.
            revision: of the repository: a branch, tag or commit.
            token: for the Hub; None: the one that is logged in.
            mmap, verify: of `load`.

        Raises:
            FileNotFoundError: if there is no such repository or folder.
            ValueError: as `load`.
        """
        if hub.is_repository(repo_id):
            folder = hub.pull(repo_id, hub.INDEX_FILES, revision=revision, token=token)
            return cls.load(folder, mmap=mmap, verify=verify)
        return cls.load(repo_id, mmap=mmap, verify=verify)

    def _facts(self) -> tuple[dict[str, Any], tuple[Segment, ...]]:
        """Return what a file tells of the index, and the segments that it holds."""
        with self._changing:
            segments, form, k, next_id = self._snapshot
            fingerprint = check_fingerprint("fingerprint", self.fingerprint)
        facts = {
            "dim": self.dim,
            "k": k,
            "next_id": next_id,
            "metric": form.metric,
            "values": form.dtype,
            "cluster": form.cluster,
        }
        if form.dtype in SQUARES:
            facts["exponent"] = form.exponent
        if form.window is not None:
            facts["window"] = form.window
        if fingerprint is not None:
            facts["fingerprint"] = fingerprint
        if form.quantizer is not None:
            facts["quantizer"] = form.quantizer
        if plans := self._plans.facts():
            facts["fast"] = plans
        return facts, segments

    @classmethod
    def load(
        cls: type[Self], path: str | os.PathLike[str], *, mmap: bool = True, verify: bool = False
    ) -> Self:
        """Read an index that `save` wrote.

        Every size, offset and checksum of the index is checked at once, its inverted lists
        each before its first use: a damaged file gives a ValueError here or in `search`, not
        a wrong answer.

        Args:
            path: the directory.
            mmap: map the lists into memory, to be read when first needed, instead of
                reading them now.
            verify: check all lists now.

        Raises:
            FileNotFoundError: if there is no index at `path`.
            ValueError: if the files are damaged or of another version.
        """
        facts, arrays = index_file.read(path, mmap)
        here = os.path.realpath(os.fsdecode(path))
        try:
            index = cls._restore(facts, arrays)
            for segment, entry in zip(index._snapshot.segments, facts["segments"], strict=True):
                segment.files[here] = {n: e for n, e in entry["arrays"].items() if n != "alive"}
                if verify:
                    segment.native.verify(thread_count(None))
        except ValueError as error:
            raise ValueError(f"{os.fsdecode(path)}: {error}") from error
        return index

    @classmethod
    def _restore(
        cls: type[Self], facts: dict[str, Any], arrays: list[dict[str, np.ndarray]]
    ) -> Self:
        dtype, metric, cluster = facts["values"], facts["metric"], facts["cluster"]
        optional = (facts.get(name) for name in ("window", "exponent", "quantizer"))
        form = Form(dtype, metric, cluster, *optional)
        segments = tuple(
            restore_segment(form, facts["dim"], entry, of_segment)
            for entry, of_segment in zip(facts["segments"], arrays, strict=True)
        )
        ranges = [segment.id_range() for segment in segments]
        if any(low < 0 or high >= facts["next_id"] for low, high in ranges):
            raise ValueError("the index is damaged: its ids are not in 0..next_id-1")
        snapshot = Snapshot(segments, form, facts["k"], facts["next_id"])
        index = cls.of(snapshot, facts["dim"], facts.get("fingerprint"))
        index._plans = Plans(facts.get("fast", ()))
        return index

    def __reduce__(self) -> tuple[Any, ...]:
        facts, segments = self._facts()
        facts["segments"] = [{name: getattr(s, name) for name in SIZES} for s in segments]
        return type(self)._restore, (facts, [arrays_of(s) for s in segments])

    def get(self, ids: IdsLike) -> tuple[np.ndarray, np.ndarray]:
        """Return the stored codes of documents: values float32 [n, k] and indices int32 [n, k].

        Args:
            ids: n integers, in any order; the rows follow it.

        Raises:
            TypeError: if ids are not integers.
            ValueError: if an id is not in the index.
        """
        array = np.atleast_1d(integers("ids", ids)).astype(np.int64)
        now = self._snapshot
        values = np.zeros((len(array), now.k), np.float32)
        indices = np.zeros((len(array), now.k), np.int32)
        for segment, docs in zip(now.segments, _documents_of(array, now), strict=True):
            here = np.flatnonzero(docs >= 0)
            if len(here):
                starts, latents, stored = segment.native.rows_of(docs[here])
                rows = Rows(stored, latents, starts, self.dim)
                values[here], indices[here] = padded_rows(rows, now.k)
        return values, indices

    def to_numpy(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the stored codes: values float32 [n, k] and indices int32 [n, k].

        Rows stand in the order of `ids`, entries in that of SparseCodes (by value descending,
        then by latent), padded with value 0 and index 0.
        """
        return padded(self._snapshot)

    @property
    def ids(self) -> np.ndarray:
        """The id of each code, in the order that masks and `to_numpy` follow, int64 [n]."""
        return self._snapshot.ids

    def __len__(self) -> int:
        return self._snapshot.n

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(n={len(self)}, dim={self.dim}, k={self.k}, "
            f"metric={self.metric!r}, dtype={self.dtype!r})"
        )


def rows_to_store(codes: CodesLike | None, fine: FineCodes | None, dim: int | None) -> Rows:
    """Return codes as rows; without codes, a row with no entry for each fine code."""
    if codes is not None:
        return read_rows("codes", codes, dim)
    if fine is None:
        raise ValueError("codes: expected codes, or fine codes in their place; got neither")
    quantizer_of(fine)
    return no_lists(len(fine), dim or 1)


def padded(snapshot: Snapshot) -> tuple[np.ndarray, np.ndarray]:
    """Return the stored codes; see `Collection.to_numpy`."""
    segments, k, n = snapshot.segments, snapshot.k, snapshot.n
    try:
        out_values = np.zeros((n, k), np.float32)
        out_indices = np.zeros((n, k), np.int32)
    except (MemoryError, ValueError) as error:
        longest = max(segment.rows().k for segment in segments)
        if longest >= k:
            raise
        raise ValueError(
            f"k: expected {longest}, what the longest code has, got {k}; arrays "
            f"[{n}, {k}] do not fit in memory"
        ) from error
    first = 0
    for segment in segments:
        some = slice(first, first + len(segment))
        out_values[some], out_indices[some] = padded_rows(segment.rows(), k)
        first += len(segment)
    return out_values, out_indices


def padded_rows(codes: Rows, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows with starts as `Collection.to_numpy` does."""
    if codes.k > k:
        raise ValueError(f"the index is damaged: codes have more than k = {k} latents")
    values = np.zeros((codes.n, k), np.float32)
    indices = np.zeros((codes.n, k), np.int32)
    ordered, filled = codes.strongest(k), np.arange(codes.k) < codes.lengths[:, None]
    values[:, : codes.k][filled] = ordered.values
    indices[:, : codes.k][filled] = ordered.indices
    return values, indices


def _check_norms_match(segments: Sequence[Segment], norms: Any) -> None:
    held = [segment.native.norms is not None for segment in segments if len(segment)]
    if held and any(held) != (norms is not None):
        expected = "with its norm, as" if any(held) else "without norms, like"
        raise ValueError(f"norms: expected each code {expected} those of the index")


def _documents_of(ids: np.ndarray, now: Snapshot) -> list[np.ndarray]:
    """Return the document of each id in each segment, -1 where it has none.

    Raises ValueError if no segment has an id.
    """
    docs_of = [segment.find(ids) for segment in now.segments]
    missing = np.all([docs < 0 for docs in docs_of], axis=0)
    if missing.any():
        raise ValueError(f"ids: {ids[np.argmax(missing)]} is not in the index")
    return docs_of


def _without(docs_of: Sequence[np.ndarray], now: Snapshot) -> Snapshot:
    """Return the same without documents of each segment; numbers below 0 are none."""
    segments = tuple(
        segment.without(docs[docs >= 0]) if (docs >= 0).any() else segment
        for segment, docs in zip(now.segments, docs_of, strict=True)
    )
    return now._replace(segments=segments)


def _free(ids: np.ndarray, now: Snapshot, replace: bool) -> Snapshot:
    """Return the same without codes of these ids; without `replace`, there may be none."""
    docs_of = [segment.find(ids) for segment in now.segments]
    taken = np.any([docs >= 0 for docs in docs_of], axis=0) if docs_of else np.zeros(0, bool)
    if not replace and taken.any():
        raise ValueError(
            f"ids: {ids[np.argmax(taken)]} is in the index already; add with replace=True, or "
            "remove it first"
        )
    return _without(docs_of, now) if taken.any() else now


def _to_merge(segments: tuple[Segment, ...], new: Segment) -> int:
    """How many of the last segments a new one is to be merged with."""
    count, size = 0, len(new)
    for segment in reversed(segments):
        if len(segment) >= 2 * size or len(segment) + size > LARGEST_MERGED:
            break
        size += len(segment)
        count += 1
    return count


# What the arrays of a segment are for.
_USES = {
    "postings": "postings",
    **dict.fromkeys(("terms", "offsets", "checksums"), "directory"),
    "ids": "ids",
    **dict.fromkeys(("maxima", "scales"), "bounds"),
    "norms": "norms",
    "fine": "fine",
    "neighbors": "graph",
    "alive": "removed",
}


def stats(snapshot: Snapshot) -> dict[str, Any]:
    """Count over all segments, those of removed codes included."""
    segments, quantizer = snapshot.segments, snapshot.form.quantizer
    lengths: dict[int, int] = {}
    for segment in segments:
        of_terms = segment.native.list_lengths().tolist()
        for latent, length in zip(segment.native.terms.tolist(), of_terms, strict=True):
            lengths[latent] = lengths.get(latent, 0) + length
    by_length = np.sort(np.fromiter(lengths.values(), np.int64, len(lengths)))[::-1]
    documents = sum(segment.documents for segment in segments)
    removed = sum(segment.removed for segment in segments)
    total = int(by_length.sum())
    split = dict.fromkeys(_USES.values(), 0)
    mapped = 0
    for segment in segments:
        for name, array in arrays_of(segment).items():
            split[_USES[name]] += array.nbytes
            mapped += array.nbytes * (not array.flags.writeable)  # as mapped arrays alone are
    of_codes = sum(split.values())
    split["quantizer"] = sum(a.nbytes for a in quantizer.arrays.values()) if quantizer else 0
    forward = sum(segment.native.forward_bytes for segment in segments)
    dense = sum(segment.native.dense_bytes for segment in segments)
    n_bytes = sum(split.values())
    return {
        "documents": documents - removed,
        "removed": removed,
        "segments": len(segments),
        "window": segments[0].window,
        "block": segments[0].block,
        "latents": len(by_length),
        "postings": total,
        "bytes": n_bytes,
        "bytes_of": split,
        "bytes_per_code": of_codes / max(documents - removed, 1),
        "mapped_bytes": mapped,
        "resident_bytes": n_bytes - mapped + forward + dense,
        "forward_bytes": forward,
        "dense_bytes": dense,
        "longest_list": int(by_length.max(initial=0)),
        "hottest_share": float(by_length[: -(-len(by_length) // 100)].sum() / max(total, 1)),
        "postings_per_query": float((by_length.astype(np.float64) ** 2).sum() / max(documents, 1)),
    }
