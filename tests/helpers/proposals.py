"""encode by each of its ways, whichever the processor would take."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

import csrkern
from csrkern import SparseCodes
from csrkern.ops import _encode_cpu

# The dtype of the product that proposes latents to sum in double, or one that decides alone.
EXACT_WAYS = ["float32", "bfloat16"]
WAYS = [*EXACT_WAYS, "fast"]


@contextlib.contextmanager
def proposals_in(dtype: str) -> Iterator[None]:
    """A product in this dtype proposes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_encode_cpu, "PROPOSE_IN_BFLOAT16", dtype == "bfloat16")
        yield


def encode_by(way: str, *args: Any, **options: Any) -> SparseCodes:
    """csrkern.encode by one of `WAYS`."""
    with proposals_in(way):
        precision = "fast" if way == "fast" else "exact"
        return csrkern.encode(*args, precision=precision, **options)
