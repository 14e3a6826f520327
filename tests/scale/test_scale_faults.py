"""csrtrain.scale killed at any instant, and on a server that fails now and then; without Ray."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from csrkern import InvertedIndex, SparseCodes
from csrkern.nn import SparseAutoencoder
from csrtrain.scale import add_shard, encode, shards
from csrtrain.scale.folder import Folder
from csrtrain.scale.serving import Holder, Lookup

pytest.importorskip("fsspec", reason="needs csrkern[ray]")

# Runs a job in children that are killed after ever longer times, until one ends by itself.
KILLER = """
import contextlib, json, os, random, signal, sys, time
import numpy, torch
from csrkern.nn import SparseAutoencoder
from csrtrain.scale import build, encode
from csrtrain.scale.folder import Folder

def encode_here(_ray, job, todo, *_):
    worker = encode.Encoder(job)
    return (worker.encode(piece) for piece in todo)

def build_here(_ray, source, out, todo, form, _workers):
    return (build.build_one(source, out, plan, form) for plan in todo)

for module, run in ((encode, encode_here), (build, build_here)):
    module._run = run
    module.connected = lambda _address: contextlib.nullcontext()
    module.import_ray = lambda: None
job, kills, limit = json.loads(sys.argv[1]), 0, 0.005
while True:
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        getattr({"encode": encode, "build": build}[job["module"]], job["call"])(
            *job["args"], **job["options"]
        )
        os._exit(0)
    until = time.monotonic() + random.uniform(0, limit)
    while (state := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < until:
        time.sleep(0.001)
    if state[0] == 0:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
        limit *= 1.4
    elif state[1]:
        sys.exit("failed")
    else:
        break
print(kills)
"""


def until_done(module: str, call: str, *args: Any, **options: Any) -> int:
    """How often it was killed."""
    job = json.dumps(
        {"module": module, "call": call, "args": list(map(str, args)), "options": options}
    )
    done = subprocess.run([sys.executable, "-c", KILLER, job], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_killed_at_any_instant(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((900, 8)).astype(np.float32)
    (tmp_path / "corpus").mkdir()
    for number, part in enumerate(np.array_split(rows, 3)):
        np.save(tmp_path / f"corpus/{number}.npy", part)
    SparseAutoencoder(8, 64, 6).save_pretrained(tmp_path / "model")
    places = [tmp_path / name for name in ("corpus", "model", "codes")]
    kills = until_done("encode", "encode_corpus", *places, piece_rows=50)
    manifest = encode.read_codes_manifest(Folder.of(tmp_path / "codes"))
    assert [p["first_id"] for p in manifest["pieces"]] == list(range(0, 900, 50))
    files = [tmp_path / "codes" / piece["file"] for piece in manifest["pieces"]]
    sides = zip(*(SparseCodes.load(file).numpy() for file in files), strict=True)
    found = [np.concatenate(side) for side in sides]
    codes = SparseAutoencoder.from_pretrained(tmp_path / "model").eval().encode(rows)
    np.testing.assert_array_equal(found[1], codes.numpy()[1])
    kills += until_done("build", "build_shards", tmp_path / "codes", tmp_path / "index", shards=5)
    folder = Folder.of(tmp_path / "index")
    same_as_one_index(folder, found, metric="cosine")
    new = {"shards": 3, "metric": "ip", "replace": True}
    kills += until_done("build", "build_shards", tmp_path / "codes", tmp_path / "index", **new)
    assert len(shards.newest(folder).shards) == 3
    same_as_one_index(folder, found, metric="ip")
    assert kills > 2


def same_as_one_index(folder: Folder, codes: Any, metric: str) -> None:
    """Compares searches."""
    found = shards.newest(folder)
    queries = codes[0][:20].astype(np.float32), codes[1][:20]
    lookup = Lookup(found.number, tuple(range(len(found.shards))), *queries, 30)
    (answer,) = Holder(folder, 1).search_all([lookup])
    assert answer.missing == ()
    expected = InvertedIndex.build(
        (codes[0].astype(np.float32), codes[1]), dim=64, metric=metric
    ).search(queries, 30)
    np.testing.assert_array_equal(answer.hits.ids, expected[1])
    np.testing.assert_array_equal(answer.hits.scores, expected[0])


class Flaky:
    """A web application that answers some requests with an error, or not at all."""

    def __init__(self, app: Any) -> None:
        self.app, self.failures = app, 0
        self._random, self._lock = np.random.default_rng(0), threading.Lock()

    def __call__(self, environ: Any, start: Callable[..., Any]) -> Any:
        with self._lock:
            chance = self._random.random()
            self.failures += chance < 0.25
        if chance < 0.1:
            start("500 Internal Server Error", [("Content-Type", "text/plain")])
            return [b"no"]
        if chance < 0.2:
            start("503 Slow Down", [("Content-Type", "text/plain")])
            return [b"no"]
        done = self.app(environ, start)
        if chance < 0.25:  # done, but nobody is told
            b"".join(done)
            raise ConnectionResetError
        return done


@pytest.fixture
def flaky() -> Iterator[tuple[str, dict[str, Any], Flaky]]:
    """A bucket on such a server; s3fs and botocore do not ask again by themselves."""
    pytest.importorskip("s3fs", reason="needs s3fs")
    server = pytest.importorskip("moto.server", reason="needs moto[server]")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    options = {
        "key": "k",
        "secret": "s",
        "endpoint_url": f"http://{host}:{port}",
        "config_kwargs": {"retries": {"max_attempts": 0}, "read_timeout": 2},
    }
    import fsspec

    fsspec.filesystem("s3", **options).mkdir("flaky")
    app = Flaky(running._server.app)
    running._server.app = app
    yield "s3://flaky", options, app
    running.stop()


def test_a_server_that_fails_now_and_then(
    flaky: tuple[str, dict[str, Any], Flaky], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, options, app = flaky
    monkeypatch.setattr("csrtrain.scale.folder.FIRST_PAUSE", 0.01)
    rng = np.random.default_rng(1)
    values = rng.random((200, 5), dtype=np.float32) + 0.1
    indices = np.argsort(rng.random((200, 64)), axis=1)[:, :5].astype(np.int32)

    def add(left: int) -> None:
        part, ids = slice(left, left + 50), np.arange(left, left + 50)
        place = tmp_path / f"part{left}"
        InvertedIndex.build((values[part], indices[part]), ids, dim=64).save(place)
        add_shard(place, f"{url}/index", options=options)

    writers = [threading.Thread(target=add, args=(left,)) for left in range(0, 200, 50)]
    for writer in writers:  # who all change the manifest at once
        writer.start()
    for writer in writers:
        writer.join()
    folder = Folder.of(f"{url}/index", options)
    found = shards.newest(folder)
    assert sorted(shard.first_id for shard in found.shards) == list(range(0, 200, 50))
    lookup = Lookup(found.number, tuple(range(4)), values[:9], indices[:9], 7)
    (answer,) = Holder(folder, 1).search_all([lookup])
    whole = InvertedIndex.build((values, indices), dim=64).search((values[:9], indices[:9]), 7)
    assert answer.missing == ()
    np.testing.assert_array_equal(answer.hits.ids, whole[1])
    assert app.failures > 5


def test_scratch_of_a_killed_process_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from csrtrain.scale.scratch import scratch_folder

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = (
        "import sys, tempfile, time; tempfile.tempdir = sys.argv[1]\n"
        "from csrtrain.scale.scratch import scratch_folder\n"
        "with scratch_folder() as place: print(place, flush=True); time.sleep(60)"
    )
    killed = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert killed.stdout is not None
    place = Path(killed.stdout.readline().strip())
    with scratch_folder():
        assert place.is_dir()  # its process lives
    killed.kill()
    killed.wait()
    with scratch_folder() as own:
        assert not place.exists()
        assert list(tmp_path.iterdir()) == [own]
    assert not list(tmp_path.iterdir())
