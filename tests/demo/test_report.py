from __future__ import annotations

import dataclasses
import re
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest

from csrtrain.charts import COLORS, Series, check_matplotlib, histogram, line_chart
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
    assert not re.search(r"""(src|href)\s*=\s*"(?!#)|url\((?!#)|@import|https?://""", html)
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


def test_charts_take_the_page_s_color_and_keep_apart():
    series = [
        Series("dense & <all>", COLORS[0], [768], [49.3], dashed=True),
        Series("codes", COLORS[1], [8, 16, 32], [40, 44, 46], ["2", "4", "8"]),
        Series("", COLORS[2], [8], [41], ["unnamed"]),
    ]
    one, two = (line_chart(series, title=title, x="bytes", log=2) for title in ("one", "two"))
    texts = {"".join(node.itertext()).strip() for node in ET.fromstring(one).iter("text")}
    assert {"dense & <all>", "codes", "bytes", "4", "unnamed"} <= texts
    assert "currentColor" in one
    assert "#010203" not in one
    names = [set(re.findall(r'id="([^"]+)"', chart)) for chart in (one, two)]
    assert names[0]
    assert not names[0] & names[1]
    assert one == line_chart(series, title="one", x="bytes", log=2)


def test_a_histogram_has_a_step_for_each_count():
    counts = [("a", COLORS[0], np.array([3, 1])), ("b", COLORS[1], np.array([0, 2]))]
    chart = histogram(np.array([1.0, 2, 4]), counts, title="t", x="n")
    texts = {"".join(node.itertext()).strip() for node in ET.fromstring(chart).iter("text")}
    assert {"a", "b", "n"} <= texts
    assert chart.count(COLORS[0]) >= 2


def test_charts_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"csrkern\[demo\]"):
        check_matplotlib()
