"""The LangChain vector store: the tests that langchain-tests has for every store, and our own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csrkern.nn import SparseAutoencoder

standard = pytest.importorskip("langchain_tests.integration_tests.vectorstores")

from document_texts import words_embedding  # noqa: E402
from langchain_core.documents import Document  # noqa: E402
from langchain_core.embeddings import Embeddings  # noqa: E402

from csrkern.integrations.langchain import CSRVectorStore  # noqa: E402


class Words(Embeddings):
    def embed_documents(self, texts):
        return words_embedding(texts).tolist()

    def embed_query(self, text):
        return words_embedding([text])[0].tolist()


def model(d, k=16):
    torch.manual_seed(0)
    return SparseAutoencoder(d, 64, k).eval()


@pytest.fixture
def store(tmp_path):
    documents = [
        Document("red fox", metadata={"n": 1}),
        Document("red fox jumps", metadata={"n": 2}),
        Document("blue fish", metadata={"n": 3}),
        Document("green tree", id="t", metadata={"n": 4}),
    ]
    made = CSRVectorStore.from_documents(documents, Words(), path=tmp_path, model=model(32))
    yield made
    made.store.close()


# The suite asks for k documents however unlike they are: codes of half the latents all share some.
@pytest.mark.filterwarnings("ignore:The test <Function .* is marked with '@pytest.mark.asyncio'")
@pytest.mark.asyncio
class TestStandard(standard.VectorStoreIntegrationTests):
    @pytest.fixture(params=["memory", "folder"])
    def vectorstore(self, request, tmp_path):
        path = tmp_path if request.param == "folder" else None
        made = CSRVectorStore(self.get_embeddings(), path, model(6, k=32))
        yield made
        made.store.close()


def test_searches_take_the_options_of_the_store(store):
    assert store.similarity_search("green tree", k=1)[0].id == "t"
    (hit, score), *_ = store.similarity_search_with_score("green tree", by="words")
    assert (hit.id, score) == ("t", store.store.search("green tree", by="words")[0][1])
    retriever = store.as_retriever(
        search_kwargs={"k": 5, "by": "hybrid", "filter": {"n": {"$lt": 3}}}
    )
    assert {hit.metadata["n"] for hit in retriever.invoke("red fox")} == {1, 2}
    vector = Words().embed_query("blue fish")
    by_vector = store.similarity_search_by_vector(vector, k=2)
    assert by_vector == store.similarity_search("blue fish", k=2)
    scores = [s for _, s in store.similarity_search_with_relevance_scores("blue fish")]
    assert scores[0] == pytest.approx(1, abs=1e-3)
    assert all(0 <= score <= 1 for score in scores)


def test_marginal_relevance_passes_over_what_is_alike(store):
    texts = ["sun moon star", "sun moon star sky", "sun rain"]
    store.delete()
    store.add_texts(texts)
    query = "sun moon star"
    assert [d.page_content for d in store.similarity_search(query, k=2)] == texts[:2]
    diverse = store.max_marginal_relevance_search(query, k=2, lambda_mult=0.2)
    assert [d.page_content for d in diverse] == [texts[0], texts[2]]
    same = store.max_marginal_relevance_search(query, k=2, lambda_mult=1)
    assert [d.page_content for d in same] == texts[:2]
    assert len(store.max_marginal_relevance_search(query, k=9)) == 3
    store.delete()
    assert store.max_marginal_relevance_search(query) == []


def test_it_is_opened_again(store, tmp_path):
    again = CSRVectorStore(Words(), tmp_path)  # the model is there
    assert again.similarity_search("green tree", k=1)[0].id == "t"
    again.store.close()
    np.testing.assert_array_equal(len(store.store), 4)


def test_what_the_store_refuses(store):
    with pytest.raises(ValueError, match="expected distinct ids, got 't' twice"):
        store.add_texts(["a", "b"], ids=["t", "t"])
    with pytest.raises(ValueError, match="filter: n: expected one of"):
        store.similarity_search("red", filter={"n": {">": 2}})
