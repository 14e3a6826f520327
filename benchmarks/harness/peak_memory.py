"""Peak resident memory of one call, measured in a process of its own (Linux)."""

from __future__ import annotations

import importlib
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# A call that would need more fails with a MemoryError instead of taking the machine down.
LIMIT_BYTES = 12 << 30


def measure(prepare: str, *arguments: Any, threads: int) -> dict[str, float]:
    """Runs `prepare(*arguments)()` in a fresh process; returns its peak and its seconds.

    `prepare` is "module:function", and the function returns the call to measure, so that its
    inputs are in memory before; arguments travel as JSON. "peak_mb" is what the call added to
    the resident set at its highest, in MB of 10^6 bytes; "seconds" is the time of that one,
    first call.

    Raises:
        RuntimeError: if the call fails, with the end of its output.
    """
    command = [sys.executable, "-m", "benchmarks.harness.peak_memory", str(threads), prepare]
    done = subprocess.run(
        [*command, *(json.dumps(a) for a in arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{prepare}{arguments}: {done.stderr.strip()[-400:]}")
    return json.loads(done.stdout.splitlines()[-1])


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (highest) of this process in bytes."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) * 1024


def _child(threads: int, prepare: str, arguments: list[Any]) -> None:
    import time

    import torch

    torch.set_num_threads(threads)
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    module, function = prepare.split(":")
    call = getattr(importlib.import_module(module), function)(*arguments)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from here
    before = resident("VmRSS")
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    print(json.dumps({"peak_mb": (resident("VmHWM") - before) / 1e6, "seconds": seconds}))


if __name__ == "__main__":
    _child(int(sys.argv[1]), sys.argv[2], [json.loads(a) for a in sys.argv[3:]])
