"""Dense queries against stored codes: the spaces of a model, its `rerank` and `norms`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from csrkern._fingerprint import fingerprint_of_codes
from csrkern.arguments import check_choice
from csrkern.codes.sparse import SparseCodes, check_codes
from csrkern.embeddings.dataset import Embeddings, open_embeddings
from csrkern.index.rerank import Rerank
from csrkern.ops.decode import decode
from csrkern.ops.validation import check_tensor
from csrkern.typing import ArraySource

if TYPE_CHECKING:
    from csrkern.nn.modules import SparseAutoencoder

SPACES = ("embeddings", "adapter")


@torch.no_grad()
def rerank(
    model: SparseAutoencoder,
    q: ArraySource | Embeddings,
    shortlist: int = 100,
    space: str = "embeddings",
) -> Rerank:
    """Return `SparseAutoencoder.rerank`."""
    check_space(model, space)
    encoder, decoder, pre_bias = _wide(model)
    if not isinstance(q, Tensor):
        opened = open_embeddings("q", q, width=model.input_dim)
        q = torch.cat([*opened.pieces(pre_bias.dtype)]).to(pre_bias.device)
    check_tensor("q", q, (None, model.input_dim))
    q = q.to(pre_bias.dtype)
    own = model.encoder.weight, model.latent_bias, model.pre_bias
    fingerprint = fingerprint_of_codes(model, own)
    if space == "adapter":
        dense = (q - pre_bias) @ encoder.T
        return Rerank(dense, shortlist, fingerprint=fingerprint)
    return Rerank(q @ decoder.T, shortlist, q @ pre_bias, fingerprint)


@torch.no_grad()
def norms(model: SparseAutoencoder, codes: SparseCodes, space: str = "embeddings") -> Tensor:
    """Return `SparseAutoencoder.norms`."""
    check_space(model, space)
    check_codes("codes", codes, model.hidden_dim)
    encoder, decoder, pre_bias = _wide(model)
    codes = codes.to(dtype=pre_bias.dtype)
    if space == "adapter":
        # W = W_dec M for the adapter's metric M: |x̂ − pre_bias|² in it is z W (z W_dec)ᵀ.
        square = (decode(codes, encoder) * decode(codes, decoder)).sum(1)
    else:
        square = decode(codes, decoder, pre_bias).square().sum(1)
    return square.clamp(min=torch.finfo(torch.float32).tiny).sqrt()


def _wide(model: SparseAutoencoder) -> tuple[Tensor, Tensor, Tensor]:
    """Return the encoder's and the decoder's weight and pre_bias, in float32 at least."""
    tensors = model.encoder.weight, model.dictionary, model.pre_bias
    encoder, decoder, pre_bias = (
        t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors
    )
    return encoder, decoder, pre_bias


def spaces(model: SparseAutoencoder) -> tuple[str, ...]:
    """Return `SparseAutoencoder.spaces`."""
    if model.standardize:
        return ()
    if not model.tied:
        some = slice(None, None, max(1, model.hidden_dim // 256))
        encoder, decoder, _ = _wide(model)
        form = (encoder[some] @ decoder[some].T).detach()
        rounding = max(1e-3, torch.finfo(model.encoder.weight.dtype).eps)
        if float((form - form.T).abs().max()) > rounding * float(form.abs().max()):
            return SPACES[:1]
    return SPACES


def check_space(model: SparseAutoencoder, space: str) -> None:
    """Raise TypeError or ValueError unless `space` is one of `spaces`."""
    check_choice("space", space, SPACES)
    if space in spaces(model):
        return
    raise ValueError(
        "standardize: expected a model that does not standardize rows: a code does not hold "
        "the scale of its row, so norms are unknown"
        if model.standardize
        else "space: expected 'embeddings' for this model, got 'adapter': its decoder was "
        "trained apart from its encoder, so they have no one space"
    )
