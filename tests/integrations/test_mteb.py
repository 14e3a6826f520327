"""mteb's protocols: tasks over the packaged definitions, against the same codes made dense."""

from __future__ import annotations

import numpy as np
import pytest
import torch

mteb = pytest.importorskip("mteb")

from datasets import Dataset, DatasetDict  # noqa: E402
from mteb.abstasks import AbsTaskClassification, AbsTaskRetrieval  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402
from mteb.models import ModelMeta, SearchEncoderWrapper  # noqa: E402
from mteb.models.models_protocols import EncoderProtocol, SearchProtocol  # noqa: E402
from mteb.similarity_functions import cos_sim, pairwise_cos_sim  # noqa: E402

from csrkern.integrations.mteb import AdapterWrapper, CSRSearchIndex  # noqa: E402
from csrtrain import TrainConfig, train  # noqa: E402
from csrtrain.demo.data import load_demo  # noqa: E402

DATA = load_demo()
DOCUMENTS, QUERIES = np.arange(0, 16_000, 20), np.arange(0, 3_800, 40)
FACTS = {
    "description": "Definitions of the same class as a definition.",
    "dataset": {"path": "packaged", "revision": "1"},
    "eval_splits": ["test"],
    "eval_langs": ["eng-Latn"],
    "modalities": ["text"],
}


def metadata(name, kind, score):
    return TaskMetadata(name=name, type=kind, category="t2t", main_score=score, **FACTS)


def split(top_ranked=None):
    texts = [text.definition for text in DATA.texts]
    corpus = [{"id": f"d{i}", "title": "", "text": texts[i]} for i in DOCUMENTS]
    queries = [{"id": f"q{i}", "text": texts[len(DATA.train) + i]} for i in QUERIES]
    relevant = {
        f"q{i}": {f"d{j}": 1 for j in DOCUMENTS if DATA.train_labels[j] == DATA.test_labels[i]}
        for i in QUERIES
    }
    return {
        "corpus": Dataset.from_list(corpus),
        "queries": Dataset.from_list(queries),
        "relevant_docs": relevant,
        "top_ranked": top_ranked,
    }


class Definitions(AbsTaskRetrieval):
    metadata = metadata("Definitions", "Retrieval", "ndcg_at_10")

    def load_data(self, num_proc=None, **kwargs):
        self.dataset = {"default": {"test": split()}}
        self.data_loaded = True


class RankedDefinitions(AbsTaskRetrieval):
    metadata = metadata("RankedDefinitions", "Reranking", "map_at_1000")

    def load_data(self, num_proc=None, **kwargs):
        rng = np.random.default_rng(0)
        ranked = {}
        for i in QUERIES:
            same = DOCUMENTS[DATA.train_labels[DOCUMENTS] == DATA.test_labels[i]][:10]
            some = np.union1d(same, rng.choice(DOCUMENTS, 50, replace=False))
            ranked[f"q{i}"] = [f"d{j}" for j in rng.permutation(some)]
        self.dataset = {"default": {"test": split(ranked)}}
        self.data_loaded = True


class Classes(AbsTaskClassification):
    metadata = metadata("Classes", "Classification", "accuracy")
    n_experiments = 2

    def load_data(self, num_proc=None, **kwargs):
        def rows(numbers, first, labels):
            chosen = [i for i in numbers if labels[i] < 3]
            texts = [DATA.texts[first + i].definition for i in chosen]
            return Dataset.from_dict({"text": texts, "label": [int(labels[i]) for i in chosen]})

        self.dataset = DatasetDict(
            train=rows(DOCUMENTS, 0, DATA.train_labels),
            test=rows(QUERIES, len(DATA.train), DATA.test_labels),
        )
        self.data_loaded = True


class Packaged:
    """A model that knows the packaged embeddings, of MiniLM, of the packaged definitions."""

    mteb_model_meta = ModelMeta.create_empty({"name": "packaged/minilm", "revision": "1"})

    def __init__(self):
        rows = np.concatenate([DATA.train, DATA.test])
        self._row_of = {text.definition: row for text, row in zip(DATA.texts, rows, strict=True)}

    def encode(self, inputs, **options):
        texts = [text.strip() for batch in inputs for text in batch["text"]]
        return np.array([self._row_of[text] for text in texts])

    def similarity(self, one, other):
        return cos_sim(one, other)

    def similarity_pairwise(self, one, other):
        return pairwise_cos_sim(one, other)


class Dense(Packaged):
    """Return the results with an adapter whose codes are made dense, and mteb's own search."""

    def __init__(self, adapter):
        super().__init__()
        self._adapter = adapter

    def encode(self, inputs, **options):
        return self._adapter.encode(super().encode(inputs)).to_dense()


@pytest.fixture(scope="module")
def adapter():
    return train(DATA.train[:4000], config=TrainConfig(k=16, hidden_dim=512, steps=60))


def score(model, task):
    results = mteb.evaluate(model, task, cache=None, show_progress_bar=False)
    return results.task_results[0].scores["test"][0]


@pytest.mark.parametrize("task", [Definitions, RankedDefinitions])
def test_searches_score_as_dense_codes_do(adapter, monkeypatch, task):
    expected = score(Dense(adapter), task())

    def refuse(codes):
        raise AssertionError("codes were made dense")

    monkeypatch.setattr("csrkern.codes.sparse.SparseCodes.to_dense", refuse)
    monkeypatch.setattr(torch.Tensor, "to_dense", refuse)
    found = score(AdapterWrapper(Packaged(), adapter), task())
    for name in ("ndcg_at_10", "map_at_10", "recall_at_10", "mrr_at_10", "main_score"):
        assert found[name] == pytest.approx(expected[name], abs=2e-3), name
    assert found["ndcg_at_10"] > 0.2


def test_other_tasks_get_dense_codes(adapter):
    found = score(AdapterWrapper(Packaged(), adapter), Classes())
    expected = score(Dense(adapter), Classes())
    assert found["accuracy"] == pytest.approx(expected["accuracy"], abs=1e-6)


def test_results_name_the_adapter(adapter):
    wrapper = AdapterWrapper(Packaged(), adapter)
    assert isinstance(wrapper, EncoderProtocol)
    assert isinstance(wrapper, SearchProtocol)
    settings = wrapper.mteb_model_meta.experiment_kwargs
    assert settings == {"csrkern": adapter.fingerprint, "k": 16}
    assert Packaged.mteb_model_meta.experiment_kwargs is None


def test_the_index_serves_any_sparse_model(adapter):
    """As behind a SparseEncoder: mteb's own search wrapper, with this index."""

    class Sparse(Packaged):
        def encode(self, inputs, **options):
            return adapter.encode(super().encode(inputs)).to_torch_coo()

    found = score(SearchEncoderWrapper(Sparse(), index_backend=CSRSearchIndex()), Definitions())
    expected = score(AdapterWrapper(Packaged(), adapter), Definitions())
    assert found["ndcg_at_10"] == expected["ndcg_at_10"]


def test_the_index_by_itself(adapter):
    index = CSRSearchIndex()
    codes = adapter.encode(DATA.train[:30])
    rows = codes.to_torch_coo()
    with pytest.raises(ValueError, match="expected documents"):
        index.search(rows, 3)
    names = [f"d{i}" for i in range(30)]
    index.add_documents(codes[:20].to_torch_coo(), names[:20])
    index.add_documents(codes[20:].to_torch_coo(), names[20:])
    scores, places = index.search(rows, 3)
    assert [row[0] for row in places] == list(range(30))
    assert all(row[0] == pytest.approx(1) for row in scores)
    ranked = {"q": ["d7", "d25", "d3"], "r": []}
    scores, places = index.search(codes[[3, 4]].to_torch_coo(), 9, None, ranked, {0: "q", 1: "r"})
    assert (places[0][0], places[1]) == (2, [])
    dense = codes.to_dense()
    assert scores[0] == pytest.approx(
        [float(cos_sim(dense[3], dense[[7, 25, 3]])[0, place]) for place in places[0]], abs=1e-6
    )
    with pytest.raises(ValueError, match="idxs: expected one for each of 30 documents, got 1"):
        index.add_documents(rows, ["x"])
    with pytest.raises(ValueError, match="query_idx_to_id: expected the ids"):
        index.search(rows, 3, None, ranked)
    index.clear()
    with pytest.raises(ValueError, match="expected documents"):
        index.search(rows, 3)
