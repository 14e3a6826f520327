"""The table of compiled kernels is whole and within what was asked; `make aot` makes it anew."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_table_has_every_target_and_no_spills():
    with (ROOT / "benchmarks" / "results" / "aot.csv").open() as file:
        rows = list(csv.DictReader(file))

    def names(rows):
        return {row["kernel"] for row in rows if not row["kernel"].startswith("encode: product")}

    for target in ("sm_80", "sm_90", "sm_100", "gfx942"):
        mine = [row for row in rows if row["target"] == target]
        assert names(mine) == names(rows)
        assert len(mine) > len(names(mine))  # and a product in tiles that fit
        assert all(int(row["spilled_bytes"]) == 0 for row in mine)
    assert sum(float(row["compile_seconds"]) for row in rows) < 180


@pytest.mark.slow
def test_kernels_stay_within_their_budgets():
    run = subprocess.run(
        [sys.executable, ROOT / "scripts" / "aot.py", "--check", "--targets", "sm_90"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
