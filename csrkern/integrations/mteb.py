"""mteb: an adapter behind any of its models, and an index of codes behind its searches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mteb.models.search_wrappers import SearchEncoderWrapper
from mteb.similarity_functions import cos_sim, pairwise_cos_sim

from csrkern.codes.sparse import SparseCodes
from csrkern.index.inverted import InvertedIndex
from csrkern.index.rows import read_rows

if TYPE_CHECKING:
    from mteb.types import Array, TopRankedDocumentsType

    from csrkern.nn.modules import SparseAutoencoder


class CSRSearchIndex:
    """A search backend of mteb (`IndexEncoderSearchProtocol`): an exact search over codes.

    Takes codes as torch sparse tensors, so also those of a `SparseEncoder`, scores them by
    cosine and keeps them in float32. In retrieval, documents that share no latent with a query
    are left out; in reranking these come last, at score 0.
    """

    _index: InvertedIndex | None
    _places: dict[str, int]

    def __init__(self) -> None:
        self.clear()

    def add_documents(self, embeddings: Array, idxs: list[str]) -> None:
        """Add the codes of documents and their ids."""
        rows = read_rows("embeddings", embeddings, None)
        if rows.n != len(idxs):
            raise ValueError(f"idxs: expected one for each of {rows.n} documents, got {len(idxs)}")
        if self._index is None:
            self._index = InvertedIndex.build(rows, dtype="float32")
        else:
            self._index.add(rows)
        self._places.update(zip(idxs, range(len(self._places), len(self._index)), strict=True))

    def search(
        self,
        embeddings: Array,
        top_k: int,
        similarity_fn: Any = None,
        top_ranked: TopRankedDocumentsType | None = None,
        query_idx_to_id: dict[int, str] | None = None,
    ) -> tuple[list[list[float]], list[list[int]]]:
        """Return scores and places of the best documents of each query.

        Args:
            embeddings: codes of queries.
            top_k: documents of a query, at most.
            similarity_fn: not used, as the index scores.
            top_ranked: the documents of each query that are ranked again; places are then in
                this list, otherwise in the order of `add_documents`.
            query_idx_to_id: ids of the queries, for `top_ranked`.
        """
        if self._index is None:
            raise ValueError("search: expected documents, as added by add_documents")
        if top_ranked is None:
            scores, ids = self._index.search(embeddings, top_k)
            found = ids >= 0
            counts = range(len(ids))
            return [scores[i][found[i]].tolist() for i in counts], [
                ids[i][found[i]].tolist() for i in counts
            ]
        if query_idx_to_id is None:
            raise ValueError("query_idx_to_id: expected the ids of the queries, got None")
        rows = read_rows("embeddings", embeddings, self._index.dim)
        all_scores: list[list[float]] = []
        all_places: list[list[int]] = []
        for i in range(rows.n):
            ranked = top_ranked.get(query_idx_to_id[i], [])
            ids = np.array([self._places[document] for document in ranked], np.int64)
            scores = self._scores_of(rows.between(i, i + 1), ids)
            order = np.argsort(-scores, kind="stable")[:top_k]
            all_scores.append(scores[order].tolist())
            all_places.append(order.tolist())
        return all_scores, all_places

    def clear(self) -> None:
        """Forget all documents."""
        self._index = None
        self._places = {}

    def _scores_of(self, query: Any, ids: np.ndarray) -> np.ndarray:
        """Return the score of each document, float32 [n]."""
        assert self._index is not None
        if not len(ids):
            return np.zeros(0, np.float32)
        scores, found = self._index.search(query, len(ids), filter=ids)
        hits = dict(zip(found[0].tolist(), scores[0].tolist(), strict=True))
        return np.array([hits.get(id, 0.0) for id in ids.tolist()], np.float32)


class AdapterWrapper:
    """A model of mteb with an adapter behind it.

    Retrieval and reranking search an index of codes, which are never made dense. Other tasks
    get codes as dense tensors [n, hidden_dim], as their evaluators need them. Results are
    filed under the model's name, and the adapter's fingerprint and k.
    """

    def __init__(self, model: Any, adapter: SparseAutoencoder) -> None:
        """Wrap a model.

        Args:
            model: an encoder of mteb, such as of `mteb.get_model`, whose embeddings have the
                adapter's width.
            adapter: makes codes of its embeddings.
        """
        self.model = model
        self.adapter = adapter
        meta = model.mteb_model_meta
        settings = {
            **(meta.experiment_kwargs or {}),
            "csrkern": adapter.fingerprint,
            "k": adapter.k,
        }
        self.mteb_model_meta = meta.model_copy(update={"experiment_kwargs": settings})
        self._search = SearchEncoderWrapper(self, index_backend=CSRSearchIndex())

    def encode(self, inputs: Any, *, task_metadata: Any, **options: Any) -> torch.Tensor:
        """Return codes: a sparse tensor for retrieval and reranking, else a dense one."""
        embeddings = self.model.encode(inputs, task_metadata=task_metadata, **options)
        if isinstance(embeddings, torch.Tensor):
            embeddings = embeddings.detach().float().cpu().numpy()
        codes: SparseCodes = self.adapter.encode(np.asarray(embeddings, np.float32))
        searched = task_metadata.simplified_task_type == "retrieval"
        return codes.to_torch_coo() if searched else codes.to_dense()

    def similarity(self, embeddings1: Array, embeddings2: Array) -> Array:
        """Return the cosines [n, m] of dense codes."""
        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Array, embeddings2: Array) -> Array:
        """Return the cosines [n] of pairs of dense codes."""
        return pairwise_cos_sim(embeddings1, embeddings2)

    def index(self, corpus: Any, **options: Any) -> None:
        """Encode and index the documents of a task."""
        self._search.index(corpus, **options)

    def search(self, queries: Any, **options: Any) -> dict[str, dict[str, float]]:
        """Return the score of each document that a query finds, or of each that is reranked."""
        return self._search.search(queries, **options)


__all__ = ["AdapterWrapper", "CSRSearchIndex"]
