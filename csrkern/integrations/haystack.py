"""A Haystack document store and retriever on a `DocumentStore`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from haystack import Document, component, default_from_dict, default_to_dict
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy, FilterPolicy
from haystack.document_stores.types.filter_policy import apply_filter_policy
from haystack.errors import FilterError

from csrkern.documents import DocumentStore

if TYPE_CHECKING:
    from csrkern import documents
    from csrkern.documents import FilterLike
    from csrkern.nn.modules import SparseAutoencoder

_OPERATORS = {
    "==": "$eq",
    "!=": "$ne",
    ">": "$gt",
    ">=": "$gte",
    "<": "$lt",
    "<=": "$lte",
    "in": "$in",
    "not in": "$nin",
}
_ORDERS = (">", ">=", "<", "<=")
_FIELDS = {"id": "$id", "content": "$text"}
# Fields of a `Document` that a store does not keep.
_NOT_KEPT = {field.name for field in dataclasses.fields(Document)} - {*_FIELDS, "meta"}


class CSRDocumentStore:
    """Documents of Haystack and the index of the codes of their embeddings.

    Keeps id, content and meta of a document; embeddings are kept as codes, and what comes back
    has none. A document without an embedding is found by words alone. Documents with a blob are
    refused. Dates in filters are compared as the strings that they are, in ISO format.

    Attributes:
        store: the `DocumentStore`, to be closed (or saved) at the end.
    """

    def __init__(
        self, path: str | None = None, model: SparseAutoencoder | str | None = None
    ) -> None:
        """Open the store in a folder, or make one.

        Args:
            path, model: of `DocumentStore`. A store in memory can be written with its pipeline
                if the model is a folder or a repository.
        """
        self._path, self._model = path, model
        self.store = DocumentStore(path, model)

    def to_dict(self) -> dict[str, Any]:
        """Return what makes the store again; a folder has its model in it.

        Raises:
            ValueError: if it is in memory and its model has no name.
        """
        if self._path is not None:
            return default_to_dict(self, path=self._path)
        if self._model is not None and not isinstance(self._model, str):
            raise ValueError(
                "to_dict: a store in memory needs the name of its model: "
                "CSRDocumentStore(model='folder')"
            )
        return default_to_dict(self, model=self._model)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CSRDocumentStore:
        """Return the store that `to_dict` described."""
        return default_from_dict(cls, data)

    def count_documents(self) -> int:
        """Return the number of documents."""
        return self.store.count()

    def count_documents_by_filter(self, filters: dict[str, Any]) -> int:
        """Return the number of documents that a filter lets pass."""
        return self.store.count(_chosen(filters))

    def filter_documents(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """Return the documents that a filter lets pass, in the order in which they came.

        Raises:
            FilterError: if `filters` is no filter of Haystack.
        """
        return [_document(found) for found in self.store.find(_chosen(filters))]

    def write_documents(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """Add documents and return how many; policy NONE is FAIL.

        Raises:
            DuplicateDocumentError: by policy FAIL, if the store has one of the ids.
            ValueError: if one is no document that the store can keep.
        """
        if not isinstance(documents, list) or not all(isinstance(d, Document) for d in documents):
            raise ValueError("documents: expected a list of haystack.Document")
        for document in documents:
            if document.content is None or document.blob is not None:
                raise ValueError(f"documents: expected texts, {document.id!r} has none or a blob")
        if policy is not DuplicatePolicy.OVERWRITE:
            held = {document.id for document in self.store.get([d.id for d in documents])}
            if held and policy is not DuplicatePolicy.SKIP:
                raise DuplicateDocumentError(f"documents: {min(held)!r} is in the store already")
            documents = [document for document in documents if document.id not in held]
        self.store.add(
            [document.content or "" for document in documents],
            ids=[document.id for document in documents],
            metadata=[document.meta for document in documents],
            embeddings=[document.embedding for document in documents],
        )
        return len(documents)

    def delete_documents(self, document_ids: list[str]) -> None:
        """Delete documents; ids that are not there are passed over."""
        self.store.delete(document_ids)

    def delete_by_filter(self, filters: dict[str, Any]) -> int:
        """Delete the documents that a filter lets pass, and return how many these were."""
        return self.store.delete(filter=_chosen(filters))

    def delete_all_documents(self) -> None:
        """Delete all documents."""
        self.store.delete(filter={})

    def search(
        self,
        query: str | None,
        embedding: Sequence[float] | None,
        filters: dict[str, Any] | None,
        top_k: int,
        **options: Any,
    ) -> list[Document]:
        """Return the best documents, with their scores; `options` are of `DocumentStore.search`."""
        hits = self.store.search(
            query, top_k, embedding=embedding, filter=_chosen(filters), **options
        )
        return [_document(found, score) for found, score in hits]


@component
class CSRRetriever:
    """Retrieves documents by the codes of a query's embedding, by its words or by both."""

    def __init__(
        self,
        document_store: CSRDocumentStore,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        by: str = "codes",
        weights: list[float] | None = None,
        method: str = "ranks",
        filter_policy: str | FilterPolicy = FilterPolicy.REPLACE,
    ) -> None:
        """Create the component.

        Args:
            document_store: where to search.
            filters: of Haystack's form.
            top_k: documents, at most.
            by, weights, method: of `DocumentStore.search`.
            filter_policy: what becomes of `filters` when a run brings others.
        """
        if not isinstance(document_store, CSRDocumentStore):
            raise TypeError(
                f"document_store: expected a CSRDocumentStore, got {type(document_store).__name__}"
            )
        self.document_store = document_store
        self.filters, self.top_k = filters, top_k
        self.by, self.weights, self.method = by, weights, method
        self.filter_policy = (
            FilterPolicy.from_str(filter_policy)
            if isinstance(filter_policy, str)
            else filter_policy
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what makes the component again."""
        return default_to_dict(
            self,
            document_store=self.document_store.to_dict(),
            filters=self.filters,
            top_k=self.top_k,
            by=self.by,
            weights=self.weights,
            method=self.method,
            filter_policy=self.filter_policy.value,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CSRRetriever:
        """Return the component that `to_dict` described."""
        settings = dict(data["init_parameters"])
        if isinstance(settings["document_store"], dict):
            settings["document_store"] = CSRDocumentStore.from_dict(settings["document_store"])
        return default_from_dict(cls, {**data, "init_parameters": settings})

    @component.output_types(documents=list[Document])
    def run(
        self,
        query_embedding: list[float] | None = None,
        query: str | None = None,
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
    ) -> dict[str, list[Document]]:
        """Search.

        Args:
            query_embedding: for by="codes" and "hybrid".
            query: its text, for by="words" and "hybrid".
            filters, top_k: override those of the component.
        """
        found = self.document_store.search(
            query,
            query_embedding if self.by != "words" else None,
            apply_filter_policy(self.filter_policy, self.filters, filters),
            self.top_k if top_k is None else top_k,
            by=self.by,
            weights=self.weights,
            method=self.method,
        )
        return {"documents": found}


def _document(found: documents.Document, score: float | None = None) -> Document:
    return Document(id=found.id, content=found.text, meta=found.metadata, score=score)


def _chosen(filters: dict[str, Any] | None) -> FilterLike:
    """Return a filter of `DocumentStore`."""
    return _group(filters) if filters else {}


def _group(filters: Any) -> FilterLike:
    if not isinstance(filters, dict) or "operator" not in filters:
        raise FilterError(f"filters: expected a dict with an 'operator', got {filters!r:.200}")
    if "field" in filters:
        return _comparison(filters)
    if "conditions" not in filters:
        raise FilterError(f"filters: expected 'field' or 'conditions', got {filters!r:.200}")
    parts = [_group(part) for part in filters["conditions"]]
    operator = filters["operator"]
    if operator == "NOT":  # not all of them hold
        return {"$not": {"$and": parts}}
    if operator not in ("AND", "OR"):
        raise FilterError(f"filters: expected AND, OR or NOT, got {operator!r}")
    return {f"${operator.lower()}": parts}


def _comparison(part: dict[str, Any]) -> FilterLike:
    if "value" not in part:
        raise FilterError(f"filters: expected a 'value', got {part!r:.200}")
    field, operator, value = part["field"], part["operator"], part["value"]
    if operator not in _OPERATORS:
        raise FilterError(f"filters: expected one of {', '.join(_OPERATORS)}, got {operator!r}")
    if operator in ("in", "not in") and not isinstance(value, list):
        raise FilterError(f"filters: {operator}: expected a list, got {value!r:.60}")
    if operator in _ORDERS and value is None:
        return {"$or": []}  # as Haystack has it: nothing is more or less than None
    if isinstance(value, datetime):
        value = value.isoformat()
    if operator in _ORDERS and not isinstance(value, (int, float)) and not _is_date(value):
        raise FilterError(f"filters: {operator}: expected a number or date, got {value!r:.60}")
    if field.split(".")[0] in _NOT_KEPT:
        raise FilterError(
            f"filters: {field}: the store keeps id, content and meta; a field of meta with this "
            f"name is 'meta.{field}'"
        )
    return {_FIELDS.get(field) or field.removeprefix("meta."): {_OPERATORS[operator]: value}}


def _is_date(value: Any) -> bool:
    try:
        datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return False
    return True


__all__ = ["CSRDocumentStore", "CSRRetriever"]
