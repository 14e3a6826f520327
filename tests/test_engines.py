"""Codes to search engines and back, against the real engines that run inside a process."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from csrkern import InvertedIndex, SparseCodes
from csrkern.integrations import elasticsearch, milvus, qdrant, seismic

H, K, TOPK = 256, 12, 10
IDS = 7 + 3 * np.arange(400)


def some_codes(n: int, seed: int) -> SparseCodes:
    """Values that float16 holds exactly, latents of skewed use, some rows shorter than k."""
    generator = torch.Generator().manual_seed(seed)
    use = torch.linspace(1, 0.2, H)
    dense = torch.rand(n, H, generator=generator) * use
    codes = SparseCodes.from_dense(dense.half().float(), K)
    keep = torch.randint(2, K + 1, (n, 1), generator=generator)
    values = codes.values * (torch.arange(K) < keep)
    return SparseCodes.from_numpy(values.numpy(), codes.indices.numpy(), H)


@pytest.fixture(scope="module")
def codes() -> SparseCodes:
    return some_codes(400, 0)


@pytest.fixture(scope="module")
def queries() -> SparseCodes:
    return some_codes(25, 1)


@pytest.fixture(scope="module")
def expected(codes, queries) -> tuple[np.ndarray, np.ndarray]:
    return InvertedIndex.build(codes, IDS, values="float32").search(queries, TOPK)


def assert_same_hits(expected, found: list[list[tuple[int, float]]], tolerance=1e-5) -> None:
    """The same ids in the same order, but for scores that rounding makes equal."""
    for scores, ids, hits in zip(*expected, found, strict=True):
        np.testing.assert_allclose([score for _, score in hits], scores, rtol=tolerance)
        place = {int(i): float(s) for i, s in zip(ids, scores, strict=True)}
        for (i, _), score in zip(hits, scores, strict=True):
            # One that took the place of another must be as good, to within the tolerance.
            assert abs(place.get(i, scores[-1]) - score) <= tolerance * score
        assert len({i for i, _ in hits}) == TOPK
    in_order = [[i for i, _ in hits] for hits in found]
    assert np.mean((np.array(in_order) == expected[1]).all(1)) > 0.9


def test_qdrant(codes, queries, expected):
    client = pytest.importorskip("qdrant_client").QdrantClient(":memory:")
    qdrant.upload(codes, client, "documents", ids=IDS, batch_size=150)
    found = [
        client.query_points("documents", query=query, using="csr", limit=TOPK).points
        for query in qdrant.queries(queries)
    ]
    assert_same_hits(expected, [[(hit.id, hit.score) for hit in hits] for hits in found])
    back, ids = qdrant.download(client, "documents", H, k=K, batch_size=70)
    assert np.array_equal(ids, IDS)
    assert back.equal(codes)
    # Points of an id are replaced; an index goes as it is stored; payloads stay beside them.
    index = InvertedIndex.build(codes[:2], IDS[5:7])
    qdrant.upload(index, client, "documents", payloads=[{"name": "a"}, {"name": "b"}])
    assert client.count("documents").count == 400
    assert client.retrieve("documents", [int(IDS[6])])[0].payload == {"name": "b"}
    back, ids = qdrant.download(client, "documents", H, k=K)
    assert back[5:7].equal(codes[:2])
    client.upsert("documents", [point_with_a_name()])
    with pytest.raises(ValueError, match="expected integers as ids"):
        qdrant.download(client, "documents", H)


def point_with_a_name():
    from qdrant_client import models

    return models.PointStruct(id="936da01f-9abd-4d9d-80c7-02af85c822a8", vector={})


def test_qdrant_takes_codes_without_an_active_latent():
    client = pytest.importorskip("qdrant_client").QdrantClient(":memory:")
    codes = SparseCodes.from_dense(torch.tensor([[0.0, 0.0, 0.0], [0.0, 2.0, 0.0]]))
    qdrant.upload(codes, client, "few")
    back, ids = qdrant.download(client, "few", 3)
    assert back.equal(codes)
    assert ids.tolist() == [0, 1]


@pytest.fixture
def milvus_client(tmp_path):
    pytest.importorskip("milvus_lite", reason="pip install 'csrkern[engines]'")
    client = pytest.importorskip("pymilvus").MilvusClient(str(tmp_path / "milvus.db"))
    yield client
    client.close()


def test_milvus(codes, queries, expected, milvus_client):
    client = milvus_client
    milvus.upload(codes, client, "documents", ids=IDS, batch_size=150)
    found = client.search("documents", milvus.queries(queries), anns_field="csr", limit=TOPK)
    assert_same_hits(expected, [[(hit["id"], hit["distance"]) for hit in hits] for hits in found])
    back, ids = milvus.download(client, "documents", H, k=K, batch_size=70)
    assert np.array_equal(ids, IDS)
    assert back.equal(codes)
    index = InvertedIndex.build(codes[:2], IDS[5:7])
    milvus.upload(index, client, "documents", fields=[{"name": "a"}, {"name": "b"}])
    back, ids = milvus.download(client, "documents", H, k=K)
    assert np.array_equal(ids, IDS)
    assert back[5:7].equal(codes[:2])
    assert client.get("documents", int(IDS[6]), output_fields=["name"])[0]["name"] == "b"
    with pytest.raises(ValueError, match="row 1 has no active latent"):
        milvus.upload(SparseCodes.from_dense(torch.tensor([[1.0, 0], [0, 0]])), client, "few")
    assert not client.has_collection("few")


# Settings under which it skips nothing that could matter here.
SEISMIC_BUILD = {"n_postings": 4000, "summary_energy": 1.0, "centroid_fraction": 0.1}
HEAP_FACTOR = 0.5


def test_seismic(codes, queries, tmp_path):
    raw = pytest.importorskip("seismic").SeismicIndexRaw
    path = tmp_path / "codes.bin"
    seismic.write(codes, path)
    assert seismic.read(path, H, k=K).equal(codes)
    index = raw.build(str(path), **SEISMIC_BUILD)
    found = [
        [(hit[-1], hit[-2]) for hit in index.search(*query, TOPK, K, HEAP_FACTOR, 0, True)]
        for query in seismic.queries(queries)
    ]
    wanted = InvertedIndex.build(codes, values="float16").search(queries, TOPK)
    assert_same_hits(wanted, found, tolerance=2e-3)


def test_a_damaged_seismic_file_is_refused(codes, tmp_path):
    path = tmp_path / "codes.bin"
    seismic.write(codes, path)
    content = path.read_bytes()
    for damaged in (b"", content[:-4], content[:4], content + bytes(4), bytes([255] * 8)):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="not a whole file"):
            seismic.read(path, H)
    seismic.write(codes[:0], path)
    assert len(seismic.read(path, H)) == 0


@pytest.mark.parametrize("name", [None, "documents"])
def test_bulk_documents_there_and_back(codes, name):
    fields = [{"title": f"row {i}", "index": {"_id": 1}} for i in range(len(codes))]
    lines = list(elasticsearch.bulk_lines(codes, name, ids=IDS, fields=fields, field="code"))
    assert len(lines) == 2 * len(codes)
    assert all(line.endswith("\n") and line.count("\n") == 1 for line in lines)
    action, document = json.loads(lines[2]), json.loads(lines[3])
    assert action["index"]["_id"] == "10"
    assert action["index"].get("_index") == name
    assert document["title"] == "row 1"
    assert all(isinstance(latent, str) for latent in document["code"])
    back, ids = elasticsearch.read_lines(reversed_pairs(lines), H, k=K, field="code")
    assert np.array_equal(ids, IDS)
    assert back.equal(codes)


def reversed_pairs(lines: list[str]) -> list[str]:
    return [line for i in range(len(lines) - 2, -1, -2) for line in (*lines[i : i + 2], "\n")]


def test_hits_of_a_scroll_are_read_too(codes):
    _, *lines = elasticsearch.bulk_lines(codes[:1])
    hit = {"_index": "documents", "_id": "5", "_score": 1.0, "_source": json.loads(lines[0])}
    back, ids = elasticsearch.read_lines([json.dumps(hit)], H, k=K)
    assert back.equal(codes[:1])
    assert ids.tolist() == [5]


def dot(document: dict[str, float], query: dict[str, float]) -> float:
    return sum(weight * document.get(latent, 0) for latent, weight in query.items())


def test_queries_score_what_the_index_scores(codes, queries, expected):
    """There is no server here: what the bodies ask for is added up over the documents."""
    documents = {}
    lines = list(elasticsearch.bulk_lines(codes, ids=IDS))
    for action, document in zip(lines[::2], lines[1::2], strict=True):
        documents[int(json.loads(action)["index"]["_id"])] = json.loads(document)["csr"]
    for kind in elasticsearch.KINDS:
        assert elasticsearch.mapping(kind=kind)["mappings"]["properties"]["csr"]["type"] == kind
        found = []
        for body in elasticsearch.search_bodies(queries, TOPK, kind=kind):
            assert body["size"] == TOPK
            assert json.loads(json.dumps(body)) == body
            if kind == "sparse_vector":
                asked = body["query"]["sparse_vector"]
                assert asked["field"] == "csr"
                weights = asked["query_vector"]
            else:
                features = [one["rank_feature"] for one in body["query"]["bool"]["should"]]
                assert all(feature["linear"] == {} for feature in features)
                weights = {f["field"].removeprefix("csr."): f["boost"] for f in features}
            scores = [(i, dot(document, weights)) for i, document in documents.items()]
            found.append(sorted(scores, key=lambda hit: (-hit[1], hit[0]))[:TOPK])
        assert_same_hits(expected, found)


def test_bad_input_is_explained(codes):
    with pytest.raises(TypeError, match="codes: expected SparseCodes or an InvertedIndex"):
        list(elasticsearch.bulk_lines(codes.to_dense()))
    with pytest.raises(ValueError, match="expected one for each of 400 codes, got 1"):
        list(elasticsearch.bulk_lines(codes, fields=[{}]))
    with pytest.raises(ValueError, match="an InvertedIndex has its own"):
        list(elasticsearch.bulk_lines(InvertedIndex.build(codes), ids=IDS))
    with pytest.raises(ValueError, match="kind: expected one of"):
        elasticsearch.mapping(kind="dense_vector")
    for line in ("{", "5", '{"delete": {"_id": "1"}}', '{"_source": {"csr": {"a": 1}}, "_id": 1}'):
        with pytest.raises(ValueError, match="line 1: expected"):
            elasticsearch.read_lines([line], H)
    with pytest.raises(ValueError, match=r"latents in 0\.\.2, got"):
        elasticsearch.read_lines(elasticsearch.bulk_lines(codes), 3)
