"""The layers behind `encode` on a CPU: proposals by a matrix product, and how far to trust them.

In float32 the matrix product only proposes: a bound on its rounding error says which latents may
be among the k best, and those few are summed in double (csrc/cpu/generic/encode.hpp) and rounded
once. The result does not depend on the batch a row came in, on the number of threads, or on the
BLAS. A bfloat16 product may propose instead.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from csrkern import _C
from csrkern._native import NATIVE_DTYPES, address, call, topk_into
from csrkern.ops.gather import adjacent_columns

# Up to this many rows every pre-activation is summed in double at once: reading the weight is
# what costs then, and a bound would read it a second time.
DIRECT_ROWS = 4
# Unit roundoff of the float32 product; lower precisions that PyTorch may be told to use for it.
UNIT_ROUNDOFF = 2.0**-24
BFLOAT16_ROUNDOFF = 2.0**-8
# A candidate costs about as much as 6 latents of a float32 product.
FALLBACK_SHARE = 8
# Whether a bfloat16 product proposes, or a float32 one: codes are the same. Tests set it.
PROPOSE_IN_BFLOAT16 = _C.multiplies_bfloat16()


@dataclass
class VerifiedRows:
    """Counts of the rows whose latents a bfloat16 product proposed, and of those that fell back.

    A row falls back to the float32 product if its candidates are more than an eighth of the
    latents. Counts are for the whole process; they stay 0 on processors without bfloat16
    instructions, and on GPUs.
    """

    encoded: int = 0
    fallback: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, encoded: int, fallback: int) -> None:
        """Add to both."""
        with self._lock:
            self.encoded += encoded
            self.fallback += fallback

    def reset(self) -> None:
        """Set both to 0."""
        with self._lock:
            self.encoded = self.fallback = 0


verified_rows = VerifiedRows()


def layer_for(weight: Tensor, bias: Tensor | None, n: int, exact: bool) -> Layer:
    """Return the layer that encodes n rows, block by block."""
    if weight.dtype != torch.float32 or not exact:
        return Layer(weight, bias)
    if n <= DIRECT_ROWS:
        return DirectLayer(weight, bias)
    return VerifiedLayer(weight, bias) if PROPOSE_IN_BFLOAT16 else ExactLayer(weight, bias)


class Layer:
    """The weight of one call to encode, and the scratch that its blocks share."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = adjacent_columns(weight)
        self.bias = None if bias is None else bias.contiguous()
        self.scratch: Tensor | None = None

    def encode(self, rows: Tensor, values: Tensor, indices: Tensor) -> None:
        """Codes of contiguous rows [m, d] into values and indices [m, k]."""
        topk_into(self.product(rows, self.weight, self.bias), values, indices)

    def product(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """rows @ weight.T + bias, in the scratch."""
        if self.scratch is None:  # the first block is the longest
            self.scratch = rows.new_empty(len(rows), len(weight))
        out = self.scratch[: len(rows)]
        if bias is None:
            return torch.mm(rows, weight.T, out=out)
        return torch.addmm(bias, rows, weight.T, out=out)


class DirectLayer(Layer):
    """A float32 layer that sums every pre-activation in double."""

    def encode(self, rows: Tensor, values: Tensor, indices: Tensor) -> None:
        """Codes of contiguous rows [m, d] into values and indices [m, k]."""
        pre = rows.new_empty(len(rows), len(self.weight))
        call(_C.linear_exact, self._arguments(rows), pre)
        topk_into(pre, values, indices)

    def _arguments(self, rows: Tensor) -> tuple[int, ...]:
        weight = self.weight
        pointers = address(rows), address(weight), weight.stride(0), address(self.bias)
        return (*pointers, len(rows), *weight.shape)


class ExactLayer(DirectLayer):
    """A float32 layer whose product proposes what to sum in double."""

    def __init__(self, weight: Tensor, bias: Tensor | None, norm: float | None = None) -> None:
        super().__init__(weight, bias)
        self.norm = _upper_norms(weight).amax().item() if norm is None else norm
        self.bias_norm = 0.0 if bias is None else bias.abs().amax().item()

    def encode(self, rows: Tensor, values: Tensor, indices: Tensor) -> None:
        """Codes of contiguous rows [m, d] into values and indices [m, k]."""
        if len(rows) <= DIRECT_ROWS:
            super().encode(rows, values, indices)
        else:
            self.propose(rows, values, indices)

    def propose(self, rows: Tensor, values: Tensor, indices: Tensor) -> None:
        """Return the same, for enough rows to make a matrix product pay."""
        pre = self.product(rows, self.weight, self.bias)
        slack = self._slack(rows.shape[1], _upper_norms(rows))
        self._refine(rows, pre, slack, 0.0, len(self.weight), values, indices)

    def _slack(self, d: int, norms: Tensor) -> Tensor:
        """How far a float32 product of rows of these norms may be from exact, float64 [m].

        At most γ · (‖x‖ ‖w‖ + |b|) in any order of summation (Higham, Accuracy and Stability of
        Numerical Algorithms, 3.1), plus what underflow may lose.
        """
        unit = 1.01 * (d + 4) * UNIT_ROUNDOFF
        if not _products_are_float32():
            unit += 2.1 * BFLOAT16_ROUNDOFF
        size = norms * self.norm + self.bias_norm
        lost = d * 2.0**-124 * (1 + self.norm + norms)
        # Sums that may overflow on the way are bounded by nothing.
        return torch.where(size < 1e38, unit * size + lost, math.inf)

    def _refine(
        self,
        rows: Tensor,
        pre: Tensor,
        slack: Tensor,
        relative: float,
        limit: int,
        values: Tensor,
        indices: Tensor,
    ) -> Tensor:
        counts = indices.new_empty(len(rows))
        bounds = pre, NATIVE_DTYPES[pre.dtype], slack, relative, values.shape[1], limit
        call(_C.refine, self._arguments(rows), *bounds, values, indices, counts)
        return counts


class VerifiedLayer(ExactLayer):
    """A float32 layer to which a bfloat16 product proposes, and a float32 one where it must."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        # Rounded anew for every call, 2% of one with 4,096 rows: a copy that is kept could
        # outlive a change of the weight.
        weight = adjacent_columns(weight)
        self.rounded, norms, residuals = _round_rows(weight)
        super().__init__(weight, bias, norms.amax().item())
        self.residual = residuals.amax().item()
        self.rounded_bias = None if bias is None else bias.bfloat16()

    def propose(self, rows: Tensor, values: Tensor, indices: Tensor) -> None:
        """Codes of contiguous rows [m, d] into values and indices [m, k]."""
        k, h = values.shape[1], len(self.weight)
        rounded, norms, residuals = _round_rows(rows)
        pre = self.product(rounded, self.rounded, self.rounded_bias)
        # ‖x̃‖ ≤ ‖x‖ + ‖x − x̃‖
        slack = residuals * self.norm + (norms + residuals) * self.residual
        slack += self._slack(rows.shape[1], norms) + BFLOAT16_ROUNDOFF * self.bias_norm
        # The product is summed in float32 and rounded once, by at most 2^-8 of what it becomes.
        relative = 1.01 * BFLOAT16_ROUNDOFF
        limit = max(2 * k, h // FALLBACK_SHARE)
        counts = self._refine(rows, pre, slack, relative, limit, values, indices)
        unproved = (counts < 0).nonzero().squeeze(1)
        verified_rows.count(len(rows), len(unproved))
        if len(unproved):
            again = values.new_empty(len(unproved), k), indices.new_empty(len(unproved), k)
            ExactLayer(self.weight, self.bias, self.norm).encode(rows[unproved], *again)
            values[unproved], indices[unproved] = again


def _products_are_float32() -> bool:
    """Whether PyTorch multiplies float32 in float32, and has not been told to use less."""
    backends: Any = torch.backends
    try:
        settings = (backends.mkldnn.matmul.fp32_precision, backends.fp32_precision)
        return set(settings) <= {"none", "ieee"} and (
            torch.get_float32_matmul_precision() == "highest"
        )
    except (AttributeError, RuntimeError):  # an older PyTorch, or both kinds of settings in use
        return False


def _round_rows(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows [m, d] in bfloat16, and upper bounds on the L2 norms of rows and of residuals."""
    m, d = rows.shape
    rounded = rows.new_empty(m, d, dtype=torch.bfloat16)
    norms, residuals = rows.new_empty(2, m)
    call(_C.round_rows, rows, rows.stride(0), m, d, rounded, norms, residuals)
    return rounded, _upper(norms, d), _upper(residuals, d)


def _upper_norms(rows: Tensor) -> Tensor:
    """Upper bounds on the L2 norms of rows [m, d], float64 [m]."""
    norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32)
    return _upper(norms, rows.shape[1])


def _upper(norms: Tensor, d: int) -> Tensor:
    """Return the upper bound of norms of d entries computed in float32."""
    # Rounding may take (d / 2 + 2) units from them, squares that underflow 2^-63 an entry.
    return norms.double() * (1 + (d + 4) * UNIT_ROUNDOFF) + math.sqrt(d) * 2.0**-62
