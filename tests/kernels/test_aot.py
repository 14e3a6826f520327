"""The table of compiled kernels is whole and within what was asked; `make aot` makes it anew."""

from __future__ import annotations

import csv
import re
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
    assert sum(float(row["compile_seconds"]) for row in rows) < 240


def test_every_kernel_needs_a_case():
    script = "import aot; print(*aot.without_a_case([]))"
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT / "scripts" / "gpu",
        capture_output=True,
        text=True,
        check=True,
    )
    for kernel in ("topk_relu.topk_relu_kernel", "encode.propose.product_kernel"):
        assert f"csrkern.kernels.{kernel} is compiled by no case" in run.stdout


def test_rooflines_are_those_of_the_table():
    results = ROOT / "benchmarks" / "results"
    for options, table in (((), "h200_floors.csv"), (("--kernels",), "h200_kernels.csv")):
        command = [sys.executable, ROOT / "scripts" / "gpu" / "floors.py", *options]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        assert run.stdout == (results / table).read_text(), f"make aot writes {table} anew"


def test_every_kernel_has_a_roofline():
    def names(table):
        """Without shapes, dtypes and configurations."""
        with (ROOT / "benchmarks" / "results" / table).open() as file:
            rows = [row for row in csv.DictReader(file) if row.get("target", "sm_90") == "sm_90"]
        details = r" (h=.*|k=.*|\d.*|fp32.*|fp16.*|i16.*|pairs|labels)$"
        return {re.sub(details, "", row["kernel"]) for row in rows}

    assert names("h200_kernels.csv") == names("aot.csv")


@pytest.mark.slow
def test_kernels_stay_within_their_budgets():
    run = subprocess.run(
        [sys.executable, ROOT / "scripts" / "gpu" / "aot.py", "--check", "--targets", "sm_90"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
