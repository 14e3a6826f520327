"""The server's application, in this process; test_serve_processes.py has real ones."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from csrkern import InvertedIndex, SparseCodes
from csrkern.nn import SparseAutoencoder

pytest.importorskip("fastapi")
pytest.importorskip("httpx")
pytest.importorskip("prometheus_client")

from safetensors.numpy import load, save

from csrtrain.recipe import Recipe
from csrtrain.serve import application, library
from csrtrain.serve.payloads import Payloads
from csrtrain.serve.settings import Settings

DIM, K = 64, 4


_HEADER = {
    "__metadata__": None,
    "embeddings": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]},
}
_WRITTEN = json.dumps(_HEADER).encode()
NO_METADATA = len(_WRITTEN).to_bytes(8, "little") + _WRITTEN + bytes(4)  # null, not absent


def codes(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    latents = random.permuted(np.tile(np.arange(DIM), (n, 1)), axis=1)[:, :K].astype(np.int32)
    return random.random((n, K), np.float32) + 0.1, latents


def as_json(rows: tuple[np.ndarray, np.ndarray]) -> list[dict]:
    return [{"values": v.tolist(), "indices": i.tolist()} for v, i in zip(*rows, strict=True)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    InvertedIndex.build(codes(200), dim=DIM).save(tmp_path / "index")
    rows = [{"color": ["red", "green"][i % 2], "size": i % 3, "new": i > 99} for i in range(200)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def serve(folder: Path, **options):
    """A client of a server that is ready."""
    from fastapi.testclient import TestClient

    options = {"payloads": str(folder / "rows.jsonl"), **options}
    app = application.create_app(Settings(str(folder / "index"), **options))
    client = TestClient(app, raise_server_exceptions=False)
    return client


def until_ready(client) -> None:
    wait_for(lambda: client.get("/ready").status_code == 200)


def wait_for(done, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.fixture
def client(folder, monkeypatch):
    monkeypatch.setattr(library, "LOOK_EVERY", 0.02)
    with serve(folder, filter_by=("color", "size", "new")) as client:
        until_ready(client)
        yield client


def found(answer) -> list[list[tuple[int, float]]]:
    assert answer.status_code == 200, answer.text
    return [[(hit["id"], hit["score"]) for hit in hits] for hits in answer.json()["hits"]]


def expected(index: InvertedIndex, queries, top_k: int, **options) -> list[list[tuple[int, float]]]:
    return listed(*index.search(queries, top_k, **options))


def listed(scores: np.ndarray, ids: np.ndarray) -> list[list[tuple[int, float]]]:
    return [
        [(i, s) for i, s in zip(*row, strict=True) if i >= 0]
        for row in zip(ids.tolist(), scores.tolist(), strict=True)
    ]


def loaded(folder: Path) -> InvertedIndex:
    return InvertedIndex.load(folder / "index")


def test_what_is_served(client):
    assert client.get("/health").json() == {"status": "ok"}
    about = client.get("/index").json()
    assert (about["documents"], about["dim"], about["fingerprint"]) == (200, DIM, None)
    assert about["takes"] == ["codes"]
    assert about["filter_by"] == ["color", "size", "new"]
    assert about["reload_error"] is None
    paths = client.get("/openapi.json").json()["paths"]
    served = {"/health", "/ready", "/index", "/metrics", "/search", "/search/binary"}
    assert set(paths) == served
    assert "swagger" in client.get("/docs").text


def test_queries_of_another_model_are_refused(folder):
    own, other = "0123456789abcdef", "fedcba9876543210"
    index = InvertedIndex.build(codes(200), dim=DIM)
    index.fingerprint = own
    index.save(folder / "index")
    asked = {"queries": as_json(codes(2, seed=1))}
    with serve(folder) as client:
        until_ready(client)
        assert client.get("/index").json()["fingerprint"] == own
        for told in ({}, {"fingerprint": None}, {"fingerprint": own}):
            assert client.post("/search", json=asked | told).status_code == 200
        refused = client.post("/search", json={**asked, "fingerprint": other})
        assert refused.status_code == 409
        assert own in refused.json()["detail"]
        for wrong in ("", own.upper(), own + "0", 7):
            assert client.post("/search", json={**asked, "fingerprint": wrong}).status_code == 422


def test_search_finds_what_the_index_finds(client, folder):
    queries = codes(7, seed=1)
    answer = client.post("/search", json={"queries": as_json(queries), "top_k": 5})
    assert found(answer) == expected(loaded(folder), queries, 5)
    for hit in (hit for row in answer.json()["hits"] for hit in row):
        assert hit["payload"] == {
            "color": ["red", "green"][hit["id"] % 2],
            "size": hit["id"] % 3,
            "new": hit["id"] > 99,
        }
    asked = {"queries": as_json(queries), "top_k": 5, "payloads": False}
    assert "payload" not in client.post("/search", json=asked).text


def test_short_requests_are_answered_at_once_as_long_ones_are(client, folder):
    queries = codes(3, seed=1)
    answers = [client.post("/search", json={"queries": as_json(queries)}) for _ in range(20)]
    assert all(found(answer) == expected(loaded(folder), queries, 10) for answer in answers)


def test_filters(client, folder):
    queries, index, ids = codes(3, seed=2), loaded(folder), np.arange(200)
    for changes, mask in (
        ({"where": {"color": "green"}}, ids % 2 == 1),
        ({"where": {"size": 2}}, ids % 3 == 2),
        ({"where": {"new": True, "color": "red"}}, (ids > 99) & (ids % 2 == 0)),
        ({"ids": [3, 4, 180]}, np.isin(ids, [3, 4, 180])),
        ({"ids": [3, 4, 180], "where": {"color": "green"}}, ids == 3),
        ({"where": {"color": "blue"}}, ids < 0),
        ({"where": {"new": 1}}, ids < 0),
    ):
        asked = {"queries": as_json(queries), "top_k": 200, "payloads": False, **changes}
        answer = client.post("/search", json=asked)
        assert found(answer) == expected(index, queries, 200, filter=mask), changes
    answer = client.post("/search", json={"queries": as_json(queries), "min_score": 0.5})
    assert found(answer) == expected(index, queries, 10, min_score=0.5)


# ---- other forms ----------------------------------------------------------------------


@pytest.fixture
def with_model(folder) -> Path:
    """An index that remembers an adapter."""
    model = SparseAutoencoder(24, DIM, K)
    rows = np.random.default_rng(0).normal(size=(200, 24)).astype(np.float32)
    InvertedIndex.build(model.encode(rows)).save(folder / "index")
    Recipe(text_model="words").save_to_index(folder / "index", model)
    return folder


def test_embeddings_and_texts(with_model, monkeypatch):
    from command_line import Words

    from csrtrain import texts

    monkeypatch.setattr(texts, "TextModel", Words)
    model = SparseAutoencoder.from_pretrained(with_model / "index" / "adapter")
    rows = np.random.default_rng(1).normal(size=(5, 24)).astype(np.float32)
    index = loaded(with_model)
    with serve(with_model) as client:
        until_ready(client)
        assert client.get("/index").json()["takes"] == ["codes", "embeddings", "texts"]
        asked = {"queries": [{"embedding": row} for row in rows.tolist()]}
        answer = client.post("/search", json=asked)
        assert found(answer) == expected(index, model.encode(rows), 10)
        asked = {"queries": [{"text": "a clock"}, {"text": "an hour"}]}
        answer = client.post("/search", json=asked)
        embedded = Words("words").embed(["a clock", "an hour"])
        assert found(answer) == expected(index, model.encode(embedded), 10)
        binary = client.post("/search/binary", content=save({"embeddings": rows}))
        assert listed(*hits_of(binary)) == expected(index, model.encode(rows), 10)
        for wrong, says in (
            ([{"embedding": [1.0] * 23}], "embeddings of 24 numbers, got 23"),
            ([{"embedding": [1.0] * 24}, {"embedding": [1.0]}], "of 24 numbers, as the first"),
            ([{"embedding": [1.0] * 24}, {"text": "a"}], "expected embeddings, as before it"),
            ([{"embedding": [3e38] * 24}], "expected finite numbers up to 1e+15, got 3e+38"),
        ):
            answer = client.post("/search", json={"queries": wrong})
            assert answer.status_code == 400
            assert says in answer.json()["detail"]


def test_a_text_model_that_is_missing_leaves_the_rest(with_model, monkeypatch, caplog):
    from csrtrain import texts

    def missing(*_: object) -> None:
        raise ImportError("texts are read by sentence-transformers")

    monkeypatch.setattr(texts, "TextModel", missing)
    with serve(with_model) as client:
        until_ready(client)
        assert client.get("/index").json()["takes"] == ["codes", "embeddings"]
        assert "without the text model" in caplog.text
        answer = client.post("/search", json={"queries": [{"text": "a"}]})
        assert answer.json()["detail"] == "queries: this server takes codes, embeddings, got texts"
    with serve(with_model, text_model="named") as client:
        wait_for(lambda: client.get("/ready").json()["error"] is not None)
        assert "sentence-transformers" in client.get("/ready").json()["error"]


def test_an_index_of_fine_codes_alone_takes_embeddings(tmp_path):
    pytest.importorskip("faiss")
    import csrtrain

    rows = np.random.default_rng(0).normal(size=(300, 24)).astype(np.float32)
    index = csrtrain.build_index(None, rows, n_bytes=3, progress=False)
    index.save(tmp_path / "index")
    with serve(tmp_path, payloads=None) as client:
        until_ready(client)
        assert client.get("/index").json()["takes"] == ["embeddings"]
        asked = {"queries": [{"embedding": row} for row in rows[:3].tolist()]}
        answer = client.post("/search", json=asked)
        assert found(answer) == listed(*index.search_fine(rows[:3], 10))
        answer = client.post("/search", json={**asked, "top_k": 50, "probes": 2})
        some = index.search_fine(rows[:3], 50, probes=2)
        assert (some[1] < 0).any()  # two cells of 256 hold fewer
        assert found(answer) == listed(*some)
        body = save({"embeddings": rows[:3]})
        answer = client.post("/search/binary", content=body, params={"top_k": 50, "probes": 2})
        np.testing.assert_array_equal(hits_of(answer)[1], some[1])
        assert client.post("/search", json={**asked, "probes": 257}).status_code == 422
        answer = client.post("/search", json={"queries": as_json(codes(1))})
        assert answer.json()["detail"] == "queries: this server takes embeddings, got codes"


def test_an_index_with_lists_has_no_cells_to_probe(client):
    asked = {"queries": as_json(codes(1)), "probes": 3}
    answer = client.post("/search", json=asked)
    assert answer.status_code == 400
    assert "probes: this server's index has lists" in answer.json()["detail"]


def hits_of(answer) -> tuple[np.ndarray, np.ndarray]:
    assert answer.status_code == 200, answer.text
    hits = load(answer.content)
    assert (hits["ids"].dtype, hits["scores"].dtype) == (np.int64, np.float32)
    return hits["scores"], hits["ids"]


def test_a_file_of_codes_is_a_request_in_binary(client, folder, tmp_path):
    values, indices = codes(5, seed=3)
    order = np.argsort(-values, axis=1)
    values, indices = (np.take_along_axis(a, order, 1) for a in (values, indices))
    SparseCodes.from_numpy(values, indices, DIM).save(tmp_path / "asks.safetensors")
    body = (tmp_path / "asks.safetensors").read_bytes()
    scores, ids = hits_of(client.post("/search/binary?top_k=300", content=body))
    assert ids.shape == (5, 300)
    assert listed(scores, ids) == expected(loaded(folder), (values, indices), 300)
    least = client.post("/search/binary?min_score=0.5", content=body)
    assert listed(*hits_of(least)) == expected(loaded(folder), (values, indices), 10, min_score=0.5)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "expected a safetensors file"),
        (b"x" * 100, "expected a safetensors file"),
        (save({"x": np.zeros((1, 1), np.float32)}), "values and indices, or embeddings, got x"),
        (save({"embeddings": np.zeros((1, 4), np.float64)}), "got [1, 4] of F64"),
        (save({"embeddings": np.zeros(4, np.float32)}), "expected two dimensions"),
        (save({"embeddings": np.zeros((1, 4), np.int32)}), "embeddings: expected floats"),
        (save({"embeddings": np.zeros((1, 4), np.float32)}), "takes codes, got embeddings"),
        (NO_METADATA, "takes codes, got embeddings"),
        (
            save({"values": np.ones((2, 1), np.float32), "indices": np.zeros((1, 2), np.int32)}),
            "of one shape",
        ),
        (
            save({"values": np.ones((1, 1), np.float32), "indices": np.full((1, 1), DIM, "i4")}),
            f"0..{DIM - 1}",
        ),
        (
            save({"values": np.full((1, 1), np.nan, "f4"), "indices": np.zeros((1, 1), "i4")}),
            "finite",
        ),
        (
            save(
                {"values": np.ones((1, 1), np.float32), "indices": np.zeros((1, 1), np.int32)},
                metadata={"csrkern": '{"fingerprint": 7}'},
            ),
            "fingerprint",
        ),
    ],
)
def test_binaries_that_are_no_request(client, body, says):
    answer = client.post("/search/binary", content=body)
    assert answer.status_code == 400, answer.text
    assert says in answer.json()["detail"]


# ---- mistakes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"queries": []}, 422, "queries"),
        ({"queries": [{"indices": [1], "values": [1, 2]}]}, 400, "value for each of the 1 indices"),
        ({"queries": [{"indices": [DIM], "values": [1]}]}, 400, f"0..{DIM - 1}"),
        ({"queries": [{"indices": [-1], "values": [1]}]}, 422, "indices"),
        ({"queries": [{"indices": [1], "values": [-1]}]}, 422, "greater than or equal to 0"),
        ({"queries": [{"indices": [1], "values": [1e300]}]}, 422, "less than or equal to 3"),
        ({"queries": [{"indices": [1.5], "values": [1]}]}, 422, "valid integer"),
        ({"queries": [{"indices": ["1"], "values": [1]}]}, 422, "valid integer"),
        ({"queries": [{"indices": [True], "values": [1]}]}, 422, "valid integer"),
        ({"queries": [{"indices": [1], "values": ["1"]}]}, 422, "valid number"),
        ({"queries": [{"indices": [1], "values": [1], "id": 3}]}, 422, "Extra inputs"),
        ({"queries": [{"indices": [1]}]}, 400, "expected indices and values, or .* got indices"),
        ({"queries": [{"text": "a", "embedding": [1]}]}, 400, "got embedding and text"),
        ({"queries": [{"text": "a"}]}, 400, "this server takes codes, got texts"),
        ({"queries": as_json(codes(1)) * 1025, "top_k": 1}, 400, "1 to 1024 of them, got 1025"),
        ({"queries": [{"indices": [1] * 65537, "values": [1] * 65537}]}, 422, "at most 65536"),
        ({"queries": [{"indices": [1, 1], "values": [1, 2]}]}, 400, "twice"),
        ({"top_k": 0}, 422, "top_k"),
        ({"top_k": "many"}, 422, "top_k"),
        ({"top_k": 1.5}, 422, "top_k"),
        ({"top_k": True}, 422, "top_k"),
        ({"top_k": 10**9}, 400, "top_k: expected at most 1000"),
        ({"top_k": 10**400}, 422, "top_k"),
        ({"min_score": "1"}, 422, "min_score"),
        ({"x" * 10**6: 1}, 422, "Extra inputs"),
        (
            {"where": {"x" * 10**6: "1"}},
            400,
            "expected a field to filter by .color, size, new., got",
        ),
        ({"where": {"color": 7.5}}, 422, "where"),
        ({"ids": [1.0]}, 422, "ids"),
        ({"top_k": 1000, "queries": as_json(codes(21))}, 400, "21 queries times 1000"),
        ({"where": {"shade": "red"}}, 400, "got 'shade'"),
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
        (b'{"queries": [{"indices": [1], "values": [NaN]}]}', 422),
        (b'{"queries": [{"indices": [1], "values": [1e999]}]}', 422),
        (b'{"queries": [{"indices": [1], "values": [1]}], "top_k": NaN}', 422),
        (b'{"queries": [{"indices": [1], "values": [1]}], "top_k": 1e400}', 422),
        (b'{"queries": [{"indices": [1], "values": [1]}], "min_score": Infinity}', 422),
        (b'{"queries": [{"indices": [1], "values": [1]}], "where": {"\\ud83d": "\\ud83d"}}', 400),
        (b'{"queries": [{"text": "\\ud83d"}]}', 422),
        (b'{"\\ud83d": 1, "queries": [{"indices": [1], "values": [1]}]}', 422),
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
    asked = {"queries": as_json(codes(1))}
    for kind in ("application/x-www-form-urlencoded", "text/plain"):  # the first: of curl -d
        answer = client.post("/search", content=json.dumps(asked), headers={"Content-Type": kind})
        assert answer.status_code == 422
        assert "expected Content-Type: application/json" in answer.json()["detail"][0]["msg"]


def test_one_long_query_does_not_make_all_long(client):
    """Each query has as many slots as the longest: 1,000 of these would be a gigabyte."""
    long = {"values": [0.0] * 60_000, "indices": [0] * 60_000}
    short = as_json(codes(1))[0]
    tracemalloc.start()
    answer = client.post("/search", json={"queries": [long, *[short] * 1000]})
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert answer.status_code == 400
    assert "queries: expected at most" in answer.json()["detail"]
    assert most < 300e6
    assert client.post("/search", json={"queries": [long, short]}).status_code == 200


def test_a_request_that_never_ends_is_not_read_to_its_end(folder):
    app, read, sent = application.create_app(Settings(str(folder / "index"))), [], []

    async def receive():
        read.append(1)
        return {"type": "http.request", "body": b" " * 2**20, "more_body": True}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/search", "headers": []}
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 413
    assert b"at most" in sent[1]["body"]
    assert len(read) == 9


def test_an_empty_code_finds_nothing(client):
    ask = {"queries": [{"indices": [], "values": []}, *as_json(codes(1))], "ids": [3, 3, 0, 0]}
    hits = client.post("/search", json=ask).json()["hits"]
    assert hits[0] == []


def test_scores_that_no_float_holds(tmp_path):
    huge = np.full((2, 1), 3e38, np.float32), np.array([[1], [2]])
    index = InvertedIndex.build(huge, dim=DIM, metric="ip", dtype="float32")
    index.save(tmp_path / "index")
    with serve(tmp_path, payloads=None) as client:
        until_ready(client)
        ask = {"queries": [{"indices": [1], "values": [3e38]}]}
        hits = client.post("/search", json=ask).json()["hits"]
    assert hits == [[{"id": 0, "score": pytest.approx(3.4028235e38)}]]


def test_what_is_the_servers_fault_is_said_in_one_line_of_its_log(client, monkeypatch, caplog):
    def damaged(*args: object, **options: object) -> None:
        raise ValueError("the index is damaged:\nthe postings of latent 3")

    monkeypatch.setattr(library.Library, "of_codes", damaged)
    answer = client.post("/search", json={"queries": as_json(codes(1))})
    assert answer.status_code == 500
    assert "log" in answer.json()["detail"]
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    said = errors[0].getMessage()
    assert said == "/search: ValueError: the index is damaged: the postings of latent 3"
    assert errors[0].exc_info is None
    assert client.get("/health").status_code == 200


# ---- limits ---------------------------------------------------------------------------


def test_limits_are_what_the_server_was_told(folder):
    told = {"max_queries": 2, "max_top_k": 5, "max_body": 1000}
    with serve(folder, **told) as client:
        until_ready(client)
        for asked, status in (
            ({"queries": as_json(codes(2)), "top_k": 5}, 200),
            ({"queries": as_json(codes(3)), "top_k": 5}, 400),
            ({"queries": as_json(codes(2)), "top_k": 6}, 400),
            ({"queries": as_json(codes(20)), "top_k": 5}, 413),
        ):
            assert client.post("/search", json=asked).status_code == status, asked
        values, indices = codes(3)
        body = save({"values": values, "indices": indices})
        assert client.post("/search/binary", content=body).status_code == 400
        assert client.post("/search/binary", content=body * 10).status_code == 413


def test_an_answer_that_takes_too_long_is_given_up(folder, monkeypatch):
    ended = []

    def slow(*_: object, **__: object) -> None:
        time.sleep(0.5)
        ended.append(1)

    with serve(folder, timeout=0.1) as client:
        until_ready(client)
        monkeypatch.setattr(library.Library, "of_codes", slow)
        answer = client.post("/search", json={"queries": as_json(codes(1))})
        assert answer.status_code == 504
        assert "0.1 s" in answer.json()["detail"]
        assert client.get("/health").status_code == 200
        wait_for(lambda: ended)


def test_the_key(folder, tmp_path, monkeypatch):
    (tmp_path / "key").write_text("s3cret\n")
    monkeypatch.setenv("CSRKERN_API_KEY", "another")
    asked = {"queries": as_json(codes(1))}
    for options, key in (({"api_key_file": str(tmp_path / "key")}, "s3cret"), ({}, "another")):
        with serve(folder, **options) as client:
            right = {"Authorization": f"Bearer {key}"}
            wait_for(lambda: client.get("/ready").status_code == 200)  # which needs none
            assert client.get("/health").status_code == 200
            assert client.post("/search", json=asked, headers=right).status_code == 200
            for wrong in (f"Bearer {key}x", f"Bearer {key[:-1]}", key, "Bearer ", "Bearer é"):
                refused = client.post(
                    "/search", json=asked, headers={"Authorization": wrong.encode()}
                )
                assert refused.status_code == 401, wrong
                assert refused.headers["www-authenticate"] == "Bearer"
            for path in ("/index", "/metrics", "/docs", "/openapi.json", "/nothing"):
                assert client.get(path).status_code == 401
                assert client.get(path, headers=right).status_code in (200, 404)
    for wrong in ("", " ", "two words", "ключ"):
        (tmp_path / "key").write_text(wrong)
        with pytest.raises(ValueError, match="expected a key of ASCII"):
            Settings("index", api_key_file=str(tmp_path / "key")).key()


def test_metrics(client):
    client.post("/search", json={"queries": as_json(codes(3))})
    client.post("/search", json={"queries": []})
    client.get("/a/path/that/is/not/served")
    lines = client.get("/metrics").text.splitlines()
    assert 'csrkern_requests_total{path="/search",status="200"} 1.0' in lines
    assert 'csrkern_requests_total{path="/search",status="422"} 1.0' in lines
    assert 'csrkern_requests_total{path="other",status="404"} 1.0' in lines
    assert 'csrkern_queries_total{kind="codes"} 3.0' in lines
    assert 'csrkern_search_seconds_count{kind="codes"} 1.0' in lines
    assert "csrkern_documents 200.0" in lines
    assert 'csrkern_loads_total{result="loaded"} 1.0' in lines
    assert "csrkern_requests_in_flight 0.0" in lines


# ---- reload and payloads --------------------------------------------------------------


def test_a_changed_index_is_taken_up_and_a_damaged_one_is_not(client, folder):
    asked = {"queries": as_json(codes(1, seed=3)), "top_k": 3}
    new = InvertedIndex.build(codes(150, seed=5), dim=DIM)
    new.save(folder / "index")
    wait_for(lambda: client.get("/index").json()["documents"] == 150)
    assert found(client.post("/search", json=asked)) == expected(new, codes(1, seed=3), 3)
    whole = (folder / "index" / "index.json").read_text()
    (folder / "index" / "index.json").write_text("{}")
    wait_for(lambda: client.get("/index").json()["reload_error"] is not None)
    about = client.get("/index").json()
    assert (about["documents"], "index" in about["reload_error"]) == (150, True)
    assert found(client.post("/search", json=asked)) == expected(new, codes(1, seed=3), 3)
    (folder / "index" / "index.json").write_text(whole)
    wait_for(lambda: client.get("/index").json()["reload_error"] is None)


def test_lists_are_looked_at_only_while_the_index_cannot_be_loaded(folder, monkeypatch):
    shelf = library.Shelf(Settings(str(folder / "index")), lambda result: None)
    errors, waits = [], []  # what was wrong at each look at the lists
    monkeypatch.setattr(shelf, "_lists", lambda: errors.append(shelf.error))

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        if len(waits) == 5:
            (folder / "index" / "index.json").write_text("{}")
        return len(waits) == 10

    monkeypatch.setattr(shelf._stopped, "wait", wait)
    shelf._watch()
    assert errors[:2] == [None, None]  # before the first load, and that of the changed header
    assert len(errors) == 6
    assert None not in errors[2:]


def test_lists_that_are_copied_after_their_header_are_waited_for(folder, monkeypatch):
    monkeypatch.setattr(library, "LOOK_EVERY", 0.02)
    InvertedIndex.build(codes(300, seed=5), dim=DIM).save(folder / "new")
    names = sorted(path.name for path in (folder / "new").iterdir())
    with serve(folder, payloads=None) as client:
        until_ready(client)
        for name in sorted(names, key=lambda name: name != "index.json"):
            shutil.copy(folder / "new" / name, folder / "index" / name)
            if name == "index.json":
                wait_for(lambda: client.get("/index").json()["reload_error"] is not None)
                assert client.get("/index").json()["documents"] == 200
        wait_for(lambda: client.get("/index").json()["documents"] == 300)
        assert client.get("/index").json()["reload_error"] is None


def test_payloads_that_lag_behind_their_index_are_waited_for(client, folder):
    InvertedIndex.build(codes(300, seed=5), dim=DIM).save(folder / "index")
    wait_for(lambda: client.get("/index").json()["reload_error"] is not None)
    about = client.get("/index").json()
    assert about["documents"] == 200
    assert "a row for each id up to 299" in about["reload_error"]
    rows = [{"color": "blue", "size": i, "new": True} for i in range(300)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    wait_for(lambda: client.get("/index").json()["documents"] == 300)
    answer = client.post("/search", json={"queries": as_json(codes(1)), "top_k": 300})
    hits = answer.json()["hits"][0]
    assert all(hit["payload"] == rows[hit["id"]] for hit in hits)


def test_rows_of_ids_that_are_no_row_numbers(folder):
    ids = np.random.default_rng(0).permutation(200) * 1000
    InvertedIndex.build(codes(200), ids, dim=DIM).save(folder / "index")
    index = loaded(folder)
    with serve(folder, filter_by=("color",)) as client:
        until_ready(client)
        asked = {"queries": as_json(codes(3)), "top_k": 200, "where": {"color": "green"}}
        answer = client.post("/search", json=asked)
        green = np.arange(200) % 2 == 1
        assert found(answer) == expected(index, codes(3), 200, filter=green)
        row_of = {id: row for row, id in enumerate(index.ids.tolist())}
        for hit in answer.json()["hits"][0]:
            assert hit["payload"]["size"] == row_of[hit["id"]] % 3


def test_payloads_of_lines_and_of_parquet(folder, tmp_path):
    pa = pytest.importorskip("pyarrow")
    import datetime

    import pyarrow.parquet as pq

    (tmp_path / "lines.txt").write_text("one\ntwo\n")
    assert json.loads(Payloads.load(tmp_path / "lines.txt")[1]) == {"text": "two"}
    days = [datetime.date(2020, 1, 1 + i) for i in range(3)]
    table = pa.table({"day": days, "color": ["red", None, "red"], "size": [1, 2, 3]})
    pq.write_table(table, tmp_path / "rows.parquet")
    rows = Payloads.load(tmp_path / "rows.parquet", ("color",))
    assert json.loads(rows[2]) == {"day": "2020-01-03", "color": "red", "size": 3}
    assert rows.equals("color", "red").tolist() == [True, False, True]
    (tmp_path / "rows.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="no readable Parquet file"):
        Payloads.load(tmp_path / "rows.parquet")
    pq.write_table(pa.table({"x": [b"\xff"]}), tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match="row 0: expected what JSON can hold: got bytes"):
        Payloads.load(tmp_path / "rows.parquet")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"[1]", "expected a JSON object"),
        (b'{"x": 2', "expected a JSON object"),
        (b'{"x": ' + 100_000 * b"[", "expected a JSON object of at most 100 nested"),
        (b'{"x": ' + b"1" * 5000 + b"}", "expected a JSON object"),
        (b'{"x": "\xff"}', "is not UTF-8"),
        (b'{"x": NaN}', "expected what JSON can hold"),
        (b'{"x": [-Infinity]}', "expected what JSON can hold"),
        (b'{"x": 1e999}', "expected what JSON can hold"),
        (b'{"x": "\\ud83d"}', "surrogates not allowed"),
        (b'{"\\ud83d": 1}', "surrogates not allowed"),
    ],
)
def test_payloads_that_no_answer_could_hold_are_named(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf\n{"id": 1}\n' + line + b"\n")
    with pytest.raises(ValueError) as caught:
        Payloads.load(path)
    assert str(caught.value).startswith(f"{path}: line 3")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


def test_odd_payloads_come_back_as_they_were(tmp_path):
    nested = json.loads("[" * 90 + "]" * 90)
    row = {"x": "a\u2028b\x85\x0c\U0001f600", "n": 10**40, "f": 1e300, "deep": nested}
    text = "\ufeff\n" + json.dumps(row, ensure_ascii=False) + "\r\n\n" + json.dumps({"y": 1})
    (tmp_path / "rows.jsonl").write_bytes(text.encode())
    payloads = Payloads.load(tmp_path / "rows.jsonl", ("y",))
    assert [json.loads(payloads[i]) for i in range(2)] == [row, {"y": 1}]
    assert payloads.equals("y", 1).tolist() == [False, True]
    with pytest.raises(ValueError, match="under 'z' in some row, found none"):
        Payloads.load(tmp_path / "rows.jsonl", ("z",))
