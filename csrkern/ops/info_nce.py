"""info_nce: the contrastive loss over codes."""

from __future__ import annotations

from torch import Tensor

from csrkern import reference
from csrkern.codes import SparseCodes
from csrkern.validation import (
    check_choice,
    check_codes,
    check_labels,
    check_same,
    check_temperature,
)


def info_nce(
    a: SparseCodes,
    b: SparseCodes | None = None,
    *,
    temperature: float,
    labels: Tensor | tuple[Tensor, Tensor] | None = None,
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """The contrastive (InfoNCE) loss over sparse codes.

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

    Differentiable in both sets of values.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, shape or range.

    Source: van den Oord et al. 2018; non-negative contrast (Wang et al. 2024) as used in CSR
    (Wen et al., ICML 2025); supervised contrast (Khosla et al. 2020).
    """
    check_codes("a", a)
    if b is not None:
        check_codes("b", b, a.dim)
        check_same("b.values", b.values, "a.values", a.values)
        if labels is None and len(b) != len(a):
            raise ValueError(
                f"b: expected {len(a)} rows, one for each row of a, got {len(b)}; "
                "give labels=(labels_a, labels_b) where rows are not paired"
            )
    check_temperature(temperature)
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    labels = check_labels(labels, len(a), len(a) if b is None else len(b), b is not None)
    return reference.info_nce(
        a, b, temperature=temperature, labels=labels, normalize=normalize, reduction=reduction
    )
