"""A store on files that are damaged, read-only, full, restored in part, or another process's."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import document_texts
import numpy as np
import pytest
from document_texts import words_codes

from csrkern.documents import DocumentStore
from csrkern.documents.table import FILE

pytestmark = pytest.mark.filterwarnings("ignore:the index is built again")


def begin(folder, n=200):
    with DocumentStore(folder, embed=words_codes) as store:
        store.add([f"word{i % 7} doc{i}" for i in range(n)], ids=[f"i{i}" for i in range(n)])
    return folder


def in_process(code):
    """Run code in a process of its own, whose limits and user may change."""
    code = f"import sys; sys.path.insert(0, {str(Path(document_texts.__file__).parent)!r})\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["postings", "terms", "ids", "offsets", "checksums", "index"])
@pytest.mark.parametrize("damage", ["gone", "flipped"])
def test_every_damaged_file_of_the_index_is_replaced(tmp_path, name, damage):
    begin(tmp_path / "store")
    (file,) = (tmp_path / "store").glob(f"{name}*")
    if damage == "gone":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 255
        file.write_bytes(content)
    for _ in range(2):  # the second time, from what the first one saved
        with DocumentStore(tmp_path / "store", embed=words_codes) as store:
            for i in range(7):
                assert len(store.search(f"word{i}", 200)) == len(range(i, 200, 7))


def test_a_damaged_file_is_named_wherever_it_is_damaged(tmp_path):
    begin(tmp_path / "store", 400)
    whole = (tmp_path / "store" / FILE).read_bytes()
    rng = np.random.default_rng(0)
    told = []
    for trial in range(60):
        shutil.copytree(tmp_path / "store", tmp_path / str(trial))
        damaged = bytearray(whole)
        at = int(rng.integers(0, 3000 if trial % 2 else len(whole)))
        damaged[at : at + 100] = rng.bytes(len(damaged[at : at + 100]))
        (tmp_path / str(trial) / FILE).write_bytes(damaged)
        try:
            with DocumentStore(tmp_path / str(trial), embed=words_codes) as store:
                store.search("word3", 5, by="hybrid", filter={"x": None})
                store.find()
        except ValueError as error:
            told.append(str(error))
    assert len(told) > 10
    assert all(FILE in message for message in told), told


def test_a_file_that_may_not_be_written_is_named(tmp_path):
    if os.getuid() != 0:
        pytest.skip("needs root, to become a user who may not write")
    begin(tmp_path)
    said = in_process(f"""
import os
from csrkern.documents import DocumentStore
os.chmod({str(tmp_path)!r}, 0o555)
os.chmod({str(tmp_path / FILE)!r}, 0o444)
import pathlib
for folder in pathlib.Path({str(tmp_path)!r}).parents:
    os.chmod(folder, folder.stat().st_mode | 0o555)
os.setuid(65534)
try:
    DocumentStore({str(tmp_path)!r})
except OSError as error:
    print(error)
""")
    assert FILE in said
    assert "readonly" in said
    assert "expected" in said


def test_a_full_disk_loses_nothing_that_was_there(tmp_path):
    begin(tmp_path, 50)
    said = in_process(f"""
import resource
from csrkern.documents import DocumentStore
from document_texts import words_codes
store = DocumentStore({str(tmp_path)!r}, embed=words_codes)
for limit in (0, 2**14, 60_000, 100_000, 200_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        store.add([f"word{{i}} " * 2000 for i in range(30)])
    except OSError as error:
        assert {FILE!r} in str(error)
        print("refused")
    assert len(store) == len(store._index) == 50
    assert len(store.search("word3", 100)) == 7
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
store.add(["word3"], ids=["z"])
assert len(store.search("word3", 100)) == 8
store.close()
""")
    assert said.split() == ["refused"] * 5
    with DocumentStore(tmp_path, embed=words_codes) as store:
        assert len(store) == 51
        assert len(store.search("word3", 100)) == 8


def test_documents_that_are_restored_without_their_index(tmp_path):
    """Numbers that the older file gives out again must not be taken for those in the index."""
    begin(tmp_path / "store", 10)
    older = (tmp_path / "store" / FILE).read_bytes()
    with DocumentStore(tmp_path / "store", embed=words_codes) as store:
        store.add(["old fish", "old tree"])
    (tmp_path / "store" / FILE).write_bytes(older)
    store = DocumentStore(tmp_path / "store", embed=words_codes)
    store.add(["red fox", "blue sea"], ids=["fox", "sea"])
    del store  # without writing its index
    store = DocumentStore(tmp_path / "store", embed=words_codes)
    assert [hit.id for hit, _ in store.search("fox")] == ["fox"]
    assert store.search("fish") == []


def test_a_forked_process_must_open_the_store_itself(tmp_path):
    store = DocumentStore(tmp_path, embed=words_codes)
    store.add(["red fox"], ids=["a"])

    def use(results):
        for call in (lambda: store.add(["blue fish"]), lambda: store.search("fox"), store.close):
            try:
                call()
                results.put("no error")
            except RuntimeError as error:
                results.put(str(error))

    context = multiprocessing.get_context("fork")
    results = context.Queue()
    with store._lock:  # held by a thread of the parent as it forks, say
        process = context.Process(target=use, args=(results,))
        process.start()
        said = [results.get(timeout=60) for _ in range(3)]
        process.join()
    assert all("opened by another process" in message for message in said), said
    assert len(store) == 1
