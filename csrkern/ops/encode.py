"""encode: a linear layer and topk_relu in one operator."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from csrkern.codes import SparseCodes
from csrkern.ops.topk_relu import topk_relu
from csrkern.validation import check_k, check_same, check_tensor


def encode(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, k: int, pre_bias: Tensor | None = None
) -> SparseCodes:
    """topk_relu((x - pre_bias) @ weight.T + bias, k).

    Args:
        x: embeddings [n, d].
        weight: encoder weight [h, d], as in `nn.Linear(d, h).weight`.
        bias: latent bias [h].
        k: slots per row, 1 <= k <= h.
        pre_bias: [d], subtracted from x first.

    Returns:
        SparseCodes [n, k] over h latents; see `topk_relu`.

    Differentiable in x, weight, bias and pre_bias.

    Raises:
        TypeError, ValueError: if a tensor has the wrong dtype, device or shape, or k is out
            of range.

    Source: the encoder of CSR (Wen et al., ICML 2025, arXiv 2503.01776).
    """
    check_tensor("x", x, (None, None))
    check_tensor("weight", weight, (None, x.shape[1]))
    check_same("weight", weight, "x", x)
    for name, value, size in (("bias", bias, len(weight)), ("pre_bias", pre_bias, x.shape[1])):
        if value is not None:
            check_tensor(name, value, (size,))
            check_same(name, value, "x", x)
    check_k(k, len(weight), "h")
    centred = x if pre_bias is None else x - pre_bias
    return topk_relu(F.linear(centred, weight, bias), k)
