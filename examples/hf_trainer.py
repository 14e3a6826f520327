"""CSR in the Trainer of Hugging Face transformers.

pip install transformers accelerate
python examples/hf_trainer.py
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from csrkern.nn import SparseAutoencoder
from csrtrain import CSRLoss
from csrtrain.demo.data import load_demo


class WithLoss(nn.Module):
    """A model and its loss as the Trainer calls them: batches in, {"loss": ...} out."""

    def __init__(self, model: SparseAutoencoder, loss: CSRLoss) -> None:
        super().__init__()
        self.model = model
        self.loss_of = loss
        self.new_step = True

    def forward(self, embeddings: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """The terms of the loss."""
        new_step, self.new_step = self.new_step, False
        return self.loss_of(self.model, embeddings, labels, new_step=new_step)


class CountSteps(TrainerCallback):
    """Tells the loss which batches make one step, with `gradient_accumulation_steps`."""

    def __init__(self, wrapped: WithLoss) -> None:
        self.wrapped = wrapped

    def on_step_begin(self, *_args: Any, **_kwargs: Any) -> None:
        """Called before the first batch of a step."""
        self.wrapped.new_step = True


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Embeddings [n, d], one dictionary a row."""

    def __init__(self, embeddings: Tensor) -> None:
        self.embeddings = embeddings

    def __len__(self) -> int:
        return len(self.embeddings)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"embeddings": self.embeddings[row]}


def fit(
    embeddings: Tensor,
    folder: str,
    *,
    k: int = 16,
    epochs: float = 5,
    resume: bool = False,
    **arguments: Any,
) -> SparseAutoencoder:
    """A model for embeddings [n, d]. Checkpoints go to `folder`; `resume` goes on from the last."""
    model = SparseAutoencoder(embeddings.shape[1], 4 * embeddings.shape[1], k)
    with torch.no_grad():
        model.pre_bias.copy_(embeddings.mean(0))
    wrapped = WithLoss(model, CSRLoss(recon_weight=float(1 / embeddings.var(0).mean())))
    settings = TrainingArguments(
        output_dir=folder,
        num_train_epochs=epochs,
        per_device_train_batch_size=min(512, len(embeddings)),
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        dataloader_drop_last=True,
        report_to=[],
        **arguments,
    )
    optimizer = torch.optim.Adam(wrapped.parameters(), lr=1e-3, eps=6.25e-10)
    # No schedule: a constant rate, as published.
    trainer = Trainer(
        wrapped,
        settings,
        train_dataset=Rows(embeddings),
        optimizers=(optimizer, None),
        callbacks=[CountSteps(wrapped)],
    )
    trainer.train(resume_from_checkpoint=resume)
    return model.cpu().eval()


if __name__ == "__main__":
    fit(torch.from_numpy(load_demo().train), "hf-run")
