"""Measure how fast `csrkern serve` answers: python -m benchmarks.serve.load [--save].

Makes an index of the packaged definitions, starts the server, loads it with wrk, and prints a line
for each case: queries that the index was not made of, in JSON or safetensors. The last case has the
index written again and again meanwhile. wrk keeps every connection busy, so latencies with many
connections are mostly time in line. Server and wrk share the processors that this process may run
on; `--save` writes benchmarks/results.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import numpy as np

from benchmarks.harness import provenance

DISTINCT = 512  # requests that a run goes round in
REWRITTEN_EVERY = 1.5  # seconds between two indexes; the server looks for new ones every second
SCRIPT = """
local bodies, turn = {}, 0
for i = 0, %(distinct)d - 1 do
  local file = assert(io.open("%(folder)s/" .. i, "rb"))
  bodies[i] = file:read("*a")
  file:close()
end
wrk.method = "POST"
wrk.headers["Content-Type"] = "%(type)s"
function request()
  turn = (turn + 1) %% %(distinct)d
  return wrk.format(nil, nil, nil, bodies[turn])
end
function done(summary, latency)
  local wrong = summary.errors
  io.write(string.format('{"requests": %%d, "seconds": %%f, "p50_ms": %%f, "p99_ms": %%f, ' ..
    '"failed": %%d}', summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3,
    wrong.connect + wrong.read + wrong.write + wrong.status + wrong.timeout))
end
"""


class Case(NamedTuple):
    """One load: queries in a request, connections, and the form that they have."""

    form: str
    batch: int
    connections: int
    reload: bool = False


BATCHES = {"codes": (1, 32), "embeddings": (1,), "texts": (1,), "codes, binary": (32,)}
CASES = [
    *(Case(form, n, c) for form, sizes in BATCHES.items() for n in sizes for c in (1, 8)),
    Case("codes", 1, 8, reload=True),
]


def prepare(folder: Path) -> dict[str, Any]:
    """An index of the definitions with its models, payloads, and queries of every form."""
    import csrtrain
    from csrkern import InvertedIndex
    from csrtrain.demo.data import load_demo
    from csrtrain.recipe import Recipe
    from csrtrain.texts import MINILM

    data = load_demo()
    model = csrtrain.train(data.train, config=csrtrain.TrainConfig(steps=60), progress=False)
    index = InvertedIndex.build(model.encode(data.train))
    index.save(folder / "index")
    Recipe(text_model=MINILM).save_to_index(folder / "index", model)
    rows = [{"words": t.words, "definition": t.definition} for t in data.texts[: len(data.train)]]
    (folder / "payloads.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    queries = data.test[:DISTINCT]
    return {
        "embeddings": np.asarray(queries),
        "texts": [text.definition for text in data.test_texts[:DISTINCT]],
        "codes": model.encode(queries),
        "index": index,
    }


def body(held: dict[str, Any], case: Case, rows: np.ndarray) -> bytes:
    """One request."""
    queries: list[dict[str, Any]]
    if case.form == "embeddings":
        queries = [{"embedding": row} for row in held["embeddings"][rows].tolist()]
    elif case.form == "texts":
        queries = [{"text": held["texts"][row]} for row in rows]
    else:
        values, indices = held["codes"].numpy()
        if case.form == "codes, binary":
            from safetensors.numpy import save

            narrow = indices[rows].astype(np.uint16)  # as files of codes have them
            return bytes(save({"values": values[rows].copy(), "indices": narrow}))
        queries = [{"indices": indices[r].tolist(), "values": values[r].tolist()} for r in rows]
    return json.dumps({"queries": queries, "top_k": 10}).encode()


def start(folder: Path, workers: int) -> tuple[subprocess.Popen[str], str]:
    """A server that is ready, and its address."""
    command = [sys.executable, "-m", "csrtrain", "serve", folder / "index", "--port", "0", "--json"]
    command += ["--payloads", folder / "payloads.jsonl", "--workers", str(workers)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout
    url = json.loads(server.stdout.readline())["url"]
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            with urlopen(f"{url}/ready") as answer:
                assert answer.status == 200
            return server, url
        except OSError:
            time.sleep(0.1)
    server.kill()
    raise SystemExit("the server did not become ready within 60 s")


def processor_seconds(pid: int) -> float:
    """Time that a process and its children have spent on processors so far."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    user, system = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    own = (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return own + sum(processor_seconds(int(child)) for child in children)


def loads(url: str) -> int:
    """The number of times that workers of the server have loaded an index."""
    with urlopen(f"{url}/metrics") as answer:
        page = answer.read().decode()
    found = re.search(r'^csrkern_loads_total\{.*"loaded".*\} (\S+)', page, re.MULTILINE)
    assert found
    return int(float(found[1]))


@contextlib.contextmanager
def rewriting(folder: Path, held: dict[str, Any]) -> Iterator[None]:
    """Write the index again and again, until the block ends."""
    ended = threading.Event()

    def write() -> None:
        while not ended.wait(REWRITTEN_EVERY):
            held["index"].save(folder / "index")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        ended.set()
        writer.join()


def measure(
    folder: Path, held: dict[str, Any], case: Case, url: str, pid: int, seconds: float
) -> dict[str, Any]:
    """One row of results."""
    bodies = folder / "bodies"
    shutil.rmtree(bodies, ignore_errors=True)
    bodies.mkdir()
    random = np.random.default_rng(0)
    for i in range(DISTINCT):
        (bodies / str(i)).write_bytes(body(held, case, random.integers(0, DISTINCT, case.batch)))
    binary = case.form == "codes, binary"
    script = folder / "load.lua"
    facts = {"distinct": DISTINCT, "folder": bodies, "type": "application/json"}
    script.write_text(SCRIPT % (facts | ({"type": "application/octet-stream"} if binary else {})))
    path = "/search/binary?top_k=10" if binary else "/search"
    command = ["wrk", "-t", "1", "-c", str(case.connections), "-s", script, url + path, "--latency"]
    subprocess.run([*command, "-d", "1s"], check=True, capture_output=True)
    before, loaded = processor_seconds(pid), loads(url)
    with rewriting(folder, held) if case.reload else contextlib.nullcontext():
        done = subprocess.run([*command, "-d", f"{seconds:g}s"], check=True, capture_output=True)
    busy = processor_seconds(pid) - before
    found = json.loads(done.stdout[done.stdout.index(b'{"requests"') :])
    return {
        **case._asdict(),
        "loads": loads(url) - loaded,
        "requests_per_second": found["requests"] / found["seconds"],
        "queries_per_second": case.batch * found["requests"] / found["seconds"],
        "p50_ms": found["p50_ms"],
        "p99_ms": found["p99_ms"],
        "server_ms": 1e3 * busy / found["requests"],
        "failed": found["failed"],
    }


def search_us(held: dict[str, Any]) -> float:
    """Microseconds of a search alone, without a server."""
    values, indices = held["codes"].numpy()
    started = time.process_time()
    for row in range(DISTINCT):
        held["index"].search((values[row : row + 1], indices[row : row + 1]), 10, num_threads=1)
    return 1e6 * (time.process_time() - started) / DISTINCT


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Load csrkern serve with wrk.")
    parser.add_argument("--seconds", type=float, default=10, help="for each case")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--save", action="store_true", help="write serve.json")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("needs wrk: apt-get install wrk")
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        held = prepare(folder)
        rows = []
        for workers in options.workers:
            server, url = start(folder, workers)
            try:
                for case in CASES:
                    found = measure(folder, held, case, url, server.pid, options.seconds)
                    rows.append({"workers": workers, **found})
                    print(json.dumps(rows[-1]), flush=True)
            finally:
                server.send_signal(signal.SIGTERM)
                server.wait(60)
        facts = {"codes": len(held["index"]), "k": held["index"].k}
        facts |= {"dim": held["index"].dim, "search_us": search_us(held)}
        facts |= {"rewritten_every": REWRITTEN_EVERY, "load_before": load_before}
        print(json.dumps(facts))
        if options.save:
            print(provenance.save("serve.json", **facts, table=rows))


if __name__ == "__main__":
    main()
