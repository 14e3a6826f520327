"""Which latents may be among the k best of a row: candidates of a verified encoding on a GPU.

x and the weight are scaled and rounded to float16, with the norms of rows and of what rounding
took (bounds.py); bfloat16 would lose eight times as much, and propose twice as many. One kernel
multiplies them, block of rows by block of rows, and writes the maximum of every GROUP columns
beside their product. The k-th largest maximum, less twice the error bound, is
what an entry must reach to be among the k best exactly. Maxima are read first; the product is
read only in groups that reach the bound, and their entries that do are candidates.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from csrkern.kernels import tuning
from csrkern.kernels._common import batched_jit, power_of_2, registers
from csrkern.kernels.encode.bounds import (
    WEIGHT_NORM,
    Rounded,
    RoundedWeight,
    entry_exponent,
    least,
    scale_of,
    slack_of,
)
from csrkern.kernels.topk_relu import kth_largest, places

GROUP = 16  # columns that share a maximum, at most: k groups fill no more than a row's candidates
CANDIDATE_REGISTERS = 200  # of rows of odd length, with the most groups
MOST_GROUPS = 4096  # maxima a program holds: those of further groups are joined
SIFTED = 8192  # candidates that a second bound is taken from, at most
# Of the products, maxima and candidates of a block of rows. Four launches a block: the fewer, the
# better; and a product of many rows reads the weight less often.
BLOCK_BYTES = 3 * 2**28
LEAST_ROWS = 128  # of a block, and what its rows are a multiple of
FEW_ROWS = 64
PITCH = 16  # products of a row are a multiple of this, all written 16 bytes at a time

TILES: list[tuning.Config] = [
    {"BM": 128, "BN": 256, "BK": 64, "num_warps": 8, "num_stages": 3},
    {"BM": 128, "BN": 128, "BK": 64, "num_warps": 8, "num_stages": 4},
    {"BM": 128, "BN": 128, "BK": 32, "num_warps": 8, "num_stages": 2},
    {"BM": 64, "BN": 64, "BK": 64, "num_warps": 4, "num_stages": 3},  # of few rows
]


def tiles(n: int, device: torch.device) -> list[tuning.Config]:
    """Return the tiles of a product of n rows that fit a device, the best by default first."""
    *wide, few = TILES
    if device.type == "cuda":
        if torch.version.hip:  # 64 KiB of shared memory
            wide = wide[2:]
        else:  # others than Hopper lack registers for the widest
            hopper = torch.cuda.get_device_capability(device)[0] == 9
            wide = wide[:2] if hopper else wide[1:2]
    return [few, *wide] if n <= FEW_ROWS else wide


@batched_jit
def product_kernel(
    x,  # [n, depth] float16, and so are the next two
    weight,  # [h, depth]
    products,  # [n, pitch], scaled, without the bias; 0 beyond h
    scales,  # [n] float32, of rows of x
    inverses,  # [h] float32, of scales of rows of the weight
    limits,  # [4] float32, of the weight
    bias,  # [h] float32, or None
    maxima,  # [n, groups] float32, scaled, with the bias, of sums that are not rounded
    n,
    h,
    pitch,
    depth,
    groups,
    exponent,  # of an entry of the weight
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """x @ weight.T, and the maximum of every GROUP columns of it + bias.

    Programs stay, and take tiles column by column of tiles, so that those that run together
    share tiles of the weight, the larger factor.
    """
    tiles_m = tl.cdiv(n, BM)
    weight_scale = scale_of(tl.load(limits + 3), exponent)
    for tile in range(tl.program_id(0), tiles_m * tl.cdiv(h, BN), tl.num_programs(0)):
        i = tile % tiles_m * BM + tl.arange(0, BM)
        j = tile // tiles_m * BN + tl.arange(0, BN)
        in_k = tl.arange(0, BK)
        # Beyond the last row and column they are read again: no masks.
        from_x = x + tl.minimum(i, n - 1).to(tl.int64)[:, None] * depth + in_k[None, :]
        from_weight = weight + tl.minimum(j, h - 1).to(tl.int64)[None, :] * depth + in_k[:, None]
        total = tl.zeros([BM, BN], tl.float32)
        for begin in range(0, depth, BK):
            total = tl.dot(tl.load(from_x + begin), tl.load(from_weight + begin), total)
        in_rows, in_columns = i < n, j < h
        # All in units of the largest row of the weight.
        total *= (tl.load(inverses + j, mask=in_columns, other=0.0) * weight_scale)[None, :]
        to = products + i.to(tl.int64)[:, None] * pitch + j[None, :]
        tl.store(to, total.to(tl.float16), mask=in_rows[:, None] & (j < pitch)[None, :])
        if bias is None:
            shift = tl.where(in_columns, 0.0, float("-inf"))
        else:
            shift = tl.load(bias + j, mask=in_columns, other=float("-inf")) * weight_scale
        scale = tl.load(scales + i, mask=in_rows, other=1.0)
        scores = total + shift[None, :] * scale[:, None]
        scores = tl.reshape(scores, [BM, BN // GROUP, GROUP])
        g = tile // tiles_m * (BN // GROUP) + tl.arange(0, BN // GROUP)
        to = maxima + i.to(tl.int64)[:, None] * groups + g[None, :]
        tl.store(to, tl.max(scores, axis=2), mask=in_rows[:, None] & (g < groups)[None, :])


@batched_jit
def candidates_kernel(
    products,  # [n, pitch] float16, scaled
    bias,  # [h] float32, or None
    maxima,  # [n, groups] float32, scaled
    scales,  # [n] float32, of rows of x
    norms,  # [n] float32
    residuals,  # [n] float32
    limits,  # [4] float32, of the weight
    scratch,  # [n, 2 CAPACITY + 4] int32: columns, bits, and the numbers of three lists
    candidates,  # [n, CAPACITY] int32
    counts,  # [n] int32: candidates, or -1 for rows to sum in full
    unproved,  # [n] int32: rows to sum in full
    n_unproved,  # [1] int32
    h,
    pitch,
    depth,
    groups,
    exponent,  # of an entry of the weight
    k,
    GROUP: tl.constexpr,
    FOLDS: tl.constexpr,  # groups that are held as one
    HELD: tl.constexpr,
    CAPACITY: tl.constexpr,
    BLOCK: tl.constexpr,
    SIFTED: tl.constexpr,  # of candidates, for the second bound
):
    """Return the columns of each row that may be among its k best, in any order."""
    row = tl.program_id(0).to(tl.int64)
    found = scratch + row * (2 * CAPACITY + 4)
    found_bits = found + CAPACITY
    counters = found_bits + CAPACITY
    listed = candidates + row * CAPACITY  # groups first, candidates last
    # What is stored is off by at most 2^-11 of what it becomes.
    relative = 1.01 * 2.0**-11
    tl.store(counters + tl.arange(0, 4), tl.zeros([4], tl.int32))
    scale = tl.load(scales + row)
    weight_scale = scale_of(tl.load(limits + 3), exponent)
    norm, residual = tl.load(norms + row), tl.load(residuals + row)
    slack = slack_of(norm, residual, scale, limits, weight_scale, depth, relative)
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
        # Maxima are of sums before they are stored: `relative` counts for entries only.
        bound = least(kth, slack, 0.0)
        hit = best >= bound
        bound -= tl.abs(bound) * (1.01 * relative)
        tl.debug_barrier()  # the counters are 0
        place = places(counters, hit)
        tl.store(listed + place, held, mask=hit & (place < CAPACITY))
        tl.debug_barrier()
        n_held = tl.load(counters)
        total = CAPACITY + 1
        if n_held <= CAPACITY:
            for begin in range(0, n_held * (FOLDS * GROUP), BLOCK):
                e = begin + tl.arange(0, BLOCK)
                inside = e < n_held * (FOLDS * GROUP)
                group = tl.load(listed + e // (FOLDS * GROUP), mask=inside, other=0)
                rest = e % (FOLDS * GROUP)
                columns = (group + rest // GROUP * HELD) * GROUP + rest % GROUP
                inside = inside & (columns < h)
                score = tl.load(products + row * pitch + columns, mask=inside, other=0.0)
                score = score.to(tl.float32)
                if bias is not None:
                    shift = tl.load(bias + columns, mask=inside, other=0.0)
                    score += shift * weight_scale * scale
                hits = inside & (score >= bound)
                to = places(counters + 1, hits)
                tl.store(found + to, columns, mask=hits & (to < CAPACITY))
                score_bits = score.to(tl.int32, bitcast=True)
                tl.store(found_bits + to, score_bits, mask=hits & (to < CAPACITY))
            tl.debug_barrier()
            total = tl.load(counters + 1)
        if total <= CAPACITY:
            # The k-th best of what was found, or of some of it, bounds better than groups do.
            some = tl.arange(0, SIFTED)
            some_bits = tl.load(found_bits + some, mask=some < total, other=0)
            kth = kth_largest(tl.maximum(some_bits, 0), k, 0, 0).to(tl.float32, bitcast=True)
            bound = tl.maximum(bound, least(kth, slack, relative))
            for first in range(0, total, BLOCK):
                c = first + tl.arange(0, BLOCK)
                score_bits = tl.load(found_bits + c, mask=c < total, other=0)
                column = tl.load(found + c, mask=c < total, other=0)
                kept = (score_bits.to(tl.float32, bitcast=True) >= bound) & (c < total)
                tl.store(listed + places(counters + 2, kept), column, mask=kept)
            tl.debug_barrier()
            count = tl.load(counters + 2)
    tl.store(counts + row, count)
    if count < 0:
        to = tl.atomic_add(n_unproved, 1, sem="relaxed")
        tl.store(unproved + to, row.to(tl.int32))


def grouping(h: int, k: int) -> dict[str, int]:
    """Return GROUP columns that share a maximum, and FOLDS of their maxima in each HELD."""
    group = GROUP
    while group > 1 and h < 4 * k * group:  # k of fewer groups would bound little
        group //= 2
    groups = triton.cdiv(h, group)
    held = min(power_of_2(groups, 32), MOST_GROUPS)
    return {"GROUP": group, "FOLDS": triton.cdiv(groups, held), "HELD": held}


def candidates_plan(h: int, k: int, capacity: int) -> dict[str, int]:
    """Return constants of `candidates_kernel`, and its warps: a thread holds 32 at most."""
    folds, sifted = grouping(h, k), min(capacity, SIFTED)
    warps = 4 if max(folds["HELD"], sifted) <= 1024 else 8
    return {**folds, "CAPACITY": capacity, "BLOCK": 512, "SIFTED": sifted, "num_warps": warps}


def blocks(n: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """Return begin and end of blocks of n rows, of about one size."""
    most = max(BLOCK_BYTES // row_bytes // LEAST_ROWS, 1) * LEAST_ROWS
    rows = triton.cdiv(triton.cdiv(n, triton.cdiv(n, most)), LEAST_ROWS) * LEAST_ROWS
    return ((begin, min(begin + rows, n)) for begin in range(0, n, rows))


class Proposer:
    """The candidates of a layer for a block of its rows, from float16 factors.

    `propose` leaves those of a block in `candidates` [rows, CAPACITY], and their number in its part
    of `counts` [n]: -1 for rows that it lists in `unproved`, of which there are `n_unproved`.
    """

    def __init__(self, n: int, h: int, k: int, capacity: int, device: torch.device) -> None:
        self.k = k
        self.plan = candidates_plan(h, k, capacity)
        self.group = self.plan["GROUP"]
        self.groups = triton.cdiv(h, self.group)
        pitch = triton.cdiv(h, PITCH) * PITCH
        self.blocks = list(blocks(n, 2 * pitch + 4 * self.groups + 12 * capacity))
        rows = self.blocks[0][1]  # the others are no longer
        self.products = torch.empty(rows, pitch, dtype=torch.float16, device=device)
        self.maxima = torch.empty(rows, self.groups, device=device)
        self.counts = torch.empty(n, dtype=torch.int32, device=device)
        self.candidates = self.counts.new_empty(rows, capacity)
        self.scratch = self.counts.new_empty(rows, 2 * capacity + 4)
        self.unproved = self.counts.new_empty(rows)

    def propose(
        self, begin: int, end: int, x: Rounded, weight: RoundedWeight, bias: Tensor | None,
        n_unproved: Tensor, tile: tuning.Config,
    ) -> None:  # fmt: skip
        """Find those of rows begin..end of x."""
        h, depth = weight.rows.shape
        rows, *of_rows = (part[begin:end] for part in x)
        exponent = entry_exponent(WEIGHT_NORM, depth)
        sizes = h, self.products.shape[1], depth, self.groups, exponent
        product_kernel[(_processors(rows.device),)](
            rows, weight.rows, self.products, of_rows[0], *weight[1:], bias, self.maxima,
            end - begin, *sizes, **tile, GROUP=self.group,
        )  # fmt: skip
        lists = self.scratch, self.candidates, self.counts[begin:end], self.unproved, n_unproved
        candidates_kernel[(end - begin,)](
            self.products, bias, self.maxima, *of_rows, weight.limits, *lists, *sizes, self.k,
            **self.plan, **registers(CANDIDATE_REGISTERS),
        )  # fmt: skip


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count
