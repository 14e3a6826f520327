"""Codes fitted to their embeddings by least squares, for the best reconstructions.

An encoder computes each latent's value by itself, though dictionary rows overlap. `refit` finds
the values that reconstruct best with the same latents; `encode_omp` finds the latents, too. Both
are worth their time for documents that dense queries are compared with.
"""

from __future__ import annotations

import torch
from torch import Tensor

from csrkern.arguments import check_int
from csrkern.codes.slots import in_order
from csrkern.codes.sparse import SparseCodes, check_codes
from csrkern.nn import SparseAutoencoder
from csrkern.ops.validation import check_k, check_same

# Rows a piece: their dictionary rows, [256, 32, 768] in float32, are 25 MB.
_ROWS = 256
_RIDGE = 1e-4


@torch.no_grad()
def refit(
    model: SparseAutoencoder, x: Tensor, codes: SparseCodes, space: str = "embeddings"
) -> SparseCodes:
    """Return codes with the same latents, or fewer, whose reconstructions are nearest to x.

    Solves min |x − pre_bias − Σ_j z_j W_dec[j]|² over the active latents of each row; a latent
    whose value comes out negative is dropped and the others are solved again.

    Args:
        model: codes are fitted to its decoder, in the standardized space if it standardizes.
        x: embeddings [n, d].
        codes: SparseCodes [n, k] of x.
        space: where distances are taken; see `SparseAutoencoder.rerank`.

    Returns: SparseCodes [n, k], on the device of `codes`, in the dtype of x.

    Raises:
        TypeError, ValueError: if x or codes do not fit the model or each other, or x is not finite.
    """
    check_codes("codes", codes, model.hidden_dim)
    if len(codes) != len(x):
        raise ValueError(f"codes: expected one for each of {len(x)} rows of x, got {len(codes)}")
    target, fit = _target(model, x), _Fit(model, space)
    parts = []
    for i, part in enumerate(target.split(_ROWS)):
        piece = codes[i * _ROWS : (i + 1) * _ROWS]
        values, _ = fit.values(part, piece.latents(), piece.active)
        parts.append(_in_order(values, piece.indices, codes.dim))
    fitted = SparseCodes.cat(parts).to(dtype=x.dtype)
    fitted.fingerprint = codes.fingerprint
    return fitted


@torch.no_grad()
def encode_omp(
    model: SparseAutoencoder,
    x: Tensor,
    k: int | None = None,
    *,
    space: str = "embeddings",
    rounds: int = 8,
) -> SparseCodes:
    """Return the codes of x by orthogonal matching pursuit (OMP) with values ≥ 0.

    Latents are taken in `rounds` turns, each time those whose dictionary rows correlate best with
    the residual of the row; then all values are fitted again, as by `refit`, and latents whose
    value comes out negative are replaced. This takes about a thousand times as long as `encode`
    (docs/notes/training.md); the format of the codes is the same.

    Args:
        model: codes are fitted to its decoder, in the standardized space if it standardizes.
        x: embeddings [n, d].
        k: active latents per row; default the model's.
        space: where distances are taken; see `SparseAutoencoder.rerank`.
        rounds: turns; at most k are of use.

    Returns: SparseCodes [n, k] on the device and in the dtype of x.

    Raises:
        TypeError, ValueError: if k is not in 1..hidden_dim, rounds not positive, or x does not fit
            the model or is not finite.

    Source: Pati, Rezaiifar and Krishnaprasad 1993; Bruckstein, Elad and Zibulevsky 2008.
    """
    k = check_k(model.k if k is None else k, model.hidden_dim, "hidden_dim")
    rounds = min(k, check_int("rounds", rounds, 1, 2**31 - 1))
    target, fit = _target(model, x), _Fit(model, space)
    goals = sorted({-(-k * (turn + 1) // rounds) for turn in range(rounds)})
    # The last rounds replace latents that were dropped.
    parts = [fit.select(piece, (*goals, k, k)) for piece in target.split(_ROWS)]
    fitted = SparseCodes.cat(parts).to(dtype=x.dtype)
    fitted.fingerprint = model.fingerprint
    return fitted


def _target(model: SparseAutoencoder, x: Tensor) -> Tensor:
    target = model.standardized(x)[0]
    check_same("x", x, "the model", model.pre_bias)
    invalid = (~x.isfinite().all(1)).nonzero()
    if len(invalid):
        raise ValueError(f"x: expected finite numbers, got others in row {int(invalid[0])}")
    return _wide(target) - _wide(model.pre_bias)


def _wide(tensor: Tensor) -> Tensor:
    # torch.linalg has no solvers for narrower dtypes.
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class _Fit:
    """Least squares over a dictionary's rows D, in the metric M where products are D M Dᵀ = A Dᵀ.

    In the space of the embeddings, A is D itself; in the adapter's it is the encoder's weight.
    """

    def __init__(self, model: SparseAutoencoder, space: str) -> None:
        if space != "embeddings":
            model.check_space(space)
        self.rows = _wide(model.decoder.linear.weight)
        self.products = self.rows if space == "embeddings" else _wide(model.encoder.weight)
        square = (self.products * self.rows).sum(1)
        self.scale = square.clamp(min=torch.finfo(square.dtype).tiny).rsqrt()

    def values(self, target: Tensor, indices: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        """Return values [n, k] of latents [n, k] for rows [n, d], and the mask of positive ones."""
        atoms = self.products[indices]  # [n, k, d]
        gram = atoms @ self.rows[indices].transpose(1, 2)
        # Without it, parallel dictionary rows or a row of zeros make the system singular.
        ridge = _RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1)
        ridge = ridge.clamp(min=torch.finfo(ridge.dtype).tiny)
        rhs = (atoms @ target[:, :, None])[:, :, 0]
        values = torch.zeros_like(rhs)
        unsolved = torch.arange(len(active), device=active.device)  # rows to solve, or solve again
        while len(unsolved):
            mask = active[unsolved].to(gram.dtype)
            system = gram[unsolved] * mask[:, :, None] * mask[:, None, :]
            system.diagonal(dim1=1, dim2=2).add_(ridge[unsolved, None] * mask + (1 - mask))
            values[unsolved] = torch.linalg.solve(system, rhs[unsolved] * mask)
            negative = active & (values <= 0)
            active = active & ~negative
            unsolved = negative.any(1).nonzero().squeeze(1)
        return torch.where(active, values.clamp(min=0), values.new_zeros(())), active

    def select(self, target: Tensor, goals: tuple[int, ...]) -> SparseCodes:
        """Return codes of rows [n, d] with `goals` active latents after each round."""
        n, k = len(target), goals[-1]
        indices = torch.zeros(n, 0, dtype=torch.long, device=target.device)
        active = torch.zeros_like(indices, dtype=torch.bool)
        residual = target
        values = target.new_zeros(n, 0)
        for goal in goals:
            missing = goal - active.sum(1, keepdim=True)
            if not bool((missing > 0).any()):
                continue
            padding = (0, goal - indices.shape[1])
            indices = torch.nn.functional.pad(indices, padding)
            active = torch.nn.functional.pad(active, padding)
            gain = (residual @ self.products.T) * self.scale
            bounds = torch.full_like(active, torch.inf, dtype=gain.dtype)
            bounds = bounds.masked_fill(active, -torch.inf)
            gain.scatter_reduce_(1, indices, bounds, "amin")
            best = gain.topk(int(missing.max()), 1)
            free = active.int().argsort(dim=1, stable=True)[:, : best.values.shape[1]]
            turn = torch.arange(best.values.shape[1], device=target.device)
            accepted = (turn < missing) & (best.values > 0)
            indices.scatter_(1, free, torch.where(accepted, best.indices, indices.gather(1, free)))
            active.scatter_(1, free, accepted | active.gather(1, free))
            values, active = self.values(target, indices, active)
            residual = target - (values[:, None] @ self.rows[indices])[:, 0]
        padding = (0, k - indices.shape[1])
        indices, values = (torch.nn.functional.pad(part, padding) for part in (indices, values))
        return _in_order(values, indices, len(self.rows))


def _in_order(values: Tensor, indices: Tensor, dim: int) -> SparseCodes:
    return SparseCodes(*in_order(values.clamp(min=0), indices.long(), dim), dim)
