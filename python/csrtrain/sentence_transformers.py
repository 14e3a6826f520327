"""CachedCSRLoss: the CSR loss with gradients into a sentence-transformers backbone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

try:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.losses.gradcache import (
        CachedLossMixin,
        has_static_embedding_input,
    )
except ImportError as error:
    raise ImportError(
        f"this needs sentence-transformers 6.2 or later ({error}); pip install 'csrkern[st]'"
    ) from error

from csrkern.arguments import check_at_least
from csrkern.nn import SparseAutoencoder
from csrtrain.training import distributed
from csrtrain.training.loss import CSRLoss


class CachedCSRLoss(CachedLossMixin, nn.Module):
    """A loss for `SentenceTransformerTrainer` that trains the backbone and an adapter behind it.

    Texts are embedded `mini_batch_size` at a time without a graph. `loss` of all the embeddings
    gives a gradient for each of them, and every mini-batch is embedded again to pass its gradients
    on. The gradients are those of one pass over the whole batch, so a batch may have
    thousands of pairs, each a negative of the others, in the memory of one mini-batch.

    A dataset has one column of texts, or two that belong together row by row, for the contrasts
    "pair" and "clip" of `CSRLoss`; a column of labels goes to it as well. Only those parameters
    of the model train that require gradients: all, or those of a LoRA. Each batch counts as
    one step in the adapter's use statistics.

    Started by torchrun, with the same adapter in each process and `CSRLoss(gather=True)`, they
    train on their joint batch.

    Args:
        model: the backbone.
        adapter: trained on embeddings of the model already, as by `csrtrain.train`.
        loss: of the embeddings of a batch. `recon_weight` should be one over their variance, as
            `csrtrain.train` sets it.
        mini_batch_size: texts that are embedded at once.

    Raises:
        ValueError: if the model begins with a StaticEmbedding, whose batches cannot be split, or
            several processes train without `gather`.

    Source: Gao et al. 2021 (arXiv 2101.06983), by the machinery of sentence-transformers'
    CachedMultipleNegativesRankingLoss.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        adapter: SparseAutoencoder,
        loss: CSRLoss,
        mini_batch_size: int = 32,
    ) -> None:
        super().__init__()
        if has_static_embedding_input(model):
            raise ValueError(
                "model: expected a model whose batches can be split, got one that begins with a "
                "StaticEmbedding; csrtrain.train trains an adapter for its embeddings"
            )
        self.model = model
        self.adapter = adapter
        self.loss = loss
        self.mini_batch_size = check_at_least("mini_batch_size", mini_batch_size, 1)
        self._gradients: Sequence[Tensor | None] = ()

    def forward(
        self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None
    ) -> Tensor:
        """Return the loss of a batch, as the trainer asks for it."""
        if distributed.active() and not self.loss.gather:
            raise ValueError(
                f"loss: expected CSRLoss(gather=True) in {distributed.world_size()} processes: "
                "without it each counts dead latents, and contrasts rows, of its own share only"
            )
        columns = list(sentence_features)
        if len(columns) > 2:
            raise ValueError(f"dataset: expected one or two columns of texts, got {len(columns)}")
        self.adapter.train(self.model.training)
        total: Tensor = CachedLossMixin.forward_cached(self, columns, labels)
        if not torch.is_grad_enabled():
            return total
        trained, self._gradients = self._gradients, ()
        return _WithGradients.apply(total, trained, *self._trained())

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """Return the loss of the embeddings of every mini-batch; with their gradients, detached."""
        dtype = self.adapter.pre_bias.dtype
        x, *partners = (torch.cat(column).to(dtype) for column in reps)
        total: Tensor = self.loss(
            self.adapter, x, labels, partners=partners[0] if partners else None
        )["loss"]
        if not with_backward:
            return total
        embedded = [rep for column in reps for rep in column]
        gradients = torch.autograd.grad(total, [*embedded, *self._trained()], allow_unused=True)
        for rep, gradient in zip(embedded, gradients, strict=False):
            rep.grad = gradient
        # The trainer averages those of the backbone.
        self._gradients = distributed.averaged(self._trained(), gradients[len(embedded) :])
        return total.detach()

    def _trained(self) -> list[nn.Parameter]:
        return [p for p in self.adapter.parameters() if p.requires_grad]

    def get_config_dict(self) -> dict[str, Any]:
        """Return what a model card says of the loss."""
        return {"loss": repr(self.loss), "mini_batch_size": self.mini_batch_size}


class _WithGradients(torch.autograd.Function):
    """A total whose gradients for some parameters are known: they get them in the backward pass.

    So a gradient scaler and the division by accumulated batches reach these as they reach those
    of the backbone.
    """

    @staticmethod
    def forward(
        ctx: Any, total: Tensor, gradients: Sequence[Tensor | None], *parameters: Tensor
    ) -> Tensor:
        ctx.gradients = gradients
        return total.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return grad, None, *(g if g is None else g * grad for g in ctx.gradients)
