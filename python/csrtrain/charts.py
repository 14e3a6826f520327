"""Small SVG charts for the report: axes, lines with direct labels, and histograms.

Colors, fonts and the light and dark scheme come from the style sheet in report.html, through
the class names `c-<family>`; nothing here needs JavaScript or the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from typing import NamedTuple

WIDTH, HEIGHT = 460, 320
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 18, 46
NAME_LETTER, POINT_LETTER = 8.0, 7.4  # about how wide a letter is in the two sizes of text


@dataclass(frozen=True)
class Axis:
    """A range with its ticks (value, text) and title."""

    title: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    log: bool = False

    def share(self, value: float) -> float:
        """Where `value` lies between low (0) and high (1)."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low)


@dataclass(frozen=True)
class Point:
    """A place on a line, with the text beside it and the hint shown under the pointer."""

    x: float
    y: float
    text: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Series:
    """One line or one histogram: points in drawing order, or the heights of the bars."""

    family: str
    name: str
    points: Sequence[Point] = ()
    heights: Sequence[float] = ()


def linear_axis(title: str, values: Sequence[float], unit: str = "", floor: float = 0) -> Axis:
    """Return an axis from a round number at or below the smallest value (never under `floor`)."""
    low, high = min(values), max(values)
    # Values that are all but equal still get an axis with distinct ticks.
    step = _round_step(max(high - low, abs(high) / 20, 1e-3) / 4)
    first = max(floor, math.floor(low / step) * step)
    count = max(1, math.ceil((high - first) / step - 1e-9))
    ticks = [(first + i * step, f"{first + i * step:g}{unit}") for i in range(count + 1)]
    return Axis(title, first, first + count * step, ticks)


def log_axis(title: str, values: Sequence[float], base: int = 2) -> Axis:
    """Return a logarithmic axis with ticks at powers of `base`, and at 2 and 5 if there is room."""
    low, high = min(values) / 1.12, max(values) * 1.12
    first, last = math.floor(math.log(low, base)), math.ceil(math.log(high, base))
    steps = (1, 2, 5) if base == 10 and high / low < 200 else (1,)
    ticks = [float(base**e * s) for e in range(first, last + 1) for s in steps]
    return Axis(title, low, high, [(t, f"{t:g}") for t in ticks if low <= t <= high], log=True)


def line_chart(x: Axis, y: Axis, series: Sequence[Series], *, label: str, rule: str = "") -> str:
    """Lines named where they end; `rule` names a family whose height is drawn right across."""
    lines, marks = [_axes(x, y)], []
    labeller = Labeller(Box(LEFT, 0, WIDTH, HEIGHT - BOTTOM))
    places = [[(_left(x, p.x), _top(y, p.y)) for p in line.points] for line in series]
    for line, at in zip(series, places, strict=True):
        if line.family == rule:
            at_height = [(float(LEFT), at[0][1]), (float(WIDTH - RIGHT), at[0][1])]
            lines.append(_polyline("rule", line.family, at_height))
            labeller.add_line(at_height)
        lines.append(_polyline("line", line.family, at))
        labeller.add_line(at)
        for point, (left, top) in zip(line.points, at, strict=True):
            if point.text:
                marks.append(_mark(line.family, point, left, top))
                labeller.add_marker(left, top)
    for line, at in zip(series, places, strict=True):
        where = labeller.place(*at[-1], NAME_LETTER * len(line.name), 15)
        marks.append(_text("name", line.family, line.name, where))
    for line, at in zip(series, places, strict=True):
        for point, (left, top) in zip(line.points, at, strict=True):
            if point.text and line.family != rule:
                where = labeller.place(left, top, POINT_LETTER * len(point.text), 11, optional=True)
                marks.append(_text("point", line.family, point.text, where))
    return _svg(label, [*lines, *marks])


def histogram(
    x: Axis, y: Axis, edges: Sequence[float], series: Sequence[Series], *, label: str
) -> str:
    """Overlaid step outlines between `edges`, named at the upper right."""
    parts = [_axes(x, y)]
    floor = _top(y, y.low)
    for row, steps in enumerate(series):
        path = [f"M{_left(x, edges[0]):.1f} {floor:.1f}"]
        for i, height in enumerate(steps.heights):
            path.append(f"V{_top(y, height):.1f}H{_left(x, edges[i + 1]):.1f}")
        path.append(f"V{floor:.1f}Z")
        parts.append(f'<path class="steps c-{steps.family}" d="{"".join(path)}"/>')
        parts.append(
            f'<text class="name end c-{steps.family}" x="{WIDTH - RIGHT - 4}" '
            f'y="{TOP + 14 + 18 * row}">{escape(steps.name)}</text>'
        )
    return _svg(label, parts)


def _left(x: Axis, value: float) -> float:
    return LEFT + x.share(value) * (WIDTH - LEFT - RIGHT)


def _top(y: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - y.share(value) * (HEIGHT - TOP - BOTTOM)


def _svg(label: str, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">\n'
        f"{body}\n</svg>"
    )


def _axes(x: Axis, y: Axis) -> str:
    right, floor = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for value, text in y.ticks:
        top = _top(y, value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{top:.1f}" y2="{top:.1f}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 8}" y="{top + 4:.1f}">{text}</text>')
    for value, text in x.ticks:
        left = _left(x, value)
        parts.append(
            f'<line class="grid tickmark" x1="{left:.1f}" x2="{left:.1f}" '
            f'y1="{floor}" y2="{floor + 4}"/>'
        )
        parts.append(f'<text class="tick mid" x="{left:.1f}" y="{floor + 18}">{text}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{floor}" y2="{floor}"/>')
    middle = (LEFT + right) / 2
    parts.append(f'<text class="title mid" x="{middle}" y="{HEIGHT - 8}">{escape(x.title)}</text>')
    return "\n".join(parts)


def _polyline(kind: str, family: str, at: Sequence[tuple[float, float]]) -> str:
    path = " ".join(f"{left:.1f},{top:.1f}" for left, top in at)
    return f'<polyline class="{kind} c-{family}" points="{path}"/>'


def _text(kind: str, family: str, text: str, where: tuple[float, float] | None) -> str:
    if where is None:
        return ""
    left, base = where
    return f'<text class="{kind} c-{family}" x="{left:.1f}" y="{base:.1f}">{escape(text)}</text>'


def _mark(family: str, point: Point, left: float, top: float) -> str:
    shape = _SHAPES.get(family, _circle)(left, top)
    hint = escape(point.hint or point.text)
    return f'<g class="mark c-{family}">{shape}<title>{hint}</title></g>'


def _circle(x: float, y: float) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/>'


def _square(x: float, y: float) -> str:
    return f'<rect x="{x - 3.6:.1f}" y="{y - 3.6:.1f}" width="7.2" height="7.2"/>'


def _diamond(x: float, y: float) -> str:
    return f'<path d="M{x:.1f} {y - 5:.1f}l5 5-5 5-5-5z"/>'


def _triangle(x: float, y: float) -> str:
    return f'<path d="M{x:.1f} {y - 5:.1f}l5 8.6h-10z"/>'


_SHAPES: dict[str, Callable[[float, float], str]] = {
    "dense": _diamond,
    "pca": _square,
    "topk": _triangle,
}


def _round_step(raw: float) -> float:
    """Return the nearest of 1, 2, 5 × 10ⁿ that is not below `raw`."""
    power: float = 10 ** math.floor(math.log10(raw))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)


class Box(NamedTuple):
    """A rectangle in the chart's units."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """Return the area both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0.0) * max(height, 0.0)


@dataclass
class Labeller:
    """Places texts one after another in `frame`, clear of what stands there already.

    Attributes:
        frame: where texts may stand.
        taken: texts and markers; covering one costs ten times its area.
        lines: stretches of lines; covering one costs four times its area.
    """

    frame: Box
    taken: list[Box] = field(default_factory=list)
    lines: list[Box] = field(default_factory=list)

    def add_marker(self, x: float, y: float, radius: float = 5) -> None:
        """Keep texts off a marker."""
        self.taken.append(Box(x - radius, y - radius, x + radius, y + radius))

    def add_line(self, points: Sequence[tuple[float, float]]) -> None:
        """Keep texts off a polyline where there is another place."""
        for (x0, y0), (x1, y1) in pairwise(points):
            pieces = max(1, int(max(abs(x1 - x0), abs(y1 - y0)) / 6))
            for i in range(pieces + 1):
                x, y = x0 + (x1 - x0) * i / pieces, y0 + (y1 - y0) * i / pieces
                self.lines.append(Box(x - 2, y - 2, x + 2, y + 2))

    def place(
        self, x: float, y: float, width: float, height: float, *, optional: bool = False
    ) -> tuple[float, float] | None:
        """Return the left end and base line of a text beside (x, y), or None if it is `optional`
        and every place would cover another text or marker."""
        box = min(_places(x, y, width, height), key=self._cost)
        if optional and self._cost(box, lines=False) > 0:
            return None
        self.taken.append(box)
        return box.left, box.bottom - 0.25 * height

    def _cost(self, box: Box, lines: bool = True) -> float:
        area = (box.right - box.left) * (box.bottom - box.top)
        cost = 100 * (area - box.overlap(self.frame))
        cost += 10 * sum(box.overlap(other) for other in self.taken)
        if lines:
            cost += 4 * sum(box.overlap(other) for other in self.lines)
        return round(cost, 3)


def _places(x: float, y: float, width: float, height: float) -> list[Box]:
    """Places for a text, the best first: `min` keeps the first of equals."""
    gap, up, down = 8, y - height - 5, y + 5
    corners = [
        (x - width / 2, up),
        (x + gap, y - height / 2),
        (x + gap - 2, up),
        (x + gap - 2, down),
        (x - width / 2, down),
        (x - gap - width, y - height / 2),
        (x - gap - width + 2, up),
        (x - gap - width + 2, down),
        (x + gap + 16, y - height / 2),
        (x - width, up - 12),
        (x - width, down + 12),
    ]
    return [Box(left, top, left + width, top + height) for left, top in corners]
