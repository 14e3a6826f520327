"""One engine in a process of its own, so that its peak memory is its own (Linux)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.harness.peak_memory import ROOT, resident
from benchmarks.harness.race import Contestant, Missing


class Worker:
    """Builds the engine `name` over the data saved in `folder`, then searches when told to."""

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        self._process = subprocess.Popen(
            _command("serve", name, folder, threads),
            cwd=ROOT,
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._facts = self._answer()

    def side(self, threads: int) -> Contestant | Missing:
        """The engine, ready for a race in this process."""
        if "missing" in self._facts:
            return Missing(self._facts["missing"])
        self._ask(threads)  # chooses its settings
        return Contestant(lambda: self._ask(threads), self._facts)

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, threads: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{threads}\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise RuntimeError(f"{self._process.args} ended with {code}; its errors stand above")
        return json.loads(line)


def _command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "benchmarks.index.worker", *map(str, arguments)]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _serve(name: str, folder: Path, threads: int) -> None:
    """Says what was built, then searches once for each line that holds a number of threads."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # engines print from native code

    def answer(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    from benchmarks.index.data import Data
    from benchmarks.index.engine import Field
    from benchmarks.index.peers import OURS, SPARSE

    data = Data.open(folder)
    engines = Field(data, threads, SPARSE)
    side = engines.best(name, threads, least_recall=0.99)
    if isinstance(side, Missing):
        return answer({"missing": side.reason})
    facts = {**side.figures, "peak_mb": resident("VmHWM") / 1e6}
    if name == OURS:
        facts |= _kept(engines.built(name)[0].index, folder, threads)
    answer(facts)
    for line in sys.stdin:
        best = engines.best(name, int(line), least_recall=0.99)
        assert isinstance(best, Contestant)
        best.run()
        answer({})


def _kept(index: Any, folder: Path, threads: int) -> dict[str, float]:
    """Seconds to save an InvertedIndex; milliseconds of a new process to load it, and for a
    first answer, from a page cache that still holds the files.
    """
    start = time.perf_counter()
    index.save(folder / "index")
    seconds = time.perf_counter() - start
    done = subprocess.run(
        _command("first", "", folder, threads),
        cwd=ROOT,
        env=_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return {"save_s": seconds, **json.loads(done.stdout)}


def _first(folder: Path, threads: int) -> None:
    import csrkern
    from benchmarks.index.data import TOP_K, Data

    queries = Data.open(folder).queries
    one = (queries[0][:1], queries[1][:1])
    start = time.perf_counter()
    index = csrkern.InvertedIndex.load(folder / "index")
    loaded = time.perf_counter()
    index.search(one, TOP_K, num_threads=threads)
    answered = time.perf_counter()
    print(json.dumps({"load_ms": (loaded - start) * 1e3, "first_ms": (answered - loaded) * 1e3}))


if __name__ == "__main__":
    mode, name, folder, threads = sys.argv[1:]
    if mode == "serve":
        _serve(name, Path(folder), int(threads))
    else:
        _first(Path(folder), int(threads))
