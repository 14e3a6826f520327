"""What a sharded search takes at 1, 2, 4 and 8 shards, beside what benchmarks.scale.model predicts.

    python -m benchmarks.scale.check [--codes 4000000] [--folder scratch]

Each shard holds an eighth of the codes (uniform, h = 8,192, k = 32), in at most two holders of one
thread on a Ray of this machine. For every point two applications take turns: the one to be
predicted, and one like it whose shards hold a single code each, which is what Ray and the gateway
take by themselves. Writes benchmarks/results/<machine>/scale-model.json.
"""

from __future__ import annotations

import argparse
import functools
import pickle
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import generators, provenance
from benchmarks.scale import model
from benchmarks.scale.drill import load_average, say
from csrkern import InvertedIndex
from csrtrain.scale import ShardedIndex, add_shard, shards
from csrtrain.scale.folder import Folder
from csrtrain.scale.merging import Hits, merge_hits
from csrtrain.scale.serving import Found, Lookup

DIM, K, TOP_K, BATCH, CALLERS = 8192, 32, 10, 64, 4
SHARDS, GROUPS, ROUNDS, SECONDS = (1, 2, 4, 8), 2, 5, 1.5


def make_shards(folder: Path, count: int, codes: int) -> None:
    """`count` shards of so many codes each, published as generations 1 to `count`."""
    for number in range(count):
        drawn = generators.uniform(codes, DIM, K, seed=number + 1)
        ids = np.arange(number * codes, (number + 1) * codes)
        InvertedIndex.build(drawn, ids, dim=DIM, metric="ip").save(folder / "part")
        add_shard(folder / "part", folder / "index")
        shutil.rmtree(folder / "part")


def first_shards(folder: Path, count: int) -> Path:
    """A sharded index of the first `count` shards of `folder`."""
    found = shards.generation(Folder.of(folder / "index"), count)
    place = folder / f"first-{count}"
    place.mkdir()
    for shard in found.shards:
        (place / shard.name).symlink_to(folder / "index" / shard.name)
    whole = shards.Generation(1, found.form, found.shards)
    shards.change(Folder.of(place), lambda _: whole)
    return place


class App:
    """A served index and its times."""

    def __init__(self, place: Path, groups: int, queries: Any) -> None:
        self.served = ShardedIndex.serve(place, groups=groups, name=place.parent.name)
        self.queries = queries
        self.times: dict[str, list[float]] = {}

    def batch(self, turn: int, m: int) -> tuple[np.ndarray, np.ndarray]:
        """m queries."""
        first = turn * m % len(self.queries[0])
        return self.queries[0][first : first + m], self.queries[1][first : first + m]

    def measure(self, m: int) -> None:
        """Latency of one caller, and seconds a request of four; a median and a mean are added."""
        laps = []
        for turn in range(24 if m == 1 else 12):
            began = time.perf_counter()
            self.served.search(self.batch(turn, m), TOP_K)
            laps.append(time.perf_counter() - began)
        self.times.setdefault(f"latency_{m}", []).append(statistics.median(laps))
        self.times.setdefault(f"period_{m}", []).append(self._period(m))

    def _period(self, m: int) -> float:
        done = [0] * CALLERS
        began = time.perf_counter()

        def call(caller: int) -> None:
            while time.perf_counter() - began < SECONDS:
                self.served.search(self.batch(caller + done[caller], m), TOP_K)
                done[caller] += 1

        callers = [threading.Thread(target=call, args=(caller,)) for caller in range(CALLERS)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        return (time.perf_counter() - began) / sum(done)

    def medians(self) -> dict[str, float]:
        """Over the rounds, in seconds."""
        return {name: float(f"{statistics.median(t):.4g}") for name, t in self.times.items()}


def shard_overhead(index: InvertedIndex, queries: Any, m: int) -> float:
    """Seconds that a shard costs a holder whatever it holds: a call of search, and merging."""
    part = queries[0][:m], queries[1][:m]

    def once() -> None:
        hits = Hits(*index.search(part, TOP_K, num_threads=1))
        merge_hits([hits, hits], TOP_K)

    return median_of([once] * 50)


def median_of(calls: Iterable[Callable[[], Any]]) -> float:
    """Seconds."""
    laps = []
    for call in calls:
        began = time.perf_counter()
        call()
        laps.append(time.perf_counter() - began)
    return statistics.median(laps)


def message_bytes(m: int) -> dict[str, int]:
    """Of a lookup and what is found, pickled as Ray sends them, less what does not grow with m."""
    lookup = Lookup(1, (0,), np.zeros((m, K), np.float32), np.zeros((m, K), np.int32), TOP_K)
    return {
        "lookup": len(pickle.dumps(lookup)),
        "found": len(pickle.dumps(Found(Hits.none(m, 10)))),
    }


def points(folder: Path, queries: Any, counts: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The measurements at each number of shards, Ray's own part beside them."""
    from ray import serve

    for count in counts:
        groups = min(count, GROUPS)
        place = first_shards(folder / "real", count)
        real = App(place, groups, queries)
        empty = App(first_shards(folder / "empty", groups), groups, queries)
        source = Folder.of(place)
        parts = [shards.open_shard(source, s, folder) for s in shards.newest(source).shards]
        search: dict[str, list[float]] = {}
        for m in (1, BATCH):
            check(real, parts, real.batch(0, m))
        for _ in range(ROUNDS):
            for m in (1, BATCH):
                real.measure(m)
                empty.measure(m)
                search.setdefault(f"search_{m}", []).append(alone(parts, real, m))
        yield {
            "shards": count,
            "groups": groups,
            "codes_per_shard": len(parts[0]),
            "measured": real.medians(),
            "empty": empty.medians(),
            "beside": {k: float(f"{statistics.median(v):.4g}") for k, v in search.items()},
        }
        for app in ("real", "empty"):
            serve.delete(app)
        for name in ("real", "empty"):
            shutil.rmtree(folder / name / f"first-{count}", ignore_errors=True)
        shutil.rmtree(folder / "empty" / f"first-{groups}", ignore_errors=True)


def alone(parts: Sequence[InvertedIndex], app: App, m: int) -> float:
    """Seconds of a batch in one shard, without Ray."""
    laps = []
    for part in parts:
        batches = [app.batch(turn, m) for turn in range(12)]
        calls = [functools.partial(part.search, b, TOP_K, num_threads=1) for b in batches]
        laps.append(median_of(calls))
    return statistics.fmean(laps)


def check(app: App, parts: Sequence[InvertedIndex], queries: Any) -> None:
    """Raises AssertionError if the answer is not that of the shards."""
    answer = app.served.search(queries, TOP_K)
    expected = merge_hits([Hits(*part.search(queries, TOP_K)) for part in parts], TOP_K)
    assert answer.complete
    np.testing.assert_array_equal(answer.ids, expected.ids)


def main() -> None:
    """Measures, predicts, saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--codes", type=int, default=4_000_000)
    parser.add_argument("--folder", type=Path, required=True, help="scratch; made and removed")
    args = parser.parse_args()
    folder = args.folder.resolve()
    (folder / "real").mkdir(parents=True)
    (folder / "empty").mkdir()
    say("making shards")
    make_shards(folder / "real", SHARDS[-1], args.codes // SHARDS[-1])
    make_shards(folder / "empty", GROUPS, 1)
    queries = generators.uniform(8 * BATCH, DIM, K, seed=99)
    one_code = InvertedIndex.load(next((folder / "empty/index").glob("shard-*")))
    import ray

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        measured = []
        for point in points(folder, queries, SHARDS):
            measured.append(point)
            say(str(point))
    finally:
        from ray import serve

        serve.shutdown()
        ray.shutdown()
    content = {
        "load": load_average(),
        "codes": "uniform h=8192 k=32",
        "batch": BATCH,
        "callers": CALLERS,
        "shard_overhead_s": {str(m): shard_overhead(one_code, queries, m) for m in (1, BATCH)},
        "message_bytes": {str(m): message_bytes(m) for m in (1, BATCH)},
        "points": measured,
    }
    machine = provenance.machine()
    held, place = {**content, "machine": machine}, provenance.RESULTS / machine["name"]
    content["table"] = model.compare(held, place)
    content["sizes"] = model.all_sizes(held, place)
    path = provenance.save("scale-model.json", provenance.RESULTS, **content)
    shutil.rmtree(folder)
    print(path)
    model.main([])


if __name__ == "__main__":
    main()
