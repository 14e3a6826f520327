"""What an index on a GPU accepts: tensors that are there already, arrays, and names of devices."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from csrkern.index.filter import allowed_bits
from csrkern.index.rerank import Rerank
from csrkern.index.rows import check_shapes, is_codes, pad_rows, read_rows, same_dim
from csrkern.index.segment import Lookup

if TYPE_CHECKING:
    import torch


def to_host(array: Any) -> Any:
    """Return a tensor, or each in a list of them, as an array; all else as it is."""
    torch = sys.modules.get("torch")
    if isinstance(array, (list, tuple)):
        return [to_host(item) for item in array]
    return array.cpu().numpy() if torch is not None and isinstance(array, torch.Tensor) else array


class DeviceRows(NamedTuple):
    """Rows of equal width on a device: values [n, k] and int32 indices [n, k], contiguous."""

    values: torch.Tensor
    indices: torch.Tensor
    dim: int
    device: int

    def arguments(self, native: Any) -> dict[str, Any]:
        """Return these rows as the native module takes them, and the stream to use."""
        stream = 0
        if self.values.device.type == "cuda":
            import torch

            stream = torch.cuda.current_stream(self.values.device).cuda_stream
        return {
            "device": self.device,
            "n": len(self.values),
            "width": self.values.shape[1],
            "type": getattr(native.Number, str(self.values.dtype).removeprefix("torch.")),
            "values": self.values.data_ptr(),
            "indices": self.indices.data_ptr(),
            "stream": stream,
        }

    def to(self, device: torch.device) -> DeviceRows:
        """Return the same on another device."""
        return self._replace(
            values=self.values.to(device),
            indices=self.indices.to(device),
            device=device.index or 0,
        )

    def take(self, rows: np.ndarray) -> DeviceRows:
        """Chosen rows, in that order."""
        at = self.tensor(rows)
        return self._replace(values=self.values[at], indices=self.indices[at])

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        """Return an array on the device of these rows."""
        import torch

        return torch.from_numpy(array).to(self.values.device)


def device_rows(native: Any, name: str, codes: Any, dim: int | None) -> DeviceRows | None:
    """`codes` if they are tensors on a device of `native`, else None.

    Raises:
        TypeError, ValueError: if they are, and are not codes over `dim` latents.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    if is_codes(codes):
        values, indices, dim = codes.values, codes.indices, same_dim(name, codes.dim, dim)
    elif isinstance(codes, (tuple, list)) and all(isinstance(c, torch.Tensor) for c in codes):
        if len(codes) != 2:
            raise TypeError(f"{name}: expected a pair (values, indices), got {len(codes)} tensors")
        values, indices = codes
    else:
        return None
    if values.device.type != native.DEVICE_TYPE or indices.device != values.device:
        return None
    if dim is None:
        raise ValueError(f"{name}: a (values, indices) pair needs dim=, the number of latents")
    check_shapes(name, values, indices)
    if indices.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name}: expected int32 or int64 indices, got {indices.dtype}")
    if indices.dtype == torch.int64:  # none that is out of range may wrap around into it
        indices = indices.clamp(-1, 2**31 - 1)
    values = values.detach()
    if values.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        values = values.float()
    return DeviceRows(
        values.contiguous(), indices.int().contiguous(), dim, values.device.index or 0
    )


def device_rerank(
    rerank: Rerank, m: int, dim: int, home: torch.device
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Dense queries float32 [m, dim] and offsets float32 [m], on the device of the queries.

    Raises:
        TypeError, ValueError: as `Rerank.arrays`; of tensors that are there already only the
            shape is checked.
    """
    import torch

    dense: Any = rerank.dense_queries
    offsets: Any = rerank.offsets
    given = [array for array in (dense, offsets) if array is not None]
    if not all(isinstance(array, torch.Tensor) and array.device == home for array in given):
        arrays = rerank.arrays(m, dim)
        on_host = [None if a is None else torch.from_numpy(a).to(home) for a in arrays]
        return on_host[0], on_host[1]  # type: ignore[return-value]
    for name, tensor, shape in (("dense_queries", dense, (m, dim)), ("offsets", offsets, (m,))):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")
    dense = dense.detach().float().contiguous()
    offsets = None if offsets is None else offsets.detach().float().contiguous()
    return dense, offsets


def same_device(native: Any, home: torch.device, number: int) -> torch.device:
    """PyTorch's name of a device."""
    import torch

    return home if native.DEVICE_TYPE != "cuda" else torch.device("cuda", number)


def parse_devices(native: Any, device: Any) -> list[int]:
    """Numbers of the devices that "cuda", "cuda:1", a torch.device or a list of these name.

    "cuda" is the current device of this thread, as in PyTorch.

    Raises:
        ValueError: if one of them is no CUDA device that is there.
    """
    many = device if isinstance(device, (list, tuple)) else [device]
    count = native.count_devices()
    numbers = []
    for name in many:
        kind, _, number = str(name).partition(":")
        if kind != "cuda" or not (number or "0").isdigit() or int(number or 0) >= count:
            raise ValueError(
                f"device: expected 'cuda', 'cuda:0' to 'cuda:{count - 1}' or a list of these, "
                f"got {name!r}"
            )
        numbers.append(int(number) if number else native.current_device())
    if not numbers:
        raise ValueError("device: expected at least one device, got an empty list")
    return numbers


def host_queries(queries: Any, dim: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return checked queries as values float32 and indices int32, both [m, k].

    Raises:
        TypeError, ValueError: as a search of the index on the CPU.
    """
    rows = read_rows("queries", queries, dim)
    if rows.k > most:
        raise ValueError(f"queries: expected at most {most} slots each, got {rows.k}")
    values, indices = rows.values, rows.indices
    if rows.starts is not None:
        values, indices = pad_rows(*rows.flat()[:2], rows.lengths, rows.k)
    _refuse((indices < 0) | (indices >= dim), f"expected latents in 0..{dim - 1}, got", indices)
    _refuse(
        ~((values >= 0) & (values < np.inf)),
        "expected finite values that are not negative, got",
        values,
    )
    used = np.sort(np.where(values > 0, indices, -1 - np.arange(values.shape[1])), axis=1)
    twice = np.zeros(values.shape, bool)
    twice[:, 1:] = (used[:, 1:] == used[:, :-1]) & (used[:, 1:] >= 0)
    if twice.any():
        row, at = np.argwhere(twice)[0]
        raise ValueError(
            f"queries: latent {used[row, at]} occurs twice in row {row}; "
            "sum or drop duplicates first"
        )
    return np.ascontiguousarray(values), np.ascontiguousarray(indices)


def _refuse(wrong: np.ndarray, expected: str, array: np.ndarray) -> None:
    if wrong.any():
        row, slot = np.argwhere(wrong)[0]
        raise ValueError(f"queries: {expected} {array[row, slot]} in row {row}")


class Documents:
    """The documents of an index as filters see those of a segment."""

    alive = None

    def __init__(self, ids: np.ndarray) -> None:
        self.documents = len(ids)
        self.find = Lookup(ids, len(ids)).find

    def __len__(self) -> int:
        return self.documents


class Filters:
    """From what a search takes as a filter to bytes [n] or [m, n], not 0 for what it may find."""

    def __init__(self, ids: np.ndarray, order: np.ndarray | None) -> None:
        self._documents = Documents(ids)
        self._order = order  # documents of ascending ids; None: as they stand
        self._orders: dict[Any, torch.Tensor] = {}  # the same, by device

    def on_host(self, filter: Any, m: int) -> np.ndarray | None:
        """For m queries; None: all documents."""
        bits = allowed_bits(to_host(filter), [self._documents], m)[0]  # type: ignore[list-item]
        if bits is None:
            return None
        octets = np.ascontiguousarray(bits).view(np.uint8)
        allowed = np.unpackbits(octets, axis=-1, count=len(self._documents), bitorder="little")
        return np.ascontiguousarray(allowed if self._order is None else allowed[..., self._order])

    def on_device(self, filter: Any, m: int, home: torch.device) -> torch.Tensor | None:
        """Return the same on a device, where a mask may be already."""
        import torch

        if (
            not isinstance(filter, torch.Tensor)
            or filter.dtype != torch.bool
            or filter.device != home
        ):
            allowed = self.on_host(filter, m)
            return None if allowed is None else torch.from_numpy(allowed).to(home)
        n = len(self._documents)
        if filter.shape not in ((n,), (m, n)):
            raise ValueError(
                f"filter: expected a mask of {n} codes, or one for each of {m} queries, "
                f"got shape {list(filter.shape)}"
            )
        if self._order is not None:
            # Brought there once: to do so for each search would be to wait in each.
            if home not in self._orders:
                self._orders[home] = torch.from_numpy(self._order).to(home)
            filter = filter[..., self._orders[home]]
        return filter.view(torch.uint8)
