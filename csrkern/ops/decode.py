"""decode: the weighted sum of dictionary rows that codes stand for."""

from __future__ import annotations

from torch import Tensor

from csrkern import reference
from csrkern.codes import SparseCodes
from csrkern.validation import check_codes, check_same, check_tensor


def decode(codes: SparseCodes, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Σ_j values_j · weight[indices_j] + bias, [n, d].

    Args:
        codes: SparseCodes [n, k] over h latents.
        weight: dictionary [h, d], one row a latent.
        bias: [d].

    Differentiable in the values, weight and bias.

    Raises:
        TypeError, ValueError: if a tensor has the wrong dtype, device or shape.
    """
    check_codes("codes", codes)
    check_tensor("weight", weight, (codes.dim, None))
    check_same("weight", weight, "codes.values", codes.values)
    if bias is not None:
        check_tensor("bias", bias, (weight.shape[1],))
        check_same("bias", bias, "weight", weight)
    return reference.decode(codes, weight, bias)
