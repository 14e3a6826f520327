"""info_nce on a GPU: the scores of one row at a time, summed from postings and thrown away.

A warp owns a buffer of m scores that is zero between rows. It adds a row's scores up there
(kernels/similarity.py), then walks the same postings again: the first visit to a column takes
its score and leaves 0, so every score that is not zero is met once and the buffer is clean
again. Pairs without a common latent score 0 and are only counted.

Cost: about n m k² / h pairs of active entries, met three times (summed, largest, exponentials),
12 to 16 bytes each, mostly from cache; memory 4 m bytes a program, at most SCRATCH_BYTES.
What decides the last digits of a small loss is computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton.language as tl
from torch import Tensor

from csrkern.kernels import tuning
from csrkern.kernels._common import batched_jit, on_device_of
from csrkern.kernels.similarity import (
    POSTINGS_AT_ONCE,
    Postings,
    add_scores,
    columns_of,
    first_lists,
    next_lists,
)

SCRATCH_BYTES = 2**28
PROGRAMS = (32 * 132, 16 * 132, 8 * 132)  # the first unless another was measured to be faster


@batched_jit
def info_nce_kernel(
    values,  # [n, k] float32
    indices,  # [n, k] int32
    starts,  # [dim + 1] int64, with rows and sorted_values: the postings of the other side
    rows,
    sorted_values,
    classes,  # [n] int32, or None
    other_classes,  # [m] int32, or None
    n_positives,  # [n] int32, or None
    scratch,  # [programs, m] float32, zeroed
    loss,  # [n] float32, and so are the next two
    peak,
    log_total,
    n,
    k,
    m,
    dim,
    scale,
    ONE_SET: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the loss of each row, and what its backward pass needs; see info_nce.hpp."""
    program = tl.program_id(0)
    scores = scratch + program.to(tl.int64) * m
    for i in range(program, n, tl.num_programs(0)):
        at = tl.cast(i, tl.int64) * k
        add_scores(values + at, indices + at, starts, rows, sorted_values, k, dim, scores, BLOCK)
        # In one set the row itself comes last, with its own factor or with none.
        mate = 0.0
        if ONE_SET or classes is None:
            mate += tl.load(scores + i)
        tl.debug_barrier()
        if ONE_SET:
            tl.store(scores + i, 0.0)
            tl.debug_barrier()

        top = tl.zeros([BLOCK], tl.float32)
        if ONE_SET and classes is None:
            top += mate
        walk = first_lists(values + at, indices + at, starts, rows, k, dim, BLOCK)
        for slot in range(0, k):
            begin, end, j, walk = next_lists(
                walk, values + at, indices + at, starts, rows, slot, k, dim, BLOCK
            )
            for first in range(begin, end, BLOCK):
                e = first + tl.arange(0, BLOCK)
                top = tl.maximum(top, tl.load(scores + j, mask=e < end, other=0.0))
                j = columns_of(rows, first + BLOCK, end, BLOCK)
        highest = tl.max(top)

        if classes is not None:
            own_class = tl.load(classes + i)
        total = tl.zeros([BLOCK], tl.float32)
        positive = tl.zeros([BLOCK], tl.float32)
        summed = tl.zeros([BLOCK], tl.int32)
        walk = first_lists(values + at, indices + at, starts, rows, k, dim, BLOCK)
        for slot in range(0, k):
            begin, end, j, walk = next_lists(
                walk, values + at, indices + at, starts, rows, slot, k, dim, BLOCK
            )
            for first in range(begin, end, BLOCK):
                e = first + tl.arange(0, BLOCK)
                score = tl.load(scores + j, mask=e < end, other=0.0)
                tl.store(scores + j, tl.zeros([BLOCK], tl.float32), mask=e < end)
                new = (e < end) & (score != 0)
                total += tl.where(new, tl.exp((score - highest) * scale), 0.0)
                summed += new.to(tl.int32)
                if classes is not None:
                    other_class = tl.load(other_classes + j, mask=e < end, other=0)
                    shares = new & (other_class == own_class)
                    positive += tl.where(shares, score, 0.0)
                j = columns_of(rows, first + BLOCK, end, BLOCK)
            tl.debug_barrier()

        zeros = m - tl.sum(summed) - (1 if ONE_SET else 0)
        factor = tl.cast(scale, tl.float64)
        height = highest.to(tl.float64)
        none = tl.exp(-height * factor) * zeros.to(tl.float64)
        rest = tl.sum(total).to(tl.float64) + none
        if ONE_SET and classes is None:
            # The row's twin is the positive, all else occurs twice.
            twin = tl.exp((tl.cast(mate, tl.float64) - height) * factor)
            log_sum = tl.log(twin + 2.0 * rest)
        else:
            log_sum = tl.log(rest)
        if classes is None:
            row_loss = log_sum + (height - tl.cast(mate, tl.float64)) * factor
        else:
            count = tl.load(n_positives + i)
            mean = tl.sum(positive).to(tl.float64) / tl.maximum(count, 1).to(tl.float64)
            row_loss = tl.where(count > 0, log_sum + (height - mean) * factor, 0.0)
        tl.store(loss + i, row_loss.to(tl.float32))
        tl.store(peak + i, highest)
        tl.store(log_total + i, log_sum.to(tl.float32))


@batched_jit
def info_nce_backward_kernel(
    values,  # [n, k] float32: the side whose gradient is written
    indices,  # [n, k] int32
    starts,  # the postings of the other side
    rows,
    sorted_values,
    classes,  # [n] int32, or None
    other_classes,  # [m] int32, or None
    weight,  # of each loss: its gradient / temperature; and so are the next three
    pull,  # weight / size of the set of positives, or None
    peak,
    log_total,
    scratch,  # [programs, m] float32, zeroed
    grad_values,  # [n, k] float32
    n,
    k,
    m,
    dim,
    scale,
    ONE_SET: tl.constexpr,
    BY_ROW: tl.constexpr,  # the losses are of rows of `values`
    BY_COLUMN: tl.constexpr,  # ... of the other side; both in one set
    BLOCK: tl.constexpr,
):
    """Scores are summed again, turned into gradients column by column, and cleared.

    Probabilities are at most 1, but for the row itself, whose own is not used: hence minimum.
    """
    program = tl.program_id(0)
    scores = scratch + program.to(tl.int64) * m
    for i in range(program, n, tl.num_programs(0)):
        at = tl.cast(i, tl.int64) * k
        add_scores(values + at, indices + at, starts, rows, sorted_values, k, dim, scores, BLOCK)
        if BY_ROW:
            own_peak, own_log_total = tl.load(peak + i), tl.load(log_total + i)
            own_weight = tl.load(weight + i)
        partner = 0.0
        if classes is not None:
            own_class = tl.load(classes + i)
            if BY_ROW:
                own_pull = tl.load(pull + i)
        else:
            # Where the partner has nearly all the probability, p - 1 needs more digits.
            mate = tl.load(scores + i).to(tl.float64)
            exponent = (mate - tl.load(peak + i).to(tl.float64)) * tl.cast(scale, tl.float64)
            p = tl.exp(exponent - tl.load(log_total + i).to(tl.float64))
            partner += (tl.load(weight + i).to(tl.float64) * (p - 1.0)).to(tl.float32)
        walk = first_lists(values + at, indices + at, starts, rows, k, dim, BLOCK)
        for slot in range(0, k):
            begin, end, j, walk = next_lists(
                walk, values + at, indices + at, starts, rows, slot, k, dim, BLOCK
            )
            total = tl.zeros([BLOCK], tl.float32)
            for first in range(begin, end, BLOCK):
                e = first + tl.arange(0, BLOCK)
                inside = e < end
                score = tl.load(scores + j, mask=inside, other=0.0)
                slope = tl.zeros([BLOCK], tl.float32)
                if BY_ROW:
                    x = (score - own_peak) * scale - own_log_total
                    slope += own_weight * tl.exp(tl.minimum(x, 0.0))
                if BY_COLUMN:
                    x = (score - tl.load(peak + j, mask=inside, other=0.0)) * scale
                    x -= tl.load(log_total + j, mask=inside, other=0.0)
                    weights = tl.load(weight + j, mask=inside, other=0.0)
                    slope += weights * tl.exp(tl.minimum(x, 0.0))
                if classes is not None:
                    other_class = tl.load(other_classes + j, mask=inside, other=0)
                    shares = other_class == own_class
                    if BY_ROW:
                        slope -= tl.where(shares, own_pull, 0.0)
                    if BY_COLUMN:
                        pulls = tl.load(pull + j, mask=inside, other=0.0)
                        slope -= tl.where(shares, pulls, 0.0)
                    if ONE_SET:
                        slope = tl.where(j == i, 0.0, slope)
                else:
                    slope = tl.where(j == i, partner, slope)
                share = tl.load(sorted_values + e, mask=inside, other=0.0)
                total += tl.where(inside, slope * share, 0.0)
                j = columns_of(rows, first + BLOCK, end, BLOCK)
            tl.store(grad_values + at + slot, tl.sum(total))
        tl.debug_barrier()
        walk = first_lists(values + at, indices + at, starts, rows, k, dim, BLOCK)
        for slot in range(0, k):
            begin, end, j, walk = next_lists(
                walk, values + at, indices + at, starts, rows, slot, k, dim, BLOCK
            )
            for first in range(begin, end, BLOCK):
                e = first + tl.arange(0, BLOCK)
                tl.store(scores + j, tl.zeros([BLOCK], tl.float32), mask=e < end)
                j = columns_of(rows, first + BLOCK, end, BLOCK)
        tl.debug_barrier()


def _launch(
    name: str, values: Tensor, m: int, postings: Postings, run: Callable[[Tensor], None]
) -> None:
    """Run `run(scratch)` with as many programs as it has rows."""
    n, k = values.shape
    if n == 0:
        return
    most = min(n, SCRATCH_BYTES // (4 * max(m, 1)))
    configs = [{"programs": max(1, min(programs, most))} for programs in PROGRAMS]

    def with_scratch(config: tuning.Config) -> None:
        run(values.new_zeros(config["programs"], m))

    with on_device_of(values):
        tuning.launch(name, (n, m, k, len(postings[0]) - 1), configs, with_scratch)


def info_nce(
    values: Tensor,
    indices: Tensor,
    postings: Postings,
    m: int,
    one_set: bool,
    temperature: float,
    classes: Tensor | None,
    other_classes: Tensor | None,
    n_positives: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """loss, peak and log_total [n]: Σ c exp(s / τ) = exp(peak / τ + log_total)."""
    n, k = values.shape
    loss, peak, log_total = (values.new_empty(n) for _ in range(3))

    def run(scratch: Tensor) -> None:
        labels = classes, other_classes, n_positives
        tensors = values, indices, *postings, *labels, scratch, loss, peak, log_total
        sizes = n, k, m, len(postings[0]) - 1, 1 / temperature
        info_nce_kernel[(len(scratch),)](
            *tensors,
            *sizes,
            ONE_SET=one_set,
            BLOCK=POSTINGS_AT_ONCE,
            enable_fp_fusion=False,  # the CPU rounds every product, too
            num_warps=1,
        )

    _launch("info_nce", values, m, postings, run)
    return loss, peak, log_total


def info_nce_backward(
    grad: Tensor,
    peak: Tensor,
    log_total: Tensor,
    values: Tensor,
    indices: Tensor,
    postings: Postings,
    m: int,
    one_set: bool,
    of_columns: bool,
    temperature: float,
    classes: Tensor | None,
    other_classes: Tensor | None,
    n_positives: Tensor | None,
) -> Tensor:
    """Return the gradient [n, k] of the values; `grad` and n_positives are of the losses' side."""
    n, k = values.shape
    grad_values = torch.empty_like(values)
    weight, pull = grad / temperature, None
    if n_positives is not None:
        # A row without a positive has no loss.
        weight = torch.where(n_positives > 0, weight, torch.zeros_like(weight))
        pull = weight / n_positives.clamp(min=1)
    elif one_set:
        weight = 2 * weight

    def run(scratch: Tensor) -> None:
        labels = classes, other_classes
        tensors = values, indices, *postings, *labels, weight, pull, peak, log_total
        sizes = n, k, m, len(postings[0]) - 1, 1 / temperature
        sides = {"BY_ROW": one_set or not of_columns, "BY_COLUMN": one_set or of_columns}
        constants = {"ONE_SET": one_set, **sides, "BLOCK": POSTINGS_AT_ONCE, "num_warps": 1}
        info_nce_backward_kernel[(len(scratch),)](
            *tensors, scratch, grad_values, *sizes, enable_fp_fusion=False, **constants
        )

    _launch("info_nce backward", values, m, postings, run)
    return grad_values
