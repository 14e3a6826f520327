"""What every script here leaves behind: a CSV file, a PNG chart, and a paragraph."""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sets

from csrkern.storage import write_atomically

Rows = Sequence[Mapping[str, Any]]


def options(description: str | None, default_set: str) -> argparse.Namespace:
    """--data, --set, --output and --quick, which every script takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, default=sets.DATA, help="folder of .npz files")
    parser.add_argument("--set", default=default_set, help="file name without .npz")
    parser.add_argument("--output", "-o", type=Path, default=Path("paper-results"))
    parser.add_argument("--quick", action="store_true", help="less of everything")
    return parser.parse_args()


def write(
    folder: Path,
    name: str,
    rows: Rows,
    finding: str,
    *,
    x: str,
    y: str,
    by: str,
    log_x: bool = False,
    log_y: bool = False,
) -> None:
    """Writes name.csv, name.md with the finding, and name.png: y against x, a line for each `by`.

    Without matplotlib there is no picture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = io.StringIO()
    names = list(dict.fromkeys(column for row in rows for column in row))
    writer = csv.DictWriter(table, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / f"{name}.csv", table.getvalue().encode())
    write_atomically(folder / f"{name}.md", (finding + "\n").encode())
    print(f"{name}: {finding}", flush=True)
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(f"{name}.png needs matplotlib: pip install 'csrkern[paper]'")
        return
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for series in dict.fromkeys(row[by] for row in rows):
        points = sorted((float(row[x]), float(row[y])) for row in rows if row[by] == series)
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=str(series))
    axes.set(xlabel=x.replace("_", " "), ylabel=y.replace("_", " "))
    if log_x:
        axes.set_xscale("log", base=2)
    if log_y:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    write_atomically(folder / f"{name}.png", picture.getvalue())
