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
from csrkern.kernels._common import batched_jit, power_of_2
from csrkern.kernels.encode.bounds import (
    WEIGHT_NORM,
    Rounded,
    RoundedWeight,
    entry_exponent,
    least,
    scale_of,
    slack_of,
    sum_share,
)
from csrkern.kernels.topk_relu import kth_largest, places

GROUP = 16  # columns that share a maximum, at most: k groups fill no more than a row's candidates
MOST_GROUPS = 4096  # maxima a program holds: those of further groups are joined
SIFTED = 8192  # candidates that a second bound is taken from, at most
# Of the products, maxima and candidates of a block of rows. Four launches a block: the fewer, the
# better; and a product of many rows reads the weight less often.
BLOCK_BYTES = 3 * 2**28
LEAST_ROWS = 128  # of a block, and what its rows are a multiple of
FEW_ROWS = 64
PITCH = 256  # products of a row are a multiple of this, so that tiles are written whole

# A tile has BM + MORE rows. The largest takes three quarters of the registers for its sums, and
# reads the fewest bytes for each.
TILES: list[tuning.Config] = [
    {"BM": 128, "MORE": 64, "BN": 256, "BK": 64, "num_warps": 8, "num_stages": 3},
    {"BM": 128, "MORE": 0, "BN": 256, "BK": 64, "num_warps": 8, "num_stages": 3},
    {"BM": 128, "MORE": 0, "BN": 128, "BK": 64, "num_warps": 8, "num_stages": 4},
    {"BM": 128, "MORE": 0, "BN": 128, "BK": 32, "num_warps": 8, "num_stages": 2},
    {"BM": 64, "MORE": 0, "BN": 64, "BK": 64, "num_warps": 4, "num_stages": 3},  # of few rows
]


def tiles(n: int, device: torch.device) -> list[tuning.Config]:
    """Return the tiles of a product of n rows that fit a device, the best by default first."""
    *wide, few = TILES
    if device.type == "cuda":
        if torch.version.hip:  # 64 KiB of shared memory
            wide = wide[3:]
        else:  # others than Hopper lack registers for the widest
            hopper = torch.cuda.get_device_capability(device)[0] == 9
            wide = wide[:3] if hopper else wide[2:3]
    return [few, *wide] if n <= FEW_ROWS else wide


@triton.jit
def write_tile(
    total, begin_m, begin_n, products, scales, inverses, weight_scale, bias, maxima, n, h, pitch,
    groups, OFFSET: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Write sums of rows begin_m + OFFSET..., and the maxima of their groups."""
    i = OFFSET + tl.arange(0, BM)
    j = tl.arange(0, BN)
    column = begin_n + j
    inside = column < h
    # All in units of the largest row of the weight.
    total *= (tl.load(inverses + column, mask=inside, other=0.0) * weight_scale)[None, :]
    to = products + begin_m.to(tl.int64) * pitch + begin_n
    tl.store(to + (i[:, None] * pitch + j[None, :]), total.to(tl.float16))
    if bias is not None:
        scale = tl.load(scales + tl.minimum(begin_m + i, n - 1))
        shift = tl.load(bias + column, mask=inside, other=0.0) * weight_scale
        total += shift[None, :] * scale[:, None]
    best = tl.max(tl.reshape(total, [BM, BN // GROUP, GROUP]), axis=2)
    to = maxima + begin_m.to(tl.int64) * groups + begin_n // GROUP
    tl.store(to + (i[:, None] * groups + tl.arange(0, BN // GROUP)[None, :]), best)


@batched_jit
def product_kernel(
    x,  # [n, depth] float16, and so are the next two
    weight,  # [h, depth]
    products,  # [n to whole tiles, pitch], scaled, without the bias
    scales,  # [n] float32, of rows of x
    inverses,  # [h] float32, of scales of rows of the weight
    limits,  # [4] float32, of the weight
    bias,  # [h] float32, or None
    maxima,  # [n to whole tiles, groups] float32, scaled, with the bias, not rounded
    n,
    h,
    pitch,
    depth,
    groups,  # pitch / GROUP
    exponent,  # of an entry of the weight
    BM: tl.constexpr,
    MORE: tl.constexpr,  # rows of a second product with the same columns
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """x @ weight.T, and the maximum of every GROUP columns of it + bias.

    Programs stay, and take tiles column by column of tiles, so that those that run together
    share tiles of the weight, the larger factor. Tiles are written whole. Beyond the last column
    they are 0, which is the least bound of a group; what lies beyond the last row nobody reads.
    """
    tiles_m = tl.cdiv(n, BM + MORE)
    weight_scale = scale_of(tl.load(limits + 3), exponent)
    tiles = tiles_m * tl.cdiv(h, BN)
    # What a tile needs is computed anew: kept across tiles it would not fit in registers.
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), disable_licm=True):
        begin_m = tile % tiles_m * (BM + MORE)
        begin_n = tile // tiles_m * BN
        from_x = x + begin_m.to(tl.int64) * depth
        from_weight = weight + begin_n.to(tl.int64) * depth
        in_k = tl.arange(0, BK)
        of_x = (tl.minimum(tl.arange(0, BM), n - 1 - begin_m) * depth)[:, None] + in_k[None, :]
        of_weight = tl.minimum(tl.arange(0, BN), h - 1 - begin_n) * depth
        of_weight = of_weight[None, :] + in_k[:, None]
        total = tl.zeros([BM, BN], tl.float32)
        if MORE:
            of_more = tl.minimum(BM + tl.arange(0, MORE), n - 1 - begin_m) * depth
            of_more = of_more[:, None] + in_k[None, :]
            more = tl.zeros([MORE, BN], tl.float32)
        for begin in range(0, depth, BK):
            columns = tl.load(from_weight + begin + of_weight)
            total = tl.dot(tl.load(from_x + begin + of_x), columns, total)
            if MORE:
                more = tl.dot(tl.load(from_x + begin + of_more), columns, more)
        if MORE:
            write_tile(
                more, begin_m, begin_n, products, scales, inverses, weight_scale, bias, maxima, n,
                h, pitch, groups, BM, MORE, BN, GROUP,
            )  # fmt: skip
        write_tile(
            total, begin_m, begin_n, products, scales, inverses, weight_scale, bias, maxima, n,
            h, pitch, groups, 0, BM, BN, GROUP,
        )  # fmt: skip


@triton.jit
def find_candidates(
    row,  # int64
    products,  # [n, pitch] float16, scaled
    bias,  # [h] float32, or None
    maxima,  # [n, groups] float32, scaled
    scales,  # [n] float32, of rows of x
    norms,  # [n] float32
    residuals,  # [n] float32
    limits,  # [4] float32, of the weight
    found,  # [2 CAPACITY] int32: columns, bits
    counters,  # [3] int32, 0
    listed,  # [CAPACITY] int32: groups first, candidates last
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
    """List the columns of a row that may be among its k best, in any order; return their number.

    -1: there is no bound, or more columns than there is room for.
    """
    found_bits = found + CAPACITY
    # What is stored is off by at most 2^-11 of what it becomes.
    rounding = 1.01 * 2.0**-11
    share = sum_share(depth)
    relative = share + 1.01 * rounding
    scale = tl.load(scales + row)
    weight_scale = scale_of(tl.load(limits + 3), exponent)
    norm, residual = tl.load(norms + row), tl.load(residuals + row)
    slack = slack_of(norm, residual, scale, limits, weight_scale, depth, share, relative)
    count = -1
    if slack < float("inf"):
        held = tl.arange(0, HELD)
        best = tl.full([HELD], float("-inf"), tl.float32)
        for fold in tl.static_range(FOLDS):
            g = fold * HELD + held
            here = tl.load(maxima + row * groups + g, mask=g * GROUP < h, other=float("-inf"))
            best = tl.maximum(best, here)
        bits = tl.maximum(best.to(tl.int32, bitcast=True), 0)
        kth = kth_largest(bits, k, k // 8, 0).to(tl.float32, bitcast=True)
        # Maxima are of sums before they are stored.
        bound = least(kth, slack, share)
        hit = best >= bound
        bound -= tl.abs(bound) * (1.01 * rounding)
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
    return count


def grouping(h: int, k: int) -> dict[str, int]:
    """Return GROUP columns that share a maximum, and FOLDS of their maxima in each HELD."""
    group = GROUP
    while group > 1 and h < 4 * k * group:  # k of fewer groups would bound little
        group //= 2
    groups = triton.cdiv(h, group)
    held = min(power_of_2(groups, 32), MOST_GROUPS)
    return {"GROUP": group, "FOLDS": triton.cdiv(groups, held), "HELD": held}


def candidates_plan(h: int, k: int, capacity: int) -> dict[str, int]:
    """Return constants of `find_candidates`, and its warps: a thread holds 32 at most."""
    folds, sifted = grouping(h, k), min(capacity, SIFTED)
    most = max(folds["HELD"], sifted)
    warps = 2 if most <= 1024 else 4 if most <= 4096 else 8
    return {**folds, "CAPACITY": capacity, "BLOCK": 512, "SIFTED": sifted, "num_warps": warps}


def blocks(n: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """Return begin and end of blocks of n rows, of about one size."""
    most = max(BLOCK_BYTES // row_bytes // LEAST_ROWS, 1) * LEAST_ROWS
    rows = triton.cdiv(triton.cdiv(n, triton.cdiv(n, most)), LEAST_ROWS) * LEAST_ROWS
    return ((begin, min(begin + rows, n)) for begin in range(0, n, rows))


class Proposer:
    """The product of a layer for a block of its rows, and room for their candidates.

    Numbers of candidates are left in `counts` [n]: -1 for rows listed in `unproved`.
    """

    def __init__(
        self, n: int, h: int, k: int, capacity: int, tile: tuning.Config, device: torch.device
    ) -> None:
        self.tile = tile
        self.plan = candidates_plan(h, k, capacity)
        self.pitch = triton.cdiv(h, PITCH) * PITCH
        self.groups = self.pitch // self.plan["GROUP"]
        self.blocks = list(blocks(n, 2 * self.pitch + 4 * self.groups + 12 * capacity))
        rows = self.blocks[0][1]  # the others are no longer
        whole = tile["BM"] + tile["MORE"]
        whole *= triton.cdiv(rows, whole)
        self.products = torch.empty(whole, self.pitch, dtype=torch.float16, device=device)
        self.maxima = torch.empty(whole, self.groups, device=device)
        self.counts = torch.empty(n, dtype=torch.int32, device=device)
        self.candidates = self.counts.new_empty(rows, capacity)
        self.scratch = self.counts.new_empty(rows, 2 * capacity + 8)
        self.unproved = self.counts.new_empty(rows)

    def multiply(
        self, begin: int, end: int, x: Rounded, weight: RoundedWeight, bias: Tensor | None
    ) -> tuple[int, int, int, int]:
        """Multiply rows begin..end of x. Returns pitch, depth, groups and exponent."""
        h, depth = weight.rows.shape
        sizes = self.pitch, depth, self.groups, entry_exponent(WEIGHT_NORM, depth)
        rows = x.rows[begin:end]
        product_kernel[(_processors(rows.device),)](
            rows, weight.rows, self.products, x.scales[begin:end], *weight[1:], bias, self.maxima,
            end - begin, h, *sizes, **self.tile, GROUP=self.plan["GROUP"],
        )  # fmt: skip
        return sizes


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count
