"""Notebooks show codes as HTML."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest
import torch

import csrkern
from csrkern import SparseCodes


def test_it_is_well_formed_and_tells_rows_and_use():
    dense = torch.zeros(20, 40)
    dense[:, 3] = 2.0
    dense[0, 7], dense[0, 9] = 1.0, 0.5
    codes = SparseCodes.from_dense(dense, 3)
    page = ElementTree.fromstring(codes._repr_html_())
    text = "".join(page.itertext())
    assert "n = 20, k = 3, dim = 40" in text
    assert "12 more" in text
    rows = page.findall(".//tbody/tr")
    assert len(rows) == 9
    first = rows[0].findall(".//span[@title]")
    assert [(span.text, span.get("title")) for span in first] == [
        ("3", "2"),
        ("7", "1"),
        ("9", "0.5"),
    ]
    widths = [int(re.search(r"width:(\d+)px", span[0].get("style"))[1]) for span in first]
    assert widths == [80, 40, 20]
    bars = {int(bar.get("x")): float(bar.get("fill-opacity")) for bar in page.findall(".//rect")}
    assert bars == {3: 1.0, 7: 0.22, 9: 0.22}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_any_codes_are_shown(dtype):
    for pre in (torch.randn(3, 5000), torch.zeros(2, 4), torch.randn(0, 8)):
        codes = csrkern.topk_relu(pre.to(dtype), 4)
        ElementTree.fromstring(codes._repr_html_())
    long = csrkern.topk_relu(torch.rand(2, 100, dtype=torch.float64).to(dtype) + 1, 50)
    assert "+42" in long._repr_html_()
    tracked = csrkern.topk_relu(torch.rand(2, 9, requires_grad=True), 3)
    assert "k = 3" in tracked._repr_html_()


def test_rows_come_one_by_one():
    codes = csrkern.topk_relu(torch.rand(5, 30), 4)
    rows = list(codes)
    assert [len(row) for row in rows] == [1] * 5
    assert SparseCodes.cat(rows).equal(codes)
    half = codes.half()
    assert half.dtype == torch.float16
    assert half.equal(codes.to(torch.float16))
