from __future__ import annotations

import dataclasses
import itertools
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csrtrain import charts
from csrtrain.charts import Box, Labeller
from csrtrain.demo.report import DemoResult, Example, Method, Training, render

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Balanced(HTMLParser):
    """Raises if a tag is closed that is not the innermost open one."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data):
        self.text.append(data)


def parse(html: str) -> Balanced:
    parser = Balanced()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return parser


def small_result() -> DemoResult:
    methods = [Method("dense", 384, 768, 49.3, 140.0)]
    methods += [Method("topk", k, 4 * k, 20.0 + k / 2, 10.0 + k) for k in (8, 16, 32)]
    methods += [Method("pca", k, 2 * k, 30.0 + k / 4, 90.0 + k) for k in (16, 32, 64)]
    methods += [Method("self", k, 4 * k, 40.0 + k / 4, 9.0 + k) for k in (2, 4, 8, 16, 32)]
    methods += [Method("label", k, 4 * k, 48.0 + k / 4, 8.0 + k) for k in (2, 4, 8, 16, 32)]
    trainings = [
        Training(family, 30.0, [1, 2, 3], [0.0, 1.5, 0.5], [0, 1, 7, 7, 300])
        for family in ("self", "label")
    ]
    examples = [Example("a <b>bold</b> & odd question", ("b<c",), {"dense 384": ["a", "b<c"]})]
    return DemoResult(methods, trainings, examples, "2 threads & more", {"Machine": "<cpu>"})


def test_report_is_well_formed_and_self_contained():
    html = render(small_result())
    parser = parse(html)
    assert parser.seen.count("svg") == 4
    assert parser.seen.count("tr") == 1 + len(small_result().methods)
    assert "script" not in parser.seen
    assert not re.search(r"""(src|href)\s*=|url\(|@import|https?://""", html)
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        root = ET.fromstring(svg)
        assert root.get("aria-label")
        assert "nan" not in svg.lower()


def test_report_shows_the_figures_and_escapes_texts():
    text = "".join(parse(render(small_result())).text)
    assert "a <b>bold</b> & odd question" in text
    assert "b<c" in text
    assert "Answered, of 1: dense 384: 1." in text
    assert "<cpu>" in text
    assert "CSR-8 self contrast" in text
    assert "49.3%" in text
    assert "1 of 5 latents" in text


def test_rows_of_equal_bytes_stand_together():
    sizes = [(size, [m.name for m in rows]) for size, rows in small_result().by_bytes()]
    assert [size for size, _ in sizes] == [768, 128, 64, 32, 16, 8]
    assert sizes[3][1] == [
        "top-k-8 untrained",
        "PCA-16",
        "CSR-8 self contrast",
        "CSR-8 label contrast",
    ]


def test_speed_is_relative_to_dense():
    result = small_result()
    assert result.speed(result.dense) == 1
    assert result.speed(result.method("self", 32)) == pytest.approx(140 / 41)


def test_one_accuracy_everywhere_still_draws():
    result = small_result()
    flat = [dataclasses.replace(m, accuracy=50.0, micros=10.0) for m in result.methods]
    parse(render(dataclasses.replace(result, methods=flat)))


numbers = st.lists(st.floats(0, 1e6), min_size=1, max_size=8)


@given(numbers)
def test_linear_axis_covers_its_values(values):
    axis = charts.linear_axis("x", values)
    slack = 1e-6 * (1 + max(values))
    assert axis.low <= min(values) + slack
    assert axis.high >= max(values) - slack
    texts = [text for _, text in axis.ticks]
    assert 2 <= len(texts) <= 7
    assert len(set(texts)) == len(texts)


@given(st.lists(st.floats(1e-2, 1e6), min_size=1, max_size=8), st.sampled_from([2, 10]))
def test_log_axis_covers_its_values(values, base):
    axis = charts.log_axis("x", values, base)
    assert all(0 <= axis.share(value) <= 1 for value in values)
    assert all(0 <= axis.share(tick) <= 1 for tick, _ in axis.ticks)


@given(st.lists(st.tuples(st.floats(20, 380), st.floats(20, 280)), min_size=1, max_size=12))
def test_optional_labels_never_cover_each_other(points):
    labeller = Labeller(Box(0, 0, 400, 300))
    for x, y in points:
        labeller.add_marker(x, y)
    n_markers = len(labeller.taken)
    placed = [labeller.place(x, y, 20, 10, optional=True) for x, y in points]
    texts = labeller.taken[n_markers:]
    assert len(texts) == sum(where is not None for where in placed)
    for a, b in itertools.combinations(labeller.taken, 2):
        if a in texts or b in texts:
            assert a.overlap(b) < 1e-3


def test_names_stay_inside_the_chart():
    right = charts.Series("self", "a rather long name", [charts.Point(1, 1), charts.Point(9, 9)])
    axis = charts.linear_axis("x", [0, 10])
    root = ET.fromstring(charts.line_chart(axis, axis, [right], label="names"))
    (name,) = [node for node in root.iter("text") if "name" in node.get("class", "")]
    assert charts.LEFT <= float(name.get("x")) <= charts.WIDTH - 100
