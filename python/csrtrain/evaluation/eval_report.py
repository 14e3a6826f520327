"""The outcome of `csrkern eval` as CSV and as one HTML page with charts, without a network."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Sequence
from html import escape

from csrtrain.charts import COLORS, Series, line_chart
from csrtrain.evaluation.comparison import Result

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; }
figure { margin: 1rem 0; } svg { width: 100%; max-width: 760px; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 12px; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; }
"""


def to_csv(results: Sequence[Result]) -> str:
    """Return CSV: a row for each result, a column for each score, empty where it is missing."""
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
    charts = []
    for caption, field in (("bytes a vector", "bytes_per_vector"), ("active dims", "active")):
        series = []
        for method, color in zip(methods, itertools.cycle(COLORS), strict=False):
            rows = sorted((getattr(r, field), r.main) for r in results if r.method == method)
            sizes, scores = zip(*rows, strict=True)
            percent = [100 * score for score in scores]
            series.append(Series(method, color, sizes, percent, dashed=method == "dense"))
        title = f"{main} against {caption}"
        chart = line_chart(series, title=title, x=caption, unit="%", log=2)
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
        f"</title><style>{STYLE}</style></head><body><h1>{escape(title)}</h1>\n"
        f"{figures}\n<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>\n"
        + "".join(f"<p>{escape(note)}</p>\n" for note in notes)
        + "</body></html>\n"
    )
