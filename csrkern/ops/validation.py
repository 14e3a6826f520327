"""Argument checks of tensors: the one place where operators raise.

Every message names the argument, what was expected and what came. Public functions check what they
are given, and the registered operators below them, which anyone can call, check again whatever an
address is taken of. That latents are in range the kernels find out while they read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from csrkern.arguments import as_int, shown
from csrkern.ops._registry import autocasts

MAX_PREFIXES = 8
AUTOCAST = (torch.float32, torch.float16, torch.bfloat16)
FLOATS = (*AUTOCAST, torch.float64)


def check_tensor(name: str, value: Any, shape: tuple[Any, ...]) -> Tensor:
    """`value` is a floating-point tensor whose shape matches `shape`.

    None stands for any size, and a leading `...` for any number of dimensions.
    """
    if not isinstance(value, Tensor):
        hint = f"; use torch.from_numpy({name})" if type(value).__name__ == "ndarray" else ""
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}{hint}")
    if type(value).__name__ == "DTensor":
        raise TypeError(
            f"{name}: expected a whole tensor, got a DTensor. FSDP makes weights whole in forward; "
            "for other methods call torch.distributed.fsdp.register_fsdp_forward_method(model, "
            "'encode'), or take tensor.full_tensor()"
        )
    if value.dtype not in FLOATS:
        raise TypeError(
            f"{name}: expected float32, float16, bfloat16 or float64, got {value.dtype}; "
            f"convert it with {name}.float()"
        )
    ends = shape[1:] if shape[:1] == (...,) else shape
    have = value.shape if ends is shape else value.shape[max(0, value.dim() - len(ends)) :]
    fits = len(have) == len(ends) and all(
        want is None or want == size for want, size in zip(ends, have, strict=True)
    )
    if not fits:
        raise _wrong_shape(name, list(value.shape), shape)
    return value


def _wrong_shape(name: str, got: list[int], shape: tuple[Any, ...]) -> ValueError:
    hint = ""
    if len(shape) == 2 and shape[0] is None and shape[1] in (None, *got[-1:]):
        if len(got) > 2:
            hint = f"; use {name}.reshape(-1, {got[-1]})"
        elif len(got) == 1:
            hint = f"; use {name}[None]"
    words = {None: "any", ...: "..."}
    want = ", ".join(words.get(size, str(size)) for size in shape)
    return ValueError(f"{name}: expected shape [{want}], got {got}{hint}")


def check_rows_finite(rows: Tensor, start: int, name: str) -> None:
    """Raise ValueError naming the first row of `rows`, counted from `start`, not finite."""
    # NaN and infinity show in the sum. It takes 0.4% of the time of `encode` at d = 768 and
    # h = 3,072, a look at each number 6%.
    wide = torch.promote_types(rows.dtype, torch.float32)
    if bool(torch.isfinite(rows.sum(dtype=wide))):
        return
    bad = ~torch.isfinite(rows).all(1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        values = rows[row][~torch.isfinite(rows[row])]
        raise ValueError(
            f"{name}: row {start + row} holds {len(values)} values that are not finite "
            f"(the first: {float(values[0])}); remove or repair such rows"
        )


def check_tensors_finite(what: str, tensors: dict[str, Tensor]) -> None:
    """Raise ValueError if a tensor holds NaN or infinity."""
    for name, tensor in tensors.items():
        wrong = int((~torch.isfinite(tensor)).sum())
        if wrong:
            raise ValueError(
                f"{what}: {name}: expected finite numbers, got {wrong} that are NaN or infinite"
            )


def check_operand(
    name: str, value: Tensor, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device
) -> None:
    """Raise unless `value` is what native code expects at its address; strides are not checked."""
    if value.dtype != dtype:
        raise TypeError(f"{name}: expected {dtype}, got {value.dtype}")
    if value.shape != shape or value.device != device:
        raise ValueError(
            f"{name}: expected shape {list(shape)} on {device}, "
            f"got {list(value.shape)} on {value.device}"
        )


def check_slots(values: Any, indices: Any) -> None:
    """`values` and `indices` are tensors [n, k] such as SparseCodes has."""
    for name, tensor in (("values", values), ("indices", indices)):
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{name}: expected a torch.Tensor, got {type(tensor).__name__}; "
                "SparseCodes.from_numpy takes arrays"
            )
    if values.dim() != 2 or values.shape != indices.shape:
        raise ValueError(
            "values and indices: expected two tensors of one shape [n, k], "
            f"got {list(values.shape)} and {list(indices.shape)}"
        )
    if values.device != indices.device:
        raise ValueError(
            f"values are on {values.device} but indices on {indices.device}; use one device"
        )
    if indices.dtype != torch.int32:
        raise TypeError(f"indices: expected int32, got {indices.dtype}; use indices.int()")
    if not values.dtype.is_floating_point:
        raise TypeError(f"values: expected a floating-point dtype, got {values.dtype}")


def check_dim(dim: Any, k: int = 0) -> int:
    """`dim` is a number of latents that int32 can name, and at least k."""
    # torch.compile takes sizes that it keeps open for int; export has a type for them.
    if type(dim) is not int and not isinstance(dim, torch.SymInt):
        dim = as_int("dim", dim)
    if dim >= 2**31:
        raise ValueError(f"dim: expected at most 2^31 - 1 latents, got {shown(dim)}")
    if dim < k:
        raise ValueError(f"dim: expected at least k = {k} latents, got {shown(dim)}")
    return dim


def check_ends(ends: Sequence[int], k: int) -> None:
    """Check that `ends` are ascending numbers of slots, at most k."""
    if any(a >= b for a, b in pairwise([-1, *ends, k + 1])):
        raise ValueError(f"ends: expected ascending numbers in 0..k = {k}, got {list(ends)}")


def check_same(name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    """`value` has the device of `like`, and its dtype, which autocast need not care about."""
    if value.device != like.device:
        raise ValueError(f"{name} is on {value.device} but {like_name} is on {like.device}")
    if value.dtype != like.dtype and not (
        autocasts(like.device.type) and {value.dtype, like.dtype} <= set(AUTOCAST)
    ):
        raise TypeError(f"{name} is {value.dtype} but {like_name} is {like.dtype}; use one dtype")


def check_k(k: Any, limit: int, limit_name: str, name: str = "k") -> int:
    """`k` is an integer in 1..limit."""
    if not isinstance(k, torch.SymInt):  # a size that torch.compile and export keep open
        k = as_int(name, k)
    if k < 1 or k > limit:
        raise ValueError(f"{name}: expected 1 <= {name} <= {limit_name} = {limit}, got {shown(k)}")
    return k


def check_ks(ks: Any, limit: int, limit_name: str) -> list[int]:
    """`ks` are ascending integers in 1..limit, at least one and at most eight."""
    if not isinstance(ks, Iterable):
        raise TypeError(f"ks: expected a list of ints, got {type(ks).__name__}; use ks=[{ks}]")
    ks = list(ks)
    ks = [check_k(k, limit, limit_name, f"ks[{i}]") for i, k in enumerate(ks)]
    if not 1 <= len(ks) <= MAX_PREFIXES or any(a >= b for a, b in pairwise(ks)):
        raise ValueError(f"ks: expected 1 to {MAX_PREFIXES} ascending numbers, got {ks}")
    return ks


def check_latent_mask(mask: Any, pre: Tensor) -> None:
    """`mask` is None, or a bool tensor [h] on the device of `pre` [n, h]."""
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"latent_mask: expected a bool tensor, got {got}")
    if mask.shape != pre.shape[1:]:
        raise ValueError(f"latent_mask: expected shape [{pre.shape[1]}], got {list(mask.shape)}")
    if mask.device != pre.device:
        raise ValueError(f"latent_mask is on {mask.device} but pre is on {pre.device}")


def check_labels(labels: Any, n: int, m: int, two_sets: bool) -> Any:
    """`labels` is None, an integer tensor [n], or a pair of them ([n], [m]) for two sets.

    Returns None, one tensor for one set, or a pair for two.
    """
    if labels is None:
        return None
    pair = labels if isinstance(labels, tuple) else (labels, labels)
    if isinstance(labels, tuple) and (len(labels) != 2 or not two_sets):
        raise ValueError("labels: a pair (labels_a, labels_b) goes with a and b; give one tensor")
    for name, part, size in (("labels_a", pair[0], n), ("labels_b", pair[1], m)):
        if not isinstance(part, Tensor) or part.dtype.is_floating_point:
            got = part.dtype if isinstance(part, Tensor) else type(part).__name__
            raise TypeError(f"{name}: expected an integer tensor, got {got}")
        if part.shape != (size,):
            raise ValueError(f"{name}: expected shape [{size}], got {list(part.shape)}")
    return pair if two_sets else pair[0]
