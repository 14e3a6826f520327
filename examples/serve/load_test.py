"""How fast the server answers on this machine: python examples/serve/load_test.py [INDEX].

Starts app.py on a free port, asks it with codes of the index itself over a few kept
connections, prints a line for each setting, and stops it. Client and server share the machine.
Without an index it makes that of the packaged definitions first, which takes PyTorch.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from urllib.request import urlopen

import numpy as np

from csrkern import InvertedIndex

HERE = Path(__file__).parent
DISTINCT = 512  # requests that a run goes round in


def bodies(index: InvertedIndex, batch: int) -> list[bytes]:
    """Whole HTTP requests of `batch` queries each."""
    values, latents = index.to_numpy()
    random = np.random.default_rng(0)
    made = []
    for _ in range(DISTINCT):
        queries = [
            {"latents": latents[row].tolist(), "values": values[row].tolist()}
            for row in random.integers(0, len(values), batch)
        ]
        asked = {"queries": queries, "top_k": 10, "fingerprint": index.fingerprint}
        content = json.dumps(asked).encode()
        head = f"POST /search HTTP/1.1\r\nHost: here\r\nContent-Length: {len(content)}\r\n"
        made.append(f"{head}Content-Type: application/json\r\n\r\n".encode() + content)
    return made


async def client(port: int, requests: Iterator[bytes], until: float) -> list[float]:
    """Asks one request after the other; the seconds that each answer took."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    seconds = []
    while time.perf_counter() < until:
        started = time.perf_counter()
        writer.write(next(requests))
        head = await reader.readuntil(b"\r\n\r\n")
        status = head.split(b" ", 2)[1]
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        answer = await reader.readexactly(length)
        if status != b"200":
            raise RuntimeError(f"status {status.decode()}: {answer[:300].decode()}")
        seconds.append(time.perf_counter() - started)
    writer.close()
    return seconds


async def run(port: int, requests: list[bytes], clients: int, seconds: float) -> np.ndarray:
    """Seconds of each answer."""
    turns = cycle(requests)
    until = time.perf_counter() + seconds
    answers = await asyncio.gather(*(client(port, turns, until) for _ in range(clients)))
    return np.concatenate(answers)


def start(index: Path) -> tuple[subprocess.Popen[bytes], int]:
    """A server that answers, and its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, HERE / "app.py", index, "--port", str(port)]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    for _ in range(200):
        try:
            with urlopen(f"http://127.0.0.1:{port}/health") as answer:
                assert answer.status == 200
                return server, port
        except OSError:
            if server.poll() is not None:
                break
            time.sleep(0.05)
    server.kill()
    raise SystemExit(f"the server did not start; try: {sys.executable} {HERE / 'app.py'} {index}")


def processor_seconds(pid: int) -> float:
    """Time that a process has spent on processors so far; NaN where there is no /proc."""
    stat = Path(f"/proc/{pid}/stat")
    if not stat.exists():
        return float("nan")
    user, system = stat.read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def machine() -> str:
    """Processor, cores, Python and commit."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = named[0].split(":", 1)[1].strip() if named else model
    git = ["git", "-C", str(HERE), "rev-parse", "--short=10", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    cores = len(os.sched_getaffinity(0))
    return f"{model}, {cores} cores, Python {platform.python_version()}, commit {commit}"


def index_of_definitions(folder: Path) -> Path:
    """The index of docs/start.md."""
    import csrtrain
    from csrtrain.demo.data import load_demo

    data = load_demo()
    config = csrtrain.TrainConfig(steps=60)
    model = csrtrain.train(data.train, config=config)
    codes = model.encode(data.train)
    InvertedIndex.build(codes).save(folder)
    return folder


def measure(folder: Path, options: argparse.Namespace) -> None:
    """Prints a Markdown table of every setting."""
    index = InvertedIndex.load(folder)
    print(f"{len(index):,} codes of k = {index.k}; {machine()}\n")
    print(
        "| queries a request | connections | requests/s | queries/s | p50, ms | p99, ms "
        "| server's processor time, ms a request |"
    )
    print("|--:|--:|--:|--:|--:|--:|--:|")
    server, port = start(folder)
    try:
        for batch in options.batch:
            requests = bodies(index, batch)
            for clients in options.clients:
                asyncio.run(run(port, requests, clients, options.seconds / 10))
                before = processor_seconds(server.pid)
                took = asyncio.run(run(port, requests, clients, options.seconds))
                busy = 1e3 * (processor_seconds(server.pid) - before) / len(took)
                rate = len(took) / options.seconds
                p50, p99 = 1e3 * np.percentile(took, [50, 99])
                print(
                    f"| {batch} | {clients} | {rate:,.0f} | {rate * batch:,.0f} "
                    f"| {p50:.2f} | {p99:.2f} | {busy:.2f} |",
                    flush=True,
                )
    finally:
        server.terminate()
        server.wait(30)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Load-test app.py on this machine.")
    parser.add_argument("index", type=Path, nargs="?", help="a folder of InvertedIndex.save")
    parser.add_argument("--seconds", type=float, default=5, help="for each setting")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(options.index or index_of_definitions(Path(folder) / "index"), options)


if __name__ == "__main__":
    main()
