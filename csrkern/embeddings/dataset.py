"""Embeddings [n, d] in a file or in memory, read piece by piece. Needs PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from csrkern.embeddings.arrays import check_matrix, copy_floats
from csrkern.embeddings.sources import Array, held_of, read_source
from csrkern.ops.validation import check_rows_finite
from csrkern.typing import ArraySource

# Rows are read in pieces of about this many bytes: well inside memory, well above a seek.
_PIECE_BYTES = 1 << 25


@dataclass(frozen=True)
class Embeddings:
    """Embeddings, opened and checked for their form; of mapped files only what is asked is read.

    Attributes:
        name: for messages: the file, or what the caller calls them.
        array: [n, d], floats as they are stored.
        first: number of the first row, for messages.
    """

    name: str
    array: Array
    first: int = 0

    def __len__(self) -> int:
        return len(self.array)

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return int(self.array.shape[1])

    def rows(self, index: Tensor | slice, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the rows [m, d] at `index`, in memory of their own."""
        if isinstance(self.array, Tensor):
            return self.array[index].to(dtype, copy=True)
        picked = self.array[index.numpy() if isinstance(index, Tensor) else index]
        # A fresh tensor is aligned to 64 bytes, which NumPy memory is not; matrix products may
        # round differently by alignment, and runs must repeat bit for bit.
        wide = torch.promote_types(dtype, torch.float32)
        out = torch.empty(picked.shape, dtype=wide, device="cpu")
        copy_floats(picked, out.numpy())
        return out.to(dtype)

    def pieces(self, dtype: torch.dtype = torch.float32) -> Iterator[Tensor]:
        """Yield all rows, some megabytes [m, d] at a time; at least one piece.

        Raises:
            ValueError: naming the first row that is not finite in `dtype`.
        """
        size = max(1, _PIECE_BYTES // (4 * self.width))
        for start in range(0, max(1, len(self)), size):
            piece = self.rows(slice(start, start + size), dtype)
            check_rows_finite(piece, self.first + start, self.name)
            yield piece


def open_embeddings(
    argument: str, source: ArraySource | Embeddings, *, width: int | None = None
) -> Embeddings:
    """Return embeddings from all that `load_embeddings` takes, with nothing read of mapped files.

    Args:
        argument: what the caller calls the source.
        source: as for `load_embeddings`; Embeddings are returned as they are.
        width: the columns that a model expects; there may be no rows then.
    """
    if not isinstance(source, Embeddings):
        source = Embeddings(*read_source(argument, source, check_matrix))
    if width is not None:
        check_matrix(source.name, held_of(source.array), width)
    elif 0 in source.array.shape:
        shape = list(source.array.shape)
        raise ValueError(f"{source.name}: expected at least one row and one column, got {shape}")
    return source


def load_embeddings(source: ArraySource, *, check_finite: bool = True) -> Array:
    """Return embeddings [n, d] from a file or an array.

    Files by their suffix: .npy (memory-mapped), .npz, .safetensors (memory-mapped),
    .parquet (a column of lists, or columns of floats; needs `pip install csrkern[parquet]`),
    .pt or .pth (a tensor or a dict of tensors, read weights-only). float16, bfloat16, float32
    and float64 of either byte order stay as they are stored.

    Args:
        source: a path, also as "file.npz:name" where not only one array would do; a NumPy array,
            a tensor, a data frame or lists of numbers. "file.parquet:emb_*" takes all columns of
            floats with such names as columns of a matrix.
        check_finite: read everything once and refuse NaN and infinity. What trains or encodes
            looks for itself, so it need not be done twice.

    Raises:
        FileNotFoundError: if there is no such file.
        TypeError, ValueError: if it holds no unambiguous, non-empty, finite 2-D
            floating-point array; the message says what it does hold.
        ImportError: if a .parquet file is given without pyarrow.
    """
    embeddings = open_embeddings("embeddings", source)
    if check_finite:
        for _ in embeddings.pieces():
            pass
    return embeddings.array
