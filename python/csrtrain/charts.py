"""SVG charts for HTML pages, drawn by matplotlib: lines with markers, and step histograms.

Texts and axes take the color of the page, so a chart fits its light and its dark scheme. Charts
need no JavaScript and no network.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colors and darker ones: color-blind readers can distinguish them on any page.
COLORS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b08900", "#56b4e9",
    "#8c564b", "#7f7f7f", "#e377c2", "#6a51a3", "#4d9221",
)  # fmt: skip
_PAGE = "#010203"  # stands for the page's own color in the picture
_LOOK: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "text.color": _PAGE,
    "axes.edgecolor": _PAGE,
    "axes.labelcolor": _PAGE,
    "xtick.color": _PAGE,
    "ytick.color": _PAGE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "ytick.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.alpha": 0.2,
    "grid.color": _PAGE,
    "legend.frameon": False,
    "legend.labelcolor": "linecolor",
}


class Series(NamedTuple):
    """One line of a chart.

    Attributes:
        name: its name in the legend; "": it has none there.
        color: a color that matplotlib knows.
        x, y: its points.
        labels: a text for each point, or none.
        dashed: draw it dashed, as a level across the whole chart if it is a single point.
    """

    name: str
    color: str
    x: Sequence[float]
    y: Sequence[float]
    labels: Sequence[str] = ()
    dashed: bool = False


def check_matplotlib() -> None:
    """Raise ImportError, saying what to install, unless charts can be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("charts need matplotlib: pip install 'csrkern[demo]'") from error


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x: str,
    y: str = "",
    unit: str = "",
    log: int | None = None,
    log_y: bool = False,
) -> str:
    """Return a chart of y against x.

    Args:
        series: the lines.
        title: description of the chart, for readers who do not see it.
        x, y: titles of the axes.
        unit: written after each number of the vertical axis.
        log: base of a logarithmic horizontal axis.
        log_y: make the vertical axis logarithmic, too.
    """

    def draw(axes: Axes) -> None:
        for line in series:
            style: dict[str, Any] = {
                "color": line.color,
                "label": line.name or None,
                "linewidth": 1.8,
            }
            if line.dashed and len(line.x) == 1:
                axes.axhline(line.y[0], linestyle="--", **style)
                continue
            axes.plot(
                line.x, line.y, "--" if line.dashed else "-", marker="o", markersize=4, **style
            )
            for label, *point in zip(line.labels, line.x, line.y, strict=False):
                axes.annotate(
                    label,
                    (point[0], point[1]),
                    (0, 5),
                    textcoords="offset points",
                    ha="center",
                    size="small",
                    color=line.color,
                )
        if log:
            axes.set_xscale("log", base=log)
            axes.xaxis.set_major_formatter("{x:g}")
        if log_y:
            axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}{unit}")
        axes.set(xlabel=x, ylabel=y)
        axes.legend()

    return _svg(title, draw)


def histogram(
    edges: np.ndarray,
    counts: Sequence[tuple[str, str, np.ndarray]],
    *,
    title: str,
    x: str,
) -> str:
    """Return overlaid step outlines of `counts`, (name, color, heights), on a logarithmic axis."""

    def draw(axes: Axes) -> None:
        for name, color, heights in counts:
            axes.stairs(heights, edges, fill=True, color=color, alpha=0.25)
            axes.stairs(heights, edges, color=color, label=name)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel(x)
        axes.legend()

    return _svg(title, draw)


def _svg(title: str, draw: Callable[[Axes], None]) -> str:
    """Return the chart of `draw` as one <svg> element that can share a page with others."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    picture = io.StringIO()
    # The salt keeps the names of marks apart from those of other charts, and equal in every run.
    with rc_context({**_LOOK, "svg.hashsalt": title}):
        figure = Figure(figsize=(6, 4.2), layout="constrained")
        draw(figure.subplots())
        figure.savefig(picture, format="svg", transparent=True, metadata={"Date": None})
    text = picture.getvalue()
    box = re.search(r'viewBox="[^"]+"', text)
    assert box
    # Fonts are the page's; names of groups would repeat on a page of two charts.
    for pattern, replacement in (
        # Anchored: tried at every place, the search to the end took 4 s a chart.
        (r"\A.*?</metadata>|<style.*?</style>", ""),
        (r"font-family: [^;]+; ", ""),
        (r'<g id="[^"]+">', "<g>"),
        ("xlink:href", "href"),
        (_PAGE, "currentColor"),
    ):
        text = re.sub(pattern, replacement, text, flags=re.DOTALL)
    return f'<svg {box[0]} role="img" aria-label="{escape(title)}">{text.strip()}'
