"""What is committed in benchmarks/results, and how its numbers are set."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
MACHINE = RESULTS / "cpu-2core-amd-epyc"

Row = dict[str, str]


@cache
def rows() -> list[Row]:
    """All comparisons on the CPU, one a row."""
    return _read(MACHINE / "results.csv")


@cache
def quality() -> list[Row]:
    """Scores of codes and their baselines: medians over the seeds."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in _read(RESULTS / "paper" / "quality.csv"):
        found.setdefault((row["set"], row["method"], row["active"]), []).append(row)
    return [
        {**same[0], "score": str(median(float(row["score"]) for row in same))}
        for same in found.values()
    ]


@cache
def newest_run() -> dict[str, Any]:
    """Return the latest benchmark run, with the machine's ceilings."""
    return json.loads((MACHINE / "run.json").read_text())


def _read(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def digits(value: str | float) -> str:
    """Three digits, thousands in groups."""
    number = float(value)
    if abs(number) >= 1000:
        return f"{number:,.0f}"
    return f"{number:.3g}"


def table_of(table: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    """Markdown of rows of cells, the first being the head; columns are set right but for `left`."""
    rule = [":--" if i in left else "--:" for i in range(len(table[0]))]
    lines = [table[0], rule, *table[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
