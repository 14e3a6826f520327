"""Whether shards that are searched later save work if they know the score that must be beaten.

    python -m benchmarks.scale.waves [--codes 1000000]

One query at a time on one thread, whose time on a core is taken, as in a holder: all shards alone,
in two waves (the bar of the first shard for the other seven), and one after the other with the bar
of all before. Times are sums over the shards, the work that a wave can save; rounds take the ways
in turn. "waiting" is what a caller waits if every shard has a core of its own. A fourth way knows
the bar of the answer before it begins: no sharing can save more. Writes
benchmarks/results/<machine>/scale-waves.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.harness import generators, provenance
from benchmarks.harness.generators import Codes
from benchmarks.index import data as index_data
from csrkern import InvertedIndex
from csrtrain.scale.merging import Hits, merge_hits

SHARDS, TOP_K, QUERIES, ROUNDS = 8, 10, 100, 5
WAYS = {"alone": [list(range(8))], "two waves": [[0], list(range(1, 8))]}
WAYS["one by one"] = [[shard] for shard in range(8)]
WAYS["answer known"] = WAYS["alone"]


def adapter_codes(n: int, n_queries: int) -> tuple[Codes, Codes, int]:
    """Of an adapter trained on the packaged definitions; more rows are these with noise."""
    dim = 4096
    docs, queries = index_data.embeddings(None)
    model = index_data.adapter(None, index_data.ALL, dim)
    rng = np.random.default_rng(0)
    picked = docs[rng.integers(0, len(docs), n)]
    noise = rng.standard_normal(picked.shape, dtype=np.float32)
    noise *= np.float32(0.5 / picked.shape[1] ** 0.5)
    return (
        index_data._encoded(model, picked + noise, 32),
        index_data._encoded(model, queries[:n_queries], 32),
        dim,
    )


def sets(n: int) -> Iterator[tuple[str, Codes, Codes, int]]:
    """Name, documents, queries and latents."""
    for name in ("uniform", "skewed"):
        draw = getattr(generators, name)
        yield name, draw(n, 8192, 32, seed=1), draw(QUERIES, 8192, 32, seed=2), 8192
    documents, queries, dim = adapter_codes(n, QUERIES)
    yield "adapter", documents, queries, dim


def search(
    parts: Sequence[InvertedIndex], query: Codes, way: Any, bar: float | None
) -> tuple[float, float, Hits]:
    """Seconds of this thread, in all shards and in the slowest of each wave, and the hits."""
    hits, total, waiting = Hits.none(1, TOP_K), 0.0, 0.0
    for wave in way:
        found, slowest = [hits], 0.0
        for shard in wave:
            began = time.thread_time()
            found.append(Hits(*parts[shard].search(query, TOP_K, min_score=bar, num_threads=1)))
            seconds = time.thread_time() - began
            total, slowest = total + seconds, max(slowest, seconds)
        hits = merge_hits(found, TOP_K)
        waiting += slowest
        bar = float(hits.scores[0, -1]) if hits.ids[0, -1] >= 0 else None
    return total, waiting, hits


def measure(documents: Codes, queries: Codes, dim: int, cluster: bool | None) -> dict[str, Any]:
    """Milliseconds a query by way, medians over rounds of the mean over queries."""
    size = len(documents[0]) // SHARDS
    parts = []
    for first in range(0, size * SHARDS, size):
        some = tuple(side[first : first + size] for side in documents)
        ids = np.arange(first, first + size)
        parts.append(InvertedIndex.build(some, ids, dim=dim, metric="cosine", cluster=cluster))
    times: dict[str, list[Any]] = {way: [] for way in WAYS}
    answers: dict[str, list[np.ndarray]] = {}
    bars: list[float | None] = [None] * len(queries[0])
    for turn in range(ROUNDS + 1):  # the first warms up
        for name, way in WAYS.items():  # queries inside: no way finds its lists in a cache
            sums, ids = np.zeros(2), []
            for at in range(len(queries[0])):
                query = queries[0][at : at + 1], queries[1][at : at + 1]
                bar = bars[at] if name == "answer known" else None
                total, waiting, hits = search(parts, query, way, bar)
                sums += total, waiting
                ids.append(hits.ids)
                bars[at] = float(hits.scores[0, -1]) if hits.ids[0, -1] >= 0 else None
            answers[name] = ids
            if turn:
                times[name].append(1e3 * sums / len(queries[0]))
    for found in answers.values():
        np.testing.assert_array_equal(found, answers["alone"])
    result: dict[str, Any] = {"clustered": parts[0].stats()["block"] > 0}
    for name, rows in times.items():
        work, waiting = (statistics.median(column) for column in zip(*rows, strict=True))
        result[name] = {"work_ms": round(float(work), 3), "waiting_ms": round(float(waiting), 3)}
    return result


def main() -> None:
    """Measures and saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--codes", type=int, default=1_000_000)
    n = parser.parse_args().codes
    rows = []
    for name, documents, queries, dim in sets(n):
        for cluster in (None, False) if name == "skewed" else (None,):  # others have none
            row = measure(documents, queries, dim, cluster)
            rows.append({"codes": name, "n": n, "shards": SHARDS, "top_k": TOP_K, **row})
            print(rows[-1], flush=True)
    print(provenance.save("scale-waves.json", provenance.RESULTS, rows=rows))


if __name__ == "__main__":
    main()
