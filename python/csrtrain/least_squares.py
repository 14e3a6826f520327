"""Values of codes fitted again by least squares, for reconstructions that are as good as can be.

An encoder reads each latent's value off the embedding by itself, though dictionary rows overlap.
With the active latents given, the values that reconstruct best follow from a k × k system a row.
Worth its time for documents that dense queries are compared with.
"""

from __future__ import annotations

import torch
from torch import Tensor

from csrkern.codes import SparseCodes
from csrkern.nn import SparseAutoencoder

# Rows a piece: their dictionary rows, [256, 32, 768] in float32, are 25 MB.
_ROWS = 256
_RIDGE = 1e-4


@torch.no_grad()
def refit(model: SparseAutoencoder, x: Tensor, codes: SparseCodes) -> SparseCodes:
    """Codes with the same latents, or fewer, whose reconstructions are nearest to x.

    Solves min |x − pre_bias − Σ_j z_j W_dec[j]|² over the active latents of each row; a latent
    whose value comes out negative is dropped and the others are solved again.

    Args:
        model: its decoder is fitted to, in the standardised space where it normalises.
        x: embeddings [n, d].
        codes: SparseCodes [n, k] of x.

    Returns: SparseCodes [n, k], on the device of `codes`.
    """
    target = model.standardize(x)[0] - model.pre_bias
    dictionary = model.decoder.linear.weight
    parts = []
    for begin in range(0, len(x), _ROWS):
        piece = codes[begin : begin + _ROWS]
        parts.append(_solve(target[begin : begin + _ROWS], dictionary, piece))
    return SparseCodes.cat(parts)


def _solve(target: Tensor, dictionary: Tensor, codes: SparseCodes) -> SparseCodes:
    atoms = dictionary[codes.indices.long()]  # [n, k, d]
    gram = atoms @ atoms.transpose(1, 2)
    # Two latents that point the same way would have no single solution.
    ridge = _RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1)
    right = (atoms @ target[:, :, None])[:, :, 0]
    kept = codes.active
    values = torch.zeros_like(right)
    left = torch.arange(len(kept), device=kept.device)  # rows to solve, or to solve again
    for _ in range(codes.k):
        keep = kept[left].to(gram.dtype)
        system = gram[left] * keep[:, :, None] * keep[:, None, :]
        system.diagonal(dim1=1, dim2=2).add_(ridge[left, None] * keep + (1 - keep))
        values[left] = torch.linalg.solve(system, right[left] * keep)
        negative = kept & (values <= 0)
        kept = kept & ~negative
        left = negative.any(1).nonzero().squeeze(1)
        if len(left) == 0:
            break
    values = torch.where(kept, values.clamp(min=0), values.new_zeros(()))
    order = values.argsort(dim=1, descending=True, stable=True)
    values = values.gather(1, order)
    indices = codes.indices.gather(1, order)
    return SparseCodes(values, torch.where(values > 0, indices, 0).int(), codes.dim)
