"""The examples train; those for other frameworks where these are installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.usefixtures("one_thread")

EXAMPLES = Path(__file__).parent.parent / "examples"


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
