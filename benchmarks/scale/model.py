"""What a sharded index costs, from measured parts: time, memory, network and cores by its size.

    python -m benchmarks.scale.model  # tables: prediction beside measurement; 1e9 and 1e11 codes

Inputs, all committed below benchmarks/results/<machine>: seconds a query, bytes and seconds to
build a code from index-size.csv (one index, one thread, no Ray); what Ray, the gateway and a shard
take by themselves from scale-model.json, measured with shards of one code. Nothing is fitted to
the searches that are predicted.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import provenance

# The machine that sizes are read off for; not measured.
MEMORY, CORES, NETWORK = 0.8 * 128e9, 16, 1.25e9  # usable bytes, cores, bytes a second
BUDGET, REPLICAS = 0.05, 2  # seconds of a query that its search may take; copies of each shard


@dataclass(frozen=True)
class Engine:
    """One index on one core, by the number of its codes.

    Attributes:
        seconds: a query, by codes, as measured.
        bytes_per_code: of the largest that was measured.
        build_core_s: core-seconds to build a code of it.
    """

    seconds: Mapping[int, float]
    bytes_per_code: float
    build_core_s: float

    def query_s(self, codes: float) -> float:
        """Between measured sizes on a straight line, beyond the last in proportion."""
        sizes = sorted(self.seconds)
        if codes >= sizes[-1]:
            return self.seconds[sizes[-1]] * codes / sizes[-1]
        return float(np.interp(codes, sizes, [self.seconds[size] for size in sizes]))


def read_engine(folder: Path, kind: str) -> Engine:
    """The exact float16 index over codes of `kind`, from index-size.csv."""
    with open(folder / "index-size.csv", newline="") as file:
        rows = [r for r in csv.DictReader(file) if (r["codes"], r["engine"]) == (kind, "csrkern")]
    one = [row for row in rows if row["threads"] == "1"]
    last = max(one, key=lambda row: int(row["n"]))
    seconds = {int(row["n"]): 1 / float(row["queries_per_s"]) for row in one}
    threads = max(int(row["threads"]) for row in rows)  # builds use all
    build = threads * float(last["build_s"]) / int(last["n"])
    return Engine(seconds, float(last["bytes_per_code"]), build)


@dataclass(frozen=True)
class Point:
    """A search to be predicted: shards of one size in groups, m queries a request."""

    shards: int
    groups: int
    codes_per_shard: int
    m: int


def predict(
    point: Point, query_s: float, overhead_s: float, empty: Mapping[str, float], cores: int
) -> dict[str, float]:
    """Seconds of one request, and between requests when callers wait in line.

    Args:
        query_s: seconds of a query in one shard on one core.
        overhead_s: that a shard takes of a holder, whatever it holds.
        empty: latency_<m> and period_<m> with shards of one code, one in each group.
        cores: that there are for everybody.
    """
    each = point.m * query_s + overhead_s
    work = point.shards * each
    slowest = -(-point.shards // point.groups) * each
    waits = max(slowest, work / cores)
    return {
        "latency": empty[f"latency_{point.m}"] + waits,
        # Callers keep all cores busy, unless one holder is busier still.
        "period": max(empty[f"period_{point.m}"] + work / cores, slowest),
    }


def compare(held: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Prediction beside measurement, for every point, size of batch and quantity.

    `predicted_ms` takes the search from index-size.csv, `beside_ms` as it was timed without Ray
    in the same minutes: where they differ, the machine was not what it was.
    """
    engine = read_engine(folder, "uniform")
    table = []
    for point in held["points"]:
        for m in (1, int(held["batch"])):
            at = Point(point["shards"], point["groups"], point["codes_per_shard"], m)
            facts = held["shard_overhead_s"][str(m)], point["empty"], held["machine"]["cores"]
            own = predict(at, engine.query_s(at.codes_per_shard), *facts)
            beside = predict(at, point["beside"][f"search_{m}"] / m, 0.0, *facts[1:])
            for what in ("latency", "period"):
                found = point["measured"][f"{what}_{m}"]
                table.append(
                    {
                        "shards": at.shards,
                        "batch": m,
                        "what": what,
                        "measured_ms": 1e3 * found,
                        "predicted_ms": 1e3 * own[what],
                        "off": own[what] / found - 1,
                        "beside_ms": 1e3 * beside[what],
                        "beside_off": beside[what] / found - 1,
                        "ray_ms": 1e3 * point["empty"][f"{what}_{m}"],
                    }
                )
    return table


def read_off(held: Mapping[str, Any], folder: Path, kind: str, codes: float) -> dict[str, Any]:
    """What so many codes need, with queries one at a time and one group of shards a machine."""
    engine = read_engine(folder, kind)
    core_s = engine.query_s(codes)
    by_memory = math.ceil(codes * engine.bytes_per_code / MEMORY)
    by_time = math.ceil(core_s / BUDGET / CORES)
    groups = max(by_memory, by_time)
    machines = groups * REPLICAS
    message = held["message_bytes"]["1"]
    one, two = (_empty(held, count) for count in (1, 2))
    more = max(0.0, two["period_1"] - one["period_1"])  # that a group costs everybody
    ray_core_s = held["machine"]["cores"] * (one["period_1"] + more * (groups - 1))
    return {
        "kind": kind,
        "codes": codes,
        "index_bytes": codes * engine.bytes_per_code,
        "groups_by_memory": by_memory,
        "groups_by_time": by_time,
        "machines": machines,
        "core_s_per_query": core_s,
        "search_s": engine.query_s(codes / groups) / CORES,
        "ray_core_s_per_query": ray_core_s,
        "queries_per_s": machines * CORES / (core_s + ray_core_s),
        "bytes_per_query": groups * (message["lookup"] + message["found"]),
        "build_core_hours": codes * engine.build_core_s / 3600,
        "load_s_per_machine": codes * engine.bytes_per_code / groups / NETWORK,
    }


def all_sizes(held: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """A billion and a hundred billion codes of both kinds."""
    return [
        read_off(held, folder, kind, codes)
        for kind in ("uniform", "skewed")
        for codes in (1e9, 1e11)
    ]


def _empty(held: Mapping[str, Any], groups: int) -> Mapping[str, float]:
    found = [point["empty"] for point in held["points"] if point["groups"] == groups]
    return {name: float(np.median([one[name] for one in found])) for name in found[0]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", help="folder below benchmarks/results; default: this one's")
    args = parser.parse_args(arguments)
    folder = provenance.RESULTS / (args.machine or provenance.machine()["name"])
    held = json.loads((folder / "scale-model.json").read_text())
    table = compare(held, folder)
    for row in (*table, *all_sizes(held, folder)):
        print("  ".join(f"{name}={_short(value)}" for name, value in row.items()))
    print(f"largest deviation {max(abs(row['off']) for row in table):.1%}")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
