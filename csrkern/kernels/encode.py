"""encode on a GPU: blocks of rows whose pre-activations stay in the L2 cache.

A matrix product (cuBLAS) writes a block into one reused scratch, and topk_relu reads it from
there. Memory is that of the scratch, whatever n · h is.

Cost: 2 n d h flops; from memory x once, the weight once a block (or once, if it fits beside the
scratch), and the codes. With `exact` (float32 with more slots than encode_verified.py takes) the
product is a float64 one: tensor cores of data centre GPUs do it at the float32 rate, and its error
of at most d 2^-53 ‖x‖ ‖w‖ is below float32 rounding by a factor of about 2^29 / d.
"""

from __future__ import annotations

import torch
from torch import Tensor

from csrkern.kernels.topk_relu import MAX_K, topk_relu_into

# Half of an L2 cache of 50 MB. Products of fewer rows than this do not fill 132 processors
# with tiles of 128 × 256.
SCRATCH_BYTES = 24 * 2**20
LEAST_ROWS = 256


def block_rows(n: int, h: int, itemsize: int) -> int:
    """Rows of a block, a multiple of 128 unless n is smaller."""
    return min(n, max(LEAST_ROWS, SCRATCH_BYTES // (h * itemsize) // 128 * 128))


def encode(
    x: Tensor, weight: Tensor, bias: Tensor | None, pre_bias: Tensor | None, k: int, exact: bool
) -> tuple[Tensor, Tensor]:
    """Values and indices [n, k] of topk_relu((x − pre_bias) @ weight.T + bias, k)."""
    n, h = len(x), len(weight)
    values, indices = weight.new_empty(n, k), weight.new_empty(n, k, dtype=torch.int32)
    if n == 0:
        return values, indices
    dtype = torch.float64 if exact else weight.dtype
    factor, shift = weight.to(dtype), None if bias is None else bias.to(dtype)
    rows = block_rows(n, h, factor.itemsize)
    scratch = factor.new_empty(rows, h)
    rounded = weight.new_empty(rows, h) if exact else scratch
    for begin in range(0, n, rows):
        end = min(begin + rows, n)
        block = x[begin:end] if pre_bias is None else x[begin:end] - pre_bias
        block = block.to(weight.dtype).to(dtype)
        pre, out = scratch[: end - begin], rounded[: end - begin]
        if shift is None:
            torch.mm(block, factor.T, out=pre)
        else:
            torch.addmm(shift, block, factor.T, out=pre)
        if exact:
            out.copy_(pre)
        _select(out, k, values[begin:end], indices[begin:end])
    return values, indices


def _select(pre: Tensor, k: int, values: Tensor, indices: Tensor) -> None:
    if k <= MAX_K:
        topk_relu_into(pre, k, None, values, indices)
        return
    found = torch.ops.csrkern.topk_relu(pre, k, None)
    values.copy_(found[0])
    indices.copy_(found[1])
