"""info_nce: the contrastive loss over codes, without the matrix of scores.

On a CPU the scores of one row at a time are summed from postings, in a buffer that stays in the
L1 cache, and reduced to a log-sum-exp at once; the backward pass sums them again and turns them
into the row's gradient (csrc/cpu/ops/info_nce.cpp). Memory is that of the codes and a few numbers
per row. float64 goes through the reference, so that gradients can be checked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from csrkern import _C, reference
from csrkern._native import address, call
from csrkern.arguments import check_choice, check_positive
from csrkern.codes.sparse import SparseCodes, check_codes
from csrkern.ops._registry import LIBRARY, autocasts, implement, on_gpu, register_autograd
from csrkern.ops.similarity import (
    codes_arguments,
    contiguous_codes,
    contiguous_sides,
    postings,
)
from csrkern.ops.validation import check_labels, check_operand, check_same


def info_nce(
    a: SparseCodes,
    b: SparseCodes | None = None,
    *,
    temperature: float,
    labels: Tensor | tuple[Tensor, Tensor] | None = None,
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """Return the contrastive (InfoNCE) loss over sparse codes.

    With s_ij = ⟨a_i, b_j⟩ (cosine if `normalize`) and temperature τ:

    - one set, `b` None: both views of a row are the row itself, as in the published CSR
      code: L_i = log(1 + 2 Σ_{j≠i} exp((s_ij − s_ii)/τ)).
    - pairs: a_i belongs to b_i: L_i = log Σ_j exp(s_ij/τ) − s_ii/τ. For the symmetric loss
      of two modalities, average `info_nce(a, b)` and `info_nce(b, a)`.
    - `labels`: rows of one label are positives, averaged as in supervised contrast:
      L_i = log Σ_j exp(s_ij/τ) − mean over positives of s_ip/τ, where j ≠ i if `b` is None.
      A row without a positive costs 0 and does not count in the mean.

    Args:
        a: SparseCodes [n, k].
        b: SparseCodes [m, k'] over the same latents; m = n for pairs.
        temperature: τ > 0.
        labels: [n] integer labels, or a pair ([n], [m]) if `b` is given.
        normalize: score by cosine; a row without active latents scores 0 with everything.
        reduction: "mean", "sum" or "none" (the loss of each row, [n]).

    Differentiable in both sets of values. Computed in float32 for float16 and bfloat16 codes and
    returned in their dtype; under autocast returned in float32, as PyTorch's losses are.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, shape or range.
        IndexError: on a CPU, if an active latent is not in 0..dim-1.

    Source: van den Oord et al. 2018; non-negative contrast (Wang et al. 2024) as used in CSR
    (Wen et al., ICML 2025); supervised contrast (Khosla et al. 2020).
    """
    check_codes("a", a)
    n = m = a.values.shape[0]  # not len(), which torch.export would make a constant
    if b is not None:
        check_codes("b", b, a.dim)
        check_same("b.values", b.values, "a.values", a.values)
        m = b.values.shape[0]
        if labels is None and m != n:
            raise ValueError(
                f"b: expected {n} rows, one for each row of a, got {m}; "
                "give labels=(labels_a, labels_b) where rows are not paired"
            )
    temperature = check_positive("temperature", temperature)
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    labels = check_labels(labels, n, m, b is not None)
    if a.dtype == torch.float64 or a.device.type not in ("cpu", "cuda"):
        return reference.info_nce(
            a, b, temperature=temperature, labels=labels, normalize=normalize, reduction=reduction
        )
    out_dtype = torch.float32 if autocasts(a.device.type) else a.dtype
    sides = [side.to(torch.float32) for side in (a, b) if side is not None]
    if normalize:
        sides = [side.normalize() for side in sides]
    values_b, indices_b = (sides[1].values, sides[1].indices) if b is not None else (None, None)
    classes: tuple[Tensor | None, ...] = (None, None, None)
    if labels is not None:
        pair = labels if isinstance(labels, tuple) else (labels, labels)
        classes = torch.ops.csrkern.match_labels(*pair, b is None)
    loss, _, _ = torch.ops.csrkern.info_nce(
        sides[0].values, sides[0].indices, values_b, indices_b, a.dim, temperature, *classes
    )
    if reduction == "sum":
        loss = loss.sum()
    elif reduction == "mean":
        n_positives = classes[2]
        # Rows without a positive cost 0 and do not count.
        loss = (
            loss.mean()
            if n_positives is None
            else loss.sum() / (n_positives > 0).sum().clamp(min=1)
        )
    return loss.to(out_dtype)


LIBRARY.define(
    "match_labels(Tensor labels_a, Tensor labels_b, bool one_set) -> (Tensor, Tensor, Tensor)"
)


@implement("match_labels")
def _match_labels(
    labels_a: Tensor, labels_b: Tensor, one_set: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Labels as int32 classes [n] and [m], and how many of b each row of a shares its with.

    A class is where in the sorted labels its own begin: no shape depends on how many there are,
    so a GPU need not be waited for.
    """
    labels_a, labels_b = labels_a.long().contiguous(), labels_b.long().contiguous()
    every = torch.cat([labels_a, labels_b]).sort().values
    of_b = labels_b.sort().values
    first, last = (torch.searchsorted(of_b, labels_a, right=right) for right in (False, True))
    classes_a, classes_b = (torch.searchsorted(every, labels) for labels in (labels_a, labels_b))
    return classes_a.int(), classes_b.int(), (last - first - int(one_set)).int()


@torch.library.register_fake("csrkern::match_labels", lib=LIBRARY)
def _match_labels_fake(labels_a, labels_b, one_set):
    n, m = labels_a.shape[0], labels_b.shape[0]
    return tuple(labels_a.new_empty(size, dtype=torch.int32) for size in (n, m, n))


Codes = tuple[Tensor, Tensor]  # values, indices

# values_b and indices_b None: one set. classes and n_positives None: no labels. Returns loss,
# peak and log_total [n], the last two for the backward pass (csrc/include/csrkern/info_nce.hpp).
PerRow = tuple[Tensor, Tensor, Tensor]  # grad, peak and log_total of each row
Classes = tuple[Tensor | None, Tensor | None, Tensor | None]  # of a, of b, n_positives
_CLASSES = ("classes_a", "classes_b", "n_positives")
_INPUTS = (
    "Tensor values_a, Tensor indices_a, Tensor? values_b, Tensor? indices_b, SymInt dim, "
    "float temperature, Tensor? classes_a, Tensor? classes_b, Tensor? n_positives"
)
LIBRARY.define(f"info_nce({_INPUTS}) -> (Tensor, Tensor, Tensor)")
LIBRARY.define(
    f"info_nce_backward(Tensor grad, Tensor peak, Tensor log_total, {_INPUTS}) -> (Tensor, Tensor)"
)


@implement("info_nce")
def _info_nce(
    values_a: Tensor,
    indices_a: Tensor,
    values_b: Tensor | None,
    indices_b: Tensor | None,
    dim: int,
    temperature: float,
    *given_classes: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    a, b, one_set = _sides(values_a, indices_a, values_b, indices_b)
    classes = _classes_of(a, b, given_classes)
    of_b = postings(*b, dim)
    if on_gpu(values_a):
        from csrkern.kernels import info_nce as kernels

        return kernels.info_nce(*a, of_b, len(b[0]), one_set, temperature, *classes)
    loss, peak, log_total = (a[0].new_empty(len(a[0])) for _ in range(3))
    args = _native(a, b, of_b, dim, one_set, temperature, classes)
    call(_C.info_nce, args, loss, peak, log_total)
    return loss, peak, log_total


def _native(
    a: Codes,
    b: Codes,
    of_b: tuple[Tensor, ...],
    dim: int,
    one_set: bool,
    temperature: float,
    classes: Classes,
) -> _C.InfoNce:
    """Return the arguments as the native kernels take them; tensors must outlive it."""
    classes_a, classes_b, n_positives = map(address, classes)
    return _C.InfoNce(
        a=codes_arguments(*a, dim),
        b=tuple(map(address, of_b)),
        m=len(b[0]),
        one_set=one_set,
        temperature=temperature,
        classes_a=classes_a,
        classes_b=classes_b,
        n_positives=n_positives,
    )


def _sides(
    values_a: Tensor, indices_a: Tensor, values_b: Tensor | None, indices_b: Tensor | None
) -> tuple[Codes, Codes, bool]:
    """Both sets contiguous, and whether they are one."""
    if values_b is None or indices_b is None:
        a = contiguous_codes(values_a, indices_a)
        return a, a, True
    return *contiguous_sides(values_a, indices_a, values_b, indices_b), False


def _classes_of(a: Codes, b: Codes, classes: tuple[Tensor | None, ...]) -> Classes:
    """classes_a, classes_b and n_positives, checked and contiguous; without labels, None."""
    n, m, device = len(a[0]), len(b[0]), a[0].device
    given = [labels for labels in classes if labels is not None]
    if not given:
        if n != m:
            raise ValueError(f"values_b: expected {n} rows, one for each row of a, got {m}")
        return None, None, None
    if len(given) < 3:
        raise ValueError(f"{', '.join(_CLASSES)}: expected all of them or none")
    for name, labels, size in zip(_CLASSES, given, (n, m, n), strict=True):
        check_operand(name, labels, torch.int32, (size,), device)
    return given[0].contiguous(), given[1].contiguous(), given[2].contiguous()


def _gradient(
    rows: PerRow,
    of: Codes,
    other: Codes,
    classes: Classes,
    one_set: bool,
    of_columns: bool,
    dim: int,
    temperature: float,
) -> Tensor:
    """Return the gradient of the values of codes `of`; `of_columns`: the losses are of `other`."""
    of_other = postings(*other, dim)
    if on_gpu(of[0]):
        from csrkern.kernels import info_nce as kernels

        m = len(other[0])
        return kernels.info_nce_backward(
            *rows, *of, of_other, m, one_set, of_columns, temperature, *classes
        )
    grad_values = torch.empty_like(of[0])
    args = _native(of, other, of_other, dim, one_set, temperature, classes)
    call(_C.info_nce_backward, args, *rows, of_columns, grad_values)
    return grad_values


@implement("info_nce_backward")
def _info_nce_backward(
    grad: Tensor,
    peak: Tensor,
    log_total: Tensor,
    values_a: Tensor,
    indices_a: Tensor,
    values_b: Tensor | None,
    indices_b: Tensor | None,
    dim: int,
    temperature: float,
    *given_classes: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of values_a and values_b; the second has no elements for one set."""
    a, b, one_set = _sides(values_a, indices_a, values_b, indices_b)
    of_a, of_b, n_positives = _classes_of(a, b, given_classes)
    for name, row in (("grad", grad), ("peak", peak), ("log_total", log_total)):
        check_operand(name, row, torch.float32, (len(a[0]),), a[0].device)
    rows = grad.contiguous(), peak.contiguous(), log_total.contiguous()
    classes = of_a, of_b, n_positives
    grad_a = _gradient(rows, a, b, classes, one_set, False, dim, temperature)
    if one_set:
        return grad_a, grad_a.new_empty(0)
    classes = of_b, of_a, n_positives
    return grad_a, _gradient(rows, b, a, classes, one_set, True, dim, temperature)


@torch.library.register_fake("csrkern::info_nce", lib=LIBRARY)
def _info_nce_fake(values_a, indices_a, values_b, *_):
    return tuple(values_a.new_empty(values_a.shape[0]) for _ in range(3))


@torch.library.register_fake("csrkern::info_nce_backward", lib=LIBRARY)
def _info_nce_backward_fake(grad, peak, log_total, values_a, indices_a, values_b, *_):
    second = values_a.new_empty(0) if values_b is None else values_b.new_empty(values_b.shape)
    return values_a.new_empty(values_a.shape), second


def _setup_context(ctx, inputs, output) -> None:
    _, peak, log_total = output
    ctx.mark_non_differentiable(peak, log_total)
    *codes, ctx.dim, ctx.temperature, classes_a, classes_b, n_positives = inputs
    ctx.save_for_backward(peak, log_total, *codes, classes_a, classes_b, n_positives)


def _backward(ctx, grad: Tensor, _grad_peak, _grad_log_total):
    rows_and_codes, classes = ctx.saved_tensors[:6], ctx.saved_tensors[6:]
    grad_a, grad_b = torch.ops.csrkern.info_nce_backward(
        grad, *rows_and_codes, ctx.dim, ctx.temperature, *classes
    )
    one_set = rows_and_codes[4] is None
    return grad_a, None, None if one_set else grad_b, *[None] * 6


register_autograd("info_nce", _backward, _setup_context)
