"""A store that dies at any instant is, when opened again, as it was before or after a change."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import document_texts
import numpy as np
from document_texts import words_codes

from csrkern import storage
from csrkern.documents import DocumentStore
from csrkern.index import file as index_file
from csrkern.index.rows import read_rows

# What the store holds after each of the changes below, and nothing in between.
STATES = [
    {"a": "red fox", "b": "blue fish"},
    {"a": "red fox", "b": "green fish", "c": "green tree"},
    {"a": "red fox", "b": "green fish"},
    {"a": "red fox", "b": "green fish", "d": "yellow sun", "e": "blue sea"},
    {},
    {"f": "white snow"},
]


def changes(store):
    yield store.add(["green fish", "green tree"], ids=["b", "c"])
    yield store.delete(["c"])
    store.save()
    yield store.add(["yellow sun", "blue sea"], ids=["d", "e"])
    store.save()
    yield store.delete(filter={})
    yield store.add(["white snow"], ids=["f"])
    store.save()


def unflushed(folder):
    """Open a store that leaves the disk to the system, which outlives what is killed here."""
    store = DocumentStore(folder, embed=words_codes)
    store._table._db.execute("PRAGMA synchronous = OFF")
    return store


def begin(folder):
    with unflushed(folder) as store:
        store.add([*STATES[0].values()], ids=[*STATES[0]])


def assert_whole(store, texts):
    """Documents, index and words tell the same, and nothing that was deleted is found."""
    assert {document.id: document.text for document in store.find()} == texts
    assert len(store._index or ()) == len(texts)
    values, indices = store.codes([*texts])
    for row, text in enumerate(texts.values()):
        expected = read_rows("codes", words_codes([text]), None)
        kept = values[row] > 0
        np.testing.assert_array_equal(np.sort(indices[row][kept]), expected.indices)
    for word in {word for state in STATES for text in state.values() for word in text.split()}:
        holders = {id for id, text in texts.items() if word in text.split()}
        for by in ("codes", "words", "hybrid"):
            assert {document.id for document, _ in store.search(word, by=by)} == holders


class Step:
    """Pass calls on to what it wraps, except for one, at which it ends everything."""

    def __init__(self, last, end):
        self.last, self.end, self.count = last, end, 0

    def at(self, *_):
        self.count += 1
        if self.count == self.last:
            self.end()

    def wrap(self, call):
        def wrapped(*args, **kwargs):
            self.at()
            return call(*args, **kwargs)

        return wrapped


def watch(store, step, patch):
    """Take a step at each SQL statement, each flush and each renaming."""
    store._table._db.set_trace_callback(step.at)
    for module in (index_file, storage):
        patch(module.os, "fsync", step.wrap(module.os.fsync))
        patch(module.os, "replace", step.wrap(module.os.replace))


def kill_at_every_step(folder):
    """For each step, start a process that is killed there and one that looks at what it left."""
    os.fsync = lambda _: None
    begin(Path(folder) / "begun")
    last = 0
    while True:
        last += 1
        path = Path(folder) / str(last)
        reached, written = os.pipe()
        child = os.fork()
        if child == 0:
            store = unflushed(shutil.copytree(Path(folder) / "begun", path))
            step = Step(last, lambda: os.kill(os.getpid(), signal.SIGKILL))
            watch(store, step, setattr)
            for number, _ in enumerate(changes(store), 1):
                os.write(written, bytes([number]))
            os._exit(0)
        os.close(written)
        with open(reached, "rb") as pipe:
            done = max(pipe.read(), default=0)
        survived = os.waitpid(child, 0)[1] == 0
        looking = os.fork()
        if looking == 0:
            status = 1
            try:
                with unflushed(path) as store:
                    # The change in which it was killed may have been committed.
                    texts = {document.id: document.text for document in store.find()}
                    assert texts in STATES[done : done + 2], (last, done, texts)
                    assert_whole(store, texts)
                with unflushed(path) as store:
                    assert_whole(store, texts)
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(looking, 0)[1] == 0, f"step {last}"
        if survived:
            print(last - 1)
            return


def python(code):
    folders = [str(Path(module).parent) for module in (__file__, document_texts.__file__)]
    return [sys.executable, "-c", f"import sys; sys.path[:0] = {folders!r}\n{code}"]


def test_killed_at_every_step(tmp_path):
    code = f"import test_document_crash as t; t.kill_at_every_step({str(tmp_path)!r})"
    # Its own process, as those that it forks must not inherit threads.
    done = subprocess.run(python(code), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100


def test_killed_at_any_time(tmp_path):
    """Every change replaces three documents by three others: all are of one round."""
    code = f"""
from csrkern.documents import DocumentStore
from document_texts import words_codes
store = DocumentStore({str(tmp_path)!r}, embed=words_codes)
n = 0 if not len(store) else int(store.get(["x"])[0].text.split()[1])
while True:
    n += 1
    store.add([f"round {{n}} {{name}}" for name in "xyz"], ids=list("xyz"))
    print(n, flush=True)
    if n % 3 == 0:
        store.save()
"""
    for delay in np.random.default_rng(0).uniform(0, 0.03, 8):
        child = subprocess.Popen(python(code), stdout=subprocess.PIPE)
        assert child.stdout is not None
        first = int(child.stdout.readline())
        time.sleep(delay)
        child.kill()
        last = int((child.communicate()[0].split() or [first])[-1])
        with DocumentStore(tmp_path, embed=words_codes) as store:
            documents = store.find()
            number = int(documents[0].text.split()[1])
            assert number in (last, last + 1)
            assert [document.text for document in documents] == [
                f"round {number} {name}" for name in "xyz"
            ]
            for document in documents:
                assert store.search(document.text, 1)[0][0] == document
                assert store.search(document.text, 5, by="words")[0][0] == document
            assert len(store._index) == 3


def test_an_error_at_any_step_leaves_one_of_the_states(tmp_path, monkeypatch):
    """The store goes on in the same process, and another that has the folder open agrees."""

    def end():
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", lambda _: None)
    begin(tmp_path / "begun")
    last, reached = 0, True
    while reached:
        last += 1
        store = unflushed(shutil.copytree(tmp_path / "begun", tmp_path / str(last)))
        step = Step(last, end)
        number = 0
        with monkeypatch.context() as patch:
            for module in (index_file, storage):
                patch.setattr(module.os, "fsync", step.wrap(module.os.fsync))
                patch.setattr(module.os, "replace", step.wrap(module.os.replace))
            for name in ("begin", "commit", "insert", "delete", "numbers", "version"):
                patch.setattr(store._table, name, step.wrap(getattr(store._table, name)))
            patch.setattr(store, "_index_rows", step.wrap(store._index_rows))
            reached = False
            try:
                for _ in changes(store):
                    number += 1
            except KeyboardInterrupt:
                reached = True
        texts = {document.id: document.text for document in store.find()}
        assert texts in STATES[number : number + 2]
        assert_whole(store, texts)
        with unflushed(tmp_path / str(last)) as other:
            assert_whole(other, texts)
            other.add(["one more"], ids=["z"])
        assert store.get(["z"])[0].text == "one more"
        assert store.search("more")[0][0].id == "z"
        store.close()
    assert last > 30
