"""A Ray cluster of several nodes in this machine, with processes and nodes killed under load.

    python -m benchmarks.scale.drill --codes 20000000 --folder scratch

encodes, builds and serves, kills a worker and a node in each of the three, counts what was lost or
wrong, adds a shard and replaces all of them under load, and writes
benchmarks/results/<machine>/scale.json. Nodes are processes here: cores, memory and disk are
shared, so times to recover are Ray's and not those of a machine that starts.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import provenance
from csrkern import _C, InvertedIndex, SparseCodes
from csrkern.nn import SparseAutoencoder
from csrtrain.scale import ShardedIndex, add_shard, build_shards, encode_corpus, shards
from csrtrain.scale.encode import read_codes_manifest
from csrtrain.scale.folder import Folder

WIDTH, LATENTS, K = 64, 4096, 16
FILE_ROWS, SHARDS, GROUPS, REPLICAS = 1_000_000, 8, 2, 2
QUERIES, TOP_K = 512, 10
STORE_BYTES = 256 << 20  # of each node's object store, which holds little here


def say(message: str) -> None:
    """Progress, on standard error."""
    print(f"[{time.strftime('%H:%M:%S')}] {message}", file=sys.stderr, flush=True)


def load_average() -> list[float]:
    """Of the machine, over 1, 5 and 15 minutes: far above its cores, it was not quiet."""
    return [round(load, 2) for load in os.getloadavg()]


def make_corpus(folder: Path, n: int) -> None:
    """Rows around 2,000 centers, float16, in files of a million."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((2000, WIDTH), dtype=np.float32)
    for number, first in enumerate(range(0, n, FILE_ROWS)):
        rows = min(FILE_ROWS, n - first)
        noise = rng.standard_normal((rows, WIDTH), dtype=np.float32)
        picked = centers[rng.integers(0, len(centers), rows)] + 0.7 * noise
        np.save(folder / f"{number:04d}.npy", picked.astype(np.float16))


class Nodes:
    """A cluster whose workers' nodes can be killed and replaced."""

    def __init__(self, cpus: int) -> None:
        import ray
        from ray.cluster_utils import Cluster

        self.cpus = cpus
        head = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self._add(), self._add()]
        self.ray = ray
        ray.init(address=self.cluster.address, log_to_driver=False, logging_level="ERROR")

    def _add(self) -> Any:
        for _ in range(3):  # Ray gives a node 30 seconds to start: too few on a busy machine
            with contextlib.suppress(Exception):
                return self.cluster.add_node(num_cpus=self.cpus, object_store_memory=STORE_BYTES)
        raise RuntimeError("a node does not start")

    def replace_one(self) -> None:
        """Kills a node, with everything on it, and starts another."""
        self.cluster.remove_node(self.nodes.pop(0), allow_graceful=False)
        self.nodes.append(self._add())

    def close(self) -> None:
        """Ends everything."""
        from ray import serve

        serve.shutdown()
        self.ray.shutdown()
        self.cluster.shutdown()


def kill_process(*titles: str, sign: signal.Signals = signal.SIGKILL) -> bool:
    """Kills (or stops) one process of Ray's whose title begins so; whether there was one."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode()
            except OSError:
                continue
            if command.startswith(titles):
                os.kill(int(entry.name), sign)
                return True
    return False


class Faults:
    """Does harm when progress reaches given shares, and times the pause that follows."""

    def __init__(self, harms: dict[float, tuple[str, Callable[[], Any]]]) -> None:
        self.harms = sorted(harms.items())
        self.pauses: dict[str, float] = {}
        self._waiting: tuple[str, float, int] | None = None
        self.began = time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        """The progress of a run."""
        now = time.perf_counter()
        if self._waiting is not None and done > self._waiting[2]:
            self.pauses[self._waiting[0]] = round(now - self._waiting[1], 2)
            self._waiting = None
        if self.harms and done >= self.harms[0][0] * total and self._waiting is None:
            _, (name, harm) = self.harms.pop(0)
            say(f"{done:,} of {total:,}: {name}")
            harm()
            self._waiting = (name, time.perf_counter(), done)


def encode_under_fire(nodes: Nodes, folder: Path, n: int) -> dict[str, Any]:
    """Encodes the corpus while a worker and a node die; checks every piece."""
    faults = Faults(
        {
            0.2: ("worker killed", lambda: kill_process("ray::Encoder")),
            0.5: ("node killed", nodes.replace_one),
        }
    )
    began = time.perf_counter()
    manifest = encode_corpus(
        str(folder / "corpus"), folder / "model", folder / "codes", workers=2, progress=faults
    )
    seconds = time.perf_counter() - began
    ends = np.cumsum([piece["rows"] for piece in manifest["pieces"]])
    starts = [piece["first_id"] for piece in manifest["pieces"]]
    wrong = 0
    for piece in manifest["pieces"]:
        payload = (folder / "codes" / piece["file"]).read_bytes()
        wrong += _C.crc32c(payload) != piece["crc32c"]
    return {
        "rows": manifest["rows"],
        "seconds": round(seconds, 1),
        "pause_s": faults.pauses,
        "rows_lost_or_doubled": int(manifest["rows"] != n or starts != [0, *ends[:-1].tolist()]),
        "wrong_pieces": wrong,
        "wrong_codes": wrong_codes(folder, manifest),
    }


def wrong_codes(folder: Path, manifest: dict[str, Any]) -> int:
    """Codes of five pieces that are not those of the same rows encoded here."""
    model = SparseAutoencoder.from_pretrained(folder / "model").eval()
    pieces = manifest["pieces"]
    wrong = 0
    for place in np.linspace(0, len(pieces) - 1, 5).astype(int):
        piece = pieces[place]
        file, first = divmod(piece["first_id"], FILE_ROWS)
        rows = np.load(folder / f"corpus/{file:04d}.npy", mmap_mode="r")
        expected = model.encode(np.array(rows[first : first + piece["rows"]]))
        found = SparseCodes.load(folder / "codes" / piece["file"]).numpy()[1]
        wrong += int((found != expected.numpy()[1]).any(1).sum())
    return wrong


def build_under_fire(nodes: Nodes, folder: Path, whole: InvertedIndex, queries: Any) -> Any:
    """Builds shards while a worker and a node die; compares with one index."""
    faults = Faults(
        {
            0.1: ("worker killed", lambda: kill_process("ray::build_one")),
            0.4: ("node killed", nodes.replace_one),
        }
    )
    began = time.perf_counter()
    found = build_shards(
        folder / "codes", folder / "index", shards=SHARDS, workers=2, progress=faults
    )
    seconds = time.perf_counter() - began
    folder_of = Folder.of(folder / "index")
    parts = [shards.open_shard(folder_of, shard, folder) for shard in found.shards]
    from csrtrain.scale.merging import Hits, merge_hits

    merged = merge_hits([Hits(*part.search(queries, TOP_K)) for part in parts], TOP_K)
    scores, ids = whole.search(queries, TOP_K)
    return {
        "codes": len(found),
        "shards": len(found.shards),
        "bytes": sum(shard.bytes for shard in found.shards),
        "seconds": round(seconds, 1),
        "pause_s": faults.pauses,
        "wrong_ids": int((merged.ids != ids).sum()),
        "wrong_scores": int((merged.scores != scores).sum()),
    }


class Load:
    """Callers that search all the time, and what came of it."""

    def __init__(self, index: ShardedIndex, queries: Any, right: list[np.ndarray]) -> None:
        self.index, self.queries, self.right = index, queries, right
        self.times: list[tuple[float, float, bool]] = []  # began, seconds, complete
        self.wrong = self.failed = 0
        self._stop = threading.Event()
        self._callers = [threading.Thread(target=self._call, args=(i,)) for i in range(2)]

    def __enter__(self) -> Load:
        for caller in self._callers:
            caller.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        for caller in self._callers:
            caller.join()

    def _call(self, number: int) -> None:
        values, indices = self.queries
        place = number
        while not self._stop.is_set():
            at = place % len(values)
            place += 2
            began = time.perf_counter()
            try:
                answer = self.index.search((values[at : at + 1], indices[at : at + 1]), TOP_K)
            except Exception as error:
                self.failed += 1
                say(f"failed: {error!r}"[:300])
                continue
            self.times.append((began, time.perf_counter() - began, answer.complete))
            if answer.complete:
                fits = any(np.array_equal(answer.ids[0], ids[at]) for ids in self.right)
                self.wrong += not fits

    def summary(self, since: float = 0.0) -> dict[str, Any]:
        """Of the calls that began after `since`."""
        own = [(s, c) for began, s, c in self.times if began >= since]
        times = sorted(s for s, _ in own)
        return {
            "searches": len(own),
            "failed": self.failed,
            "wrong": self.wrong,
            "incomplete": sum(not c for _, c in own),
            "p50_ms": round(1e3 * statistics.median(times), 2),
            "p99_ms": round(1e3 * times[int(0.99 * (len(times) - 1))], 2),
            "longest_ms": round(1e3 * times[-1], 1),
        }


def serve_under_fire(
    nodes: Nodes, folder: Path, whole: InvertedIndex, queries: Any
) -> Iterator[tuple[str, Any]]:
    """Searches under load while a holder dies, a node dies, and the index is replaced."""
    right = [whole.search(queries, TOP_K)[1]]
    served = ShardedIndex.serve(
        folder / "index",
        groups=GROUPS,
        replicas=REPLICAS,
        gateways=REPLICAS,
        refresh=0.2,
        name="drill",
    )
    served.search(queries, TOP_K)
    with Load(served, queries, right) as load:
        time.sleep(10)
    yield "undisturbed", load.summary()
    for name, harm in (
        ("gateway killed", lambda: kill_process("ray::ServeReplica:drill:ServedGateway")),
        ("holder killed", lambda: kill_process("ray::ServeReplica:drill:holder")),
        ("node killed", nodes.replace_one),
    ):
        say(name)
        with Load(served, queries, right) as load:
            time.sleep(2)
            began = time.perf_counter()
            harm()
            back = whole_again("drill")
            time.sleep(3)
        yield name, {**load.summary(began), "replicas_back_s": back}
    say("a shard more")
    new = queries[0][:1] * 0 + queries[0].max() * 2, queries[1][:1]
    more = InvertedIndex.build(new, [len(whole)], dim=whole.dim, metric=whole.metric)
    more.save(folder / "more")
    whole.add(new, [len(whole)])
    right.append(whole.search(queries, TOP_K)[1])
    changes = {
        "shard added": lambda: add_shard(folder / "more", folder / "index"),
        # Without the code that was added: other shards, the first answers again.
        "replaced": lambda: build_shards(
            folder / "codes", folder / "index", shards=SHARDS - 2, workers=2, replace=True
        ),
    }
    for (name, publish), expected in zip(changes.items(), (right[1], right[0]), strict=True):
        with Load(served, queries, right) as load:
            time.sleep(2)
            first = time.perf_counter()
            number = publish().number
            published = time.perf_counter()
            while (answer := served.search(queries, TOP_K)).generation < number:
                time.sleep(0.02)
            taken = time.perf_counter() - published
            time.sleep(3)
        yield (
            name,
            {
                **load.summary(first),
                "publish_s": round(published - first, 1),
                "taken_up_s": round(taken, 2),
                "wrong_after": int((answer.ids != expected).sum()),
                "answers_that_changed": int((right[0] != right[1]).any(1).sum()),
            },
        )


def whole_again(name: str) -> float | None:
    """Seconds until holders and gateway have all replicas again; None if not within 3 minutes."""
    from ray import serve

    began = time.perf_counter()
    fallen = False
    while time.perf_counter() - began < 180:
        states = serve.status().applications[name].deployments
        full = all(
            state.replica_states.get("RUNNING", 0) == REPLICAS and len(state.replica_states) == 1
            for state in states.values()
        )
        fallen = fallen or not full
        if full and (fallen or time.perf_counter() - began > 15):
            return round(time.perf_counter() - began, 1)
        time.sleep(0.1)
    return None


def main() -> None:
    """Runs the drill."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--codes", type=int, default=20_000_000)
    parser.add_argument("--folder", type=Path, required=True, help="scratch; made and removed")
    args = parser.parse_args()
    folder, n = args.folder.resolve(), args.codes
    began, load = time.perf_counter(), load_average()
    if folder.exists():
        sys.exit(f"{folder} exists")
    say("making embeddings")
    make_corpus(folder / "corpus", n)
    SparseAutoencoder(WIDTH, LATENTS, K).save_pretrained(folder / "model")
    say("starting a cluster")
    nodes = Nodes(cpus=GROUPS * REPLICAS)
    try:
        result: dict[str, Any] = {"codes": n, "width": WIDTH, "latents": LATENTS, "k": K}
        result["encode"] = encode_under_fire(nodes, folder, n)
        say(str(result["encode"]))
        manifest = read_codes_manifest(Folder.of(folder / "codes"))
        pieces = [folder / "codes" / piece["file"] for piece in manifest["pieces"]]
        whole = InvertedIndex.build_streaming(
            (SparseCodes.load(piece) for piece in pieces), folder / "whole", metric="cosine"
        )
        sample = SparseCodes.load(pieces[-1]).numpy()
        queries = sample[0][:QUERIES].astype(np.float32), sample[1][:QUERIES]
        result["build"] = build_under_fire(nodes, folder, whole, queries)
        say(str(result["build"]))
        result["serve"] = {}
        for name, summary in serve_under_fire(nodes, folder, whole, queries):
            result["serve"][name] = summary
            say(f"{name}: {summary}")
    finally:
        nodes.close()
    result |= {"seconds": round(time.perf_counter() - began), "load": [load, load_average()]}
    print(f"saved: {provenance.save('scale.json', provenance.RESULTS, **result)}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
