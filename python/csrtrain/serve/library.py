"""The library of a server: an index mapped from disk, its models and payloads; their reload."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from csrkern import InvertedIndex, Refine
from csrkern.hub import MODEL_FILES, is_repository
from csrkern.identity import check_same_model
from csrtrain.recipe import ADAPTER, RECIPE, Recipe
from csrtrain.serve.payloads import Payloads, Value
from csrtrain.serve.settings import Settings

if TYPE_CHECKING:
    from csrkern.nn import SparseAutoencoder
    from csrtrain.texts import TextModel

log = logging.getLogger("csrkern.serve")

LOOK_EVERY = 1.0  # seconds
WARMED_BY = 64  # queries
KINDS = ("codes", "embeddings", "texts")
Hits = tuple[np.ndarray, np.ndarray]


class Models:
    """The adapter and the text model of an index, each None where there is none."""

    def __init__(self, settings: Settings, index: InvertedIndex, earlier: Models | None) -> None:
        stored = Recipe.of_index(Path(settings.index))
        self.recipe = Recipe(settings.text_model, settings.model).over(stored)
        self.adapter = self._adapter(settings, index)
        self.text_model = self._text_model(settings, earlier)
        self.lock: threading.Lock = threading.Lock()  # tokenizers refuse a second thread
        if earlier is not None and earlier.text_model is self.text_model:
            self.lock = earlier.lock

    def _adapter(self, settings: Settings, index: InvertedIndex) -> SparseAutoencoder | None:
        if self.recipe.adapter is None or index.only_fine:
            return None
        try:
            from csrtrain.texts import load_adapter

            needed = settings.model is not None or is_repository(self.recipe.adapter)
            adapter = load_adapter(self.recipe, needed=needed)
        except (ImportError, OSError) as error:
            _do_without("the adapter", settings.model, error)
            return None
        if adapter is not None:
            name = f"the adapter {self.recipe.adapter}"
            check_same_model(name, adapter.fingerprint, index.fingerprint)
        return adapter

    def _text_model(self, settings: Settings, earlier: Models | None) -> TextModel | None:
        if self.recipe.text_model is None:
            return None
        if earlier is not None and earlier.text_model is not None:
            then, now = earlier.recipe, self.recipe
            fields = "text_model", "text_fingerprint"
            if all(getattr(then, field) == getattr(now, field) for field in fields):
                return earlier.text_model
        try:
            from csrtrain.texts import TextCoder

            return TextCoder(self.recipe).text_model
        except (ImportError, ValueError) as error:
            _do_without("the text model", settings.text_model, error)
            return None


def _do_without(what: str, named: str | None, error: Exception) -> None:
    """Go on without a model that the index remembers; raise if the settings name it."""
    if named is not None:
        raise error
    log.warning("without %s, which the index remembers: %s", what, error)


@dataclass(frozen=True)
class Library:
    """An index with its models and payloads; never changed, only replaced as a whole.

    `places` are the sorted ids and the row of each; None: rows of payloads are ids.
    """

    index: InvertedIndex
    models: Models
    payloads: Payloads | None
    places: tuple[np.ndarray, np.ndarray] | None
    threads: int
    loaded_at: float

    @classmethod
    def load(cls, settings: Settings, earlier: Library | None = None) -> Library:
        """Map the index and load what belongs to it.

        Args:
            settings: what to load.
            earlier: a library whose text model may still serve.

        Raises:
            OSError, ValueError: if something is missing, damaged, or does not fit.
        """
        index = InvertedIndex.load(settings.index)
        models = Models(settings, index, None if earlier is None else earlier.models)
        payloads = places = None
        if settings.payloads is not None:
            payloads = Payloads.load(Path(settings.payloads), settings.filter_by)
            if not payloads.stand_by_id(index.ids):
                order = np.argsort(index.ids)
                places = index.ids[order], order
        library = cls(index, models, payloads, places, settings.threads, time.time())
        library.warm()
        return library

    def takes(self) -> list[str]:
        """Return what queries may be: codes, embeddings, texts."""
        index, text_model = self.index, self.models.text_model
        dense = index.only_fine or self.models.adapter is not None
        texts = text_model is not None and (not index.only_fine if text_model.sparse else dense)
        there = not index.only_fine, dense, texts
        return [kind for kind, here in zip(KINDS, there, strict=True) if here]

    def warm(self) -> None:
        """Answer a few queries, so that the first client does not wait for the disk."""
        index = self.index
        if not len(index):
            return
        if index.quantizer is not None and index.only_fine:
            index.search_fine(np.zeros((1, index.quantizer.dim), np.float32))
            return
        ids = index.ids[:: max(1, len(index) // WARMED_BY)][:WARMED_BY]
        index.search(index.get(ids), num_threads=self.threads)

    def width(self) -> int:
        """Return the dimensions of embeddings."""
        if self.index.only_fine and self.index.quantizer is not None:
            return self.index.quantizer.dim
        assert self.models.adapter is not None
        return self.models.adapter.input_dim

    def of_codes(self, codes: Any, top_k: int, **options: Any) -> Hits:
        """Return the hits of codes."""
        return self.index.search(codes, top_k, num_threads=self.threads, **options)

    def of_embeddings(self, embeddings: np.ndarray, top_k: int, **options: Any) -> Hits:
        """Return the hits of embeddings [m, d], scored by fine codes where the index has some."""
        if self.index.only_fine:
            threads = self.threads
            return self.index.search_fine(embeddings, top_k, num_threads=threads, **options)
        assert self.models.adapter is not None
        rerank = Refine(embeddings) if self.index.quantizer is not None else None
        return self.of_codes(
            self.models.adapter.encode(embeddings), top_k, rerank=rerank, **options
        )

    def of_texts(self, texts: Sequence[str], top_k: int, **options: Any) -> Hits:
        """Return the hits of texts."""
        text_model = self.models.text_model
        assert text_model is not None
        with self.models.lock:
            embedded = text_model.embed(texts, query=True)
        of = self.of_codes if text_model.sparse else self.of_embeddings
        return of(embedded, top_k, **options)

    def mask(self, where: dict[str, Value] | None) -> np.ndarray | None:
        """Return which documents have all of these values, bool [n]; None: no matter which.

        Raises:
            ValueError: if a field is not one to filter by.
        """
        if not where:
            return None
        if self.payloads is None:
            raise ValueError("where: this server has no payloads to filter by")
        fits = np.logical_and.reduce([self.payloads.equals(f, v) for f, v in where.items()])
        return np.asarray(fits[self.index.ids] if self.places is None else fits)

    def payload(self, id: int) -> bytes | None:
        """Return what is known of a document, in JSON; None: nothing."""
        if self.payloads is None:
            return None
        if self.places is None:
            return self.payloads[id]
        ids, rows = self.places
        return self.payloads[int(rows[np.searchsorted(ids, id)])]


class Shelf:
    """The library in use. Requests take it once and keep it until they are answered.

    A thread loads it, looks at the files every second, and replaces it by what they have become.
    """

    def __init__(self, settings: Settings, on_load: Callable[[str], None]) -> None:
        self._settings = settings
        self._on_load = on_load
        self._loaded = threading.Event()
        self._stopped = threading.Event()
        self.library: Library | None = None
        self.error: str | None = None

    def start(self) -> None:
        """Begin to load, and then to watch."""
        threading.Thread(target=self._watch, name="csrkern-reload", daemon=True).start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()

    def wait(self, seconds: float) -> Library | None:
        """Return the library, waiting for the first one; None: there is still none."""
        self._loaded.wait(seconds)
        return self.library

    def _watch(self) -> None:
        seen = lists_seen = None
        while True:
            # Read before the files are, so that a change meanwhile is seen the next time.
            state = self._state()
            if state != seen or self.error is not None:
                lists = self._lists()
                # Lists may be copied here after the header that names them.
                if state != seen or lists != lists_seen:
                    self._load()
                    seen, lists_seen = state, lists
            if self._stopped.wait(LOOK_EVERY):
                return

    def _load(self) -> None:
        try:
            self.library = Library.load(self._settings, self.library)
        except Exception as error:
            self.error = " ".join(f"{error or type(error).__name__}".split())
            old = "" if self.library is None else ", still serving the old index"
            log.error("not loaded%s: %s", old, self.error)
            self._on_load("failed")
            return
        self.error = None
        takes = ", ".join(self.library.takes())
        log.info("loaded %s documents; queries may be %s", len(self.library.index), takes)
        self._loaded.set()
        self._on_load("loaded")

    def _state(self) -> list[Any]:
        """Return what changes when one of the files is replaced or written."""
        folder = self._settings.index
        files = [os.path.join(folder, name) for name in ("index.json", RECIPE)]
        adapters = [os.path.join(folder, ADAPTER), self._settings.model]
        files += [os.path.join(a, n) for a in adapters if a is not None for n in MODEL_FILES]
        if self._settings.payloads is not None:
            files.append(self._settings.payloads)
        return [_stamp(file) for file in files]

    def _lists(self) -> list[Any]:
        """Return what changes when the files change that the header of the index names."""
        return [
            (file, _stamp(str(file))) for file in sorted(Path(self._settings.index).glob("*.bin"))
        ]


def _stamp(file: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
