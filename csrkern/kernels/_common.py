"""What the launchers share: sizes, offsets, and tensors as Triton takes them."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

INT32_LIMIT = 2**31
# Arguments that follow from the number of rows: what they divide by is not compiled in, so a new
# batch size finds the kernel there.
BATCH_SIZES = (
    "n",
    "m",
    "entries",
    "entries_per_block",
    "rows_per_block",
    "n_blocks",
    "fold_bits",
    "exponent",
)
# Programs of a persistent grid, each with a scratch of its own: 31 on each of 132 processors.
MAX_PROGRAMS = 4096


def power_of_2(x: int, least: int = 1) -> int:
    """Return the smallest power of two that is at least `x` and `least`."""
    return max(triton.next_power_of_2(x), least)


def needs_int64(*tensors: Tensor) -> bool:
    """Whether an element of one of the tensors lies 2^31 or more elements from its first.

    Row numbers are always cast before they are multiplied; this decides what columns need.
    """
    return any(
        sum((size - 1) * abs(step) for size, step in zip(t.shape, t.stride(), strict=True))
        >= INT32_LIMIT
        for t in tensors
    )


def as_bits(tensor: Tensor) -> Tensor:
    """bfloat16 as its int16 bits, which widen to float32 exactly on every device."""
    return tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device: make it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def batched_jit(function: Callable[..., Any]) -> Any:
    """triton.jit for a kernel that is launched: one compilation for every batch size."""
    names = inspect.signature(function).parameters
    batch = [name for name in BATCH_SIZES if name in names]
    return triton.jit(function, do_not_specialize=batch)


def registers(most: int) -> dict[str, int]:
    """Return the launch option for a kernel that takes up to `most` registers a thread.

    Without it ptxas spills a few bytes wherever that lets a processor hold one more program. AMD's
    compiler has no such option.
    """
    return {} if torch.version.hip else {"maxnreg": most}


@triton.jit
def widen(x):
    """float32 from float32, float16, or the int16 bits of bfloat16; exact."""
    if x.dtype == tl.int16:
        return (x.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@triton.jit
def narrow(x, element: tl.constexpr):
    """float32 in the element type of a tensor; the bits of a bfloat16 where that is int16.

    Rounds to nearest, ties to even, in integers: the interpreter's own conversion is unreliable.
    """
    if element == tl.int16:
        bits = x.to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return tl.where(x == x, rounded, 0x7FC0).to(tl.int16)
    return x.to(element)


@triton.jit
def is_active(value, latent, dim):
    """Whether a slot holds a latent that there is.

    A GPU is not waited for to say that one is out of range: kernels take such a slot for an empty
    one, and follow no index out of bounds.
    """
    return (value != 0) & below(latent, dim)


@triton.jit
def below(x, limit):
    """Whether 0 <= x < limit, in one comparison: as unsigned, what is negative is large."""
    return x.to(tl.uint32) < tl.cast(limit, tl.uint32)


@triton.jit
def tree_sum_rows(x, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Sum the columns of [ROWS, WIDTH], ROWS a power of two; see `tree_sum`."""
    if ROWS == 1:
        return tl.reshape(x, [WIDTH])
    else:
        pairs = tl.reshape(x, [ROWS // 2, 2, WIDTH])
        return tree_sum_rows(tl.sum(pairs, axis=1), ROWS // 2, WIDTH)


@triton.jit
def tree_sum(x, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Sum the rows of [ROWS, WIDTH], WIDTH a power of two, in an order that is always the same.

    Neighbors are added, then neighbors of those. tl.sum's order depends on the layout, so on
    warps and block sizes; a sum of two does not.
    """
    if WIDTH == 1:
        return tl.reshape(x, [ROWS])
    else:
        return tree_sum(tl.sum(tl.reshape(x, [ROWS, WIDTH // 2, 2]), axis=2), ROWS, WIDTH // 2)
