"""What `InvertedIndex` accepts, checked and brought to one form; imports no PyTorch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from csrkern.arguments import as_csr, check_places, float32_array, integers, row_starts
from csrkern.codes import file as codes_file
from csrkern.identity import check_same_model

if TYPE_CHECKING:
    from typing import TypeGuard

    from csrkern.codes.sparse import SparseCodes


class Rows(NamedTuple):
    """Sparse rows: values and indices [n, k], or flat with starts [n + 1] where given."""

    values: np.ndarray
    indices: np.ndarray
    starts: np.ndarray | None
    dim: int
    fingerprint: str | None = None  # of the model that made them

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.values) if self.starts is None else len(self.starts) - 1

    @property
    def k(self) -> int:
        """The most slots in one row."""
        return self.values.shape[1] if self.starts is None else int(self.lengths.max(initial=0))

    @property
    def lengths(self) -> np.ndarray:
        """Slots of each row, int64 [n]."""
        if self.starts is None:
            return np.full(self.n, self.k, np.int64)
        return np.diff(self.starts)

    def between(self, first: int, end: int) -> Rows:
        """Return rows first..end-1, as views."""
        entries, starts = slice(first, end), None
        if self.starts is not None:
            entries = slice(self.starts[first], self.starts[end])
            starts = self.starts[first : end + 1] - entries.start
        return self._replace(
            values=self.values[entries], indices=self.indices[entries], starts=starts
        )

    def take(self, rows: np.ndarray) -> Rows:
        """Return the rows of these numbers, in their order, with starts."""
        flat = self.flat()
        assert flat.starts is not None
        lengths = flat.lengths[rows]
        starts = starts_of(lengths)
        at = np.arange(starts[-1]) + np.repeat(flat.starts[rows] - starts[:-1], lengths)
        return self._replace(values=flat.values[at], indices=flat.indices[at], starts=starts)

    def copy(self) -> Rows:
        """Return the same rows in memory of their own."""
        starts = None if self.starts is None else self.starts.copy()
        return self._replace(values=self.values.copy(), indices=self.indices.copy(), starts=starts)

    def flat(self) -> Rows:
        """Return the same rows with starts, and no entries behind the last one."""
        starts = self.starts
        if starts is None:
            starts = np.arange(self.n + 1, dtype=np.int64) * self.k
        values, indices = (array.ravel()[: starts[-1]] for array in self[:2])
        return self._replace(values=values, indices=indices, starts=starts)

    def strongest(self, k: int) -> Rows:
        """Return the k largest entries of each row, by value descending, then by latent."""
        flat = self.flat()
        rows = np.repeat(np.arange(flat.n), flat.lengths)
        # By their bits, which ascend with the value even where denormals compare as 0.
        order = np.lexsort((flat.indices, -flat.values.view(np.int32), rows))
        kept = order[np.arange(len(rows)) - starts_of(flat.lengths)[rows] < k]
        starts = starts_of(np.minimum(flat.lengths, k))
        return self._replace(values=flat.values[kept], indices=flat.indices[kept], starts=starts)


def starts_of(lengths: np.ndarray | list[int]) -> np.ndarray:
    """Return where rows of these lengths start, and the last one ends, int64 [n + 1]."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def concatenate_rows(pieces: Sequence[Rows]) -> Rows:
    """Return the rows of several pieces, at least one, over the same latents, as one."""
    if len(pieces) == 1:
        return pieces[0]
    flat = [rows.flat() for rows in pieces]
    return pieces[0]._replace(
        values=np.concatenate([rows.values for rows in flat]),
        indices=np.concatenate([rows.indices for rows in flat]),
        starts=starts_of(np.concatenate([rows.lengths for rows in flat])),
    )


def pad_rows(
    values: np.ndarray, indices: np.ndarray, lengths: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows that lie one after the other as [n, k] slots, filled from the left, zeros behind."""
    filled = np.arange(k) < lengths[:, None]
    slots = np.zeros(filled.shape, values.dtype), np.zeros(filled.shape, indices.dtype)
    slots[0][filled], slots[1][filled] = values, indices
    return slots


def read_rows(name: str, codes: Any, dim: int | None) -> Rows:
    """`codes` in any accepted form as float32 values and int32 indices.

    Raises:
        TypeError: if the form is not one of those accepted.
        ValueError: if shapes disagree, a latent is out of range, or the form does not say
            how many latents there are and `dim` is None.
    """
    if is_codes(codes):
        values, indices = codes.numpy()
        values = values if values.dtype == np.float32 else float32_array(name, values)
        arrays = np.ascontiguousarray(values), np.ascontiguousarray(indices)
        return Rows(*arrays, None, same_dim(name, codes.dim, dim), codes.fingerprint)
    if isinstance(codes, Rows):
        dim = same_dim(name, codes.dim, dim)
        if codes.starts is not None:
            return codes
        rows = _fixed_width(name, codes.values, codes.indices, dim)
        return rows._replace(fingerprint=codes.fingerprint)
    if isinstance(codes, (tuple, list)) and len(codes) == 2:
        if dim is None:
            raise ValueError(f"{name}: a (values, indices) pair needs dim=, the number of latents")
        return _fixed_width(name, codes[0], codes[1], dim)
    if hasattr(codes, "tocsr"):
        return _scipy(name, codes, dim)
    if hasattr(codes, "layout") and hasattr(codes, "is_sparse"):
        return _torch(name, codes, dim)
    raise TypeError(
        f"{name}: expected SparseCodes, a SciPy sparse matrix, a torch sparse tensor or a pair "
        f"of arrays (values, indices), got {type(codes).__name__}; "
        "SparseCodes.from_dense converts a dense matrix"
    )


def no_lists(n: int, dim: int) -> Rows:
    """Return n rows without an entry."""
    return Rows(np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros(n + 1, np.int64), dim)


def is_codes(given: Any) -> TypeGuard[SparseCodes]:
    """Return whether `given` is SparseCodes, without importing them."""
    codes_module = sys.modules.get("csrkern.codes.sparse")
    return codes_module is not None and isinstance(given, codes_module.SparseCodes)


def check_shapes(name: str, values: Any, indices: Any) -> None:
    """Check that the arrays or tensors of a pair are of one shape [n, k]."""
    shapes = list(np.shape(values)), list(np.shape(indices))
    if len(shapes[0]) != 2 or shapes[0] != shapes[1]:
        raise ValueError(
            f"{name}: expected values and indices of one shape [n, k], "
            f"got {shapes[0]} and {shapes[1]}"
        )


def same_dim(name: str, have: int, want: int | None) -> int:
    """Return the number of latents of codes, which is `want` unless that is None."""
    if want is not None and have != want:
        raise ValueError(f"{name}: expected codes over {want} latents, got {have}")
    return int(have)


def _fixed_width(name: str, given_values: Any, given_indices: Any, dim: int) -> Rows:
    values = float32_array(f"values of {name}", given_values)
    indices = integers(f"indices of {name}", given_indices)
    check_shapes(name, values, indices)
    return Rows(values, _int32(name, indices, dim), None, dim)


def _scipy(name: str, matrix: Any, dim: int | None) -> Rows:
    if len(matrix.shape) != 2:
        raise ValueError(f"{name}: expected a matrix [n, dim], got shape {list(matrix.shape)}")
    if matrix.format != "csr":
        matrix = as_csr(name, matrix)
    dim = same_dim(name, matrix.shape[1], dim)
    starts = row_starts(
        name, matrix.indptr, matrix.shape[0], min(len(matrix.indices), matrix.data.size)
    )
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
        starts = np.asarray(matrix.indptr, np.int64)
    n = int(starts[-1])
    values = float32_array(f"values of {name}", matrix.data[:n])
    indices = integers(f"indices of {name}", matrix.indices[:n])
    return Rows(values, _int32(name, indices, dim), starts, dim)


def _torch(name: str, tensor: Any, dim: int | None) -> Rows:
    if tensor.dim() != 2:
        raise ValueError(f"{name}: expected a tensor [n, dim], got shape {list(tensor.shape)}")
    dim = same_dim(name, tensor.shape[1], dim)
    layout = str(tensor.layout)
    if tensor.is_sparse and tensor.dense_dim() > 0:
        raise ValueError(f"{name}: expected a tensor with two sparse axes, got one that is dense")
    tensor = tensor.detach().cpu()
    if layout == "torch.sparse_coo":
        # Coalescing reads places, and takes wild ones for others.
        rows, indices = tensor._indices().numpy()
        check_places(name, rows, indices, tuple(tensor.shape))
        if (np.diff(rows) < 0).any():
            tensor = tensor._coalesced_(False)  # whatever it says of itself
        tensor = tensor.coalesce()
        rows, indices = tensor.indices().numpy()
        starts = starts_of(np.bincount(rows, minlength=tensor.shape[0]))
    elif layout == "torch.sparse_csr":
        indices = tensor.col_indices().numpy()
        starts = tensor.crow_indices().numpy()
    else:
        raise TypeError(
            f"{name}: expected a sparse COO or CSR tensor, got layout {layout}; "
            "SparseCodes.from_dense converts a dense matrix"
        )
    starts = row_starts(name, starts, tensor.shape[0], len(indices))
    values = float32_array(f"values of {name}", tensor.values())
    return Rows(values, _int32(name, indices, dim), starts, dim)


def _int32(name: str, indices: np.ndarray, dim: int) -> np.ndarray:
    if indices.size and not np.can_cast(indices.dtype, np.int32):
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= dim:
            wrong = low if low < 0 else high
            raise ValueError(f"{name}: expected latents in 0..{dim - 1}, got {wrong}")
    return np.ascontiguousarray(indices, dtype=np.int32)


def check_ids(ids: Any, n: int) -> np.ndarray:
    """n distinct ids as int64."""
    array = integers("ids", ids)
    if array.shape != (n,):
        raise ValueError(f"ids: expected one id for each of {n} codes, got {list(array.shape)}")
    if n and (array.min() < 0 or array.max() >= 2**63):
        raise ValueError("ids: expected integers in 0..2^63-1; -1 marks a missing result")
    array = np.array(array, dtype=np.int64)
    if (np.diff(array) <= 0).any() and (np.diff(np.sort(array)) == 0).any():
        raise ValueError("ids: expected distinct ids; one occurs twice")
    return array


def check_norms(norms: Any, n: int) -> np.ndarray:
    """n positive finite norms as float32."""
    array = np.array(float32_array("norms", norms))
    if array.shape != (n,):
        raise ValueError(f"norms: expected one for each of {n} codes, got {list(array.shape)}")
    wrong = np.flatnonzero(~(np.isfinite(array) & (array > 0)))
    if len(wrong):
        raise ValueError(f"norms: expected positive numbers, got {array[wrong[0]]}")
    return array


def can_be_read_twice(codes: Any) -> bool:
    """Whether `codes` are a path or a pair of arrays, not an iterable."""
    return isinstance(codes, (str, os.PathLike)) or _is_pair(codes)


def _is_pair(codes: Any) -> bool:
    pair = isinstance(codes, (tuple, list)) and len(codes) == 2
    return pair and isinstance(codes[0], np.ndarray)


def code_chunks(codes: Any, dim: int | None, most: int) -> Iterator[Rows]:
    """`codes` in chunks of at most `most` rows.

    A path names a file of `SparseCodes.save`; a pair of arrays may be mapped; anything else is
    taken for an iterable of pieces, which are gathered: a piece of more rows is a chunk of its own.

    Raises:
        TypeError, ValueError: if `codes` are none of these, or as `read_rows`.
    """
    if isinstance(codes, (str, os.PathLike)):
        stored = codes_file.read(codes)
        for chunk in _slices(stored.values, stored.indices, most):
            yield read_rows("codes", Rows(*chunk, None, stored.dim, stored.fingerprint), dim)
    elif _is_pair(codes):
        values, indices = codes
        check_shapes("codes", values, indices)
        for chunk in _slices(values, indices, most):
            yield read_rows("codes", chunk, dim)
    elif isinstance(codes, Iterable) and not hasattr(codes, "shape"):
        yield from _gathered(codes, dim, most)
    else:
        raise TypeError(
            "codes: expected a path, a pair of arrays or an iterable of codes, "
            f"got {type(codes).__name__}"
        )


def _slices(
    values: np.ndarray, indices: np.ndarray, most: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for first in range(0, max(len(values), 1), most):
        yield values[first : first + most], indices[first : first + most]


def _gathered(pieces: Iterable[Any], dim: int | None, most: int) -> Iterator[Rows]:
    gathered: list[Rows] = []
    fingerprint: str | None = None
    n = 0
    for piece in pieces:
        rows = read_rows("codes", piece, dim)
        if dim is None or fingerprint is None:
            dim, fingerprint = rows.dim, rows.fingerprint
        check_same_model("codes", rows.fingerprint, fingerprint, holder="those before")
        if gathered and n + rows.n > most:
            yield concatenate_rows(gathered)
            gathered, n = [], 0
        if rows.n >= most:
            yield rows
            continue
        gathered.append(rows.copy())  # its maker may fill the same arrays again
        n += rows.n
    if gathered:
        yield concatenate_rows(gathered)
