"""SparseCodes: k non-negative values and their latents for each row."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils.data._utils.collate import default_collate_fn_map

from csrkern import _C
from csrkern._native import NATIVE_DTYPES, call
from csrkern.arguments import (
    OF_SIGNED,
    array_of,
    as_int,
    check_not_negative,
    check_places,
    check_positive,
    int64_array,
    integers,
    matrix_entries,
    row_numbers,
    shown,
)
from csrkern.codes import file as codes_file
from csrkern.codes import slots
from csrkern.identity import common_fingerprint
from csrkern.ops.latents import latents_of
from csrkern.ops.validation import check_dim, check_slots, check_tensor
from csrkern.storage import write_atomically

if TYPE_CHECKING:
    import scipy.sparse


_Real = float  # a name that no method of SparseCodes has


class SparseCodes:
    """Sparse codes of n rows over `dim` latents, at most k active in each row.

    Attributes:
        values: [n, k], floating point, ≥ 0 and non-increasing along a row.
        indices: [n, k], int32, the latent of each value; distinct within a row.
        dim: number of latents h.
        fingerprint: of the model that made them (`SparseAutoencoder.fingerprint`); None: not
            known. Codes made of these keep it.

    Equal values stand in order of their index. A row with fewer than k active latents is
    padded with value 0 and index 0; a padded slot means nothing, everywhere. So the first
    k' columns are exactly the code at k' < k (`truncate`). Operators produce codes in this
    form; `validate` checks it for codes from elsewhere, and the `from_*` constructors
    establish it. What follows an index checks that it is in range, and raises IndexError; on a
    GPU, which would have to be waited for, kernels take such a slot for an empty one.

    Raises:
        TypeError, ValueError: if the two arrays are not 2-D tensors of one shape and
            device, `indices` is not int32, or `dim` is smaller than k.
    """

    __slots__ = ("__weakref__", "dim", "fingerprint", "indices", "values")

    values: Tensor
    indices: Tensor
    dim: int
    fingerprint: str | None

    def __init__(
        self, values: Tensor, indices: Tensor, dim: int, fingerprint: str | None = None
    ) -> None:
        check_slots(values, indices)
        dim = check_dim(dim, values.shape[1])
        self.values = values
        self.indices = indices
        self.dim = dim
        self.fingerprint = fingerprint

    # ---- shape and form ---------------------------------------------------------------

    @property
    def k(self) -> int:
        """Slots per row."""
        return self.values.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(n, dim): the shape of the dense matrix these codes stand for."""
        return self.values.shape[0], self.dim

    @property
    def device(self) -> torch.device:
        """Where both tensors live."""
        return self.values.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the values."""
        return self.values.dtype

    @property
    def active(self) -> Tensor:
        """[n, k] bool: True where a slot holds an active latent, False where it is padding."""
        return self.values != 0

    def latents(self) -> Tensor:
        """Return the latent of each slot, int64 [n, k], and 0 in empty slots: indices for PyTorch.

        Raises:
            IndexError: on a CPU, if an active latent is not in 0..dim-1.
        """
        return latents_of(self.values, self.indices, self.dim)

    def _with(self, values: Tensor, indices: Tensor) -> SparseCodes:
        """Return other codes of the same model."""
        return SparseCodes(values, indices, self.dim, self.fingerprint)

    def __len__(self) -> int:
        return self.values.shape[0]

    def __getitem__(self, rows: int | slice | Tensor | np.ndarray | Sequence[int]) -> SparseCodes:
        """Rows by number, slice, list of numbers or boolean mask; always SparseCodes [m, k].

        Raises:
            IndexError: if `rows` is anything else, or names a row that is not there.
        """
        # PyTorch checks these itself, and can trace them.
        kinds = torch.int64, torch.bool
        if not (isinstance(rows, Tensor) and rows.dim() == 1 and rows.dtype in kinds):
            numbers = row_numbers(rows, self.values.shape[0])  # not len(), a constant when traced
            rows = numbers if isinstance(numbers, slice) else torch.from_numpy(numbers)
        return self._with(self.values[rows], self.indices[rows])

    def __iter__(self) -> Iterator[SparseCodes]:
        """Yield each row, as SparseCodes [1, k]."""
        return (self[row : row + 1] for row in range(len(self)))

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        """Say what to call: NumPy would make an array of objects of them, row by row."""
        raise TypeError(
            "SparseCodes are no array: codes.numpy() gives values and indices, "
            "codes.to_dense() the matrix [n, dim] and codes.to_scipy() a sparse one"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return SparseCodes, (self.values, self.indices, self.dim, self.fingerprint)

    def __repr__(self) -> str:
        return (
            f"SparseCodes(n={len(self)}, k={self.k}, dim={self.dim}, {self.dtype}, {self.device})"
        )

    def _repr_html_(self) -> str:
        """Return what a notebook shows: how latents are used, and the first rows."""
        from csrkern.codes.html import to_html

        return to_html(self)

    def truncate(self, k: int) -> SparseCodes:
        """Return the codes at a smaller k: the first k columns, sharing memory.

        Raises:
            ValueError: if k is not in 1..self.k.
        """
        if type(k) is not int and not isinstance(k, torch.SymInt):
            k = as_int("k", k)
        if not 1 <= k <= self.k:
            raise ValueError(f"k: expected 1 <= k <= {self.k}, got {shown(k)}")
        return self._with(self.values[:, :k], self.indices[:, :k])

    def threshold(self, mean: _Real) -> _Real:
        """Return the least number above which rows have `mean` active latents on average, at most.

        `above(threshold)` then gives a set of rows, and others like them, codes of a length of
        their own: few latents where few are strong. A row keeps k of them at most, so take codes
        of a k well above the mean. Of values that are equal to the threshold none is kept.

        Raises:
            TypeError, ValueError: if the mean is not a positive number.
        """
        # 0.29 · 100 is a little less than 29 in floating point.
        wanted = check_positive("mean", mean) * len(self) * (1 + 1e-12)
        values = self.values.detach().flatten()
        if wanted >= values.numel():
            return 0.0
        kept = int(wanted)
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        return float(values.kthvalue(values.numel() - kept).values)

    def above(self, threshold: _Real | Tensor | np.ndarray) -> SparseCodes:
        """Return the codes without the latents whose value is not above a threshold.

        Slots stay as many; those after a row's last latent are empty, and no operator computes
        with them. `trim` leaves out slots that are empty in all rows. NaN stays. Differentiable.

        Args:
            threshold: a number, such as `threshold` returns, or [dim], one for each latent, as
                JumpReLU autoencoders have them; not negative.

        Raises:
            TypeError, ValueError: if it is neither, or negative or NaN.
        """
        if isinstance(threshold, (Tensor, np.ndarray)):
            if isinstance(threshold, np.ndarray):
                threshold = torch.from_numpy(np.ascontiguousarray(threshold))
            if threshold.is_complex():
                raise TypeError(f"threshold: expected real numbers, got {threshold.dtype}")
            each = threshold.to(self.device)
            if each.shape != (self.dim,) or not bool((each >= 0).all()):
                raise ValueError(
                    f"threshold: expected a number or [{self.dim}] numbers, none negative, got "
                    f"shape {list(each.shape)}"
                )
            kept = self.active & ~(self.values <= each[self.latents()])
            order = (~kept).to(torch.uint8).argsort(dim=1, stable=True)
            kept, values = kept.gather(1, order), self.values.gather(1, order)
            indices = self.indices.gather(1, order)
        else:
            wide = self.values.to(torch.promote_types(self.values.dtype, torch.float32))
            kept = ~(wide <= check_not_negative("threshold", threshold))
            values, indices = self.values, self.indices
        return self._with(torch.where(kept, values, 0), torch.where(kept, indices, 0))

    def trim(self) -> SparseCodes:
        """Return the codes with as many slots as the fullest row needs, and at least one."""
        if not self.k:
            return self
        return self.truncate(max(1, int(self.active.sum(1).max()) if len(self) else 1))

    def max_pool(
        self, lengths: Tensor | np.ndarray | Sequence[int], k: int | None = None
    ) -> SparseCodes:
        """Return one code for each run of rows: the largest value of each latent, of them the k.

        Rows are the tokens of texts, one text after the other. This is the max-pooling of SPLADE,
        without the matrix [tokens, dim]. Gradients flow to the values that were kept, of equal
        ones to that of the first row.

        Args:
            lengths: [n] integers, the rows of each text; a text of none has an empty code.
            k: slots of a text; None: as many as a row has.

        Raises:
            TypeError, ValueError: if a length is negative or no integer, they do not add up to
                the number of rows, or k is not in 1..dim.
        """
        counts = int64_array("lengths", lengths)
        if counts.ndim != 1 or (counts < 0).any() or int(counts.sum()) != len(self):
            raise ValueError(
                f"lengths: expected [n] numbers of rows that add up to {len(self)}, none negative, "
                f"got shape {list(counts.shape)} and a sum of {int(counts.sum())}"
            )
        k = self.k if k is None else as_int("k", k)
        if not 1 <= k <= self.dim:
            raise ValueError(f"k: expected 1 <= k <= dim = {self.dim}, got {shown(k)}")
        rows = torch.from_numpy(counts).to(self.device)
        return self._with(
            *slots.largest_of_groups(self.values, self.latents(), self.active, rows, self.dim, k)
        )

    def to(self, *args: Any, **kwargs: Any) -> SparseCodes:
        """Like `Tensor.to`: a device moves both tensors, a dtype converts the values.

        No active latent is lost: a value too small for a narrower dtype becomes the least
        positive one. Slots that rounding makes equal are put back in order.
        """
        values = self.values.to(*args, **kwargs)
        if not values.dtype.is_floating_point:
            raise TypeError(f"values: expected a floating-point dtype, got {values.dtype}")
        indices = self.indices.to(values.device)
        if torch.promote_types(self.dtype, values.dtype) == values.dtype:
            return self._with(values, indices)
        values = slots.keep_active(self.values.to(values.device), values)
        return self._with(*slots.in_order(values, indices.long(), self.dim))

    def cpu(self) -> SparseCodes:
        """Return the same codes on the CPU."""
        return self.to("cpu")

    def float(self) -> SparseCodes:
        """Return the codes with float32 values."""
        return self.to(torch.float32)

    def half(self) -> SparseCodes:
        """Return the codes with float16 values; see `to`."""
        return self.to(torch.float16)

    def clone(self) -> SparseCodes:
        """Return the same codes in memory of their own; differentiable."""
        return self._with(self.values.clone(), self.indices.clone())

    def contiguous(self) -> SparseCodes:
        """Return the same codes, each tensor in one piece."""
        return self._with(self.values.contiguous(), self.indices.contiguous())

    def pin_memory(self) -> SparseCodes:
        """Return the same codes in page-locked memory, as a DataLoader asks for."""
        return self._with(self.values.pin_memory(), self.indices.pin_memory())

    def detach(self) -> SparseCodes:
        """Return the same codes outside the autograd graph."""
        return self._with(self.values.detach(), self.indices)

    def normalize(self) -> SparseCodes:
        """Rows at L2 norm 1; a row without an active latent stays zero. Differentiable."""
        values = self.values
        if values.dtype in (torch.float16, torch.bfloat16):
            values = values.float()
        if self.k:
            values = values / slots.powers_of_two(values.detach().abs().amax(1, keepdim=True))
        square = values.square().sum(1, keepdim=True)
        inverse = torch.where(square > 0, square, torch.ones_like(square)).rsqrt()
        return self._with((values * inverse).to(self.dtype), self.indices)

    def power(self, exponent: _Real) -> SparseCodes:
        """Codes with every active value raised to `exponent` > 0. Differentiable.

        An exponent of 0.5 evens out the latents of a code, so that search by codes on both sides
        depends less on one of them. Reconstructions need the values as they were.

        Raises:
            ValueError: if the exponent is not a positive number.
        """
        exponent = check_positive("exponent", exponent)
        active = self.active
        # The slope of a root at 0 is infinite: empty slots stay out of it.
        values = torch.where(active, self.values, torch.ones_like(self.values)).pow(exponent)
        return self._with(torch.where(active, values, 0), self.indices)

    @staticmethod
    def cat(parts: Iterable[SparseCodes]) -> SparseCodes:
        """Codes stacked by rows; all parts share k and dim.

        They have the fingerprint of the parts, None if that of a part is not known.

        Raises:
            ValueError: if there are no parts or they differ in k or dim, or
                (ModelMismatchError) were made by different models.
        """
        parts = list(parts)
        if not parts:
            raise ValueError("parts: expected at least one SparseCodes, got none")
        for part in parts:
            check_codes("parts", part)
        if len({(p.k, p.dim) for p in parts}) > 1:
            raise ValueError(f"parts: expected one (k, dim), got {[(p.k, p.dim) for p in parts]}")
        return SparseCodes(
            torch.cat([p.values for p in parts]),
            torch.cat([p.indices for p in parts]),
            parts[0].dim,
            common_fingerprint("parts", [p.fingerprint for p in parts]),
        )

    # ---- equality and validity --------------------------------------------------------

    def equal(self, other: SparseCodes) -> bool:
        """Return whether dim, indices and the bits of values are the same; models may differ."""
        if self.dim != other.dim or self.values.shape != other.values.shape:
            return False
        same = (self.values == other.values) | (self.values.isnan() & other.values.isnan())
        return bool(same.all()) and torch.equal(self.indices, other.indices)

    def validate(self) -> SparseCodes:
        """Return self if every invariant holds.

        Raises:
            ValueError: naming the first invariant that is broken and the row that breaks it.
        """
        check_slots(self.values, self.indices)
        check_dim(self.dim, self.k)
        if self._is_valid():
            return self
        values, indices, active = self.values.detach(), self.indices, self.active
        left, right = values[:, :-1], values[:, 1:]
        ascending = indices[:, :-1] < indices[:, 1:]
        beyond = self.dim + torch.arange(self.k, device=indices.device)
        latents = torch.where(active, indices.long(), beyond)
        repeats = latents.sort(1).values.diff(dim=1) == 0
        broken = {
            "indices in 0..dim-1": (indices < 0) | (indices >= self.dim),
            "values not negative": values < 0,
            "values non-increasing (NaN first)": (left < right) | (right.isnan() & ~left.isnan()),
            "equal values by lower index": (left == right) & active[:, 1:] & ~ascending,
            "padded slots with index 0": ~active & (indices != 0),
            "distinct latents": repeats,
        }
        for rule, where in broken.items():
            rows = where.any(1).nonzero()
            if len(rows):
                hint = OF_SIGNED if rule == "values not negative" else ""
                raise ValueError(f"not SparseCodes: {rule} is broken in row {int(rows[0])}{hint}")
        return self

    def _is_valid(self) -> bool:
        """Whether the native check, where there is one, finds that every invariant holds."""
        if self.device.type != "cpu" or self.dtype not in NATIVE_DTYPES:
            return False
        values, indices = self.values.detach().float().contiguous(), self.indices.contiguous()
        row = call(_C.first_invalid, values, indices, len(self), self.k, self.dim)
        return bool(row == len(self))

    # ---- dense and sparse forms -------------------------------------------------------

    def to_dense(self) -> Tensor:
        """[n, dim], differentiable in the values."""
        latents = self.latents()
        values = torch.where(self.active, self.values, torch.zeros_like(self.values))
        return values.new_zeros(self.shape).scatter_add_(1, latents, values)

    @staticmethod
    def from_dense(dense: Tensor, k: int | None = None) -> SparseCodes:
        """Codes of a non-negative matrix [n, dim]: its k largest entries a row.

        With k None, k is the largest number of non-zeros in a row (at least 1), so nothing
        is lost. Integers become float32.

        Raises:
            TypeError: if it is no tensor of real numbers.
            ValueError: if an entry is negative or not finite, or k is out of range.
        """
        if isinstance(dense, Tensor):
            dense = slots.as_floats("dense", dense)
        check_tensor("dense", dense, (None, None))
        slots.check_entries("dense", dense)
        rows, latents = dense.nonzero(as_tuple=True)
        n, dim = dense.shape
        return SparseCodes(
            *slots.of_entries("dense", rows, latents, dense[rows, latents], (n, dim), k), dim
        )

    def _entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row, latent and value of every active slot, by row and then by latent."""
        rows, places = self.active.nonzero(as_tuple=True)
        latents = self.latents()[rows, places]
        order = torch.argsort(rows * self.dim + latents)
        return rows[order], latents[order], self.values[rows[order], places[order]]

    def to_torch_coo(self) -> Tensor:
        """Return a coalesced torch.sparse_coo tensor [n, dim]."""
        rows, latents, values = self._entries()
        return torch.sparse_coo_tensor(
            torch.stack([rows, latents]),
            values,
            self.shape,
            is_coalesced=True,
            check_invariants=False,
        )

    def to_torch_csr(self) -> Tensor:
        """Return a torch.sparse_csr tensor [n, dim] with int64 indices."""
        rows, latents, values = self._entries()
        counts = torch.bincount(rows, minlength=len(self))
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return torch.sparse_csr_tensor(starts, latents, values, self.shape, check_invariants=False)

    @staticmethod
    def from_torch(sparse: Tensor, k: int | None = None) -> SparseCodes:
        """Codes of a torch sparse COO or CSR tensor [n, dim]; duplicates summed, k as above.

        Raises:
            TypeError, ValueError: as `from_scipy`.
        """
        layout = getattr(sparse, "layout", type(sparse).__name__)
        if layout not in (torch.sparse_coo, torch.sparse_csr):
            raise TypeError(f"sparse: expected a COO or CSR tensor, got layout {layout}")
        if sparse.dim() != 2 or sparse.dense_dim():
            raise ValueError(f"sparse: expected a matrix [n, dim], got {list(sparse.shape)}")
        n, dim = sparse.shape
        if layout == torch.sparse_csr:
            latents = sparse.col_indices()
            rows = slots.rows_of_starts("sparse", sparse.crow_indices(), n, len(latents))
            values = sparse.values()[: len(rows)]
            latents = latents[: len(rows)]
        else:
            # Coalescing reads places, and takes wild ones for others.
            rows, latents = sparse._indices()
            check_places("sparse", rows, latents, (n, dim))
            sparse = sparse.coalesce()
            (rows, latents), values = sparse.indices(), sparse.values()
        return SparseCodes(*slots.of_entries("sparse", rows, latents, values, (n, dim), k), dim)

    def to_scipy(self) -> scipy.sparse.csr_array:
        """Return a SciPy CSR array [n, dim] with sorted indices (needs SciPy)."""
        import scipy.sparse

        rows, latents, values = (part.detach().cpu() for part in self._entries())
        starts = np.zeros(len(self) + 1, np.int64)
        np.cumsum(np.bincount(rows.numpy(), minlength=len(self)), out=starts[1:])
        if starts[-1] <= np.iinfo(np.int32).max:  # of one type with the latents: many want int32
            starts = starts.astype(np.int32)
            latents = latents.int()
        values = values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
        return scipy.sparse.csr_array((values.numpy(), latents.numpy(), starts), shape=self.shape)

    @staticmethod
    def from_scipy(matrix: Any, k: int | None = None) -> SparseCodes:
        """Codes of any SciPy sparse matrix [n, dim], duplicates summed; k as in `from_dense`.

        Integers become float32.

        Raises:
            TypeError: if it is no sparse matrix of real numbers.
            ValueError: if its arrays do not fit together, a row or latent is out of range, an
                entry is negative or not finite, or k is out of range.
        """
        if not hasattr(matrix, "tocoo"):
            raise TypeError(
                f"matrix: expected a SciPy sparse matrix, got {type(matrix).__name__}; "
                "SparseCodes.from_dense takes a dense tensor"
            )
        if len(matrix.shape) != 2:
            raise ValueError(f"matrix: expected shape [n, dim], got {list(matrix.shape)}")
        rows, latents, data = matrix_entries("matrix", matrix)
        entries = (
            torch.from_numpy(rows),
            torch.from_numpy(latents),
            slots.float_tensor("matrix", data),
        )
        return SparseCodes(*slots.of_entries("matrix", *entries, matrix.shape, k), matrix.shape[1])

    def numpy(self) -> tuple[np.ndarray, np.ndarray]:
        """(values, indices) as NumPy arrays; bfloat16 values come as float32."""
        values = self.values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values
        return values.numpy(), self.indices.cpu().numpy()

    @staticmethod
    def from_numpy(values: Any, indices: Any, dim: int) -> SparseCodes:
        """Codes of two arrays [n, k] (NumPy's, or any with DLPack in host memory).

        Slots may come in any order; a slot of value 0 is empty, whatever its index. Integer
        values become float32.

        Raises:
            TypeError: if values are not real numbers, or indices not integers.
            ValueError: if a value is negative or not finite, or a latent is out of range or comes
                twice in a row.
        """
        values, indices = array_of("values", values), integers("indices", indices)
        if values.ndim != 2 or values.shape != indices.shape:
            raise ValueError(
                "values and indices: expected two arrays of one shape [n, k], "
                f"got {list(values.shape)} and {list(indices.shape)}"
            )
        dim = check_dim(dim, values.shape[1])
        floats = slots.float_tensor("values", values)
        slots.check_entries("values", floats)
        wrong = (values != 0) & ~((indices >= 0) & (indices < dim))
        if wrong.any():
            row, slot = (int(part[0]) for part in wrong.nonzero())
            raise ValueError(
                f"indices: expected latents in 0..{dim - 1}, got {indices[row, slot]} in row {row}"
            )
        latents = torch.from_numpy(indices.astype(np.int64))
        return SparseCodes(*slots.in_order(floats, latents, dim), dim).validate()

    # ---- signed codes -----------------------------------------------------------------

    @staticmethod
    def from_signed(values: Tensor, indices: Tensor, dim: int) -> SparseCodes:
        """Codes over 2·dim latents of values of either sign: latent i as i, or below 0 as i + dim.

        So autoencoders that keep the k largest magnitudes (AbsTopK, CompresSAE) are such as keep
        the k largest of twice as many latents, and training, operators, files and the index take
        their codes. Exactly the same are

        - the selection: `topk_relu` of [pre, −pre];
        - the reconstruction: `decode` with the dictionary [W; −W];
        - the inner product of signed codes a and b: similarity(a, b) − similarity(a, b.negate()).

        An index scores by the first of these two alone: latents of one sign on both sides add what
        they did, and those of opposite signs 0 instead of what they took away.

        Args:
            values: [n, k]; slots may come in any order, and a slot of value 0 is empty.
            indices: [n, k] integers, the latent of each value, in 0..dim-1.
            dim: number of signed latents.

        Differentiable in the values.

        Raises:
            TypeError, ValueError: if they are no such tensors, a value is not finite, or a latent
                is out of range or repeated in a row.
        """
        if isinstance(indices, Tensor):
            if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
                raise TypeError(f"indices: expected integers, got {indices.dtype}")
            indices = indices.long()
        check_slots(values, indices.int() if isinstance(indices, Tensor) else indices)
        dim = check_dim(2 * as_int("dim", dim), values.shape[1]) // 2
        slots.check_entries("values", values.detach().abs())
        used = values != 0
        wrong = used & ((indices < 0) | (indices >= dim))
        if bool(wrong.any()):
            row, slot = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"indices: expected latents in 0..{dim - 1}, got {int(indices[row, slot])} "
                f"in row {row}"
            )
        latents = torch.where(values < 0, indices + dim, indices)
        codes = SparseCodes(*slots.in_order(values.abs(), latents, 2 * dim), 2 * dim)
        beyond = dim + torch.arange(codes.k, device=codes.device)
        signless = torch.where(codes.active, codes.indices % max(1, dim), beyond)
        if bool((signless.sort(1).values.diff(dim=1) == 0).any()):
            raise ValueError("indices: expected each latent at most once in a row")
        return codes.validate()

    def to_signed(self) -> tuple[Tensor, Tensor]:
        """Return the values [n, k] of either sign and latents that `from_signed` made these of.

        Raises:
            ValueError: if dim is odd, so that these are no such codes.
        """
        half = self._half()
        values = torch.where(self.indices < half, self.values, -self.values)
        return values, torch.where(self.active, self.indices % max(1, half), 0)

    def negate(self) -> SparseCodes:
        """Return the codes of the negated values, of codes that `from_signed` made.

        Raises:
            ValueError: if dim is odd, so that these are no such codes.
        """
        half = self._half()
        latents = torch.where(self.indices < half, self.indices + half, self.indices - half)
        return self._with(*slots.in_order(self.values, latents.long(), self.dim))

    def _half(self) -> int:
        if self.dim % 2:
            raise ValueError(
                f"expected codes of SparseCodes.from_signed, over an even number of latents, "
                f"got {self.dim}"
            )
        return self.dim // 2

    # ---- storage ----------------------------------------------------------------------

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        dtype: str = "float32",
        notes: dict[str, str] | None = None,
    ) -> None:
        """Write the codes beside `path` and rename the file: a crash never leaves half of it.

        It is a safetensors file of values, exact as float32, and of indices: uint16 where
        dim ≤ 65,536, else int32. With dtype="float16" values are rounded as by `to`, which loses
        no latent. The metadata keep `notes`, for `csrkern.codes.file.notes`. A file holds what
        `load` reads: finite values, and codes that `validate` passes.

        Raises:
            ValueError: if `dtype` is not "float32" or "float16", or a value overflows it; naming
                the row, if these are no valid codes or a value is not finite.
        """
        if dtype not in ("float32", "float16"):
            raise ValueError(f"dtype: expected 'float32' or 'float16', got {dtype!r}")
        whole = self.detach().cpu().validate()
        slots.check_entries("values", whole.values)
        codes = whole.to(getattr(torch, dtype))
        if bool(codes.values.isinf().any()):
            raise ValueError(
                f"values: {float(whole.values.max()):.4g} does not fit in {dtype}"
                + ("; save as float32" if dtype == "float16" else "")
            )
        values, indices = codes.numpy()
        indices = indices.astype(np.uint16 if self.dim <= 65_536 else np.int32)
        tensors, facts = {"values": values, "indices": indices}, {"dim": self.dim}
        payload = codes_file.pack(codes_file.FORMAT, tensors, facts, self.fingerprint, notes)
        write_atomically(path, payload)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> SparseCodes:
        """Read a file written by `save`; float16 values stay float16.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is not a whole, valid code file.
        """
        stored = codes_file.read(path)
        try:
            codes = SparseCodes(
                torch.from_numpy(np.array(stored.values)),
                torch.from_numpy(stored.indices.astype(np.int32)),
                stored.dim,
                stored.fingerprint,
            ).validate()
            slots.check_entries("values", codes.values)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)} is damaged: {error}") from error
        return codes


class _Context(int):
    """The dim of flattened codes, which carries their fingerprint but is not told apart by it.

    So functions that were exported or mapped for codes of one model take those of another.
    """

    fingerprint: str | None


def _context(codes: SparseCodes) -> _Context:
    context = _Context(codes.dim)
    context.fingerprint = codes.fingerprint
    return context


def _flatten_with_keys(codes: SparseCodes) -> tuple[list[tuple[Any, Tensor]], _Context]:
    keys = _pytree.GetAttrKey("values"), _pytree.GetAttrKey("indices")
    return [*zip(keys, (codes.values, codes.indices), strict=True)], _context(codes)


def _unflatten(leaves: Iterable[Any], context: int) -> SparseCodes:
    codes = object.__new__(SparseCodes)  # pytree leaves need not be tensors
    codes.values, codes.indices = leaves
    codes.dim = int(context)
    # What is traced keeps its context for codes of whatever model.
    tracing = torch.compiler.is_compiling()
    codes.fingerprint = None if tracing else getattr(context, "fingerprint", None)
    return codes


_pytree.register_pytree_node(
    SparseCodes,
    lambda codes: ([codes.values, codes.indices], _context(codes)),
    _unflatten,
    serialized_type_name="csrkern.SparseCodes",
    flatten_with_keys_fn=_flatten_with_keys,
)

# torch.load takes them once this module is imported, and default_collate stacks rows of them.
torch.serialization.add_safe_globals([SparseCodes])


def _collate(batch: list[SparseCodes], *, collate_fn_map: Any = None) -> SparseCodes:
    return SparseCodes.cat(batch)


default_collate_fn_map[SparseCodes] = _collate


def check_codes(name: str, value: Any, dim: int | None = None) -> Any:
    """Return `value`, checked to be SparseCodes, of width `dim` if one is given."""
    if not isinstance(value, SparseCodes):
        raise TypeError(
            f"{name}: expected SparseCodes, got {type(value).__name__}; "
            "SparseCodes.from_dense / from_scipy / from_torch convert other forms"
        )
    if dim is not None and value.dim != dim:
        raise ValueError(f"{name}: expected codes over {dim} latents, got {value.dim}")
    return value
