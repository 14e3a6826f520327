"""Which of a few configurations a kernel runs in: measured once on a device, kept on disk.

Configurations differ in block sizes and warps, never in a result: sums run in an order that no
configuration changes. So the choice is one of time alone, and making it is left to
`csrkern warmup`: a launch in the middle of training takes what was measured before, or the first
configuration, and never waits for the device.

CSRKERN_TUNE says how: "cached" (the default), "off" (the first configuration always, which pins
it), or "measure" (what has not been measured is, at its first launch). CSRKERN_CACHE names the
folder of choices, by default ~/.cache/csrkern. There is one file per device, Triton version and
state of the kernels' source.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import triton
from triton.runtime.errors import OutOfResources

from csrkern.arguments import check_choice
from csrkern.storage import TUNE_MODES, cache_folder, tune_mode

Config = dict[str, Any]  # a kernel's constants, and num_warps

REPEATS = 9
_mode: str | None = None  # what `tuning_mode` has set


@contextlib.contextmanager
def tuning_mode(mode: str) -> Iterator[None]:
    """CSRKERN_TUNE for a while: "cached", "off" or "measure"."""
    global _mode
    check_choice("mode", mode, TUNE_MODES)
    before, _mode = _mode, mode
    try:
        yield
    finally:
        _mode = before


def current_mode() -> str:
    """How launches find their configuration now."""
    return _mode or tune_mode()


def bucket(size: int) -> int:
    """Sizes that share a choice: the next power of two."""
    return triton.next_power_of_2(max(size, 1))


def launch(
    kernel: str,
    sizes: Sequence[int | str],
    configs: Sequence[Config],
    run: Callable[[Config], object],
) -> None:
    """Run `run(config)` with the best of `configs` known for these sizes.

    `run` only enqueues work, and may be called any number of times before its result is used.
    Sizes are bucketed; strings (dtypes, say) are part of the key as they are.
    """
    run(choose(kernel, sizes, configs, run))


def choose(
    kernel: str,
    sizes: Sequence[int | str],
    configs: Sequence[Config],
    run: Callable[[Config], object],
) -> Config:
    """Return the configuration that `launch` would use."""
    mode = current_mode()
    if len(configs) == 1 or mode == "off":
        return configs[0]
    path, known = known_choices(torch.cuda.current_device() if torch.cuda.is_available() else -1)
    key = " ".join([kernel, *(str(bucket(s) if isinstance(s, int) else s) for s in sizes)])
    if known.get(key) in configs:
        return known[key]
    if mode != "measure" or _is_capturing():
        return configs[0]
    best = min(configs, key=lambda config: seconds(functools.partial(run, config)))
    known[key] = best
    # Other processes may have measured, too.
    write_choices(path, {**read_choices(path), **known})
    return best


@functools.cache
def known_choices(device: int) -> tuple[Path, dict[str, Config]]:
    """Return the file of choices for a CUDA device (-1: the interpreter), and what it held."""
    path = choices_path()
    return path, read_choices(path)


def _is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def seconds(run: Callable[[], object]) -> float:
    """Return the median time of a launch, its compilation left out; inf where it does not fit."""
    try:
        run()
    except OutOfResources:
        return float("inf")
    repeats = REPEATS if torch.cuda.is_available() else 1
    return statistics.median(elapsed(run) for _ in range(repeats))


def elapsed(run: Callable[[], object]) -> float:
    """Seconds from an idle device to an idle one; in the interpreter, of the host."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def choices_path() -> Path:
    """Return the file of choices for the current device."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "interpreter"
    name = re.sub(r"[^A-Za-z0-9]+", "-", device)
    return cache_folder() / f"{name}-triton-{triton.__version__}-{source_hash()}.json"


@functools.cache
def source_hash() -> str:
    """Of every kernel's source: a choice made for other code says nothing."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def read_choices(path: Path) -> dict[str, Config]:
    """Choices by key; none where the file is absent or damaged."""
    try:
        choices = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return choices if isinstance(choices, dict) else {}


def write_choices(path: Path, choices: dict[str, Config]) -> None:
    """Write them beside the file and rename them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(choices, file, indent=1, sort_keys=True)
    os.replace(file.name, path)
