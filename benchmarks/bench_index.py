"""InvertedIndex.search, batches of queries, against other engines on the same codes.

Every row says recall@10 against exact float32 scores, build seconds and bytes a code beside
the time; queries a second are among the figures. Peers that search one query at a time and
hold Python's lock meanwhile take part with one thread only.
"""

from __future__ import annotations

import functools
import time

import pytest

import csrkern
from benchmarks import index_peers
from benchmarks.harness import Contestant, Race, cases
from benchmarks.index_peers import TOPK, Data
from csrkern import roofline

Case = tuple[int, int, int, str, str]  # documents, h, k, kind of codes, threads


def both_threads(*sets: tuple[int, int, int, str]) -> list[Case]:
    """One thread and all, on the same codes one after the other."""
    return [(*one, threads) for one in sets for threads in ("one", "all")]


@functools.lru_cache(maxsize=1)
def data_of(n: int, h: int, k: int, kind: str, n_queries: int) -> Data:
    """Kept for the next benchmark on the same codes."""
    return Data.draw(n, h, k, kind, n_queries)


@cases(
    tiny=both_threads((2000, 512, 8, "skewed")),
    quick=both_threads((100_000, 8192, 32, "skewed"), (100_000, 8192, 32, "uniform")),
    full=both_threads(
        *[(100_000, 8192, k, kind) for kind in ("skewed", "uniform") for k in (16, 32, 64)],
        *[(1_000_000, 8192, 32, kind) for kind in ("skewed", "uniform")],
    ),
)
def bench_index(race: Race, case: Case) -> None:
    n, h, k, kind, thread_kind = case
    threads = 1 if thread_kind == "one" else race.threads
    if thread_kind == "all" and threads == 1:
        pytest.skip("this run has one thread")
    data = data_of(n, h, k, kind, 50 if race.size == "tiny" else 500)

    start = time.perf_counter()
    index = csrkern.InvertedIndex.build(data.documents, num_threads=threads)
    built = time.perf_counter() - start
    _, ids = index.search(data.queries, TOPK, num_threads=threads)
    stats = index.stats()
    figures = data.figures(ids, built, stats["bytes_per_code"])
    assert float(figures["recall"]) > 0.99, "float16 rounding alone cannot cost this much"

    race(
        "index search",
        f"N={n} h={h} k={k} {kind}, {len(data.queries)} queries",
        ours=Contestant(lambda: index.search(data.queries, TOPK, num_threads=threads), figures),
        peers=index_peers.peers(data, threads),
        cost=roofline.search(data.postings, len(data.queries), TOPK),
        threads=threads,
        items=len(data.queries),
    )
