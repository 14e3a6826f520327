"""What the tests of the command line share."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from csrtrain import cli


def clusters(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """n rows around four centres, and the centre of each."""
    centres = np.random.default_rng(0).normal(size=(4, 24)).astype(np.float32)
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    return centres[labels] + 0.3 * rng.normal(size=(n, 24)).astype(np.float32), labels


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
