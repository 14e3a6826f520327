"""InvertedIndex.search, batches of queries, against other engines.

`bench_index`: exact, and at least recall .99 for engines that are not. `bench_index_recall`:
everybody approximate, at the fastest setting that reaches a recall. `bench_index_curve`: every
setting that is worth it. `bench_index_size`: cost against the number of codes, each engine in a
process of its own. Peers that hold Python's lock while they search take part with one thread.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.race import Contestant, Missing, Race, cases
from benchmarks.index.data import ALL, TOP_K, Data, number_of_rows
from benchmarks.index.dense import DENSE
from benchmarks.index.engine import Field
from benchmarks.index.peers import ONE_THREAD, OURS, SPARSE
from benchmarks.index.worker import Worker
from csrkern import roofline

EXACT = (
    *("csrkern uint8", "SINDI float32", "SINDI 8-bit", "SINDI 8-bit, re-scored", "Seismic"),
    *("splade-index", "sparse_dot_topn", "SciPy", "torch.sparse", "Qdrant Edge"),
    *("FAISS flat, d=k", "FAISS flat, embeddings"),
)
SLOW = ("SciPy", "torch.sparse", "Qdrant Edge")  # by a factor of 5 to 50: raced at one k only
APPROXIMATE = (
    *("SINDI pruned", "Seismic", "kANNolo"),
    *("FAISS HNSW, embeddings", "FAISS PQ, embeddings"),
)
AT_EVERY_SIZE = ("csrkern uint8", "SINDI float32", "Seismic", "sparse_dot_topn")
# Clusters of which exact search makes less and less.
LOOSE_CLUSTERS = [(100_000, h, k, "skewed") for h, k in ((4096, 32), (4096, 64), (1024, 64))]
MANY = [(1_000_000, 8192, 32, "skewed")]
TEXT = [(n, 30_522, 120, "text") for n in (100_000, 1_000_000)]
ADAPTER = 16_060  # definitions, all but those that ask

Codes = tuple[int, int, int, str]  # documents, h, k, kind


def both_threads(*sets: Any) -> list[Any]:
    """One thread and all, on the same codes one after the other."""
    return [(*one, threads) for one in sets for threads in ("one", "all")]


def adapters(h: int, *ks: int) -> list[Codes]:
    """Codes of both adapters."""
    return [(n, h, k, kind) for n, kind in ((ADAPTER, "adapter"), (ALL, "given")) for k in ks]


def number_of_queries(n: int, size: str) -> int:
    """Fewer where each takes long."""
    return 50 if size == "tiny" else 500 if n <= 200_000 else 100


@functools.lru_cache(maxsize=1)
def field_of(codes: Codes, size: str, threads: int, given: Path | None) -> Field:
    """Kept for the next benchmark on the same codes."""
    data = Data.make(*codes, number_of_queries(codes[0], size), given)
    return Field(data, threads, {**SPARSE, **DENSE})


def prepared(
    race: Race, request: pytest.FixtureRequest, codes: Codes, thread_kind: str
) -> tuple[Field, int, dict[str, Any]]:
    """The engines, the number of threads, and what a race needs to know about the codes."""
    given = request.config.option.benchmark_embeddings
    if codes[3] == "given" and given is None:
        pytest.skip("no --benchmark-embeddings")
    threads = number_of(race, thread_kind)
    field = field_of(codes, race.size, race.threads, given)
    n, m = len(field.data), number_of_rows(field.data.queries)
    return (
        field,
        threads,
        {
            "case": f"N={n} h={codes[1]} k={codes[2]} {codes[3]}, {m} queries",
            "cost": roofline.search(field.data.postings, m, TOP_K),
            "threads": threads,
            "items": m,
        },
    )


def number_of(race: Race, thread_kind: str) -> int:
    """1, or all."""
    if thread_kind == "all" and race.threads == 1:
        pytest.skip("this run has one thread")
    return 1 if thread_kind == "one" else race.threads


def able(names: Sequence[str], threads: int) -> list[str]:
    """Those that can use so many threads."""
    return [name for name in names if threads == 1 or not name.startswith(ONE_THREAD)]


@cases(
    tiny=both_threads((2000, 512, 8, "skewed"), (600, 512, 8, "text"), (400, 256, 8, "adapter")),
    quick=both_threads(
        *[(100_000, 8192, 32, kind) for kind in ("skewed", "uniform")],
        (100_000, 30_522, 120, "text"),
        *adapters(4096, 32),
    ),
    full=[
        *both_threads(
            *adapters(4096, 16, 32, 64),
            *adapters(1024, 64),
            *[(n, 8192, 32, kind) for n in (100_000, 1_000_000) for kind in ("skewed", "uniform")],
            *TEXT,
        ),
        *[
            (n, h, k, kind, "one")
            for n, h, k in (
                *((100_000, 8192, 16), (100_000, 8192, 64), (100_000, 4096, 64)),
                *((100_000, 1024, 64), (50_000, 4096, 256), (50_000, 8192, 256)),
            )
            for kind in ("skewed", "uniform")
        ],
    ],
)
def bench_index(race: Race, request: pytest.FixtureRequest, case: Any) -> None:
    field, threads, known = prepared(race, request, case[:4], case[4])
    mine = field.best(OURS, threads, 1.0)
    assert isinstance(mine, Contestant)
    assert float(mine.figures["recall"]) > 0.99, "float16 rounding alone cannot cost this much"
    names = [name for name in EXACT if case[2] == 32 or race.size == "tiny" or name not in SLOW]
    peers = {name: field.best(name, threads, 0.99) for name in able(names, threads)}
    race("index search", ours=mine, peers=peers, **known)


@cases(
    tiny=[(400, 256, 8, "adapter", 0.95, "one")],
    quick=[(*one, 0.99, "one") for one in adapters(4096, 32)],
    full=[
        (*one, recall, threads)
        for one in (*adapters(4096, 32, 64), *LOOSE_CLUSTERS, *MANY, *TEXT)
        for recall in (0.99, 0.95)
        for threads in ("one", "all")
        if threads == "one" or (one[2] == 32 and one[3] != "skewed")
    ],
)
def bench_index_recall(race: Race, request: pytest.FixtureRequest, case: Any) -> None:
    field, threads, known = prepared(race, request, case[:4], case[5])
    peers = {name: field.best(name, threads, case[4]) for name in able(APPROXIMATE, threads)}
    mine = field.best("csrkern fast", threads, case[4])
    race(f"index search, recall {case[4]}", ours=mine, peers=peers, **known)


@cases(
    tiny=[(400, 256, 8, "adapter")],
    quick=adapters(4096, 32),
    full=adapters(4096, 32, 64),
)
def bench_index_curve(race: Race, request: pytest.FixtureRequest, case: Any) -> None:
    """Ours is the exact search; peers are our own fast search, too, and every useful setting."""
    field, threads, known = prepared(race, request, case, "one")
    peers: dict[str, Any] = {}
    for name in ("csrkern fast", *APPROXIMATE):
        peers |= field.frontier(name, threads)
    race("index recall curve", ours=field.best(OURS, threads, 1.0), peers=peers, **known)


@dataclass
class Site:
    """The same codes on disk for processes that each hold one engine; one set at a time."""

    key: Any = None
    facts: Any = None  # queries, and postings that a scan for them touches
    folder: Any = None
    workers: Any = None

    def visit(self, n: int, h: int, k: int, kind: str, size: str, threads: int) -> None:
        """Draws the codes and builds the engines, unless they are there already."""
        if self.key == (key := (n, h, k, kind, size, threads)):
            return
        self.leave()
        self.folder = tempfile.TemporaryDirectory()
        data = Data.make(n, h, k, kind, number_of_queries(n, size), None)
        data.save(Path(self.folder.name))
        self.facts = len(data.queries[0]), data.postings
        del data
        self.workers = {}
        for name in (OURS, *AT_EVERY_SIZE):
            self.workers[name] = Worker(name, Path(self.folder.name), threads)
        self.key = key

    def leave(self) -> None:
        """Ends the processes and removes the codes."""
        for worker in (self.workers or {}).values():
            worker.close()
        if self.folder is not None:
            self.folder.cleanup()
        self.key = self.folder = self.workers = None


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    found = Site()
    yield found
    found.leave()


@cases(
    tiny=both_threads((2000, 512, 8, "skewed")),
    quick=both_threads(*[(100_000, 8192, 32, kind) for kind in ("uniform", "skewed")]),
    full=both_threads(
        *[
            (n, 8192, 32, kind)
            for n in (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)
            for kind in ("uniform", "skewed")
        ]
    ),
)
def bench_index_size(race: Race, site: Site, case: Any) -> None:
    n, h, k, kind, thread_kind = case
    threads = number_of(race, thread_kind)
    site.visit(n, h, k, kind, race.size, race.threads)
    m, postings = site.facts
    mine = site.workers[OURS].side(threads)
    assert not isinstance(mine, Missing), mine
    race(
        "index cost against N",
        f"N={n} h={h} k={k} {kind}, {m} queries",
        ours=Contestant(mine.run, {**mine.figures, "postings": postings}),
        peers={name: site.workers[name].side(threads) for name in able(AT_EVERY_SIZE, threads)},
        cost=roofline.search(postings, m, TOP_K),
        threads=threads,
        items=m,
    )
