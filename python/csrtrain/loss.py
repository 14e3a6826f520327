"""CSRLoss: reconstruction, dead latents and contrast from one encoder pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import csrkern
from csrkern.codes import SparseCodes
from csrkern.nn import SparseAutoencoder


class CSRLoss(nn.Module):
    """The CSR loss: L(k) + L(4k)/8 + β·L_aux + γ·L_contrast.

    - L(k): mean over rows and dimensions of (x − x̂_k)²; L(4k) the same at min(4k, h).
    - L_aux: what L(k) leaves over, e = x − x̂_k (no gradient), explained by the k_aux
      strongest dead latents of each row: mean((ê − e)²) / mean((mean_B(e) − e)²). Exactly 0
      while no latent is dead or the ratio is not finite.
    - L_contrast: `csrkern.info_nce` over the codes at k, "self" (every other row of the
      batch is a negative), "label" (rows of one label attract each other) or None.

    One encoder pass gives k, 4k and the contrast, since a code's first columns are the code
    at a smaller k. `prefixes` trains one model for several k: with them, L(k) and the
    contrast are means over the prefixes and k.

    Args:
        beta: β, weight of L_aux.
        gamma: γ, weight of the contrast.
        temperature: of the contrast, on codes at norm 1.
        contrast: "self", "label" or None.
        prefixes: further k's below the model's own.
        recon_weight: weight of L(k) + L(4k)/8; `train` sets it to one over the variance of
            the embeddings, so that γ weighs the same whatever their scale.
        threshold: a latent counts as used when its value exceeds this.

    The model works in its own space (standardised rows where it normalises), and so does
    the loss. While both the loss and the model are in training mode, each call counts as one
    optimiser step in the model's use statistics; nothing else about the model changes.

    Raises:
        ValueError: if an argument is out of range.

    Source: Wen et al., ICML 2025 (arXiv 2503.01776); the auxiliary term is that of Gao et
    al. 2024 (arXiv 2406.04093), the label contrast that of CSRv2 (arXiv 2602.05735).
    """

    def __init__(
        self,
        beta: float = 1 / 32,
        gamma: float = 0.1,
        temperature: float = 0.2,
        contrast: str | None = "self",
        *,
        prefixes: Sequence[int] = (),
        recon_weight: float = 1.0,
        threshold: float = 1e-5,
    ) -> None:
        super().__init__()
        if contrast not in ("self", "label", None):
            raise ValueError(f"contrast: expected 'self', 'label' or None, got {contrast!r}")
        weights = {"beta": beta, "gamma": gamma, "recon_weight": recon_weight}
        for name, weight in {**weights, "threshold": threshold}.items():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"{name}: expected a number >= 0, got {weight}")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature: expected a positive number, got {temperature}")
        if any(k < 1 for k in prefixes):
            raise ValueError(f"prefixes: expected positive k's, got {tuple(prefixes)}")
        self.beta = beta
        self.gamma = gamma
        self.temperature = temperature
        self.contrast = contrast
        self.prefixes = tuple(sorted(set(prefixes)))
        self.recon_weight = recon_weight
        self.threshold = threshold

    def extra_repr(self) -> str:
        """What `print(loss)` shows."""
        return (
            f"beta={self.beta}, gamma={self.gamma}, temperature={self.temperature}, "
            f"contrast={self.contrast!r}, prefixes={self.prefixes}, "
            f"recon_weight={self.recon_weight}"
        )

    def forward(
        self, model: SparseAutoencoder, x: Tensor, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The loss of a batch.

        Args:
            model: the autoencoder.
            x: embeddings [n, d].
            labels: [n] integers, for contrast="label".

        Returns:
            Scalars by name: "loss" (the total, to call backward on), its unweighted terms
            "recon", "recon_4k", "aux" and "contrast", and "dead", the share of latents that
            are dead.

        Raises:
            ValueError: if labels are missing, or a prefix is not below the model's k.
        """
        if self.contrast == "label" and labels is None:
            raise ValueError(
                "labels: expected [n] integers, since contrast='label'; "
                "use contrast='self' for data without labels"
            )
        if self.prefixes and self.prefixes[-1] >= model.k:
            raise ValueError(
                f"prefixes: expected k's below the model's k = {model.k}, got {self.prefixes}"
            )
        x, _, _ = model.standardize(x)
        widths = (*self.prefixes, model.k)
        widest = min(4 * model.k, model.hidden_dim)
        ks = widths if widest == model.k else (*widths, widest)
        wide, reconstructions = model.autoencode(x, ks)
        if self.training and model.training:
            model.update_stats(wide.truncate(model.k), self.threshold)

        errors = [F.mse_loss(reconstruction, x) for reconstruction in reconstructions]
        recon = torch.stack(errors[: len(widths)]).mean()
        recon_4k = errors[-1]
        rest = (x - reconstructions[len(widths) - 1]).detach()
        aux = self._aux(model, x, rest)
        contrast = x.new_zeros(())
        if self.contrast is not None:
            contrast = torch.stack(
                [self._contrast(wide.truncate(k), labels) for k in widths]
            ).mean()
        both = self.recon_weight * (recon + recon_4k / 8)
        return {
            "loss": both + self.beta * aux + self.gamma * contrast,
            "recon": recon,
            "recon_4k": recon_4k,
            "aux": aux,
            "contrast": contrast,
            "dead": model.dead.float().mean(),
        }

    def _aux(self, model: SparseAutoencoder, x: Tensor, error: Tensor) -> Tensor:
        """What the dead latents leave of `error` [n, d], as a share of its variance."""
        explained = model.reconstruct_dead(x)
        if explained is None:
            return x.new_zeros(())
        rest = explained - error
        variance = (error.mean(0) - error).square().mean()
        usable = torch.isfinite(rest.detach().square().mean() / variance) & model.dead.any()
        # Both sides are chosen before dividing: 0 · inf in the backward would be NaN.
        rest = torch.where(usable, rest, torch.zeros_like(rest))
        return rest.square().mean() / torch.where(usable, variance, torch.ones_like(variance))

    def _contrast(self, codes: SparseCodes, labels: Tensor | None) -> Tensor:
        positives = labels if self.contrast == "label" else None
        return csrkern.info_nce(codes, temperature=self.temperature, labels=positives)
