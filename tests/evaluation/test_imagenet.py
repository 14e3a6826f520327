"""The command for the paper's ImageNet table, on small rows in the same files: mechanics alone."""

from __future__ import annotations

import csv
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from csrkern.nn import SparseAutoencoder
from csrtrain import TrainConfig, load_embeddings

PAPER = Path(__file__).parents[2] / "benchmarks/paper"
D = 12


@pytest.fixture
def imagenet(monkeypatch):
    monkeypatch.syspath_prepend(str(PAPER))
    yield importlib.import_module("imagenet")
    for name in [path.stem for path in PAPER.glob("*.py")]:
        sys.modules.pop(name, None)


@pytest.fixture
def sides(tmp_path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((6, D))
    found = {}
    for side, n in (("train", 400), ("val", 50)):
        labels = rng.integers(0, 6, n)
        rows = centers[labels] + 0.8 * rng.standard_normal((n, D))
        found[side] = rows.astype(np.float32), labels
        np.savez_compressed(tmp_path / f"{side}.npz", data=found[side][0], label=labels)
    return found


def run(module: Any, monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["imagenet", *map(str, arguments)])
    module.main()


def published(folder: Path) -> list[Any]:
    return ["--train", folder / "train.npz", "--val", folder / "val.npz"]


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "imagenet.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_have_the_exact_accuracy_and_its_difference(imagenet, sides, tmp_path, monkeypatch):
    seen = []
    trained = imagenet.train

    def spy(rows: Path, config: TrainConfig) -> SparseAutoencoder:
        seen.append((config, type(load_embeddings(rows))))
        return trained(rows, config=config, progress=False)

    monkeypatch.setattr(imagenet, "train", spy)
    out = tmp_path / "out"
    run(imagenet, monkeypatch, *published(tmp_path), "-o", out)
    # The recipe of the paper, on rows that are mapped, one model a k.
    assert seen == [(TrainConfig.preset("imagenet", k=k), np.memmap) for k in (8, 16, 32)]
    rows = table(out)
    assert [(row["k"], row["paper"]) for row in rows] == [
        ("8", "67.78"),
        ("16", "69.17"),
        ("32", "70.15"),
    ]
    (x, y), (q, q_labels) = sides["train"], sides["val"]
    for row in rows:
        model = SparseAutoencoder.from_pretrained(out / f"model-k{row['k']}")
        base, asked = (model.encode(side).normalize().to_dense().double() for side in (x, q))
        nearest = (asked @ base.T).argmax(1).numpy()
        expected = 100 * float((y[nearest] == q_labels).mean())
        assert float(row["accuracy"]) == pytest.approx(expected)
        assert float(row["difference"]) == pytest.approx(expected - float(row["paper"]), abs=0.01)
    assert (
        "These are not the embeddings of ImageNet-1k: 400 rows" in (out / "imagenet.md").read_text()
    )
    left = {path.name for path in out.iterdir()}
    assert left == {"imagenet.csv", "imagenet.md", "model-k8", "model-k16", "model-k32"}

    # A model that is there is taken as it is, and plain files give the same.
    monkeypatch.setattr(imagenet, "train", None)
    arguments = []
    for side, (data, labels) in sides.items():
        np.save(tmp_path / f"{side}.npy", data)
        np.save(tmp_path / f"{side}-labels.npy", labels)
        arguments += [f"--{side}", tmp_path / f"{side}.npy"]
        arguments += [f"--{side}-labels", tmp_path / f"{side}-labels.npy"]
    run(imagenet, monkeypatch, *arguments, "-o", out, "--ks", 16, 8)
    assert table(out) == rows[:2]


def test_embeddings_without_labels_are_refused(imagenet, sides, tmp_path, monkeypatch):
    np.save(tmp_path / "train.npy", sides["train"][0])
    arguments = ["--train", tmp_path / "train.npy", "--val", tmp_path / "val.npz"]
    with pytest.raises(SystemExit, match="give --train-labels"):
        run(imagenet, monkeypatch, *arguments, "-o", tmp_path / "out")


def test_a_code_of_zeros_has_no_neighbor(imagenet, tmp_path):
    model = SparseAutoencoder(2, 4, 1).eval()
    with torch.no_grad():
        model.encoder.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [0, 0], [0, 0]]))
    for name, rows in (("train", [[1, 0], [0, 1]]), ("val", [[2, 0], [-1, -1]])):
        np.save(tmp_path / f"{name}.npy", np.array(rows, np.float32))
    train, val = tmp_path / "train.npy", tmp_path / "val.npy"
    labels = torch.tensor([7, 7]), torch.tensor([7, 7])
    assert imagenet.accuracy(model, 1, train, val, *labels) == 0.5


def test_only_embeddings_of_imagenet_speak_of_the_paper(imagenet):
    rows = [{"k": 8, "accuracy": 66.0, "paper": 67.78, "difference": -1.78}]
    whole = imagenet.finding(rows, 1_281_024, 50_000)
    assert whole.startswith("1-NN accuracy of ImageNet-1k")
    assert "k = 8: 66.0 here, 67.78 in the paper, -1.78" in whole
    assert imagenet.finding(rows, 1_281_167, 10_000).startswith("These are not")
    assert imagenet.finding(rows, 900_000, 50_000).startswith("These are not")
