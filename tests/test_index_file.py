"""InvertedIndex.save and load: equality, replacement, and files that lie."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from itertools import pairwise

import index_codes
import numpy as np
import pytest

from csrkern import _C, InvertedIndex, index_file

CODES = index_codes.uniform(3000, 64, 6)
QUERIES = index_codes.uniform(20, 64, 6, seed=1)


def clustered():
    """An index with arrays of every name: 3 windows of 1,024, 12 blocks of 256."""
    ids = np.arange(3000) * 3
    index = InvertedIndex.build(CODES, ids, norms=ids + 1, dim=64, window=1024, cluster=True)
    index.remove([300, 6000])
    return index


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("index") / "whole"
    clustered().save(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def the_file(folder, name):
    return next(folder.glob(f"{name}-*.bin"))


def use(folder, **options):
    """Loads the index and touches every list."""
    index = InvertedIndex.load(folder, **options)
    everything = np.ones((1, 64), np.float32), np.arange(64)[None]
    return index.search(everything, 3000), index.search(QUERIES, 10)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("values", ["float16", "float32"])
@pytest.mark.parametrize("metric", ["ip", "cosine"])
@pytest.mark.parametrize("ids", [None, np.arange(3000)[::-1] + 5])
def test_loaded_equals_built(tmp_path, mmap, values, metric, ids):
    index = InvertedIndex.build(CODES, ids, dim=64, values=values, metric=metric, window=512)
    index.save(tmp_path / "a")
    loaded = InvertedIndex.load(tmp_path / "a", mmap=mmap, verify=True)
    assert repr(loaded) == repr(index)
    assert len(loaded) == 3000
    assert (loaded.dim, loaded.k, loaded.metric) == (64, 6, metric)
    assert loaded.stats() == index.stats()
    for got, want in zip(loaded.search(QUERIES, 20), index.search(QUERIES, 20), strict=True):
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(loaded.ids, index.ids)
    loaded.save(tmp_path / "b")
    again = InvertedIndex.load(tmp_path / "b")
    np.testing.assert_array_equal(
        again._segments[0].native.postings, index._segments[0].native.postings
    )


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


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("name", list(index_file.DTYPES))
def test_any_flipped_byte_is_found(copy, name, mmap):
    file = the_file(copy, name)
    whole = file.read_bytes()
    for at in [0, len(whole) - 1, *np.random.default_rng(0).integers(0, len(whole), 12)]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            use(copy, mmap=mmap)
        with pytest.raises(ValueError, match="damaged"):
            InvertedIndex.load(copy, mmap=mmap, verify=True)


@pytest.mark.parametrize("name", list(index_file.DTYPES))
def test_truncated_longer_or_missing_files(copy, name):
    file = the_file(copy, name)
    whole = file.read_bytes()
    for wrong in (b"", whole[:-1], whole[: len(whole) // 2], whole + b"\0"):
        file.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"damaged: expected .* bytes, found"):
            use(copy)
    file.unlink()
    with pytest.raises(ValueError, match="damaged: no file"):
        use(copy)


def test_any_flipped_byte_of_the_header_is_found(copy):
    header = copy / "index.json"
    whole = header.read_bytes()
    same = 0
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 7
        header.write_bytes(damaged)
        try:
            use(copy)
            same += 1  # white space only: the header says the same
            assert not whole[at : at + 1].strip() or json.loads(damaged) == json.loads(whole)
        except ValueError as error:
            assert re.search("damaged|version", str(error))  # noqa: PT017
    assert same < len(whole) // 4


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{", b"null", b"\xff\xfe", b"[" * 100_000, b" " * (2 << 20), b'{"a": NaN}'],
)
def test_headers_that_are_no_header(copy, text):
    (copy / "index.json").write_bytes(text)
    with pytest.raises(ValueError, match="damaged"):
        InvertedIndex.load(copy)


def test_missing_and_misplaced(tmp_path):
    with pytest.raises(FileNotFoundError, match="no index at"):
        InvertedIndex.load(tmp_path / "nowhere")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match="expected a directory"):
        InvertedIndex.build(CODES, dim=64).save(file)


def forge(folder, change, arrays=()):
    """Rewrites header and arrays with checksums that agree, as an attacker would."""
    header = json.loads((folder / "index.json").read_text())
    body = header["index"]
    change(body)
    for name, array in dict(arrays).items():
        the_file(folder, name).write_bytes(array.tobytes())
        entry = body["segments"][0]["arrays"][name]
        entry["size"] = array.size
        entry["crc32c"] = _C.crc32c(np.ascontiguousarray(array))
    header["crc32c"] = _C.crc32c(index_file._canonical(body))
    (folder / "index.json").write_text(json.dumps(header))


OF_SEGMENTS = ("documents", "window", "block", "arrays")


@pytest.mark.parametrize(
    "key", [*OF_SEGMENTS, "dim", "k", "metric", "values", "cluster", "next_id", "segments"]
)
@pytest.mark.parametrize("wrong", [-1, 0, 2**62, 2**70, 1.5, None, "x", True, [], {}])
def test_forged_header(copy, key, wrong):
    if key in ("k", "block", "next_id") and type(wrong) is int and wrong == 0:
        pytest.skip("an index of empty rows, or one that leaves its maxima or its ids unused")
    if (key, wrong) in [("next_id", 2**62), ("cluster", True), ("cluster", None)]:
        pytest.skip("fits")
    part = (lambda body: body["segments"][0]) if key in OF_SEGMENTS else (lambda body: body)
    forge(copy, lambda body: part(body).update({key: wrong}))
    with pytest.raises(ValueError, match="damaged"):
        use(copy)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "ids-0123456789abcdef.bin", 3])
def test_forged_file_names(copy, name):
    forge(copy, lambda body: body["segments"][0]["arrays"]["terms"].update(file=name))
    with pytest.raises(ValueError, match="damaged"):
        use(copy)


def forged_arrays():
    index = clustered()._segments[0].native
    terms, offsets, postings = index.terms, index.offsets, index.postings
    maxima, scales = index.maxima, index.scales
    half = postings.view(np.uint16)

    def with_sums(**arrays):
        parts = {"postings": postings, "maxima": maxima, "scales": scales, **arrays}
        ends = offsets[::3].astype(int) * 4
        rows = parts["maxima"].reshape(64, -1)
        return arrays | {
            "checksums": np.array(
                [
                    _C.crc32c(
                        parts["postings"][a:b].tobytes()
                        + row.tobytes()
                        + parts["scales"][t : t + 1].tobytes()
                    )
                    for t, ((a, b), row) in enumerate(zip(pairwise(ends), rows, strict=True))
                ],
                np.uint32,
            )
        }

    def with_half(at, value):
        data = half.copy()
        data[at] = value
        return with_sums(postings=data.view(np.uint8))

    def changed(array, at, value):
        array = array.copy()
        array[at] = value
        return array

    n = int(offsets[1])
    yield "local number beyond the window", with_half(n - 1, 65_535)
    yield "local number beyond the last document", with_half(offsets[2] + offsets[3] - 1, 1023)
    yield "local numbers out of order", with_half(1, half[0])
    yield "value not finite", with_half(n, 0x7C00)
    yield "value negative", with_half(n, 0x8001)
    yield "value zero", with_half(n, 0)
    yield "maximum too low", with_sums(maxima=changed(maxima, 0, maxima[0] - 1))
    yield "maximum missing", with_sums(maxima=changed(maxima, 5, 0))
    for scale in (np.nan, np.inf, 0, -1, scales[0] / 2):
        yield f"scale {scale}", with_sums(scales=changed(scales, 0, scale))
    yield "too few maxima", {"maxima": maxima[:-1]}
    yield "too few scales", {"scales": scales[:-1]}
    yield "latent beyond dim", {"terms": changed(terms, -1, 64)}
    yield "latent negative", {"terms": changed(terms, 0, -1)}
    yield "latents out of order", {"terms": changed(terms, 0, terms[1])}
    yield "offsets decrease", {"offsets": changed(offsets, 5, offsets[4] - 1)}
    yield "offsets far away", {"offsets": changed(offsets, 5, 2**63)}
    yield "offsets start late", {"offsets": changed(offsets, 0, 1)}
    yield "offsets end early", {"offsets": changed(offsets, -1, offsets[-1] - 1)}
    yield "offsets wrap around", {"offsets": changed(offsets, -1, offsets[-1] + 2**62)}
    yield "too few offsets", {"offsets": offsets[:-1]}
    yield "too few checksums", {"checksums": index.checksums[:-1]}
    yield "too few ids", {"ids": index.ids[:-1]}
    yield "too few norms", {"norms": index.norms[:-1]}
    for norm in (np.nan, np.inf, 0, -1):
        yield f"norm {norm}", {"norms": changed(index.norms, 7, norm)}
    yield "living documents beyond the last", {"alive": np.full(47, 2**64 - 1, np.uint64)}
    yield "too few removed", {"alive": np.full(46, 2**64 - 1, np.uint64)}


@pytest.mark.parametrize(("what", "arrays"), list(forged_arrays()), ids=lambda a: str(a)[:40])
def test_forged_arrays(copy, what, arrays):
    forge(copy, lambda body: None, arrays)
    with pytest.raises(ValueError, match="damaged"):
        use(copy)


def test_damage_spoils_no_other_index(copy, saved):
    """A search that meets damage leaves nothing behind for the next one."""
    want = use(saved)
    file = the_file(copy, "postings")
    data = bytearray(file.read_bytes())
    data[2000] ^= 255
    file.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        use(copy)
    for got, good in zip(use(saved), want, strict=True):
        np.testing.assert_array_equal(got[0], good[0])
