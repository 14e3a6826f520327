"""encode on a GPU: blocks of rows whose pre-activations stay in the L2 cache.

A matrix product (cuBLAS) writes a block into one half of a scratch, and topk_relu reads it from
there while the next block goes to the other half. Memory is that of the scratch, whatever n · h is.

Cost: 2 n d h flops; from memory x once, the weight once a block (or once, if it fits beside the
scratch), and the codes. With `exact` (float32 with more slots than verified.py takes) the
product is a float64 one: tensor cores of data center GPUs do it at the float32 rate, and its error
of at most d 2^-53 ‖x‖ ‖w‖ is below float32 rounding by a factor of about 2^29 / d.
"""

from __future__ import annotations

import torch
from torch import Tensor

from csrkern.kernels import tuning
from csrkern.kernels._blocks import in_blocks
from csrkern.kernels._common import on_device_of
from csrkern.kernels.topk_relu import MAX_K, new_scratch, topk_relu_into

# A quarter of an L2 cache of 50 MB; two blocks are there at a time.
BLOCK_BYTES = 12 * 2**20
# A weight in bfloat16 costs 2 rows flops for 2 bytes: with fewer rows than 184 a product at
# 790 TFLOP/s waits for a memory of 4.3 TB/s.
LEAST_ROWS = 256
CONFIGS: list[tuning.Config] = [{"streams": 2}, {"streams": 1}]


def block_rows(n: int, h: int, itemsize: int) -> int:
    """Rows of a block, a multiple of 128 unless n is smaller."""
    return min(n, max(LEAST_ROWS, BLOCK_BYTES // (h * itemsize) // 128 * 128))


def encode(
    x: Tensor, weight: Tensor, bias: Tensor | None, pre_bias: Tensor | None, k: int, exact: bool
) -> tuple[Tensor, Tensor]:
    """Values and indices [n, k] of topk_relu((x − pre_bias) @ weight.T + bias, k)."""
    (n, d), h = x.shape, len(weight)
    values, indices = weight.new_empty(n, k), weight.new_empty(n, k, dtype=torch.int32)
    if n == 0:
        return values, indices
    dtype = torch.float64 if exact else weight.dtype
    factor, shift = weight.to(dtype), None if bias is None else bias.to(dtype)
    # The same blocks on one stream as on two: another shape may be summed in another order.
    rows = block_rows(n, h, factor.itemsize)
    # A sort, which more slots need, allocates, and takes far longer than the product.
    configs = CONFIGS if k <= MAX_K and rows < n else CONFIGS[1:]
    scratch = factor.new_empty(len(configs), rows, h)
    rounded = weight.new_empty(rows, h) if exact else None
    keys = new_scratch(rows if k <= MAX_K else 0, h, k, weight.device)

    def write(begin: int, end: int, part: int) -> None:
        block = x[begin:end] if pre_bias is None else x[begin:end] - pre_bias
        block = block.to(weight.dtype).to(dtype)
        pre = scratch[part, : end - begin]
        if shift is None:
            torch.mm(block, factor.T, out=pre)
        else:
            torch.addmm(shift, block, factor.T, out=pre)

    def read(begin: int, end: int, part: int) -> None:
        pre = scratch[part, : end - begin]
        if rounded is not None:
            pre = rounded[: end - begin].copy_(pre)
        out = values[begin:end], indices[begin:end]
        if k <= MAX_K:
            topk_relu_into(pre, k, None, *out, keys)
            return
        for into, selected in zip(out, torch.ops.csrkern.topk_relu(pre, k, None), strict=True):
            into.copy_(selected)

    def run(config: tuning.Config) -> None:
        in_blocks(n, rows, config["streams"], weight.device, write, read)

    with on_device_of(weight):
        tuning.launch("encode fast", (n, d, h, k, str(weight.dtype)), configs, run)
    return values, indices
