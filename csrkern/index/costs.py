"""Costs of the parts of a search on this processor: measured once, kept on disk.

A search may go different ways to the same hits: scan lists, look up blocks, score the documents
of a filter one by one, answer queries in batches. It takes the one that should be fastest, by
costs in nanoseconds (csrc/include/csrkern/costs.hpp). The first search that has a choice measures
them, in about a third of a second; later processes read them from the folder of `CSRKERN_CACHE`.
`CSRKERN_TUNE=off` leaves both out and takes the usual costs. Results, files and the plans of fast
searches never depend on them.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import json
import platform
import re
from pathlib import Path
from typing import Any

from csrkern import _C, __version__
from csrkern.storage import cache_folder, tune_mode, write_atomically

_LARGEST = 1e12  # nanoseconds


@functools.cache
def prepare() -> None:
    """Hand the costs over that are on disk, or see to it that measured ones are kept."""
    if tune_mode() == "off":
        _C.set_costs(_C.USUAL_COSTS)
        return
    known = read_costs(costs_path())
    if known is not None:
        _C.set_costs(known)
    else:
        atexit.register(_keep)


def read_costs(path: Path) -> dict[str, float] | None:
    """Return the costs by name; None where the file is absent or damaged."""
    try:
        costs = json.loads(path.read_text())
        if costs.keys() == _C.USUAL_COSTS.keys() and all(map(_is_cost, costs.values())):
            return dict(costs)
    except (OSError, ValueError, AttributeError, RecursionError):
        pass
    return None


def _is_cost(cost: Any) -> bool:
    return type(cost) in (int, float) and 0 < cost < _LARGEST


def costs_path() -> Path:
    """Return the file of the costs of this processor, instruction set and version."""
    return cache_folder() / f"costs-{_processor()}-{_C.isa()}-{__version__}.json"


def _processor() -> str:
    """Return what tells processors apart: the name alone may be that of three generations."""
    facts: dict[str, str] = {}
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in itertools.takewhile(str.strip, lines):  # of the first core: there may be many
            name, _, value = line.partition(":")
            facts[name.strip()] = value.strip()
    named = [facts.get(key, "") for key in ("model name", "cpu family", "model", "stepping")]
    name = " ".join(filter(None, named)) or platform.processor() or platform.machine()
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")


def _keep() -> None:
    if _C.costs_were_measured():
        with contextlib.suppress(OSError):
            path = costs_path()
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(_C.costs(), indent=1).encode())
