"""The application: what is asked over HTTP, and how it is answered."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response

from csrkern import InvertedIndex, ModelMismatchError, __version__
from csrkern.arguments import check_within, float32_array
from csrkern.identity import check_same_model
from csrkern.index.fine import WORDS
from csrkern.index.projection import LARGEST
from csrtrain.serve.guard import Guard
from csrtrain.serve.library import KINDS, Hits, Library, Shelf
from csrtrain.serve.metrics import Metrics
from csrtrain.serve.settings import Settings
from csrtrain.serve.wire import (
    Answer,
    Asked,
    Search,
    asked_in_binary,
    asked_in_json,
    in_binary,
    in_json,
)

MOST_HITS = 20_000  # of an answer in JSON: a tenth of a second
MOST_NUMBERS = 1_000_000  # of one in binary: 12 MB
# Seconds: a thread would add 0.2 ms of processor time to a request.
AT_ONCE = 0.001
SEARCHES = 4  # at a time in one process: a long one does not hold up short ones
BINARY = "application/octet-stream"
FILE = {"schema": {"type": "string", "format": "binary"}}
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The index cannot answer it; the sentence says why."},
    401: {"description": "The key is missing or wrong."},
    409: {"description": "Another model made the queries than the documents."},
    413: {"description": "The request is too long."},
    503: {"description": "Too many requests at a time, or no index yet; ask again."},
    504: {"description": "It takes too long."},
}


def handed_on() -> FastAPI:
    """Return the application of a worker process."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    return create_app(Settings.handed_on())


def create_app(settings: Settings) -> FastAPI:
    """Return the application. It loads the index when it starts, and again when it changes."""
    metrics = Metrics()

    def on_load(result: str) -> None:
        metrics.load(result)
        if shelf.library is not None:
            metrics.documents.set(len(shelf.library.index))

    shelf = Shelf(settings, on_load)
    desk = Desk(settings, shelf, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        shelf.start()
        yield
        shelf.stop()
        metrics.forget()

    app = FastAPI(title="csrkern search", version=__version__, lifespan=lifespan)
    app.add_middleware(Guard, settings=settings, key=settings.key(), metrics=metrics)

    @app.exception_handler(RequestValidationError)
    async def refuse(request: Any, error: RequestValidationError) -> JSONResponse:
        if isinstance(error.body, bytes):  # which nothing has parsed
            expected = "expected Content-Type: application/json, and a request in JSON"
            return JSONResponse({"detail": [{"loc": ["body"], "msg": expected}]}, status_code=422)
        # The first few, without the input, which may be megabytes.
        faults = [
            {"loc": [_cut(part) for part in fault["loc"]], "msg": _cut(fault["msg"])}
            for fault in error.errors()[:5]
        ]
        return JSONResponse({"detail": faults}, status_code=422)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Say that the process answers."""
        return {"status": "ok"}

    @app.get("/ready", responses={503: {"description": "No index is loaded yet."}})
    async def ready() -> JSONResponse:
        """Say whether searches will be answered at once."""
        if shelf.library is not None:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "loading", "error": shelf.error}, 503)

    @app.get("/metrics", response_class=Response)
    async def metrics_text() -> Response:
        """Return counts and times in the form of Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/index")
    async def about() -> dict[str, Any]:
        """Say what is served, and whether the last change of its files could be loaded."""
        return desk.about()

    @app.post("/search", response_model=Answer, responses=REFUSALS)
    async def search(search: Search) -> Response:
        """Return the best documents of each query."""
        return Response(await desk.in_json(search), media_type="application/json")

    @app.post(
        "/search/binary",
        response_class=Response,
        responses={200: {"content": {BINARY: FILE}}, **REFUSALS},
        openapi_extra={"requestBody": {"required": True, "content": {BINARY: FILE}}},
    )
    async def search_binary(
        request: Request,
        top_k: Annotated[int, Query(ge=1, lt=2**31)] = 10,
        min_score: Annotated[float | None, Query(allow_inf_nan=False)] = None,
        probes: Annotated[int | None, Query(ge=1, le=WORDS)] = None,
    ) -> Response:
        """Take and return safetensors: codes as `csrkern encode` writes them, or embeddings.

        The answer has ids int64 and scores float32, both [m, top_k]; missing hits are -1 and -inf.
        """
        body = await request.body()
        options = _options(min_score, probes)
        return Response(await desk.in_binary(body, top_k, options), media_type=BINARY)

    return app


class Desk:
    """Takes what is asked, checks it, has it searched for, and writes the answer."""

    def __init__(self, settings: Settings, shelf: Shelf, metrics: Metrics) -> None:
        self._settings = settings
        self._shelf = shelf
        self._metrics = metrics
        self._pool = ThreadPoolExecutor(SEARCHES, "csrkern-search")
        self._seconds_a_hit = dict.fromkeys(KINDS, math.inf)

    async def in_json(self, search: Search) -> bytes:
        """Return the answer to a request in JSON."""

        def work(library: Library, asked: Asked) -> bytes:
            with _refusing():
                chosen = self._allowed(library, search)
            options = {"filter": chosen, **_options(search.min_score, search.probes)}
            hits = self._hits(library, asked, search.top_k, MOST_HITS, options)
            return in_json(library, *hits, search.payloads)

        with _refusing():
            asked = asked_in_json(search)
        return await self._answer(asked, search.top_k, work)

    async def in_binary(self, body: bytes, top_k: int, options: dict[str, Any]) -> bytes:
        """Return the answer to a request in safetensors."""

        def work(library: Library, asked: Asked) -> bytes:
            return in_binary(*self._hits(library, asked, top_k, MOST_NUMBERS, options))

        with _refusing():
            asked = asked_in_binary(body)
        return await self._answer(asked, top_k, work)

    async def _answer(
        self, asked: Asked, top_k: int, work: Callable[[Library, Asked], bytes]
    ) -> bytes:
        """Return what `work` returns: at once if it is short, else from a thread."""
        hits = len(asked) * top_k
        if hits * self._seconds_a_hit[asked.kind] < AT_ONCE and self._shelf.library is not None:
            return self._timed(asked, hits, work)
        loop, seconds = asyncio.get_running_loop(), self._settings.timeout
        future = loop.run_in_executor(self._pool, self._timed, asked, hits, work)
        done, _ = await asyncio.wait({future}, timeout=seconds)
        if not done:
            future.cancel()  # if it has not begun
            raise HTTPException(504, f"expected an answer within {seconds:g} s; ask for less")
        return future.result()

    def _timed(self, asked: Asked, hits: int, work: Callable[[Library, Asked], bytes]) -> bytes:
        library = self._shelf.wait(self._settings.timeout)
        if library is None:
            raise HTTPException(503, "no index is loaded yet", {"Retry-After": "1"})
        started = time.perf_counter()
        answer = work(library, asked)
        seconds = (time.perf_counter() - started) / hits
        usual = self._seconds_a_hit[asked.kind]
        first = math.isinf(usual)
        self._seconds_a_hit[asked.kind] = seconds if first else 0.9 * usual + 0.1 * seconds
        return answer

    def about(self) -> dict[str, Any]:
        """Return what is served."""
        library, settings = self._shelf.library, self._settings
        if library is None:
            raise HTTPException(503, "no index is loaded yet", {"Retry-After": "1"})
        index = library.index
        return {
            "documents": len(index),
            "dim": index.dim,
            "k": index.k,
            "metric": index.metric,
            "fingerprint": index.fingerprint,
            "takes": library.takes(),
            "filter_by": list(settings.filter_by),
            "loaded_at": library.loaded_at,
            "reload_error": self._shelf.error,
        }

    def _allowed(self, library: Library, search: Search) -> np.ndarray | None:
        """Return the filter of a search: a mask of documents, or ids, or both in one, or None."""
        mask = library.mask(search.where)
        if search.ids is None:
            return mask
        ids = np.unique(np.array(search.ids, np.int64))
        return ids if mask is None else mask & np.isin(library.index.ids, ids)

    def _hits(
        self, library: Library, asked: Asked, top_k: int, most: int, options: dict[str, Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        with _refusing():
            self._check(library, asked, top_k, most)
            if "probes" in options and not library.index.only_fine:
                raise ValueError(
                    "probes: this server's index has lists, and only one of fine codes alone has "
                    "cells to read; leave it out"
                )
        searches: tuple[Callable[..., Hits], ...] = (
            library.of_codes,
            library.of_embeddings,
            library.of_texts,
        )
        search = dict(zip(KINDS, searches, strict=True))[asked.kind]
        started = time.perf_counter()
        hits = search(asked.queries, top_k, **options)
        self._metrics.search(asked.kind, len(asked), time.perf_counter() - started)
        return hits

    def _check(self, library: Library, asked: Asked, top_k: int, most: int) -> None:
        """Refuse what is too much, or not what the index takes, before it is searched for."""
        settings, n = self._settings, len(asked)
        takes = library.takes()
        if asked.kind not in takes:
            raise ValueError(f"queries: this server takes {', '.join(takes)}, got {asked.kind}")
        if not 1 <= n <= settings.max_queries:
            raise ValueError(f"queries: expected 1 to {settings.max_queries} of them, got {n}")
        if top_k > settings.max_top_k:
            raise ValueError(f"top_k: expected at most {settings.max_top_k}, got {top_k}")
        if n * top_k > most:
            raise ValueError(
                f"top_k: expected at most {most} hits in an answer, got {n} queries times {top_k}; "
                "ask in several requests"
            )
        if asked.kind == "codes":
            check_same_model("queries", asked.fingerprint, library.index.fingerprint)
            _empty(library.index.dim).search(asked.queries, 1)  # refuses what is not valid
        elif asked.kind == "embeddings":
            width = library.width()
            if asked.queries.shape[1] != width:
                got = asked.queries.shape[1]
                raise ValueError(f"queries: expected embeddings of {width} numbers, got {got}")
            check_within("queries", float32_array("queries", asked.queries), LARGEST)


def _options(min_score: float | None, probes: int | None) -> dict[str, Any]:
    """Return options of a search; `probes` is there only if it is asked for."""
    return {"min_score": min_score} | ({} if probes is None else {"probes": probes})


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Turn errors of the block into the client's; any other ValueError is the server's."""
    try:
        yield
    except ModelMismatchError as error:
        raise HTTPException(409, _cut(error)) from error
    except ValueError as error:
        raise HTTPException(400, _cut(error)) from error


@cache
def _empty(dim: int) -> InvertedIndex:
    """Return an index without documents, which checks queries as a whole one does."""
    none = np.zeros((0, 1), np.float32), np.zeros((0, 1), np.int32)
    return InvertedIndex.build(none, dim=dim)


def _cut(what: Any) -> Any:
    """Return what an error says of the input: a number, or at most 300 characters."""
    return what if isinstance(what, int) else str(what)[:300]
