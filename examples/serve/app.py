"""A search server over an index on disk: python examples/serve/app.py INDEX [--documents FILE].

It needs NumPy, FastAPI and uvicorn, and no PyTorch: who asks sends codes. SIGTERM answers what
has been asked and stops; SIGHUP takes the index that is on disk now, without losing a request.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from library import Library, Shelf
from pydantic import BaseModel, ConfigDict, Field

GRACE_SECONDS = 30
MOST_HITS = 20_000  # an answer: a tenth of a second of JSON

Latent = Annotated[int, Field(ge=0, lt=2**31)]
DocumentId = Annotated[int, Field(ge=0, lt=2**63)]


class Query(BaseModel):
    """The code of one query: its active latents and their values, in any order."""

    latents: list[Latent] = Field(max_length=4096)
    values: list[float] = Field(max_length=4096)


class Search(BaseModel):
    """What is asked for."""

    model_config = ConfigDict(extra="forbid")  # a misspelt filter must not go unnoticed

    queries: list[Query] = Field(min_length=1, max_length=1024)
    topk: int = Field(10, ge=1, le=1000)
    min_score: float | None = None
    where: dict[str, str] | None = Field(None, description="Fields that documents must have.")
    ids: list[DocumentId] | None = Field(None, description="The only documents that may be found.")


def create_app(shelf: Shelf) -> FastAPI:
    """The application over whatever library is on the shelf."""
    app = FastAPI(title="csrkern search")

    @app.exception_handler(ValueError)
    async def refuse(request: Any, error: ValueError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=400)

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
            "fields": sorted(library.columns),
            "loaded_at": library.loaded_at,
            "reload_error": shelf.reload_error,
        }

    # Not async: a search runs in a thread, so that a large one does not hold up the others.
    @app.post("/search")
    def search(wanted: Search) -> JSONResponse:
        if len(wanted.queries) * wanted.topk > MOST_HITS:
            raise ValueError(
                f"topk: expected at most {MOST_HITS} hits in an answer, got {len(wanted.queries)} "
                f"queries times {wanted.topk}; ask in several requests"
            )
        library = shelf.library
        scores, ids = library.index.search(
            read_queries(wanted.queries),
            wanted.topk,
            filter=allowed(library, wanted),
            min_score=wanted.min_score,
            num_threads=1,
        )
        hits = [
            [hit(library, i, s) for i, s in zip(row_ids, row_scores, strict=True) if i >= 0]
            for row_ids, row_scores in zip(ids.tolist(), scores.tolist(), strict=True)
        ]
        return JSONResponse({"hits": hits})

    return app


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
    if mask is None:
        return np.array(wanted.ids, np.int64)
    return mask & np.isin(library.index.ids, wanted.ids)


def hit(library: Library, id: int, score: float) -> dict[str, Any]:
    """One result, with the document where there is one."""
    found = {"id": id, "score": score}
    document = library.documents.get(id)
    return found if document is None else {**found, "document": document}


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
