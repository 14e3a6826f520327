"""PackedCodes: sparse codes in about two bytes a latent, for storage and re-scoring."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from csrkern import _C
from csrkern._native import call
from csrkern.arguments import check_int, row_numbers
from csrkern.codes import file as codes_file
from csrkern.codes.slots import keep_active
from csrkern.codes.sparse import SparseCodes
from csrkern.identity import check_fingerprint
from csrkern.ops.validation import check_slots
from csrkern.storage import write_atomically

VALUE_BITS = 4
MAX_VALUE_BITS = 8
MAX_DIM = 2**31 - 1
FORMAT = "csrkern-packed-codes"
# Scales reach down from the largest value by 2^-32, and must stay normal float32 numbers.
_SMALLEST, _LARGEST = 2.0**-60, 2.0**100


class PackedCodes:
    """Sparse codes of n rows in a fixed number of bytes each, which are read one by one.

    A row is a scale of 8 bits, the latents in ascending order by the code of Elias and Fano, in
    2 + log2(dim / k) bits each or a little less, and each latent's value, relative to the row's
    strongest, in `value_bits` bits. Latents are exact, and none that is active is lost. A value is
    off by at most half a level, with 4 bits 4% of the row's strongest; values below half a level
    become one, and rows whose strongest is below 2^-32 of the largest cannot be told apart. That
    costs scores next to nothing, and of codes in float16 a row holds half as many latents
    (docs/notes/training.md has figures).

    Attributes:
        rows: [n, row_bytes] uint8, in the layout of csrc/include/csrkern/packed.hpp.
        k: slots per row.
        dim: number of latents.
        value_bits: 1 to 8.
        largest: the largest value, which scales refer to.
        fingerprint: of the model that made the codes; None: not known.

    Raises:
        TypeError, ValueError: if the arguments do not fit together.

    Source: Elias 1974, Fano 1971.
    """

    __slots__ = ("dim", "fingerprint", "k", "largest", "rows", "value_bits")

    def __init__(
        self,
        rows: np.ndarray,
        k: int,
        dim: int,
        value_bits: int,
        largest: float,
        fingerprint: str | None = None,
    ) -> None:
        self.rows, self.k, self.dim = rows, k, dim
        self.value_bits, self.largest = value_bits, largest
        self.fingerprint = check_fingerprint("fingerprint", fingerprint)
        self._check()

    def _check(self) -> None:
        """Raise TypeError or ValueError unless the rows are as long as the other numbers say."""
        rows, largest = self.rows, self.largest
        size = packed_bytes(self.k, self.dim, self.value_bits)
        if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8:
            raise TypeError("rows: expected a uint8 array; PackedCodes.pack makes one of codes")
        if rows.ndim != 2 or rows.shape[1] != size:
            raise ValueError(
                f"rows: expected [n, {size}] for {self.k} of {self.dim} latents and values of "
                f"{self.value_bits} bits, got {list(rows.shape)}"
            )
        if not isinstance(largest, float) or not _SMALLEST <= largest <= _LARGEST:
            raise ValueError(f"largest: expected a number in 2^-60..2^100, got {largest!r}")

    @classmethod
    def pack(cls, codes: SparseCodes, value_bits: int = VALUE_BITS) -> PackedCodes:
        """Pack codes in about two bytes a latent: latents exact, values in `value_bits` bits.

        `unpack` gives them back; `packed_k` says how many latents fit in how many bytes. No
        active latent is lost.

        Raises:
            TypeError, ValueError: if value_bits is not in 1..8, k is 0, a value is negative, NaN
                or above 2^100, or a latent is out of range or repeats in a row.
        """
        check_slots(codes.values, codes.indices)
        size = packed_bytes(codes.k, codes.dim, value_bits)
        exact = codes.values.detach().cpu()
        values = keep_active(exact, exact.float()).contiguous()
        indices = codes.indices.cpu().contiguous()
        strongest = float(values.max()) if len(codes) else 0.0
        if not strongest <= _LARGEST:  # nor NaN
            row, slot = (~(values <= _LARGEST)).nonzero()[0].tolist()
            raise ValueError(
                f"values: expected numbers of at most 2^100, got {values[row, slot]} in row {row}"
            )
        largest = float(np.float32(max(strongest, _SMALLEST)))
        empty = np.empty((len(codes), size), np.uint8)
        packed = cls(empty, codes.k, codes.dim, value_bits, largest, codes.fingerprint)
        rows = packed.rows.ctypes.data
        good = call(_C.pack, packed._form, values, indices, rows)
        if good < len(codes):
            codes.validate()  # says what is wrong
        return packed

    @property
    def _form(self) -> tuple[int, int, int, int, float]:
        return len(self), self.k, self.dim, self.value_bits, self.largest

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.rows.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.rows.nbytes

    def __len__(self) -> int:
        return self.rows.shape[0]

    def __getitem__(self, rows: int | slice | np.ndarray | Sequence[int]) -> PackedCodes:
        """Rows by number, slice, list of numbers or boolean mask, as PackedCodes [m, k].

        Raises:
            IndexError: if `rows` is anything else, or names a row that is not there.
        """
        form = self.k, self.dim, self.value_bits, self.largest, self.fingerprint
        return PackedCodes(self.rows[row_numbers(rows, len(self))], *form)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        """Say what to call: NumPy would make an array of objects of them, row by row."""
        raise TypeError(
            "PackedCodes are no array: packed.rows are their bytes, packed.unpack() codes"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedCodes, (self.rows, *self._form[1:], self.fingerprint)

    def __repr__(self) -> str:
        return (
            f"PackedCodes(n={len(self)}, k={self.k}, dim={self.dim}, "
            f"value_bits={self.value_bits}, row_bytes={self.row_bytes})"
        )

    def unpack(self) -> SparseCodes:
        """Return the codes [n, k], with float32 values of `2^value_bits − 1` levels a row.

        Raises:
            ValueError: if a row is damaged.
        """
        self._check()
        rows = np.ascontiguousarray(self.rows)
        values = torch.empty(len(self), self.k, dtype=torch.float32, device="cpu")
        indices = torch.empty_like(values, dtype=torch.int32)
        good = call(_C.unpack, self._form, rows.ctypes.data, values, indices)
        if good < len(self):
            raise ValueError(f"row {good} of the packed codes is damaged")
        return SparseCodes(values, indices, self.dim, self.fingerprint)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file beside `path` and rename it: never half a file."""
        self._check()
        facts = {name: getattr(self, name) for name in ("k", "dim", "value_bits", "largest")}
        write_atomically(
            path, codes_file.pack(FORMAT, {"rows": self.rows}, facts, self.fingerprint)
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PackedCodes:
        """Read a file written by `save`; damaged rows are found by `unpack`.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is not a whole file of packed codes.
        """
        name = os.fspath(path)
        header = codes_file.read_header(name, "file of packed codes", FORMAT, {"rows"})
        entries, begin = codes_file.entries_of(name)
        entry = entries["rows"]
        if entry["dtype"] not in codes_file.PACKED:
            raise ValueError(f"{name} is damaged: rows: expected U8, got {entry['dtype']}")
        rows = np.array(codes_file.map_array(name, entry, begin))
        try:
            keys = ("k", "dim", "value_bits", "largest", "fingerprint")
            form: list[Any] = [header.get(key) for key in keys]
            return cls(rows, *form)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} is damaged: {error}") from error


def packed_bytes(k: int, dim: int, value_bits: int = VALUE_BITS) -> int:
    """Bytes of a packed row of k latents out of `dim`.

    Raises:
        TypeError, ValueError: unless 1 ≤ k ≤ dim and 1 ≤ value_bits ≤ 8.
    """
    check_int("dim", dim, 1, MAX_DIM)
    check_int("k", k, 1, dim)
    check_int("value_bits", value_bits, 1, MAX_VALUE_BITS)
    size: int = _C.packed_bytes(k, dim, value_bits)
    return size


def packed_k(row_bytes: int, dim: int, value_bits: int = VALUE_BITS) -> int:
    """Return the most latents out of `dim` whose packed row takes at most `row_bytes` bytes.

    Raises:
        TypeError, ValueError: if not even one fits, or an argument is out of range.
    """
    smallest = packed_bytes(1, dim, value_bits)
    check_int("row_bytes", row_bytes, smallest, 2**40)
    low, high = 1, dim
    while low < high:
        middle = (low + high + 1) // 2
        if packed_bytes(middle, dim, value_bits) <= row_bytes:
            low = middle
        else:
            high = middle - 1
    return low
