#!/usr/bin/env python3
"""Compiles every Triton kernel for GPUs that need not be there, and checks what they use.

    python scripts/gpu/aot.py            # rewrites benchmarks/results/aot.csv
    python scripts/gpu/aot.py --check    # fails where a kernel is not what the table says
    python scripts/gpu/aot.py --all      # every shape of tests and benchmarks, spills only: an hour

A row says what one kernel, at one shape, becomes on one target: registers a thread, bytes
spilled, bytes of shared memory, bytes of machine code, seconds of processor time, and the
occupancy that registers and shared memory allow (warps a processor can hold, over the most it
can). None of this was run. Every kernel has a row, spills are 0 and budgets hold on every target,
or this fails; so does a check by the Triton that made the table where its rows are not true.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import re
import sys
import tempfile
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)
# Source lines are a third of a binary; they are not what runs.
os.environ["TRITON_DISABLE_LINE_INFO"] = "1"
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import triton
from aot_cases import Case, cases
from resources import (
    PROCESSORS,
    RESULTS,
    occupancy,
    read_table,
    registers_and_spills,
    resource_usage,
    verdict,
    write_table,
)
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from csrkern import kernels
from csrkern.kernels._common import BATCH_SIZES

TABLE = RESULTS / "aot.csv"
HEADER = ("kernel", "target", "warps", "registers", "spilled_bytes", "shared_bytes")
HEADER += ("code_bytes", "occupancy", "compile_seconds", "triton")
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
ALWAYS_DIVISIBLE = ("depth", "pitch", "groups")  # by 16: lengths of rows that are padded
SECONDS = 15  # of processor time that a kernel may take to compile; none takes 3 here


def build(case: Case, target: GPUTarget) -> Any:
    """Return the compiled kernel; pointers are divisible by 16, and sizes unless a case is odd."""
    names = case.kernel.arg_names
    signature, constants, attributes = {}, {}, {}
    for position, name in enumerate(names):
        value = case.arguments[name]
        if not isinstance(value, str):
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name] = value
        even = name in ALWAYS_DIVISIBLE or (name == "d" and case.arguments.get("EVEN"))
        size = value == "i32" and (case.divisible or even) and name not in BATCH_SIZES
        if value.startswith("*") or size:
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(case.kernel, signature, constants, attributes)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    options["enable_fp_fusion"] = case.fused
    if case.limited and target.backend == "cuda":
        options["maxnreg"] = case.registers
    return triton.compile(source, target=target, options=options)


def resources(compiled: Any, target: GPUTarget) -> tuple[int, int, int]:
    """Return registers a thread, bytes spilled, bytes of machine code."""
    if target.backend == "hip":
        text = compiled.asm["amdgcn"]

        def number(field: str) -> int:
            match = re.search(rf"\.{field}:\s+(\d+)", text)
            if match is None:
                raise RuntimeError(f"no {field} in the AMD assembly")
            return int(match.group(1))

        spilled = 4 * number("vgpr_spill_count") + number("private_segment_fixed_size")
        return number("vgpr_count"), spilled, len(compiled.asm["hsaco"])
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        use = registers_and_spills(resource_usage(file.name))
    if use is None:
        raise RuntimeError("cuobjdump says nothing of the kernel")
    return *use, len(compiled.asm["cubin"])


def cpu_seconds() -> float:
    """Of this process and the assemblers it ran."""
    return sum(os.times()[:4])


def without_a_case(found: list[Case]) -> list[str]:
    """Kernels of the package that no case compiles."""
    compiled = {case.kernel for case in found}
    return [
        f"{module.name}.{name} is compiled by no case"
        for module in pkgutil.walk_packages(kernels.__path__, f"{kernels.__name__}.")
        for name, value in vars(importlib.import_module(module.name)).items()
        if isinstance(value, JITFunction) and name.endswith("_kernel") and value not in compiled
    ]


def over_budget(case: Case, row: dict[str, str], spills_only: bool) -> list[str]:
    """Return what a kernel uses more of than it may."""
    old = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9)
    limits = {"spilled_bytes": case.spilled if old else 0}
    if not spills_only:
        limits |= {"registers": case.registers, "shared_bytes": case.shared}
        limits |= {"code_bytes": case.code, "compile_seconds": SECONDS}
    return [
        f"{case.name} on {row['target']}: {name} {row[name]}, expected <= {limit}"
        for name, limit in limits.items()
        if float(row[name]) > limit
    ]


def untrue(table: list[dict[str, str]], rows: list[dict[str, str]]) -> list[str]:
    """Rows that the table does not have, or has otherwise; of its own version of Triton only."""
    known = {(row["kernel"], row["target"]): row for row in table}
    wrong = []
    for row in rows:
        before = known.get((row["kernel"], row["target"]))
        exact = [name for name in HEADER[2:6] if before and before[name] != row[name]]
        if before is None or (exact and before["triton"] == row["triton"]):
            now = {name: row[name] for name in exact}
            wrong.append(
                f"{row['kernel']} on {row['target']}: the table has "
                f"{before and {name: before[name] for name in exact}}, now {now or row}; "
                "make aot writes it anew"
            )
    return wrong


def measure(case: Case, target: str) -> dict[str, str]:
    """Return a row of the table."""
    began = cpu_seconds()
    compiled = build(case, TARGETS[target])
    seconds = cpu_seconds() - began
    registers, spilled, code = resources(compiled, TARGETS[target])
    shared = compiled.metadata.shared
    held = occupancy(PROCESSORS[target], case.num_warps, registers, shared)
    use = case.num_warps, registers, spilled, shared, code
    row = case.name, target, *use, f"{held:.2f}", f"{seconds:.1f}", triton.__version__
    return dict(zip(HEADER, map(str, row), strict=True))


def main() -> int:
    """Compiles, compares with the budgets, writes or checks the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="do not write the table")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument(
        "--only", default="", help="kernels whose name contains this; other rows stay"
    )
    parser.add_argument(
        "--all", action="store_true", help="every shape of tests and benchmarks; writes no table"
    )
    options = parser.parse_args()
    every = cases(options.all)
    rows, wrong = [], without_a_case(every)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        for case in every:
            for target in options.targets:
                if options.only not in case.name or (case.on and target not in case.on):
                    continue
                row = measure(case, target)
                print(*row.values(), sep="\t", flush=True)
                rows.append(row)
                wrong += over_budget(case, row, options.all)
    if options.all:
        return verdict(wrong)
    if options.check:
        return verdict(wrong + untrue(read_table(TABLE), rows))
    if options.only or set(options.targets) != set(TARGETS):
        new = {(row["kernel"], row["target"]): row for row in rows}
        before = read_table(TABLE)
        rows = [new.pop((row["kernel"], row["target"]), row) for row in before] + [*new.values()]
    write_table(TABLE, HEADER, [[row[name] for name in HEADER] for row in rows])
    return verdict(wrong)


if __name__ == "__main__":
    sys.exit(main())
