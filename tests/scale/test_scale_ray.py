"""csrtrain.scale on a Ray cluster of several nodes in this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.scale.drill import kill_process
from csrkern import FineQuantizer, InvertedIndex, ModelMismatchError, Refine, SparseCodes
from csrkern.nn import SparseAutoencoder
from csrtrain.scale import ShardedIndex, add_shard, build_shards, encode, encode_corpus
from csrtrain.scale.corpus import Reader

ray = pytest.importorskip("ray", reason="needs csrkern[ray]")
serve = pytest.importorskip("ray.serve", reason="needs csrkern[ray]")

D, H, K = 16, 256, 8


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    found = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
    )
    found.add_node(num_cpus=2)
    ray.init(address=found.address, log_to_driver=False)
    yield found
    serve.shutdown()
    ray.shutdown()
    found.shutdown()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A model and six files of embeddings; all their rows."""
    folder = tmp_path_factory.mktemp("made")
    SparseAutoencoder(D, H, K).save_pretrained(folder / "model")
    (folder / "corpus").mkdir()
    rows = np.random.default_rng(0).standard_normal((3000, D)).astype(np.float32)
    for number, part in enumerate(np.array_split(rows, 6)):
        np.save(folder / "corpus" / f"{number}.npy", part)
    return folder, rows


@pytest.fixture(scope="module")
def encoded(cluster: Any, made: tuple[Path, np.ndarray]) -> tuple[Path, SparseCodes]:
    """The folder of codes, and what they should be."""
    folder, rows = made
    manifest = encode_corpus(
        str(folder / "corpus"), folder / "model", folder / "codes", piece_rows=200, workers=2
    )
    assert manifest["rows"] == 3000
    expected = SparseAutoencoder.from_pretrained(folder / "model").eval().encode(rows)
    return folder, expected


def loaded(folder: Path, manifest: Any) -> tuple[np.ndarray, np.ndarray]:
    parts = [SparseCodes.load(folder / piece["file"]).numpy() for piece in manifest["pieces"]]
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def first(codes: SparseCodes, asked: int) -> tuple[np.ndarray, np.ndarray]:
    """The first codes, as queries."""
    values, indices = codes[:asked].numpy()
    return values, indices


def test_sharded_is_one_index(encoded: tuple[Path, SparseCodes]) -> None:
    folder, codes = encoded
    found = build_shards(folder / "codes", folder / "index", shards=4, workers=2)
    assert len(found) == 3000
    assert len(found.shards) == 4
    queries = first(codes, 50)
    expected = InvertedIndex.build(codes, metric="cosine").search(queries, 10)
    with_two = ShardedIndex.serve(folder / "index", groups=2, replicas=2, name="two")
    answer = with_two.search(queries, 10)
    assert answer.complete
    np.testing.assert_array_equal(answer.ids, expected[1])
    np.testing.assert_array_equal(answer.scores, expected[0])
    assert ShardedIndex.connect("two").dim == H
    queries = SparseAutoencoder(D, H, K).eval().encode(np.zeros((2, D), np.float32))
    with pytest.raises(ModelMismatchError, match="queries: made by another model"):
        with_two.search(queries)
    assert with_two.search(queries, any_model=True).complete
    serve.delete("two")


def test_embeddings_are_compared_with_fine_codes(cluster: Any, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((200, D)).astype(np.float32)
    codes = SparseAutoencoder(D, H, K).eval().encode(rows)
    fine = FineQuantizer(generator.standard_normal((3, 256, D)), np.zeros(D)).encode(rows)
    for start in (0, 80):
        ids = np.arange(start, 80 if start == 0 else 200)
        InvertedIndex.build(codes[ids], ids, fine=fine[ids]).save(tmp_path / str(start))
        add_shard(tmp_path / str(start), tmp_path / "index")
    whole = InvertedIndex.build(codes, fine=fine)
    served = ShardedIndex.serve(tmp_path / "index", name="fine")
    rerank = Refine(rows[:7], 30)
    for answer, (scores, ids) in (
        (served.search(codes[:7], 5, rerank=rerank), whole.search(codes[:7], 5, rerank=rerank)),
        (served.search_fine(rows[:7], 5), whole.search_fine(rows[:7], 5)),
        (served.search_fine(rows[:7], 5, probes=2), whole.search_fine(rows[:7], 5, probes=2)),
    ):
        assert answer.complete
        np.testing.assert_array_equal(answer.ids, ids)
        np.testing.assert_array_equal(answer.scores, scores)
    with pytest.raises(ValueError, match="embeddings: expected 7 rows"):
        served.search(codes[:7], 5, rerank=Refine(rows[:6]))
    with pytest.raises(ValueError, match="probes: expected 1 <= probes <= 256, got 0"):
        served.search_fine(rows[:7], 5, probes=0)
    serve.delete("fine")


def test_a_worker_dies_while_encoding(cluster: Any, made: tuple[Path, np.ndarray]) -> None:
    folder, rows = made
    killed = threading.Event()

    def kill() -> None:
        while not killed.is_set():
            if kill_process("ray::Encoder"):
                killed.set()
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        manifest = encode_corpus(
            str(folder / "corpus"), folder / "model", folder / "codes2", piece_rows=20, workers=2
        )
    finally:
        alive = not killed.is_set()
        killed.set()
        killer.join()
    assert not alive, "nothing was killed"
    expected = SparseAutoencoder.from_pretrained(folder / "model").eval().encode(rows)
    np.testing.assert_array_equal(loaded(folder / "codes2", manifest)[1], expected.numpy()[1])


def test_a_bad_piece_ends_the_run_with_one_message(
    cluster: Any, made: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    folder, rows = made
    wrong = rows[:300].copy()
    wrong[170, 3] = np.nan
    np.save(tmp_path / "a[1].npy", wrong)
    began = time.monotonic()
    with pytest.raises(ValueError) as caught:
        encode_corpus(
            tmp_path / "a[1].npy", folder / "model", tmp_path / "codes", piece_rows=20, workers=2
        )
    assert time.monotonic() - began < 120
    assert str(caught.value) == (
        f"file://{tmp_path}/a[1].npy: row 170 holds 1 values that are not finite "
        "(the first: nan); remove or repair such rows"
    )
    np.save(tmp_path / "a.npy", rows[:100])
    manifest = encode_corpus(
        tmp_path / "a.npy", folder / "model", tmp_path / "good", piece_rows=20, workers=2
    )
    piece = tmp_path / "good" / manifest["pieces"][3]["file"]
    piece.write_bytes(piece.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"^{piece} is damaged: its checksum is wrong") as caught:
        build_shards(tmp_path / "good", tmp_path / "index", shards=2, workers=2)
    assert "\n" not in str(caught.value)


def test_a_piece_that_kills_its_workers_is_given_up(
    cluster: Any, made: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = made
    monkeypatch.setattr(encode, "RETRIES", 1)
    monkeypatch.setattr(encode, "Reader", Killing)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        with pytest.raises(RuntimeError, match="died 2 times of one piece"):
            encode_corpus(
                str(folder / "corpus"), folder / "model", tmp_path, piece_rows=200, workers=1
            )
    finally:
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


class Killing(Reader):
    """Rows that no process survives."""

    def read(self, source: str, first: int, rows: int) -> np.ndarray:
        if first == 200:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(source, first, rows)


def test_a_holder_dies_under_load(encoded: tuple[Path, SparseCodes]) -> None:
    folder, codes = encoded
    build_shards(folder / "codes", folder / "index", shards=4, workers=2)
    queries = first(codes, 20)
    expected = InvertedIndex.build(codes, metric="cosine").search(queries, 10)[1]
    served = ShardedIndex.serve(folder / "index", groups=1, replicas=2, name="load")
    served.search(queries)
    stop, bad, done = threading.Event(), [], [0]

    def load() -> None:
        while not stop.is_set():
            answer = served.search(queries, 10, deadline=20.0)
            done[0] += 1
            if not answer.complete or not np.array_equal(answer.ids, expected):
                bad.append(answer)

    callers = [threading.Thread(target=load) for _ in range(2)]
    for caller in callers:
        caller.start()
    try:
        time.sleep(1.0)
        assert kill_process("ray::ServeReplica:load:holder")
        time.sleep(3.0)
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert done[0] > 10
    assert not bad
    serve.delete("load")


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP])
def test_without_a_replica_the_answer_says_what_is_missing(
    encoded: tuple[Path, SparseCodes], sign: signal.Signals
) -> None:
    folder, codes = encoded
    found = build_shards(folder / "codes", folder / "index", shards=4, workers=2)
    queries = first(codes, 20)
    whole = InvertedIndex.build(codes, metric="cosine")
    expected = whole.search(queries, 10)[1]
    second = [shard for place, shard in enumerate(found.shards) if place % 2]
    for shard in second:
        whole.remove(np.arange(shard.first_id, shard.last_id + 1))
    part = whole.search(queries, 10)[1]
    served = ShardedIndex.serve(folder / "index", groups=2, replicas=1, name="alone")
    assert served.search(queries, 10).complete
    assert kill_process("ray::ServeReplica:alone:holder-1", sign=sign)
    began = time.monotonic()
    answer = served.search(queries, 10, deadline=0.8)
    assert time.monotonic() - began < 30  # a stopped one would never answer
    assert set(answer.missing) == {shard.name for shard in second}
    np.testing.assert_array_equal(answer.ids, part)
    until = time.monotonic() + 60
    while not (answer := served.search(queries, 10, deadline=2.0)).complete:
        assert time.monotonic() < until
    np.testing.assert_array_equal(answer.ids, expected)
    serve.delete("alone")


def test_a_hanging_replica_delays_but_loses_nothing(encoded: tuple[Path, SparseCodes]) -> None:
    folder, codes = encoded
    build_shards(folder / "codes", folder / "index", shards=4, workers=2)
    queries = first(codes, 20)
    expected = InvertedIndex.build(codes, metric="cosine").search(queries, 10)[1]
    served = ShardedIndex.serve(folder / "index", groups=1, replicas=2, name="hangs")
    served.search(queries)
    assert kill_process("ray::ServeReplica:hangs:holder", sign=signal.SIGSTOP)
    for _ in range(8):
        answer = served.search(queries, 10, deadline=8.0)
        assert answer.complete
        np.testing.assert_array_equal(answer.ids, expected)
    serve.delete("hangs")


def test_a_replacement_under_load(encoded: tuple[Path, SparseCodes], tmp_path: Path) -> None:
    folder, codes = encoded
    queries = first(codes, 20)
    build_shards(folder / "codes", tmp_path / "index", shards=4, workers=2)
    right = [
        InvertedIndex.build(codes, metric=metric).search(queries, 10)[0]
        for metric in ("cosine", "ip")
    ]
    served = ShardedIndex.serve(
        tmp_path / "index", groups=1, replicas=2, refresh=0.1, name="replaced"
    )
    stop, bad, seen = threading.Event(), [], set()

    def load() -> None:
        while not stop.is_set():
            answer = served.search(queries, 10)
            seen.add(answer.generation)
            expected = right[answer.generation > 4]
            if not answer.complete or not np.array_equal(answer.scores, expected):
                bad.append(answer)

    caller = threading.Thread(target=load)
    caller.start()
    try:
        time.sleep(0.5)
        found = build_shards(
            folder / "codes", tmp_path / "index", shards=3, workers=2, metric="ip", replace=True
        )
        until = time.monotonic() + 30
        while found.number not in seen and time.monotonic() < until:
            time.sleep(0.1)
    finally:
        stop.set()
        caller.join()
    assert (found.number, len(found.shards)) == (5, 3)
    assert seen == {4, 5}
    assert not bad
    serve.delete("replaced")


def test_shards_are_added_while_served(encoded: tuple[Path, SparseCodes], tmp_path: Path) -> None:
    values, indices = first(encoded[1], 3000)
    for left in (0, 1500):
        part = slice(left, left + 1500)
        InvertedIndex.build(
            (values[part], indices[part]), np.arange(left, left + 1500), dim=H
        ).save(tmp_path / "part")
        add_shard(tmp_path / "part", tmp_path / "index")
        if left == 0:
            served = ShardedIndex.serve(tmp_path / "index", groups=1, refresh=0.05, name="grow")
            assert served.search((values[:5], indices[:5])).generation == 1
    queries = (values[:5], indices[:5])
    until = time.monotonic() + 20
    while served.search(queries).generation == 1 and time.monotonic() < until:
        time.sleep(0.05)
    answer = served.search(queries, 10)
    expected = InvertedIndex.build((values, indices), dim=H).search(queries, 10)
    assert answer.generation == 2
    np.testing.assert_array_equal(answer.ids, expected[1])
    serve.delete("grow")


def test_training_on_two_processes_is_that_on_one(
    cluster: Any, made: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    from csrtrain import TrainConfig, train
    from csrtrain.scale import train_on_ray

    _, rows = made
    np.save(tmp_path / "rows.npy", rows)
    config = TrainConfig(hidden_dim=H, k=K, steps=20, batch_size=64)
    train_on_ray(
        tmp_path / "rows.npy",
        tmp_path / "model",
        workers=2,
        storage=str(tmp_path / "records"),
        config=config,
    )
    found = SparseAutoencoder.from_pretrained(tmp_path / "model")
    expected = train(rows, config=config, progress=False, device="cpu")
    for (name, got), (_, want) in zip(
        found.state_dict().items(), expected.state_dict().items(), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4, err_msg=name)


def test_commands(made: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    folder, rows = made
    command = [sys.executable, "-m", "csrtrain"]
    environment = {**os.environ, "RAY_ADDRESS": ""}
    environment.pop("RAY_ADDRESS")

    def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
        words = [*command, *map(str, arguments)]
        return subprocess.run(words, capture_output=True, text=True, env=environment, check=True)

    corpus, codes, index = folder / "corpus", tmp_path / "codes", tmp_path / "index"
    done = run(
        "ray", "encode", folder / "model", corpus, "-o", codes, "--piece-rows", 500, "--json"
    )
    assert json.loads(done.stdout) == {"output": str(codes), "codes": 3000, "pieces": 6}
    done = run("ray", "build", codes, "-o", index, "--shards", 4, "--json")
    facts = {"codes": 3000, "shards": 4, "generation": 4}
    assert json.loads(done.stdout) == {"output": str(index), **facts}
    np.save(tmp_path / "queries.npy", rows[:3])
    queries = tmp_path / "queries.safetensors"
    run("encode", folder / "model", tmp_path / "queries.npy", "-o", queries)
    port = 18_000 + os.getpid() % 1000
    url = f"http://127.0.0.1:{port}/csrkern"
    with pytest.raises(subprocess.CalledProcessError) as refused:
        run("ray", "search", url, queries, "--deadline", 0.5)
    assert refused.value.returncode == 2
    assert refused.value.stderr.startswith(f"csrkern: no answer from {url} within")
    serving = subprocess.Popen(
        [*command, "ray", "serve", str(index), "--port", str(port), "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert serving.stdout is not None
        ready = next(line for line in serving.stdout if line.startswith("{"))
        assert json.loads(ready) == {"url": url, **facts}
        done = run("ray", "search", url, queries, "--top-k", 4, "--json")
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        assert [answer["hits"][0]["id"] for answer in answers] == [0, 1, 2]
        assert all(len(answer["hits"]) == 4 and answer["missing"] == [] for answer in answers)
        table = run("ray", "search", url, queries, "--top-k", 1).stdout.splitlines()
        assert [line.split()[3] for line in table] == ["id", "0", "1", "2"]
        foreign = SparseCodes.load(queries)
        foreign.fingerprint = "0" * 16
        foreign.save(queries)
        with pytest.raises(subprocess.CalledProcessError) as refused:
            run("ray", "search", url, queries)
        assert refused.value.returncode == 2
        assert "made by another model" in refused.value.stderr
        again = run("ray", "search", url, queries, "--top-k", 4, "--json", "--any-model")
        assert again.stdout == done.stdout
    finally:
        serving.send_signal(signal.SIGINT)
        assert serving.wait(60) == 130
