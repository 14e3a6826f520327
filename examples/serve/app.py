"""A search server over an index on disk: python examples/serve/app.py INDEX [--documents FILE].

It needs NumPy, FastAPI and uvicorn, and no PyTorch: who asks sends codes. SIGTERM answers what
has been asked and stops; SIGHUP takes the index that is on disk now, without losing a request.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from guard import Guard
from library import Library, Shelf
from pydantic import BaseModel, ConfigDict, Field

from csrkern import ModelMismatchError
from csrkern.identity import check_same_model

GRACE_SECONDS = 30
MOST_HITS = 20_000  # an answer: a tenth of a second of JSON
MOST_BYTES = 8 << 20  # a request: 1,024 queries of 256 latents
LARGEST = float(np.finfo(np.float32).max)

Latent = Annotated[int, Field(ge=0, lt=2**31)]
Value = Annotated[float, Field(ge=0, le=LARGEST, allow_inf_nan=False)]
DocumentId = Annotated[int, Field(ge=0, lt=2**63)]


class Form(BaseModel):
    """What a request is made of: a misspelt filter must not go unnoticed, nor "7" pass for 7."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Query(Form):
    """The code of one query: its active latents and their values, in any order."""

    latents: list[Latent] = Field(max_length=4096)
    values: list[Value] = Field(max_length=4096)


class Search(Form):
    """What is asked for."""

    queries: list[Query] = Field(min_length=1, max_length=1024)
    top_k: int = Field(10, ge=1, le=1000)
    min_score: float | None = Field(None, allow_inf_nan=False)
    where: dict[str, str] | None = Field(None, description="Fields that documents must have.")
    ids: list[DocumentId] | None = Field(None, description="The only documents that may be found.")
    fingerprint: str | None = Field(
        None, pattern="^[0-9a-f]{16}$", description="Of the model that made the queries."
    )


def create_app(shelf: Shelf) -> FastAPI:
    """The application over whatever library is on the shelf."""
    app = FastAPI(title="csrkern search")
    app.add_middleware(Guard, most_bytes=MOST_BYTES)

    @app.exception_handler(RequestValidationError)
    async def refuse(request: Any, error: RequestValidationError) -> JSONResponse:
        # The first few, without the input, which may be megabytes.
        faults = [
            {"loc": [cut(part) for part in fault["loc"]], "msg": cut(fault["msg"])}
            for fault in error.errors()[:5]
        ]
        return JSONResponse({"detail": faults}, status_code=422)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        library = shelf.library
        index = library.index
        return {
            "status": "ok",
            "documents": len(index),
            "dim": index.dim,
            "k": index.k,
            "metric": index.metric,
            "fingerprint": index.fingerprint,
            "fields": sorted(library.columns),
            "loaded_at": library.loaded_at,
            "reload_error": shelf.reload_error,
        }

    # Not async: a search runs in a thread, so that a large one does not hold up the others.
    @app.post("/search")
    def search(wanted: Search) -> Response:
        library = shelf.library
        try:
            check_same_model("queries", wanted.fingerprint, library.index.fingerprint)
            check_size(wanted)
            queries = read_queries(wanted.queries)
            library.nothing.search(queries, 1)  # refuses what is not valid: the client's errors
            chosen = allowed(library, wanted)
        except ModelMismatchError as error:
            raise HTTPException(409, cut(error)) from error
        except ValueError as error:
            raise HTTPException(400, cut(error)) from error
        scores, ids = library.index.search(
            queries, wanted.top_k, filter=chosen, min_score=wanted.min_score, num_threads=1
        )
        scores = np.minimum(scores, LARGEST)  # JSON has no infinity
        hits = [
            [hit(library, i, s) for i, s in zip(row_ids, row_scores, strict=True) if i >= 0]
            for row_ids, row_scores in zip(ids.tolist(), scores.tolist(), strict=True)
        ]
        answer = ",".join(f"[{','.join(of_query)}]" for of_query in hits)
        return Response(f'{{"hits":[{answer}]}}', media_type="application/json")

    return app


def cut(what: Any) -> Any:
    """What an error says of the input, a number or a text of at most 300 characters."""
    return what if isinstance(what, int) else str(what)[:300]


def check_size(wanted: Search) -> None:
    """The hits of an answer are few enough.

    Raises:
        ValueError: if they are not.
    """
    if len(wanted.queries) * wanted.top_k > MOST_HITS:
        raise ValueError(
            f"top_k: expected at most {MOST_HITS} hits in an answer, got {len(wanted.queries)} "
            f"queries times {wanted.top_k}; ask in several requests"
        )


def read_queries(queries: list[Query]) -> tuple[np.ndarray, np.ndarray]:
    """Values float64 and latents int64, both [m, k], empty slots filled with 0.

    Raises:
        ValueError: if a query has more of one than of the other.
    """
    width = max(1, max(len(query.latents) for query in queries))
    values = np.zeros((len(queries), width))
    latents = np.zeros((len(queries), width), np.int64)
    for row, query in enumerate(queries):
        n = len(query.latents)
        if len(query.values) != n:
            raise ValueError(
                f"queries[{row}]: expected a value for each of the {n} latents, "
                f"got {len(query.values)}"
            )
        values[row, :n] = query.values
        latents[row, :n] = query.latents
    return values, latents


def allowed(library: Library, wanted: Search) -> np.ndarray | None:
    """The filter of a search: a mask of documents, or ids, or both in one, or None."""
    mask = library.mask(wanted.where)
    if wanted.ids is None:
        return mask
    ids = np.unique(np.array(wanted.ids, np.int64))
    return ids if mask is None else mask & np.isin(library.index.ids, ids)


def hit(library: Library, id: int, score: float) -> str:
    """One result in JSON, with the document where there is one."""
    document = library.documents.get(id)
    rest = "" if document is None else f',"document":{document.text}'
    return f'{{"id":{id},"score":{json.dumps(score)}{rest}}}'


def main() -> None:
    """Serves until it is told to stop."""
    parser = argparse.ArgumentParser(description="Search an index over HTTP.")
    parser.add_argument("index", type=Path, help="a folder written by InvertedIndex.save")
    parser.add_argument("--documents", type=Path, help='JSON lines, each with an "id"')
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    try:
        shelf = Shelf(options.index, options.documents)
    except (OSError, ValueError) as error:
        sys.exit(f"{parser.prog}: {error}")
    signal.signal(signal.SIGHUP, lambda *_: threading.Thread(target=shelf.reload).start())
    uvicorn.run(
        create_app(shelf),
        host=options.host,
        port=options.port,
        access_log=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


if __name__ == "__main__":
    main()
