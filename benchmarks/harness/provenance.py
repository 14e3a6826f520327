"""Where a result came from: machine, versions, commit."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from csrkern.storage import write_atomically

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks/results"
PACKAGES = (
    *("torch", "numpy", "scipy", "triton", "sentence-transformers", "transformers"),
    *("sparse-dot-topn", "pyvsag", "pyseismic-lsr", "faiss-cpu", "qdrant-edge-py"),
    *("kannolo", "splade-index", "numba", "pyterrier-pisa"),
    *("usearch", "scann-core"),
    *("ray", "fsspec", "pyarrow"),
)


def machine() -> dict[str, Any]:
    """CPU model, cores, caches, memory and instruction set; what the system tells, else None."""
    fields = _cpuinfo()
    return {
        "name": f"cpu-{len(_cpus())}core-{_slug(fields.get('model name', platform.machine()))}",
        "device": "cpu",
        "cpu": fields.get("model name", platform.processor() or platform.machine()),
        "family_model_stepping": "-".join(
            fields.get(key, "?") for key in ("cpu family", "model", "stepping")
        ),
        "cores": len(_cpus()),
        "caches": _caches(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "instruction_set": sorted(
            flag
            for flag in fields.get("flags", fields.get("Features", "")).split()
            if re.match(r"(avx|amx|f16c|fma|sve|asimd|sse4)", flag)
        ),
        "csrkern_isa": _csrkern_isa(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Python, csrkern and every package that takes part, where installed."""
    from csrkern import __version__

    found = {"python": platform.python_version(), "csrkern": __version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> dict[str, Any]:
    """The git commit of this tree, and whether code differs from it (results do not count)."""
    head = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return {"id": head, "dirty": None if head is None else bool(status)}


def save(name: str, root: Path = RESULTS, **content: Any) -> Path:
    """Writes root/<machine>/<name>: `content` beside date, commit, machine and versions."""
    here = machine()
    record = {
        "format": 1,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": here,
        "versions": versions(),
        **content,
    }
    path = root / here["name"] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())
    return path


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _cpuinfo() -> dict[str, str]:
    """The first processor's fields in /proc/cpuinfo."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _caches() -> dict[str, str]:
    """ "L1 Data" -> "48K" and so on, of the first processor."""
    found = {}
    for entry in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((entry / n).read_text().strip() for n in ("level", "type", "size"))
        except OSError:
            continue
        found[f"L{level} {kind}"] = size
    return found


def _csrkern_isa() -> str:
    from csrkern import _C

    return str(_C.isa())


def _slug(text: str) -> str:
    text = re.sub(r"\((r|tm)\)|processor|cpu|@.*", " ", text.lower())
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")


if __name__ == "__main__":
    import json

    json.dump([machine(), versions(), commit()], sys.stdout, indent=1)
