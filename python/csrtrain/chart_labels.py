"""Where the words of a chart go: each text takes the free place nearest to its point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple


class Box(NamedTuple):
    """A rectangle in the chart's units."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """The area both cover."""
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
        """Keeps texts off a marker."""
        self.taken.append(Box(x - radius, y - radius, x + radius, y + radius))

    def add_line(self, points: Sequence[tuple[float, float]]) -> None:
        """Keeps texts off a polyline where there is another place."""
        for (x0, y0), (x1, y1) in pairwise(points):
            pieces = max(1, int(max(abs(x1 - x0), abs(y1 - y0)) / 6))
            for i in range(pieces + 1):
                x, y = x0 + (x1 - x0) * i / pieces, y0 + (y1 - y0) * i / pieces
                self.lines.append(Box(x - 2, y - 2, x + 2, y + 2))

    def place(
        self, x: float, y: float, width: float, height: float, *, optional: bool = False
    ) -> tuple[float, float] | None:
        """The left end and base line of a text beside (x, y), or None if it is `optional`
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
