"""Which model made codes: fingerprints, and what happens where those of two models meet.

Codes of two models look alike, and a score between them means nothing. So codes carry the
fingerprint of the model that made them, an index carries that of its codes, and whatever brings
codes together compares. None stands for an unknown model, which passes. Imports no PyTorch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_FINGERPRINT = re.compile("[0-9a-f]{16}")


class ModelMismatchError(ValueError):
    """Codes of one model were given where codes of another are expected."""


def digest(facts: Mapping[str, Any], arrays: Iterable[np.ndarray]) -> str:
    """Return the fingerprint of named facts and of the bytes of contiguous arrays, in order."""
    hashed = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8)
    for array in arrays:
        hashed.update(array.data.cast("B") if array.size else b"")
    return hashed.hexdigest()


def check_fingerprint(name: str, value: Any) -> str | None:
    """Return `value` if it is a fingerprint or None.

    Raises:
        ValueError: if it is anything else.
    """
    if value is None or (isinstance(value, str) and _FINGERPRINT.fullmatch(value)):
        return value
    raise ValueError(f"{name}: expected 16 hexadecimal digits or None, got {value!r:.60}")


def check_same_model(
    name: str,
    fingerprint: str | None,
    expected: str | None,
    *,
    any_model: bool = False,
    holder: str = "the index",
) -> None:
    """Compare the model of codes with the one that `holder` has codes of; unknown ones pass.

    Args:
        name: what the codes are called, as an argument or a file.
        fingerprint: of the model that made them.
        expected: of the model that made what they meet.
        any_model: pass whatever they are.
        holder: what they meet.

    Raises:
        ModelMismatchError: if both are known and differ, unless any_model.
    """
    if any_model or fingerprint is None or expected is None or fingerprint == expected:
        return
    raise ModelMismatchError(
        f"{name}: made by another model (fingerprint {fingerprint}) than {holder} "
        f"({expected}), so scores between them mean nothing; encode both with one model, or pass "
        "any_model=True (--any-model)"
    )


def common_fingerprint(name: str, fingerprints: Iterable[str | None]) -> str | None:
    """Return the one fingerprint that all parts have; None if one of them is not known.

    Raises:
        ModelMismatchError: if two parts are of different models.
    """
    distinct = list(dict.fromkeys(fingerprints))
    known = [fingerprint for fingerprint in distinct if fingerprint is not None]
    if len(known) > 1:
        raise ModelMismatchError(
            f"{name}: expected codes of one model, got codes of models with the fingerprints "
            f"{' and '.join(known)}; encode all parts with one model"
        )
    return distinct[0] if len(distinct) == 1 else None
