"""InvertedIndex.build_streaming: the same index as build, in less memory, or the old one."""

from __future__ import annotations

import itertools
import os
import resource
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
    dtype = {"half file": "float16"}.get(form, "float32")
    codes.save(tmp_path / "codes", dtype=dtype)
    source = {
        "file": tmp_path / "codes",
        "half file": str(tmp_path / "codes"),
        "mapped": CODES,
        "pieces": ((CODES[0][i : i + 900], CODES[1][i : i + 900]) for i in range(0, 4000, 900)),
    }[form]
    ids = np.arange(4000)[::-1] * 2 if form == "mapped" else None
    whole = InvertedIndex.build(CODES, ids, dim=DIM, metric="ip")
    whole.truncate(2).save(tmp_path / "index")
    index = InvertedIndex.build_streaming(
        source, tmp_path / "index", ids=ids, chunk=900, dim=DIM, metric="ip"
    )
    assert index.stats()["segments"] == 5
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

    before = sorted(tmp_path.iterdir())
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
    (tmp_path / "codes").unlink()
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(ValueError, match="one shape"):
        InvertedIndex.build_streaming((CODES[0][:10], CODES[1]), tmp_path, dim=DIM)


class Stopped(BaseException):
    """As Ctrl-C."""


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, Stopped])
@pytest.mark.parametrize("there", [False, True])
def test_what_an_unfinished_stream_wrote_is_removed(error, there, tmp_path):
    folder = tmp_path / "index"
    if there:
        InvertedIndex.build(CODES, dim=DIM).save(folder)
        (folder / "text.json").write_text("{}")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}

    def pieces():
        for first in range(0, 3000, 100):
            yield CODES[0][first : first + 100], CODES[1][first : first + 100]
        assert len(list(folder.glob("postings-*"))) >= 5
        raise error

    with pytest.raises(error):
        InvertedIndex.build_streaming(pieces(), folder, dim=DIM, chunk=500)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
    assert folder.exists() == there


@pytest.mark.parametrize("call", [1, 4, 7, 40])
def test_a_full_disk_leaves_the_old_index(call, tmp_path, monkeypatch):
    InvertedIndex.build(CODES, dim=DIM).save(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    calls = itertools.count(1)

    def full(descriptor):
        if next(calls) == call:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("csrkern.storage.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        InvertedIndex.build_streaming(CODES, tmp_path, dim=DIM, chunk=450)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_errors_name_the_row():
    def pieces():
        yield CODES
        wrong = CODES[0].copy()
        wrong[7, 1] = np.nan
        yield wrong, CODES[1]

    with pytest.raises(ValueError, match=r"got nan in row 7 \(of the codes from row 4,000 on\)"):
        InvertedIndex.build_streaming(pieces(), "unused", dim=DIM, chunk=4000)


def test_pieces_are_gathered_whatever_their_form(tmp_path):
    codes = SparseCodes.from_numpy(*CODES, DIM)
    buffer = np.zeros((100, 9), np.float32), np.zeros((100, 9), np.int32)

    def pieces():
        for i in range(40):
            rows = slice(100 * i, 100 * i + 100)
            if i % 4 == 0:
                yield codes[rows].to_scipy()
            elif i % 4 == 1:
                yield codes[rows]
            elif i % 4 == 2:
                yield codes[rows].to_torch_csr()
            else:  # one that fills the same memory again and again
                buffer[0][:], buffer[1][:] = CODES[0][rows], CODES[1][rows]
                yield buffer
        yield CODES[0][:0, :3], CODES[1][:0, :3]

    index = InvertedIndex.build_streaming(pieces(), tmp_path, chunk=1050)
    assert [len(segment) for segment in index.snapshot().segments] == [1000, 1000, 1000, 1000]
    whole = InvertedIndex.build(codes)
    assert index.k == whole.k
    assert_same(index.search(QUERIES, 12), whole.search(QUERIES, 12))


def descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors as Linux does")
@pytest.mark.parametrize("chunk", [32, 10**6])
def test_very_many_pieces_hold_no_descriptors(chunk, tmp_path):
    values, indices = index_codes.uniform(3000 * 32, 64, 4)
    pieces = ((values[i : i + 32], indices[i : i + 32]) for i in range(0, len(values), 32))
    if chunk == 32:
        pieces = itertools.islice(pieces, 600)
    before = descriptors()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        index = InvertedIndex.build_streaming(pieces, tmp_path, dim=64, chunk=chunk)
        loaded = InvertedIndex.load(tmp_path)
        assert descriptors() == before
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    n = len(index)
    assert n == (600 * 32 if chunk == 32 else 96_000)
    whole = InvertedIndex.build((values[:n], indices[:n]), dim=64)
    queries = values[:9], indices[:9]
    assert_same(loaded.search(queries, 12), whole.search(queries, 12))
    assert_same(index.search(queries, 12), whole.search(queries, 12))
    if chunk > 32:
        postings = loaded.snapshot().segments[0].native.postings
        assert not postings.flags.writeable  # mapped, and it stays so once the file is gone
        InvertedIndex.build(CODES, dim=DIM).save(tmp_path)
        assert_same(loaded.search(queries, 12), whole.search(queries, 12))


def test_an_index_of_too_many_segments_is_not_saved(tmp_path, monkeypatch):
    monkeypatch.setattr("csrkern.index.file._LARGEST_HEADER", 4000)
    with pytest.raises(ValueError, match=r"cannot name 10 segments.*larger chunks"):
        InvertedIndex.build_streaming(CODES, tmp_path / "index", dim=DIM, chunk=400)
    assert not (tmp_path / "index").exists()


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
