"""CSR in a training loop of your own: the loss is a module, the rest is yours.

python examples/plain_pytorch.py
"""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader

from csrkern.nn import SparseAutoencoder
from csrtrain import CSRLoss
from csrtrain.demo.data import load_demo


def fit(embeddings: torch.Tensor, *, k: int = 16, epochs: int = 5) -> SparseAutoencoder:
    """A model for embeddings [n, d]."""
    model = SparseAutoencoder(embeddings.shape[1], 4 * embeddings.shape[1], k)
    with torch.no_grad():
        model.pre_bias.copy_(embeddings.mean(0))
    # Reconstruction counts as a share of the variance, whatever the scale of the embeddings.
    loss_of = CSRLoss(recon_weight=float(1 / embeddings.var(0).mean()))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=6.25e-10)
    rows: DataLoader[torch.Tensor] = DataLoader(
        embeddings,  # type: ignore[arg-type]
        batch_size=min(512, len(embeddings)),
        shuffle=True,
        drop_last=True,
    )
    for epoch in range(epochs):
        for x in rows:
            terms = loss_of(model, x)
            optimizer.zero_grad()
            terms["loss"].backward()
            optimizer.step()
        print(f"epoch {epoch + 1}:", {name: round(term.item(), 4) for name, term in terms.items()})
    return model.eval()


if __name__ == "__main__":
    fit(torch.from_numpy(load_demo().train))
