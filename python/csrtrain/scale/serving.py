"""What the processes that serve a sharded index do: holders of shards, and the gateway.

A holder answers for the shards that a request names, in the generation that it names; it maps a
shard when it is first asked for it, so a holder that replaces a dead one needs to be told nothing.
The gateway asks the holders of every group of shards, asks again where one died, and merges. It
turns to a new generation as a whole, once holders have its shards: a request is answered by one.
`deployments` makes Ray Serve deployments of both.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import shutil
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from csrkern import InvertedIndex
from csrkern.arguments import check_int, check_number
from csrkern.identity import ModelMismatchError, check_fingerprint, check_same_model
from csrkern.index.inverted import hits_width
from csrkern.index.rows import read_rows
from csrtrain.scale.folder import Folder
from csrtrain.scale.merging import Hits, merge_hits
from csrtrain.scale.scratch import scratch_folder
from csrtrain.scale.shards import Generation, Shard, generation, newest, open_shard

KEPT_GENERATIONS = 3
# A lookup without an answer after this share of the time left is asked of another holder, too:
# one that hangs, or whose machine has gone without a word, breaks no connection.
PATIENCE = 0.25
# Of a request over HTTP.
MOST_BYTES, MOST_QUERIES, MOST_HITS = 16 << 20, 4096, 1_000_000
FIELDS = {"values", "indices", "top_k", "deadline", "fingerprint"}
log = logging.getLogger(__name__)


def group_of(found: Generation, place: int, groups: int) -> tuple[int, ...]:
    """Places of the shards that one of so many groups of holders answers for."""
    return tuple(range(place, len(found.shards), groups))


@dataclass(frozen=True)
class Lookup:
    """Queries to some shards.

    Attributes:
        generation: number of the generation.
        shards: their places in it.
        values, indices: of the queries, [m, k].
        top_k: hits a query.
    """

    generation: int
    shards: tuple[int, ...]
    values: np.ndarray
    indices: np.ndarray
    top_k: int


@dataclass(frozen=True)
class Found:
    """Hits of a lookup, and the places of shards that could not be read."""

    hits: Hits
    missing: tuple[int, ...] = ()


class Holder:
    """Holds some shards, mapped: those of a group from the start, and whatever it is asked for."""

    def __init__(self, folder: Folder, threads: int, place: int = 0, groups: int = 1) -> None:
        self._folder = folder
        self._threads = threads
        self._place, self._groups = place, groups
        closing = contextlib.ExitStack()
        self._cache = closing.enter_context(scratch_folder())
        weakref.finalize(self, closing.close)
        self._opening = threading.Lock()
        self._generations: dict[int, Generation] = {}  # the last that was asked for at the end
        self._open: dict[str, Any] = {}
        self._newest = Generation()
        self.look()

    def look(self) -> None:
        """Open the group's shards of the newest generation, before anybody asks for them."""
        found = newest(self._folder, self._newest if self._newest.number else None)
        if found.number > self._newest.number:
            self.open_group(found.number)
            self._newest = found

    def open_group(self, number: int) -> bool:
        """Open the group's shards of a generation; whether all are there."""
        found = self._generation(number)
        group = group_of(found, self._place, self._groups)
        return all([self._index(found.shards[place]) is not None for place in group])

    def search_all(self, lookups: list[Lookup]) -> list[Found]:
        """Return the best hits of each request; equal sets of shards are searched once."""
        alike: dict[Any, list[int]] = {}
        for place, lookup in enumerate(lookups):
            kind = (lookup.generation, lookup.shards, lookup.values.shape[1])
            alike.setdefault(kind, []).append(place)
        answers: dict[int, Found] = {}
        for places in alike.values():
            found = self._search([lookups[place] for place in places])
            answers |= zip(places, found, strict=True)
        return [answers[place] for place in range(len(lookups))]

    def _search(self, lookups: list[Lookup]) -> list[Found]:
        """Of lookups in the same shards with queries of one width."""
        top_k = max(lookup.top_k for lookup in lookups)
        values = np.concatenate([lookup.values for lookup in lookups])
        indices = np.concatenate([lookup.indices for lookup in lookups])
        shards = self._generation(lookups[0].generation).shards
        parts, missing = [], []
        for place in lookups[0].shards:
            part = self._search_one(shards[place], (values, indices), top_k)
            if part is None:
                missing.append(place)
            else:
                parts.append(part)
        hits = merge_hits(parts or [Hits.none(len(values), top_k)], top_k)
        ends = np.cumsum([len(lookup.values) for lookup in lookups])[:-1]
        split = zip(np.split(hits.scores, ends), np.split(hits.ids, ends), strict=True)
        return [
            Found(Hits(scores[:, : lookup.top_k], ids[:, : lookup.top_k]), tuple(missing))
            for lookup, (scores, ids) in zip(lookups, split, strict=True)
        ]

    def _search_one(self, shard: Shard, queries: Any, top_k: int) -> Hits | None:
        """Hits in one shard, None if it is damaged or gone."""
        index = self._index(shard)
        if index is None:
            return None
        try:
            return Hits(*index.search(queries, top_k, num_threads=self._threads))
        except ValueError as error:  # a list is checked when it is first read
            log.error("shard %s: %s", shard.name, error)
            with self._opening:
                self._forget(shard.name)
            return None

    def _generation(self, number: int) -> Generation:
        with self._opening:
            found = self._generations.pop(number, None) or generation(self._folder, number)
            self._generations[number] = found
            if len(self._generations) > KEPT_GENERATIONS:
                del self._generations[next(iter(self._generations))]
                named = {s.name for one in self._generations.values() for s in one.shards}
                for name in set(self._open) - named:
                    self._forget(name)
            return found

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


@dataclass(frozen=True)
class Request:
    """Queries of one caller."""

    values: np.ndarray
    indices: np.ndarray
    top_k: int
    deadline: float  # seconds from now
    fingerprint: str | None = None  # of the model that made the queries


@dataclass(frozen=True)
class Answer:
    """What a search found.

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
        failures: errors after which a holder is asked again: it died, or has no place yet.
    """

    failures: tuple[type[Exception], ...] = (ConnectionError,)

    def __init__(self, folder: Folder, holders: Sequence[Any], refresh: float) -> None:
        self._folder = folder
        self._holders = list(holders)
        self._refresh = refresh
        self._current = newest(folder)
        self._watching: asyncio.Task[None] | None = None

    async def __call__(self, request: Any) -> Any:
        """HTTP: GET says what is served; POST searches, see docs/scaling.md."""
        from starlette.responses import JSONResponse

        now = self._current
        if request.method == "GET":
            facts = {"generation": now.number, "codes": len(now), "shards": len(now.shards)}
            return JSONResponse({**facts, **now.form})
        body = await _body_of(request)
        if body is None:
            says = f"expected a request of at most {MOST_BYTES:,} bytes"
            return JSONResponse({"error": says}, status_code=413)
        try:
            asked = _request_of(json.loads(body), int(now.form["dim"]))
            check_same_model("queries", asked.fingerprint, now.fingerprint)
        except ModelMismatchError as error:
            return JSONResponse({"error": str(error)}, status_code=409)
        except (ValueError, TypeError, RecursionError) as error:
            return JSONResponse({"error": str(error)[:300]}, status_code=400)
        try:
            answer = await self.search(asked)
        except Exception as error:
            log.error("%s: %s", type(error).__name__, " ".join(str(error).split())[:500])
            says = "the index could not be searched; the server's log says why"
            return JSONResponse({"error": says}, status_code=500)
        found = answer.ids >= 0
        # JSON has no infinity.
        scores = np.minimum(answer.scores, np.finfo(np.float32).max)
        return JSONResponse(
            {
                "ids": [row[there].tolist() for row, there in zip(answer.ids, found, strict=True)],
                "scores": [row[there].tolist() for row, there in zip(scores, found, strict=True)],
                "missing": list(answer.missing),
                "generation": answer.generation,
            }
        )

    def current(self) -> Generation:
        """Return the facts of the index that is served."""
        return self._current

    async def search(self, request: Request) -> Answer:
        """Search every shard; those that nobody could read before the deadline are named.

        Raises:
            ValueError: if a query is not valid, or (ModelMismatchError) of another model.
        """
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())
        now = self._current
        check_same_model("queries", request.fingerprint, now.fingerprint)
        _check_queries(request.values, request.indices, int(now.form["dim"]))
        top_k = hits_width(request.top_k, len(now))
        until = time.monotonic() + request.deadline
        groups = [
            (holder, group)
            for place, holder in enumerate(self._holders)
            if (group := group_of(now, place, len(self._holders)))
        ]
        answers = await asyncio.gather(
            *(
                self._ask(
                    holder,
                    Lookup(now.number, group, request.values, request.indices, top_k),
                    until,
                )
                for holder, group in groups
            )
        )
        hits = merge_hits([answer.hits for answer in answers], top_k)
        missing = tuple(now.shards[place].name for one in answers for place in one.missing)
        return Answer(*hits, missing, now.number)

    async def _ask(self, holder: Any, lookup: Lookup, until: float) -> Found:
        """Of one group of shards, what is found before the deadline."""
        best = Found(Hits.none(len(lookup.values), lookup.top_k), lookup.shards)
        asked: set[asyncio.Future[Found]] = set()
        read_errors = 0
        patience = PATIENCE * (until - time.monotonic())
        try:
            while (left := until - time.monotonic()) > 0:
                if len(asked) < 2:
                    asked.add(asyncio.ensure_future(_answer(holder.search.remote(lookup))))
                wait = min(left, patience if len(asked) < 2 else left)
                done, asked = await asyncio.wait(
                    asked, timeout=wait, return_when=asyncio.FIRST_COMPLETED
                )
                for one in done:
                    if isinstance(error := one.exception(), self.failures):
                        await asyncio.sleep(min(0.05, max(0.0, until - time.monotonic())))
                        continue
                    if error is not None:
                        raise error
                    found = one.result()
                    if len(found.missing) < len(best.missing):
                        best = found
                    read_errors += 1
                    # Another holder may have a shard that this one cannot read.
                    if not best.missing or read_errors == 2:
                        return best
        finally:
            for one in asked:
                one.cancel()
        return best

    async def _watch(self) -> None:
        """Turn to new generations as they are published and holders have opened them."""
        while True:
            await asyncio.sleep(self._refresh)
            try:
                found = await asyncio.to_thread(newest, self._folder, self._current)
                if found.number > self._current.number and await self._prepared(found):
                    self._current = found
            except Exception as error:  # go on with what there is
                log.warning("generation %d stays: %s", self._current.number, error)

    async def _prepared(self, found: Generation) -> bool:
        return all(
            await asyncio.gather(
                *(_answer(holder.prepare.remote(found.number)) for holder in self._holders)
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


def _check_queries(values: np.ndarray, indices: np.ndarray, dim: int) -> None:
    """Refuse what an empty index refuses; a holder's error is then the fault of a shard."""
    _empty_index(dim).search((values, indices), 1)


@functools.lru_cache(maxsize=4)
def _empty_index(dim: int) -> InvertedIndex:
    none = np.zeros((0, 1), np.float32), np.zeros((0, 1), np.int32)
    return InvertedIndex.build(none, dim=dim)


async def _answer(response: Any) -> Any:
    """Await the response of a Ray Serve handle, which is no coroutine."""
    return await response


def _request_of(body: Any, dim: int) -> Request:
    """Return the request that a JSON body asks for.

    Raises:
        ValueError, TypeError: if it is not one.
    """
    if not isinstance(body, dict) or not {"values", "indices"} <= set(body):
        raise ValueError("expected an object with values and indices, both [m][k]")
    if unknown := set(body) - FIELDS:
        raise ValueError(f"expected {', '.join(sorted(FIELDS))}, got {min(unknown)[:60]!r}, too")
    rows = read_rows("queries", (body["values"], body["indices"]), dim)
    top_k = check_int("top_k", body.get("top_k", 10), 1, 10_000)
    if rows.n > MOST_QUERIES or rows.n * top_k > MOST_HITS:
        raise ValueError(
            f"expected at most {MOST_QUERIES:,} queries and {MOST_HITS:,} hits in an answer, got "
            f"{rows.n:,} queries times {top_k:,}; ask in several requests"
        )
    deadline = check_number("deadline", body.get("deadline", 10.0))
    if not 0 < deadline <= 3600:
        raise ValueError(f"deadline: expected seconds, 0 to 3600, got {deadline}")
    fingerprint = check_fingerprint("fingerprint", body.get("fingerprint"))
    _check_queries(rows.values, rows.indices, dim)
    return Request(rows.values, rows.indices, top_k, deadline, fingerprint)
