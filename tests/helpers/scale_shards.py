"""Sharded indexes of small codes, for the tests of csrtrain.scale."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from csrkern import InvertedIndex
from csrtrain.scale import build
from csrtrain.scale.folder import Folder

DIM = 64


def random_codes(n: int, k: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Few different values, so that scores tie."""
    rng = np.random.default_rng(seed)
    indices = np.argsort(rng.random((n, DIM)), axis=1)[:, :k].astype(np.int32)
    values = np.sort(rng.integers(1, 4, (n, k)).astype(np.float32), axis=1)[:, ::-1]
    return values, indices


def build_sharded(folder: Path, codes: Any, cuts: list[int]) -> Folder:
    """A sharded index of codes cut at `cuts`."""
    values, indices = codes
    ends = [0, *cuts, len(values)]
    for left, right in itertools.pairwise(ends):
        part = InvertedIndex.build(
            (values[left:right], indices[left:right]), np.arange(left, right), dim=DIM
        )
        part.save(folder / "part")
        build.add_shard(folder / "part", folder / "index")
    return Folder.of(folder / "index")
