#!/usr/bin/env python3
"""Checks what the CUDA kernels of csrkern._cuda use, on GPUs that need not be there.

    python scripts/gpu/cuda_resources.py            # rewrites benchmarks/results/cuda_resources.csv
    python scripts/gpu/cuda_resources.py --check    # fails where a kernel uses more than its budget

Reads the built module, as it is installed. A row says what one kernel is on one target: threads a
block, registers a thread, bytes spilled (of stack or local memory), bytes of shared memory, and
the occupancy that these allow (warps a processor can hold, over the most it can). None of this was
run. Spills are 0 and budgets hold on every target, or this fails.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from typing import NamedTuple

from resources import (
    PROCESSORS,
    RESULTS,
    occupancy,
    registers_and_spills,
    resource_usage,
    verdict,
    write_table,
)

TABLE = RESULTS / "cuda_resources.csv"
HEADER = ("kernel", "target", "threads", "registers", "spilled_bytes", "shared_bytes", "occupancy")
TARGETS = {"sm_80": "sm_80", "sm_90a": "sm_90", "sm_100": "sm_100"}


class Budget(NamedTuple):
    """What one kernel may use: registers a thread, bytes of shared memory a block."""

    registers: int
    shared: int


# At the block of documents that is the default and up to 512 hits. Two blocks of the search fit a
# processor of sm_80, three one of the others; the driver keeps 1 KiB of each.
SEARCH = Budget(40, 75 * 1024)
BUDGETS = {
    "SearchBlocks<16>": SEARCH,
    "SearchBlocks<8>": SEARCH,
    "MergeKeys": Budget(48, 8 * 1025),
    "PrepareQueries": Budget(80, 6144),
    "ScoreDense": Budget(48, 0),
    "MeasureRows": Budget(48, 0),
    "PlaceRows": Budget(56, 0),
    "CountPostings": Budget(40, 0),
    "PlacePostings": Budget(48, 0),
    "SumTiles": Budget(64, 1024),
    "ScanSums": Budget(48, 0),
    "ScanTiles": Budget(64, 1024),
}


def used(module: str) -> dict[tuple[str, str], tuple[int, int]]:
    """(kernel, target) to registers and bytes spilled."""
    found, target, kernel = {}, "", ""
    for line in resource_usage(module).splitlines():
        if match := re.match(r"arch = (\w+)", line):
            target = match.group(1)
        elif match := re.search(r"Function \w+3runINS0_(\d+)(\w+)", line):
            length, mangled = int(match.group(1)), match.group(2)
            bits = re.match(r"ILi(\d+)E", mangled[length:])
            kernel = mangled[:length] + (f"<{bits.group(1)}>" if bits else "")
        elif use := registers_and_spills(line):
            found[kernel, target] = use
    return found


def main() -> int:
    """Compare with the budgets; write or check the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="do not write the table")
    options = parser.parse_args()
    try:
        from csrkern import _cuda as native
    except ImportError:
        if os.environ.get("CSRKERN_CUDA") == "1":
            raise
        print("csrkern was built without CUDA (no nvcc): nothing to check")
        return 0
    found = used(str(native.__file__))
    rows, wrong = [], []
    for kernel, (threads, shared) in native.kernel_needs(512).items():
        budget = BUDGETS[kernel]
        if shared > budget.shared:
            wrong.append(f"{kernel}: {shared} bytes of shared memory, expected <= {budget.shared}")
        for target, processor in TARGETS.items():
            if (kernel, target) not in found:
                wrong.append(f"{kernel} was not compiled for {target}")
                continue
            registers, spilled = found[kernel, target]
            use = threads // 32, registers, shared
            held = f"{occupancy(PROCESSORS[processor], *use):.2f}"
            rows.append((kernel, target, threads, registers, spilled, shared, held))
            print(*rows[-1], sep="\t")
            if spilled:
                wrong.append(f"{kernel} on {target}: spills {spilled} bytes, expected none")
            if registers > budget.registers:
                wrong.append(
                    f"{kernel} on {target}: {registers} registers, expected <= {budget.registers}"
                )
    unknown = {kernel for kernel, _ in found} - set(BUDGETS)
    wrong += [f"{kernel} has no budget" for kernel in sorted(unknown)]
    if not options.check and not wrong:
        write_table(TABLE, HEADER, rows)
    return verdict(wrong)


if __name__ == "__main__":
    sys.exit(main())
