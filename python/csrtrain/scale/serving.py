"""The processes that serve a sharded index: holders of shards, and the gateway.

A holder searches the shards that a request names, in the generation that it names. It maps a shard
at the first request for it, so a holder that replaces a dead one needs no further setup. The
gateway asks the holders of every group of shards, asks again if one died, and merges. It turns to a
new generation as a whole, once holders have its shards: each request is answered by one generation.
`deployments` makes Ray Serve deployments of both.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import operator
import shutil
import threading
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from csrkern import InvertedIndex, Refine
from csrkern.arguments import check_int, check_number, float32_array, float32_rows
from csrkern.identity import ModelMismatchError, check_fingerprint, check_same_model
from csrkern.index.fine import check_probes
from csrkern.index.inverted import hits_width
from csrkern.index.projection import LARGEST
from csrkern.index.rows import read_rows
from csrtrain.scale.folder import Folder
from csrtrain.scale.merging import Hits, merge_hits
from csrtrain.scale.scratch import scratch_folder
from csrtrain.scale.shards import Generation, Shard, generation, newest, open_shard

KEPT_GENERATIONS = 3
# After this share of the remaining time, another holder is asked, too: a holder that hangs, or
# whose machine is gone, does not always break its connection.
PATIENCE = 0.25
# Limits of a request over HTTP.
MOST_BYTES, MOST_QUERIES, MOST_HITS = 16 << 20, 4096, 1_000_000
FIELDS = {
    *("values", "indices", "embeddings", "shortlist"),
    *("top_k", "probes", "deadline", "fingerprint"),
}
log = logging.getLogger(__name__)


def group_of(index: Generation, group: int, groups: int) -> tuple[int, ...]:
    """Return the positions of the shards that group number `group` of holders answers for."""
    return tuple(range(group, len(index.shards), groups))


@dataclass(frozen=True)
class Lookup:
    """Queries to some of the shards.

    Attributes:
        generation: number of the generation.
        shards: their positions in it.
        values, indices: of the queries, [m, k]; indices None: values are embeddings [m, d], which
            all fine codes are compared with.
        top_k: hits a query.
        embeddings: [m, d], to score the hits of codes by fine codes, too; None: not asked for.
        probes: of embeddings alone; see `InvertedIndex.search_fine`.
    """

    generation: int
    shards: tuple[int, ...]
    values: np.ndarray
    indices: np.ndarray | None
    top_k: int
    embeddings: np.ndarray | None = None
    probes: int | None = None


@dataclass(frozen=True)
class Found:
    """Hits of a lookup, and the positions of shards that could not be read."""

    hits: Hits
    missing: tuple[int, ...] = ()


class Holder:
    """Holds shards, mapped: those of its group from the start, others when a lookup names them."""

    def __init__(self, folder: Folder, threads: int, group: int = 0, groups: int = 1) -> None:
        self._folder = folder
        self._threads = threads
        self._group, self._groups = group, groups
        closing = contextlib.ExitStack()
        self._cache = closing.enter_context(scratch_folder())
        weakref.finalize(self, closing.close)
        self._opening = threading.Lock()
        self._generations: dict[int, Generation] = {}  # least recently used first
        self._open: dict[str, Any] = {}
        self._newest = Generation()
        self.look()

    def look(self) -> None:
        """Open the group's shards of the newest generation, before any request names them."""
        latest = newest(self._folder, self._newest if self._newest.number else None)
        if latest.number > self._newest.number:
            self.open_group(latest.number)
            self._newest = latest

    def open_group(self, number: int) -> bool:
        """Open the group's shards of a generation and return whether all are there."""
        index = self._generation(number)
        positions = group_of(index, self._group, self._groups)
        return all([self._index(index.shards[position]) is not None for position in positions])

    def search_all(self, lookups: list[Lookup]) -> list[Found]:
        """Return the best hits of each lookup; lookups in equal sets of shards share a search."""
        batches: dict[Any, list[int]] = {}
        for i, lookup in enumerate(lookups):
            kind = lookup.indices is None, lookup.embeddings is None, lookup.probes
            shape = (lookup.generation, lookup.shards, lookup.values.shape[1], kind)
            batches.setdefault(shape, []).append(i)
        answers: dict[int, Found] = {}
        for batch in batches.values():
            results = self._search([lookups[i] for i in batch])
            answers |= zip(batch, results, strict=True)
        return [answers[i] for i in range(len(lookups))]

    def _search(self, lookups: list[Lookup]) -> list[Found]:
        """Answer lookups in the same shards with queries of one width."""
        top_k = max(lookup.top_k for lookup in lookups)
        values = np.concatenate([lookup.values for lookup in lookups])
        indices = _together(lookup.indices for lookup in lookups)
        embeddings = _together(lookup.embeddings for lookup in lookups)
        shards = self._generation(lookups[0].generation).shards
        parts, missing = [], []
        for position in lookups[0].shards:
            shard, probes = shards[position], lookups[0].probes
            part = self._search_one(shard, values, indices, embeddings, top_k, probes)
            if part is None:
                missing.append(position)
            else:
                parts.append(part)
        hits = merge_hits(parts or [Hits.none(len(values), top_k, embeddings is not None)], top_k)
        answers, first = [], 0
        for lookup in lookups:
            own = np.s_[first : first + len(lookup.values), : lookup.top_k]
            answers.append(Found(hits.each(operator.itemgetter(own)), tuple(missing)))
            first += len(lookup.values)
        return answers

    def _search_one(
        self,
        shard: Shard,
        values: np.ndarray,
        indices: np.ndarray | None,
        embeddings: np.ndarray | None,
        top_k: int,
        probes: int | None,
    ) -> Hits | None:
        """Return hits in one shard, None if it is damaged or gone."""
        index = self._index(shard)
        if index is None:
            return None
        try:
            if indices is None:
                options = {"probes": probes, "num_threads": self._threads}
                return Hits(*index.search_fine(values, top_k, **options))
            hits = Hits(*index.search((values, indices), top_k, num_threads=self._threads))
            if embeddings is None:
                return hits
            again = Refine(embeddings, top_k)
            fine, ids = index.search(
                (values, indices), top_k, rerank=again, num_threads=self._threads
            )
            return hits._replace(fine=_reordered(fine, ids, hits.ids))
        except ValueError as error:  # a list is checked when it is first read
            log.error("shard %s: %s", shard.name, error)
            with self._opening:
                self._forget(shard.name)
            return None

    def _generation(self, number: int) -> Generation:
        with self._opening:
            index = self._generations.pop(number, None) or generation(self._folder, number)
            self._generations[number] = index
            if len(self._generations) > KEPT_GENERATIONS:
                del self._generations[next(iter(self._generations))]
                in_use = {s.name for g in self._generations.values() for s in g.shards}
                for name in set(self._open) - in_use:
                    self._forget(name)
            return index

    def _index(self, shard: Shard) -> Any:
        with self._opening:
            if shard.name not in self._open:
                try:
                    self._open[shard.name] = open_shard(self._folder, shard, self._cache)
                except (OSError, ValueError) as error:
                    log.error("shard %s: %s", shard.name, error)
                    return None
            return self._open[shard.name]

    def _forget(self, name: str) -> None:
        self._open.pop(name, None)
        shutil.rmtree(self._cache / name, ignore_errors=True)


def _together(arrays: Iterable[np.ndarray | None]) -> np.ndarray | None:
    """Return the rows of all arrays, None if there are none."""
    given = [array for array in arrays if array is not None]
    return np.concatenate(given) if given else None


def _reordered(scores: np.ndarray, ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return scores of ids [m, n] in the order in which `wanted` [m, n] has the same ids."""
    places = np.argsort(np.argsort(wanted, axis=1), axis=1)
    by_id = np.take_along_axis(scores, np.argsort(ids, axis=1), 1)
    return np.take_along_axis(by_id, places, 1)


@dataclass(frozen=True)
class Request:
    """Queries of one caller: codes, or without indices embeddings; see `Lookup`."""

    values: np.ndarray
    indices: np.ndarray | None
    top_k: int
    deadline: float  # seconds from now
    fingerprint: str | None = None  # of the model that made the queries
    embeddings: np.ndarray | None = None  # with codes: they put a shortlist in order
    shortlist: int = Refine.shortlist
    probes: int | None = None  # of embeddings alone


@dataclass(frozen=True)
class Answer:
    """The result of a search.

    Attributes:
        scores, ids: float32 and int64 [m, top_k], as `InvertedIndex.search` returns them.
        missing: names of the shards that did not answer before the deadline. Empty: the answer
            is that of one index over all codes, to the id and to the bit.
        generation: of the index that was searched.
    """

    scores: np.ndarray
    ids: np.ndarray
    missing: tuple[str, ...]
    generation: int

    @property
    def complete(self) -> bool:
        """Whether every shard answered."""
        return not self.missing


class Gateway:
    """Searches all shards by way of their holders.

    Attributes:
        failures: errors after which a holder is asked again: it died, or is not running yet.
    """

    failures: tuple[type[Exception], ...] = (ConnectionError,)

    def __init__(self, folder: Folder, holders: Sequence[Any], refresh: float) -> None:
        self._folder = folder
        self._holders = list(holders)
        self._refresh = refresh
        self._current = newest(folder)
        self._watching: asyncio.Task[None] | None = None

    async def __call__(self, request: Any) -> Any:
        """Answer HTTP: GET returns facts of the index; POST searches, see docs/scaling.md."""
        from starlette.responses import JSONResponse

        current = self._current
        if request.method == "GET":
            facts = {
                "generation": current.number,
                "codes": len(current),
                "shards": len(current.shards),
            }
            return JSONResponse({**facts, **current.form})
        body = await _body_of(request)
        if body is None:
            message = f"expected a request of at most {MOST_BYTES:,} bytes"
            return JSONResponse({"error": message}, status_code=413)
        try:
            query = _request_of(json.loads(body), current.form)
            check_same_model("queries", query.fingerprint, current.fingerprint)
        except ModelMismatchError as error:
            return JSONResponse({"error": str(error)}, status_code=409)
        except (ValueError, TypeError, RecursionError) as error:
            return JSONResponse({"error": str(error)[:300]}, status_code=400)
        try:
            answer = await self.search(query)
        except Exception as error:
            log.error("%s: %s", type(error).__name__, " ".join(str(error).split())[:500])
            message = "the index could not be searched; the server's log says why"
            return JSONResponse({"error": message}, status_code=500)
        valid = answer.ids >= 0
        # JSON has no infinity.
        scores = np.minimum(answer.scores, np.finfo(np.float32).max)
        return JSONResponse(
            {
                "ids": [row[mask].tolist() for row, mask in zip(answer.ids, valid, strict=True)],
                "scores": [row[mask].tolist() for row, mask in zip(scores, valid, strict=True)],
                "missing": list(answer.missing),
                "generation": answer.generation,
            }
        )

    def current(self) -> Generation:
        """Return the facts of the index that is served."""
        return self._current

    async def search(self, request: Request) -> Answer:
        """Search every shard; the answer names those that no holder could read in time.

        Raises:
            ValueError: if a query is not valid, or (ModelMismatchError) of another model.
        """
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())
        current = self._current
        check_same_model("queries", request.fingerprint, current.fingerprint)
        _check_queries(request.values, request.indices, request.embeddings, current.form)
        refined = request.embeddings is not None
        top_k = hits_width(request.shortlist if refined else request.top_k, len(current))
        until = time.monotonic() + request.deadline
        groups = [
            (holder, positions)
            for number, holder in enumerate(self._holders)
            if (positions := group_of(current, number, len(self._holders)))
        ]
        answers = await asyncio.gather(
            *(
                self._ask(
                    holder,
                    Lookup(
                        current.number,
                        positions,
                        request.values,
                        request.indices,
                        top_k,
                        request.embeddings,
                        request.probes,
                    ),
                    until,
                )
                for holder, positions in groups
            )
        )
        hits = merge_hits([answer.hits for answer in answers], top_k)
        if refined:
            hits = hits.refined(hits_width(request.top_k, len(current)))
        missing = tuple(current.shards[i].name for answer in answers for i in answer.missing)
        return Answer(hits.scores, hits.ids, missing, current.number)

    async def _ask(self, holder: Any, lookup: Lookup, until: float) -> Found:
        """Search one group of shards and return what is found before the deadline."""
        fine = lookup.embeddings is not None
        best = Found(Hits.none(len(lookup.values), lookup.top_k, fine), lookup.shards)
        pending: set[asyncio.Future[Found]] = set()
        read_errors = 0
        patience = PATIENCE * (until - time.monotonic())
        try:
            while (remaining := until - time.monotonic()) > 0:
                if len(pending) < 2:
                    pending.add(asyncio.ensure_future(_answer(holder.search.remote(lookup))))
                wait = min(remaining, patience if len(pending) < 2 else remaining)
                done, pending = await asyncio.wait(
                    pending, timeout=wait, return_when=asyncio.FIRST_COMPLETED
                )
                for response in done:
                    if isinstance(error := response.exception(), self.failures):
                        await asyncio.sleep(min(0.05, max(0.0, until - time.monotonic())))
                        continue
                    if error is not None:
                        raise error
                    answer = response.result()
                    if len(answer.missing) < len(best.missing):
                        best = answer
                    read_errors += 1
                    # Another holder may have a shard that this one cannot read.
                    if not best.missing or read_errors == 2:
                        return best
        finally:
            for response in pending:
                response.cancel()
        return best

    async def _watch(self) -> None:
        """Turn to new generations as they are published and holders have opened them."""
        while True:
            await asyncio.sleep(self._refresh)
            try:
                latest = await asyncio.to_thread(newest, self._folder, self._current)
                if latest.number > self._current.number and await self._prepared(latest):
                    self._current = latest
            except Exception as error:  # keep serving the current generation
                log.warning("generation %d stays: %s", self._current.number, error)

    async def _prepared(self, index: Generation) -> bool:
        return all(
            await asyncio.gather(
                *(_answer(holder.prepare.remote(index.number)) for holder in self._holders)
            )
        )


async def _body_of(request: Any) -> bytes | None:
    """Return the body of a request over HTTP, None if it is too long."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            return None
    return bytes(body)


def _check_queries(
    values: np.ndarray,
    indices: np.ndarray | None,
    embeddings: np.ndarray | None,
    form: Mapping[str, Any],
) -> None:
    """Raise what an empty index raises; after that a holder's error is the fault of a shard."""
    if indices is None:
        embeddings = values
    else:
        _empty_index(int(form["dim"])).search((values, indices), 1)
    if embeddings is None:
        return
    quantizer = form.get("quantizer")
    if quantizer is None:
        raise ValueError("embeddings: the shards hold no fine codes to compare them with")
    float32_rows("embeddings", embeddings, int(quantizer["dim"]), LARGEST)
    if len(embeddings) != len(values):
        raise ValueError(
            f"embeddings: expected {len(values)} rows, one a query, got {len(embeddings)}"
        )


@functools.lru_cache(maxsize=4)
def _empty_index(dim: int) -> InvertedIndex:
    empty = np.zeros((0, 1), np.float32), np.zeros((0, 1), np.int32)
    return InvertedIndex.build(empty, dim=dim)


async def _answer(response: Any) -> Any:
    """Await the response of a Ray Serve handle, which is not a coroutine."""
    return await response


def _request_of(body: Any, form: Mapping[str, Any]) -> Request:
    """Return the request that a JSON body asks for.

    Raises:
        ValueError, TypeError: if it is not one.
    """
    named = set(body) if isinstance(body, dict) else set()
    coded = {"values", "indices"} <= named
    if not coded and ({"values", "indices"} & named or "embeddings" not in named):
        raise ValueError(
            "expected an object with values and indices [m][k], or embeddings [m][d], or all three"
        )
    if unknown := named - FIELDS:
        raise ValueError(f"expected {', '.join(sorted(FIELDS))}, got {min(unknown)[:60]!r}, too")
    embeddings = float32_array("embeddings", body["embeddings"]) if "embeddings" in named else None
    if coded:
        rows = read_rows("queries", (body["values"], body["indices"]), int(form["dim"]))
        values, indices = rows.values, rows.indices
    else:
        assert embeddings is not None
        values, indices, embeddings = embeddings, None, None
    top_k = check_int("top_k", body.get("top_k", 10), 1, 10_000)
    shortlist = check_int("shortlist", body.get("shortlist", Refine.shortlist), 1, 10_000)
    most = top_k if embeddings is None else max(top_k, shortlist)
    if len(values) > MOST_QUERIES or len(values) * most > MOST_HITS:
        raise ValueError(
            f"expected at most {MOST_QUERIES:,} queries and {MOST_HITS:,} hits in an answer, got "
            f"{len(values):,} queries times {most:,}; ask in several requests"
        )
    deadline = check_number("deadline", body.get("deadline", 10.0))
    if not 0 < deadline <= 3600:
        raise ValueError(f"deadline: expected seconds, 0 to 3600, got {deadline}")
    fingerprint = check_fingerprint("fingerprint", body.get("fingerprint"))
    probes = check_probes(body.get("probes"))
    if probes is not None and coded:
        raise ValueError("probes: expected none with values and indices; give embeddings alone")
    _check_queries(values, indices, embeddings, form)
    return Request(values, indices, top_k, deadline, fingerprint, embeddings, shortlist, probes)
