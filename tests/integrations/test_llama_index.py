"""The LlamaIndex vector store, against the package's own in-memory store where it has the same."""

from __future__ import annotations

import pytest
import torch

from csrkern.nn import SparseAutoencoder

pytest.importorskip("llama_index.core")

from document_texts import words_embedding
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import (
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)

from csrkern.integrations.llama_index import CSRVectorStore

TEXTS = ["red fox", "red fox jumps", "blue fish", "green tree", "red tree falls"]


class Words(BaseEmbedding):
    def _get_text_embedding(self, text):
        return words_embedding([text])[0].tolist()

    def _get_query_embedding(self, query):
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query):
        return self._get_text_embedding(query)


def model():
    torch.manual_seed(0)
    return SparseAutoencoder(32, 128, 16).eval()


def nodes():
    made = []
    for n, text in enumerate(TEXTS):
        metadata = {"n": n, "tags": ["even", str(n)] if n % 2 == 0 else ["odd"], "kind": text[:3]}
        metadata["mood"] = "" if n == 1 else "calm"
        if n == 4:
            metadata["tags"] = []
        node = TextNode(text=text, id_=f"node-{n}", metadata=metadata)
        node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=f"doc-{n // 2}")
        node.embedding = words_embedding([text])[0].tolist()
        made.append(node)
    return made


@pytest.fixture(params=["memory", "folder"])
def store(request, tmp_path):
    made = CSRVectorStore(tmp_path if request.param == "folder" else None, model())
    assert made.add(nodes()) == [f"node-{n}" for n in range(5)]
    yield made
    made.client.close()


def query(text="red fox", **options):
    return VectorStoreQuery(
        query_str=text, query_embedding=words_embedding([text])[0].tolist(), **options
    )


def test_nodes_come_back_whole(store):
    for node, expected in zip(store.get_nodes(), nodes(), strict=True):
        assert node.model_dump() == {**expected.model_dump(), "embedding": None}
    assert [node.node_id for node in store.get_nodes(["node-3", "nobody"])] == ["node-3"]


def test_queries_in_all_modes(store):
    result = store.query(query(similarity_top_k=2))
    assert (result.ids[0], result.nodes[0].text) == ("node-0", "red fox")
    assert result.similarities[0] == pytest.approx(1, abs=1e-3)
    for mode in (VectorStoreQueryMode.SPARSE, VectorStoreQueryMode.TEXT_SEARCH):
        result = store.query(query("tree falls", similarity_top_k=2, mode=mode))
        assert result.ids == ["node-4", "node-3"]
    hybrid = {"mode": VectorStoreQueryMode.HYBRID, "similarity_top_k": 1, "hybrid_top_k": 3}
    assert len(store.query(query("tree falls", **hybrid)).ids) == 3
    words = store.query(query("fox", alpha=0, **hybrid)).ids
    assert set(words[:2]) == {"node-0", "node-1"}
    codes = store.query(query("fox", alpha=1, **hybrid)).ids
    assert codes == store.query(query("fox", similarity_top_k=3)).ids
    with pytest.raises(ValueError, match=r"mode: expected one of default, .*, got mmr"):
        store.query(query(mode=VectorStoreQueryMode.MMR))


@pytest.mark.parametrize(
    ("operator", "key", "value"),
    [
        ("==", "n", 3),
        ("!=", "n", 3),
        (">", "n", 2),
        (">=", "n", 2),
        ("<", "n", 2),
        ("<=", "n", 2),
        ("in", "kind", ["red", "blu"]),
        ("nin", "kind", ["red", "blu"]),
        ("contains", "tags", "even"),
        ("any", "tags", ["odd", "0"]),
        ("all", "tags", ["even", "2"]),
        ("is_empty", "tags", None),
        ("is_empty", "mood", None),
        ("text_match", "kind", "r"),
        ("text_match", "kind", "R"),
        ("==", "nothing", 1),
        ("!=", "nothing", 1),
    ],
)
def test_filters_choose_what_the_packages_own_store_chooses(store, operator, key, value):
    theirs = SimpleVectorStore()
    theirs.add(nodes())
    one = MetadataFilter(key=key, value=value, operator=operator)
    other = MetadataFilter(key="n", value=0, operator=">")
    for condition, parts in (("and", [one]), ("or", [one, other]), ("and", [one, other])):
        filters = MetadataFilters(filters=parts, condition=condition)
        expected = theirs.query(query(similarity_top_k=9, filters=filters)).ids
        assert {node.node_id for node in store.get_nodes(filters=filters)} == set(expected)
        hits = store.query(query("red", similarity_top_k=9, filters=filters)).ids
        assert set(hits) <= set(expected)


def test_nested_and_negated_filters(store):
    def chosen(*parts, condition):
        filters = MetadataFilters(filters=list(parts), condition=condition)
        return filters, [node.node_id[-1] for node in store.get_nodes(filters=filters)]

    low = MetadataFilter(key="n", value=1, operator="<")
    high = MetadataFilter(key="n", value=3, operator=">")
    outside, names = chosen(low, high, condition="or")
    assert names == ["0", "4"]
    assert chosen(low, high, condition="not")[1] == ["1", "2", "3"]
    assert chosen(outside, high, condition="and")[1] == ["4"]
    match = MetadataFilter(key="kind", value="r", operator="text_match_insensitive")
    with pytest.raises(ValueError, match="text_match_insensitive is not supported, as SQLite"):
        chosen(match, condition="and")


def test_queries_within_nodes_and_documents(store):
    assert set(store.query(query(similarity_top_k=9, node_ids=["node-1"])).ids) == {"node-1"}
    assert set(store.query(query(similarity_top_k=9, doc_ids=["doc-0"])).ids) == {
        "node-0",
        "node-1",
    }


def test_deleting(store):
    store.delete("doc-0")
    assert [node.node_id for node in store.get_nodes()] == ["node-2", "node-3", "node-4"]
    store.delete_nodes(["node-2", "nobody"])
    odd = MetadataFilters(filters=[MetadataFilter(key="n", value=3)])
    store.delete_nodes(["node-4"], odd)
    store.delete_nodes(filters=odd)
    assert [node.node_id for node in store.get_nodes()] == ["node-4"]
    with pytest.raises(ValueError, match="expected node_ids or filters"):
        store.delete_nodes()
    store.clear()
    assert store.get_nodes() == []
    assert store.query(query()).ids == []


def test_an_index_of_llama_index_runs_on_it(tmp_path):
    store = CSRVectorStore(tmp_path, model())
    context = StorageContext.from_defaults(vector_store=store)
    index = VectorStoreIndex(nodes(), storage_context=context, embed_model=Words())
    found = index.as_retriever(similarity_top_k=1).retrieve("green tree")
    assert [hit.node.text for hit in found] == ["green tree"]
    index.delete_ref_doc("doc-1")
    store.persist()
    store.client.close()
    again = VectorStoreIndex.from_vector_store(CSRVectorStore(tmp_path), embed_model=Words())
    hybrid = again.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=5)
    assert hybrid.retrieve("red fox")[0].node.text == "red fox"
    assert "green tree" not in [hit.node.text for hit in hybrid.retrieve("green tree")]
