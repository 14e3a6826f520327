"""Costs choose between ways that find the same, are measured once and kept."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from csrkern import _C, InvertedIndex
from csrkern.index import costs

N, DIM, K = 4000, 256, 16
# Costs that make one way free and the others dear.
EXTREMES = {
    "usual": {},
    "rows": {"row": 1e-3, "entry": 1e-3, "forward_posting": 1e-6},
    "scans": {"row": 1e6, "posting": 1e-6, "document": 1e-6, "batch_entry_of_1024": 1e6},
    "blocks": {"block_term": 1e-6, "directory_term": 1e-6, "bound": 1e-6},
    "windows": {"block_term": 1e6, "directory_term": 1e6, "bound": 1e6},
    "batches": {"batch_entry_of_1024": 1e-6, "row": 1e-3, "entry": 1e-6, "rounded_posting": 1e-6},
    "dense lists": {"dense": 1e-6, "posting": 1e3},
}


@pytest.fixture
def _restored() -> Iterator[None]:
    before = _C.costs()
    yield
    _C.set_costs(before)


def codes(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows in 16 clusters, of latents some of which most rows have."""
    random = np.random.default_rng(seed)
    own = np.arange(DIM) % 16 == np.arange(n)[:, None] % 16
    weights = random.random((n, DIM)) * (1 + 9 * own)
    weights[:, :4] += 7
    indices = np.argsort(-weights, axis=1)[:, :K].astype(np.int32)
    return random.random((n, K), np.float32), indices


def searches(cluster: bool, dtype: str) -> list[np.ndarray]:
    index = InvertedIndex.build(codes(N, 1), dim=DIM, dtype=dtype, cluster=cluster)
    queries = codes(70, 2)
    allowed = np.random.default_rng(3).random(N)
    found = []
    for _ in range(3):  # arrays that searches are worth are there from the second on
        found += index.search(queries, 10)
        for share in (0.01, 0.3, 0.8):
            found += index.search(queries, 10, filter=allowed < share)
    found += index.search(queries, 10, mode="fast", recall=0.9)
    return found


@pytest.mark.parametrize("cluster", [False, True])
@pytest.mark.usefixtures("_restored")
def test_results_do_not_depend_on_costs(cluster):
    expected = None
    for changed in EXTREMES.values():
        _C.set_costs(_C.USUAL_COSTS | changed)
        found = searches(cluster, "float16")
        if expected is None:
            expected = found
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.usefixtures("_restored")
def test_costs_choose():
    """The way does change: a filtered search reads the forward index, or does not."""
    for name, built in (("rows", True), ("scans", False)):
        _C.set_costs(_C.USUAL_COSTS | EXTREMES[name])
        index = InvertedIndex.build(codes(N, 1), dim=DIM, cluster=False)
        for _ in range(2):
            index.search(codes(1, 2), 10, filter=np.arange(40))
        assert (index.stats()["forward_bytes"] > 0) == built


@pytest.mark.usefixtures("_restored")
def test_what_is_stored_does_not_depend_on_costs(tmp_path):
    files = []
    for name, changed in EXTREMES.items():
        _C.set_costs(_C.USUAL_COSTS | changed)
        index = InvertedIndex.build(codes(N, 1), dim=DIM)
        index.search(codes(20, 2), 10, mode="fast", recall=0.9)
        index.save(tmp_path / name)
        # Names are drawn, and the header's checksum is over these.
        files.append(
            {
                p.name.split("-")[0]: re.sub(rb'-[0-9a-f]{16}|"crc32c": *\d+', b"", p.read_bytes())
                for p in (tmp_path / name).iterdir()
            }
        )
    assert all(f == files[0] for f in files)


def test_measured_costs_are_within_bounds():
    if not _C.costs_were_measured():
        pytest.skip("this process read its costs")
    for name, usual in _C.USUAL_COSTS.items():
        assert usual / 8 <= _C.costs()[name] <= 8 * usual


def run(script: str, cache: Path, **environment: str) -> str:
    given = {**os.environ, "CSRKERN_CACHE": str(cache), "PYTHONPATH": ":".join(sys.path)}
    given.pop("CSRKERN_TUNE", None)
    ended = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env=given | environment,
    )
    return ended.stdout


SEARCH = """
import numpy as np
from csrkern import InvertedIndex, _C
index = InvertedIndex.build((np.ones((5, 1)), np.arange(5)[:, None]), dim=5)
index.search((np.ones((1, 1)), np.zeros((1, 1), int)), 1)
assert not _C.costs_were_measured()  # nothing to choose
"""
CHOOSE = SEARCH + "print(_C.costs(), _C.costs_were_measured())"


def test_costs_are_measured_once_and_kept(tmp_path):
    run(SEARCH, tmp_path)
    assert not list(tmp_path.iterdir())
    first = run(CHOOSE, tmp_path)
    (kept,) = tmp_path.iterdir()
    assert first == f"{json.loads(kept.read_text())} True\n"
    assert run(CHOOSE, tmp_path) == first.replace("True", "False")
    assert run(CHOOSE, tmp_path, CSRKERN_TUNE="off") == f"{_C.USUAL_COSTS} False\n"


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{}", "[" * 200_000, '{"posting": 1}'),
        json.dumps(dict.fromkeys(_C.USUAL_COSTS, -1)),
        json.dumps(dict.fromkeys(_C.USUAL_COSTS, 10**400)),
    ],
    ids=range(7),
)
def test_damaged_costs_are_measured_again(tmp_path, content):
    path = tmp_path / "costs.json"
    path.write_text(content)
    assert costs.read_costs(path) is None
    path.write_text(json.dumps(_C.USUAL_COSTS))
    assert costs.read_costs(path) == _C.USUAL_COSTS


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    assert "True" in run(CHOOSE, tmp_path / "file/cache")


def test_a_user_without_a_home_keeps_nothing(tmp_path):
    """Containers run as users whom the system does not know."""
    nobody = """
import os, pwd
def unknown(uid): raise KeyError(uid)
pwd.getpwuid = unknown
for name in ("HOME", "XDG_CACHE_HOME"): os.environ.pop(name, None)
"""
    assert "True" in run(nobody + CHOOSE, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert "True" in run(nobody + "del os.environ['CSRKERN_CACHE']\n" + CHOOSE, tmp_path)
