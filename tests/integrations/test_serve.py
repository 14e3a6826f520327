"""The server in examples/serve, in this process and as one of its own."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest

from csrkern import InvertedIndex

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("httpx")

FOLDER = Path(__file__).parents[2] / "examples" / "serve"
DIM, K = 64, 4


def codes(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    latents = random.permuted(np.tile(np.arange(DIM), (n, 1)), axis=1)[:, :K].astype(np.int32)
    return random.random((n, K), np.float32) + 0.1, latents


def as_json(rows: tuple[np.ndarray, np.ndarray]) -> list[dict]:
    return [{"values": v.tolist(), "latents": i.tolist()} for v, i in zip(*rows, strict=True)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    InvertedIndex.build(codes(200), dim=DIM).save(tmp_path / "index")
    lines = [{"id": i, "color": ["red", "green"][i % 2], "size": i} for i in range(0, 150)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "documents.jsonl").write_text(text)
    return tmp_path


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("app"), importlib.import_module("library")
    for name in ("app", "guard", "library"):
        sys.modules.pop(name, None)


@pytest.fixture
def shelf(folder: Path, modules):
    return modules[1].Shelf(folder / "index", folder / "documents.jsonl")


@pytest.fixture
def client(shelf, modules):
    from fastapi.testclient import TestClient

    with TestClient(modules[0].create_app(shelf), raise_server_exceptions=False) as client:
        yield client


def found(answer) -> list[list[tuple[int, float]]]:
    assert answer.status_code == 200, answer.text
    return [[(hit["id"], hit["score"]) for hit in hits] for hits in answer.json()["hits"]]


def expected(index: InvertedIndex, queries, top_k: int, **options) -> list[list[tuple[int, float]]]:
    scores, ids = index.search(queries, top_k, **options)
    return [
        [(i, s) for i, s in zip(*row, strict=True) if i >= 0]
        for row in zip(ids.tolist(), scores.tolist(), strict=True)
    ]


def test_health(client):
    health = client.get("/health").json()
    assert health["documents"] == 200
    assert health["dim"] == DIM
    assert health["fields"] == ["color"]
    assert health["reload_error"] is None


def test_queries_of_another_model_are_refused(client, shelf):
    own, other = "0123456789abcdef", "fedcba9876543210"
    asked = {"queries": as_json(codes(2, seed=1))}
    assert client.get("/health").json()["fingerprint"] is None
    assert client.post("/search", json={**asked, "fingerprint": other}).status_code == 200
    shelf.library.index.fingerprint = own
    assert client.get("/health").json()["fingerprint"] == own
    for told in ({}, {"fingerprint": None}, {"fingerprint": own}):
        assert client.post("/search", json=asked | told).status_code == 200
    refused = client.post("/search", json={**asked, "fingerprint": other})
    assert refused.status_code == 409
    assert own in refused.json()["detail"]
    for wrong in ("", own.upper(), own + "0", 7):
        assert client.post("/search", json={**asked, "fingerprint": wrong}).status_code == 422


def test_search_finds_what_the_index_finds(client, shelf):
    queries = codes(7, seed=1)
    answer = client.post("/search", json={"queries": as_json(queries), "top_k": 5})
    assert found(answer) == expected(shelf.library.index, queries, 5)
    hits = [hit for row in answer.json()["hits"] for hit in row]
    assert {hit["id"] < 150 for hit in hits} == {True, False}
    for hit in hits:
        assert hit.get("document", {}).get("size") == (hit["id"] if hit["id"] < 150 else None)


def test_filters(client, shelf):
    queries = codes(3, seed=2)
    ask = {"queries": as_json(queries), "top_k": 200}
    index, ids = shelf.library.index, np.arange(200)
    green = (ids % 2 == 1) & (ids < 150)
    answer = client.post("/search", json={**ask, "where": {"color": "green"}})
    assert found(answer) == expected(index, queries, 200, filter=green)
    answer = client.post("/search", json={**ask, "ids": [3, 4, 180]})
    assert found(answer) == expected(index, queries, 200, filter=[3, 4, 180])
    answer = client.post("/search", json={**ask, "ids": [3, 4, 180], "where": {"color": "green"}})
    assert found(answer) == expected(index, queries, 200, filter=[3])
    answer = client.post("/search", json={**ask, "where": {"color": "blue"}})
    assert found(answer) == [[], [], []]
    answer = client.post("/search", json={**ask, "min_score": 0.5})
    assert found(answer) == expected(index, queries, 200, min_score=0.5)


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"queries": []}, 422, "queries"),
        ({"queries": [{"latents": [1], "values": [1, 2]}]}, 400, "value for each of the 1 latents"),
        ({"queries": [{"latents": [DIM], "values": [1]}]}, 400, f"0..{DIM - 1}"),
        ({"queries": [{"latents": [-1], "values": [1]}]}, 422, "latents"),
        ({"queries": [{"latents": [1], "values": [-1]}]}, 422, "greater than or equal to 0"),
        ({"queries": [{"latents": [1], "values": [1e300]}]}, 422, "less than or equal to 3"),
        ({"queries": [{"latents": [1.5], "values": [1]}]}, 422, "valid integer"),
        ({"queries": [{"latents": ["1"], "values": [1]}]}, 422, "valid integer"),
        ({"queries": [{"latents": [True], "values": [1]}]}, 422, "valid integer"),
        ({"queries": [{"latents": [1], "values": ["1"]}]}, 422, "valid number"),
        ({"queries": [{"latents": [1], "values": [1], "id": 3}]}, 422, "Extra inputs"),
        ({"queries": [{"latents": [1]}]}, 422, "required"),
        ({"queries": [{}] * 1025}, 422, "at most 1024"),
        ({"queries": [{"latents": [1] * 4097, "values": [1] * 4097}]}, 422, "at most 4096"),
        ({"queries": [{"latents": [1, 1], "values": [1, 2]}]}, 400, "twice"),
        ({"top_k": 0}, 422, "top_k"),
        ({"top_k": "many"}, 422, "top_k"),
        ({"top_k": 1.5}, 422, "top_k"),
        ({"top_k": True}, 422, "top_k"),
        ({"top_k": 10**9}, 422, "top_k"),
        ({"top_k": 10**400}, 422, "top_k"),
        ({"min_score": "1"}, 422, "min_score"),
        ({"x" * 10**6: 1}, 422, "Extra inputs"),
        ({"where": {"x" * 10**6: "1"}}, 400, "no document has a text field"),
        ({"where": {"color": 7}}, 422, "where"),
        ({"ids": [1.0]}, 422, "ids"),
        ({"top_k": 1000, "queries": as_json(codes(21))}, 400, "21 queries times 1000"),
        ({"where": {"shade": "red"}}, 400, "no text field|no document has a text field"),
        ({"ids": [2**70]}, 422, "ids"),
        ({"filter": [1]}, 422, "filter"),
    ],
)
def test_mistakes_are_told(client, change, status, says):
    answer = client.post("/search", json={"queries": as_json(codes(1)), **change})
    assert answer.status_code == status, answer.text
    assert re.search(says, json.dumps(answer.json()["detail"]))
    assert len(answer.content) < 2500


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 422),
        (b"", 422),
        (b"null", 422),
        (b'"' + b"x" * 10**6 + b'"', 422),
        (b"[" * 10**6, 400),
        (b"\xff\xfe\x00", 400),
        (b'{"queries": [{"latents": [1], "values": [NaN]}]}', 422),
        (b'{"queries": [{"latents": [1], "values": [1e999]}]}', 422),
        (b'{"queries": [{"latents": [1], "values": [1]}], "top_k": NaN}', 422),
        (b'{"queries": [{"latents": [1], "values": [1]}], "top_k": 1e400}', 422),
        (b'{"queries": [{"latents": [1], "values": [1]}], "min_score": Infinity}', 422),
        (b'{"queries": [{"latents": [1], "values": [1]}], "where": {"\\ud83d": "\\ud83d"}}', 400),
        (b'{"\\ud83d": 1, "queries": [{"latents": [1], "values": [1]}]}', 422),
        (b" " * (9 << 20) + b"{}", 413),
    ],
)
def test_bodies_that_are_no_request(client, body, status):
    answer = client.post("/search", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text[:300]
    assert 10 < len(json.dumps(answer.json()["detail"])) < 2000


def test_a_request_of_another_type(client):
    answer = client.post("/search", content=b"x" * 10**6, headers={"Content-Type": "text/plain"})
    assert answer.status_code == 422
    assert len(answer.content) < 1000


def test_a_request_that_never_ends_is_not_read_to_its_end(shelf, modules):
    app, read, sent = modules[0].create_app(shelf), [], []

    async def receive():
        read.append(1)
        return {"type": "http.request", "body": b" " * 2**20, "more_body": True}

    async def send(message):
        sent.append(message)

    asyncio.run(app({"type": "http", "method": "POST", "path": "/search"}, receive, send))
    assert sent[0]["status"] == 413
    assert b"at most" in sent[1]["body"]
    assert len(read) == 9


def test_an_empty_code_finds_nothing(client):
    ask = {"queries": [{"latents": [], "values": []}, *as_json(codes(1))], "ids": [3, 3, 0, 0]}
    hits = client.post("/search", json=ask).json()["hits"]
    assert hits[0] == []


def test_scores_that_no_float_holds(tmp_path, modules):
    from fastapi.testclient import TestClient

    huge = np.full((2, 1), 3e38, np.float32), np.array([[1], [2]])
    InvertedIndex.build(huge, dim=DIM, metric="ip", dtype="float32").save(tmp_path)
    with TestClient(modules[0].create_app(modules[1].Shelf(tmp_path, None))) as client:
        ask = {"queries": [{"latents": [1], "values": [3e38]}]}
        hits = client.post("/search", json=ask).json()["hits"]
    assert hits == [[{"id": 0, "score": pytest.approx(3.4028235e38)}]]


def test_what_is_the_servers_fault_is_said_in_one_line_of_its_log(client, shelf, caplog):
    ask = {"queries": as_json(codes(1))}

    def damaged(*args: object, **options: object) -> None:
        raise ValueError("the index is damaged:\nthe postings of latent 3")

    shelf.library.index.search = damaged
    answer = client.post("/search", json=ask)
    assert answer.status_code == 500
    assert "log" in answer.json()["detail"]
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    said = errors[0].getMessage()
    assert said == "/search: ValueError: the index is damaged: the postings of latent 3"
    assert errors[0].exc_info is None
    assert client.get("/health").status_code == 200


def test_reload(client, shelf, folder):
    ask = {"queries": as_json(codes(1, seed=3)), "top_k": 3}
    new = InvertedIndex.build(codes(300, seed=5), dim=DIM)
    new.save(folder / "index")
    shelf.reload()
    assert client.get("/health").json()["documents"] == 300
    assert found(client.post("/search", json=ask)) == expected(new, codes(1, seed=3), 3)
    (folder / "index" / "index.json").write_text("{}")
    shelf.reload()
    health = client.get("/health").json()
    assert health["documents"] == 300
    assert "index" in health["reload_error"]
    assert found(client.post("/search", json=ask)) == expected(new, codes(1, seed=3), 3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"name": "no id"}', 'expected an integer "id" >= 0, got None'),
        (b'{"id": 2.0}', "got 2.0"),
        (b'{"id": 0.9}', "got 0.9"),
        (b'{"id": "7"}', "got '7'"),
        (b'{"id": true}', "got True"),
        (b'{"id": -1}', "got -1"),
        (b'{"id": 9223372036854775808}', "got 9223372036854775808"),
        (b'{"id": 1e400}', "got inf"),
        (b'{"id": 1}', 'expected each "id" once, got 1 twice'),
        (b"[1]", "expected a JSON object"),
        (b'{"id": 2', "expected a JSON object"),
        (b'{"id": 2, "x": ' + 100_000 * b"[", "expected a JSON object of at most 100 nested"),
        (b'{"id": 2, "x": ' + b"1" * 5000 + b"}", "expected a JSON object"),
        (b'{"id": 2, "x": "\xff"}', "is not UTF-8"),
        (b'{"id": 2, "x": NaN}', "expected what JSON can hold"),
        (b'{"id": 2, "x": [-Infinity]}', "expected what JSON can hold"),
        (b'{"id": 2, "x": 1e999}', "expected what JSON can hold"),
        (b'{"id": 2, "x": "\\ud83d"}', "surrogates not allowed"),
        (b'{"id": 2, "\\ud83d": 1}', "surrogates not allowed"),
    ],
)
def test_documents_that_no_answer_could_hold_are_named(folder, modules, line, message):
    path = folder / "documents.jsonl"
    path.write_bytes(b'\xef\xbb\xbf\n{"id": 1}\n' + line + b"\n")
    with pytest.raises(ValueError) as caught:
        modules[1].Shelf(folder / "index", path)
    assert str(caught.value).startswith(f"{path}: line 3")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


def test_odd_documents_come_back_as_they_were(client, shelf, folder):
    nested = json.loads("[" * 90 + "]" * 90)
    lines = [
        {"id": 0, "x": "a\u2028b\x85\x0c\U0001f600", "n": 10**40, "f": 1e300, "deep": nested},
        {"id": 2**63 - 1, "never": "found"},
    ]
    text = "\ufeff\n" + json.dumps(lines[0], ensure_ascii=False) + "\r\n\n" + json.dumps(lines[1])
    (folder / "documents.jsonl").write_bytes(text.encode())
    shelf.reload()
    assert shelf.reload_error is None
    ask = {"queries": as_json(codes(200))[:1], "top_k": 10, "ids": [0, 1]}
    hits = client.post("/search", json=ask).json()["hits"][0]
    assert {hit["id"]: hit.get("document") for hit in hits}[0] == lines[0]
    assert client.get("/health").json()["fields"] == ["never", "x"]


def test_a_process_without_torch_that_reloads_and_stops_in_order(folder):
    server, url = start(folder)
    try:
        ask = json.dumps({"queries": as_json(codes(20)), "top_k": 100}).encode()
        answers, stop = [], threading.Event()

        def keep_asking():
            while not stop.is_set():
                answers.append(post(f"{url}/search", ask))

        asking = threading.Thread(target=keep_asking)
        asking.start()
        InvertedIndex.build(codes(300, seed=5), dim=DIM).save(folder / "index")
        server.send_signal(signal.SIGHUP)
        wait_for(lambda: json.load(urlopen(f"{url}/health"))["documents"] == 300)
        stop.set()
        asking.join()
        assert len(answers) > 0
        assert set(answers) == {200}
        maps = Path(f"/proc/{server.pid}/maps")
        if maps.exists():
            assert "_C" in maps.read_text()
            assert "libtorch" not in maps.read_text()
        with pytest.raises(HTTPError) as error:
            post(f"{url}/search", b"{")
        assert error.value.code == 422
    finally:
        server.terminate()
    assert server.wait(20) in (0, -signal.SIGTERM)


def test_the_load_test_asks_and_counts(folder):
    command = [sys.executable, FOLDER / "load_test.py", folder / "index", "--seconds", "0.3"]
    done = subprocess.run([*command, "--batch", "4"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[4:]]
    assert [row[:2] for row in rows] == [["4", "1"], ["4", "8"]]
    for row in rows:
        requests, queries, p50, p99 = (float(cell.replace(",", "")) for cell in row[2:6])
        assert queries == pytest.approx(4 * requests, abs=3)
        assert 0 < p50 <= p99


def start(folder: Path) -> tuple[subprocess.Popen, str]:
    """A server with torch made impossible to import, and its address."""
    port = 20_000 + os.getpid() % 20_000
    run = (
        "import sys, runpy\n"
        "sys.modules['torch'] = None\n"
        f"sys.argv[:] = ['app.py', {str(folder / 'index')!r}, '--port', '{port}']\n"
        f"sys.path.insert(0, {str(FOLDER)!r})\n"
        f"runpy.run_path({str(FOLDER / 'app.py')!r}, run_name='__main__')\n"
    )
    server = subprocess.Popen([sys.executable, "-c", run], stderr=subprocess.PIPE)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert server.poll() is None, server.stderr.read().decode()
        try:
            return urlopen(f"{url}/health").status == 200
        except OSError:
            return False

    wait_for(answers)
    return server, url


def post(url: str, content: bytes) -> int:
    headers = {"Content-Type": "application/json"}
    with urlopen(Request(url, content, headers)) as answer:
        answer.read()
        return answer.status


def wait_for(done, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until
        time.sleep(0.05)
