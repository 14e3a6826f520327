"""InvertedIndex.build_streaming: the same index as build, in less memory, or the old one."""

from __future__ import annotations

import os
import subprocess
import sys

import index_codes
import numpy as np
import pytest

from csrkern import InvertedIndex, SparseCodes

DIM = 120
CODES = index_codes.skewed(4000, DIM, 9)
QUERIES = index_codes.skewed(25, DIM, 11, seed=1)


def assert_same(got, want):
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("form", ["file", "half file", "mapped", "pieces"])
def test_build_streaming(form, tmp_path):
    codes = SparseCodes.from_numpy(*CODES, DIM)
    values = {"half file": "float16"}.get(form, "float32")
    codes.save(tmp_path / "codes", values=values)
    source = {
        "file": tmp_path / "codes",
        "half file": str(tmp_path / "codes"),
        "mapped": CODES,
        "pieces": ((CODES[0][i : i + 900], CODES[1][i : i + 900]) for i in range(0, 4000, 900)),
    }[form]
    ids = np.arange(4000)[::-1] * 2 if form == "mapped" else None
    whole = InvertedIndex.build(CODES, ids, dim=DIM)
    whole.truncated(2).save(tmp_path / "index")
    index = InvertedIndex.build_streaming(source, tmp_path / "index", ids=ids, chunk=900, dim=DIM)
    assert index.stats()["segments"] == 5
    assert not index._segments[0].native.postings.flags.writeable  # mapped
    again = InvertedIndex.load(tmp_path / "index", verify=True)
    for one in (index, again):
        assert_same(one.search(QUERIES, 12), whole.search(QUERIES, 12))
        np.testing.assert_array_equal(one.ids, whole.ids)
    assert len(list((tmp_path / "index").glob("postings-*"))) == 5
    again.add((CODES[0][:1], CODES[1][:1]), [8000])
    again.compact()
    assert len(again) == 4001


def test_a_stream_that_fails_leaves_the_old_index(tmp_path):
    InvertedIndex.build(CODES, dim=DIM).save(tmp_path)

    def pieces():
        yield CODES
        yield -CODES[0], CODES[1]

    with pytest.raises(ValueError, match="not negative"):
        InvertedIndex.build_streaming(pieces(), tmp_path, dim=DIM)
    assert len(InvertedIndex.load(tmp_path, verify=True)) == 4000
    with pytest.raises(ValueError, match="distinct"):
        InvertedIndex.build_streaming(
            CODES, tmp_path, dim=DIM, chunk=2000, ids=np.arange(4000) % 3999
        )
    with pytest.raises(ValueError, match="at least one piece"):
        InvertedIndex.build_streaming([], tmp_path)
    for whole in (3, SparseCodes.from_numpy(*CODES, DIM).to_scipy()):
        with pytest.raises(TypeError, match="expected a path, a pair of arrays or an iterable"):
            InvertedIndex.build_streaming(whole, tmp_path)
    with pytest.raises(ValueError, match="one id for each of 4000"):
        InvertedIndex.build_streaming(CODES, tmp_path, dim=DIM, ids=3)
    (tmp_path / "codes").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="not a csrkern code file"):
        InvertedIndex.build_streaming(tmp_path / "codes", tmp_path / "new")
    assert len(InvertedIndex.load(tmp_path, verify=True)) == 4000


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_codes_larger_than_memory(tmp_path):
    """150 MB of mapped codes, 60 MB beyond what the process has: enough for chunks only."""
    n, k, dim = 600_000, 32, 6400
    rng = np.random.default_rng(0)
    shape = {"shape": (n, k), "mode": "w+"}
    values = np.memmap(tmp_path / "values", np.float32, **shape)
    indices = np.memmap(tmp_path / "indices", np.int32, **shape)
    for first in range(0, n, 50_000):
        values[first : first + 50_000] = 1 + rng.random((50_000, k), np.float32)
        indices[first : first + 50_000] = rng.integers(0, 200, (50_000, k)) + 200 * np.arange(k)
    script = f"""
import resource, sys
import numpy as np
from csrkern import InvertedIndex, SparseCodes
def mapped(name, dtype):
    return np.memmap({str(tmp_path)!r} + "/" + name, dtype, mode="r", shape=({n}, {k}))
codes = mapped("values", np.float32), mapped("indices", np.int32)
own = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if "VmData" in line)
resource.setrlimit(resource.RLIMIT_DATA, (own + (60 << 20),) * 2)
options = dict(dim={dim}, cluster=False, num_threads=1)
try:
    InvertedIndex.build(codes, **options)
except MemoryError:
    print("too large for build")
index = InvertedIndex.build_streaming(codes, sys.argv[1], chunk=50_000, **options)
print(len(index), index.search((codes[0][:9], codes[1][:9]), 1, num_threads=1)[1].ravel().tolist())
"""
    ran = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "index")],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    told, found = ran.stdout.splitlines()
    assert told == "too large for build"
    assert found == f"600000 {list(range(9))}"
