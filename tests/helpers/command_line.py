"""What the tests of the command line share."""

from __future__ import annotations

import io
import json
import os
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from csrkern import InvertedIndex
from csrkern.nn import SparseAutoencoder
from csrtrain import texts
from csrtrain.cli import app as cli


def clusters(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """n rows around four centers, and the center of each."""
    centers = np.random.default_rng(0).normal(size=(4, 24)).astype(np.float32)
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    return centers[labels] + 0.3 * rng.normal(size=(n, 24)).astype(np.float32), labels


def exit_code(*line: str) -> int:
    """The exit code of a command line, given as one string or as its words."""
    with pytest.raises(SystemExit) as stop:
        cli.main(line[0].split() if len(line) == 1 else line)
    return int(stop.value.code)


def run_in(folder: Path, lines: Iterable[str]) -> None:
    before = Path.cwd()
    os.chdir(folder)
    try:
        for line in lines:
            assert exit_code(line) == 0, line
    finally:
        os.chdir(before)


@pytest.fixture(autouse=True)
def inside_the_folder(request, monkeypatch) -> None:
    monkeypatch.delenv("CSRKERN_DEBUG", raising=False)
    if "folder" in request.fixturenames:
        monkeypatch.chdir(request.getfixturevalue("folder"))


def type_in(monkeypatch, text: str | bytes) -> None:
    """What the command reads from standard input."""
    raw = text if isinstance(text, bytes) else text.encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))


def json_lines(capsys) -> list[dict]:
    """What the command printed, each line as strict JSON."""
    return [strict(line) for line in capsys.readouterr().out.split("\n")[:-1]]


def strict(text: str | bytes) -> dict:
    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is not JSON")

    return json.loads(text, parse_constant=refuse)


def error_of(capsys) -> str:
    """The one line on standard error, and nothing on standard output."""
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith("csrkern: ")
    assert streams.err.count("\n") == 1, streams.err
    assert "a bug" not in streams.err
    return streams.err[len("csrkern: ") : -1]


class Words:
    """A text model that needs no package: embeddings by the bytes of a text."""

    sparse = False
    fingerprint = None
    read: ClassVar[list[str]] = []

    def __init__(self, name: str, device: str | None = None) -> None:
        self.name = name

    def embed(self, batch, *, query: bool = False, batch_size: int = 32) -> np.ndarray:
        Words.read.extend(batch)
        rows = [np.random.default_rng(zlib.crc32(t.encode())).normal(size=24) for t in batch]
        return np.array(rows, np.float32).reshape(len(batch), 24)


@pytest.fixture
def words(monkeypatch) -> type[Words]:
    """The text model of the commands is `Words`; the list of what it read is fresh."""
    monkeypatch.setattr(texts, "TextModel", Words)
    monkeypatch.setattr(Words, "read", [])
    return Words


def make_untrained(folder: Path) -> None:
    """rows.npy, a model of 64 latents, codes and an index, without the command line."""
    torch.manual_seed(0)
    rows, labels = clusters(40, seed=1)
    np.save(folder / "rows.npy", rows)
    np.save(folder / "y.npy", labels)
    model = SparseAutoencoder(24, 64, 4)
    model.save_pretrained(folder / "model")
    with torch.no_grad():
        codes = model.encode(torch.from_numpy(rows))
    codes.save(folder / "codes.safetensors")
    InvertedIndex.build(codes, metric="cosine", dtype="float32").save(folder / "index")
