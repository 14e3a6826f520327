"""Tables and charts of the index benchmarks, drawn from results.csv.

    python -m benchmarks.index.charts [benchmarks/results/<machine>/results.csv]

For each results.csv (default: all under benchmarks/results) writes, beside it, index-recall.csv
and .png (queries a second against recall, one thread) and index-size.csv and .png (cost against
the number of codes). The pictures need matplotlib.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from csrkern.storage import write_atomically

RESULTS = Path(__file__).parents[1] / "results"
CURVE, SIZE = "index recall curve", "index cost against N"
OURS = "csrkern"
LEAST_RECALL = 0.8  # shown in the picture; the table has all
# The colors of the demo's report.
PAPER, INK, SOFT, HAIR = "#ffffff", "#1c1d21", "#5d6068", "#e3e1da"
COLORS = {
    "csrkern": "#2458c6",
    "csrkern fast": "#2458c6",
    "csrkern uint8": "#7ea6ff",
    "SINDI float32": "#c8451b",
    "SINDI pruned": "#c8451b",
    "Seismic": "#2c7a6b",
    "sparse_dot_topn": "#8a6d1f",
    "FAISS HNSW, embeddings": "#8a6d1f",
    "FAISS PQ, embeddings": "#4a4d55",
}
Lines = Mapping[str, Sequence[tuple[float, float]]]  # name -> (x, y)


def read(path: Path, op: str) -> list[dict[str, Any]]:
    """The rows of one benchmark, figures as dictionaries."""
    with open(path, newline="") as file:
        rows: list[dict[str, Any]] = [row for row in csv.DictReader(file) if row["op"] == op]
    for row in rows:
        for side in ("ours_figures", "peer_figures"):
            row[side] = dict(part.split("=", 1) for part in row[side].split("; ") if part)
    return rows


def curve_table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One line an engine and setting; our exact search once for each set of codes."""
    table = []
    for case in dict.fromkeys(row["case"] for row in rows):
        here = [row for row in rows if row["case"] == case]
        table.append(_curve_line(case, OURS, "exact", here[0], "ours"))
        for row in here:
            if row["peer_ms"]:
                engine, _, setting = row["peer"].partition(" @ ")
                table.append(_curve_line(case, engine, setting, row, "peer"))
    return table


def size_table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One line an engine, number of codes and of threads."""
    table = []
    for key in dict.fromkeys((row["case"], row["threads"]) for row in rows):
        here = [row for row in rows if (row["case"], row["threads"]) == key]
        table.append(_size_line(OURS, here[0], "ours"))
        table += [_size_line(row["peer"], row, "peer") for row in here if row["peer_ms"]]
    return table


def _curve_line(
    case: str, engine: str, setting: str, row: Mapping[str, Any], side: str
) -> dict[str, Any]:
    figures = row[f"{side}_figures"]
    return {
        "codes": case.split(",")[0],
        "engine": engine,
        "setting": setting,
        "recall": figures["recall"],
        "dense_recall": figures.get("dense_recall", ""),
        "queries_per_s": _rate(row, side),
        "build_s": figures["build_s"],
        "bytes_per_code": figures["bytes_per_code"],
    }


def _size_line(engine: str, row: Mapping[str, Any], side: str) -> dict[str, Any]:
    figures = row[f"{side}_figures"]
    n, _, _, kind = row["case"].split(",")[0].split()
    postings = float(row["ours_figures"]["postings"])
    names = ("recall", "build_s", "bytes_per_code", "peak_mb", "save_s", "load_ms", "first_ms")
    return {
        "codes": kind,
        "n": int(n.removeprefix("N=")),
        "threads": row["threads"],
        "engine": engine,
        "queries_per_s": _rate(row, side),
        "postings_per_s": f"{postings / float(row[f'{side}_ms']) * 1e3:.4g}",
        "limit_postings_per_s": f"{postings / float(row['floor_ms']) * 1e3:.4g}",
        **{name: figures.get(name, "") for name in names},
    }


def _rate(row: Mapping[str, Any], side: str) -> str:
    return f"{int(row['items']) / float(row[f'{side}_ms']) * 1e3:.4g}"


def as_csv(table: Sequence[Mapping[str, Any]]) -> str:
    """The table as text."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return out.getvalue()


def curve_panels(table: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Lines]]:
    """Queries a second against recall, a panel for each set of codes."""
    for codes in dict.fromkeys(line["codes"] for line in table):
        here = [line for line in table if line["codes"] == codes]
        here = [line for line in here if float(line["recall"]) >= LEAST_RECALL]
        lines = _lines(here, "engine", "recall", "queries_per_s")
        yield codes, {name: _unbeaten(points) for name, points in lines.items()}


def size_panels(table: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Lines]]:
    """Three panels for each kind of codes, one thread."""
    for kind in dict.fromkeys(line["codes"] for line in table):
        here = [line for line in table if line["codes"] == kind and line["threads"] == "1"]
        yield f"{kind}: queries a second", _lines(here, "engine", "n", "queries_per_s")
        mine = [line for line in here if line["engine"] == OURS]
        rates = dict(_lines(mine, "engine", "n", "postings_per_s"))
        limit = [(float(line["n"]), float(line["limit_postings_per_s"])) for line in mine]
        yield f"{kind}: postings a second", {**rates, "limit of memory": limit}
        yield f"{kind}: seconds to build", _lines(here, "engine", "n", "build_s")


def _lines(table: Sequence[Mapping[str, Any]], name: str, x: str, y: str) -> Lines:
    return {
        key: sorted((float(line[x]), float(line[y])) for line in table if line[name] == key)
        for key in dict.fromkeys(line[name] for line in table)
    }


def _unbeaten(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Without those that another is at least as good as in both; by recall."""
    kept: list[tuple[float, float]] = []
    for point in sorted(points, reverse=True):
        if not kept or point[1] > kept[-1][1]:
            kept.append(point)
    return kept[::-1]


def draw(panels: Sequence[tuple[str, Lines]], columns: int, x_title: str, log_x: bool) -> bytes:
    """The panels as one PNG: lines named where they end."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = -(-len(panels) // columns)
    look = {"font.family": "sans-serif", "font.size": 9, "text.color": INK}
    with rc_context(look):
        figure = Figure(figsize=(5.2 * columns, 3.9 * rows), dpi=120, layout="constrained")
        figure.set_facecolor(PAPER)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis, (title, lines) in zip(axes, panels, strict=False):
            _draw_panel(axis, title, lines, x_title, log_x)
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        out = io.BytesIO()
        figure.savefig(out, format="png")
    return out.getvalue()


def _draw_panel(axis: Any, title: str, lines: Lines, x_title: str, log_x: bool) -> None:
    for name, points in lines.items():
        color = COLORS.get(name, SOFT)
        dashes = "--" if name.startswith("limit") else "-"
        xs, ys = zip(*points, strict=True)
        axis.plot(xs, ys, dashes, color=color, linewidth=1.8, marker="o", markersize=4)
    axis.set_yscale("log")
    if log_x:
        axis.set_xscale("log")
    for scale in (axis.xaxis, axis.yaxis) if log_x else (axis.yaxis,):
        scale.set_major_formatter(lambda value, _: short(value))
        scale.set_minor_formatter(lambda value, _: "")
    if not log_x:
        axis.yaxis.set_minor_formatter(
            lambda value, _: short(value) if f"{value:e}"[0] in "25" else ""
        )
    axis.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axis.set_xlabel(x_title, color=SOFT)
    axis.grid(axis="y", color=HAIR, linewidth=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.tick_params(colors=SOFT, which="both", left=False)
    axis.margins(x=0.06)
    _name_lines(axis, lines)


def short(value: float) -> str:
    """20000 is "20k"."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _name_lines(axis: Any, lines: Lines) -> None:
    """Names right of the axes, at the heights where lines end but never on top of each other."""
    axis.figure.canvas.draw()
    bottom, top = axis.transAxes.transform([(0, 0), (0, 1)])[:, 1]
    ends = {name: axis.transData.transform(points[-1])[1] for name, points in lines.items()}
    height = 14 / 0.72 * axis.figure.dpi / 100
    before = -float("inf")
    for name, y in sorted(ends.items(), key=lambda item: item[1]):
        before = max(y, before + height)
        axis.annotate(
            name,
            (1.01, (before - bottom) / (top - bottom)),
            xycoords="axes fraction",
            va="center",
            color=COLORS.get(name, SOFT),
            fontweight="bold",
            fontsize=8.5,
        )


def write_charts(results: Path) -> list[Path]:
    """Writes what there are rows for, tables first; returns the files.

    Raises:
        ImportError: after the tables, if matplotlib is not there to draw pictures.
    """
    tables = {
        name: table_of(rows)
        for name, op, table_of in (("recall", CURVE, curve_table), ("size", SIZE, size_table))
        if (rows := read(results, op))
    }
    written = []
    for name, table in tables.items():
        written.append(results.with_name(f"index-{name}.csv"))
        write_atomically(written[-1], as_csv(table).encode())
    for name, table in tables.items():
        if name == "recall":
            panels = list(curve_panels(table))
            picture = draw(panels, min(2, len(panels)), "recall@10 of the exact answer", False)
        else:
            picture = draw(list(size_panels(table)), 3, "codes", True)
        written.append(results.with_name(f"index-{name}.png"))
        write_atomically(written[-1], picture)
    return written


if __name__ == "__main__":
    for path in [Path(name) for name in sys.argv[1:]] or sorted(RESULTS.glob("*/results.csv")):
        for file in write_charts(path):
            print(file)
