"""CachedCSRLoss: gradients into a backbone by a gradient cache."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from st_models import VERSION, D, H, texts, tiny_transformer, words_backbone

if VERSION < (6, 2):
    pytest.skip("sentence-transformers 6.2 or later", allow_module_level=True)

from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)

from csrkern.nn import SparseAutoencoder
from csrtrain import CSRLoss
from csrtrain.sentence_transformers import CachedCSRLoss

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def backbone(tmp_path: Path) -> SentenceTransformer:
    return tiny_transformer(tmp_path / "tiny")


def small_adapter(dead: int = 6) -> SparseAutoencoder:
    model = SparseAutoencoder(D, H, 8, k_aux=4)
    with torch.no_grad():
        model.pre_bias.normal_(std=0.1)
        model.stats_last_nonzero[H - dead :] = model.dead_threshold + 5
    return model


def columns(model: SentenceTransformer, n: int, count: int) -> list[dict[str, torch.Tensor]]:
    return [model.preprocess(texts(n)) for _ in range(count)]


def gradients(*modules: torch.nn.Module) -> list[torch.Tensor]:
    return [p.grad for module in modules for p in module.parameters() if p.grad is not None]


@pytest.mark.parametrize(
    ("contrast", "count"), [("clip", 2), ("pair", 2), ("self", 1), ("label", 1), (None, 1)]
)
def test_gradients_are_those_of_one_pass(backbone, contrast, count):
    loss = CSRLoss(beta=0.3, gamma=0.7, contrast=contrast, ks=(2, 4), recon_weight=5.0)
    labels = torch.arange(21) % 5 if contrast == "label" else None
    batch = columns(backbone, 21, count)
    whole = copy.deepcopy(backbone).train(), small_adapter()
    cached = backbone.train(), copy.deepcopy(whole[1])

    embeddings = [whole[0](dict(features))["sentence_embedding"] for features in batch]
    partners = embeddings[1] if count == 2 else None
    wanted = loss(whole[1], embeddings[0], labels, partners=partners)["loss"]
    (wanted / 4).backward()  # as a trainer divides by the batches of a step

    got = CachedCSRLoss(*cached, loss, mini_batch_size=4)(batch, labels)
    torch.testing.assert_close(got, wanted)
    assert not gradients(*cached)  # none before the trainer asks for them
    (got / 4).backward()
    truth, found = gradients(*whole), gradients(*cached)
    assert len(truth) == len(found) > 30
    for want, grad in zip(truth, found, strict=True):
        scale = float(want.abs().max()) + 1e-6
        torch.testing.assert_close(grad / scale, want / scale, rtol=0, atol=1e-5)
    assert torch.equal(cached[1].stats_last_nonzero, whole[1].stats_last_nonzero)


def test_dropout_is_the_same_in_both_passes(tmp_path):
    model, adapter = tiny_transformer(tmp_path, dropout=0.4).train(), small_adapter()
    seen = []
    model.register_forward_hook(lambda *call: seen.append(call[2]["sentence_embedding"].detach()))
    loss = CachedCSRLoss(model, adapter, CSRLoss(contrast="clip"), mini_batch_size=8)
    loss(columns(model, 16, 2)).backward()
    first, second = seen[:4], seen[4:]
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])


def test_a_frozen_backbone_trains_the_adapter_alone(backbone):
    backbone.train().requires_grad_(False)
    adapter = small_adapter()
    CachedCSRLoss(backbone, adapter, CSRLoss(contrast="clip"))(columns(backbone, 9, 2)).backward()
    assert not gradients(backbone)
    assert adapter.encoder.weight.grad is not None


def test_evaluation_changes_nothing(backbone):
    adapter = small_adapter()
    before = adapter.stats_last_nonzero.clone()
    loss = CachedCSRLoss(backbone.eval(), adapter, CSRLoss(contrast="clip"))
    with torch.no_grad():
        total = loss(columns(backbone, 9, 2))
    assert torch.isfinite(total)
    assert torch.equal(adapter.stats_last_nonzero, before)


def test_a_trainer_trains_both(backbone, tmp_path):
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("accelerate")
    ours = texts(64)
    pairs = datasets.Dataset.from_dict({"anchor": ours, "positive": [t[::-1] for t in ours]})
    adapter = small_adapter(0)
    before = copy.deepcopy((backbone, adapter))
    arguments: dict[str, Any] = {"report_to": [], "save_strategy": "no", "disable_tqdm": True}
    trainer = SentenceTransformerTrainer(
        backbone,
        SentenceTransformerTrainingArguments(
            str(tmp_path / "run"),
            num_train_epochs=15,
            per_device_train_batch_size=32,
            learning_rate=1e-2,
            logging_steps=1,
            use_cpu=True,
            **arguments,
        ),
        train_dataset=pairs,
        loss=CachedCSRLoss(backbone, adapter, CSRLoss(contrast="clip"), mini_batch_size=8),
    )
    trainer.train()
    curve = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert curve[-1] < 0.8 * curve[0]
    for old, new in zip(before, (backbone, adapter), strict=True):
        assert any(
            not torch.equal(a, b) for a, b in zip(old.parameters(), new.parameters(), strict=True)
        )
    assert int(adapter.stats_last_nonzero.max()) <= 30  # one count a batch


def test_what_it_cannot_train_is_refused(backbone, monkeypatch):
    loss = CSRLoss(contrast="clip")
    static = SentenceTransformer(modules=[words_backbone()], device="cpu")
    with pytest.raises(ValueError, match="model: expected a model whose batches can be split"):
        CachedCSRLoss(static, small_adapter(), loss)
    with pytest.raises(ValueError, match="mini_batch_size: expected at least 1"):
        CachedCSRLoss(backbone, small_adapter(), loss, mini_batch_size=0)
    with pytest.raises(ValueError, match="expected one or two columns of texts, got 3"):
        CachedCSRLoss(backbone, small_adapter(), loss)(columns(backbone, 5, 3))
    with pytest.raises(ValueError, match="partners: expected one embedding for each row"):
        CachedCSRLoss(backbone, small_adapter(), loss)(columns(backbone, 5, 1))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"expected CSRLoss\(gather=True\) in 2 processes"):
        CachedCSRLoss(backbone, small_adapter(), loss)(columns(backbone, 5, 2))


def train_from(folder: Path, batch_size: int) -> list[torch.Tensor]:
    """Three steps on what is in the folder; returns the weights of backbone and adapter."""
    from datasets import Dataset

    backbone = SentenceTransformer(str(folder / "backbone"), device="cpu")
    adapter, pairs = torch.load(folder / "start", weights_only=False)
    arguments: dict[str, Any] = {"report_to": [], "save_strategy": "no", "disable_tqdm": True}
    SentenceTransformerTrainer(
        backbone,
        SentenceTransformerTrainingArguments(
            str(folder / "run"),
            max_steps=3,
            per_device_train_batch_size=batch_size,
            learning_rate=1.0,
            optim="sgd",
            use_cpu=True,
            **arguments,
        ),
        train_dataset=Dataset.from_dict(pairs),
        loss=CachedCSRLoss(
            backbone, adapter, CSRLoss(0.3, 0.7, contrast="clip", gather=True), mini_batch_size=4
        ),
    ).train()
    return [t.detach() for module in (backbone, adapter) for t in module.state_dict().values()]


WORKER = """
import os, sys
from pathlib import Path
import torch
from test_sentence_transformers_cached import train_from
torch.set_num_threads(1)
folder = Path(sys.argv[1])
weights = train_from(folder, 8)
torch.save(weights, folder / f"rank{torch.distributed.get_rank()}")
torch.distributed.barrier()
os._exit(0)  # accelerate keeps gloo's threads, which may abort in the interpreter's last moments
"""


def test_two_processes_train_as_one_with_the_joint_batch(backbone, tmp_path):
    pytest.importorskip("datasets")
    pytest.importorskip("accelerate")
    backbone.save(str(tmp_path / "backbone"))
    ours = texts(48)
    pairs = {"anchor": ours, "positive": [text[::-1] for text in ours]}
    torch.save((small_adapter(), pairs), tmp_path / "start")
    (tmp_path / "worker.py").write_text(WORKER)
    places = [*sys.path, str(Path(__file__).parent)]
    done = subprocess.run(
        [
            *[sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"],
            *[str(tmp_path / "worker.py"), str(tmp_path)],
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}") for rank in range(2))
    start = [*backbone.state_dict().values()]
    whole = train_from(tmp_path, 16)
    assert not torch.equal(start[0], whole[0])
    for one, other, wanted in zip(first, second, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
        torch.testing.assert_close(one, wanted, rtol=1e-4, atol=1e-5)
