"""CSRLoss of sentence-transformers 6.2 and later over codes: its terms without [n, h]."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import csrkern
from csrkern.codes.sparse import SparseCodes
from csrkern.integrations._known import changed

USED = 1e-5  # above it, a value counts as use of its latent


def reconstruct(
    module: Any, x: Tensor, prepared: Tensor, mean: Any, deviation: Any, k: int
) -> dict[str, Any]:
    """Return what CSRLoss reads of a forward pass, and the codes at k, from one encoder pass."""
    weight, bias, pre_bias = module.encoder.weight, module.latent_bias, module.pre_bias
    widest = min(4 * k, module.hidden_dim)
    ks = [k] if widest == k else [k, widest]
    wide, out = csrkern.autoencode(prepared, weight, bias, ks=ks, pre_bias=pre_bias)
    codes = wide.truncate(k)
    counts = module.training and torch.is_grad_enabled()
    if counts:
        _count_use(module.stats_last_nonzero, codes)
    aux = None
    if module.k_aux:
        dead = (module.stats_last_nonzero > module.dead_threshold).nonzero().squeeze(1)
        aux = _reconstruct_dead(module, prepared, dead)
        aux = aux * deviation
    if counts:  # the package's module counts a latent as used in the 4k pass too
        _count_use(module.stats_last_nonzero, wide)
    narrow = out[0] * deviation + mean
    return {
        "sentence_codes": codes,
        "sentence_embedding_backbone": x,
        "decoded_embedding_k": narrow,
        "decoded_embedding_4k": out[-1] * deviation + mean,
        "decoded_embedding_aux": aux,
        "decoded_embedding_k_pre_bias": narrow - pre_bias * deviation,
    }


def _reconstruct_dead(module: Any, prepared: Tensor, dead: Tensor) -> Tensor:
    """pre_bias [d] and what the k_aux strongest of the dead latents add to it, [n, d]."""
    pre_bias = module.pre_bias
    if not len(dead):
        return pre_bias.expand_as(prepared)
    weight, bias = module.encoder.weight[dead], module.latent_bias[dead]
    if len(dead) <= module.k_aux:
        # All the positive ones, about half: dense products are then several times as fast.
        return F.linear(prepared - pre_bias, weight, bias).relu() @ weight + pre_bias
    # A product of a few latents is quicker than proving which of them are the largest.
    _, (aux,) = csrkern.autoencode(
        prepared, weight, bias, ks=[module.k_aux], pre_bias=pre_bias, precision="fast"
    )
    return aux


@torch.no_grad()
def _count_use(steps_since: Tensor, codes: SparseCodes) -> None:
    """One pass of the package's statistics [h]: 1 for latents in use, one more for others."""
    steps_since += 1
    steps_since[codes.indices[codes.values > USED].long()] = 1


def base_loss(
    package: Any, loss: Any, codes: list[Any], labels: Tensor | None
) -> Tensor | dict[str, Tensor]:
    """Return the loss over codes: InfoNCE if it is the plain one, else the package's on [n, h]."""
    plain = (
        changed(loss, package.ranking_loss, ("compute_loss_from_embeddings",)) is None
        and all(isinstance(c, SparseCodes) for c in codes)
        and loss.similarity_fct in (package.util.dot_score, package.util.cos_sim)
        and type(loss.scale) in (int, float)
        and loss.scale > 0
        and not getattr(loss, "gather_across_devices", False)
        and set(getattr(loss, "directions", ["query_to_doc"])) == {"query_to_doc"}
        and not (getattr(loss, "hardness_mode", None) and loss.hardness_strength)
    )
    if not plain or len(codes) < 2 or any(len(c) != len(codes[0]) for c in codes):
        dense = [c.to_dense() if isinstance(c, SparseCodes) else c for c in codes]
        return loss.compute_loss_from_embeddings(dense, labels)
    queries, *documents = codes
    every = SparseCodes.cat(documents)
    n = torch.arange(len(every), device=queries.device)  # document i belongs to query i
    return csrkern.info_nce(
        queries,
        every,
        temperature=1 / loss.scale,
        labels=None if len(documents) == 1 else (n[: len(queries)], n),
        normalize=loss.similarity_fct is package.util.cos_sim,
    )
