"""`csrkern serve` as processes of its own, asked over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from safetensors.numpy import save

from csrkern import InvertedIndex

for needed in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(needed)

DIM, K = 64, 4


def codes(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    latents = random.permuted(np.tile(np.arange(DIM), (n, 1)), axis=1)[:, :K].astype(np.int32)
    return random.random((n, K), np.float32) + 0.1, latents


def asked(n: int) -> bytes:
    values, indices = codes(n)
    rows = zip(values.tolist(), indices.tolist(), strict=True)
    queries = [{"values": v, "indices": i} for v, i in rows]
    return json.dumps({"queries": queries, "top_k": 20}).encode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    InvertedIndex.build(codes(200), dim=DIM).save(tmp_path / "index")
    return tmp_path


class Served(NamedTuple):
    process: subprocess.Popen[str]
    url: str

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def get(self, path: str) -> str:
        with urlopen(self.url + path, timeout=30) as answer:
            return answer.read().decode()

    def status(self, path: str, body: bytes | None = None) -> int:
        headers = {"Content-Type": "application/json"}
        try:
            with urlopen(Request(self.url + path, body, headers), timeout=30) as answer:
                answer.read()
                return answer.status
        except HTTPError as error:
            return error.code


@contextlib.contextmanager
def serving(folder: Path, *options: str, without: str = "torch", ready: bool = True):
    """A server with a package made impossible to import; it ends with the block."""
    hide = f"import sys; sys.modules[{without!r}] = None; "
    run = f"{hide}from csrtrain.cli.app import main; main()"
    command = [sys.executable, "-c", run, "serve", str(folder / "index"), "--port", "0", "--json"]
    log = (folder / "log").open("w")
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        first = process.stdout.readline()
        assert first, (folder / "log").read_text()
        served = Served(process, json.loads(first)["url"])
        if ready:
            wait_for(lambda: answers(served, "/ready"))
        yield served
    finally:
        process.terminate()
        process.wait(30)
        log.close()
        print((folder / "log").read_text())


def answers(served: Served, path: str) -> bool:
    assert served.process.poll() is None
    try:
        return served.status(path) == 200
    except OSError:
        return False


def wait_for(done, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until
        time.sleep(0.05)


@contextlib.contextmanager
def begun(served: Served, length: int) -> Iterator[socket.socket]:
    """A request that has been begun, not ended."""
    with socket.create_connection(served.address, timeout=30) as connection:
        head = f"POST /search HTTP/1.1\r\nHost: here\r\nContent-Length: {length}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode())
        yield connection


def answer_of(connection: socket.socket) -> bytes:
    read = b""
    while b"\r\n\r\n" not in read:
        more = connection.recv(65536)
        assert more, read
        read += more
    return read


def test_it_is_not_ready_before_it_has_loaded(folder):
    os.mkfifo(folder / "rows.jsonl")  # held until something is written
    with serving(folder, "--payloads", str(folder / "rows.jsonl"), ready=False) as served:
        wait_for(lambda: answers(served, "/health"))
        assert served.status("/ready") == 503
        assert served.status("/index") == 503
        waiting = []
        client = threading.Thread(target=lambda: waiting.append(served.status("/search", asked(1))))
        client.start()
        (folder / "rows.jsonl").write_text("".join(f'{{"row": {i}}}\n' for i in range(200)))
        wait_for(lambda: served.status("/ready") == 200)
        client.join(30)
        assert waiting == [200]  # asked before, answered after


def test_workers_share_a_changing_index_and_lose_no_request(folder):
    with serving(folder, "--workers", "2") as served:
        statuses: list[tuple[str, int]] = []
        stop = threading.Event()
        values, indices = codes(20)
        binary = save({"values": values, "indices": indices})

        def keep_asking(path: str, body: bytes) -> None:
            while not stop.is_set():
                statuses.append((path, served.status(path, body)))

        bodies = (("/search", asked(20)), ("/search/binary", binary))
        clients = [threading.Thread(target=keep_asking, args=of) for of in bodies]
        for client in clients:
            client.start()
        for n in (300, 150, 400):
            before = len(statuses)
            InvertedIndex.build(codes(n, seed=n), dim=DIM).save(folder / "index")
            wait_for(lambda n=n: all_have(served, n))
            wait_for(lambda before=before: len(statuses) > before)
        stop.set()
        for client in clients:
            client.join(30)
        assert {status for _, status in statuses} == {200}
        assert {path for path, _ in statuses} == {"/search", "/search/binary"}
        # Of both processes; a request is counted a moment after its answer.
        wait_for(lambda: searches_counted(served.get("/metrics")) == len(statuses))
        metrics = served.get("/metrics")
        # Two at first, then each change by one of them at least: one that is slow may pass it over.
        (loads,) = re.findall(r'csrkern_loads_total\{result="loaded"\} (\d+)', metrics)
        assert int(loads) >= 5
        assert 'result="failed"' not in metrics
        maps = [Path(f"/proc/{pid}/maps").read_text() for pid in children(served.process.pid)]
        of_index = [text for text in maps if "libtorch" not in text and "_C." in text]
        assert len(of_index) >= 2


def searches_counted(metrics: str) -> float:
    return sum(
        float(line.split()[1])
        for line in metrics.splitlines()
        if line.startswith("csrkern_requests_total{") and 'path="/search' in line
    )


def all_have(served: Served, n: int) -> bool:
    """Whether whichever worker answers serves n documents: asked often enough to meet both."""
    try:
        return all(json.loads(served.get("/index"))["documents"] == n for _ in range(20))
    except HTTPError:  # the second has not loaded yet
        return False


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_ends_it_when_what_was_asked_is_answered(folder, workers):
    body = asked(1)
    with serving(folder, "--workers", workers) as served:
        with begun(served, len(body)) as connection:
            connection.sendall(body[:10])
            time.sleep(0.3)
            served.process.send_signal(signal.SIGTERM)
            time.sleep(1)
            connection.sendall(body[10:])
            assert answer_of(connection).startswith(b"HTTP/1.1 200")
        assert served.process.wait(30) == 0


def test_slow_and_too_many_clients_hold_nobody_up(folder):
    with serving(folder, "--concurrency", "1", "--timeout", "5") as served:
        body = asked(1)
        with begun(served, len(body)) as connection:
            connection.sendall(body[:10])
            wait_for(lambda: "in_flight 1.0" in served.get("/metrics"))
            assert served.status("/search", body) == 503
            assert served.status("/health") == 200
            answer = answer_of(connection)
        assert answer.startswith(b"HTTP/1.1 408")
        assert served.status("/search", body) == 200


def test_a_request_needs_the_key(folder):
    (folder / "key").write_text("s3cret")
    with serving(folder, "--api-key-file", str(folder / "key")) as served:
        assert served.status("/search", asked(1)) == 401
        headers = {"Content-Type": "application/json", "Authorization": "Bearer s3cret"}
        with urlopen(Request(f"{served.url}/search", asked(1), headers)) as answer:
            assert answer.status == 200
        assert "s3cret" not in Path(f"/proc/{served.process.pid}/cmdline").read_text()


def test_another_program_has_the_port(folder):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        command = [sys.executable, "-m", "csrtrain", "serve", folder / "index", "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == (
        f"csrkern: 127.0.0.1:{port}: Address already in use; choose another --host or --port\n"
    )
