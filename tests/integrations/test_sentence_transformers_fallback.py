"""What `accelerate` leaves to sentence-transformers itself: the same results, and one warning."""

from __future__ import annotations

import contextlib
import copy
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from st_models import VERSION, D, H, K, SparseEncoder, adapter, text_encoder, texts, words_backbone
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_full_backward_hook,
)
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from csrkern.integrations.sentence_transformers import patch as integration

losses = pytest.importorskip("sentence_transformers.sparse_encoder.losses")
util = pytest.importorskip("sentence_transformers.util")
trains = pytest.mark.skipif(VERSION < (6, 2), reason="training stays the package's own until 6.1")
pytestmark = pytest.mark.usefixtures("restored")

SparseAutoEncoder: Any = type(adapter())


class DoubledPreActivations(SparseAutoEncoder):
    def encode_pre_act(self, x: torch.Tensor) -> torch.Tensor:
        return super().encode_pre_act(x) * 2


class LogTopK(SparseAutoEncoder):
    def top_k(self, *args: Any, **kwargs: Any) -> Any:
        codes, aux = super().top_k(*args, **kwargs)
        return codes.log1p(), aux


class ScaledNorm(SparseAutoEncoder):
    def LN(self, x: torch.Tensor, eps: float = 1e-5) -> Any:
        return super().LN(3 * x - 1, eps)


class ShiftedDecoder(SparseAutoEncoder):
    def decode(self, latents: torch.Tensor, info: Any = None) -> torch.Tensor:
        return super().decode(latents, info) + 0.5


class ClampedForward(SparseAutoEncoder):
    def forward(self, features: dict[str, Any], max_active_dims: int | None = None) -> Any:
        features = super().forward(features, max_active_dims)
        codes = features["sentence_embedding"]
        return {**features, "sentence_embedding": codes.clamp(max=0.5)}


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


class DoubledEmbedding(nn.Module):
    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        return features | {"sentence_embedding": 2 * features["sentence_embedding"]}


class DoubledEncoder(SparseEncoder):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return DoubledEmbedding()(super().forward(*args, **kwargs))


class SimpleEncoder(nn.Module):
    """The weight alone, which is all that the package reads."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight


def double_output(_module: Any, _args: Any, output: Any) -> Any:
    return DoubledEmbedding()(output)


def clamp_output(_module: Any, _args: Any, output: Any) -> Any:
    return output | {"sentence_embedding": output["sentence_embedding"].clamp(max=0.3)}


def double_input(_module: Any, args: Any) -> Any:
    return (DoubledEmbedding()(args[0]), *args[1:])


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: DoubledEmbedding()(function(*args, **kwargs))


def set_top_k(module: Any) -> None:
    plain = module.top_k
    module.top_k = lambda x, *args, **kwargs: plain(x.abs(), *args, **kwargs)


def of(kind: type, **options: Any) -> Callable[[], Any]:
    def make() -> Any:
        model = text_encoder(**options)
        module = kind(**model[1].get_config_dict())
        module.load_state_dict(model[1].state_dict())
        return SparseEncoder(modules=[model[0], module], device="cpu")

    return make


def with_change(change: Callable[[Any], Any], **options: Any) -> Callable[[], Any]:
    def make() -> Any:
        model = text_encoder(**options)
        change(model)
        return model

    return make


def with_encoder(make: Callable[[nn.Linear], nn.Module]) -> Callable[[], Any]:
    return with_change(lambda m: setattr(m[1], "encoder", make(m[1].encoder)))


def other_encoder(model: Any) -> Any:
    longer = DoubledEncoder(modules=list(model.children()), device="cpu")
    model.__dict__, model.__class__ = longer.__dict__, DoubledEncoder


def followed_by_a_hooked_module() -> Any:
    last = nn.Sequential(DoubledEmbedding())
    last[0].register_forward_hook(double_output)
    return SparseEncoder(modules=[*text_encoder().children(), last], device="cpu")


def adapter_twice() -> Any:
    module = adapter(hidden_dim=D, k=K)
    return SparseEncoder(modules=[words_backbone(), module, module], device="cpu")


UNKNOWN = {
    "encode_pre_act": of(DoubledPreActivations),
    "top_k": of(LogTopK),
    "LN": of(ScaledNorm, normalize=True),
    "decode": of(ShiftedDecoder),
    "forward": of(ClampedForward),
    "hook that looks": with_change(lambda m: m[1].register_forward_hook(lambda *_: None)),
    "hook that doubles": with_change(lambda m: m[1].register_forward_hook(double_output)),
    "hook that clamps": with_change(lambda m: m[1].register_forward_hook(clamp_output)),
    "pre-hook": with_change(lambda m: m[1].register_forward_pre_hook(double_input)),
    "backward hook": with_change(lambda m: m[1].register_full_backward_hook(lambda *_: None)),
    "hook of the decoder": with_change(
        lambda m: m[1].decoder.register_forward_hook(lambda _m, _a, out: 2 * out)
    ),
    "hook of the model": with_change(lambda m: m.register_forward_hook(double_output)),
    "pre-hook of the model": with_change(lambda m: m.register_forward_pre_hook(lambda *_: None)),
    "replaced top_k": with_change(lambda m: set_top_k(m[1])),
    "replaced forward": with_change(lambda m: setattr(m[1], "forward", wrapped(m[1].forward))),
    "replaced forward of the model": with_change(
        lambda m: setattr(m, "forward", wrapped(m.forward))
    ),
    "subclass of the model": with_change(other_encoder),
    "compiled": with_change(lambda m: m.compile(backend="eager")),
    "compiled adapter": with_change(lambda m: m[1].compile(backend="eager")),
    "parametrized weight": with_change(
        lambda m: parametrize.register_parametrization(m[1].encoder, "weight", Doubled())
    ),
    "parametrized bias": with_change(
        lambda m: parametrize.register_parametrization(m[1], "latent_bias", Doubled())
    ),
    "weight_norm": with_change(lambda m: nn.utils.parametrizations.weight_norm(m[1].encoder)),
    "another encoder": with_encoder(lambda e: copy.deepcopy(e)),
    "the weight alone": with_change(
        lambda m: setattr(m[1], "encoder", SimpleEncoder(m[1].encoder.weight))
    ),
}


def told(call: Callable[[], Any]) -> tuple[Any, list[str]]:
    """What a call returns, and what it warned of that was not accelerated."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call()
    return result, [str(w.message) for w in caught if "not accelerated" in str(w.message)]


@pytest.mark.parametrize("name", [*UNKNOWN, "followed", "twice"])
def test_encode_of_a_model_that_is_more_than_known(name: str) -> None:
    make = UNKNOWN | {"followed": followed_by_a_hooked_module, "twice": adapter_twice}
    model, words = make[name](), texts(11)
    expected = model.encode(words, batch_size=4).to_dense()
    with integration.accelerate():
        (first, second), messages = told(
            lambda: [model.encode(words, batch_size=4).to_dense() for _ in range(2)]
        )
    assert torch.equal(first, expected)
    assert torch.equal(second, expected)
    assert len(messages) == 1


@trains
@pytest.mark.parametrize("name", UNKNOWN)
def test_the_loss_of_a_model_that_is_more_than_known(name: str) -> None:
    def steps(model: Any) -> Any:
        model = model.train()
        module = model[1]
        module.stats_last_nonzero[H - 9 :] = module.dead_threshold + 5
        loss = losses.CSRLoss(model, beta=0.3)
        words = texts(12)
        for _ in range(2):
            features = [model.tokenize(words[:6]), model.tokenize(words[6:])]
            terms = loss(features)
            sum(terms.values()).backward()
        grads = {name: p.grad for name, p in model.named_parameters()}
        return terms, grads, module.stats_last_nonzero

    torch.manual_seed(5)
    expected = steps(UNKNOWN[name]())
    with integration.accelerate():
        torch.manual_seed(5)
        model = UNKNOWN[name]()
        found, messages = told(lambda: steps(model))
    for got, want in zip(found[:2], expected[:2], strict=True):
        assert list(got) == list(want)
        for key, tensor in want.items():
            assert torch.equal(got[key], tensor), key
    assert torch.equal(found[2], expected[2])
    assert len(messages) == 1


@pytest.mark.parametrize("register", [register_module_forward_hook])
def test_global_hooks_see_what_the_package_shows(register: Any) -> None:
    model, words = text_encoder(), texts(5)
    seen: list[Any] = []

    def look(module: Any, _args: Any, output: Any) -> None:
        if isinstance(module, SparseAutoEncoder):
            seen.append(output["sentence_embedding"].clone())

    handle = register(look)
    try:
        expected = model.encode(words).to_dense()
        with integration.accelerate():
            found, messages = told(lambda: model.encode(words).to_dense())
    finally:
        handle.remove()
    assert torch.equal(found, expected)
    assert torch.equal(*seen)
    assert len(messages) == 1
    assert "global hooks" in messages[0]
    with integration.accelerate():
        assert told(lambda: model.encode(words))[1] == []


@trains
def test_global_backward_hooks_see_what_the_package_shows() -> None:
    def seen(make: Callable[[], Any]) -> list[str]:
        names: list[str] = []
        handle = register_module_full_backward_hook(
            lambda module, *_: names.append(type(module).__name__)
        )
        try:
            model = make().train()
            sum(losses.CSRLoss(model)([model.tokenize(texts(4))] * 2).values()).backward()
        finally:
            handle.remove()
        return names

    expected = seen(text_encoder)
    with integration.accelerate():
        assert seen(text_encoder) == expected


@pytest.mark.parametrize("when", ["before", "after"])
def test_methods_that_are_replaced_in_the_class(monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    model, words = text_encoder(), texts(5)
    for name in ("encode_pre_act", "forward"):
        plain = getattr(SparseAutoEncoder, name)
        with monkeypatch.context() as patch:
            if when == "after":
                integration.accelerate()
                plain = getattr(SparseAutoEncoder, name)
            if name == "forward":
                patch.setattr(SparseAutoEncoder, name, wrapped(plain))
            else:
                patch.setattr(SparseAutoEncoder, name, lambda self, x, f=plain: 2 * f(self, x))
            if when == "before":
                integration.accelerate()
            found, messages = told(lambda: model.encode(words).to_dense())
            assert len(messages) == 1
            integration.restore()
            expected = model.encode(words).to_dense()
            assert torch.equal(found, expected)


class DoubledLinear(TorchFunctionMode):
    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None):
        out = function(*args, **(kwargs or {}))
        return 2 * out if function is F.linear else out


class Names(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_modes_see_what_the_package_does() -> None:
    model, words = text_encoder(), texts(5)
    corpus = model.encode(words)

    def names(call: Callable[[], Any]) -> list[str]:
        with Names() as mode:
            call()
        return mode.names

    def doubled() -> torch.Tensor:
        with DoubledLinear():
            return model.encode(words).to_dense()

    calls = [lambda: model.encode(words), lambda: util.semantic_search(corpus, corpus)]
    expected = [names(call) for call in calls], doubled()
    with integration.accelerate():
        found, messages = told(lambda: ([names(call) for call in calls], doubled()))
    assert found[0] == expected[0]
    assert torch.equal(found[1], expected[1])
    assert len(messages) == 2  # one for each kind of mode


def test_a_default_device_is_no_such_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    model, words = text_encoder(), texts(5)
    with torch.device("cpu"), integration.accelerate():
        _, messages = told(lambda: model.encode(words))
    assert messages == []


def test_a_module_called_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = of(LogTopK)(), torch.randn(7, D)
    with torch.inference_mode():
        expected = model[1]({"sentence_embedding": x})["sentence_embedding"]
        with integration.accelerate():
            found, messages = told(
                lambda: [model[1]({"sentence_embedding": x})["sentence_embedding"] for _ in "ab"]
            )
    assert torch.equal(found[0], expected)
    assert torch.equal(found[1], expected)
    assert len(messages) == 1


@pytest.mark.parametrize("kind", ["subclass", "terms"])
@trains
def test_subclasses_of_the_loss(kind: str) -> None:
    class Terms(losses.csr.CSRReconstructionLoss):
        def compute_loss_from_embeddings(self, outputs: Any) -> Any:
            sparse = sum(out["sentence_embedding_encoded"].abs().mean() for out in outputs)
            return {**super().compute_loss_from_embeddings(outputs), "l1": sparse}

    class Loss(losses.CSRLoss):
        def forward(self, features: Any, labels: Any = None) -> Any:
            terms = super().forward(features, labels)
            return {name: 2 * term for name, term in terms.items()}

    def run() -> Any:
        torch.manual_seed(0)
        model = text_encoder().train()
        loss = (Loss if kind == "subclass" else losses.CSRLoss)(model)
        if kind == "terms":
            loss.reconstruction_loss = Terms(model)
        return loss([model.tokenize(texts(4)), model.tokenize(texts(4))])

    expected = run()
    with integration.accelerate():
        found, messages = told(run)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], term) for name, term in expected.items())
    assert len(messages) == 1


@trains
def test_a_copy_reads_the_statistics_of_its_original() -> None:
    """In the package; a copy that has not learned that its latents are dead trains them not."""

    def run(module: Any) -> Any:
        model = SparseEncoder(modules=[module], device="cpu").train()
        x = torch.randn(8, D, generator=torch.Generator().manual_seed(1))
        return losses.CSRLoss(model)([{"sentence_embedding": x}, {"sentence_embedding": -x}])

    original = adapter()
    first, second = copy.deepcopy(original), copy.deepcopy(original)
    for module in (first, second):
        module.stats_last_nonzero += module.dead_threshold + 5
    expected = run(first)
    with integration.accelerate():
        found, messages = told(lambda: run(second))
    assert all(torch.equal(found[name], term) for name, term in expected.items())
    assert "auxk_mask_fn" in messages[0]


# ---- dtypes ---------------------------------------------------------------------------


class Cast(nn.Module):
    """The end of a backbone whose weights are of another dtype than the adapter's."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        x = features["sentence_embedding"]
        return features | {"sentence_embedding": x.to(self.dtype)}


DTYPES = [
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.float64),
    (torch.float16, torch.float64),
    (torch.float64, torch.float64),
]


def mixed(backbone: torch.dtype, dtype: torch.dtype, **options: Any) -> Any:
    torch.manual_seed(3)
    modules = [words_backbone(), Cast(backbone), adapter(**options)]
    model = SparseEncoder(modules=modules, device="cpu")  # which gives all of them one dtype
    modules[2].to(dtype)
    return model


@pytest.mark.filterwarnings("error:.*not accelerated")
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_encode_with_a_backbone_of_another_dtype(dtypes: Any, normalize: bool) -> None:
    model, words = mixed(*dtypes, normalize=normalize), texts(12)
    expected = model.encode(words, batch_size=5)
    with integration.accelerate():
        found = model.encode(words, batch_size=5)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found.to_dense(), expected.to_dense(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtypes", [(torch.float64, torch.float32), (torch.float32, torch.half)])
def test_dtypes_that_the_package_refuses(dtypes: Any) -> None:
    model, words = mixed(*dtypes), texts(3)
    with pytest.raises(RuntimeError) as expected:
        model.encode(words)
    with integration.accelerate(), pytest.raises(RuntimeError) as found:
        model.encode(words)
    assert str(found.value) == str(expected.value)


@trains
@pytest.mark.filterwarnings("error:.*not accelerated")
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_the_loss_with_a_backbone_of_another_dtype(dtypes: Any, normalize: bool) -> None:
    def run() -> Any:
        model = mixed(*dtypes, normalize=normalize).train()
        model[2].stats_last_nonzero[H - 20 :] = model[2].dead_threshold + 5
        loss = losses.CSRLoss(model, gamma=0.3)
        torch.manual_seed(4)
        terms = loss([model.tokenize(texts(8)), model.tokenize(texts(8))])
        sum(terms.values()).backward()
        return terms, {name: p.grad for name, p in model.named_parameters()}

    expected = run()
    with integration.accelerate():
        found = run()
    for got, want in zip(found, expected, strict=True):
        for name, tensor in want.items():
            assert got[name].dtype == tensor.dtype
            bound = 1e-5 * max(1e-3, float(tensor.detach().abs().max()))
            if dtypes[0] == torch.float16 and name.startswith("0"):
                bound *= 100  # the gradient passed the backbone in float16
            elif dtypes[0] == torch.bfloat16 and name.startswith("0"):
                bound *= 1000
            torch.testing.assert_close(got[name], tensor, rtol=0, atol=bound, msg=name)


def test_encode_under_autocast_is_the_packages() -> None:
    model, words = text_encoder(), texts(9)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model.encode(words)
        with integration.accelerate():
            found = model.encode(words)
    assert found.dtype == expected.dtype == torch.bfloat16
    assert torch.equal(found.to_dense(), expected.to_dense())


@trains
@pytest.mark.filterwarnings("error:.*not accelerated")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backbone", [torch.float32, torch.bfloat16])
def test_the_loss_under_autocast(backbone: torch.dtype, dtype: torch.dtype) -> None:
    """Within the rounding of the narrower dtype, of which the package makes as much."""

    def run() -> Any:
        model = mixed(backbone, torch.float32).train()
        model[2].stats_last_nonzero[H - 20 :] = model[2].dead_threshold + 5
        torch.manual_seed(4)
        features = [model.tokenize(texts(8)), model.tokenize(texts(8))]
        with torch.autocast("cpu", dtype):
            terms = losses.CSRLoss(model, gamma=0.3)(features)
        sum(terms.values()).backward()
        return terms, {name: p.grad for name, p in model.named_parameters()}

    expected = run()
    with integration.accelerate():
        found = run()
    for name, term in expected[0].items():
        assert float(found[0][name]) == pytest.approx(float(term), rel=0.02), name
    for name, grad in expected[1].items():
        assert found[1][name].dtype == grad.dtype
        assert F.cosine_similarity(found[1][name].flatten(), grad.flatten(), 0) > 0.98, name


# ---- numbers --------------------------------------------------------------------------


@pytest.mark.filterwarnings("error:.*not accelerated")
@pytest.mark.parametrize(
    "make", [np.int64, np.int32, torch.tensor], ids=["int64", "int32", "tensor"]
)
def test_k_as_any_integer(make: Any) -> None:
    model, words = text_encoder(), texts(6)
    expected = model.encode(words, max_active_dims=3).to_dense()
    with integration.accelerate():
        found = model.encode(words, max_active_dims=make(3)).to_dense()
        model.max_active_dims, model[1].k = None, make(3)
        by_setting = model.encode(words).to_dense()
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(by_setting, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("k", [0, -1, H + 1, 2.0, "3", torch.tensor(2.0)], ids=str)
def test_a_k_that_torch_refuses(k: Any) -> None:
    model, words, results = text_encoder(), texts(3), []
    for context in (contextlib.nullcontext, integration.accelerate):
        with context():
            try:
                results.append(model.encode(words, max_active_dims=k).to_dense().tolist())
            except Exception as error:
                results.append((type(error), str(error)))
    assert results[0] == results[1]


def test_a_k_of_zero_in_the_settings() -> None:
    model, words = text_encoder(), texts(3)
    model.max_active_dims, model[1].k = None, 0
    expected = model.encode(words).to_dense()
    with integration.accelerate():
        assert torch.equal(model.encode(words).to_dense(), expected)


@trains
@pytest.mark.filterwarnings("error:.*not accelerated")
def test_sizes_of_the_loss_as_any_integer() -> None:
    def run(make: Any) -> Any:
        torch.manual_seed(0)
        model = text_encoder().train()
        model[1].stats_last_nonzero[H - 20 :] = model[1].dead_threshold + 5
        model[1].k, model[1].k_aux = make(K), make(12)
        return losses.CSRLoss(model)([model.tokenize(texts(4)), model.tokenize(texts(4))])

    expected = run(int)
    for make in (np.int64, torch.tensor):
        with integration.accelerate():
            found = run(make)
        for name, term in expected.items():
            torch.testing.assert_close(found[name], term)


# ---- search ---------------------------------------------------------------------------


def numpy_values(corpus: torch.Tensor) -> None:
    corpus._values().numpy()[:] *= 2


def numpy_one_value(corpus: torch.Tensor) -> None:
    corpus._values().numpy()[7] += 1


def data_values(corpus: torch.Tensor) -> None:
    corpus._values().data.mul_(2)


def dlpack_values(corpus: torch.Tensor) -> None:
    np.from_dlpack(corpus._values()).__imul__(np.float32(3))


def two_values_change_places(corpus: torch.Tensor) -> None:
    values = corpus._values().numpy()
    values[[3, 90]] = values[[90, 3]]


def numpy_latents(corpus: torch.Tensor) -> None:
    latents = corpus._indices()[1].numpy()
    latents[:] = (latents + 1) % corpus.shape[1]


def numpy_rows(corpus: torch.Tensor) -> None:
    corpus._indices()[0].numpy()[-3:] += 1


@pytest.mark.parametrize(
    "edit",
    [
        numpy_values,
        numpy_one_value,
        data_values,
        dlpack_values,
        two_values_change_places,
        numpy_latents,
        numpy_rows,
    ],
)
@pytest.mark.parametrize("score", ["cos_sim", "dot_score"])
def test_semantic_search_sees_edits_that_torch_does_not(edit: Any, score: str) -> None:
    dense = torch.zeros(40, H).scatter(1, torch.rand(40, H).topk(5).indices, 1.0)
    dense[-1] = 0
    corpus = (dense * torch.rand(40, H)).to_sparse()
    queries = corpus.to_dense()[:9].to_sparse()
    function = getattr(util, score)
    with integration.accelerate():
        util.semantic_search(queries, corpus, score_function=function)
        edit(corpus)
        found = util.semantic_search(queries, corpus, top_k=4, score_function=function)
    expected = function(queries.to_dense().double(), corpus.to_dense().double())
    for hits, scores in zip(found, expected, strict=True):
        got = [hit["score"] for hit in hits]
        assert got == pytest.approx(scores.topk(4).values.tolist(), rel=1e-5)
        assert [float(scores[hit["corpus_id"]]) for hit in hits] == pytest.approx(got, rel=1e-5)


def test_cosines_do_not_exceed_one() -> None:
    corpus = torch.rand(300, H).topk(7).values.repeat(1, 3).to_sparse()
    with integration.accelerate():
        found = util.semantic_search(corpus, corpus, top_k=1)
    scores = [hit["score"] for hits in found for hit in hits]
    assert max(scores) <= 1
    assert min(scores) == pytest.approx(1)


@pytest.mark.parametrize("top_k", [np.int64(3), torch.tensor(3)], ids=str)
def test_top_k_as_any_integer(top_k: Any) -> None:
    corpus = torch.rand(20, H).relu().to_sparse()
    with integration.accelerate():
        found = util.semantic_search(corpus, corpus, top_k=top_k)
    assert {len(hits) for hits in found} == {3}


# ---- acceleration and its end ---------------------------------------------------------


def accelerated() -> bool:
    return hasattr(util.semantic_search, "__wrapped__")


def test_the_inner_of_two_contexts_leaves_the_outer_in_force() -> None:
    plain = SparseAutoEncoder.forward
    with integration.accelerate():
        ours = SparseAutoEncoder.forward
        with pytest.raises(KeyError), integration.accelerate():
            raise KeyError
        assert SparseAutoEncoder.forward is ours
        assert accelerated()
        with integration.accelerate(text_encoder()):
            pass
        assert SparseAutoEncoder.forward is ours
    assert SparseAutoEncoder.forward is plain
    assert not accelerated()
    acceleration = integration.accelerate()
    with acceleration, acceleration:
        pass
    assert SparseAutoEncoder.forward is plain
    with acceleration:
        assert SparseAutoEncoder.forward is not plain
        with acceleration:
            pass
        assert SparseAutoEncoder.forward is not plain
    assert SparseAutoEncoder.forward is plain
    integration.accelerate(text_encoder())
    integration.accelerate()
    integration.restore()
    integration.restore()
    assert SparseAutoEncoder.forward is plain
    assert not accelerated()


def test_a_failure_leaves_nothing_half_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = SparseAutoEncoder.forward
    with monkeypatch.context() as patch:
        patch.setattr(integration.Search, "put", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            integration.accelerate()
    assert SparseAutoEncoder.forward is plain
    assert not accelerated()
    with integration.accelerate():
        assert SparseAutoEncoder.forward is not plain


def test_functions_put_around_ours_stay() -> None:
    plain = SparseAutoEncoder.forward
    model, words = text_encoder(), texts(4)
    expected = model.encode(words).to_dense()
    calls: list[int] = []
    integration.accelerate()
    ours = SparseAutoEncoder.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return ours(*args, **kwargs)

    SparseAutoEncoder.forward = counted
    try:
        integration.restore()
        assert SparseAutoEncoder.forward is counted
        assert torch.equal(model.encode(words).to_dense(), expected)
        assert calls
    finally:
        SparseAutoEncoder.forward = plain


def test_restored_while_another_thread_encodes() -> None:
    model, words = text_encoder(), texts(8)
    expected = model.encode(words).to_dense()
    begun, restored = threading.Event(), threading.Event()

    def wait(*_: Any) -> None:
        begun.set()
        assert restored.wait(30)

    model[0].register_forward_hook(wait)
    plain = SparseAutoEncoder.forward
    integration.accelerate()
    found: list[torch.Tensor] = []
    thread = threading.Thread(
        target=lambda: found.append(model.encode(words, batch_size=3).to_dense())
    )
    thread.start()
    assert begun.wait(30)
    integration.restore()
    restored.set()
    thread.join()
    torch.testing.assert_close(found[0], expected, rtol=0, atol=2e-6)
    assert SparseAutoEncoder.forward is plain


def test_accelerated_and_restored_from_many_threads() -> None:
    plain = SparseAutoEncoder.forward
    model, words = text_encoder(), texts(4)
    expected = model.encode(words).to_dense()
    wrong: list[float] = []

    def work() -> None:
        for _ in range(20):
            with integration.accelerate():
                error = (model.encode(words).to_dense() - expected).abs().max()
                if not error < 2e-6:
                    wrong.append(float(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert SparseAutoEncoder.forward is plain
