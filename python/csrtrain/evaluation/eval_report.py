"""The outcome of `csrkern eval` as CSV and as one HTML page with charts, without a network."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from html import escape

from csrtrain.charts import Point, Series, line_chart, linear_axis, log_axis
from csrtrain.evaluation.comparison import Result

# Told apart by people who see few colors, too (Okabe and Ito), on white and on black.
COLORS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b08900", "#56b4e9",
    "#8c564b", "#7f7f7f", "#e377c2", "#6a51a3", "#4d9221",
)  # fmt: skip
STYLE = """
:root { color-scheme: light dark; --card: Canvas; --hair: #8884; --soft: GrayText; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; }
figure { margin: 1rem 0; } svg { width: 100%; max-width: 760px; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
svg .mid { text-anchor: middle; } svg .end { text-anchor: end; }
svg .grid { stroke: var(--hair); } svg .axis, svg .tickmark { stroke: var(--soft); }
svg .line { fill: none; stroke-width: 2; } svg .rule { stroke-width: 1.3; stroke-dasharray: 5 4; }
svg .name { font-weight: 600; } svg .point { font-size: 10px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 12px; text-align: right; border-bottom: 1px solid var(--hair); }
th:first-child, td:first-child { text-align: left; }
"""


def to_csv(results: Sequence[Result]) -> str:
    """One row a result; a column for each score, empty where a method does not have it."""
    measures = list(dict.fromkeys(name for result in results for name in result.scores))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "active", "bytes_per_vector", *measures])
    for r in results:
        scores = [f"{r.scores[name]:.6f}" if name in r.scores else "" for name in measures]
        writer.writerow([r.method, r.active, r.bytes_per_vector, *scores])
    return text.getvalue()


def to_html(results: Sequence[Result], title: str, notes: Sequence[str] = ()) -> str:
    """Return a page: the main score against bytes and active dimensions, a table and notes."""
    measures = list(dict.fromkeys(name for result in results for name in result.scores))
    main = measures[0]
    methods = list(dict.fromkeys(result.method for result in results))
    colors = "\n".join(
        f"svg polyline.c-m{i} {{ stroke: {color}; }} "
        f"svg text.c-m{i}, svg .mark.c-m{i} {{ fill: {color}; }}"
        for i, color in enumerate(COLORS[i % len(COLORS)] for i in range(len(methods)))
    )
    y = linear_axis("", [100 * r.scores[main] for r in results], unit="%")
    charts = []
    for caption, field in (("bytes a vector", "bytes_per_vector"), ("active dims", "active")):
        series = [
            Series(
                f"m{i}",
                method,
                [
                    Point(
                        getattr(r, field),
                        100 * r.scores[main],
                        str(r.active),
                        f"{method}, {r.active} active, {r.bytes_per_vector} bytes: "
                        f"{100 * r.scores[main]:.1f}%",
                    )
                    for r in sorted(results, key=lambda r: getattr(r, field))
                    if r.method == method
                ],
            )
            for i, method in enumerate(methods)
        ]
        x = log_axis(caption, [getattr(r, field) for r in results])
        rule = f"m{methods.index('dense')}" if "dense" in methods else ""
        chart = line_chart(x, y, series, label=f"{main} against {caption}", rule=rule)
        charts.append(f"<figure><figcaption>{escape(main)} against {caption}</figcaption>{chart}")
    head = "".join(f"<th>{escape(n)}</th>" for n in ("method", "active", "bytes", *measures))
    body = "\n".join(
        f"<tr><td>{escape(r.method)}</td><td>{r.active}</td><td>{r.bytes_per_vector}</td>"
        + "".join(
            f"<td>{100 * r.scores[n]:.1f}%</td>" if n in r.scores else "<td></td>" for n in measures
        )
        + "</tr>"
        for r in results
    )
    figures = "</figure>\n".join(charts) + "</figure>"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        f"</title><style>{STYLE}{colors}</style></head><body><h1>{escape(title)}</h1>\n"
        f"{figures}\n<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>\n"
        + "".join(f"<p>{escape(note)}</p>\n" for note in notes)
        + "</body></html>\n"
    )
