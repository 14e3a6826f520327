"""A LangChain vector store on a `DocumentStore`."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from csrkern.documents import DocumentStore

if TYPE_CHECKING:
    from csrkern.nn.modules import SparseAutoencoder


class CSRVectorStore(VectorStore):
    """Documents of LangChain, found by the codes of their embeddings, by words or by both.

    Searches take the options of `DocumentStore.search`, as does `as_retriever(search_kwargs=...)`:
    `filter={"year": {"$gte": 2000}}`, `by="hybrid"`, `weights=(1, 0.5)`, `method="scores"`.

    Attributes:
        store: the `DocumentStore`, to be closed (or saved) at the end.
    """

    def __init__(
        self,
        embedding: Embeddings,
        path: str | os.PathLike[str] | None = None,
        model: SparseAutoencoder | str | os.PathLike[str] | None = None,
    ) -> None:
        """Open the store in a folder, or make one.

        Args:
            embedding: embeds texts and queries.
            path, model: of `DocumentStore`.
        """
        self._embedding = embedding
        self.store = DocumentStore(
            path,
            model,
            embed=embedding.embed_documents,
            embed_query=lambda texts: [embedding.embed_query(text) for text in texts],
        )

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> CSRVectorStore:
        """Return a store with these texts; `path` and `model` are those of the constructor."""
        made = cls(embedding, **kwargs)
        made.add_texts(texts, metadatas, ids=ids)
        return made

    @property
    def embeddings(self) -> Embeddings:
        """The model that embeds texts and queries."""
        return self._embedding

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Add texts, replacing those with the same ids, and return the ids."""
        texts = list(texts)
        own = [id or uuid.uuid4().hex for id in ids or [None] * len(texts)]
        return self.store.add(texts, ids=own, metadata=metadatas, **kwargs)

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Delete documents by ids, or by `filter=`; None of either: all."""
        if ids is None:
            kwargs.setdefault("filter", {})
        self.store.delete(ids, **kwargs)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return those of some documents that there are."""
        return [_document(*document) for document in self.store.get(ids)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Return the k best documents of a text and their scores."""
        return [(_document(*hit), score) for hit, score in self.store.search(query, k, **kwargs)]

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """Return the k best documents of a text."""
        return [hit for hit, _ in self.similarity_search_with_score(query, k, **kwargs)]

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, **kwargs: Any
    ) -> list[Document]:
        """Return the k best documents of an embedding."""
        hits = self.store.search(top_k=k, embedding=embedding, **kwargs)
        return [_document(*hit) for hit, _ in hits]

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """Return k of the best documents that are unlike each other, by the cosines of codes."""
        embedding = self._embedding.embed_query(query)
        return self.max_marginal_relevance_search_by_vector(
            embedding, k, fetch_k, lambda_mult, **kwargs
        )

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        **kwargs: Any,
    ) -> list[Document]:
        """Return the same for an embedding."""
        hits = self.store.search(top_k=fetch_k, embedding=embedding, **kwargs)
        if not hits:
            return []
        values, latents = self.store.codes([hit.id for hit, _ in hits])
        used, places = np.unique(latents, return_inverse=True)
        rows = np.zeros((len(hits), len(used)), np.float32)
        np.add.at(rows, (np.arange(len(hits))[:, None], places.reshape(latents.shape)), values)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        relevance = lambda_mult * np.array([score for _, score in hits])
        likeness = (1 - lambda_mult) * rows @ rows.T
        chosen = [0]
        while len(chosen) < min(k, len(hits)):
            gains = relevance - likeness[chosen].max(0)
            gains[chosen] = -np.inf
            chosen.append(int(gains.argmax()))
        return [_document(*hits[i][0]) for i in chosen]

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return float  # a cosine of codes is in 0..1


def _document(id: str, text: str, metadata: dict[str, Any]) -> Document:
    return Document(id=id, page_content=text, metadata=metadata)


__all__ = ["CSRVectorStore"]
