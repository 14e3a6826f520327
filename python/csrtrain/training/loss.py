"""CSRLoss: reconstruction, dead latents and contrast from one encoder pass."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import csrkern
from csrkern.arguments import check_bool, check_not_negative, check_positive
from csrkern.codes.sparse import SparseCodes
from csrkern.nn import SparseAutoencoder
from csrtrain.training import distributed
from csrtrain.training.config import check_contrast, check_ks


class CSRLoss(nn.Module):
    """The CSR loss: L(k) + L(4k)/8 + β·L_aux + γ·L_contrast + balance·L_load.

    - L(k): mean over rows and dimensions of (x − x̂_k)²; L(4k) the same at min(4k, h).
    - L_aux: the residual of L(k), e = x − x̂_k (no gradient), explained by the k_aux
      strongest dead latents of each row: mean((ê − e)²) / mean((mean_B(e) − e)²). Exactly 0
      while no latent is dead or the ratio is not finite.
    - L_contrast: `csrkern.info_nce` over the codes at k. "self": every other row of the batch
      is a negative. "label": rows of one label attract each other. "pair": each row finds its
      partner (a query its document); "clip": that in both directions, averaged (an image its
      caption and a caption its image). None: no contrast.
    - L_load = h·Σ_j f_j·m_j, where f_j is latent j's share of the batch's active entries (no
      gradient) and m_j its share of their sum: 1 if all latents are used alike, h if one is.

    One encoder pass gives k, 4k and the contrast, since a code's first columns are the code
    at a smaller k. `ks` trains one model for several k: with them, L(k) and the
    contrast are means over the ks and k.

    Args:
        beta: β, weight of L_aux.
        gamma: γ, weight of the contrast.
        temperature: of the contrast, on codes at norm 1.
        contrast: "self", "label", "pair", "clip" or None.
        ks: further k's below the model's own.
        recon_weight: weight of L(k) + L(4k)/8; `train` sets it to one over the variance of
            the embeddings, so that γ means the same at any scale.
        threshold: a latent counts as used when its value exceeds this.
        balance: weight of L_load; more of it makes an index over the codes faster.
        gather: where several processes train (torch.distributed), act as on their joint
            batch: gather codes, labels and statistics. Every process must call the loss on
            as many rows, and average its gradients with the others'.

    The model works in its own space (standardized rows where it normalizes), and so does
    the loss. While both the loss and the model are in training mode, each call counts as one
    optimizer step in the model's use statistics, from which latents are dead; nothing else about
    the model changes. Where gradients accumulate over several batches, pass new_step=False for
    all but the first of a step.

    Raises:
        TypeError, ValueError: if an argument is of another type or out of range.

    Source: Wen et al., ICML 2025 (arXiv 2503.01776); the auxiliary term is that of Gao et
    al. 2024 (arXiv 2406.04093), the label contrast that of CSRv2 (arXiv 2602.05735), the load
    that of Fedus et al. 2021 (arXiv 2101.03961) with latents for experts.
    """

    def __init__(
        self,
        beta: float = 1 / 32,
        gamma: float = 0.1,
        temperature: float = 0.2,
        contrast: str | None = "self",
        *,
        ks: Sequence[int] = (),
        recon_weight: float = 1.0,
        threshold: float = 1e-5,
        balance: float = 0.0,
        gather: bool = False,
    ) -> None:
        super().__init__()
        check_contrast(contrast)
        self.beta = check_not_negative("beta", beta)
        self.gamma = check_not_negative("gamma", gamma)
        self.temperature = check_positive("temperature", temperature)
        self.contrast = contrast
        self.ks = check_ks(ks)
        self.recon_weight = check_not_negative("recon_weight", recon_weight)
        self.threshold = check_not_negative("threshold", threshold)
        self.balance = check_not_negative("balance", balance)
        self.gather = check_bool("gather", gather)

    def extra_repr(self) -> str:
        """Return the text that `print(loss)` shows."""
        return (
            f"beta={self.beta}, gamma={self.gamma}, temperature={self.temperature}, "
            f"contrast={self.contrast!r}, ks={self.ks}, "
            f"recon_weight={self.recon_weight}, balance={self.balance}"
        )

    def forward(
        self,
        model: nn.Module,
        x: Tensor,
        labels: Tensor | None = None,
        *,
        partners: Tensor | None = None,
        partner_model: nn.Module | None = None,
        k: int | None = None,
        new_step: bool = True,
    ) -> dict[str, Tensor]:
        """Return the loss of a batch.

        Args:
            model: a SparseAutoencoder, or a wrapper of one: DistributedDataParallel, or what
                `fully_shard` or torch.compile made of it.
            x: embeddings [n, d].
            labels: [n] integers, for contrast="label". With "pair" and "clip" they may say
                which partners are the same (captions of one image, a document asked for
                twice): all partners of a row's label are then its positives.
            partners: embeddings [n, d'] that belong to the rows of x, for contrast="pair"
                and "clip"; reconstructed as x is.
            partner_model: the adapter of the partners, over as many latents; None: `model`.
            k: active latents in this step, where they are annealed; default the model's.
            new_step: False where the gradients are added to those of a batch before, so that both
                make one optimizer step.

        Returns:
            Scalars by name: "loss" (the total, to call backward on), its unweighted terms
            "recon", "recon_4k", "aux", "contrast" and "load", and "dead", the share of latents
            that are dead. With two adapters each is the mean of both.

        Raises:
            TypeError: if `model` holds no SparseAutoencoder.
            ValueError: if labels or partners are missing, or a prefix is not below k.
        """
        inner = unwrapped("model", model)
        partner = None if partner_model is None else unwrapped("partner_model", partner_model)
        k = inner.k if k is None else k
        self._check(inner, labels, partners, partner, k)

        def compute(model: nn.Module, rows: Tensor) -> Any:
            # Within the wrapper's forward: only gradients of what it computes are synchronized.
            terms = functools.partial(self._terms, k=k, new_step=new_step)
            # Not the compiled `forward`: the loss computes something else.
            return getattr(model, "_orig_mod", model)(rows, compute=terms)

        if partners is None:
            terms, codes = compute(model, x)
            sides = [codes]
        elif partner_model is None:
            # One pass over both, so that dead latents are counted and revived over both.
            n = x.shape[0]
            terms, codes = compute(model, torch.cat([x, partners]))
            sides = [codes[:n], codes[n:]]
        else:
            terms, codes = compute(model, x)
            partner_terms, partner_codes = compute(partner_model, partners)
            terms = {name: (term + partner_terms[name]) / 2 for name, term in terms.items()}
            sides = [codes, partner_codes]
        contrast = x.new_zeros(())
        if self.contrast is not None:
            if self.gather:
                sides = [distributed.gather_codes(side) for side in sides]
                labels = distributed.gather_rows(labels)
            contrast = torch.stack(
                [
                    self._contrast([side.truncate(width) for side in sides], labels)
                    for width in (*self.ks, k)
                ]
            ).mean()
        total = self.recon_weight * (terms["recon"] + terms["recon_4k"] / 8)
        total = total + self.beta * terms["aux"] + self.gamma * contrast
        if self.balance:
            total = total + self.balance * terms["load"]
        return {"loss": total, **terms, "contrast": contrast}

    def _check(
        self,
        model: SparseAutoencoder,
        labels: Tensor | None,
        partners: Tensor | None,
        partner_model: SparseAutoencoder | None,
        k: int,
    ) -> None:
        if self.contrast == "label" and labels is None:
            raise ValueError(
                "labels: expected [n] integers, since contrast='label'; "
                "use contrast='self' for data without labels"
            )
        if (self.contrast in ("pair", "clip")) != (partners is not None):
            raise ValueError(
                "partners: expected one embedding for each row with contrast='pair' or 'clip', "
                f"and none otherwise; contrast is {self.contrast!r}"
            )
        if partner_model is not None and partner_model.hidden_dim != model.hidden_dim:
            raise ValueError(
                f"partner_model: expected {model.hidden_dim} latents as the model has, "
                f"got {partner_model.hidden_dim}; their codes are compared latent by latent"
            )
        if self.ks and self.ks[-1] >= k:
            raise ValueError(f"ks: expected k's below the model's k = {k}, got {self.ks}")

    def _terms(
        self, model: SparseAutoencoder, x: Tensor, *, k: int, new_step: bool
    ) -> tuple[dict[str, Tensor], SparseCodes]:
        """Return the terms that depend on one side only, and the codes of x at k."""
        x, _, _ = model.standardized(x)
        widths = (*self.ks, k)
        widest = min(4 * k, model.hidden_dim)
        wide = model.encode_standardized(x, widest)
        errors = csrkern.prefix_errors(x, wide, model.dictionary, model.pre_bias)
        codes = wide.truncate(k)
        if self.training and model.training:
            model.update_stats(codes, self.threshold, new_step=new_step)
            if self.gather:
                distributed.minimum_(model.stats_last_nonzero)
        terms = {
            "recon": torch.stack([errors[width - 1] for width in widths]).mean(),
            "recon_4k": errors[-1],
            "aux": self._aux(model, x, codes),
            "load": load(codes, self.gather) if self.balance else x.new_zeros(()),
            "dead": model.dead.float().mean(),
        }
        return terms, codes

    def _aux(self, model: SparseAutoencoder, x: Tensor, codes: SparseCodes) -> Tensor:
        """Return the share of the variance of what codes leave that dead latents do not explain."""
        explained = model.reconstruct_dead_standardized(x)
        if explained is None:
            return x.new_zeros(())
        with torch.no_grad():
            error = x - csrkern.decode(codes, model.dictionary, model.pre_bias)
        remainder = explained - error
        mean = error.mean(0)
        if self.gather:
            mean = distributed.mean_(mean)
        variance = (mean - error).square().mean()
        if self.gather:
            variance = distributed.mean_(variance)
        usable = torch.isfinite(remainder.detach().square().mean() / variance) & model.dead.any()
        # Both sides are chosen before dividing: 0 · inf in the backward would be NaN.
        remainder = torch.where(usable, remainder, torch.zeros_like(remainder))
        return remainder.square().mean() / torch.where(usable, variance, torch.ones_like(variance))

    def _contrast(self, sides: Sequence[SparseCodes], labels: Tensor | None) -> Tensor:
        if len(sides) == 1:
            positives = labels if self.contrast == "label" else None
            return csrkern.info_nce(sides[0], temperature=self.temperature, labels=positives)
        a, b = sides
        pair_labels = None if labels is None else (labels, labels)
        loss = csrkern.info_nce(a, b, temperature=self.temperature, labels=pair_labels)
        if self.contrast != "clip":
            return loss
        return (loss + csrkern.info_nce(b, a, temperature=self.temperature, labels=pair_labels)) / 2


def unwrapped(name: str, model: nn.Module) -> SparseAutoencoder:
    """Return the autoencoder in `model`, which may be one, or wrap one.

    Raises:
        TypeError: if there is none.
    """
    inner: Any = model
    while not isinstance(inner, SparseAutoencoder):
        # torch.compile wraps in the first, DistributedDataParallel and the like in the second.
        inner = getattr(inner, "_orig_mod", None) or getattr(inner, "module", None)
        if inner is None:
            raise TypeError(
                f"{name}: expected a SparseAutoencoder, or a wrapper of one such as "
                f"DistributedDataParallel, got {type(model).__name__}"
            )
    return inner


def load(codes: SparseCodes, gather: bool = False) -> Tensor:
    """Return how unevenly a batch uses its latents: 1 if all alike, `codes.dim` if only one.

    It is differentiable in the values; the share of active entries counts as constant. With
    `gather` the batch is that of all processes.
    """
    if gather:
        codes = distributed.gather_codes(codes)
    active = codes.active
    indices = codes.latents()
    use = torch.zeros(codes.dim, dtype=codes.dtype, device=codes.device)
    use = use.index_add(0, indices.flatten(), active.flatten().to(codes.dtype))
    share = use / use.sum().clamp(min=1)
    total = codes.values.sum()
    weighted = (share[indices] * codes.values).sum()
    return codes.dim * weighted / torch.where(total > 0, total, torch.ones_like(total))
