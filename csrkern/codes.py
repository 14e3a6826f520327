"""SparseCodes: k non-negative values and their latents for each row."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree

from csrkern import codes_file
from csrkern.arguments import array_of
from csrkern.codes_slots import in_order, of_entries, powers_of_two
from csrkern.identity import common_fingerprint
from csrkern.ops.latents import latents_of
from csrkern.storage import write_atomically
from csrkern.validation import check_dim, check_slots

if TYPE_CHECKING:
    import scipy.sparse

    from csrkern.codes_packed import PackedCodes


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
    establish it.

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

    def _with(self, values: Tensor, indices: Tensor) -> SparseCodes:
        """Return other codes of the same model."""
        return SparseCodes(values, indices, self.dim, self.fingerprint)

    def __len__(self) -> int:
        return self.values.shape[0]

    def __getitem__(self, rows: int | slice | Tensor | np.ndarray | Sequence[int]) -> SparseCodes:
        """Rows by number, slice, index list or boolean mask; always SparseCodes [m, k]."""
        if isinstance(rows, (int, np.integer)) or getattr(rows, "shape", None) == ():
            position = int(rows)  # type: ignore[arg-type]
            if not -len(self) <= position < len(self):
                raise IndexError(f"row {position} is out of range for {len(self)} codes")
            rows = slice(position, position + 1 or None)
        elif not isinstance(rows, (slice, Tensor)):
            chosen = np.asarray(rows)
            rows = torch.from_numpy(chosen if chosen.dtype == bool else chosen.astype(np.int64))
        return self._with(self.values[rows], self.indices[rows])

    def __repr__(self) -> str:
        return (
            f"SparseCodes(n={len(self)}, k={self.k}, dim={self.dim}, {self.dtype}, {self.device})"
        )

    def truncate(self, k: int) -> SparseCodes:
        """The codes at a smaller k: the first k columns, sharing memory.

        Raises:
            ValueError: if k is not in 1..self.k.
        """
        if not 1 <= k <= self.k:
            raise ValueError(f"k: expected 1 <= k <= {self.k}, got {k}")
        return self._with(self.values[:, :k], self.indices[:, :k])

    def to(self, *args: Any, **kwargs: Any) -> SparseCodes:
        """Like `Tensor.to`: a device moves both tensors, a dtype converts the values.

        Slots that rounding to a narrower dtype makes equal, or empty, are put back in order.
        """
        values = self.values.to(*args, **kwargs)
        if not values.dtype.is_floating_point:
            raise TypeError(f"values: expected a floating-point dtype, got {values.dtype}")
        indices = self.indices.to(values.device)
        if torch.finfo(values.dtype).eps > torch.finfo(self.dtype).eps:
            return self._with(*in_order(values, indices.long(), self.dim))
        return self._with(values, indices)

    def detach(self) -> SparseCodes:
        """The same codes outside the autograd graph."""
        return self._with(self.values.detach(), self.indices)

    def normalize(self) -> SparseCodes:
        """Rows at L2 norm 1; a row without an active latent stays zero. Differentiable."""
        values = self.values
        if values.dtype in (torch.float16, torch.bfloat16):
            values = values.float()
        values = values / powers_of_two(values.detach()[:, :1].contiguous())
        square = values.square().sum(1, keepdim=True)
        inverse = torch.where(square > 0, square, torch.ones_like(square)).rsqrt()
        return self._with((values * inverse).to(self.dtype), self.indices)

    def power(self, exponent: float) -> SparseCodes:
        """Codes with every active value raised to `exponent` > 0. Differentiable.

        An exponent of 0.5 evens out the latents of a code, so that search by codes on both sides
        depends less on one of them. Reconstructions need the values as they were.

        Raises:
            ValueError: if the exponent is not a positive number.
        """
        if not 0 < exponent < float("inf"):
            raise ValueError(f"exponent: expected a positive number, got {exponent}")
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
        """Same dim, same indices and bitwise-equal values (NaN equals NaN), of whatever model."""
        if self.dim != other.dim or self.values.shape != other.values.shape:
            return False
        same = (self.values == other.values) | (self.values.isnan() & other.values.isnan())
        return bool(same.all()) and torch.equal(self.indices, other.indices)

    def validate(self) -> SparseCodes:
        """Returns self if every invariant holds.

        Raises:
            ValueError: naming the first invariant that is broken and the row that breaks it.
        """
        check_slots(self.values, self.indices)
        check_dim(self.dim, self.k)
        values, indices, active = self.values.detach(), self.indices, self.active
        left, right = values[:, :-1], values[:, 1:]
        in_order = indices[:, :-1] < indices[:, 1:]
        latents = torch.where(active, indices.long(), self.dim + torch.arange(self.k).to(indices))
        repeats = latents.sort(1).values.diff(dim=1) == 0
        broken = {
            "indices in 0..dim-1": (indices < 0) | (indices >= self.dim),
            "values not negative": values < 0,
            "values non-increasing (NaN first)": (left < right) | (right.isnan() & ~left.isnan()),
            "equal values by lower index": (left == right) & active[:, 1:] & ~in_order,
            "padded slots with index 0": ~active & (indices != 0),
            "distinct latents": repeats,
        }
        for rule, where in broken.items():
            rows = where.any(1).nonzero()
            if len(rows):
                raise ValueError(f"not SparseCodes: {rule} is broken in row {int(rows[0])}")
        return self

    # ---- dense and sparse forms -------------------------------------------------------

    def to_dense(self) -> Tensor:
        """[n, dim], differentiable in the values."""
        latents = latents_of(self.values, self.indices, self.dim)
        values = torch.where(self.active, self.values, torch.zeros_like(self.values))
        return values.new_zeros(self.shape).scatter_add_(1, latents, values)

    @staticmethod
    def from_dense(dense: Tensor, k: int | None = None) -> SparseCodes:
        """Codes of a non-negative matrix [n, dim]: its k largest entries a row.

        With k None, k is the largest number of non-zeros in a row (at least 1), so nothing
        is lost.

        Raises:
            ValueError: if an entry is negative, or k is out of range.
        """
        from csrkern.ops.topk_relu import topk_relu

        if bool((dense < 0).any()):
            raise ValueError("dense: expected no negative entries; codes are non-negative")
        if k is None:
            k = max(1, int((dense != 0).sum(1).max()) if dense.numel() else 1)
        return topk_relu(dense, k)

    def _entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row, latent and value of every active slot, by row and then by latent."""
        rows, slots = self.active.nonzero(as_tuple=True)
        latents = latents_of(self.values, self.indices, self.dim)[rows, slots]
        order = torch.argsort(rows * self.dim + latents)
        return rows[order], latents[order], self.values[rows[order], slots[order]]

    def to_torch_coo(self) -> Tensor:
        """A coalesced torch.sparse_coo tensor [n, dim]."""
        rows, latents, values = self._entries()
        return torch.sparse_coo_tensor(
            torch.stack([rows, latents]),
            values,
            self.shape,
            is_coalesced=True,
            check_invariants=False,
        )

    def to_torch_csr(self) -> Tensor:
        """A torch.sparse_csr tensor [n, dim] with int64 indices."""
        rows, latents, values = self._entries()
        counts = torch.bincount(rows, minlength=len(self))
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return torch.sparse_csr_tensor(starts, latents, values, self.shape, check_invariants=False)

    @staticmethod
    def from_torch(sparse: Tensor, k: int | None = None) -> SparseCodes:
        """Codes of a torch sparse COO or CSR tensor [n, dim]; k as in `from_dense`."""
        if sparse.layout == torch.sparse_csr:
            starts, latents = sparse.crow_indices(), sparse.col_indices()
            rows = torch.repeat_interleave(torch.arange(len(sparse)).to(starts), starts.diff())
            values = sparse.values()
        elif sparse.layout == torch.sparse_coo:
            sparse = sparse.coalesce()
            rows, latents = sparse.indices()
            values = sparse.values()
        else:
            raise TypeError(f"sparse: expected a COO or CSR tensor, got layout {sparse.layout}")
        shape = sparse.shape[0], sparse.shape[1]
        return SparseCodes(*of_entries(rows, latents, values, shape, k), shape[1])

    def to_scipy(self) -> scipy.sparse.csr_array:
        """A SciPy CSR array [n, dim] with sorted indices (needs SciPy)."""
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
        """Codes of any SciPy sparse matrix [n, dim], duplicates summed; k as in `from_dense`."""
        matrix = matrix.tocsr()
        if not matrix.has_canonical_format:
            matrix = matrix.copy()
            matrix.sum_duplicates()
        rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
        entries = of_entries(
            torch.from_numpy(rows),
            torch.from_numpy(matrix.indices.astype(np.int64)),
            torch.from_numpy(np.ascontiguousarray(matrix.data)),
            matrix.shape,
            k,
        )
        return SparseCodes(*entries, matrix.shape[1])

    def numpy(self) -> tuple[np.ndarray, np.ndarray]:
        """(values, indices) as NumPy arrays; bfloat16 values come as float32."""
        values = self.values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values
        return values.numpy(), self.indices.cpu().numpy()

    @staticmethod
    def from_numpy(values: Any, indices: Any, dim: int) -> SparseCodes:
        """Codes of two arrays [n, k] (NumPy's, or any with DLPack in host memory).

        Slots may come in any order; any value ≤ 0 means an empty slot.

        Raises:
            ValueError: if a latent is out of range or comes twice in a row.
        """
        values, indices = array_of("values", values), array_of("indices", indices)
        if values.ndim != 2 or values.shape != indices.shape:
            raise ValueError(
                "values and indices: expected two arrays of one shape [n, k], "
                f"got {list(values.shape)} and {list(indices.shape)}"
            )
        used = indices[~(values <= 0)]
        if used.size and not 0 <= used.min() <= used.max() < dim:
            raise ValueError(
                f"indices: expected latents in 0..{dim - 1}, got {used.min()}..{used.max()}"
            )
        slots = in_order(
            torch.from_numpy(np.ascontiguousarray(values)),
            torch.from_numpy(np.ascontiguousarray(indices).astype(np.int64)),
            dim,
        )
        return SparseCodes(*slots, dim).validate()

    # ---- storage ----------------------------------------------------------------------

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        values: str = "float32",
        notes: dict[str, str] | None = None,
    ) -> None:
        """Writes `to_bytes` beside `path` and renames it: a crash never leaves half a file.

        Raises:
            ValueError: as `to_bytes`.
        """
        write_atomically(path, self.to_bytes(values=values, notes=notes))

    def to_bytes(self, *, values: str = "float32", notes: dict[str, str] | None = None) -> bytes:
        """The packed form: a safetensors file, 2 or 4 bytes an index and a value.

        Indices are uint16 where dim ≤ 65,536, else int32. With values="float16" the codes
        are rounded, and slots that the rounding makes equal are put back in order. `notes`
        are kept in the metadata, for `csrkern.codes_file.notes`.

        Raises:
            ValueError: if `values` is not "float32" or "float16", or a value overflows it.
        """
        if values not in ("float32", "float16"):
            raise ValueError(f"values: expected 'float32' or 'float16', got {values!r}")
        codes = self.detach().to("cpu").validate().to(getattr(torch, values))
        if bool((codes.values.isinf() & self.values.detach().cpu().isfinite()).any()):
            raise ValueError(
                f"values: {float(self.values.max()):.4g} does not fit in {values}"
                + ("; save as float32" if values == "float16" else "")
            )
        return codes_file.pack(
            codes.values.numpy(), codes.indices.numpy(), self.dim, notes, self.fingerprint
        )

    def pack(self, value_bits: int = 4) -> PackedCodes:
        """The codes in about two bytes a latent: latents exact, values in `value_bits` bits.

        `PackedCodes.unpack` gives them back; `packed_k` says how many latents fit in how many
        bytes. For float16 values and what an index takes, see `to_bytes`.

        Raises:
            TypeError, ValueError: if value_bits is not in 1..8, k is 0, a value is negative, NaN
                or above 2^100, or a latent is out of range or comes twice in a row.
        """
        from csrkern.codes_packed import PackedCodes

        return PackedCodes.of(self, value_bits)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> SparseCodes:
        """Reads a file written by `save`; float16 values stay float16.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is not a whole, valid code file.
        """
        stored = codes_file.read(path)
        try:
            return SparseCodes(
                torch.from_numpy(np.array(stored.values)),
                torch.from_numpy(stored.indices.astype(np.int32)),
                stored.dim,
                stored.fingerprint,
            ).validate()
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)} is damaged: {error}") from error


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
