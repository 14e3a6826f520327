"""SAELens' sparse autoencoders on our kernels, encoder to decoder: one line in, one line back.

`accelerate()` replaces the encoders and decoders of SAELens' TopK, BatchTopK, Matryoshka-BatchTopK
and JumpReLU autoencoders, in training and at inference, and its TopK activation wherever else that
stands. What they return is the package's own within float32: dense activations, pre-activations,
losses, metrics and gradients of every parameter. Of equal pre-activations the one of lower index is
kept, where `torch.topk` may keep either.

The encoder's product is the package's, since it returns all pre-activations. Behind it, the few
latents that are active, or within the bandwidth of a JumpReLU's threshold, are decoded, and carry
all gradients; so do the dead latents of the auxiliary loss. The gradient of the dense activations
themselves, should one ask for it, lacks the part that went to these.

The package's own code runs, with a warning, for subclasses, transcoders and modules with hooks
where we would pass them by; and without one under autocast, and where more than an eighth of the
latents (on a GPU, a hundredth) would be decoded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

import csrkern
from csrkern.codes.sparse import SparseCodes
from csrkern.integrations._known import as_size, changed, hooked, surrounded
from csrkern.integrations._patch import Acceleration, Attribute, Change, Patch
from csrkern.ops.encode import encoder_gradients
from csrkern.ops.validation import FLOATS

ops = torch.ops.csrkern

# A share of latents from which on dense products are as fast.
_SPARSE_BELOW = {"cpu": 8, "cuda": 100}


def accelerate() -> Acceleration:
    """Run SAELens' TopK, BatchTopK and JumpReLU autoencoders on csrkern from here on.

    Returns:
        What undoes it: call its `restore()`, or use it as a context manager.

    Raises:
        ImportError: if SAELens is missing, or has no such classes where version 6 has them.
    """
    return _patch.accelerate()


def restore() -> None:
    """Undoes every `accelerate`: the package runs its own functions again."""
    _patch.restore()


def _changes() -> list[Change]:
    try:
        import sae_lens.saes.batchtopk_sae as batchtopk_sae
        import sae_lens.saes.jumprelu_sae as jumprelu_sae
        import sae_lens.saes.matryoshka_batchtopk_sae as matryoshka_sae
        import sae_lens.saes.sae as sae
        import sae_lens.saes.topk_sae as topk_sae

        package = _Package(
            top_k=topk_sae.TopK,
            batch_top_k=batchtopk_sae.BatchTopK,
            jump_relu=jumprelu_sae.JumpReLU,
            step=jumprelu_sae.Step,
            known=(
                topk_sae.TopKTrainingSAE,
                batchtopk_sae.BatchTopKTrainingSAE,
                matryoshka_sae.MatryoshkaBatchTopKTrainingSAE,
                jumprelu_sae.JumpReLUTrainingSAE,
                topk_sae.TopKSAE,
                jumprelu_sae.JumpReLUSAE,
            ),
        )
        jump_training, jump = jumprelu_sae.JumpReLUTrainingSAE, jumprelu_sae.JumpReLUSAE
        places: list[tuple[Any, str, Callable[..., Any]]] = [
            (topk_sae.TopK, "forward", functools.partial(_activation, topk_sae.TopK)),
            (topk_sae.TopKTrainingSAE, "encode_with_hidden_pre", package.encode_with_hidden_pre),
            (topk_sae.TopKSAE, "encode", package.encode),
            (topk_sae, "act_times_W_dec", _act_times_W_dec),
            (topk_sae, "calculate_topk_aux_acts", _aux_acts),
            (matryoshka_sae.MatryoshkaBatchTopKTrainingSAE, "_iterable_decode", _iterable_decode),
            (jump_training, "encode_with_hidden_pre", package.encode_with_hidden_pre),
            (jump_training, "calculate_aux_loss", package.l0_loss),
            (sae.TrainingSAE, "decode", _decode_method),
            (jump, "encode", package.encode),
            (jump, "decode", _decode_method),
        ]
        for owner, name, _ in places:
            vars(owner)[name]
    except (ImportError, AttributeError, KeyError) as error:
        raise ImportError(
            f"accelerate needs SAELens 6, of a version like 6.54 ({error}); pip install sae-lens"
        ) from error
    return [Attribute(*place) for place in places]


# ---- a few latents of a row --------------------------------------------------------------


@dataclass(frozen=True)
class _Some:
    """Some latents of each row, with values that carry gradients.

    Attributes:
        values: [n, m]; 0 in empty slots, and in those of latents that are not active but get a
            gradient.
        indices: [n, m] int32.
        used: [n, m], 1 in slots that are not empty and else 0.
        dim: number of latents.
    """

    values: Tensor
    indices: Tensor
    used: Tensor
    dim: int

    def dense(self, shape: torch.Size) -> Tensor:
        zeros = self.values.new_zeros(len(self.values), self.dim)
        return zeros.scatter_add_(1, self.indices.long(), self.values).reshape(shape)

    def times(self, weight: Tensor) -> Tensor:
        """Return the sums [n, d] of rows of `weight` [h, d]."""
        return _Decoded.apply(self.values, weight, self.indices, self.used)

    def scaled(self, scale: Tensor) -> _Some:
        return _Some(self.values * scale[self.indices], self.indices, self.used, self.dim)

    def between(self, low: int, high: int) -> _Some:
        """Return the latents low..high-1 alone."""
        within = (self.indices >= low) & (self.indices < high)
        values, used = torch.where(within, self.values, 0), self.used * within
        return _Some(values, self.indices, used, self.dim)


@dataclass(frozen=True)
class _Layer:
    """The encoder's linear layer in one call, of which single latents are computed again.

    Attributes:
        rows: [n, d].
        weight, bias: [d, h] and [h].
        scale: [h] that the sums are multiplied by, or None.
        sums: [n, h], before the scale, without a gradient.
    """

    rows: Tensor
    weight: Tensor
    bias: Tensor
    scale: Tensor | None
    sums: Tensor

    def some(self, indices: Tensor, used: Tensor) -> _Some:
        """Return latents [n, m] of each row, with gradients; `used` as in `_Some`."""
        given = self.rows, self.weight, self.bias, self.sums, indices, used
        some = _Some(_Picked.apply(*given), indices, used, self.sums.shape[1])
        return some if self.scale is None else some.scaled(self.scale)


class _Picked(torch.autograd.Function):
    """Entries of rows · weight + bias, whose gradients touch these latents alone."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor,
        sums: Tensor,
        indices: Tensor,
        used: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(rows, weight, indices, used)
        return sums.gather(1, indices.long()) * used

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, indices, used = ctx.saved_tensors
        if torch.is_grad_enabled():  # gradients of gradients are asked for
            dense = _Some(grad * used, indices, used, weight.shape[1]).dense(
                torch.Size((len(rows), weight.shape[1]))
            )
            return dense @ weight.mT, rows.mT @ dense, dense.sum(0), None, None, None
        needs = (*ctx.needs_input_grad[:3], False)
        grads = encoder_gradients(rows, weight.mT, None, used, indices, grad, needs)
        grad_weight = None if grads[1] is None else grads[1].mT
        return grads[0], grad_weight, grads[2], None, None, None


class _Decoded(torch.autograd.Function):
    """Sums of rows of a weight, with gradients for unused values of 0 as well."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, indices: Tensor, used: Tensor) -> Tensor:
        ctx.save_for_backward(values, weight, indices, used)
        sums: Tensor = ops.gather_sum(values, indices, weight, None, [values.shape[1]])[0]
        return sums

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, weight, indices, used = ctx.saved_tensors
        h, m = len(weight), values.shape[1]
        if torch.is_grad_enabled():
            dense = _Some(values, indices, used, h).dense(torch.Size((len(values), h)))
            return (grad @ weight.mT).gather(1, indices.long()) * used, dense.mT @ grad, None, None
        grad_values = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_values = ops.gather_dot(used, indices, weight, grad[None], [m]).to(values.dtype)
        if ctx.needs_input_grad[1]:
            starts, rows, slots, _ = ops.transpose(values, indices, h)
            grad_weight = ops.scatter_sum(starts, rows, slots, h, [grad], [values], [0], [m])
        return grad_values, grad_weight, None, None


class _Known:
    """The latents that dense tensors were made of, for as long as they live and do not change."""

    def __init__(self) -> None:
        self._of = WeakTensorKeyDictionary()

    def keep(self, tensor: Tensor, made_of: Any) -> None:
        self._of[tensor] = made_of, tensor._version

    def get(self, tensor: Any) -> Any:
        if not _patch.in_force or type(tensor) is not Tensor or tensor not in self._of:
            return None
        made_of, version = self._of[tensor]
        return made_of if version == tensor._version else None


_some_of, _layer_of = _Known(), _Known()


# ---- encoders ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Package:
    """The parts of SAELens that are replaced or called, and the autoencoders that we know."""

    top_k: type[nn.Module]
    batch_top_k: type[nn.Module]
    jump_relu: Any
    step: Any
    known: tuple[type[nn.Module], ...]

    def encode_with_hidden_pre(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def encode_with_hidden_pre(sae: Any, x: Tensor) -> Any:
            reason = functools.partial(self._unknown, sae, "encode_with_hidden_pre")
            if _patch.serves(sae, reason) and _takes_layer(sae, x):
                return self._encode(sae, x)
            return original(sae, x)

        return encode_with_hidden_pre

    def encode(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def encode(sae: Any, x: Tensor) -> Any:
            reason = functools.partial(self._unknown, sae, "encode")
            if _patch.serves(sae, reason) and _takes_layer(sae, x):
                return self._encode(sae, x)[0]
            return original(sae, x)

        return encode

    def _unknown(self, sae: Any, method: str) -> str | None:
        """Return why an autoencoder must keep its own encoder, or None."""
        if type(sae) not in self.known:
            return f"{type(sae).__name__} is another class than those of autoencoders"
        reason = (
            surrounded()
            or changed(sae, type(sae), (method, "decode"))
            or hooked([sae.hook_sae_acts_pre, sae.hook_sae_acts_post])
        )
        activation = sae.activation_fn
        if reason or hasattr(sae, "threshold"):  # a JumpReLU is no module
            return reason
        known = self.batch_top_k if isinstance(activation, self.batch_top_k) else self.top_k
        return changed(activation, known, ("forward",)) or hooked([activation])

    def _encode(self, sae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = sae.process_sae_in(x)
        hidden_pre = rows @ sae.W_enc + sae.b_enc
        sums, shape = hidden_pre.detach(), hidden_pre.shape
        scale = None
        if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
            scale = sae.W_dec.norm(dim=-1)
            hidden_pre = hidden_pre * scale
        flat = rows.reshape(-1, rows.shape[-1]), sae.W_enc, sae.b_enc, scale
        layer = _Layer(*flat, sums.reshape(-1, shape[-1]))
        pre = hidden_pre.detach().reshape(-1, shape[-1])
        most = pre.shape[1] // _SPARSE_BELOW[pre.device.type]
        some = self._select(sae, layer, pre, most)
        if some is None:
            return self._dense(sae, hidden_pre), hidden_pre
        if getattr(sae.activation_fn, "use_sparse_activations", False):
            acts = _sparse(some, shape)
        else:
            acts = some.dense(shape)
        _some_of.keep(acts, some)
        _layer_of.keep(hidden_pre, (layer, some))
        return acts, hidden_pre

    def _select(self, sae: Any, layer: _Layer, pre: Tensor, most: int) -> _Some | None:
        """Return the active latents of pre-activations [n, h], if no row has more than `most`."""
        if len(pre) == 0:
            return None
        if hasattr(sae, "threshold"):
            return self._jump(sae, layer, pre, most)
        k: Any = sae.activation_fn.k
        if type(sae.activation_fn) is self.batch_top_k:
            codes = _batch_top_k(pre, int(k * len(pre)), most)
        else:
            k = as_size(k)
            codes = csrkern.topk_relu(pre, k) if 1 <= k <= most else None
        return None if codes is None else layer.some(codes.indices, codes.active.to(pre.dtype))

    def _jump(self, sae: Any, layer: _Layer, pre: Tensor, most: int) -> _Some | None:
        """Return the latents above their thresholds, or near enough to give these a gradient."""
        training = hasattr(sae, "bandwidth")
        threshold = sae.threshold.to(pre.dtype)
        # Wider than the bandwidth by more than rounding: what is beyond it gets no gradient.
        reach = 0.51 * sae.bandwidth if training else 0.0
        above = pre - (threshold.detach() - reach)
        if not training:  # ReLU comes first
            above = torch.where(pre > 0, above, 0)
        m = int((above > 0).sum(1).max())
        if m > most:
            return None
        codes = csrkern.topk_relu(above, max(1, m))
        some = layer.some(codes.indices, codes.active.to(pre.dtype))
        own = torch.where(codes.active, threshold[codes.indices], torch.inf).flatten()
        if not training:
            values = some.values * (some.values > own.view_as(some.values))
        else:
            ste = sae.cfg.jumprelu_ste_to_input
            values = self.jump_relu.apply(some.values.reshape(1, -1), own, sae.bandwidth, ste)
        return _Some(values.view_as(some.values), some.indices, some.used, some.dim)

    def _dense(self, sae: Any, hidden_pre: Tensor) -> Tensor:
        """Return the package's own activation."""
        if hasattr(sae, "bandwidth"):
            threshold = sae.threshold.to(hidden_pre.dtype)
            ste = sae.cfg.jumprelu_ste_to_input
            acts: Tensor = self.jump_relu.apply(hidden_pre, threshold, sae.bandwidth, ste)
            return acts
        acts = sae.activation_fn(hidden_pre)
        if hasattr(sae, "threshold"):
            acts = acts * (hidden_pre > sae.threshold).to(acts.dtype)
        return acts

    def l0_loss(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def calculate_aux_loss(
            sae: Any, step_input: Any, feature_acts: Tensor, hidden_pre: Tensor, sae_out: Tensor
        ) -> Any:
            known = _layer_of.get(hidden_pre)
            if (
                known is None
                or sae.cfg.jumprelu_sparsity_loss_mode != "step"
                or sae.cfg.pre_act_loss_coefficient is not None
            ):
                return original(sae, step_input, feature_acts, hidden_pre, sae_out)
            layer, some = known
            pre = layer.some(some.indices, some.used).values
            own = sae.threshold.to(pre.dtype)[some.indices]
            own = torch.where(some.used != 0, own, torch.inf).flatten()
            ste = sae.cfg.jumprelu_ste_to_input
            steps = self.step.apply(pre.reshape(1, -1), own, sae.bandwidth, ste)
            l0 = steps.view_as(pre).sum(-1).reshape(hidden_pre.shape[:-1])
            return {"l0_loss": (step_input.coefficients["l0"] * l0).mean()}

        return calculate_aux_loss


def _takes_layer(sae: Any, x: Any) -> bool:
    parameters = sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec
    return (
        type(x) is Tensor
        and x.layout == torch.strided
        and x.device.type in _SPARSE_BELOW
        and x.is_floating_point()
        and x.numel() > 0
        and all(type(p) is nn.Parameter and p.dtype == sae.W_enc.dtype for p in parameters)
        and sae.W_enc.dtype in FLOATS
        and sae.W_enc.device == x.device
        and not torch.is_autocast_enabled(x.device.type)
    )


def _batch_top_k(pre: Tensor, total: int, most: int) -> SparseCodes | None:
    """Return the `total` largest positive of all pre-activations [n, h], by row.

    Of equal ones, those of lower rows and then of lower latents; None if a row would have to hold
    more than `most`.
    """
    if total < 1:
        return None
    k = min(most, max(1, 4 * -(-total // len(pre))))
    while True:
        codes = csrkern.topk_relu(pre, k)
        values = codes.values
        least = values.flatten().topk(min(total, values.numel())).values[-1]
        last = values[:, -1]
        # Whatever a row leaves out is at most its last value.
        if k == pre.shape[1] or bool(((last < least) | (last == 0)).all()):
            break
        if k == most:
            return None
        k = min(most, 2 * k)
    kept = values > least
    if float(least) > 0:
        ties = values == least
        room = total - int(kept.sum())
        kept |= ties & (ties.flatten().cumsum(0).view_as(ties) <= room)
    kept = kept & codes.active
    width = max(1, int(kept.sum(1).max()))
    values, indices = torch.where(kept, values, 0), torch.where(kept, codes.indices, 0)
    return SparseCodes(values[:, :width], indices[:, :width], codes.dim)


def _sparse(some: _Some, shape: torch.Size) -> Tensor:
    """Return active latents as the COO tensor that the package makes of them."""
    rows, places = (some.values.detach() != 0).nonzero(as_tuple=True)
    coordinates = [*torch.unravel_index(rows, shape[:-1]), some.indices[rows, places].long()]
    values = some.values[rows, places]
    return torch.sparse_coo_tensor(
        torch.stack(coordinates), values, shape, check_invariants=False
    ).coalesce()


# ---- decoders ----------------------------------------------------------------------------


def _decoded(some: _Some, acts: Tensor, weight: Tensor) -> Tensor:
    return some.times(weight).reshape(*acts.shape[:-1], weight.shape[1])


def _decodes(acts: Any, weight: Any) -> bool:
    return (
        type(weight) in (Tensor, nn.Parameter)
        and weight.dtype == acts.dtype
        and weight.device == acts.device
        and not torch.is_autocast_enabled(weight.device.type)
        and surrounded() is None
    )


def _act_times_W_dec(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def act_times_W_dec(
        feature_acts: Tensor, W_dec: Tensor, rescale_acts_by_decoder_norm: bool
    ) -> Tensor:
        some = _some_of.get(feature_acts)
        if some is None or not _decodes(feature_acts, W_dec):
            return original(feature_acts, W_dec, rescale_acts_by_decoder_norm)
        if rescale_acts_by_decoder_norm:
            some = some.scaled(1 / W_dec.norm(dim=-1))
        return _decoded(some, feature_acts, W_dec)

    return act_times_W_dec


def _decode_method(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def decode(self: Any, feature_acts: Tensor) -> Tensor:
        some = _some_of.get(feature_acts)
        if some is None or not _decodes(feature_acts, self.W_dec):
            return original(self, feature_acts)
        out = self.hook_sae_recons(_decoded(some, feature_acts, self.W_dec) + self.b_dec)
        restored: Tensor = self.reshape_fn_out(
            self.run_time_activation_norm_fn_out(out), self.d_head
        )
        return restored

    return decode


def _iterable_decode(original: Callable[..., Any]) -> Callable[..., Any]:
    def _iterable_decode(
        self: Any, feature_acts: Tensor, include_outer_loss: bool = False
    ) -> Iterator[tuple[int, Tensor]]:
        some = _some_of.get(feature_acts)
        if some is None or feature_acts.dim() != 2 or not _decodes(feature_acts, self.W_dec):
            yield from original(self, feature_acts, include_outer_loss)
            return
        if self.cfg.rescale_acts_by_decoder_norm:
            some = some.scaled(1 / self.W_dec.norm(dim=-1))
        widths = self.cfg.matryoshka_widths
        decoded, low = self.b_dec, 0
        for width in widths if include_outer_loss else widths[:-1]:
            decoded = some.between(low, width).times(self.W_dec) + decoded
            low = width
            yield width, self.run_time_activation_norm_fn_out(decoded)

    return _iterable_decode


def _aux_acts(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def calculate_topk_aux_acts(k_aux: int, hidden_pre: Tensor, dead_neuron_mask: Tensor) -> Tensor:
        known = _layer_of.get(hidden_pre)
        if (
            known is None
            or hidden_pre.dim() != 2
            or k_aux * _SPARSE_BELOW[hidden_pre.device.type] > hidden_pre.shape[1]
        ):
            return original(k_aux, hidden_pre, dead_neuron_mask)
        latents = dead_neuron_mask.nonzero().squeeze(1)
        places = hidden_pre.detach()[:, latents].topk(k_aux, sorted=False).indices
        indices = latents[places].int()
        some = known[0].some(indices, torch.ones_like(indices, dtype=hidden_pre.dtype))
        acts = some.dense(hidden_pre.shape)
        _some_of.keep(acts, some)
        return acts

    return calculate_topk_aux_acts


# ---- the activation alone ----------------------------------------------------------------


def _activation(known: type, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(self: Any, x: Tensor) -> Tensor:
        def reason() -> str | None:
            return surrounded() or changed(self, known, ("forward",)) or hooked([self])

        if not _patch.serves(self, reason) or not _takes(x, k := as_size(self.k)):
            return original(self, x)
        rows = x.reshape(-1, x.shape[-1])
        codes = csrkern.topk_relu(rows.detach(), k)
        # Gathered by operations of PyTorch, whose gradients can be differentiated again.
        values = torch.where(codes.active, rows.gather(1, codes.indices.long()), 0)
        some = _Some(values, codes.indices, codes.active.to(values.dtype), codes.dim)
        return _sparse(some, x.shape) if self.use_sparse_activations else some.dense(x.shape)

    return forward


def _takes(x: Any, k: int) -> bool:
    return (
        type(x) is Tensor
        and x.layout == torch.strided
        and x.device.type in ("cpu", "cuda")
        and x.dtype in FLOATS
        and x.dim() > 0
        and x.numel() > 0
        and 1 <= k <= x.shape[-1]
    )


_patch = Patch(_changes)
