"""Codes to search engines and back, against the real engines that run inside a process."""

from __future__ import annotations

import json
import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from csrkern import InvertedIndex, SparseCodes
from csrkern.integrations import elasticsearch, milvus, qdrant, seismic

H, K, TOP_K = 256, 12, 10
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
    return InvertedIndex.build(codes, IDS, dtype="float32", metric="ip").search(queries, TOP_K)


def assert_same_hits(expected, found: list[list[tuple[int, float]]], tolerance=1e-5) -> None:
    """The same ids in the same order, but for scores that rounding makes equal."""
    for scores, ids, hits in zip(*expected, found, strict=True):
        np.testing.assert_allclose([score for _, score in hits], scores, rtol=tolerance)
        place = {int(i): float(s) for i, s in zip(ids, scores, strict=True)}
        for (i, _), score in zip(hits, scores, strict=True):
            # One that took the place of another must be as good, to within the tolerance.
            assert abs(place.get(i, scores[-1]) - score) <= tolerance * score
        assert len({i for i, _ in hits}) == TOP_K
    in_order = [[i for i, _ in hits] for hits in found]
    assert np.mean((np.array(in_order) == expected[1]).all(1)) > 0.9


def test_qdrant(codes, queries, expected):
    client = pytest.importorskip("qdrant_client").QdrantClient(":memory:")
    qdrant.upload(codes, client, "documents", ids=IDS, batch_size=150)
    found = [
        client.query_points("documents", query=query, using="csr", limit=TOP_K).points
        for query in qdrant.queries(queries)
    ]
    assert_same_hits(expected, [[(hit.id, hit.score) for hit in hits] for hits in found])
    back, ids = qdrant.download(client, "documents", H, k=K, batch_size=70)
    assert np.array_equal(ids, IDS)
    assert back.equal(codes)
    # Points of an id are replaced; an index goes as it is stored; payloads stay beside them.
    index = InvertedIndex.build(codes[:2], IDS[5:7], metric="ip")
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
    found = client.search("documents", milvus.queries(queries), anns_field="csr", limit=TOP_K)
    assert_same_hits(expected, [[(hit["id"], hit["distance"]) for hit in hits] for hits in found])
    back, ids = milvus.download(client, "documents", H, k=K, batch_size=70)
    assert np.array_equal(ids, IDS)
    assert back.equal(codes)
    index = InvertedIndex.build(codes[:2], IDS[5:7], metric="ip")
    milvus.upload(index, client, "documents", fields=[{"name": "a"}, {"name": "b"}])
    back, ids = milvus.download(client, "documents", H, k=K)
    assert np.array_equal(ids, IDS)
    assert back[5:7].equal(codes[:2])
    assert client.get("documents", int(IDS[6]), output_fields=["name"])[0]["name"] == "b"
    with pytest.raises(ValueError, match="row 1 has no active latent"):
        milvus.upload(SparseCodes.from_dense(torch.tensor([[1.0, 0], [0, 0]])), client, "few")
    assert not client.has_collection("few")


class Unused:
    """A client that nothing is asked of."""

    def __getattr__(self, name):
        raise AssertionError(f"{name} was called")


INVALID = {
    "distinct latents is broken in row 1": ([[2.0, 1.0], [2.0, 1.0]], [[1, 2], [3, 3]]),
    "values not negative is broken in row 0": ([[1.0, -2.0]], [[1, 2]]),
    "indices in 0..dim-1 is broken in row 0": ([[1.0, 1.0]], [[1, H]]),
    "indices in 0..dim-1 is broken in row 2": ([[1.0]] * 3, [[1], [1], [-1]]),
    "row 1 holds 1 values that are not finite": ([[1.0, 0], [math.nan, 1]], [[1, 0], [1, 2]]),
    "row 0 holds 1 values that are not finite .*inf": ([[math.inf]], [[1]]),
    "row 1 holds 1e.300, which float32": ([[1.0], [1e300]], [[1], [1]]),
    "row 0 holds 1e-300, which float32": ([[1e-300]], [[1]]),
}
WRITERS = {
    "qdrant": lambda codes, _: qdrant.upload(codes, Unused(), "documents"),
    "qdrant queries": lambda codes, _: qdrant.queries(codes),
    "milvus": lambda codes, _: milvus.upload(codes, Unused(), "documents"),
    "milvus queries": lambda codes, _: milvus.queries(codes),
    "bulk_lines": lambda codes, _: elasticsearch.bulk_lines(codes),  # before the first line
    "search_bodies": lambda codes, _: elasticsearch.search_bodies(codes),
    "seismic": lambda codes, folder: seismic.write(codes, folder / "codes.bin"),
    "seismic queries": lambda codes, _: seismic.queries(codes),
}


@pytest.mark.parametrize("message", INVALID)
@pytest.mark.parametrize("name", WRITERS)
def test_invalid_codes_are_refused_before_anything_is_written(name, message, tmp_path):
    pytest.importorskip("qdrant_client")
    pytest.importorskip("pymilvus")
    values, indices = INVALID[message]
    dtype = torch.float64 if "float32" in message else torch.float32
    tensors = torch.tensor(values, dtype=dtype), torch.tensor(indices, dtype=torch.int32)
    with pytest.raises(ValueError, match=message):
        WRITERS[name](SparseCodes(*tensors, H), tmp_path)
    assert list(tmp_path.iterdir()) == []


ARGUMENTS = [
    ({"batch_size": 0}, ValueError, "batch_size: expected 1 <="),
    ({"batch_size": -1}, ValueError, "batch_size: expected 1 <="),
    ({"batch_size": 2.5}, TypeError, "batch_size: expected an int"),
    ({"batch_size": True}, TypeError, "batch_size: expected an int"),
    ({"ids": [1, 2]}, ValueError, "ids: expected one id for each of 3"),
    ({"ids": [1, 1, 2]}, ValueError, "ids: expected distinct ids"),
    ({"ids": [0.5, 1.5, 2.5]}, TypeError, "ids: expected integers"),
    ({"fields": [{}]}, ValueError, "expected one for each of 3 codes, got 1"),
    ({"fields": [{}, {}, "title"]}, TypeError, "expected a dictionary .* got str for row 2"),
]


@pytest.mark.parametrize(("options", "error", "message"), ARGUMENTS)
@pytest.mark.parametrize("engine", [qdrant, milvus])
def test_arguments_are_checked_before_anything_is_asked(engine, options, error, message):
    pytest.importorskip("qdrant_client")
    pytest.importorskip("pymilvus")
    if engine is qdrant and "fields" in options:
        options = {"payloads": options["fields"]}
        message = f"payloads: {message}"
    with pytest.raises(error, match=message):
        engine.upload(some_codes(3, 0), Unused(), "documents", **options)
    if "batch_size" in options:
        with pytest.raises(error, match=message):
            engine.download(Unused(), "documents", H, **options)


def test_fields_do_not_hide_the_code():
    pytest.importorskip("pymilvus")
    for key in ("id", "csr"):
        with pytest.raises(ValueError, match=f"fields: row 0 has the key '{key}'"):
            milvus.upload(some_codes(1, 0), Unused(), "few", fields=[{key: 1}])
    with pytest.raises(ValueError, match="row 0 has the key 'code'"):
        elasticsearch.bulk_lines(some_codes(1, 0), fields=[{"code": 1}], field="code")
    for wrong in (math.nan, math.inf, {1}, np.float32(1)):
        with pytest.raises(ValueError, match="those of id 0 are no JSON"):
            list(elasticsearch.bulk_lines(some_codes(1, 0), fields=[{"price": wrong}]))


def test_batches_of_any_size():
    client = pytest.importorskip("qdrant_client").QdrantClient(":memory:")
    codes = some_codes(7, 0)
    for size in (1, 7, 8, np.int64(3)):
        qdrant.upload(codes, client, "few", batch_size=size)
        back, ids = qdrant.download(client, "few", H, k=K, batch_size=size)
        assert back.equal(codes)
        assert ids.tolist() == list(range(7))


def qdrant_collections(client):
    from qdrant_client import models

    index = models.SparseIndexParams(datatype="float16")
    sparse = {
        "idf": {"csr": models.SparseVectorParams(modifier=models.Modifier.IDF)},
        "halves": {"csr": models.SparseVectorParams(index=index)},
        "other": {"words": models.SparseVectorParams()},
        "plain": {"csr": models.SparseVectorParams(modifier=models.Modifier.NONE)},
    }
    for name, config in sparse.items():
        client.create_collection(name, vectors_config={}, sparse_vectors_config=config)
    dense = models.VectorParams(size=H, distance=models.Distance.COSINE)
    client.create_collection("dense", vectors_config={"csr": dense})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("idf", "'csr' of 'idf' has the modifier 'idf'"),
        ("halves", "has the datatype 'float16'"),
        ("other", "has no sparse vector 'csr', but 'words'; name another with vector="),
        ("dense", "has no sparse vector 'csr', but none"),
    ],
)
def test_qdrant_refuses_collections_that_score_otherwise(name, message):
    client = pytest.importorskip("qdrant_client").QdrantClient(":memory:")
    qdrant_collections(client)
    with pytest.raises(ValueError, match=message):
        qdrant.upload(some_codes(3, 0), client, name)
    assert client.count(name).count == 0
    qdrant.upload(some_codes(3, 0), client, "plain")
    assert client.count("plain").count == 3


STORED = [
    ([1, 2], [-1.0, 2.0], "expected finite weights of at least 0, .* got -1.0 for latent 1"),
    ([1, H], [1.0, 2.0], "expected latents in 0..255, got 256"),
    ([1, 2], [1.0, math.inf], "expected finite weights .* got inf for latent 2"),
]


@pytest.mark.parametrize(("latents", "weights", "message"), STORED)
def test_qdrant_vectors_that_are_no_codes_are_refused(latents, weights, message):
    client = pytest.importorskip("qdrant_client").QdrantClient(":memory:")
    from qdrant_client import models

    qdrant.upload(some_codes(3, 0), client, "documents")
    vector = models.SparseVector(indices=latents, values=weights)
    client.upsert("documents", [models.PointStruct(id=77, vector={"csr": vector})])
    with pytest.raises(ValueError, match=f"documents: point 77: {message}"):
        qdrant.download(client, "documents", H)
    with pytest.raises(ValueError, match="no sparse vector 'words'"):
        qdrant.download(client, "documents", H, vector="words")


class StoredElsewhere:
    """Milvus with entities that milvus-lite would not have taken, but another version did."""

    def __init__(self, client, entities):
        self.client, self.entities = client, entities

    def __getattr__(self, name):
        return getattr(self.client, name)

    def query_iterator(self, *_args, **_options):
        pages = iter([self.entities, []])
        return SimpleNamespace(next=lambda: next(pages), close=lambda: None)


@pytest.mark.parametrize(("latents", "weights", "message"), STORED)
def test_milvus_vectors_that_are_no_codes_are_refused(milvus_client, latents, weights, message):
    milvus.upload(some_codes(3, 0), milvus_client, "documents")
    vector = dict(zip(latents, weights, strict=True))
    client = StoredElsewhere(milvus_client, [{"id": 77, "csr": vector}])
    with pytest.raises(ValueError, match=f"documents: entity 77: {message}"):
        milvus.download(client, "documents", H)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": "name"}, "has not the integer 'id'"),
        ({"key_type": "VARCHAR"}, "has not the integer 'id'"),
        ({"auto_id": True}, "has not the integer 'id'"),
        ({"vector": "words"}, "has no sparse field 'csr', but 'id', 'words'"),
        ({"kind": "FLOAT_VECTOR"}, "has no sparse field 'csr'"),
        ({"metric": "BM25"}, "'csr' of 'documents' is searched by BM25"),
    ],
)
def test_milvus_refuses_collections_that_are_otherwise(milvus_client, changes, message):
    from pymilvus import DataType

    wanted = {"key": "id", "key_type": "INT64", "auto_id": False, "vector": "csr"}
    wanted |= {"kind": "SPARSE_FLOAT_VECTOR", "metric": "IP"} | changes
    schema = milvus_client.create_schema(auto_id=wanted["auto_id"], enable_dynamic_field=True)
    size = {"max_length": 20} if wanted["key_type"] == "VARCHAR" else {}
    schema.add_field(wanted["key"], DataType[wanted["key_type"]], is_primary=True, **size)
    width = {"dim": 4} if wanted["kind"] == "FLOAT_VECTOR" else {}
    schema.add_field(wanted["vector"], DataType[wanted["kind"]], **width)
    milvus_client.create_collection("documents", schema=schema)
    client = milvus_client
    if "metric" in changes:  # milvus-lite has no other for sparse fields, a server has
        client = StoredElsewhere(milvus_client, [])
        client.list_indexes = lambda *_args, **_options: ["csr"]
        client.describe_index = lambda *_args: {"metric_type": wanted["metric"]}
    with pytest.raises(ValueError, match=message):
        milvus.upload(some_codes(3, 0), client, "documents")


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
        [(hit[-1], hit[-2]) for hit in index.search(*query, TOP_K, K, HEAP_FACTOR, 0, True)]
        for query in seismic.queries(queries)
    ]
    wanted = InvertedIndex.build(codes, dtype="float16", metric="ip").search(queries, TOP_K)
    assert_same_hits(wanted, found, tolerance=2e-3)


def test_a_damaged_seismic_file_is_refused(codes, tmp_path):
    path = tmp_path / "codes.bin"
    seismic.write(codes, path)
    content = path.read_bytes()
    cut = (content[:-1], content[:-4], content[:4], content[:3], b"", b"\0")
    longer = [content + bytes(extra) for extra in range(1, 9)]
    for damaged in (*cut, *longer, bytes([255] * 8)):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="not a whole file"):
            seismic.read(path, H)
    seismic.write(codes[:0], path)
    assert len(seismic.read(path, H)) == 0


@pytest.mark.parametrize(("latents", "weights", "message"), STORED)
def test_seismic_rows_that_are_no_codes_are_refused(latents, weights, message, tmp_path):
    words = [np.array([2, 0, 2], "<u4"), np.array(latents, "<u4"), np.array(weights, "<f4")]
    (tmp_path / "codes.bin").write_bytes(b"".join(part.tobytes() for part in words))
    with pytest.raises(ValueError, match=rf"codes\.bin: row 1: {message}"):
        seismic.read(tmp_path / "codes.bin", H)


def test_seismic_takes_many_latents_in_its_wider_index(tmp_path):
    package = pytest.importorskip("seismic")
    values, indices = np.tile([[2.0, 1.0]], (60, 1)), np.tile([[5, 65536]], (60, 1))
    indices[::3] = [7, 65535]
    codes = SparseCodes.from_numpy(values.astype(np.float32), indices, 70000)
    path = tmp_path / "codes.bin"
    with pytest.warns(UserWarning, match="latent 65536: build it with SeismicIndexRawLV"):
        seismic.write(codes, path)
    assert seismic.read(path, 70000).equal(codes)
    index = package.SeismicIndexRawLV.build(str(path), **SEISMIC_BUILD)
    hits = index.search(*seismic.queries(codes)[1], 3, 2, HEAP_FACTOR, 0, True)
    assert [(hit[-2], hit[-1] % 3 > 0) for hit in hits] == [(5.0, True)] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seismic.write(codes[::3], path)


def test_seismic_values_beyond_its_float16_are_refused(tmp_path):
    codes = SparseCodes.from_dense(torch.tensor([[1.0, 65504.0], [0.0, 65520.0]]))
    with pytest.raises(ValueError, match=r"row 1 holds 6\.552e\+04, and Seismic's float16"):
        seismic.write(codes, tmp_path / "codes.bin")
    assert list(tmp_path.iterdir()) == []
    seismic.write(codes[:1], tmp_path / "codes.bin")


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


def test_nothing_is_pruned():
    """Elasticsearch leaves weak latents out of queries unless it is told not to."""
    field = elasticsearch.mapping("code")["mappings"]["properties"]["code"]
    assert field == {"type": "sparse_vector", "index_options": {"prune": False}}
    (body,) = elasticsearch.search_bodies(some_codes(1, 0))
    assert body["query"]["sparse_vector"]["prune"] is False
    field = elasticsearch.mapping(kind="rank_features")["mappings"]["properties"]["csr"]
    assert field == {"type": "rank_features"}


@pytest.mark.parametrize("kind", elasticsearch.KINDS)
def test_a_query_without_latents_matches_nothing(kind):
    codes = SparseCodes.from_dense(torch.tensor([[0.0, 0.0], [0.0, 2.0]]))
    nothing, something = elasticsearch.search_bodies(codes, kind=kind)
    assert nothing["query"] == {"match_none": {}}
    assert "match_none" not in something["query"]


def test_lines_are_ascii():
    """So that nobody splits them at a line end of Unicode, and lone surrogates can be sent."""
    names = ["caf\u00e9 \u2028 \u0085", "\ud83d"]
    lines = list(elasticsearch.bulk_lines(some_codes(2, 0), fields=[{"name": n} for n in names]))
    assert all(line.isascii() and len(line.splitlines()) == 1 for line in lines)
    assert [json.loads(line)["name"] for line in lines[1::2]] == names


@pytest.mark.parametrize("top_k", [0, -1, 2.5, True, "3"])
def test_top_k_of_a_search_is_checked(top_k):
    with pytest.raises((TypeError, ValueError), match="top_k: expected"):
        elasticsearch.search_bodies(some_codes(1, 0), top_k)
    assert elasticsearch.search_bodies(some_codes(1, 0), np.int64(3))[0]["size"] == 3


def hit(code: str, id: str = '"5"') -> str:
    return f'{{"_id": {id}, "_source": {{"csr": {code}}}}}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (hit('{"1": -1.0, "2": 2.0}'), "finite weights of at least 0, .* got -1.0 for latent 1"),
        (hit('{"1": NaN}'), "got nan for latent 1"),
        (hit('{"1": 1e999}'), "got inf for latent 1"),
        (hit('{"1": 1e39}'), "got inf for latent 1"),
        (hit('{"1": "2.0"}'), "values: expected real numbers"),
        (hit('{"1": true}'), "values: expected numbers, got a bool"),
        (hit('{"1": 1.0, "2": true}'), "values: expected numbers, got a bool"),
        (hit('{"1": null}'), "values: expected real numbers"),
        (hit('{"1": [1.0]}'), "expected as many values as latents"),
        (hit('{"1": 1.0, "1": 2.0}'), "a name occurs twice"),
        (hit('{"1": 1.0, "01": 2.0}'), "latent 1 occurs twice"),
        (hit('{"256": 1.0}'), "expected latents in 0..255, got 256"),
        (hit('{"18446744073709551617": 1.0}'), "latents: expected integers in"),
        (hit('{"-1": 1.0}'), "expected an integer, got '-1'"),
        (hit('{"1.5": 1.0}'), "expected an integer, got '1.5'"),
        (hit('{"1_0": 1.0}'), "expected an integer, got '1_0'"),
        (hit('{" 1": 1.0}'), "expected an integer, got ' 1'"),
        (hit('{"1": 1.0}', "5.9"), "expected an integer, got 5.9"),
        (hit('{"1": 1.0}', "true"), "expected an integer, got True"),
        (hit('{"1": 1.0}', '"a"'), "expected an integer, got 'a'"),
        (hit('{"1": 1.0}', "-1"), "expected integers as ids, got -1"),
        (hit('{"1": 1.0}', "99999999999999999999"), "expected integers as ids"),
        ('{"_id": "5", "_source": {"other": 1}}', "no field 'csr'"),
        ("[" * 100_000, "expected an action"),
    ],
)
def test_lines_that_hold_no_code_are_refused(line, message):
    good = hit('{"1": 1.0}', '"4"')
    with pytest.raises(ValueError, match=f"line 3: .*{message}"):
        elasticsearch.read_lines([good, "\n", line], H)


def test_lines_of_one_id_or_without_a_document_are_refused():
    with pytest.raises(ValueError, match="line 2: id 5 occurs twice"):
        elasticsearch.read_lines([hit("{}"), hit('{"1": 1.0}')], H)
    *lines, _ = elasticsearch.bulk_lines(some_codes(2, 0))
    with pytest.raises(ValueError, match="document of id '1' is missing"):
        elasticsearch.read_lines(lines, H)
    codes, ids = elasticsearch.read_lines([hit('{"3": 0.0, "2": 1.5}', "7"), hit("null")], H)
    assert ids.tolist() == [5, 7]
    assert codes.to_dense().nonzero().tolist() == [[1, 2]]


def test_queries_score_what_the_index_scores(codes, queries, expected):
    """There is no server here: what the bodies ask for is added up over the documents."""
    documents = {}
    lines = list(elasticsearch.bulk_lines(codes, ids=IDS))
    for action, document in zip(lines[::2], lines[1::2], strict=True):
        documents[int(json.loads(action)["index"]["_id"])] = json.loads(document)["csr"]
    for kind in elasticsearch.KINDS:
        assert elasticsearch.mapping(kind=kind)["mappings"]["properties"]["csr"]["type"] == kind
        found = []
        for body in elasticsearch.search_bodies(queries, TOP_K, kind=kind):
            assert body["size"] == TOP_K
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
            found.append(sorted(scores, key=lambda hit: (-hit[1], hit[0]))[:TOP_K])
        assert_same_hits(expected, found)


def test_bad_input_is_explained(codes):
    with pytest.raises(TypeError, match="codes: expected SparseCodes or an InvertedIndex"):
        list(elasticsearch.bulk_lines(codes.to_dense()))
    with pytest.raises(ValueError, match="expected one for each of 400 codes, got 1"):
        list(elasticsearch.bulk_lines(codes, fields=[{}]))
    with pytest.raises(ValueError, match="an InvertedIndex has its own"):
        list(elasticsearch.bulk_lines(InvertedIndex.build(codes, metric="ip"), ids=IDS))
    with pytest.raises(ValueError, match="kind: expected one of"):
        elasticsearch.mapping(kind="dense_vector")
    for line in ("{", "5", '{"delete": {"_id": "1"}}', '{"_source": {"csr": {"a": 1}}, "_id": 1}'):
        with pytest.raises(ValueError, match="line 1: expected"):
            elasticsearch.read_lines([line], H)
    with pytest.raises(ValueError, match=r"latents in 0\.\.2, got"):
        elasticsearch.read_lines(elasticsearch.bulk_lines(codes), 3)
