"""Values and indices of SparseCodes, [n, k], from slots in any order and from single entries."""

from __future__ import annotations

import torch
from torch import Tensor


def powers_of_two(largest: Tensor) -> Tensor:
    """The largest powers of two not above positive numbers: exact divisors, which keep squares
    within range and, as a norm does not depend on the scale, are constants to a gradient.
    """
    if largest.dtype == torch.float64:
        bits = largest.view(torch.int64) & 0x7FF0000000000000
        return bits.clamp(min=1 << 52).view(torch.float64)
    bits = largest.view(torch.int32) & 0x7F800000
    return bits.clamp(min=1 << 23).view(torch.float32)


def in_order(values: Tensor, indices: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Slots [n, k] sorted by value descending and then by index; empties zeroed, at the end."""
    empty = ~((values > 0) | values.isnan())
    values = values.masked_fill(empty, 0)
    by_index = indices.masked_fill(empty, dim).argsort(dim=1, stable=True)
    values, indices = values.gather(1, by_index), indices.masked_fill(empty, 0).gather(1, by_index)
    values, by_value = values.sort(dim=1, descending=True, stable=True)
    return values, indices.gather(1, by_value).int()


def of_entries(
    rows: Tensor, latents: Tensor, values: Tensor, shape: tuple[int, int], k: int | None
) -> tuple[Tensor, Tensor]:
    """Slots [n, k] of (row, latent, value) triples in row order, without duplicates.

    Args:
        shape: (n, dim).
        k: slots a row, the strongest kept; None: as many as the fullest row has, at least 1.

    Raises:
        ValueError: if a value is negative, or k is not in 1..dim.
    """
    n, dim = shape
    if bool((values < 0).any()):
        raise ValueError("expected no negative entries; codes are non-negative")
    stored = values != 0
    rows, latents, values = rows[stored], latents[stored], values[stored]
    counts = torch.bincount(rows, minlength=n)
    width = max(1, int(counts.max()) if n else 1)
    slots = torch.arange(len(rows)).to(rows) - (counts.cumsum(0) - counts)[rows]
    all_values, all_indices = values.new_zeros(n, width), latents.new_zeros(n, width)
    all_values[rows, slots] = values
    all_indices[rows, slots] = latents
    all_values, all_indices = in_order(all_values, all_indices, dim)
    if k is None or k == width:
        return all_values, all_indices
    if not 1 <= k <= dim:
        raise ValueError(f"k: expected 1 <= k <= dim = {dim}, got {k}")
    pad = (0, k - width)  # a negative one cuts
    return torch.nn.functional.pad(all_values, pad), torch.nn.functional.pad(all_indices, pad)
