"""Races: ours against its peers in one run, and the rows that come of it.

All contestants are warmed up, then take turns (A B C A B C …), so that a machine that slows
down or is disturbed hurts all of them alike; medians over the rounds are compared. The
turns of ours are timed by pytest-benchmark, those of the peers between its rounds.
"""

from __future__ import annotations

import csv
import gc
import io
import json
import math
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.harness import provenance
from csrkern import roofline
from csrkern.storage import write_atomically

SIZES = ("tiny", "quick", "full")
ROUND_SECONDS = 0.02  # a turn repeats a short call until it lasts about this long
BUDGET_SECONDS = {"tiny": 0.05, "quick": 2.5, "full": 10.0}
WARM_UP_SECONDS = {"tiny": 0.0, "quick": 0.2, "full": 0.5}
MIN_ROUNDS = {"tiny": 2, "quick": 5, "full": 7}
MAX_ROUNDS = 60
# Threads of another library spin for a while after their work; they must not slow the next.
SETTLE_SECONDS = 0.004


@dataclass(frozen=True)
class Missing:
    """A peer that could not take part, and why; its row keeps the reason."""

    reason: str


@dataclass(frozen=True)
class Contestant:
    """One side of a race: what to call, and figures beside its time (recall, bytes, …)."""

    run: Callable[[], Any]
    figures: Mapping[str, float | str] = field(default_factory=dict)


Side = Callable[[], Any] | Contestant | Missing


@dataclass(frozen=True)
class Row:
    """One line of the results: ours against one peer. Times in milliseconds a call."""

    op: str
    case: str
    dtype: str
    device: str
    threads: int
    peer: str
    ours_ms: float
    peer_ms: float | None  # None: the peer did not run, see note
    ratio: float | None  # peer_ms / ours_ms
    floor_ms: float | None
    floor_share: float | None  # floor_ms / ours_ms
    bound: str | None  # what sets the floor: memory or compute
    items: int  # queries or rows in one call, for a rate; 1 where a rate says nothing
    rounds: int
    ours_spread: float  # interquartile range / median
    peer_spread: float | None
    ours_figures: Mapping[str, float | str] = field(default_factory=dict)
    peer_figures: Mapping[str, float | str] = field(default_factory=dict)
    note: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        """What a later run of the same comparison replaces."""
        return tuple(str(getattr(self, name)) for name in KEY)


KEY = ("op", "case", "dtype", "device", "threads", "peer")
PROVENANCE_COLUMNS = ("size", "date", "commit", "dirty", "versions", "cpu")


class Race:
    """Called by a benchmark function with its contestants; see `__call__`."""

    def __init__(
        self,
        benchmark: Any,
        machine: roofline.Machine,
        report: Report,
        device: str = "cpu",
        wait: Callable[[], Any] = lambda: None,
    ) -> None:
        self.benchmark = benchmark
        self.machine = machine
        self.device = device
        self.wait = wait  # until the device has done what it was given
        self.report = report
        self.size = report.size
        self.threads = report.threads

    def __call__(
        self,
        op: str,
        case: str,
        *,
        ours: Side,
        peers: Mapping[str, Side],
        cost: roofline.Cost | None,
        dtype: str = "float32",
        threads: int | None = None,
        items: int = 1,
        note: str = "",
    ) -> list[Row]:
        """Times `ours` against each of `peers` and records one row a peer.

        `cost` is the compulsory work of one call of ours (None: no floor is known); `items`
        is what one call handles, where a rate is to be shown.
        """
        threads = threads or self.threads
        if not isinstance(mine := as_side(ours), Contestant):
            raise TypeError(f"{op} {case}: ours must run; got {mine}")
        sides = {name: as_side(side) for name, side in peers.items()}
        running = {name: side for name, side in sides.items() if isinstance(side, Contestant)}
        took = self._take_turns(mine, running)

        floor = None if cost is None else roofline.floor_seconds(cost, self.machine, threads) * 1e3
        ours_ms = statistics.median(took[""])
        base = Row(
            op=op,
            case=case,
            dtype=dtype,
            device=self.device,
            threads=threads,
            peer="",
            ours_ms=ours_ms,
            peer_ms=None,
            ratio=None,
            floor_ms=floor,
            floor_share=None if floor is None else floor / ours_ms,
            bound=None if cost is None else roofline.bound_by(cost, self.machine, threads),
            items=items,
            rounds=len(took[""]),
            ours_spread=spread(took[""]),
            peer_spread=None,
            ours_figures=mine.figures,
            note=note,
        )
        rows = []
        for name, side in sides.items():
            if isinstance(side, Missing):
                rows.append(replace(base, peer=name, note=side.reason))
                continue
            peer_ms = statistics.median(took[name])
            rows.append(
                replace(
                    base,
                    peer=name,
                    peer_ms=peer_ms,
                    ratio=peer_ms / ours_ms,
                    peer_spread=spread(took[name]),
                    peer_figures=side.figures,
                )
            )
        self.report.add(rows or [base])
        self.benchmark.extra_info["rows"] = [row.__dict__ for row in rows or [base]]
        return rows

    def _take_turns(
        self, mine: Contestant, peers: Mapping[str, Contestant]
    ) -> dict[str, list[float]]:
        """Milliseconds a call in every round, by peer name; ours under ""."""
        everyone = {"": mine, **peers}
        once = {name: self._warm_up(side.run) for name, side in everyone.items()}
        calls = {name: min(1000, math.ceil(ROUND_SECONDS / s)) for name, s in once.items()}
        if self.size == "tiny":
            calls = dict.fromkeys(calls, 1)
        # Each turn: the timed calls, and one before them to have its data and code at hand.
        lap = sum((calls[n] + (calls[n] > 1)) * once[n] + SETTLE_SECONDS for n in everyone)
        rounds = math.ceil(BUDGET_SECONDS[self.size] / lap)
        rounds = min(max(rounds, MIN_ROUNDS[self.size] if lap < 8 else 3), MAX_ROUNDS)
        took: dict[str, list[float]] = {name: [] for name in everyone}

        def ready(name: str) -> None:
            time.sleep(SETTLE_SECONDS)
            if calls[name] > 1:
                everyone[name].run()

        def peers_turn() -> None:
            for name, side in peers.items():
                ready(name)
                self.wait()
                start = time.perf_counter()
                for _ in range(calls[name]):
                    side.run()
                self.wait()
                took[name].append((time.perf_counter() - start) / calls[name] * 1e3)
            ready("")
            self.wait()

        def our_turn() -> None:
            for _ in range(calls[""]):
                mine.run()
            self.wait()

        gc.collect()
        gc.disable()
        try:
            self.benchmark.pedantic(our_turn, setup=peers_turn, rounds=rounds)
        finally:
            gc.enable()
        timed = self.benchmark.stats.stats.data
        took[""] = [seconds / calls[""] * 1e3 for seconds in timed]
        return took

    def _warm_up(self, run: Callable[[], Any]) -> float:
        """Calls `run` until it is warm; returns the seconds of its fastest call after the first.

        A first call of a second or more has warmed up what there is, and is the estimate.
        """
        start = time.perf_counter()
        run()
        self.wait()
        if (first := time.perf_counter() - start) > 1.0:
            return first
        best, stop = math.inf, time.perf_counter() + WARM_UP_SECONDS[self.size]
        while best == math.inf or time.perf_counter() < stop:
            start = time.perf_counter()
            run()
            self.wait()
            best = min(best, time.perf_counter() - start)
        return best


def cases(**by_size: Sequence[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Runs a benchmark once for each item of the chosen size, passed as the argument `case`.

    A size left out takes the items of the next smaller one: `cases(tiny=[…], quick=[…])`.
    """

    def mark(function: Callable[..., None]) -> Callable[..., None]:
        function.cases = by_size  # type: ignore[attr-defined]
        return function

    return mark


def cases_of(function: Any, size: str) -> Sequence[Any] | None:
    """The items given to `cases` for `size`, None for a function without."""
    by_size = getattr(function, "cases", None)
    if by_size is None:
        return None
    return next(by_size[s] for s in reversed(SIZES[: SIZES.index(size) + 1]) if s in by_size)


def as_side(side: Side) -> Contestant | Missing:
    """A bare function is a contestant without figures."""
    return side if isinstance(side, (Contestant, Missing)) else Contestant(side)


def spread(values: Sequence[float]) -> float:
    """Interquartile range over median: how quiet the machine was."""
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / middle


class Report:
    """The rows of one run, and their files: one JSON a run, one CSV a machine.

    Both are rewritten whole after every race, beside and renamed, so a run that is broken
    off keeps what it has. In the CSV a row replaces the one that an earlier run left for the
    same comparison; the JSON also holds the machine, its ceilings and the versions in full.
    """

    def __init__(self, root: Path, size: str, threads: int) -> None:
        self.size, self.threads = size, threads
        self.machine = provenance.machine()
        self.versions = provenance.versions()
        self.commit = provenance.commit()
        self.started = datetime.now(timezone.utc)
        self.ceilings: roofline.Machine | None = None
        self.rows: list[Row] = []
        self.folder = root / self.machine["name"]
        self.json_path = self.folder / "run.json"
        self.csv_path = self.folder / "results.csv"

    def add(self, rows: Sequence[Row]) -> None:
        """Keeps `rows` and writes both files."""
        self.rows += rows
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.json_path, (json.dumps(self.as_json(), indent=1) + "\n").encode())
        write_atomically(self.csv_path, self.as_csv().encode())

    def as_json(self) -> dict[str, Any]:
        """Everything about the run."""
        return {
            "format": 1,
            "date": self.started.isoformat(timespec="seconds"),
            "size": self.size,
            "commit": self.commit,
            "machine": self.machine,
            "ceilings": None if self.ceilings is None else self.ceilings.__dict__,
            "versions": self.versions,
            "rows": [row.__dict__ for row in self.rows],
        }

    def as_csv(self) -> str:
        """The machine's table: earlier rows, with those of this run in place of their like."""
        provenance_cells = {
            "size": self.size,
            "date": self.started.isoformat(timespec="seconds"),
            "commit": self.commit["id"],
            "dirty": self.commit["dirty"],
            "versions": "; ".join(f"{name} {number}" for name, number in self.versions.items()),
            "cpu": self.machine["cpu"],
        }
        table: dict[tuple[str, ...], dict[str, Any]] = {}
        if self.csv_path.exists():
            with open(self.csv_path, newline="") as file:
                for line in csv.DictReader(file):
                    table[tuple(line[name] for name in KEY)] = line
        for row in self.rows:
            table[row.key] = {**_cells(row), **provenance_cells}
        out = io.StringIO()
        columns = (*Row.__dataclass_fields__, *PROVENANCE_COLUMNS)
        writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(table.values(), key=_in_order))
        return out.getvalue()


def _cells(row: Row) -> dict[str, Any]:
    """A row for the CSV: four significant digits, figures as "name=value"."""
    cells: dict[str, Any] = {}
    for name, value in row.__dict__.items():
        if isinstance(value, Mapping):
            value = "; ".join(f"{key}={_short(item)}" for key, item in value.items())
        cells[name] = _short(value)
    return cells


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


def _in_order(line: Mapping[str, Any]) -> list[Any]:
    """Sorts by op, case, …, with the numbers inside a case compared as numbers."""
    parts: list[Any] = []
    for name in KEY:
        for part in re.split(r"(\d+)", str(line[name])):
            parts.append((1, int(part), "") if part.isdigit() else (0, 0, part))
    return parts
