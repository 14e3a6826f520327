"""Which latents may be among the k best of a row: candidates of a verified encoding on a GPU.

x and the weight are rounded to bfloat16, with the norms of rows and of what rounding took. Their
product, block of rows by block of rows, stays in the L2 cache with the maximum of every GROUP
columns: cuBLAS and, while it is at the next block, a pass over what it wrote (plan A), or one
kernel whose epilogue takes the maxima (plan B). The k-th largest maximum, less twice the error
bound (encode_bounds.py), is what an entry must reach to be among the k best exactly. Groups that
reach it are read again, and their entries that do are candidates.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from csrkern.kernels import tuning
from csrkern.kernels._common import as_bits, batched_jit, narrow, power_of_2, registers, widen
from csrkern.kernels.encode.bounds import Bounds, least, slack_of
from csrkern.kernels.encode.product import block_rows
from csrkern.kernels.topk_relu import kth_largest

GROUP = 32  # columns that share a maximum, at most
CANDIDATE_REGISTERS = 200  # of rows of odd length, with the most groups
MOST_GROUPS = 4096  # maxima a program holds: those of further groups are joined

TILES = [
    {"BM": 128, "BN": 256, "BK": 64, "num_warps": 8, "num_stages": 3},
    {"BM": 128, "BN": 128, "BK": 64, "num_warps": 8, "num_stages": 4},
    {"BM": 128, "BN": 128, "BK": 32, "num_warps": 8, "num_stages": 2},
]
CONFIGS: list[tuning.Config] = [
    {"plan": "A", "streams": 2},
    {"plan": "A"},
    *({"plan": "B", **tile} for tile in TILES),
]


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
    TILE: tl.constexpr,
    SIFTED: tl.constexpr,  # by a second bound
):
    """Return the columns of each row that may be among its k best."""
    row = tl.program_id(0).to(tl.int64)
    listed = scratch + row * (2 * CAPACITY)
    score_bits_of = listed + CAPACITY
    columns_of = candidates + row * CAPACITY
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
        rank = tl.cumsum(hit.to(tl.int32), axis=0) - 1
        n_held = tl.sum(hit.to(tl.int32))
        tl.store(listed + rank, held, mask=hit & (rank < CAPACITY))
        tl.debug_barrier()
        total = CAPACITY + 1
        if n_held <= CAPACITY:
            total = 0
            for begin in range(0, n_held * (FOLDS * GROUP), BLOCK):
                e = begin + tl.arange(0, BLOCK)
                inside = e < n_held * (FOLDS * GROUP)
                group = tl.load(listed + e // (FOLDS * GROUP), mask=inside, other=0)
                rest = e % (FOLDS * GROUP)
                columns = (group + rest // GROUP * HELD) * GROUP + rest % GROUP
                inside = inside & (columns < h)
                score = widen(tl.load(products + row * h + columns, mask=inside, other=0))
                if bias is not None:
                    score += tl.load(bias + columns, mask=inside, other=0.0)
                hits = inside & (score >= bound)
                to = total + tl.cumsum(hits.to(tl.int32), axis=0) - 1
                score_bits = score.to(tl.int32, bitcast=True)
                tl.store(columns_of + to, columns, mask=hits & (to < CAPACITY))
                tl.store(score_bits_of + to, score_bits, mask=hits & (to < CAPACITY))
                total += tl.sum(hits.to(tl.int32))
        tl.debug_barrier()
        if total <= CAPACITY:
            count = total
            if SIFTED:
                # The k-th best of what was found is a better bound than that of the groups.
                every = tl.arange(0, CAPACITY)
                all_bits = tl.load(score_bits_of + every, mask=every < total, other=0)
                kth = kth_largest(tl.maximum(all_bits, 0), k, 0, 0).to(tl.float32, bitcast=True)
                bound = least(kth, slack, relative)
                count = 0
                for first in range(0, total, TILE):
                    c = first + tl.arange(0, TILE)
                    score_bits = tl.load(score_bits_of + c, mask=c < total, other=0)
                    column = tl.load(columns_of + c, mask=c < total, other=0)
                    kept = (score_bits.to(tl.float32, bitcast=True) >= bound) & (c < total)
                    slot = count + tl.cumsum(kept.to(tl.int32), axis=0) - 1
                    tl.debug_barrier()  # what is kept moves forward, onto what was loaded
                    tl.store(columns_of + slot, column, mask=kept)
                    count += tl.sum(kept.to(tl.int32))
    tl.store(counts + row, count)


def grouping(h: int, k: int) -> dict[str, int]:
    """Return GROUP columns that share a maximum, and FOLDS of their maxima in each HELD."""
    group = GROUP
    while group > 1 and h < 4 * k * group:  # k of fewer groups would bound little
        group //= 2
    groups = triton.cdiv(h, group)
    held = min(power_of_2(groups, 32), MOST_GROUPS)
    return {"GROUP": group, "FOLDS": triton.cdiv(groups, held), "HELD": held}


def candidates_plan(capacity: int) -> dict[str, int]:
    """Return constants of `candidates_kernel`; a thread of 8 warps holds 32 candidates at most."""
    tile = min(capacity, 2048)
    return {"CAPACITY": capacity, "BLOCK": 512, "TILE": tile, "SIFTED": capacity <= 8192}


class Proposer:
    """The candidates of a layer for its rows, block by block, from bfloat16 factors.

    `multiply` and `choose` are the two passes of `in_blocks`; the second leaves the candidates of
    its block in `candidates` [rows, CAPACITY] and their number in its part of `counts` [n].
    """

    def __init__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        of_rows: Bounds,
        limits: Tensor,
        k: int,
        capacity: int,
        counts: Tensor,
        *,
        plan: str,
        streams: int = 1,
        **tiles: int,
    ) -> None:
        n, h = len(x), len(weight)
        self.x, self.weight, self.bias, self.k = x, weight, bias, k
        self.of_rows, self.limits, self.counts = of_rows, limits, counts
        self.plan, self.tiles = plan, tiles
        dtype = torch.float32 if plan == "A" else torch.bfloat16
        self.rows = block_rows(n, h, dtype.itemsize)
        self.streams = streams if self.rows < n else 1
        self.folds = grouping(h, k)
        self.group = self.folds["GROUP"]
        self.groups = triton.cdiv(h, self.group)
        self.products = x.new_empty(self.streams, self.rows, h, dtype=dtype)
        self.maxima = x.new_empty(self.rows, self.groups, dtype=torch.float32)
        self.candidates = counts.new_empty(self.rows, capacity)
        self.lists = counts.new_empty(self.rows, 2, capacity)

    def multiply(self, begin: int, end: int, part: int) -> None:
        """Return the products of a block of rows."""
        block, products = self.x[begin:end], self.products[part, : end - begin]
        if self.plan == "A":
            _product(block, self.weight, products)
            return
        factors = block, self.weight
        if not block.is_cuda:
            factors = as_bits(block), as_bits(self.weight)
        tensors = *factors, self.bias, as_bits(products), self.maxima
        sizes = end - begin, len(self.weight), block.shape[1], self.groups
        grid = (_processors(block.device),)
        product_kernel[grid](*tensors, *sizes, **self.tiles, GROUP=self.group)

    def choose(self, begin: int, end: int, part: int) -> None:
        """Return the candidates of a block that was multiplied."""
        n, h = end - begin, len(self.weight)
        products = as_bits(self.products[part, :n])
        if self.plan == "A":
            maxima_kernel[(n, triton.cdiv(self.groups, 128))](
                products, self.bias, self.maxima, h, self.groups, GROUP=self.group,
                BLOCK=128, num_warps=4,
            )  # fmt: skip
        bounds = *(bound[begin:end] for bound in self.of_rows), self.limits
        lists = self.lists, self.candidates, self.counts[begin:end]
        # What is stored is off by at most 2^-8 of what it becomes.
        relative = 0.0 if self.plan == "A" else 1.01 * 2.0**-8
        sizes = h, self.x.shape[1], self.groups, self.k, relative
        constants = {**self.folds, **candidates_plan(self.candidates.shape[1])}
        candidates_kernel[(n,)](
            products, self.bias, self.maxima, *bounds, *lists, *sizes, **constants,
            num_warps=8, **registers(CANDIDATE_REGISTERS),
        )  # fmt: skip


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
