"""What aot.py and cuda_resources.py share: GPUs, occupancy on them, and tables of kernels."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
MAX_PROGRAMS = 32  # that a processor holds, whatever they use


class Processor(NamedTuple):
    """One multiprocessor (NVIDIA) or compute unit (AMD): what its programs share."""

    registers: int
    shared: int  # bytes
    warps: int
    lanes: int  # of a warp


PROCESSORS = {
    "sm_80": Processor(65_536, 164 * 1024, 64, 32),
    "sm_90": Processor(65_536, 228 * 1024, 64, 32),
    "sm_100": Processor(65_536, 228 * 1024, 64, 32),
    # Four SIMDs of 512 registers a lane.
    "gfx942": Processor(4 * 512 * 64, 64 * 1024, 32, 64),
}


def occupancy(processor: Processor, warps: int, registers: int, shared: int) -> float:
    """Warps of programs that fit a processor together, over the most it holds."""
    per_thread = -(-registers // 8) * 8
    programs = min(processor.registers // (per_thread * processor.lanes * warps), MAX_PROGRAMS)
    if shared:
        programs = min(programs, processor.shared // (shared + 1024))
    return min(programs * warps, processor.warps) / processor.warps


def resource_usage(binary: str) -> str:
    """Return what cuobjdump, CUDA's or the one in Triton's package, tells of a binary's kernels."""
    tool = shutil.which("cuobjdump")
    try:
        import triton

        tool = triton.knobs.nvidia.cuobjdump.path
    except ImportError:
        pass
    if tool is None:
        raise RuntimeError("no cuobjdump here: neither CUDA's nor one in Triton's package")
    run = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, check=True)
    return run.stdout + run.stderr


def registers_and_spills(line: str) -> tuple[int, int] | None:
    """Return registers a thread, stack and local bytes of a line of `resource_usage`."""
    found = {name: int(size) for name, size in re.findall(r"(REG|STACK|LOCAL):(\d+)", line)}
    return (found["REG"], found["STACK"] + found["LOCAL"]) if found else None


def read_table(table: Path) -> list[dict[str, str]]:
    """Return the rows of a table."""
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def write_table(table: Path, header: tuple[str, ...], rows: list[Any]) -> None:
    """Write a table beside its place and rename it."""
    beside = table.with_suffix(".csv.new")
    with beside.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    beside.replace(table)


def verdict(wrong: list[str]) -> int:
    """Print what is wrong, one a line; return the exit status."""
    print(*wrong, sep="\n", file=sys.stderr)
    return 1 if wrong else 0
