"""A LlamaIndex vector store on a `DocumentStore`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict

from csrkern.documents import DocumentStore

if TYPE_CHECKING:
    from csrkern.documents import Document, FilterLike
    from csrkern.nn.modules import SparseAutoencoder

_BY = {
    VectorStoreQueryMode.DEFAULT: "codes",
    VectorStoreQueryMode.SPARSE: "words",
    VectorStoreQueryMode.TEXT_SEARCH: "words",
    VectorStoreQueryMode.HYBRID: "hybrid",
}
_OPERATORS = {
    FilterOperator.EQ: "$eq",
    FilterOperator.NE: "$ne",
    FilterOperator.GT: "$gt",
    FilterOperator.GTE: "$gte",
    FilterOperator.LT: "$lt",
    FilterOperator.LTE: "$lte",
    FilterOperator.IN: "$in",
    FilterOperator.NIN: "$nin",
    FilterOperator.CONTAINS: "$contains",
    FilterOperator.TEXT_MATCH: "$substring",
}


class CSRVectorStore(BasePydanticVectorStore):
    """Nodes of LlamaIndex, found by the codes of their embeddings, by words or by both.

    Query modes: "default" (codes), "sparse" and "text_search" (words: BM25) and "hybrid", where
    `alpha` is the weight of the codes and 1 - alpha that of the words. Filters take all operators
    but "text_match_insensitive". A node without an embedding is found by words alone.
    """

    stores_text: bool = True
    _store: DocumentStore = PrivateAttr()

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        model: SparseAutoencoder | str | os.PathLike[str] | None = None,
    ) -> None:
        """Open the store in a folder, or make one; `path` and `model` are of `DocumentStore`."""
        super().__init__(stores_text=True)
        self._store = DocumentStore(path, model)
        self._store.index_field("ref_doc_id")  # by which `delete` finds the nodes of a document

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex knows the class."""
        return "CSRVectorStore"

    @property
    def client(self) -> DocumentStore:
        """The `DocumentStore`, to be closed at the end."""
        return self._store

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Add nodes, replacing those with the same ids, and return the ids."""
        return self._store.add(
            [node.get_content(metadata_mode=MetadataMode.NONE) for node in nodes],
            ids=[node.node_id for node in nodes],
            metadata=[node_to_metadata_dict(node, remove_text=True) for node in nodes],
            embeddings=[node.embedding for node in nodes],
        )

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes of a document."""
        self._store.delete(filter={"ref_doc_id": ref_doc_id})

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Delete nodes of some ids that a filter lets pass."""
        if node_ids is None and filters is None:
            raise ValueError("delete_nodes: expected node_ids or filters; clear() deletes all")
        self._store.delete(filter=_chosen(filters, node_ids))

    def clear(self) -> None:
        """Delete all nodes."""
        self._store.delete(filter={})

    def get_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """Return nodes of some ids, or all, that a filter lets pass."""
        return [_node(document) for document in self._store.find(_chosen(filters, node_ids))]

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Return the best nodes and their scores."""
        if query.mode not in _BY:
            modes = ", ".join(mode.value for mode in _BY)
            raise ValueError(f"mode: expected one of {modes}, got {query.mode.value}")
        by, top_k = _BY[query.mode], query.similarity_top_k
        options: dict[str, Any] = {}
        if by == "hybrid":
            top_k = query.hybrid_top_k or top_k
            if query.alpha is not None:
                options["weights"] = (query.alpha, 1 - query.alpha)
        # Indexes of LlamaIndex send an empty list where they mean all nodes.
        chosen = _chosen(query.filters, query.node_ids or None, query.doc_ids or None)
        embedding = None if by == "words" else query.query_embedding
        hits = self._store.search(
            query.query_str, top_k, embedding=embedding, filter=chosen, by=by, **options
        )
        return VectorStoreQueryResult(
            nodes=[_node(document) for document, _ in hits],
            similarities=[score for _, score in hits],
            ids=[document.id for document, _ in hits],
        )

    def persist(self, persist_path: str = "", fs: Any = None) -> None:
        """Write the index into the store's own folder; the nodes are there already."""
        self._store.save()


def _node(document: Document) -> BaseNode:
    return metadata_dict_to_node(document.metadata, text=document.text)


def _chosen(
    filters: MetadataFilters | None,
    node_ids: list[str] | None = None,
    doc_ids: list[str] | None = None,
) -> FilterLike:
    """Return a filter of `DocumentStore`."""
    parts: list[FilterLike] = []
    if filters is not None:
        parts.append(_group(filters))
    if node_ids is not None:
        parts.append({"$id": {"$in": node_ids}})
    if doc_ids is not None:
        parts.append({"ref_doc_id": {"$in": doc_ids}})
    return {"$and": parts} if parts else {}


def _group(filters: MetadataFilters) -> FilterLike:
    parts = [
        _group(part) if isinstance(part, MetadataFilters) else _comparison(part)
        for part in filters.filters
    ]
    if filters.condition == FilterCondition.NOT:  # none of them holds
        return {"$not": {"$or": parts}}
    return {"$or" if filters.condition == FilterCondition.OR else "$and": parts}


def _comparison(part: MetadataFilter) -> FilterLike:
    key, value, operator = part.key, part.value, part.operator
    if operator in _OPERATORS:
        return {key: {_OPERATORS[operator]: value}}
    if operator == FilterOperator.IS_EMPTY:
        return {"$or": [{key: None}, {key: []}, {key: ""}]}
    if operator in (FilterOperator.ANY, FilterOperator.ALL) and isinstance(value, list):
        contains = [{key: {"$contains": each}} for each in value]
        return {"$or" if operator == FilterOperator.ANY else "$and": contains}
    if operator == FilterOperator.TEXT_MATCH_INSENSITIVE:
        raise ValueError(
            f"filters: {key}: text_match_insensitive is not supported, as SQLite folds the case of "
            "ASCII letters alone; store a field in lower case and use text_match"
        )
    raise ValueError(f"filters: {key}: {operator.value}: expected a list, got {value!r:.60}")


__all__ = ["CSRVectorStore"]
