"""Values and indices of SparseCodes, [n, k], from slots in any order and from single entries."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from csrkern.arguments import OF_SIGNED, as_int, check_places, row_starts, shown
from csrkern.ops.validation import FLOATS, check_dim

# Larger integers are not all float32 numbers.
_EXACT = 2**24


def powers_of_two(largest: Tensor) -> Tensor:
    """Return the largest powers of two not above positive numbers: exact divisors that keep squares
    within range and, as a norm does not depend on the scale, are constants to a gradient.
    """
    if largest.dtype == torch.float64:
        bits = largest.view(torch.int64) & 0x7FF0000000000000
        return bits.clamp(min=1 << 52).view(torch.float64)
    bits = largest.view(torch.int32) & 0x7F800000
    return bits.clamp(min=1 << 23).view(torch.float32)


def in_order(values: Tensor, indices: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Slots [n, k] sorted by value descending and then by index; empty ones have index 0."""
    empty = values == 0
    values = values.masked_fill(empty, 0)
    by_index = indices.masked_fill(empty, dim).argsort(dim=1, stable=True)
    values, indices = values.gather(1, by_index), indices.masked_fill(empty, 0).gather(1, by_index)
    values, by_value = values.sort(dim=1, descending=True, stable=True)
    return values, indices.gather(1, by_value).int()


def keep_active(values: Tensor, narrow: Tensor) -> Tensor:
    """`narrow`, which is `values` rounded, with the least positive where one became 0."""
    info = torch.finfo(narrow.dtype)
    lost = (values > 0) & (narrow == 0)
    return torch.where(lost, info.smallest_normal * info.eps, narrow)


def float_tensor(name: str, array: np.ndarray) -> Tensor:
    """Return a tensor of real numbers, of which integers become float32.

    Raises:
        TypeError, ValueError: if they are not real numbers, or integers that float32 cannot hold.
    """
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    elif array.dtype.kind in "iu":
        _check_exact(name, array, (array > _EXACT) | (array < -_EXACT))
        array = array.astype(np.float32)
    elif array.dtype.kind != "f":
        raise TypeError(f"{name}: expected real numbers, got {array.dtype}")
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def as_floats(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor of real numbers, integers as float32; errors as of `float_tensor`."""
    if tensor.dtype in FLOATS:
        return tensor
    if tensor.is_complex() or tensor.is_floating_point() or tensor.dtype == torch.bool:
        raise TypeError(f"{name}: expected real numbers, got {tensor.dtype}")
    _check_exact(name, tensor, (tensor > _EXACT) | (tensor < -_EXACT))
    return tensor.float()


def _check_exact(name: str, integers: np.ndarray | Tensor, wrong: np.ndarray | Tensor) -> None:
    if wrong.any():
        raise ValueError(
            f"{name}: expected integers that float32 holds, up to 2^24, got "
            f"{int(integers[wrong][0])}; convert them to float64"
        )


def check_entries(name: str, values: Tensor, rows: Tensor | None = None) -> None:
    """Values are finite and not negative; `rows` says where each stands, if not in rows [n, k].

    Raises:
        ValueError: naming the first row where they are not.
    """
    values = values.detach()
    if values.numel() == 0:
        return
    low, high = values.aminmax()
    if float(low) >= 0 and float(high) < float("inf"):
        return
    at = (~((values >= 0) & (values < float("inf")))).nonzero()[0]
    value = float(values[tuple(at)])
    row = int(at[0] if rows is None else rows[at[0]])
    expected = "no negative entries" if value < 0 else "finite entries"
    raise ValueError(
        f"{name}: expected {expected}, got {value} in row {row}; "
        "codes hold finite values that are not negative" + (OF_SIGNED if value < 0 else "")
    )


def rows_of_starts(name: str, starts: Tensor, n: int, entries: int) -> Tensor:
    """Return the row of each entry, int64, from where each of n rows starts and the last ends.

    Raises:
        ValueError: unless starts [n + 1] begin at 0, never decrease and end within the entries.
    """
    counts = torch.from_numpy(np.diff(row_starts(name, starts, n, entries))).to(starts.device)
    return torch.repeat_interleave(torch.arange(n, device=starts.device), counts)


def of_entries(
    name: str,
    rows: Tensor,
    latents: Tensor,
    values: Tensor,
    shape: tuple[int, int],
    k: int | None,
) -> tuple[Tensor, Tensor]:
    """Slots [n, k] of (row, latent, value) triples in any order; those of one place are added up.

    Args:
        name: what they are called in errors.
        shape: (n, dim).
        k: slots a row, the strongest kept; None: as many as the fullest row has, at least 1.

    Raises:
        TypeError, ValueError: if a row or latent is not within `shape`, a value is not finite or
            negative, or k is not in 1..dim.
    """
    n, dim = shape[0], check_dim(shape[1])
    if k is not None:
        k = as_int("k", k)
        if not 1 <= k <= dim:
            raise ValueError(f"k: expected 1 <= k <= dim = {dim}, got {shown(k)}")
    check_places(name, rows, latents, (n, dim))
    values = as_floats(name, values)
    if values.shape != rows.shape:
        raise ValueError(f"{name}: expected a value for each of {len(rows)} entries")
    rows, latents, values = _sum_duplicates(rows.long(), latents.long(), values, dim)
    check_entries(name, values, rows)
    stored = values != 0
    rows, latents, values = rows[stored], latents[stored], values[stored]
    counts = torch.bincount(rows, minlength=n)
    width = max(min(1, dim), int(counts.max()) if n else 0)
    slots = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    all_values, all_indices = values.new_zeros(n, width), latents.new_zeros(n, width)
    all_values[rows, slots] = values
    all_indices[rows, slots] = latents
    all_values, all_indices = in_order(all_values, all_indices, dim)
    if k is None or k == width:
        return all_values, all_indices
    pad = (0, k - width)  # a negative one cuts
    return torch.nn.functional.pad(all_values, pad), torch.nn.functional.pad(all_indices, pad)


def largest_of_groups(
    values: Tensor, latents: Tensor, active: Tensor, counts: Tensor, dim: int, k: int
) -> tuple[Tensor, Tensor]:
    """Slots [n, k] of the largest value of each latent in groups of rows that follow each other.

    Args:
        values, latents, active: of the rows' slots, [t, k'].
        counts: int64 [n], rows of each group.
    """
    n = len(counts)
    group = torch.repeat_interleave(torch.arange(n, device=values.device), counts)
    row, slot = active.nonzero(as_tuple=True)
    entries, group, latents = values[row, slot], group[row], latents[row, slot]
    place = group * dim + latents
    # By place, in each the largest value first, of equal ones that of the first row.
    order = entries.detach().argsort(descending=True, stable=True)
    order = order[place[order].argsort(stable=True)]
    place = place[order]
    first = torch.ones_like(place, dtype=torch.bool)
    first[1:] = place[1:] != place[:-1]
    largest = order[first]
    # By group, in each by value and then by latent.
    largest = largest[entries.detach()[largest].argsort(descending=True, stable=True)]
    largest = largest[group[largest].argsort(stable=True)]
    group = group[largest]
    held = torch.bincount(group, minlength=n)
    slot = torch.arange(len(group), device=group.device) - (held.cumsum(0) - held)[group]
    kept = slot < k
    at = group[kept], slot[kept]
    largest = largest[kept]
    indices = torch.zeros(n, k, dtype=torch.int32, device=values.device)
    return (
        values.new_zeros(n, k).index_put(at, entries[largest]),
        indices.index_put(at, latents[largest].int()),
    )


def _sum_duplicates(
    rows: Tensor, latents: Tensor, values: Tensor, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the entries by row and then by latent, one for each place."""
    places = rows * dim + latents
    if bool((places.diff() > 0).all()):
        return rows, latents, values
    places, entry = places.unique(return_inverse=True)  # sorted
    sums = values.new_zeros(len(places)).index_add_(0, entry, values)
    return places // dim, places % dim, sums
