"""Engines under test: built once, tried at every setting, raced at the best ones."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.race import Contestant, Missing
from benchmarks.index.data import TOP_K, Data, recall

INSTALL = "pip install 'csrkern[bench]'"


@dataclass(frozen=True)
class Engine:
    """One built index, and the settings it may be searched with.

    Attributes:
        run: (threads, **setting) -> hits for all queries, as the engine gives them.
        ids: hits -> ids [queries, TOP_K].
        truth: the exact answer over the very vectors that the engine was given.
        figures: "build_s", with all threads of the run, "bytes_per_code", and "built": how.
        settings: of `run`.
        index: what was built, where somebody needs it.
    """

    run: Callable[..., Any]
    ids: Callable[[Any], np.ndarray]
    truth: np.ndarray
    figures: Mapping[str, float | str]
    settings: Sequence[Mapping[str, Any]] = ({},)
    index: Any = None


# (data, threads to build with) -> the forms of an index that compete under one name.
Maker = Callable[[Data, int], Sequence[Engine]]


@dataclass(frozen=True)
class Trial:
    """An engine at one setting: what it found, and how fast it was once."""

    engine: Engine
    setting: Mapping[str, Any]
    recall: float
    dense_recall: float | None  # share of the exact answer for the dense embeddings
    seconds: float

    @property
    def label(self) -> str:
        """Such as "window=20000 ef=64", empty where there is nothing to set."""
        built = str(self.engine.figures.get("built", ""))
        return " ".join(filter(None, [built, *(f"{k}={v}" for k, v in self.setting.items())]))

    def contestant(self, threads: int) -> Contestant:
        """For a race."""
        figures: dict[str, float | str] = {"recall": self.recall, **self.engine.figures}
        figures.pop("built", None)
        if self.dense_recall is not None:
            figures["dense_recall"] = self.dense_recall
        if self.label:
            figures["settings"] = self.label
        return Contestant(lambda: self.engine.run(threads, **self.setting), figures)


@dataclass(frozen=True)
class Field:
    """All engines on the same data; each is built when it is first asked for, and kept."""

    data: Data
    threads: int
    makers: Mapping[str, Maker]
    _trials: dict[tuple[str, int], list[Trial] | Missing] = field(default_factory=dict)
    _built: dict[str, Sequence[Engine] | Missing] = field(default_factory=dict)

    def built(self, name: str) -> Sequence[Engine] | Missing:
        """The forms of the engine, or why there are none."""
        if name not in self._built:
            self._built[name] = self._build(name)
        return self._built[name]

    def trials(self, name: str, threads: int) -> list[Trial] | Missing:
        """Every form of the engine at every setting, or why there is none."""
        if (name, threads) not in self._trials:
            self._trials[name, threads] = self._try(name, threads)
        return self._trials[name, threads]

    def best(self, name: str, threads: int, least_recall: float) -> Contestant | Missing:
        """The fastest with at least that recall, else the one that finds most."""
        trials = self.trials(name, threads)
        if isinstance(trials, Missing):
            return trials
        good = [trial for trial in trials if trial.recall >= least_recall]
        best = min(good, key=_seconds) if good else max(trials, key=lambda trial: trial.recall)
        return best.contestant(threads)

    def frontier(self, name: str, threads: int) -> dict[str, Contestant | Missing]:
        """All that are not both slower and worse than another, by "name @ setting"."""
        trials = self.trials(name, threads)
        if isinstance(trials, Missing):
            return {name: trials}
        found: dict[str, Contestant | Missing] = {}
        highest = -1.0
        for trial in sorted(trials, key=_seconds):
            if trial.recall > highest:
                highest = trial.recall
                found[f"{name} @ {trial.label or 'exact'}"] = trial.contestant(threads)
        return found

    def _try(self, name: str, threads: int) -> list[Trial] | Missing:
        engines = self.built(name)
        if isinstance(engines, Missing):
            return engines
        choice = sum(len(engine.settings) for engine in engines) > 1
        return [
            _tried(engine, setting, threads, self.data, choice)
            for engine in engines
            for setting in engine.settings
        ]

    def _build(self, name: str) -> Sequence[Engine] | Missing:
        try:
            return self.makers[name](self.data, self.threads)
        except ImportError as error:
            return Missing(f"{INSTALL} ({error})")
        except Unable as error:
            return Missing(str(error))


class Unable(Exception):
    """An engine that does not take part here, and why."""


def at_most(n: int, maker: Maker) -> Maker:
    """`maker` for up to `n` documents: beyond them it would hold up the run."""

    def make(data: Data, threads: int) -> Sequence[Engine]:
        if len(data) > n:
            raise Unable(f"left out beyond {n:,} documents for the time it takes")
        return maker(data, threads)

    return make


def _tried(
    engine: Engine, setting: Mapping[str, Any], threads: int, data: Data, choice: bool
) -> Trial:
    """Runs once, and twice more for the time where there is something to choose."""
    ids = engine.ids(engine.run(threads, **setting))
    seconds = 0.0
    if choice:
        seconds = min(_timed(lambda: engine.run(threads, **setting)) for _ in range(2))
    dense = None if data.dense is None else recall(ids, data.dense.truth)
    return Trial(engine, setting, recall(ids, engine.truth), dense, seconds)


def _timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _seconds(trial: Trial) -> float:
    return trial.seconds


def figures(seconds: float, total_bytes: float, n: int, built: str = "") -> dict[str, float | str]:
    """Of an index of `n` codes that took that long to build."""
    found: dict[str, float | str] = {"build_s": seconds, "bytes_per_code": total_bytes / n}
    return {**found, "built": built} if built else found


def pad(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """[n, TOP_K] ids, -1 where an engine found fewer."""
    return np.array([(list(row) + [-1] * TOP_K)[:TOP_K] for row in rows])


def saved_bytes(save: Callable[[str], Any]) -> int:
    """The size of an index as its own package stores it."""
    with tempfile.TemporaryDirectory() as folder, quiet_stdout():
        save(f"{folder}/index")
        return folder_bytes(folder)


def folder_bytes(folder: str | os.PathLike[str]) -> int:
    """What its files occupy; holes in them do not count."""
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return sum(min(path.stat().st_size, path.stat().st_blocks * 512) for path in files)


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """Some engines print from native code: their standard output goes nowhere meanwhile."""
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
