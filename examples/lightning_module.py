"""CSR in PyTorch Lightning, on one device or many.

pip install lightning
python examples/lightning_module.py
"""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from csrkern.nn import SparseAutoencoder
from csrtrain import CSRLoss
from csrtrain.demo.data import load_demo


class CSRModule(lightning.LightningModule):
    """Trains `model` with the CSR loss; batches are (embeddings,) or (embeddings, labels).

    Under Lightning's DDP strategy, `gather` makes the processes share negatives and counts.
    """

    def __init__(self, model: SparseAutoencoder, loss: CSRLoss, lr: float = 1e-3) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.lr = lr

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        """The loss of a batch; its terms are logged."""
        x, labels = (*batch, None)[:2]
        new_step = batch_index % self.trainer.accumulate_grad_batches == 0
        terms = self.loss(self.model, x, labels, new_step=new_step)
        self.log_dict({name: term.detach() for name, term in terms.items()})
        return terms["loss"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, as published."""
        return torch.optim.Adam(self.model.parameters(), lr=self.lr, eps=6.25e-10)


class RandomState(lightning.Callback):
    """Keeps torch's random state in checkpoints: a resumed run shuffles as an unbroken one."""

    def state_dict(self) -> dict[str, Any]:
        """Called when a checkpoint is saved."""
        return {"torch": torch.get_rng_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Called before a run goes on from a checkpoint."""
        torch.set_rng_state(state_dict["torch"])


def fit(
    embeddings: Tensor,
    labels: Tensor,
    *,
    k: int = 16,
    epochs: int = 5,
    resume: str | None = None,
    **trainer: Any,
) -> SparseAutoencoder:
    """A model for embeddings [n, d] with labels [n]; `resume` is a checkpoint to start from."""
    model = SparseAutoencoder(embeddings.shape[1], 4 * embeddings.shape[1], k)
    with torch.no_grad():
        model.pre_bias.copy_(embeddings.mean(0))
    variance = float(embeddings.var(0).mean())
    loss = CSRLoss(gamma=1.0, contrast="label", recon_weight=1 / variance, gather=True)
    rows = DataLoader(
        TensorDataset(embeddings, labels),
        batch_size=min(512, len(embeddings)),
        shuffle=True,
        drop_last=True,
    )
    run = lightning.Trainer(max_epochs=epochs, callbacks=[RandomState()], **trainer)
    run.fit(CSRModule(model, loss), rows, ckpt_path=resume)
    return model.cpu().eval()


if __name__ == "__main__":
    data = load_demo()
    fit(torch.from_numpy(data.train), torch.from_numpy(data.train_labels))
