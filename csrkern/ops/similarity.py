"""similarity: the inner products between two sets of codes."""

from __future__ import annotations

from torch import Tensor

from csrkern import reference
from csrkern.codes import SparseCodes
from csrkern.validation import check_codes, check_same


def similarity(a: SparseCodes, b: SparseCodes) -> Tensor:
    """a · bᵀ, [n, m], for codes a [n, k] and b [m, k'] over the same latents.

    Differentiable in both sets of values.

    Raises:
        TypeError, ValueError: if either is not SparseCodes, or they differ in dim, dtype or
            device.
    """
    check_codes("a", a)
    check_codes("b", b, a.dim)
    check_same("b.values", b.values, "a.values", a.values)
    return reference.similarity(a, b)
