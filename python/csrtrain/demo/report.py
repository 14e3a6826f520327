"""report.html: the demo's measurements, in one file that needs no network and no JavaScript."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template

import numpy as np

from csrtrain.charts import COLORS, Series, histogram, line_chart

FAMILIES = {
    "dense": "dense",
    "topk": "top-k, untrained",
    "pca": "PCA",
    "self": "CSR, self contrast",
    "label": "CSR, label contrast",
}
_COLORS = {
    "dense": "#7f7f7f",
    "topk": COLORS[4],
    "pca": COLORS[2],
    "self": COLORS[0],
    "label": COLORS[1],
}


@dataclass(frozen=True)
class Method:
    """One row of the comparison.

    Attributes:
        family: a key of `FAMILIES`.
        active: numbers kept of each vector (all of them for dense and PCA).
        bytes: bytes a stored vector takes.
        accuracy: 1-NN accuracy on the test rows, percent.
        micros: microseconds a query, from the embedding to the ids found.
    """

    family: str
    active: int
    bytes: int
    accuracy: float
    micros: float

    @property
    def name(self) -> str:
        """The short name used in tables."""
        return method_name(self.family, self.active)


def method_name(family: str, active: int) -> str:
    """Return the short name of a method: "CSR-8 self contrast"."""
    if family == "dense":
        return f"dense {active}"
    if family == "topk":
        return f"top-k-{active} untrained"
    if family == "pca":
        return f"PCA-{active}"
    return f"CSR-{active} {family} contrast"


@dataclass(frozen=True)
class Training:
    """The training of one adapter.

    Attributes:
        family: "self" or "label".
        seconds: wall-clock time of the training.
        steps: the optimizer steps at which `dead` was noted.
        dead: percent of latents that were dead at those steps.
        usage: documents in which each latent is active, one entry a latent.
    """

    family: str
    seconds: float
    steps: Sequence[int]
    dead: Sequence[float]
    usage: Sequence[int]


@dataclass(frozen=True)
class Example:
    """A question, the words that answer it, and the words each kind of vector found, best first."""

    question: str
    answers: Sequence[str]
    found: Mapping[str, Sequence[str]]

    def place(self, kind: str) -> int | None:
        """Return the place of the first answer among the words found, from 1, or None."""
        positions = (i for i, word in enumerate(self.found[kind], 1) if word in self.answers)
        return next(positions, None)


@dataclass(frozen=True)
class DemoResult:
    """Everything the report shows; `facts` names the machine, versions and settings."""

    methods: Sequence[Method]
    trainings: Sequence[Training]
    examples: Sequence[Example]
    timing: str
    facts: Mapping[str, str]

    def method(self, family: str, active: int) -> Method:
        """Return the row of one family at one number of active dimensions."""
        return next(m for m in self.methods if (m.family, m.active) == (family, active))

    @property
    def dense(self) -> Method:
        """The row everything is compared with."""
        return next(m for m in self.methods if m.family == "dense")

    def by_bytes(self) -> list[tuple[int, list[Method]]]:
        """Group methods by bytes, the most bytes first; keep the given order in each group."""
        sizes = sorted({m.bytes for m in self.methods}, reverse=True)
        return [(size, [m for m in self.methods if m.bytes == size]) for size in sizes]

    def speed(self, method: Method) -> float:
        """Return how many times faster than dense search a method is."""
        return self.dense.micros / method.micros


def render(result: DemoResult) -> str:
    """Return the report as one HTML document."""
    template = Template((files("csrtrain.demo") / "report.html").read_text(encoding="utf-8"))
    return template.substitute(
        tiles="\n".join(_tiles(result)),
        accuracy_bytes=_accuracy_against(result, "bytes", "bytes a vector"),
        latency_accuracy=_accuracy_against(result, "micros", "microseconds a query"),
        dead=_dead_latents(result.trainings),
        dead_notes="\n".join(
            f"<p>{t.family} contrast: {t.dead[-1]:.1f}% dead at the end.</p>"
            for t in result.trainings
        ),
        usage=_usage(result.trainings),
        usage_notes="\n".join(map(_usage_note, result.trainings)),
        table="\n".join(
            _table_row(result, method) for _, methods in result.by_bytes() for method in methods
        ),
        examples="\n".join(_example(example) for example in result.examples),
        answered=escape(_answered(result.examples)),
        timing=escape(result.timing),
        facts="\n".join(
            f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in result.facts.items()
        ),
    )


def _tiles(result: DemoResult) -> list[str]:
    """Return the three findings at the head of the page, in figures."""
    plain, labeled, pca, topk = (
        result.method(*kind) for kind in (("self", 8), ("label", 8), ("pca", 16), ("topk", 8))
    )
    dense = result.dense
    speed = result.speed(plain)
    faster = f"{speed:.0f}" if speed >= 10 else f"{speed:.1f}"
    rows = [
        (
            "self",
            f"{plain.accuracy:.1f}% without labels",
            f"1-NN accuracy of CSR-8. In the same {plain.bytes} bytes, {pca.name} has "
            f"{pca.accuracy:.1f}% and untrained top-k {topk.accuracy:.1f}%; all {dense.active} "
            f"dense numbers have {dense.accuracy:.1f}%",
        ),
        (
            "label",
            f"{labeled.accuracy:.1f}% with labels",
            f"1-NN accuracy of CSR-8, {signed(labeled.accuracy - dense.accuracy)} points "
            "against the dense vectors it came from",
        ),
        (
            "dense",
            f"{dense.bytes / plain.bytes:.0f}× smaller, {faster}× faster",
            f"{plain.bytes} bytes a vector instead of {dense.bytes}, {plain.micros:.0f} µs "
            f"a query instead of {dense.micros:.0f}",
        ),
    ]
    return [
        f'<div class="tile t-{family}"><strong>{figure}</strong><span>{text}</span></div>'
        for family, figure, text in rows
    ]


def signed(points: float) -> str:
    """Return a difference in points with its sign."""
    return f"{points:+.1f}".replace("-", "−")


def _accuracy_against(result: DemoResult, field: str, title: str) -> str:
    series = []
    for family, name in FAMILIES.items():
        rows = [m for m in result.methods if m.family == family]
        series.append(
            Series(
                rows[0].name if family == "dense" else name,
                _COLORS[family],
                [getattr(m, field) for m in rows],
                [m.accuracy for m in rows],
                [str(m.active) for m in rows],
                dashed=family == "dense",
            )
        )
    return line_chart(series, title=f"1-NN accuracy against {title}", x=title, unit="%", log=2)


def _dead_latents(trainings: Sequence[Training]) -> str:
    series = [Series(f"{t.family} contrast", _COLORS[t.family], t.steps, t.dead) for t in trainings]
    title = "Share of dead latents over training"
    return line_chart(series, title=title, x="optimizer steps", unit="%")


def _usage(trainings: Sequence[Training]) -> str:
    """Draw how many latents are active in how many documents, on a logarithmic scale."""
    edges = np.geomspace(1, max(2, 1 + max(max(t.usage) for t in trainings)), 33)
    counts = [
        (f"{t.family} contrast", _COLORS[t.family], np.histogram(t.usage, edges)[0])
        for t in trainings
    ]
    title = "Number of latents by how many documents use them"
    return histogram(edges, counts, title=title, x="documents a latent is active in")


def _usage_note(training: Training) -> str:
    usage = np.sort(training.usage)[::-1]
    hottest = usage[: max(1, len(usage) // 100)].sum() / max(1, usage.sum())
    return (
        f"<p>{training.family} contrast: {np.count_nonzero(usage == 0)} of {len(usage)} latents "
        f"in no document; the busiest 1% hold {100 * hottest:.1f}% of all active entries.</p>"
    )


def _table_row(result: DemoResult, method: Method) -> str:
    speed = "1" if method.family == "dense" else f"{result.speed(method):.1f}"
    return (
        f'<tr><th scope="row"><i class="key k-{method.family}"></i>{escape(method.name)}</th>'
        f"<td>{method.bytes}</td><td>{method.accuracy:.1f}%</td>"
        f"<td>{method.micros:.1f}</td><td>{speed}×</td></tr>"
    )


def _answered(examples: Sequence[Example]) -> str:
    """Return a sentence with the number of questions that each kind of vector answers."""
    kinds = examples[0].found if examples else ()
    counts = (f"{kind}: {sum(e.place(kind) is not None for e in examples)}" for kind in kinds)
    return f"Answered, of {len(examples)}: {'; '.join(counts)}."


def _example(example: Example) -> str:
    results = "".join(
        f"<dt>{escape(kind)}</dt><dd>{' · '.join(_word(w, example) for w in words)}</dd>"
        for kind, words in example.found.items()
    )
    return f"<article><p>“{escape(example.question)}”</p><dl>{results}</dl></article>"


def _word(word: str, example: Example) -> str:
    return f"<strong>{escape(word)}</strong>" if word in example.answers else escape(word)
