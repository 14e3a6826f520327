"""sentence-transformers' sparse encoders on our kernels: one line in, one line back.

`accelerate()` replaces four functions of the package: the forward pass of its
`SparseAutoEncoder`, `SparseEncoder.encode`, `CSRLoss.forward` and `semantic_search`. Each does
the same as before, and hands whatever it has no faster way for to the function it stands for.
The package's tokenizing, batching, sorting and loss terms are still its own.

- `encode`: codes in float32 are those of exact sums, rounded once; the package's differ by the
  rounding of its matrix product, so values agree within it and latents but for near ties.
- `CSRLoss` (6.2 and later): the same terms, gradients and use statistics, within float32. Where
  4k or k_aux exceed the number of latents, which is an error in the package, all latents count.
  Until 6.1 the package's module overwrites its pre-activations before L(4k), so that this loss is
  another one there; training then stays as it was.
- `semantic_search`: the same ids and scores, but for the order of equal scores.

The package's own functions run, and a warning says why, where a model is more than the package
made: subclasses and replaced methods, hooks on the adapter, on what follows it or on the model,
parametrized or compiled modules, and modes of torch that look at every operation. Without a
warning they run outside training under autocast, and for inputs that ours do not take.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import csrkern
from csrkern.codes.sparse import SparseCodes
from csrkern.integrations._known import as_size, changed, hooked, surrounded, written_in
from csrkern.integrations._patch import Acceleration, Attribute, Change, Patch
from csrkern.integrations.sentence_transformers.loss import base_loss, reconstruct
from csrkern.integrations.sentence_transformers.semantic_search import Search
from csrkern.ops.validation import FLOATS

BLOCK_ROWS = 1024  # embeddings that `encode` takes from the backbone before it encodes them

_PLAIN = object()
# The call under way: of `encode` what it collects, of `CSRLoss` its adapter; _PLAIN: one that is
# the package's altogether.
_call: ContextVar[Any] = ContextVar("call", default=None)


def accelerate(model: nn.Module | None = None) -> Acceleration:
    """Run sentence-transformers' `SparseAutoEncoder` models on csrkern from here on.

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
    return _patch.accelerate(modules)


def restore() -> None:
    """Undoes every `accelerate`: the package runs its own functions again."""
    _patch.restore()


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
        modules = "modules" if version >= (6, 2) else "models"
        module = importlib.import_module(f"sentence_transformers.sparse_encoder.{modules}")
        self.autoencoder: type[nn.Module] = module.SparseAutoEncoder
        self.decoder: type[nn.Module] = sys.modules[self.autoencoder.__module__].TiedTranspose
        self.encoder: type[nn.Module] = SparseEncoder
        self.loss: type[nn.Module] = losses.CSRLoss
        terms = sys.modules[self.loss.__module__].CSRReconstructionLoss
        self.reconstruction_loss: type[nn.Module] = terms
        self.ranking_loss: type[nn.Module] = losses.SparseMultipleNegativesRankingLoss
        self.util = util
        self.trains_4k = version >= (6, 2)


def _changes() -> list[Change]:
    package = _Package()
    made: list[tuple[Any, str, Callable[..., Any]]] = [
        (package.autoencoder, "forward", functools.partial(_forward, package)),
        (package.encoder, "encode", functools.partial(_encode, package)),
    ]
    if package.trains_4k:
        made.append((package.loss, "forward", functools.partial(_csr_loss, package)))
    return [*(Attribute(*change) for change in made), Search(package.util)]


_patch = Patch(_changes)


# ---- what we know ---------------------------------------------------------------------


def _unknown_autoencoder(package: _Package, module: Any) -> str | None:
    """Return the reason why a `SparseAutoEncoder` must keep its own functions, or None."""
    reason = surrounded() or changed(
        module,
        package.autoencoder,
        ("forward", "encode_pre_act", "LN", "prepare", "preprocess", "top_k", "decode"),
    )
    if reason:
        return reason
    decoder, encoder = module.decoder, module.encoder
    reason = (
        hooked(module.modules())
        or changed(decoder, package.decoder, ("forward",))
        or changed(encoder, nn.Linear, ())
    )
    if reason:
        return reason
    if decoder.linear is not encoder or encoder.bias is not None:
        return "its decoder is not its encoder transposed"
    weights = (encoder.weight, module.latent_bias, module.pre_bias)
    if any(type(weight) is not nn.Parameter for weight in weights):
        return "its weights are no plain parameters"
    return None


def _unknown_encoder(package: _Package, model: Any, autoencoder: nn.Module) -> str | None:
    """Return the same for a `SparseEncoder` that holds the adapter among its modules."""
    places = [m for parent in model.modules() for m in parent._modules.values() if m is autoencoder]
    if len(places) > 1:
        return "its adapter runs more than once"
    modules = list(model.children())
    after = modules[modules.index(autoencoder) + 1 :]
    return (
        changed(model, package.encoder, ("forward", "encode", "_inference"))
        or hooked([model, *(m for module in after for m in module.modules())])
        or _unknown_autoencoder(package, autoencoder)
    )


def _autoencoder_of(package: _Package, model: Any) -> nn.Module | None:
    """Return the covered `SparseAutoEncoder` among the modules of a model, the last one."""
    adapters = [m for m in model.children() if isinstance(m, package.autoencoder)]
    return adapters[-1] if adapters and _patch.covers(adapters[-1]) else None


def _takes(module: Any, x: Any, k: int) -> bool:
    """Whether our kernels take embeddings x, and give the dtype that the package would."""
    if k < 1 or type(x) is not Tensor or x.layout != torch.strided:
        return False
    weight = module.encoder.weight
    return (
        k <= len(weight)
        and x.shape[1:] == weight.shape[1:]
        and x.device == weight.device
        and x.device.type in ("cpu", "cuda")
        and x.dtype in FLOATS
        and torch.promote_types(x.dtype, module.pre_bias.dtype) == weight.dtype
        and module.latent_bias.dtype == weight.dtype
    )


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
        """Take the rows and return their numbers, int64 [n, 1]."""
        self.waiting.append((prepared, k))
        numbers = self._numbers(prepared)
        if self.rows - sum(len(part) for part in self.parts) >= BLOCK_ROWS:
            self._encode_waiting()
        return numbers

    def add_dense(self, codes: Tensor, k: int) -> Tensor:
        """Take codes that the package made, [n, h], and return their numbers."""
        self._encode_waiting()
        self.parts.append(csrkern.topk_relu(codes, max(1, min(k, codes.shape[1]))))
        return self._numbers(codes)

    def _numbers(self, rows: Tensor) -> Tensor:
        begin, self.rows = self.rows, self.rows + len(rows)
        return torch.arange(begin, self.rows, device=rows.device).unsqueeze(1)

    def codes(self) -> SparseCodes:
        """Return the codes of all rows, in the order of their numbers."""
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
        autoencoder = _autoencoder_of(package, self)
        call = signature.bind_partial(self, *args, **kwargs)
        given = dict(call.arguments)
        in_processes = (
            given.get("pool") is not None
            or isinstance(given.get("device"), list)
            or getattr(self, "_distributed_inference", None) is not None
        )
        if autoencoder is None or in_processes:
            return original(self, *args, **kwargs)
        if reason := _unknown_encoder(package, self, autoencoder):
            _patch.tell(autoencoder, reason)
            return _under(_PLAIN, original, self, *args, **kwargs)
        if autoencoder is not list(self.children())[-1]:
            return original(self, *args, **kwargs)  # what follows reads codes as they come
        collected = _Collected(autoencoder)
        call.arguments |= {
            "convert_to_tensor": True,
            "convert_to_sparse_tensor": False,
            "save_to_cpu": True,
        }
        with _patch:
            rows = _under(collected, original, *call.args, **call.kwargs)
        if not collected.rows:
            return original(self, *args, **kwargs)
        codes = collected.codes()
        codes = codes[rows.reshape(-1).to(codes.device)]
        if given.get("save_to_cpu", False):
            codes = codes.to("cpu")
        sparse = given.get("convert_to_sparse_tensor", True)
        if rows.dim() == 1:  # one text
            return (codes.to_torch_coo() if sparse else codes.to_dense())[0]
        if given.get("convert_to_tensor", True):
            return codes.to_torch_coo() if sparse else codes.to_dense()
        return _sparse_rows(codes) if sparse else list(codes.to_dense())

    return encode


def _under(call: Any, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return the result of a function while `call` is under way."""
    token = _call.set(call)
    try:
        return function(*args, **kwargs)
    finally:
        _call.reset(token)


def _sparse_rows(codes: SparseCodes) -> list[Tensor]:
    """One COO tensor [dim] a row: taking row after row out of a COO matrix reads it n times."""
    matrix = codes.to_torch_coo()
    counts = codes.active.sum(1).tolist()
    latents, values = matrix.indices()[1:].split(counts, dim=1), matrix.values().split(counts)
    return [
        torch.sparse_coo_tensor(i, v, (codes.dim,), is_coalesced=True, check_invariants=False)
        for i, v in zip(latents, values, strict=True)
    ]


def _forward(package: _Package, original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(
        self: Any, features: dict[str, Any], max_active_dims: int | None = None
    ) -> dict[str, Any]:
        if torch.compiler.is_compiling():
            return original(self, features, max_active_dims)
        call = _call.get()
        collected = call if isinstance(call, _Collected) and call.autoencoder is self else None
        training = call is self
        inference = torch.is_inference_mode_enabled() and _patch.covers(self)
        if call is _PLAIN or not (collected or training or inference):
            return original(self, features, max_active_dims)
        if reason := _unknown_autoencoder(package, self):
            _patch.tell(self, reason)
            k = 0
        else:
            k = as_size(self.k if max_active_dims is None else max_active_dims)
        x = features["sentence_embedding"]
        taken = _takes(self, x, k)
        if not taken or (torch.is_autocast_enabled(x.device.type) and not training):
            features = _under(_PLAIN, original, self, features, max_active_dims)
            if collected:
                codes = features["sentence_embedding"]
                most = self.k if max_active_dims is None else max_active_dims
                features["sentence_embedding"] = collected.add_dense(codes, int(most))
            return features
        prepared, mean, deviation = self.LN(x) if self.normalize else (x, 0, 1)
        prepared = prepared.to(self.encoder.weight.dtype)
        if training:
            features.update(reconstruct(self, x, prepared, mean, deviation, k))
            del features["sentence_embedding"]  # dense; the loss reads the codes instead
        elif collected:
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
        model = self.model.module if type(self.model) is DistributedDataParallel else self.model
        autoencoder = _autoencoder_of(package, model)
        if autoencoder is None or autoencoder is not list(model.children())[-1]:
            return original(self, sentence_features, labels)
        reason = (
            changed(self, package.loss, ("forward",))
            or changed(
                self.reconstruction_loss,
                package.reconstruction_loss,
                ("compute_loss_from_embeddings",),
            )
            or hooked([self.model])
            or _unknown_encoder(package, model, autoencoder)
            or _unknown_mask(package, autoencoder)
        )
        if reason:
            _patch.tell(autoencoder, reason)
            return _under(_PLAIN, original, self, sentence_features, labels)
        with _patch:
            outputs = [_under(autoencoder, self.model, features) for features in sentence_features]
        terms = self.reconstruction_loss.compute_loss_from_embeddings(outputs)
        # An input that our kernels do not take has the package's codes.
        codes = [out.get("sentence_codes", out.get("sentence_embedding")) for out in outputs]
        base = base_loss(package, self.loss, codes, labels)
        parts = base if isinstance(base, dict) else {"base_loss": base}
        return {**terms, **{name: part * self.gamma for name, part in parts.items()}}

    return forward


def _unknown_mask(package: _Package, module: Any) -> str | None:
    """Whether the function that bars latents in use reads what ours reads, or why it does not."""
    mask = module.auxk_mask_fn
    if not written_in(package.autoencoder, mask):
        return "its auxk_mask_fn was replaced"
    reads = inspect.getclosurevars(mask).nonlocals
    if (reads.get("self"), reads.get("dead_threshold")) != (module, module.dead_threshold):
        return "its auxk_mask_fn reads another module or threshold, as that of a copy does"
    return None
