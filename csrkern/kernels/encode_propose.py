"""Which latents may be among the k best of a row: candidates of a verified encoding on a GPU.

x and the weight are rounded to bfloat16, with the norms of rows and of what rounding took. Their
product, block of rows by block of rows, stays in the L2 cache with the maximum of every GROUP
columns: cuBLAS and a pass over what it wrote (plan A), or one kernel whose epilogue takes the
maxima (plan B). The k-th largest maximum, less twice the error bound, is what an entry must reach
to be among the k best exactly. Groups that reach it are read again, and their entries that do are
candidates.

|error| <= ‖x − x̃‖ ‖w‖ + ‖x̃‖ ‖w − w̃‖, the rounding of float32 sums (Higham, Accuracy and Stability
of Numerical Algorithms, 3.1, with four times the unit, as tensor cores may truncate), and that
of a product stored in bfloat16.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from csrkern.kernels import tuning
from csrkern.kernels._common import as_bits, batched_jit, narrow, power_of_2, widen
from csrkern.kernels.encode import block_rows
from csrkern.kernels.topk_relu import kth_largest

GROUP = 32  # columns that share a maximum, at most
MOST_GROUPS = 4096  # maxima a program holds: those of further groups are joined

TILES = [
    {"BM": 128, "BN": 256, "BK": 64, "num_warps": 8, "num_stages": 3},
    {"BM": 128, "BN": 128, "BK": 64, "num_warps": 8, "num_stages": 4},
    {"BM": 128, "BN": 128, "BK": 32, "num_warps": 8, "num_stages": 2},
]
CONFIGS: list[tuning.Config] = [{"plan": "A"}, *({"plan": "B", **tile} for tile in TILES)]


class Bounds(NamedTuple):
    """What bounds the error of a product: of one row, or the largest of a weight's."""

    norm: Tensor
    residual: Tensor


@batched_jit
def round_rows_kernel(
    rows,  # [n, d] float32, rows of stride
    stride,
    rounded,  # [n, d] the bits of bfloat16
    norms,  # [n] float32, and so is the next
    residuals,
    d,
    BLOCK: tl.constexpr,
):
    """Rows in bfloat16, and the L2 norms of rows and of what rounding took from them."""
    row = tl.program_id(0).to(tl.int64)
    square = tl.zeros([BLOCK], tl.float32)
    lost = tl.zeros([BLOCK], tl.float32)
    for begin in range(0, d, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        x = tl.load(rows + row * stride + columns, mask=columns < d, other=0.0)
        bits = narrow(x, tl.int16)
        tl.store(rounded + row * d + columns, bits, mask=columns < d)
        rest = x - widen(bits)
        square += x * x
        lost += rest * rest
    tl.store(norms + row, tl.sqrt(tl.sum(square)))
    tl.store(residuals + row, tl.sqrt(tl.sum(lost)))


@batched_jit
def product_kernel(
    x,  # [n, d] bfloat16 (its bits where interpreted)
    weight,  # [h, d] the same
    bias,  # [h] float32, or None
    products,  # [n, h] the bits of bfloat16, without the bias
    maxima,  # [n, groups] float32, with the bias
    n,
    h,
    d,
    groups,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Plan B: x @ weight.T, and the maximum of every GROUP columns of it + bias.

    Programs stay, and take tiles column by column of tiles, so that those that run together
    share tiles of the weight, the larger factor.
    """
    tiles_m = tl.cdiv(n, BM)
    for tile in range(tl.program_id(0), tiles_m * tl.cdiv(h, BN), tl.num_programs(0)):
        i = (tile % tiles_m * BM + tl.arange(0, BM)).to(tl.int64)
        j = tile // tiles_m * BN + tl.arange(0, BN)
        in_k = tl.arange(0, BK)
        from_x = x + i[:, None] * d + in_k[None, :]
        from_weight = weight + j.to(tl.int64)[None, :] * d + in_k[:, None]
        total = tl.zeros([BM, BN], tl.float32)
        for begin in range(0, d, BK):
            inside = begin + in_k < d
            a = tl.load(from_x + begin, mask=(i < n)[:, None] & inside[None, :], other=0)
            b = tl.load(from_weight + begin, mask=(j < h)[None, :] & inside[:, None], other=0)
            if a.dtype == tl.int16:  # the interpreter's bfloat16 is unreliable
                total = tl.dot(widen(a), widen(b), total, input_precision="ieee")
            else:
                total = tl.dot(a, b, total)
        bits = narrow(total, tl.int16)
        to = products + i[:, None] * h + j[None, :]
        tl.store(to, bits, mask=(i < n)[:, None] & (j < h)[None, :])
        scores = widen(bits)
        if bias is not None:
            scores += tl.load(bias + j, mask=j < h, other=0.0)[None, :]
        scores = tl.where((j < h)[None, :], scores, float("-inf"))
        best = tl.max(tl.reshape(scores, [BM, BN // GROUP, GROUP]), axis=2)
        g = tile // tiles_m * (BN // GROUP) + tl.arange(0, BN // GROUP)
        to = maxima + i[:, None] * groups + g[None, :]
        tl.store(to, best, mask=(i < n)[:, None] & (g < groups)[None, :])


@batched_jit
def maxima_kernel(
    products,  # [n, h] float32
    bias,  # [h] float32, or None
    maxima,  # [n, groups] float32
    h,
    groups,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,  # groups
):
    """Plan A's second pass: the maximum of every GROUP columns of products + bias."""
    row = tl.program_id(0).to(tl.int64)
    g = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    columns = g[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    scores = tl.load(products + row * h + columns, mask=columns < h, other=float("-inf"))
    if bias is not None:
        scores += tl.load(bias + columns, mask=columns < h, other=0.0)
    tl.store(maxima + row * groups + g, tl.max(scores, axis=1), mask=g < groups)


@triton.jit
def upper(norm, d):
    """What a float32 norm of d entries is at most: rounding, and squares that underflow."""
    size = tl.cast(d, tl.float64)
    return norm.to(tl.float64) * (1 + (size + 4) * 2.0**-24) + tl.sqrt(size) * 2.0**-62


@triton.jit
def slack_of(norm, residual, limits, d, relative):
    """How far a product may be from exact, but for `relative` times itself; inf: no bound."""
    norm = upper(norm, d)
    residual = upper(residual, d)
    weight_norm = upper(tl.load(limits), d)
    weight_residual = upper(tl.load(limits + 1), d)
    bias_norm = tl.load(limits + 2).to(tl.float64)
    size = norm * weight_norm + bias_norm
    slack = residual * weight_norm + (norm + residual) * weight_residual
    # Tensor cores may truncate where a processor rounds: four units instead of one.
    slack += (tl.cast(d, tl.float64) + 4) * (1.01 * 2.0**-22) * size + relative * bias_norm
    slack += tl.cast(d, tl.float64) * 2.0**-124 * (1 + weight_norm + norm)
    return tl.where(size < 1e38, slack, float("inf"))


@triton.jit
def least(kth, slack, relative):
    """What entries that exceed the k-th best exactly, `kth` here, are at least here."""
    bound = (kth.to(tl.float64) * (1 - relative) - 2 * slack) / (1 + relative)
    near = bound.to(tl.float32)
    # Below it in float32, too.
    return near - tl.abs(near) * 2.0**-22 - 2.0**-140


@batched_jit
def candidates_kernel(
    products,  # [n, h] float32 or the bits of bfloat16
    bias,  # [h] float32, or None
    maxima,  # [n, groups] float32
    norms,  # [n] float32
    residuals,  # [n] float32
    limits,  # [3] float32: the weight's norm and residual, the bias's largest entry
    scratch,  # [n, 2, CAPACITY] int32: groups, and bits
    candidates,  # [n, CAPACITY] int32
    counts,  # [n] int32: candidates, or -1 for rows to sum in full
    h,
    d,
    groups,
    k,
    relative,
    GROUP: tl.constexpr,
    FOLDS: tl.constexpr,  # groups that are held as one
    HELD: tl.constexpr,
    CAPACITY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The columns of each row that may be among its k best."""
    row = tl.program_id(0).to(tl.int64)
    listed = scratch + row * (2 * CAPACITY)
    found_bits = listed + CAPACITY
    found = candidates + row * CAPACITY
    slack = slack_of(tl.load(norms + row), tl.load(residuals + row), limits, d, relative)
    count = -1
    if slack < float("inf"):
        held = tl.arange(0, HELD)
        best = tl.full([HELD], float("-inf"), tl.float32)
        for fold in tl.static_range(FOLDS):
            g = fold * HELD + held
            here = tl.load(maxima + row * groups + g, mask=g < groups, other=float("-inf"))
            best = tl.maximum(best, here)
        bits = tl.maximum(best.to(tl.int32, bitcast=True), 0)
        kth = kth_largest(bits, k, k // 8, 0).to(tl.float32, bitcast=True)
        bound = least(kth, slack, relative)

        hit = best >= bound
        place = tl.cumsum(hit.to(tl.int32), axis=0) - 1
        n_held = tl.sum(hit.to(tl.int32))
        tl.store(listed + place, held, mask=hit & (place < CAPACITY))
        tl.debug_barrier()
        total = CAPACITY + 1
        if n_held <= CAPACITY:
            total = 0
            for begin in range(0, n_held * (FOLDS * GROUP), BLOCK):
                e = begin + tl.arange(0, BLOCK)
                inside = e < n_held * (FOLDS * GROUP)
                one = tl.load(listed + e // (FOLDS * GROUP), mask=inside, other=0)
                rest = e % (FOLDS * GROUP)
                columns = (one + rest // GROUP * HELD) * GROUP + rest % GROUP
                inside = inside & (columns < h)
                score = widen(tl.load(products + row * h + columns, mask=inside, other=0))
                if bias is not None:
                    score += tl.load(bias + columns, mask=inside, other=0.0)
                hits = inside & (score >= bound)
                to = total + tl.cumsum(hits.to(tl.int32), axis=0) - 1
                score_bits = score.to(tl.int32, bitcast=True)
                tl.store(found + to, columns, mask=hits & (to < CAPACITY))
                tl.store(found_bits + to, score_bits, mask=hits & (to < CAPACITY))
                total += tl.sum(hits.to(tl.int32))
        tl.debug_barrier()
        if total <= CAPACITY:
            # The k-th best of what was found is a better bound than that of the groups.
            c = tl.arange(0, CAPACITY)
            all_bits = tl.load(found_bits + c, mask=c < total, other=0)
            column = tl.load(found + c, mask=c < total, other=0)
            closer = kth_largest(tl.maximum(all_bits, 0), k, 0, 0).to(tl.float32, bitcast=True)
            kept = all_bits.to(tl.float32, bitcast=True) >= least(closer, slack, relative)
            kept = kept & (c < total)
            slot = tl.cumsum(kept.to(tl.int32), axis=0) - 1
            tl.debug_barrier()
            tl.store(found + slot, column, mask=kept)
            count = tl.sum(kept.to(tl.int32))
    tl.store(counts + row, count)


def round_rows(rows: Tensor) -> tuple[Tensor, Bounds]:
    """Rows [n, d] in bfloat16, and the norms [n] of each and of what rounding took from it."""
    n, d = rows.shape
    rounded = rows.new_empty(n, d, dtype=torch.bfloat16)
    norms, residuals = rows.new_empty(2, n)
    block = min(power_of_2(d, 32), 1024)
    round_rows_kernel[(n,)](
        rows, rows.stride(0), as_bits(rounded), norms, residuals, d, BLOCK=block, num_warps=4
    )
    return rounded, Bounds(norms, residuals)


def propose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    of_rows: Bounds,
    limits: Tensor,
    k: int,
    candidates: Tensor,
    counts: Tensor,
    *,
    plan: str,
    **tiles: int,
) -> None:
    """Candidates [n, CAPACITY] and their counts [n], from bfloat16 factors."""
    (n, d), h = x.shape, len(weight)
    dtype = torch.float32 if plan == "A" else torch.bfloat16
    rows = block_rows(n, h, dtype.itemsize)
    group = GROUP
    while group > 1 and h < 4 * k * group:  # k of fewer groups would bound little
        group //= 2
    groups = triton.cdiv(h, group)
    scratch = x.new_empty(rows, h, dtype=dtype)
    maxima = x.new_empty(rows, groups, dtype=torch.float32)
    capacity = candidates.shape[1]
    lists = candidates.new_empty(rows, 2, capacity)
    held = min(power_of_2(groups, 32), MOST_GROUPS)
    for begin in range(0, n, rows):
        end = min(begin + rows, n)
        block, products = x[begin:end], scratch[: end - begin]
        if plan == "A":
            _product(block, weight, products)
            grid = (end - begin, triton.cdiv(groups, 128))
            maxima_kernel[grid](
                products, bias, maxima, h, groups, GROUP=group, BLOCK=128, num_warps=4
            )
        else:
            factors = (block, weight) if x.is_cuda else (as_bits(block), as_bits(weight))
            product_kernel[(_processors(x.device),)](
                *factors, bias, as_bits(products), maxima, end - begin, h, d, groups, **tiles,
                GROUP=group,
            )  # fmt: skip
        candidates_kernel[(end - begin,)](
            as_bits(products),
            bias,
            maxima,
            of_rows.norm[begin:end],
            of_rows.residual[begin:end],
            limits,
            lists,
            candidates[begin:end],
            counts[begin:end],
            h,
            d,
            groups,
            k,
            # What is stored is off by at most 2^-8 of what it becomes.
            0.0 if plan == "A" else 1.01 * 2.0**-8,
            GROUP=group,
            FOLDS=triton.cdiv(groups, held),
            HELD=held,
            CAPACITY=capacity,
            BLOCK=512,
            num_warps=8,
        )


def _product(block: Tensor, weight: Tensor, out: Tensor) -> None:
    """bfloat16 factors, summed and stored in float32."""
    if block.is_cuda:
        # With a bfloat16 result cuBLAS may add partial sums in bfloat16, which no bound covers.
        torch.mm(block, weight.T, out_dtype=torch.float32, out=out)
    else:
        torch.mm(block.float(), weight.float().T, out=out)


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count
