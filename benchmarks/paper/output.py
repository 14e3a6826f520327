"""What every script here does: reads its options, measures each set, leaves CSV, PNG and text."""

from __future__ import annotations

import argparse
import csv
import inspect
import io
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sets

from csrkern.storage import write_atomically

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Chart:
    """y against x, a line for each `by`, and where there is a `panel` a chart for each of it."""

    x: str
    y: str
    by: str
    panel: str | None = None
    log_x: bool = False
    log_y: bool = False


Measure = Callable[[sets.Set, bool], tuple[Rows, str]]
"""(set, less of everything) -> rows, and a paragraph on whether the paper's claim held."""


def run(measure: Measure, chart: Chart, names: Sequence[str] = (sets.PACKAGED,)) -> None:
    """Measures the sets that are asked for, by default `names`; those that are missing are named.

    Writes <script>_<set>.csv, .md with the finding, and .png.
    """
    parser = argparse.ArgumentParser(description=sys.modules[measure.__module__].__doc__)
    folder_options(parser, names)
    options = parser.parse_args()
    script = Path(inspect.getfile(measure)).stem
    for name in options.sets.split(","):
        data = sets.load(options.data / f"{name}.npz")
        if data is None:
            print(f"{script}: no {name}.npz in {options.data}, left out", flush=True)
            continue
        rows, finding = measure(data, options.quick)
        write(options.output, f"{script}_{name}", rows, finding, chart)


def folder_options(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """--data, --sets, --output and --quick."""
    parser.add_argument("--data", type=Path, default=sets.DATA, help="folder of .npz files")
    parser.add_argument("--sets", default=",".join(names), help="names, separated by commas")
    parser.add_argument("--output", "-o", type=Path, default=Path("paper-results"))
    parser.add_argument("--quick", action="store_true", help="less of everything")


def write(folder: Path, name: str, rows: Rows, finding: str, *charts: Chart) -> None:
    """Writes name.csv, name.md with the finding, and a picture of each chart."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / f"{name}.csv", rows)
    write_atomically(folder / f"{name}.md", (finding + "\n").encode())
    print(f"{name}: {finding}", flush=True)
    for chart in charts:
        suffix = f"_{chart.x}" if len(charts) > 1 else ""
        draw(folder / f"{name}{suffix}.png", rows, chart)


def write_rows(path: Path, rows: Rows) -> None:
    """A CSV file of rows, whole or not at all."""
    table = io.StringIO()
    columns = list(dict.fromkeys(column for row in rows for column in row))
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, table.getvalue().encode())


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def draw(path: Path, rows: Rows, chart: Chart) -> None:
    """The picture of a chart; without matplotlib there is none."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(f"{path.name} needs matplotlib: pip install 'csrkern[paper]'")
        return
    panels = _distinct(rows, chart.panel) if chart.panel else [None]
    columns = min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    size = (7, 4.5) if len(panels) == 1 else (4.2 * columns, 3.4 * lines + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    for number, panel in enumerate(panels, 1):
        axes = figure.add_subplot(lines, columns, number)
        inside = rows if panel is None else [row for row in rows if row[chart.panel] == panel]
        for i, series in enumerate(_distinct(rows, chart.by)):
            points = sorted(
                (float(row[chart.x]), float(row[chart.y]))
                for row in inside
                if row[chart.by] == series
            )
            across, up = zip(*points, strict=True) if points else ((), ())
            axes.plot(
                across,
                up,
                # Ten colors come round again; the mark tells such lines apart.
                marker="os^v"[i // 10 % 4],
                markersize=4,
                label=str(series),
            )
        axes.set(xlabel=chart.x.replace("_", " "), ylabel=chart.y.replace("_", " "))
        if panel is not None:
            axes.set_title(str(panel), fontsize=10)
        if chart.log_x:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
        if chart.log_y:
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if len(panels) == 1:
        figure.axes[0].legend(handles, labels, fontsize=8)
    else:
        figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=4)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    write_atomically(path, picture.getvalue())


def held(verdict: bool) -> str:
    """How a finding ends."""
    return "held" if verdict else "did not hold"


def _distinct(rows: Rows, column: str) -> list[Any]:
    return list(dict.fromkeys(row[column] for row in rows))
