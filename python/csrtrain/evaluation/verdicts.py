"""Verdicts of a comparison: the method to take for each number of bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from csrtrain.evaluation.comparison import Result

LEAST_BYTES = 8


@dataclass(frozen=True)
class Verdict:
    """The best method within a budget of bytes.

    Attributes:
        budget: bytes a vector, at most.
        best: the result of the highest main score; among equal ones the smallest, then the first.
        other: the best of the other kind: the best baseline if codes win, else the best codes;
            None if no such method fits.
    """

    budget: int
    best: Result
    other: Result | None

    def __str__(self) -> str:
        best = f"For {self.budget} bytes take {_named(self.best)}"
        if self.other is None:
            return f"{best}."
        kind = "the best baseline" if is_code(self.best) else "the best codes"
        return f"{best}; {kind}: {_named(self.other)}."


def is_code(result: Result) -> bool:
    """Return whether a result is of sparse codes rather than of a baseline."""
    return result.method.startswith("CSR")


def verdicts(results: Iterable[Result]) -> list[Verdict]:
    """Return a verdict for each power of two below the bytes of dense vectors."""
    smaller = [r for r in results if r.method != "dense"]
    dense = [r.bytes_per_vector for r in results if r.method == "dense"]
    if not smaller:
        return []
    limit = min(dense, default=1 + max(r.bytes_per_vector for r in smaller))
    chosen = []
    budget = LEAST_BYTES
    while budget < limit:
        fitting = [r for r in smaller if r.bytes_per_vector <= budget]
        if any(r.bytes_per_vector > budget // 2 for r in fitting):
            best = _best(fitting)
            assert best is not None
            other = _best(r for r in fitting if is_code(r) != is_code(best))
            chosen.append(Verdict(budget, best, other))
        budget *= 2
    return chosen


def _best(results: Iterable[Result]) -> Result | None:
    return max(results, key=lambda r: (r.main, -r.bytes_per_vector), default=None)


def _named(result: Result) -> str:
    return f"{result.method} with {result.active} active, {100 * result.main:.1f}%"
