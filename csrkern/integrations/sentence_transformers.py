"""sentence-transformers' sparse encoders on our kernels: one line in, one line back.

`accelerate()` exchanges four functions of the package: the forward pass of its
`SparseAutoEncoder`, `SparseEncoder.encode`, `CSRLoss.forward` and `semantic_search`. Each does
the same as before, and hands whatever it has no faster way for to the function it stands for.
The package's tokenising, batching, sorting and loss terms are still its own.

- `encode`: codes in float32 are those of exact sums, rounded once; the package's differ by the
  rounding of its matrix product, so values agree within it and latents but for near ties.
- `CSRLoss` (6.2 and later): the same terms, gradients and use statistics, within float32. Where
  4k or k_aux exceed the number of latents, which is an error in the package, all latents count.
  Until 6.1 the package's module overwrites its pre-activations before L(4k), so that this loss is
  another one there; training then stays as it was.
- `semantic_search`: the same ids and scores, but for the order of equal scores.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

import csrkern
from csrkern.codes import SparseCodes
from csrkern.integrations import semantic_search
from csrkern.integrations.exchange import Change, Exchange
from csrkern.integrations.sentence_transformers_loss import base_loss, reconstruct

BLOCK_ROWS = 1024  # embeddings that `encode` takes from the backbone before it encodes them

_in_force: list[Acceleration] = []
_encoding: ContextVar[_Collected | None] = ContextVar("encoding", default=None)
_training: ContextVar[nn.Module | None] = ContextVar("training", default=None)


def accelerate(model: nn.Module | None = None) -> Acceleration:
    """Runs sentence-transformers' `SparseAutoEncoder` models on csrkern from here on.

    Args:
        model: a `SparseEncoder` with a `SparseAutoEncoder`; None: all there are and will be.
            `semantic_search` belongs to no model and is accelerated either way.

    Returns:
        What undoes it: call its `restore()`, or use it as a context manager.

    Raises:
        ImportError: if sentence-transformers is missing, or older than 5.1.
        ValueError: if the model has no `SparseAutoEncoder`.
    """
    package = _Package()
    modules = None
    if model is not None:
        modules = [m for m in model.modules() if isinstance(m, package.autoencoder)]
        if not modules:
            raise ValueError(
                "model: expected a SparseEncoder with a SparseAutoEncoder module, got "
                f"{type(model).__name__} without one"
            )
    if not _in_force:
        _exchange.accelerate()
        semantic_search.install(package.util)
    acceleration = Acceleration(modules)
    _in_force.append(acceleration)
    return acceleration


def restore() -> None:
    """Undoes every `accelerate`: the package runs its own functions again."""
    for acceleration in list(_in_force):
        acceleration.restore()


class Acceleration:
    """One call of `accelerate`, in force until `restore`; also a context manager."""

    def __init__(self, modules: Iterable[nn.Module] | None) -> None:
        self._modules = None if modules is None else weakref.WeakSet(modules)

    def covers(self, module: nn.Module) -> bool:
        """Whether it was for this `SparseAutoEncoder`, or for all."""
        return self._modules is None or module in self._modules

    def restore(self) -> None:
        """Undoes this call; other calls of `accelerate` stay in force."""
        if self in _in_force:
            _in_force.remove(self)
            if not _in_force:
                _exchange.restore()
                semantic_search.remove()

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(self, *_error: object) -> None:
        self.restore()


class _Package:
    """What we need of sentence-transformers, from where this version keeps it."""

    def __init__(self) -> None:
        try:
            import sentence_transformers as package
            from sentence_transformers import SparseEncoder, util
            from sentence_transformers.sparse_encoder import losses
        except ImportError as error:
            raise ImportError(
                f"accelerate needs sentence-transformers 5.1 or later ({error}); "
                "pip install 'csrkern[st]'"
            ) from error
        version = tuple(int(part) for part in package.__version__.split(".")[:2])
        if version < (5, 1):
            raise ImportError(
                f"accelerate needs sentence-transformers 5.1 or later, got {package.__version__}"
            )
        if version >= (6, 2):
            from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder
        else:
            from sentence_transformers.sparse_encoder.models import SparseAutoEncoder
        self.autoencoder: type[nn.Module] = SparseAutoEncoder
        self.encoder: type[nn.Module] = SparseEncoder
        self.loss: type[nn.Module] = losses.CSRLoss
        self.ranking_loss: type[nn.Module] = losses.SparseMultipleNegativesRankingLoss
        self.util = util
        self.trains_4k = version >= (6, 2)


def _changes() -> list[Change]:
    package = _Package()
    made: list[Change] = [
        (package.autoencoder, "forward", _forward),
        (package.encoder, "encode", functools.partial(_encode, package)),
    ]
    if package.trains_4k:
        made.append((package.loss, "forward", functools.partial(_csr_loss, package)))
    return [(owner, name, functools.partial(_like, make)) for owner, name, make in made]


def _like(make: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """What `make` makes of a function, with its name and documentation."""
    return functools.wraps(original)(make(original))


_exchange = Exchange(_changes)


def _covered(module: Any) -> bool:
    on_device = module.encoder.weight.device.type in ("cpu", "cuda")
    return on_device and any(acceleration.covers(module) for acceleration in _in_force)


def _last_autoencoder(package: _Package, model: Any) -> nn.Module | None:
    """The covered `SparseAutoEncoder` that a model (perhaps in a DDP wrapper) ends with."""
    inside = model if isinstance(model, package.encoder) else getattr(model, "module", model)
    last = list(inside.children())[-1:]
    if last and isinstance(last[0], package.autoencoder) and _covered(last[0]):
        return last[0]
    return None


# ---- encoding -------------------------------------------------------------------------


class _Collected:
    """What the adapter has met in an `encode` under way.

    The package gets row numbers to sort and stack instead of codes, and the rows are encoded
    many batches at a time: a product of 32 rows, its usual batch, takes BLOCK_ROWS / 32 times as
    many passes over the weight.
    """

    def __init__(self, autoencoder: Any) -> None:
        self.autoencoder = autoencoder
        self.waiting: list[tuple[Tensor, int]] = []
        self.parts: list[SparseCodes] = []
        self.rows = 0

    def add(self, prepared: Tensor, k: int) -> Tensor:
        """Takes the rows and returns their numbers, int64 [n, 1]."""
        self.waiting.append((prepared, k))
        begin, self.rows = self.rows, self.rows + len(prepared)
        if self.rows - sum(len(part) for part in self.parts) >= BLOCK_ROWS:
            self._encode_waiting()
        return torch.arange(begin, self.rows, device=prepared.device).unsqueeze(1)

    def codes(self) -> SparseCodes:
        """The codes of all rows, in the order of their numbers."""
        self._encode_waiting()
        return SparseCodes.cat(self.parts)

    @torch.inference_mode()
    def _encode_waiting(self) -> None:
        if self.waiting:
            rows, (k, *_) = zip(*self.waiting, strict=True)
            self.parts.append(_codes(self.autoencoder, torch.cat(rows), k))
            self.waiting = []


def _codes(module: Any, prepared: Tensor, k: int) -> SparseCodes:
    weight, bias, pre_bias = module.encoder.weight, module.latent_bias, module.pre_bias
    return csrkern.encode(prepared, weight, bias, k=k, pre_bias=pre_bias)


def _encode(package: _Package, original: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    def encode(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        autoencoder = _last_autoencoder(package, self)
        call = signature.bind_partial(self, *args, **kwargs)
        asked = dict(call.arguments)
        in_processes = (
            asked.get("pool") is not None
            or isinstance(asked.get("device"), list)
            or getattr(self, "_distributed_inference", None) is not None
        )
        if autoencoder is None or in_processes:
            return original(self, *args, **kwargs)
        collected = _Collected(autoencoder)
        call.arguments |= {
            "convert_to_tensor": True,
            "convert_to_sparse_tensor": False,
            "save_to_cpu": True,
        }
        token = _encoding.set(collected)
        try:
            rows = original(*call.args, **call.kwargs)
        finally:
            _encoding.reset(token)
        if not collected.rows:
            return original(self, *args, **kwargs)
        codes = collected.codes()
        codes = codes[rows.reshape(-1).to(codes.device)]
        if asked.get("save_to_cpu", False):
            codes = codes.to("cpu")
        sparse = asked.get("convert_to_sparse_tensor", True)
        if rows.dim() == 1:  # one text
            return (codes.to_torch_coo() if sparse else codes.to_dense())[0]
        if asked.get("convert_to_tensor", True):
            return codes.to_torch_coo() if sparse else codes.to_dense()
        return _sparse_rows(codes) if sparse else list(codes.to_dense())

    return encode


def _sparse_rows(codes: SparseCodes) -> list[Tensor]:
    """One COO tensor [dim] a row: taking row after row out of a COO matrix reads it n times."""
    matrix = codes.to_torch_coo()
    counts = codes.active.sum(1).tolist()
    latents, values = matrix.indices()[1:].split(counts, dim=1), matrix.values().split(counts)
    return [
        torch.sparse_coo_tensor(i, v, (codes.dim,), is_coalesced=True, check_invariants=False)
        for i, v in zip(latents, values, strict=True)
    ]


def _forward(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(
        self: Any, features: dict[str, Any], max_active_dims: int | None = None
    ) -> dict[str, Any]:
        collected = _encoding.get()
        collecting = collected is not None and collected.autoencoder is self
        training = _training.get() is self
        if not (collecting or training or torch.is_inference_mode_enabled()) or not _covered(self):
            return original(self, features, max_active_dims)
        k = self.k if max_active_dims is None else max_active_dims
        x = features["sentence_embedding"]
        prepared, mean, deviation = self.LN(x) if self.normalize else (x, 0, 1)
        if training:
            features.update(reconstruct(self, x, prepared, mean, deviation, k))
            del features["sentence_embedding"]  # dense; the loss reads the codes instead
            return features
        if collecting and collected is not None:
            features["sentence_embedding"] = collected.add(prepared, k)
        else:
            features["sentence_embedding"] = _codes(self, prepared, k).to_dense()
        return features

    return forward


# ---- training -------------------------------------------------------------------------


def _csr_loss(package: _Package, original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(
        self: Any, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        autoencoder = _last_autoencoder(package, self.model)
        if autoencoder is None:
            return original(self, sentence_features, labels)
        token = _training.set(autoencoder)
        try:
            outputs = [self.model(features) for features in sentence_features]
        finally:
            _training.reset(token)
        terms = self.reconstruction_loss.compute_loss_from_embeddings(outputs)
        base = base_loss(package, self.loss, [out["sentence_codes"] for out in outputs], labels)
        parts = base if isinstance(base, dict) else {"base_loss": base}
        return {**terms, **{name: part * self.gamma for name, part in parts.items()}}

    return forward
