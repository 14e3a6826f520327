"""The examples train; those for other frameworks where these are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.usefixtures("one_thread")

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def rows() -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(512) % 8
    return torch.randn(8, 24)[labels] + 0.3 * torch.randn(512, 24), labels


def unexplained(model, x) -> float:
    return float((model(x)[0] - x).square().sum() / (x - x.mean(0)).square().sum())


def test_plain_pytorch(rows, capsys):
    model = example("plain_pytorch").fit(rows[0], k=4, epochs=60)
    assert unexplained(model, rows[0]) < 0.9
    assert "epoch 60" in capsys.readouterr().out


def test_lightning(rows, tmp_path):
    pytest.importorskip("lightning")
    model = example("lightning_module").fit(
        *rows,
        k=4,
        epochs=100,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    codes = model.encode(rows[0]).normalize().to_dense()
    nearest = (codes @ codes.T).fill_diagonal_(-1).argmax(1)
    assert float((rows[1][nearest] == rows[1]).float().mean()) > 0.9


def test_hugging_face(rows, tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model = example("hf_trainer").fit(
        rows[0], str(tmp_path), k=4, epochs=100, use_cpu=True, save_strategy="no", disable_tqdm=True
    )
    assert unexplained(model, rows[0]) < 0.95


def seeded(fit: Callable[..., Any], *args: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return fit(*args, **options)


def same(model, other) -> bool:
    states = model.state_dict(), other.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


class Stop(Exception):
    pass


def test_hugging_face_saves_and_resumes(rows, tmp_path, monkeypatch):
    """As the Trainer comes: checkpoints in safetensors, every 500 steps and at the end."""
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    module = example("hf_trainer")
    options = {"k": 4, "epochs": 12, "use_cpu": True, "disable_tqdm": True}
    whole = seeded(module.fit, rows[0], str(tmp_path / "whole"), **options)
    assert [path.name for path in (tmp_path / "whole").iterdir()] == ["checkpoint-12"]
    stored = load_file(tmp_path / "whole" / "checkpoint-12" / "model.safetensors")
    assert all(torch.equal(stored[f"model.{n}"], t) for n, t in whole.state_dict().items())

    class Interrupted(module.CountSteps):
        def on_step_end(self, _arguments, state, _control, **_kwargs):
            if state.global_step == 8:
                raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(module, "CountSteps", Interrupted)
        with pytest.raises(Stop):
            seeded(module.fit, rows[0], str(tmp_path / "run"), **options, save_steps=5)
    resumed = module.fit(rows[0], str(tmp_path / "run"), **options, save_steps=5, resume=True)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"checkpoint-5", "checkpoint-10", "checkpoint-12"}
    assert same(resumed, whole)


def counted(module: ModuleType) -> list[bool]:
    """Whether each batch that `module` trains on from now on begins a step."""
    seen: list[bool] = []

    class Counted(module.CSRLoss):
        def forward(self, *args, new_step, **options):
            seen.append(new_step)
            return super().forward(*args, new_step=new_step, **options)

    module.CSRLoss = Counted
    return seen


def test_hugging_face_counts_the_batches_of_a_step_as_one(rows, tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    module = example("hf_trainer")
    seen = counted(module)
    options = {"gradient_accumulation_steps": 3, "save_strategy": "no", "disable_tqdm": True}
    module.fit(rows[0].repeat(5, 1), str(tmp_path), k=4, epochs=2, use_cpu=True, **options)
    assert seen == [True, False, False, True, False] * 2


def test_lightning_saves_and_resumes(rows, tmp_path):
    pytest.importorskip("lightning")
    module = example("lightning_module")
    options = {"k": 4, "accelerator": "cpu", "enable_progress_bar": False}
    whole = seeded(module.fit, *rows, epochs=6, default_root_dir=tmp_path / "a", **options)
    seeded(module.fit, *rows, epochs=3, default_root_dir=tmp_path / "b", **options)
    (kept,) = (tmp_path / "b").rglob("*.ckpt")
    loaded = module.CSRModule.load_from_checkpoint(
        kept, model=module.SparseAutoencoder(24, 96, 4), loss=module.CSRLoss()
    )
    assert loaded.model.decoder.linear.weight is loaded.model.encoder.weight
    resumed = module.fit(
        *rows, epochs=6, resume=str(kept), default_root_dir=tmp_path / "c", **options
    )
    assert same(resumed, whole)


def test_lightning_counts_the_batches_of_a_step_as_one(rows, tmp_path):
    pytest.importorskip("lightning")
    module = example("lightning_module")
    seen = counted(module)
    many = rows[0].repeat(5, 1), rows[1].repeat(5)
    options = {"accumulate_grad_batches": 3, "enable_checkpointing": False, "logger": False}
    module.fit(
        *many,
        k=4,
        epochs=2,
        accelerator="cpu",
        enable_progress_bar=False,
        default_root_dir=tmp_path,
        **options,
    )
    assert seen == [True, False, False, True, False] * 2


def test_through_backbone(tmp_path):
    st_models = pytest.importorskip("st_models")
    if st_models.VERSION < (6, 2):
        pytest.skip("sentence-transformers 6.2 or later")
    pytest.importorskip("datasets")
    pytest.importorskip("accelerate")
    module = example("through_backbone")
    model = st_models.tiny_transformer(tmp_path / "tiny")
    lines = st_models.texts(192)
    pairs = [module.Text(line, " ".join(reversed(line.split()))) for line in lines]
    adapter = module.frozen_adapter(model, pairs, k=9, hidden_dim=64, steps=40)
    before = module.scores(model, adapter, pairs)
    module.through_backbone(
        model,
        adapter,
        pairs,
        str(tmp_path / "run"),
        num_train_epochs=20,
        per_device_train_batch_size=96,
        learning_rate=3e-3,
        use_cpu=True,
        disable_tqdm=True,
    )
    after = module.scores(model, adapter, pairs)
    assert all(after[k] > before[k] for k in module.KS), (before, after)


@pytest.mark.parametrize(
    ("package", "needs"),
    [("sae_lens", "sae_lens.saes.topk_sae"), ("sparsify", "sparsify.sparse_coder")],
)
def test_topk_autoencoders(rows, package, needs, monkeypatch):
    monkeypatch.setenv("SPARSIFY_DISABLE_TRITON", "1")
    pytest.importorskip(needs)
    module = example("topk_autoencoders")
    make, fast = getattr(module, f"{package}_step"), getattr(module, f"fast_{package}")
    expected, _ = module.run(make(24, 96, 4), rows[0], steps=20, batch=128)
    with fast.accelerate():
        found, _ = module.run(make(24, 96, 4), rows[0], steps=20, batch=128)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
    first, _ = module.run(make(24, 96, 4), rows[0], steps=1, batch=128)
    assert expected < 0.9 * first
