"""Stores that are only read, and stores that go to other processes."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import sqlite3
import subprocess
import sys
from pathlib import Path

import document_texts
import numpy as np
import pytest
import torch
from document_texts import words_codes

from csrkern.documents import DocumentStore
from csrkern.documents.table import FILE
from csrkern.nn import SparseAutoencoder

TEXTS = ["red fox", "blue fish", "green tree"]


@pytest.fixture
def folder(tmp_path):
    with DocumentStore(tmp_path / "store", embed=words_codes) as store:
        store.add(TEXTS, ids=["a", "b", "c"], metadata=[{"n": n} for n in range(3)])
    return tmp_path / "store"


def found(store):
    return [document.id for document, _ in store.search("fox fish", by="hybrid")]


def test_a_store_that_is_read_finds_everything_and_changes_nothing(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with DocumentStore(folder, embed=words_codes, read_only=True) as store:
        assert sorted(found(store)) == ["a", "b"]
        assert (len(store), store.count({"n": 2}), store.get(["c"])[0].text) == (3, 1, "green tree")
        for change in (
            lambda: store.add(["x"]),
            lambda: store.delete(["a"]),
            lambda: store.index_field("n"),
            store.save,
        ):
            with pytest.raises(io.UnsupportedOperation, match="without read_only=True"):
                change()
        assert sorted(found(store)) == ["a", "b"]
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_a_reader_follows_the_changes_of_a_writer(folder):
    reader = DocumentStore(folder, embed=words_codes, read_only=True)
    with DocumentStore(folder, embed=words_codes) as writer:
        writer.add(["fox fish"], ids=["d"])
        assert sorted(found(reader)) == ["a", "b", "d"]
        writer.delete(["a"])
        assert sorted(found(reader)) == ["b", "d"]
    assert sorted(found(reader)) == ["b", "d"]
    reader.close()


def test_a_reader_leaves_an_index_of_another_file_where_it_is(folder, tmp_path):
    older = (folder / FILE).read_bytes()
    with DocumentStore(folder, embed=words_codes) as store:
        store.add(["old fish"], ids=["d"])
    (folder / FILE).write_bytes(older)
    names = sorted(path.name for path in folder.iterdir())
    with pytest.warns(UserWarning, match="the index is built again"):
        reader = DocumentStore(folder, embed=words_codes, read_only=True)
    assert sorted(found(reader)) == ["a", "b"]
    assert set(names) <= {path.name for path in folder.iterdir()}


def test_a_disk_that_cannot_be_written_is_read(folder, tmp_path):
    if os.getuid() != 0:
        pytest.skip("needs root, to become a user who may not write")
    code = f"""
import os, pathlib, sys
sys.path.insert(0, {str(Path(document_texts.__file__).parent)!r})
from csrkern.documents import DocumentStore
from document_texts import words_codes
folder = pathlib.Path({str(folder)!r})
for file in folder.iterdir():
    os.chmod(file, 0o444)
os.chmod(folder, 0o555)
# That user may not read where Python's packages are: what a search imports is there before.
other = {str(tmp_path / "other")!r}
with DocumentStore(other, embed=words_codes) as store:
    store.add(["a fox", "a dog"])
with DocumentStore(other, embed=words_codes, read_only=True) as store:
    store.search("fox")
for above in folder.parents:
    os.chmod(above, above.stat().st_mode | 0o555)
os.setuid(65534)
with DocumentStore(folder, embed=words_codes, read_only=True) as store:
    print(*[document.id for document, _ in store.search("fox")], len(store))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["a", "3"], done.stderr


def test_a_model_is_used_and_not_copied(tmp_path):
    torch.manual_seed(0)
    model = SparseAutoencoder(8, 64, 4).eval()
    rows = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    codes = model.encode(torch.from_numpy(rows))
    with DocumentStore(tmp_path / "store") as store:
        store.add(TEXTS, ids=["a", "b", "c"], embeddings=codes)
    with DocumentStore(tmp_path / "store", model, read_only=True) as store:
        for reader in (store, pickle.loads(pickle.dumps(store))):
            assert reader.search(embedding=rows[1])[0][0].id == "b"
    assert not (tmp_path / "store" / "model").exists()


def test_what_cannot_be_read_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a store, found none"):
        DocumentStore(tmp_path / "nowhere", read_only=True)
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(ValueError, match="read_only: expected False for a store in memory"):
        DocumentStore(read_only=True)
    with pytest.raises(TypeError, match="read_only"):
        DocumentStore(folder, read_only=1)
    with pytest.raises(ValueError, match="metric: this store has 'cosine', got 'ip'"):
        DocumentStore(folder, metric="ip", read_only=True)
    (tmp_path / "empty").mkdir()
    sqlite3.connect(tmp_path / "empty" / FILE).execute("VACUUM")
    with pytest.raises(ValueError, match="found no tables"):
        DocumentStore(tmp_path / "empty", read_only=True)


def _in_a_worker(store, answers):
    answers.put(found(store))
    store.add(["fox fish"], ids=["d"])
    store.close()


def test_a_pickled_store_is_opened_anew(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    store = DocumentStore("store", embed=words_codes)
    monkeypatch.chdir(folder)
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    worker = context.Process(target=_in_a_worker, args=(store, answers))
    worker.start()
    assert sorted(answers.get(timeout=120)) == ["a", "b"]
    worker.join()
    assert worker.exitcode == 0
    assert sorted(found(store)) == ["a", "b", "d"]
    again = pickle.loads(pickle.dumps(DocumentStore(folder, embed=words_codes, read_only=True)))
    assert sorted(found(again)) == ["a", "b", "d"]
    with pytest.raises(io.UnsupportedOperation):
        again.delete(["a"])
    pickled = pickle.dumps(store)
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(FileNotFoundError, match="folder of the store that was pickled"):
        pickle.loads(pickled)


def test_a_store_in_memory_says_why_it_cannot_be_pickled():
    with (
        DocumentStore(embed=words_codes) as store,
        pytest.raises(TypeError, match="in memory cannot be pickled"),
    ):
        pickle.dumps(store)
