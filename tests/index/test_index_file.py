"""InvertedIndex.save and load: equality, replacement, and crashes."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time

import index_codes
import numpy as np
import pytest

from csrkern import InvertedIndex
from csrkern.index import file as index_file
from csrkern.index.segment import SMALL_WINDOW

CODES = index_codes.uniform(3000, 64, 6)
QUERIES = index_codes.uniform(20, 64, 6, seed=1)


def held(index):
    """All stats but those of where the bytes are."""
    stats = index.stats()
    return {name: stats[name] for name in stats if name not in ("mapped_bytes", "resident_bytes")}


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("metric", ["ip", "cosine"])
@pytest.mark.parametrize("ids", [None, np.arange(3000)[::-1] + 5])
def test_loaded_equals_built(tmp_path, mmap, dtype, metric, ids):
    index = InvertedIndex.build(CODES, ids, dim=64, dtype=dtype, metric=metric, window=512)
    index.save(tmp_path / "a")
    loaded = InvertedIndex.load(tmp_path / "a", mmap=mmap, verify=True)
    assert repr(loaded) == repr(index)
    assert len(loaded) == 3000
    assert (loaded.dim, loaded.k, loaded.metric) == (64, 6, metric)
    assert held(loaded) == held(index)
    for got, want in zip(loaded.search(QUERIES, 20), index.search(QUERIES, 20), strict=True):
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(loaded.ids, index.ids)
    loaded.save(tmp_path / "b")
    again = InvertedIndex.load(tmp_path / "b")
    np.testing.assert_array_equal(
        again.snapshot().segments[0].native.postings, index.snapshot().segments[0].native.postings
    )


@pytest.mark.parametrize("window", [None, 128])
def test_what_is_added_after_loading_has_the_window_that_was_asked_for(tmp_path, window):
    index = InvertedIndex.build((CODES[0][:0], CODES[1][:0]), dim=64, window=window)
    index.save(tmp_path / "index")
    copies = InvertedIndex.load(tmp_path / "index"), pickle.loads(pickle.dumps(index))
    for one in (index, *copies):
        one.add(CODES)
        assert one.stats()["window"] == (SMALL_WINDOW if window is None else window)


def test_empty_index(tmp_path):
    index = InvertedIndex.build((np.zeros((0, 3)), np.zeros((0, 3), int)), dim=9)
    index.save(tmp_path)
    loaded = InvertedIndex.load(tmp_path, verify=True)
    assert len(loaded) == 0
    assert loaded.search((np.ones((1, 1)), np.zeros((1, 1), int)), 1)[1].tolist() == [[-1]]


def test_saving_replaces_and_readers_keep_the_old(tmp_path):
    first = InvertedIndex.build(CODES, dim=64)
    first.save(tmp_path)
    reader = InvertedIndex.load(tmp_path)
    want = first.search(QUERIES, 5)
    second = InvertedIndex.build((CODES[0][:100], CODES[1][:100]), dim=64)
    second.save(tmp_path)
    np.testing.assert_array_equal(reader.search(QUERIES, 5)[1], want[1])
    assert len(InvertedIndex.load(tmp_path)) == 100
    assert len(list(tmp_path.iterdir())) == 5
    InvertedIndex.load(tmp_path).save(tmp_path)  # onto the files that it is mapped from
    np.testing.assert_array_equal(
        InvertedIndex.load(tmp_path).search(QUERIES, 5)[1], second.search(QUERIES, 5)[1]
    )


@pytest.mark.parametrize("step", range(9))
def test_a_crash_while_saving_leaves_the_old_index(tmp_path, monkeypatch, step):
    InvertedIndex.build(CODES, dim=64).save(tmp_path)
    (tmp_path / "someone-elses.txt").write_text("stays")
    calls = iter(range(100))

    def crash_at(call):
        def wrapped(*args, **kwargs):
            if next(calls) == step:
                raise KeyboardInterrupt
            return call(*args, **kwargs)

        return wrapped

    monkeypatch.setattr(index_file.os, "fsync", crash_at(os.fsync))
    monkeypatch.setattr(index_file.os, "replace", crash_at(os.replace))
    small = InvertedIndex.build((CODES[0][:10], CODES[1][:10]), dim=64)
    crashed = False
    try:
        small.save(tmp_path)
    except KeyboardInterrupt:
        crashed = True
    assert crashed == (step < 8)
    monkeypatch.undo()
    replaced = step >= 7  # the rename is call 6; the call after it flushes the directory
    assert len(InvertedIndex.load(tmp_path, verify=True)) == (10 if replaced else 3000)
    small.save(tmp_path)
    assert len(InvertedIndex.load(tmp_path, verify=True)) == 10
    assert len(list(tmp_path.iterdir())) == 6
    assert (tmp_path / "someone-elses.txt").read_text() == "stays"


@pytest.mark.parametrize("step", range(6))
def test_a_failed_save_leaves_no_files(tmp_path, monkeypatch, step):
    InvertedIndex.build(CODES, dim=64).save(tmp_path)
    before = sorted(tmp_path.iterdir())
    calls = iter(range(100))

    def full(descriptor):
        if next(calls) == step:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(index_file.os, "fsync", full)
    few = InvertedIndex.build((CODES[0][:10], CODES[1][:10]), dim=64)
    for folder in (tmp_path, tmp_path / "new"):
        calls = iter(range(100))
        with pytest.raises(OSError, match="No space left"):
            few.save(folder)
    monkeypatch.undo()
    assert sorted(tmp_path.iterdir()) == before
    few.save(tmp_path / "new")
    assert len(InvertedIndex.load(tmp_path / "new")) == 10


def test_kill_while_saving(tmp_path):
    """Processes that save two indexes in turn are killed; one of the two is always whole."""
    small = InvertedIndex.build((CODES[0][:100], CODES[1][:100]), dim=64)
    small.save(tmp_path / "small")
    InvertedIndex.build(CODES, dim=64).save(tmp_path / "large")
    small.save(tmp_path / "saved")
    script = f"""
import csrkern
small = csrkern.InvertedIndex.load({str(tmp_path / "small")!r})
large = csrkern.InvertedIndex.load({str(tmp_path / "large")!r})
print("ready", flush=True)
while True:
    large.save({str(tmp_path / "saved")!r})
    small.save({str(tmp_path / "saved")!r})
"""
    for delay in np.random.default_rng(0).uniform(0, 0.05, 8):
        saver = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        saver.stdout.readline()
        time.sleep(delay)
        saver.kill()
        saver.communicate()
        assert len(InvertedIndex.load(tmp_path / "saved", verify=True)) in (100, 3000)
    small.save(tmp_path / "saved")
    assert len(list((tmp_path / "saved").iterdir())) == 5


def test_loading_while_another_thread_saves(tmp_path):
    indexes = [InvertedIndex.build((CODES[0][:n], CODES[1][:n]), dim=64) for n in (100, 3000)]
    indexes[0].save(tmp_path)
    done = threading.Event()

    def save():
        while not done.is_set():
            for index in indexes:
                index.save(tmp_path)

    saver = threading.Thread(target=save)
    saver.start()
    try:
        for _ in range(50):
            assert len(InvertedIndex.load(tmp_path, verify=True)) in (100, 3000)
    finally:
        done.set()
        saver.join()


def test_missing_and_misplaced(tmp_path):
    with pytest.raises(FileNotFoundError, match="no index at"):
        InvertedIndex.load(tmp_path / "nowhere")
    file = tmp_path / "file"
    file.write_text("")
    index = InvertedIndex.build(CODES, dim=64)
    for wrong in (file, str(file), ""):
        with pytest.raises(ValueError, match="expected a directory"):
            index.save(wrong)
        with pytest.raises(ValueError, match="expected a directory"):
            InvertedIndex.build_streaming(CODES, wrong, dim=64)
    index.save(os.fsencode(tmp_path / "bytes"))
    assert len(InvertedIndex.load(os.fsencode(tmp_path / "bytes"))) == 3000
