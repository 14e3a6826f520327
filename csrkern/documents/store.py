"""DocumentStore: texts in, documents out, by codes, by words or by both."""

from __future__ import annotations

import contextlib
import io
import json
import os
import threading
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from csrkern.arguments import check_bool, check_choice, check_int, float32_array, float32_rows
from csrkern.documents.filter import ALL, FilterLike, condition, without_nul
from csrkern.documents.table import CODED, FILE, Table, naming, of_ids, of_numbers, packed
from csrkern.identity import check_same_model
from csrkern.index.file import HEADER
from csrkern.index.fuse import fuse
from csrkern.index.inverted import InvertedIndex
from csrkern.index.rows import Rows, read_rows
from csrkern.index.segment import METRICS

if TYPE_CHECKING:
    from csrkern.nn.modules import SparseAutoencoder
    from csrkern.typing import CodesLike, VectorsLike

    Embed = Callable[[list[str]], VectorsLike | CodesLike]

MODEL = "model"
WAYS = ("codes", "words", "hybrid")
# Hits of each search that `fuse` merges, at least.
_SHORTLIST = 100
# Codes that are read from the file at once, for an index that lacks them.
_CHUNK = 50_000


class Document(NamedTuple):
    """A text with its id and metadata."""

    id: str
    text: str
    metadata: dict[str, Any]


class DocumentStore:
    """Documents and the index of their codes, in a folder or in memory.

    Documents, codes and words are in one SQLite file, and each change of it is one transaction:
    it is durable when `add` or `delete` returns, and after a crash at any instant either whole
    or not there. The index follows from the file: a store that is opened adds to its index what
    that lacks, and removes what it should not have. `save` and `close` write the index beside
    the file, so that the next opening need not build it.

    Methods may be called from any number of threads. Several processes, or several stores, may
    have one folder open: each sees the changes of the others with its next call. A process that
    forks does so before it opens the store. A store in a folder can be pickled, to be opened where
    it is unpickled: there the same path must lead to the folder.

    Attributes:
        path: the folder; None: in memory.
    """

    path: Path | None

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        model: SparseAutoencoder | str | os.PathLike[str] | None = None,
        *,
        embed: Embed | None = None,
        embed_query: Embed | None = None,
        metric: str | None = None,
        read_only: bool = False,
    ) -> None:
        """Open the store in a folder, or make one.

        Args:
            path: the folder; None: in memory, until it is closed.
            model: makes codes of embeddings; or its folder, or its repository on the Hub. The
                store keeps a copy, so that later openings need none. None without such a copy:
                embeddings are codes already, as of a `SparseEncoder`.
            embed: returns the embeddings [n, d] of n texts. None: each call brings them.
            embed_query: the same for texts that are searched for; None: `embed`.
            metric: "cosine" or "ip", by which codes are scored; None: that of the store, "cosine"
                for a new one.
            read_only: open a store that is there, perhaps on a disk that cannot be written, and
                write nothing: no index, no copy of `model`. What would change it raises
                io.UnsupportedOperation. The store follows the changes of others, if the disk
                can be written.

        Raises:
            OSError: if the folder or its file cannot be read and written, or (FileNotFoundError)
                there is none to be read.
            ValueError: if a file in the folder is damaged, if the store has another metric, or
                (ModelMismatchError) if it holds codes of another model.
            RuntimeError: if this Python's SQLite has no full-text search.
        """
        if metric is not None:
            check_choice("metric", metric, METRICS)
        self._lock = threading.RLock()
        self._embed, self._embed_query = embed, embed_query or embed
        self._read_only = check_bool("read_only", read_only)
        self._index: InvertedIndex | None = None
        self._version: int | None = None  # of the file that the index follows; None: not known
        self._closed = False
        self._process = os.getpid()
        self.path = None if path is None else Path(path).absolute()
        self._file = ":memory:" if self.path is None else str(self.path / FILE)
        if read_only:
            self._check_readable()
        elif self.path is not None:
            self.path.mkdir(parents=True, exist_ok=True)
        self._table = Table(self._file, read_only)
        try:
            with self._reading() if read_only else self._changing() as table:
                has = table.setting("metric")
                if has is None:
                    table.set("metric", metric or "cosine")
                elif metric not in (None, has):
                    raise ValueError(f"metric: this store has {has!r}, got {metric!r}")
                self._model = self._keep_model(model, table)
        except BaseException:
            self._table.close()
            raise

    def add(
        self,
        texts: Sequence[str],
        *,
        ids: Sequence[str] | None = None,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        embeddings: Sequence[Any] | VectorsLike | CodesLike | None = None,
    ) -> list[str]:
        """Add documents, replacing those with the same ids.

        Args:
            texts: n texts.
            ids: n distinct names; None: new ones.
            metadata: a JSON object, or None, for each.
            embeddings: [n, d] for the store's model, or n codes where it has none; None: what
                `embed` makes of the texts. A list may hold None: such a document is found by
                words alone.

        Returns: the ids.

        Raises:
            TypeError, ValueError: if an argument is not as expected, or (ModelMismatchError)
                the store holds codes of another model; nothing is added then.
        """
        texts = _strings("texts", texts)
        ids = [uuid.uuid4().hex for _ in texts] if ids is None else _strings("ids", ids)
        facts = [None] * len(texts) if metadata is None else list(metadata)
        for name, parts in (("ids", ids), ("metadata", facts)):
            if len(parts) != len(texts):
                raise ValueError(f"{name}: expected one for each of {len(texts)}, got {len(parts)}")
        twice = next((name for name, n in Counter(ids).items() if n > 1), None)
        if twice is not None:
            raise ValueError(f"ids: expected distinct ids, got {twice!r} twice")
        written = [_as_json(number, fact) for number, fact in enumerate(facts)]
        if not texts:
            return []
        with self._reading() as table:
            deep = table.cannot_hold(written)
        if deep is not None:
            raise ValueError(f"metadata[{deep}]: expected JSON that is not nested that deeply")
        rows, places = self._codes_of(texts, embeddings)
        codes: list[bytes | None] = [None] * len(texts)
        if rows is not None:
            for place, code in zip(places.tolist(), packed(rows), strict=True):
                codes[place] = code
        with self._changing() as table:
            _, replaced = table.delete(of_ids(ids))
            numbers = table.insert(ids, texts, written, codes)
            if rows is not None:
                if self._index is None or len(self._index) == 0:
                    table.set("dim", rows.dim)
                    table.set("fingerprint", rows.fingerprint)
                self._index_rows(rows, numbers[places])
            if len(replaced):  # after the new ones, so that no search finds neither
                assert self._index is not None
                self._index.remove(replaced)
        return ids

    def delete(self, ids: Sequence[str] | None = None, *, filter: FilterLike | None = None) -> int:
        """Delete documents, by their ids (those that are not there are passed over) or a filter.

        Args:
            ids: of documents.
            filter: of metadata; {}: all documents.

        Returns: how many were deleted.

        Raises:
            TypeError, ValueError: if not exactly one is given, or it is not as expected.
        """
        if (ids is None) == (filter is None):
            raise ValueError("delete: expected ids or a filter ({} for all), one of them")
        chosen = condition(filter) if ids is None else of_ids(_strings("ids", ids))
        with self._changing() as table:
            n, coded = table.delete(chosen)
            if len(coded):
                assert self._index is not None
                self._index.remove(coded)
        return n

    def get(self, ids: Sequence[str]) -> list[Document]:
        """Return documents in the order of their ids, without those that are not there."""
        ids = _strings("ids", ids)
        with self._reading() as table:
            rows = table.documents(of_ids(ids))
            found = {id: _document(id, text, facts) for _, id, text, facts in rows}
        return [found[id] for id in ids if id in found]

    def find(self, filter: FilterLike | None = None) -> list[Document]:
        """Return all documents that a filter lets pass, in the order in which they came."""
        chosen = condition(filter)
        with self._reading() as table:
            return [_document(*row) for _, *row in table.documents(chosen)]

    def count(self, filter: FilterLike | None = None) -> int:
        """Return how many documents a filter lets pass."""
        chosen = condition(filter)
        with self._reading() as table:
            return table.count(chosen)

    def __len__(self) -> int:
        return self.count()

    def search(
        self,
        text: str | None = None,
        top_k: int = 10,
        *,
        embedding: VectorsLike | CodesLike | None = None,
        filter: FilterLike | None = None,
        by: str = "codes",
        weights: Sequence[float] | None = None,
        method: str = "ranks",
        distinct: str | None = None,
    ) -> list[tuple[Document, float]]:
        """Return the best documents and their scores, best first.

        Args:
            text: what is searched for; may be None by codes, if there is an embedding.
            top_k: documents, at most.
            embedding: of the query, [d], or one code where the store has no model; None: what
                `embed_query` makes of the text.
            filter: of metadata.
            by: "codes": the metric of the codes; "words": BM25 of the text's words, of which a
                document needs one; "hybrid": both, fused.
            weights: of codes and words in "hybrid", two numbers; None: equal.
            method: of `csrkern.fuse`: "ranks" (reciprocal ranks) or "scores".
            distinct: a field of the metadata: of documents with the same value, such as passages
                of one source, only the best is returned. Those without the field all are.

        Raises:
            TypeError, ValueError: if an argument is not as expected.
        """
        top_k = check_int("top_k", top_k, 1, 2**40)
        check_choice("by", by, WAYS)
        if text is None and (by != "codes" or embedding is None):
            raise ValueError(f"text: expected a text to search for by {by}, got None")
        if text is not None and not isinstance(text, str):
            raise TypeError(f"text: expected a str, got {type(text).__name__}")
        chosen = condition(filter)
        query = None if by == "words" else self._query_code(text, embedding)

        def search(n: int) -> tuple[list[tuple[Document, float]], bool]:
            """Return n hits, if there are as many, and whether all are there still."""
            depth = max(n, _SHORTLIST) if by == "hybrid" else n
            results = []
            if query is not None:
                with self._reading() as table:
                    index = self._index
                    numbers = None if chosen == ALL else table.numbers(chosen)
                if index is None:
                    results.append((np.zeros((1, 0), np.float32), np.zeros((1, 0), np.int64)))
                else:  # without the lock, so that threads search side by side
                    results.append(index.search(query, depth, filter=numbers))
            with self._reading() as table:
                if by != "codes":
                    results.append(table.matching(text or "", depth, chosen))
                if by == "hybrid":
                    results = [fuse(results, n, weights=weights, method=method)]
                scores, found = results[0]
                hits = found[found >= 0].tolist()
                documents = {n: _document(*row) for n, *row in table.documents(of_numbers(hits))}
            ranked = zip(hits, scores[0].tolist(), strict=False)
            there = [(documents[n], score) for n, score in ranked if n in documents]
            return there, len(there) == len(hits)

        def best(n: int) -> list[tuple[Document, float]]:
            found, whole = search(n)
            if not whole:  # replaced or deleted meanwhile: again, with no change of ours between
                with self._held():
                    found, _ = search(n)
            return found

        if distinct is None:
            return best(top_k)
        condition({distinct: None})
        n = top_k
        while True:
            found = best(n)
            apart = _distinct(found, distinct)
            if len(apart) >= top_k or len(found) < n:
                return apart[:top_k]
            n *= 4

    def codes(self, ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the stored codes of documents: values float32 and indices int32, both [n, k].

        Raises:
            ValueError: if a document is not there or has no code.
        """
        ids = _strings("ids", ids)
        with self._reading() as table:
            place = {id: n for n, id, *_ in table.documents(of_ids(ids) & CODED)}
            missing = [id for id in ids if id not in place]
            if missing:
                raise ValueError(f"ids: expected documents with codes, {missing[0]!r} is none")
            if self._index is None:
                return np.zeros((0, 0), np.float32), np.zeros((0, 0), np.int32)
            return self._index.get([place[id] for id in ids])

    def index_field(self, name: str) -> None:
        """Make filters by a field of the metadata fast, now and whenever the store is opened.

        Filters by other fields read the metadata of all documents. Those by an indexed one read
        the documents that pass, for equality, "$in" and the four orders, alone and under "$and".

        Args:
            name: of the field; "a.b" is the field b of the object a.

        Raises:
            TypeError, ValueError: if no field can have that name.
        """
        condition({name: None})
        with self._changing() as table:
            table.index_field(name)

    def save(self) -> None:
        """Write the index, if the store has a folder; documents are there already.

        Raises:
            io.UnsupportedOperation: if the store is read-only.
        """
        if self.path is not None:
            with self._changing():
                if self._index is not None:
                    self._index.save(self.path)

    def close(self) -> None:
        """Save the index and close the file; a second call does nothing."""
        with self._held():
            if not self._closed:
                if not self._read_only:
                    self.save()
                self._table.close()
                self._closed = True

    def __reduce__(self) -> tuple[Any, ...]:
        if self.path is None:
            raise TypeError(
                "a DocumentStore in memory cannot be pickled: nothing of it is in a file; open one "
                "in a folder"
            )
        model = self._model if self._read_only else None  # else the folder has a copy
        return _reopened, (self.path, model, self._embed, self._embed_query, self._read_only)

    def __enter__(self) -> DocumentStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Hold the store, and name its file in what SQLite says."""
        # SQLite loses track of its locks in a forked process, and the lock may be held forever.
        if self.path is not None and os.getpid() != self._process:
            raise RuntimeError(
                f"{self.path}: this store was opened by another process, before it forked; open "
                "the folder in each process after that"
            )
        with self._lock, naming(self._file):
            yield

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Table]:
        with self._held():
            self._check_there()
            self._catch_up()
            yield self._table

    @contextlib.contextmanager
    def _changing(self) -> Iterator[Table]:
        """Hold the file for a change of it and of the index, which ends with the block."""
        with self._held():
            self._check_there()
            if self._read_only:
                raise io.UnsupportedOperation(
                    f"{self.path}: this store was opened to be read; open it without "
                    "read_only=True to change it"
                )
            self._table.begin()
            try:
                self._catch_up()
                index, before = self._index, None
                if index is not None:
                    before = InvertedIndex.of(index.snapshot(), index.dim, index.fingerprint)
                version, self._version = self._version, None
                try:
                    yield self._table
                    self._table.commit()
                except BaseException:
                    # The index may hold what the file does not, so the one before takes its
                    # place. Should the change be in the file after all, the next call sees that.
                    self._index = before
                    raise
                self._version = version
            except BaseException:
                self._table.roll_back()
                raise

    def _check_readable(self) -> None:
        if self.path is None:
            raise ValueError("read_only: expected False for a store in memory, which begins empty")
        if not Path(self._file).exists():
            raise FileNotFoundError(
                f"{self.path}: expected a store, found none; without read_only=True one is made"
            )

    def _check_there(self) -> None:
        """Refuse to go on with a file that nobody will find again."""
        if self._closed:
            raise ValueError("this store is closed; open it again")
        if not self._table.is_there():
            raise FileNotFoundError(
                f"{self.path}: the store's file is gone, or another is in its place; open it again"
            )

    def _catch_up(self) -> None:
        """Bring the index to the numbers that the file has."""
        version = self._table.version()
        if version == self._version:
            return
        if self._index is None and self.path is not None and (self.path / HEADER).exists():
            try:
                self._index = InvertedIndex.load(self.path, verify=True)
                if int(self._index.ids.max(initial=0)) > self._table.last():
                    # This file, an older one that was restored, will give the numbers again.
                    self._index = None
                    if not self._read_only:
                        (self.path / HEADER).unlink()
                    raise ValueError("it has documents that its file has not had")
            except ValueError as error:  # the documents have all codes
                warnings.warn(f"the index is built again: {error}", stacklevel=2)
        numbers = self._table.numbers(CODED)
        if self._index is not None:
            held = self._index.ids
            gone = np.setdiff1d(held, numbers)
            if len(gone):
                self._index.remove(gone)
            numbers = np.setdiff1d(numbers, held)
        dim, fingerprint = (self._table.setting(name) for name in ("dim", "fingerprint"))
        for first in range(0, len(numbers), _CHUNK):
            rows, some = self._table.codes(numbers[first : first + _CHUNK], dim)
            self._index_rows(rows._replace(fingerprint=fingerprint), some)
        self._version = version

    def _index_rows(self, rows: Rows, numbers: np.ndarray) -> None:
        if self._index is None or len(self._index) == 0:  # over other latents, perhaps
            metric = self._table.setting("metric")
            self._index = InvertedIndex.build(rows, numbers, metric=metric)
        else:
            self._index.add(rows, numbers)

    def _codes_of(self, texts: list[str], embeddings: Any) -> tuple[Rows | None, np.ndarray]:
        """Return the codes of some texts, and which texts these are."""
        places = np.arange(len(texts))
        if embeddings is None:
            if self._embed is None:
                raise ValueError(
                    "embeddings: expected those of the texts, as the store was opened without "
                    "embed=; a list of None stores texts that are found by words alone"
                )
            embeddings = self._embed(texts)
        elif isinstance(embeddings, list) and any(e is None for e in embeddings):
            places = np.flatnonzero([embedding is not None for embedding in embeddings])
            embeddings = [embedding for embedding in embeddings if embedding is not None]
            if not embeddings:
                return None, places
        rows = self._encoded("embeddings", embeddings)
        if rows.n != len(places):
            raise ValueError(f"embeddings: expected {len(places)}, got {rows.n}")
        return rows, places

    def _query_code(self, text: str | None, embedding: Any) -> Rows:
        if embedding is None:
            if self._embed_query is None:
                raise ValueError(
                    "embedding: expected that of the text, as the store was opened without embed="
                )
            embedding = self._embed_query([text or ""])
        elif self._adapter() is not None:
            embedding = float32_array("embedding", embedding)[None]
        rows = self._encoded("embedding", embedding)
        if rows.n != 1:
            raise ValueError(f"embedding: expected one, got {rows.n}")
        return rows

    def _encoded(self, name: str, embeddings: Any) -> Rows:
        model = self._adapter()
        if model is not None:
            embeddings = model.encode(float32_rows(name, embeddings, model.input_dim))
        try:
            return read_rows(name, embeddings, None)
        except TypeError as error:
            raise TypeError(f"{error}; open the store with model= to store embeddings") from error

    def _keep_model(self, given: Any, table: Table) -> SparseAutoencoder | None:
        """Return the model that was given, and keep a copy of it."""
        if given is None:
            return None
        from csrkern.nn.modules import SparseAutoencoder

        model = given if isinstance(given, SparseAutoencoder) else _loaded(given)
        if self._index is not None and len(self._index):
            check_same_model("model", model.fingerprint, self._index.fingerprint)
        name = f"{model.fingerprint} k={model.k}"
        if self._read_only:
            return model
        lost = self.path is not None and not (self.path / MODEL).exists()
        if self.path is not None and (lost or table.setting("model") != name):
            model.save_pretrained(self.path / MODEL)
            table.set("model", name)
        return model

    def _adapter(self) -> SparseAutoencoder | None:
        with self._held():
            if self._model is None and self.path is not None and (self.path / MODEL).exists():
                self._model = _loaded(self.path / MODEL)
            return self._model


def _reopened(
    path: Path, model: Any, embed: Any, embed_query: Any, read_only: bool
) -> DocumentStore:
    if not (path / FILE).exists():
        raise FileNotFoundError(
            f"{path}: expected the folder of the store that was pickled; put it at this path, too"
        )
    return DocumentStore(path, model, embed=embed, embed_query=embed_query, read_only=read_only)


def _loaded(path: str | os.PathLike[str]) -> SparseAutoencoder:
    from csrkern.nn.modules import SparseAutoencoder

    return SparseAutoencoder.from_pretrained(os.fspath(path))


def _distinct(hits: list[tuple[Document, float]], field: str) -> list[tuple[Document, float]]:
    """Return the first hit of each value of a field, and all without one."""
    first: dict[str, tuple[Document, float]] = {}
    for hit in hits:
        value: Any = hit[0].metadata
        for part in field.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        name = f"id {hit[0].id}" if value is None else f"value {json.dumps(value, sort_keys=True)}"
        first.setdefault(name, hit)
    return list(first.values())


def _strings(name: str, given: Any) -> list[str]:
    if isinstance(given, str):
        raise TypeError(f"{name}: expected a list of str, got one str")
    if not isinstance(given, Iterable):
        raise TypeError(f"{name}: expected a list of str, got {type(given).__name__}")
    strings = list(given)
    for string in strings:
        if not isinstance(string, str):
            raise TypeError(f"{name}: expected a list of str, got a {type(string).__name__}")
        try:
            string.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{name}: expected Unicode, got {string!r:.60}") from error
        if name == "ids" and "\0" in string:
            raise ValueError(f"ids: expected ids without the character NUL, got {string!r:.60}")
    return strings


def _as_json(number: int, metadata: Any) -> str:
    if metadata is not None and not isinstance(metadata, Mapping):
        raise TypeError(
            f"metadata[{number}]: expected a mapping or None, got {type(metadata).__name__}"
        )
    for name in metadata or ():
        if not isinstance(name, str):
            raise TypeError(f"metadata[{number}]: expected names that are str, got {name!r:.60}")
    try:
        return without_nul(json.dumps(dict(metadata or {}), ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"metadata[{number}]: expected what JSON can hold: {error}") from error


def _document(id: str, text: str, metadata: str) -> Document:
    return Document(id, text, json.loads(metadata))


__all__ = ["Document", "DocumentStore"]
