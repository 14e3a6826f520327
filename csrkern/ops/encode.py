"""encode: a linear layer and topk_relu in one operator.

Rows go through in blocks whose pre-activations stay in cache, in one scratch buffer, so memory
does not grow with n · h; reusing the buffer also makes the matrix product itself 5% faster than
one that writes [n, h] to fresh memory.

In float32 the matrix product only proposes: a bound on its rounding error says which latents may
be among the k best, and those few are summed in double (csrc/cpu/encode_impl.hpp) and rounded
once. The result does not depend on the batch a row came in, on the number of threads, or on the
BLAS. precision="verified" lets a bfloat16 product propose instead.

On a GPU float32 is multiplied in double instead, which data centre GPUs do as fast; the blocks
stay in the L2 cache (csrkern/kernels/encode.py).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from csrkern import _C, reference
from csrkern.codes import SparseCodes
from csrkern.ops import gather, topk_relu, transpose  # noqa: F401  (registers what is called)
from csrkern.ops._registry import LIBRARY, NATIVE_DTYPES, address, autocast, register_autograd
from csrkern.ops.gather import interval_begins, unit_columns
from csrkern.validation import check_choice, check_k, check_same, check_tensor

ops = torch.ops.csrkern

# Pre-activations of a block: half of a typical L3 cache; products of fewer than 128 rows are
# slower by 6% and more, of more than 1,024 no faster.
BLOCK_BYTES = 16 * 2**20
BLOCK_ROWS = (128, 1024)
# Up to this many rows every pre-activation is summed in double at once: reading the weight is
# what costs then, and a bound would read it a second time.
DIRECT_ROWS = 4
# Unit roundoff of the float32 product; lower precisions that PyTorch may be told to use for it.
UNIT_ROUNDOFF = 2.0**-24
BFLOAT16_ROUNDOFF = 2.0**-8
# A candidate costs about as much as 6 latents of a float32 product.
FALLBACK_SHARE = 8
FAST_BFLOAT16 = _C.multiplies_bfloat16()


def encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    k: int,
    pre_bias: Tensor | None = None,
    precision: str = "auto",
) -> SparseCodes:
    """topk_relu((x - pre_bias) @ weight.T + bias, k), never holding the pre-activations.

    Args:
        x: embeddings [n, d].
        weight: encoder weight [h, d], as in `nn.Linear(d, h).weight`.
        bias: latent bias [h].
        k: slots per row, 1 <= k <= h.
        pre_bias: [d], subtracted from x first.
        precision: for float32 arguments, all but "fast" give the codes of sums in double, in a
            fixed order, of the float32 x - pre_bias, rounded once, whatever rows are encoded
            together. "exact" finds candidates with a
            float32 product, "verified" with a bfloat16 product, proving for every row that none
            is missing (`verified_rows` counts the rows that it could not clear); "auto" is
            "verified" on processors with bfloat16 instructions. "fast" takes the
            pre-activations as a matrix product in the dtype of the arguments gives them, which
            is what "auto" and "exact" do for other dtypes. On a GPU "exact" and "verified" both
            multiply in float64: equal but for sums within 2^-50 of a rounding boundary.

    Returns:
        SparseCodes [n, k] over h latents; see `topk_relu`.

    Differentiable in x, weight, bias and pre_bias; the backward pass touches only the selected
    latents. Under autocast, "auto" and "fast" run in the autocast dtype, as a linear layer does.

    Raises:
        TypeError, ValueError: if a tensor has the wrong dtype, device or shape, k is out of
            range, or precision="verified" is asked for another dtype than float32.

    Source: the encoder of CSR (Wen et al., ICML 2025, arXiv 2503.01776).
    """
    weight, bias, precision = check_encoder(x, weight, bias, pre_bias, precision)
    check_k(k, len(weight), "h")
    values, indices = ops.encode(x, weight, bias, pre_bias, k, precision)
    return SparseCodes(values, indices, len(weight))


def check_encoder(
    x: Tensor, weight: Tensor, bias: Tensor | None, pre_bias: Tensor | None, precision: str
) -> tuple[Tensor, Tensor | None, str]:
    """Checks what `encode` takes; returns weight and bias in the dtype to compute in, and how."""
    check_tensor("x", x, (None, None))
    check_tensor("weight", weight, (None, x.shape[1]))
    check_same("weight", weight, "x", x)
    for name, value, size in (("bias", bias, len(weight)), ("pre_bias", pre_bias, x.shape[1])):
        if value is not None:
            check_tensor(name, value, (size,))
            check_same(name, value, "x", x)
    check_choice("precision", precision, ("auto", "exact", "verified", "fast"))
    if precision in ("auto", "fast"):
        weight, bias = autocast(weight, bias)
    if precision == "auto":
        proposes = weight.dtype == torch.float32 and FAST_BFLOAT16
        precision = "verified" if proposes else "exact"
    elif precision == "verified" and weight.dtype != torch.float32:
        raise ValueError(
            f"precision: expected 'auto', 'exact' or 'fast' for {weight.dtype}, got 'verified', "
            "which is for float32"
        )
    return weight, bias, precision


@dataclass
class VerifiedRows:
    """How many rows precision="verified" has encoded, and how many of them fell back.

    A row falls back to the float32 product if its candidates are more than an eighth of the
    latents. Counts are for the whole process.
    """

    encoded: int = 0
    fallback: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, encoded: int, fallback: int) -> None:
        """Adds to both."""
        with self._lock:
            self.encoded += encoded
            self.fallback += fallback

    def reset(self) -> None:
        """Sets both to 0."""
        with self._lock:
            self.encoded = self.fallback = 0


verified_rows = VerifiedRows()


LIBRARY.define(
    "encode(Tensor x, Tensor weight, Tensor? bias, Tensor? pre_bias, SymInt k, str precision) "
    "-> (Tensor, Tensor)"
)


@torch.library.impl(LIBRARY, "encode", "CPU")
def _encode_cpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pre_bias: Tensor | None,
    k: int,
    precision: str,
) -> tuple[Tensor, Tensor]:
    if weight.dtype not in NATIVE_DTYPES:
        codes = reference.encode(x, weight, bias, k=k, pre_bias=pre_bias)
        return codes.values.contiguous(), codes.indices.contiguous()
    n, h = len(x), len(weight)
    values = weight.new_empty(n, k)
    indices = weight.new_empty(n, k, dtype=torch.int32)
    certain = weight.dtype == torch.float32 and precision != "fast"
    layer = (_Float32Layer if certain else _Layer)(weight, bias, n)
    for begin, end in _blocks(n, h * weight.itemsize):
        rows = x[begin:end] if pre_bias is None else x[begin:end] - pre_bias
        rows = rows.to(weight.dtype).contiguous()
        layer.encode(rows, k, precision, values[begin:end], indices[begin:end])
    return values, indices


def _blocks(n: int, row_bytes: int) -> list[tuple[int, int]]:
    least, most = BLOCK_ROWS
    rows = max(least, min(most, BLOCK_BYTES // row_bytes))
    return [(begin, min(begin + rows, n)) for begin in range(0, n, rows)]


class _Layer:
    """The weight of one call to encode, and the scratch that its blocks share."""

    def __init__(self, weight: Tensor, bias: Tensor | None, n: int) -> None:
        self.weight = unit_columns(weight)
        self.bias = None if bias is None else bias.contiguous()
        self.scratch: Tensor | None = None

    def encode(self, rows: Tensor, k: int, precision: str, values: Tensor, indices: Tensor) -> None:
        """Codes of contiguous rows [m, d] into values and indices [m, k]."""
        pre = self.product(rows, self.weight, self.bias)
        m, h = pre.shape
        _C.topk_relu(
            address(pre),
            NATIVE_DTYPES[pre.dtype],
            m,
            h,
            h,
            1,
            0,
            k,
            address(values),
            address(indices),
            torch.get_num_threads(),
        )

    def product(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """rows @ weight.T + bias, in the scratch."""
        if self.scratch is None:  # the first block is the longest
            self.scratch = rows.new_empty(len(rows), len(weight))
        out = self.scratch[: len(rows)]
        if bias is None:
            return torch.mm(rows, weight.T, out=out)
        return torch.addmm(bias, rows, weight.T, out=out)


class _Float32Layer(_Layer):
    """The same, with bounds on what matrix products make of it."""

    def __init__(self, weight: Tensor, bias: Tensor | None, n: int) -> None:
        super().__init__(weight, bias, n)
        if n > DIRECT_ROWS:
            self.norm = _upper_norms(weight).amax().item()
            self.bias_norm = 0.0 if bias is None else bias.abs().amax().item()
        self.rounded: Tensor | None = None

    def encode(self, rows: Tensor, k: int, precision: str, values: Tensor, indices: Tensor) -> None:
        """Codes of contiguous float32 rows into values and indices [m, k]."""
        if len(rows) <= DIRECT_ROWS:
            pre = rows.new_empty(len(rows), len(self.weight))
            _C.linear_exact(self._arguments(rows), address(pre), torch.get_num_threads())
            codes = ops.topk_relu(pre, k, None)
            values.copy_(codes[0])
            indices.copy_(codes[1])
        elif precision == "exact":
            pre = self.product(rows, self.weight, self.bias)
            slack = self._slack(rows.shape[1], _upper_norms(rows))
            self._refine(rows, pre, slack, 0.0, k, len(self.weight), values, indices)
        else:
            self._encode_verified(rows, k, values, indices)

    def _encode_verified(self, rows: Tensor, k: int, values: Tensor, indices: Tensor) -> None:
        if self.rounded is None:
            # Rounded anew for every call, 2% of one with 4,096 rows: a copy that is kept could
            # outlive a change of the weight.
            self.rounded, _, residuals = _round_rows(self.weight)
            self.residual = residuals.amax().item()
            self.rounded_bias = None if self.bias is None else self.bias.bfloat16()
        rounded, norms, residuals = _round_rows(rows)
        pre = self.product(rounded, self.rounded, self.rounded_bias)
        # ‖x̃‖ ≤ ‖x‖ + ‖x − x̃‖
        slack = residuals * self.norm + (norms + residuals) * self.residual
        slack += self._slack(rows.shape[1], norms) + BFLOAT16_ROUNDOFF * self.bias_norm
        # The product is summed in float32 and rounded once, by at most 2^-8 of what it becomes.
        relative = 1.01 * BFLOAT16_ROUNDOFF
        limit = max(2 * k, len(self.weight) // FALLBACK_SHARE)
        counts = self._refine(rows, pre, slack, relative, k, limit, values, indices)
        left = (counts < 0).nonzero().squeeze(1)
        verified_rows.count(len(rows), len(left))
        if len(left):
            again = values.new_empty(len(left), k), indices.new_empty(len(left), k)
            exact = _Float32Layer(self.weight, self.bias, len(left))
            exact.encode(rows[left], k, "exact", *again)
            values[left], indices[left] = again

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
        k: int,
        limit: int,
        values: Tensor,
        indices: Tensor,
    ) -> Tensor:
        counts = indices.new_empty(len(rows))
        _C.refine(
            self._arguments(rows),
            address(pre),
            NATIVE_DTYPES[pre.dtype],
            address(slack),
            relative,
            k,
            limit,
            address(values),
            address(indices),
            address(counts),
            torch.get_num_threads(),
        )
        return counts

    def _arguments(self, rows: Tensor) -> tuple[int, ...]:
        weight = self.weight
        pointers = address(rows), address(weight), weight.stride(0), address(self.bias)
        return (*pointers, len(rows), *weight.shape)


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
    _C.round_rows(
        address(rows),
        rows.stride(0),
        m,
        d,
        address(rounded),
        address(norms),
        address(residuals),
        torch.get_num_threads(),
    )
    return rounded, _upper(norms, d), _upper(residuals, d)


def _upper_norms(rows: Tensor) -> Tensor:
    """Upper bounds on the L2 norms of rows [m, d], float64 [m]."""
    norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32)
    return _upper(norms, rows.shape[1])


def _upper(norms: Tensor, d: int) -> Tensor:
    """What norms of d entries, computed in float32, are at most."""
    # Rounding may take (d / 2 + 2) units from them, squares that underflow 2^-63 an entry.
    return norms.double() * (1 + (d + 4) * UNIT_ROUNDOFF) + math.sqrt(d) * 2.0**-62


@torch.library.impl(LIBRARY, "encode", "CUDA")
def _encode_cuda(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pre_bias: Tensor | None,
    k: int,
    precision: str,
) -> tuple[Tensor, Tensor]:
    if weight.dtype not in NATIVE_DTYPES:
        codes = reference.encode(x, weight, bias, k=k, pre_bias=pre_bias)
        return codes.values.contiguous(), codes.indices.contiguous()
    from csrkern.kernels import encode as kernels

    exact = weight.dtype == torch.float32 and precision != "fast"
    return kernels.encode(x, unit_columns(weight), bias, pre_bias, k, exact)


@torch.library.register_fake("csrkern::encode", lib=LIBRARY)
def _encode_fake(x, weight, bias, pre_bias, k, precision):
    shape = (x.shape[0], k)
    return weight.new_empty(shape), weight.new_empty(shape, dtype=torch.int32)


def _setup_context(ctx, inputs, output) -> None:
    x, weight, _, pre_bias, _, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, weight, pre_bias, *output)


def _backward(ctx, grad_values: Tensor, _grad_indices):
    x, weight, pre_bias, values, indices = ctx.saved_tensors
    grads = encoder_gradients(
        x, weight, pre_bias, values, indices, grad_values, ctx.needs_input_grad[:4]
    )
    return (*grads, None, None)


def encoder_gradients(
    x: Tensor,
    weight: Tensor,
    pre_bias: Tensor | None,
    values: Tensor,
    indices: Tensor,
    grad_values: Tensor,
    needs: Sequence[bool],
    *,
    tied: tuple[Sequence[Tensor], Sequence[int]] = ((), ()),
) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight, bias and pre_bias, each if needed, from that of the values.

    `tied` adds what a decoder of the same weight gives it, in the same pass over the weight:
    the gradients [n, d] that intervals of slots meet (`later_sums`), and the intervals' ends.
    """
    needs_x, needs_weight, needs_bias, needs_pre_bias = needs
    h, k = weight.shape[0], values.shape[1]
    passed = torch.where(values > 0, grad_values, torch.zeros_like(grad_values))
    grad_x = grad_weight = grad_bias = grad_pre_bias = None
    if needs_x:
        grad_x = ops.gather_sum(passed, indices, weight, None, [k])[0].to(x.dtype)
    if needs_weight or needs_bias or needs_pre_bias:
        starts, rows, slots, _ = ops.transpose(values, indices, h)
    if needs_weight:
        centred = (x if pre_bias is None else x - pre_bias).to(weight.dtype)
        from_decoder, ends = tied
        grad_weight = ops.scatter_sum(
            starts,
            rows,
            slots,
            h,
            [centred, *from_decoder],
            [passed, *[values] * len(ends)],
            [0, *interval_begins(ends)],
            [k, *ends],
        )
    if needs_bias or needs_pre_bias:
        ones = weight.new_ones(len(x), 1)
        grad_bias = ops.scatter_sum(starts, rows, slots, h, [ones], [passed], [0], [k])[:, 0]
        if pre_bias is not None:
            grad_pre_bias = -(grad_bias @ weight).to(pre_bias.dtype)
    return grad_x, grad_weight, grad_bias if needs_bias else None, grad_pre_bias


register_autograd("encode", _backward, _setup_context)
