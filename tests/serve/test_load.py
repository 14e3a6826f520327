"""The load test of the benchmarks, on a small index."""

from __future__ import annotations

import json
import shutil
import signal

import numpy as np
import pytest

from benchmarks.serve import load
from csrkern import InvertedIndex, SparseCodes
from csrkern.nn import SparseAutoencoder
from csrtrain.recipe import Recipe

for needed in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(needed)


@pytest.mark.skipif(shutil.which("wrk") is None, reason="needs wrk")
def test_it_asks_every_form_and_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "DISTINCT", 8)
    monkeypatch.setattr(load, "REWRITTEN_EVERY", 0.2)
    rows = np.random.default_rng(0).normal(size=(50, 24)).astype(np.float32)
    model = SparseAutoencoder(24, 64, 4)
    codes: SparseCodes = model.encode(rows)
    index = InvertedIndex.build(codes)
    index.save(tmp_path / "index")
    Recipe().save_to_index(tmp_path / "index", model)
    (tmp_path / "payloads.jsonl").write_text("".join(f'{{"row": {i}}}\n' for i in range(50)))
    held = {"embeddings": rows, "codes": codes, "index": index}
    server, url = load.start(tmp_path, 1)
    try:
        for form in ("codes", "embeddings", "codes, binary", "codes, reload"):
            case = load.Case(form.removesuffix(", reload"), 2, 2, "reload" in form)
            found = load.measure(tmp_path, held, case, url, server.pid, 3 if case.reload else 1)
            json.dumps(found)
            assert found["failed"] == 0
            assert (found["loads"] > 0) == case.reload
            assert found["queries_per_second"] == 2 * found["requests_per_second"] > 0
            assert 0 < found["p50_ms"] <= found["p99_ms"]
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    assert load.search_us(held) > 0
