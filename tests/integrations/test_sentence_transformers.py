"""sentence-transformers' module, loss and search: the package's own, and on our kernels.

Tests with the fixture `side` run both ways and know nothing of the other one.
"""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from st_models import VERSION, D, H, K, SparseEncoder, adapter, text_encoder, texts

from csrkern.integrations.sentence_transformers import patch as integration

losses = pytest.importorskip("sentence_transformers.sparse_encoder.losses")
util = pytest.importorskip("sentence_transformers.util")
semantic_search = util.semantic_search  # bound before anything is replaced
trains = pytest.mark.skipif(VERSION < (6, 2), reason="training stays the package's own until 6.1")
pytestmark = [
    pytest.mark.usefixtures("restored"),
    pytest.mark.filterwarnings("error:.*is not accelerated"),
]


def expected_codes(module: Any, x: torch.Tensor, k: int) -> torch.Tensor:
    """ReLU(TopK(W (x − pre_bias) + latent_bias)) in float64, dense."""
    x = x.double()
    if module.normalize:
        centered = x - x.mean(1, keepdim=True)
        x = centered / (centered.std(1, keepdim=True) + 1e-5)
    weight, bias, pre_bias = (
        t.detach().double() for t in (module.encoder.weight, module.latent_bias, module.pre_bias)
    )
    pre = (x - pre_bias) @ weight.T + bias
    top = pre.topk(k)
    return torch.zeros_like(pre).scatter(1, top.indices, top.values).relu()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("k", [None, 1, 9, H])
def test_inference_gives_the_codes(side: str, normalize: bool, k: int | None) -> None:
    module = adapter(normalize=normalize).eval()
    x = torch.randn(30, D)
    with torch.inference_mode():
        out = module({"sentence_embedding": x.clone(), "other": 1}, max_active_dims=k)
    assert out["other"] == 1
    codes = out["sentence_embedding"]
    assert codes.shape == (30, H)
    assert codes.dtype == torch.float32
    torch.testing.assert_close(codes.double(), expected_codes(module, x, k or K), rtol=0, atol=2e-6)


def test_a_training_pass_outside_the_loss_has_all_outputs(side: str) -> None:
    module = adapter()
    out = module({"sentence_embedding": torch.randn(8, D)})
    shapes = {
        "sentence_embedding": H,
        "sentence_embedding_backbone": D,
        "sentence_embedding_encoded": H,
        "sentence_embedding_encoded_4k": H,
        "auxiliary_embedding": H,
        "decoded_embedding_k": D,
        "decoded_embedding_4k": D,
        "decoded_embedding_aux": D,
        "decoded_embedding_k_pre_bias": D,
    }
    assert {name: out[name].shape for name in shapes} == {n: (8, w) for n, w in shapes.items()}


@pytest.mark.parametrize("k", [None, 2])
def test_encode_in_every_form(side: str, k: int | None) -> None:
    model = text_encoder()
    words = texts(25)
    with torch.no_grad():
        x = torch.stack([model[0](model[0].tokenize([t]))["sentence_embedding"][0] for t in words])
    expected = expected_codes(model[1], x, k or K)

    def same(got: torch.Tensor, want: torch.Tensor) -> None:
        torch.testing.assert_close(got.to_dense().double(), want, rtol=0, atol=2e-6)

    options: dict[str, Any] = {"batch_size": 7, "max_active_dims": k}
    sparse = model.encode(words, **options)
    assert sparse.layout == torch.sparse_coo
    assert sparse.dtype == torch.float32
    assert sparse.shape == (25, H)
    same(sparse, expected)
    dense = model.encode(words, convert_to_sparse_tensor=False, **options)
    assert dense.layout == torch.strided
    same(dense, expected)
    rows = model.encode(words, convert_to_tensor=False, save_to_cpu=True, **options)
    assert isinstance(rows, list)
    assert {row.layout for row in rows} == {torch.sparse_coo}
    assert {row.shape for row in rows} == {(H,)}
    same(torch.stack(rows), expected)
    assert len(model.encode(words, None, None, 7, False, False, False)) == 25
    one = model.encode(words[3], **options)
    assert one.shape == (H,)
    assert one.layout == torch.sparse_coo
    same(one, expected[3])
    same(model.encode_query(words, **options), expected)
    same(model.encode_document(words, **options), expected)
    similarity = model.similarity(sparse, sparse)
    torch.testing.assert_close(similarity.double(), expected @ expected.T, rtol=1e-5, atol=1e-5)


def test_encode_nothing(side: str) -> None:
    model = text_encoder()
    assert model.encode([]).numel() == 0
    assert model.encode([], convert_to_tensor=False) == []


def test_encode_refuses_what_the_package_refuses(side: str) -> None:
    model = text_encoder()
    with pytest.raises((ValueError, RuntimeError)):
        model.encode(texts(3), max_active_dims=H + 1)
    if VERSION >= (6, 2):  # 5.1 takes any option
        with pytest.raises((ValueError, TypeError)):
            model.encode(texts(3), no_such_option=1)
    with torch.inference_mode():  # an error leaves nothing behind
        out = model[1]({"sentence_embedding": torch.randn(2, D)})
    assert out["sentence_embedding"].shape == (2, H)


def test_encode_from_threads(side: str) -> None:
    model = text_encoder()
    inputs = [texts(n) for n in (5, 30, 17, 24)]
    alone = [model.encode(words).to_dense() for words in inputs]
    got: dict[int, torch.Tensor] = {}

    def work(i: int) -> None:
        for _ in range(5):
            got[i] = model.encode(inputs[i], batch_size=4).to_dense()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, codes in enumerate(alone):
        torch.testing.assert_close(got[i], codes, rtol=0, atol=2e-6)


def test_saved_and_loaded(side: str, tmp_path: Any) -> None:
    model = text_encoder()
    model.save_pretrained(str(tmp_path / "saved"))
    assert "csrkern" not in (tmp_path / "saved" / "modules.json").read_text()
    again = SparseEncoder(str(tmp_path / "saved"), device="cpu")
    words = texts(9)
    assert torch.equal(again.encode(words).to_dense(), model.encode(words).to_dense())


def sparse(n: int, per_row: int = 5) -> torch.Tensor:
    dense = torch.zeros(n, H).scatter(1, torch.rand(n, H).topk(per_row).indices, 1.0)
    return (dense * torch.rand(n, H)).to_sparse()


def assert_found(hits: list[dict[str, Any]], scores: torch.Tensor, top_k: int) -> None:
    """`hits` are top_k best by `scores` [n], whatever the order of equal ones."""
    best = scores.sort(descending=True).values[:top_k]
    got = torch.tensor([hit["score"] for hit in hits], dtype=scores.dtype)
    torch.testing.assert_close(got, best, rtol=1e-5, atol=1e-6)
    ids = [hit["corpus_id"] for hit in hits]
    assert len(set(ids)) == len(ids)
    torch.testing.assert_close(scores[ids], got, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("score", ["cos_sim", "dot_score"])
@pytest.mark.parametrize("top_k", [1, 10, 300])
def test_semantic_search(side: str, score: str, top_k: int) -> None:
    queries, corpus = sparse(12), sparse(200)
    function = getattr(util, score)
    expected = function(queries.to_dense().double(), corpus.to_dense().double())
    for _ in range(2):
        found = semantic_search(
            queries, corpus, query_chunk_size=5, top_k=top_k, score_function=function
        )
        assert len(found) == 12
        for hits, scores in zip(found, expected, strict=True):
            assert_found(hits, scores, top_k)
    (hits,) = util.semantic_search(queries[0], corpus, top_k=top_k, score_function=function)
    assert_found(hits, expected[0], top_k)


def test_semantic_search_of_other_embeddings(side: str) -> None:
    dense = torch.randn(30, H)
    for queries, corpus in ((dense[:4], dense), (dense[:4].to_sparse(), dense.to_sparse())):
        expected = util.cos_sim(dense[:4].double(), dense.double())
        for hits, scores in zip(semantic_search(queries, corpus), expected, strict=True):
            assert_found(hits, scores, 10)
    negative = semantic_search(
        sparse(2), sparse(9), score_function=lambda a, b: -util.dot_score(a, b)
    )
    assert all(hit["score"] <= 0 for hits in negative for hit in hits)


def test_semantic_search_sees_a_changed_corpus(side: str) -> None:
    queries, corpus = sparse(6), sparse(50)
    semantic_search(queries, corpus, score_function=util.dot_score)
    corpus._values().mul_(torch.rand(corpus._nnz()))
    expected = util.dot_score(queries.to_dense(), corpus.to_dense())
    found = semantic_search(queries, corpus, score_function=util.dot_score)
    for hits, scores in zip(found, expected, strict=True):
        assert_found(hits, scores, 10)


def owned() -> dict[str, Any]:
    """The package's functions as they are now."""
    module = type(adapter())
    return {
        "forward": module.forward,
        "encode": SparseEncoder.encode,
        "loss": losses.CSRLoss.forward,
        "search": util.semantic_search.__code__,
        "defaults": util.semantic_search.__defaults__,
    }


def test_restore_puts_everything_back() -> None:
    before = owned()
    with integration.accelerate():
        now = owned()
        assert now["forward"] is not before["forward"]
        assert now["search"] is not before["search"]
        inner = integration.accelerate()
        inner.restore()
        assert owned() == now
    assert owned() == before
    integration.accelerate()
    integration.accelerate(text_encoder())
    integration.restore()
    assert owned() == before


def test_acceleration_runs_our_kernels_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    encode = integration.csrkern.encode

    def spy(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(x))
        return encode(x, *args, **kwargs)

    monkeypatch.setattr(integration.csrkern, "encode", spy, raising=False)
    chosen, other, words = text_encoder(), text_encoder(), texts(6)
    with integration.accelerate(chosen):
        other.encode(words)
        assert calls == []
        chosen.encode(words)
        assert calls == [6]
        copied = copy.deepcopy(chosen)
        copied.encode(words)
        assert calls == [6]
    chosen.encode(words)
    assert calls == [6]
    with integration.accelerate():
        other.encode(words)
    assert calls == [6, 6]


def test_a_model_without_an_adapter_is_refused() -> None:
    with pytest.raises(ValueError, match="SparseAutoEncoder"):
        integration.accelerate(torch.nn.Linear(2, 2))
    assert not integration._patch.covers(adapter())


def test_an_adapter_that_is_not_last_still_works() -> None:
    """Whatever follows it reads dense codes."""

    class Doubled(torch.nn.Module):
        def forward(self, features: dict[str, Any]) -> dict[str, Any]:
            return features | {"sentence_embedding": 2 * features["sentence_embedding"]}

    model = text_encoder()
    words = texts(7)
    plain = model.encode(words).to_dense()
    longer = SparseEncoder(modules=[*model.children(), Doubled()], device="cpu")
    with integration.accelerate():
        doubled = longer.encode(words).to_dense()
    torch.testing.assert_close(doubled, 2 * plain, rtol=0, atol=4e-6)


def test_half_precision_stays_near(side: str) -> None:
    model = text_encoder().bfloat16()
    words = texts(8)
    codes = model.encode(words)
    assert codes.dtype == torch.bfloat16
    x = torch.stack([model[0](model[0].tokenize([t]))["sentence_embedding"][0] for t in words])
    dense = codes.to_dense().double()
    assert float(F.cosine_similarity(dense, expected_codes(model[1], x, K)).min()) > 0.98
