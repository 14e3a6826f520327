"""Training on the leading principal directions, folded into the model afterwards.

A code of few latents cannot describe an embedding in full. The directions of least variance
are often noise, and a latent that describes them is lost to the others (`input_subspace`).
Where they are not noise, the squared error still hardly depends on them compared with the
leading ones; shrinking the leading ones makes up for it (`whitening`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from csrkern.nn import SparseAutoencoder
from csrtrain.pca import PCA

# Centered rows are scaled to this norm, so that one learning rate fits embeddings of any scale.
ROW_NORM = 4.0


class Subspace:
    """The affine map x → scale · stretch · (x − mean) · directions onto p principal directions.

    Attributes:
        mean: [d].
        directions: [d, p], one unit direction a column.
        stretch: [p], (variance / mean variance)^(−whitening / 2) of each direction, bounded; all
            1 without whitening.
        scale: a number that brings rows to norm `ROW_NORM` in the mean.
        variance: of the mapped rows, per direction.
    """

    def __init__(self, pca: PCA, dims: int, whitening: float = 0.0) -> None:
        self.mean = pca.mean
        self.directions = pca.directions[:, :dims].contiguous()
        variances = pca.variances[:dims]
        # Directions in which rows hardly differ are stretched a thousandfold at most.
        share = (variances / variances.mean()).clamp(min=1e-6)
        self.stretch = share ** (-whitening / 2)
        stretched = float((variances * self.stretch.square()).sum())
        self.scale = ROW_NORM / math.sqrt(stretched)
        self.variance = ROW_NORM**2 / dims

    def project(self, x: Tensor) -> Tensor:
        """Return the coordinates [n, p] of rows [n, d]."""
        return ((x - self.mean) @ self.directions) * (self.scale * self.stretch)

    @torch.no_grad()
    def fold(self, model: SparseAutoencoder) -> SparseAutoencoder:
        """Return a model over d dimensions that gives x the codes of `model` for `project(x)`.

        The codes are divided by `scale`, and the reconstructions are those of `model`, back in
        the space of x. With S = diag(stretch) and directions P: W = W_p S Pᵀ,
        W_dec = W_dec_p S⁻¹ Pᵀ, pre_bias = mean + P (scale · S)⁻¹ pre_bias_p,
        latent_bias = latent_bias_p / scale. Whitening therefore unties the weights.
        """
        state = model.state_dict()
        to_embeddings = self.directions.T
        tied = model.tied and bool((self.stretch == 1).all())
        state["encoder.weight"] = (state["encoder.weight"] * self.stretch) @ to_embeddings
        if not tied:
            state["decoder.linear.weight"] = (model.dictionary / self.stretch) @ to_embeddings
        state["pre_bias"] = (
            self.mean + (state["pre_bias"] / (self.scale * self.stretch)) @ to_embeddings
        )
        state["latent_bias"] = state["latent_bias"] / self.scale
        config = {**model.config(), "input_dim": len(self.mean), "tied": tied}
        # No random numbers are drawn for weights that are replaced.
        folded = SparseAutoencoder(**config, device="meta")
        folded.load_state_dict(state, assign=True)
        return folded.train(model.training)
