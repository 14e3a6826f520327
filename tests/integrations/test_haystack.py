"""The Haystack document store: the tests that Haystack has for every store, and our own."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta

import pytest
import torch

from csrkern.nn import SparseAutoencoder

standard = pytest.importorskip("haystack.testing.document_store")

from document_texts import words_embedding  # noqa: E402
from haystack import Document, Pipeline  # noqa: E402
from haystack.document_stores.errors import DuplicateDocumentError  # noqa: E402
from haystack.document_stores.types import DuplicatePolicy  # noqa: E402
from haystack.errors import FilterError  # noqa: E402
from haystack.utils.filters import document_matches_filter  # noqa: E402

from csrkern.integrations.haystack import CSRDocumentStore, CSRRetriever  # noqa: E402

TEXTS = ["red fox", "red fox jumps", "blue fish", "green tree"]


def model(d=32):
    torch.manual_seed(0)
    return SparseAutoencoder(d, 128, 16).eval()


def documents():
    rows = words_embedding(TEXTS).tolist()
    pairs = enumerate(zip(TEXTS, rows, strict=True))
    return [Document(content=t, embedding=row, meta={"n": n}, id=f"d{n}") for n, (t, row) in pairs]


def embedding(text):
    return words_embedding([text])[0].tolist()


@pytest.fixture
def store(tmp_path):
    made = CSRDocumentStore(str(tmp_path), model())
    assert made.write_documents(documents()) == 4
    yield made
    made.store.close()


class TestStandard(
    standard.DocumentStoreBaseTests,
    standard.DeleteAllTest,
    standard.DeleteByFilterTest,
    standard.CountDocumentsByFilterTest,
):
    @pytest.fixture(params=["memory", "folder"])
    def document_store(self, request, tmp_path):
        made = CSRDocumentStore(str(tmp_path) if request.param == "folder" else None, model(768))
        yield made
        made.store.close()

    @staticmethod
    def assert_documents_are_equal(received, expected):
        """Embeddings are kept as codes."""
        assert received == [dataclasses.replace(each, embedding=None) for each in expected]

    def test_write_documents(self, document_store):
        assert document_store.write_documents([Document(content="a", id="1")]) == 1
        with pytest.raises(DuplicateDocumentError, match="'1' is in the store already"):
            document_store.write_documents([Document(content="b", id="1")])


def test_the_retriever_searches_in_all_ways(store):
    def run(by, **inputs):
        found = CSRRetriever(store, by=by, top_k=2).run(**inputs)["documents"]
        assert all(document.score is not None for document in found)
        return [document.id for document in found]

    assert run("codes", query_embedding=embedding("green tree"))[0] == "d3"
    assert run("words", query="green fish") == ["d2", "d3"]
    assert run("hybrid", query_embedding=embedding("blue"), query="blue")[0] == "d2"
    with pytest.raises(ValueError, match="text: expected a text"):
        run("hybrid", query_embedding=embedding("blue"))


def test_filters_of_component_and_run(store):
    low = {"field": "meta.n", "operator": "<", "value": 2}
    not_0 = {"field": "id", "operator": "!=", "value": "d0"}
    for policy, expected in (("replace", {"d1", "d2", "d3"}), ("merge", {"d1"})):
        retriever = CSRRetriever(store, filters=low, by="words", filter_policy=policy)
        query = "red blue green"
        assert {d.id for d in retriever.run(query=query)["documents"]} == {"d0", "d1"}
        found = retriever.run(query=query, filters=not_0, top_k=9)["documents"]
        assert {document.id for document in found} == expected


def test_a_pipeline_is_written_and_read(store):
    pipeline = Pipeline()
    pipeline.add_component("retriever", CSRRetriever(store, top_k=1, by="hybrid", weights=[2, 1]))
    inputs = {"retriever": {"query": "green tree", "query_embedding": embedding("green tree")}}
    expected = pipeline.run(inputs)
    assert expected["retriever"]["documents"][0].content == "green tree"
    again = Pipeline.loads(pipeline.dumps(), allowed_modules=["csrkern.integrations.haystack"])
    assert again.run(inputs) == expected
    again.get_component("retriever").document_store.store.close()


def test_stores_in_memory_name_their_model(tmp_path):
    with pytest.raises(ValueError, match="needs the name of its model"):
        CSRDocumentStore(model=model()).to_dict()
    model().save_pretrained(tmp_path)
    described = CSRDocumentStore(model=str(tmp_path)).to_dict()
    again = CSRDocumentStore.from_dict(described)
    again.write_documents(documents())
    assert again.search(None, embedding("red fox"), None, 1)[0].id == "d0"
    assert CSRDocumentStore.from_dict(CSRDocumentStore().to_dict()).count_documents() == 0


DAY = datetime(2025, 2, 3)


@pytest.mark.parametrize(
    ("field", "operator", "value"),
    [
        ("content", "==", "red fox"),
        ("content", "!=", "red fox"),
        ("content", "in", ["red fox", "green tree"]),
        ("content", "not in", ["red fox"]),
        ("id", "in", ["d1"]),
        ("n", ">=", 2),
        ("meta.n", "not in", [1, 2]),
        ("meta.day", "==", DAY),
        ("meta.day", ">", DAY),
        ("meta.day", "<=", DAY.isoformat()),
        ("meta.nothing", "!=", 1),
    ],
)
def test_filters_choose_what_haystack_chooses(field, operator, value):
    given = documents()
    for n, document in enumerate(given):
        document.meta["day"] = (DAY + timedelta(n - 1)).isoformat()
    store = CSRDocumentStore(None, model())
    store.write_documents(given)
    filters = {"field": field, "operator": operator, "value": value}
    for chosen in (filters, {"operator": "NOT", "conditions": [filters]}):
        expected = [each.id for each in given if document_matches_filter(chosen, each)]
        assert [each.id for each in store.filter_documents(chosen)] == expected


def test_what_is_refused(store):
    with pytest.raises(ValueError, match="expected texts, 'x' has none or a blob"):
        store.write_documents([Document(id="x")])
    with pytest.raises(TypeError, match="expected a CSRDocumentStore, got dict"):
        CSRRetriever({})
    for filters, message in (
        ({"field": "score", "operator": "==", "value": 1}, "score: the store keeps id, content"),
        ({"field": "blob.data", "operator": "==", "value": 1}, "blob.data: the store keeps"),
        ({"field": "content", "operator": ">", "value": "a"}, "expected a number or date, got 'a'"),
        ({"field": "meta.n", "operator": "~", "value": "a"}, "expected one of ==,"),
        ({"operator": "XOR", "conditions": []}, "expected AND, OR or NOT, got 'XOR'"),
    ):
        with pytest.raises(FilterError, match=message):
            store.filter_documents(filters)
    found = store.filter_documents({"field": "id", "operator": "in", "value": ["d1", "d2"]})
    assert [document.id for document in found] == ["d1", "d2"]


def test_policies_within_one_call(store):
    again = [*documents()[:1], Document(content="new", id="n")]
    assert store.write_documents(again, DuplicatePolicy.SKIP) == 1
    assert store.write_documents(again, DuplicatePolicy.OVERWRITE) == 2
    assert store.count_documents() == 5
