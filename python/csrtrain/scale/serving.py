"""What the processes that serve a sharded index do: holders of shards, and the gateway.

A holder answers for the shards that a request names, in the generation that it names; it maps a
shard when it is first asked for it, so a holder that replaces a dead one needs to be told nothing.
The gateway asks the holders of every group of shards, asks again where one died, and merges. It
turns to a new generation as a whole: a request is answered by one. `deployments` makes Ray Serve
deployments of both.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from csrkern.index_input import check_int, read_rows
from csrtrain.scale.folder import Folder
from csrtrain.scale.merging import Hits, merge_hits
from csrtrain.scale.shards import Generation, Shard, generation, newest, open_shard

KEPT_GENERATIONS = 2


@dataclass(frozen=True)
class Lookup:
    """Queries to some shards.

    Attributes:
        generation: number of the generation.
        shards: their places in it.
        values, indices: of the queries, [m, k].
        topk: hits a query.
    """

    generation: int
    shards: tuple[int, ...]
    values: np.ndarray
    indices: np.ndarray
    topk: int


class Holder:
    """Holds some shards, mapped."""

    def __init__(self, folder: Folder, threads: int) -> None:
        self._folder = folder
        self._threads = threads
        self._cache = tempfile.TemporaryDirectory(prefix="csrkern-shards-")
        self._generations: dict[int, Generation] = {}
        self._open: dict[str, Any] = {}

    def search_all(self, lookups: list[Lookup]) -> list[Hits]:
        """The best hits of each among the shards it asks for; those alike are searched at once."""
        alike: dict[Any, list[int]] = {}
        for place, lookup in enumerate(lookups):
            kind = (lookup.generation, lookup.shards, lookup.values.shape[1])
            alike.setdefault(kind, []).append(place)
        answers: dict[int, Hits] = {}
        for places in alike.values():
            found = self._search([lookups[place] for place in places])
            answers |= zip(places, found, strict=True)
        return [answers[place] for place in range(len(lookups))]

    def _search(self, lookups: list[Lookup]) -> list[Hits]:
        """Of lookups in the same shards with queries of one width."""
        topk = max(lookup.topk for lookup in lookups)
        values = np.concatenate([lookup.values for lookup in lookups])
        indices = np.concatenate([lookup.indices for lookup in lookups])
        hits = merge_hits(
            [
                Hits(*index.search((values, indices), topk, num_threads=self._threads))
                for index in self._indexes(lookups[0].generation, lookups[0].shards)
            ],
            topk,
        )
        ends = np.cumsum([len(lookup.values) for lookup in lookups])[:-1]
        parts = zip(np.split(hits.scores, ends), np.split(hits.ids, ends), strict=True)
        return [
            Hits(scores[:, : lookup.topk], ids[:, : lookup.topk])
            for lookup, (scores, ids) in zip(lookups, parts, strict=True)
        ]

    def _indexes(self, number: int, places: tuple[int, ...]) -> list[Any]:
        if number not in self._generations:
            self._generations[number] = generation(self._folder, number)
            for old in sorted(self._generations)[:-KEPT_GENERATIONS]:
                del self._generations[old]
            named = {s.name for one in self._generations.values() for s in one.shards}
            for name in set(self._open) - named:
                del self._open[name]
                shutil.rmtree(Path(self._cache.name) / name, ignore_errors=True)
        shards = self._generations[number].shards
        return [self._index(shards[place]) for place in places]

    def _index(self, shard: Shard) -> Any:
        if shard.name not in self._open:
            self._open[shard.name] = open_shard(self._folder, shard, Path(self._cache.name))
        return self._open[shard.name]


@dataclass(frozen=True)
class Request:
    """Queries of one caller."""

    values: np.ndarray
    indices: np.ndarray
    topk: int
    deadline: float  # seconds from now


@dataclass(frozen=True)
class Reply:
    """Hits of a request, and the names of the shards that did not answer in time."""

    hits: Hits
    missing: tuple[str, ...]
    generation: int


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
        try:
            asked = _request_of(await request.json(), int(now.form["dim"]))
        except (ValueError, TypeError) as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        reply = await self.search(asked)
        found = reply.hits.ids >= 0
        return JSONResponse(
            {
                "ids": [
                    row[there].tolist() for row, there in zip(reply.hits.ids, found, strict=True)
                ],
                "scores": [
                    row[there].tolist() for row, there in zip(reply.hits.scores, found, strict=True)
                ],
                "missing": list(reply.missing),
                "generation": reply.generation,
            }
        )

    def current(self) -> Generation:
        """What is served."""
        return self._current

    async def search(self, request: Request) -> Reply:
        """Searches every shard; a shard that does not answer until the deadline is named."""
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())
        now = self._current
        until = time.monotonic() + request.deadline
        groups = [
            tuple(range(place, len(now.shards), len(self._holders)))
            for place in range(len(self._holders))
        ]
        asked = [
            self._ask(
                holder,
                Lookup(now.number, group, request.values, request.indices, request.topk),
                until,
            )
            for holder, group in zip(self._holders, groups, strict=True)
            if group
        ]
        answers = await asyncio.gather(*asked)
        missing = tuple(
            now.shards[place].name
            for answer, group in zip(answers, filter(None, groups), strict=True)
            if answer is None
            for place in group
        )
        hits = merge_hits([answer for answer in answers if answer is not None], request.topk)
        if not len(hits.ids):
            hits = Hits.none(len(request.values), request.topk)
        return Reply(hits, missing, now.number)

    async def _ask(self, holder: Any, lookup: Lookup, until: float) -> Hits | None:
        """Of one group of shards; None if nobody answers in time."""
        while (left := until - time.monotonic()) > 0:
            try:
                return await asyncio.wait_for(holder.search.remote(lookup), left)
            except asyncio.TimeoutError:
                return None
            except self.failures as error:
                if isinstance(getattr(error, "cause", None), (ValueError, TypeError)):
                    raise  # the request's own fault: asking again changes nothing
                await asyncio.sleep(min(0.05, max(0.0, left)))
        return None

    async def _watch(self) -> None:
        """Turns to new generations as they are published."""
        while True:
            await asyncio.sleep(self._refresh)
            try:
                found = await asyncio.to_thread(newest, self._folder)
            except (OSError, ValueError):
                continue  # go on with what there is
            if found.number > self._current.number:
                self._current = found


def _request_of(body: Any, dim: int) -> Request:
    """The request that a JSON body asks for.

    Raises:
        ValueError, TypeError: if it is not one.
    """
    if not isinstance(body, dict) or not {"values", "indices"} <= set(body):
        raise ValueError("expected an object with values and indices, both [m][k]")
    rows = read_rows(
        "queries",
        (np.asarray(body["values"], np.float32), np.asarray(body["indices"], np.int64)),
        dim,
    )
    topk = check_int("topk", body.get("topk", 10), 1, 10_000)
    deadline = float(body.get("deadline", 10.0))
    if not 0 < deadline <= 3600:
        raise ValueError(f"deadline: expected seconds, 0 to 3600, got {deadline}")
    return Request(rows.values, rows.indices, topk, deadline)
