"""Modules: TopKReLU and the sparse autoencoder of CSR."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from csrkern import hub
from csrkern._fingerprint import fingerprint_of, fingerprint_of_codes, forget
from csrkern.arguments import check_at_least, check_bool, check_int
from csrkern.codes.sparse import SparseCodes, check_codes
from csrkern.embeddings.dataset import Embeddings, open_embeddings
from csrkern.identity import check_fingerprint
from csrkern.index.rerank import Rerank
from csrkern.kernels.encode import kept
from csrkern.nn import dense, storage
from csrkern.ops.autoencode import autoencode
from csrkern.ops.decode import decode
from csrkern.ops.encode import encode
from csrkern.ops.topk_relu import topk_relu
from csrkern.ops.validation import check_ks, check_tensor
from csrkern.typing import ArraySource


class TopKReLU(nn.Module):
    """ReLU(TopK(x)) as an activation: keeps the k largest positive entries of each row.

    `forward` returns SparseCodes; with dense=True it returns a tensor of the input's shape,
    to stand in for the activation of an existing model.

    Args:
        k: entries kept per row.
        dense: return a dense tensor [..., h] instead of SparseCodes (input [n, h]).

    Raises:
        TypeError, ValueError: if k is not a positive integer.
    """

    def __init__(self, k: int, *, dense: bool = False) -> None:
        super().__init__()
        self.k = check_at_least("k", k, 1)
        self.dense = check_bool("dense", dense)

    def forward(self, pre: Tensor) -> SparseCodes | Tensor:
        """Pre-activations [n, h] (or [..., h] if dense) to codes."""
        if not self.dense:
            return topk_relu(pre, self.k)
        check_tensor("pre", pre, (..., None))
        flat = pre.reshape(-1, pre.shape[-1])
        return topk_relu(flat, self.k).to_dense().reshape(pre.shape)

    def extra_repr(self) -> str:
        """Return the text that `print(module)` shows."""
        return f"k={self.k}, dense={self.dense}"


class _Decoder(nn.Module):
    """Holds the dictionary at the published name `decoder.linear.weight`, [h, d]."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear


class SparseAutoencoder(nn.Module):
    """A TopK sparse autoencoder, the model of CSR.

    z_k = ReLU(TopK(W (x − pre_bias) + latent_bias)), x̂ = z_k W_dec + pre_bias; W_dec is W
    itself when tied.

    Args:
        input_dim: width d of the embeddings.
        hidden_dim: number of latents h.
        k: active latents per row.
        k_aux: dead latents that the auxiliary loss may use per row; 0: no auxiliary loss.
        standardize: standardize each row to mean 0 and deviation 1 before encoding, and undo
            it after decoding.
        dead_threshold: a latent is dead after this many optimizer steps without use.
        tied: decode with the encoder's weight.
        partner: the fingerprint, without a partner, of another model over the same latents; see
            `share_latents_with`.
        device, dtype: of the tensors, as for `nn.Linear`.

    Attributes:
        dead_capacity: how many of the latents longest unused `reconstruct_dead` looks at, in
            shapes that do not depend on how many are dead; 0: at none; None: at the dead,
            however many.

    Tensors: pre_bias [d], latent_bias [h], encoder.weight [h, d], decoder.linear.weight
    [h, d], stats_last_nonzero [h] int64 (steps since a latent was last used): the names of
    sentence-transformers' SparseAutoEncoder. The two weights of a tied model are one Parameter:
    `state_dict` holds it once, as encoder.weight, and `load_state_dict` takes either name or both.

    Raises:
        TypeError, ValueError: if a size is no positive integer (k_aux and dead_threshold may be
            0), k exceeds hidden_dim, or `standardize` is set for an input_dim of 1.

    Source: Wen et al., ICML 2025 (arXiv 2503.01776); Gao et al. 2024 (arXiv 2406.04093).
    """

    stats_last_nonzero: Tensor

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        k: int,
        k_aux: int = 512,
        standardize: bool = False,
        dead_threshold: int = 30,
        tied: bool = True,
        *,
        partner: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.input_dim = check_at_least("input_dim", input_dim, 1)
        self.hidden_dim = check_int("hidden_dim", hidden_dim, 1, 2**31 - 1)
        self.k = check_at_least("k", k, 1)
        if self.k > self.hidden_dim:
            raise ValueError(f"k: expected at most hidden_dim = {hidden_dim}, got {k}")
        self.k_aux = check_at_least("k_aux", k_aux, 0)
        self.standardize = check_bool("standardize", standardize)
        if self.standardize and self.input_dim == 1:
            raise ValueError(
                "standardize: expected False with input_dim = 1, since one number has no deviation"
            )
        self.dead_threshold = check_at_least("dead_threshold", dead_threshold, 0)
        self.tied = check_bool("tied", tied)
        self.partner = check_fingerprint("partner", partner)
        self.dead_capacity: int | None = None
        d, h = self.input_dim, self.hidden_dim
        kind: Any = {"device": device, "dtype": dtype}
        self.pre_bias = nn.Parameter(torch.zeros(d, **kind))
        self.latent_bias = nn.Parameter(torch.zeros(h, **kind))
        self.encoder = nn.Linear(d, h, bias=False, **kind)
        dictionary = nn.Linear(d, h, bias=False, device="meta")  # its weight is set below
        self.decoder = _Decoder(dictionary)
        if self.tied:
            self._tie()
            self.register_state_dict_post_hook(_drop_decoder)
            self.register_load_state_dict_pre_hook(_fill_both)
            self.register_load_state_dict_post_hook(_tie_again)
        else:
            dictionary.weight = nn.Parameter(self.encoder.weight.detach().clone())
        unused = torch.zeros(h, dtype=torch.long, device=device)
        self.register_buffer("stats_last_nonzero", unused)

    def _tie(self) -> None:
        """Make the decoder's weight the encoder's Parameter."""
        if isinstance(self.encoder.weight, nn.Parameter):  # not one that is parametrized
            self.decoder.linear.weight = self.encoder.weight

    def _apply(self, fn: Any, recurse: bool = True) -> SparseAutoencoder:
        # A move between devices that share no kind of storage, as from "meta", makes new
        # Parameters, one for each module.
        super()._apply(fn, recurse)
        forget(self)
        if self.tied:
            self._tie()
        return self

    @property
    def dictionary(self) -> Tensor:
        """The decoder's weight [h, d]."""
        return self.encoder.weight if self.tied else self.decoder.linear.weight

    def standardized(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(x [n, d] as the encoder sees it, mean [n, 1], deviation [n, 1])."""
        check_tensor("x", x, (None, self.input_dim))
        if not self.standardize:
            return x, x.new_zeros(x.shape[0], 1), x.new_ones(x.shape[0], 1)
        mean = x.mean(1, keepdim=True)
        deviation = (x - mean).std(1, keepdim=True) + 1e-5
        return (x - mean) / deviation, mean, deviation

    def encode(
        self,
        x: ArraySource | Embeddings,
        k: int | None = None,
        *,
        on_rows: Callable[[int], object] | None = None,
    ) -> SparseCodes:
        """Return the codes of embeddings [n, d] at k (default: self.k) active latents.

        A tensor is encoded as one batch, on its device, and gradients flow back to it. All else,
        as `csrtrain.load_embeddings` takes it, is converted to the model's dtype and encoded in
        batches without gradients; the codes are on the CPU. Give a tensor as `x.numpy()` for that.

        Args:
            x: a tensor, an array, lists, a data frame, or a file: .npy (mapped), .npz,
                .safetensors, .parquet or .pt, as "file:name" where it holds several arrays.
            k: active latents per row.
            on_rows: called after each batch with its number of rows.

        Raises:
            FileNotFoundError: if there is no such file.
            TypeError, ValueError: if x is not floating-point [n, d], if an array or a file holds
                NaN or infinity, or if a tensor has another dtype or device than the model.
        """
        if isinstance(x, Tensor):
            codes = self.encode_standardized(self.standardized(x)[0], k)
            if on_rows is not None:
                on_rows(len(codes))
            return codes
        parts = []
        with torch.no_grad():
            for piece in open_embeddings("x", x, width=self.input_dim).pieces(self.pre_bias.dtype):
                rows = piece.to(self.pre_bias.device)
                parts.append(self.encode(rows, k, on_rows=on_rows).to("cpu"))
        codes = SparseCodes.cat(parts)
        codes.fingerprint = self.fingerprint  # also in training mode
        return codes

    def encode_standardized(self, x: Tensor, k: int | None = None) -> SparseCodes:
        """`encode` for rows that `standardize` has been over already."""
        weight, bias, pre_bias = self.encoder.weight, self.latent_bias, self.pre_bias
        if not torch.compiler.is_compiling():
            trains = self.training or (torch.is_grad_enabled() and weight.requires_grad)
            (kept.forget if trains else kept.keep)(weight)
        codes = encode(x, weight, bias, k=self.k if k is None else k, pre_bias=pre_bias)
        codes.fingerprint = fingerprint_of_codes(self, (weight, bias, pre_bias))
        return codes

    @property
    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that tell models of different codes apart.

        They are the BLAKE2b hash of input_dim, hidden_dim, standardize and of encoder.weight,
        latent_bias and pre_bias as float32: not of k, the decoder, the device or a file's name.
        Models that `share_latents_with` each other have one together.
        Codes, their files and indexes keep it, so that those of another model are refused
        (csrkern.ModelMismatchError). Codes that `encode` makes of a tensor in training mode or
        while a function is traced have none.

        Computed anew only when these weights have changed.

        Raises:
            ValueError: if the weights are not whole and in memory (meta device, FSDP).
        """
        return fingerprint_of(self)

    def share_latents_with(self, other: SparseAutoencoder) -> None:
        """Give both models one fingerprint, as codes of either mean the same latents.

        So the codes of one can be searched in an index of the other's. Models of
        `csrtrain.train_two` are such. When one of them changes, it has another fingerprint.

        Raises:
            ValueError: if the models have other numbers of latents.
        """
        if other.hidden_dim != self.hidden_dim:
            raise ValueError(
                f"other: expected a model of {self.hidden_dim} latents, got {other.hidden_dim}"
            )
        self.partner = fingerprint_of(other, alone=True)
        other.partner = fingerprint_of(self, alone=True)

    def autoencode(
        self, x: Tensor, ks: Sequence[int], precision: str = "exact"
    ) -> tuple[SparseCodes, Tensor]:
        """Return the codes of x [n, d] at ks[-1], and its reconstructions [len(ks), n, d]."""
        rows, mean, deviation = self.standardized(x)
        codes, out = self.autoencode_standardized(rows, ks, precision)
        return codes, out * deviation + mean if self.standardize else out

    def autoencode_standardized(
        self, x: Tensor, ks: Sequence[int], precision: str = "exact"
    ) -> tuple[SparseCodes, Tensor]:
        """`autoencode` for rows that `standardize` has been over already, as is what it returns."""
        codes, out = self._autoencode(x, slice(None), ks, precision)
        encoder = self.encoder.weight, self.latent_bias, self.pre_bias
        codes.fingerprint = fingerprint_of_codes(self, encoder)
        return codes, out

    def _autoencode(
        self,
        x: Tensor,
        latents: slice | Tensor,
        ks: Sequence[int],
        precision: str,
        bias: Tensor | None = None,
    ) -> tuple[SparseCodes, Tensor]:
        """`autoencode` by some of the latents, whose biases default to their own."""
        weight = self.encoder.weight[latents]
        encoder = (x, weight, self.latent_bias[latents] if bias is None else bias)
        if self.tied:
            return autoencode(*encoder, ks=ks, pre_bias=self.pre_bias, precision=precision)
        ks = check_ks(ks, weight.shape[0], "h")
        codes = encode(*encoder, k=ks[-1], pre_bias=self.pre_bias, precision=precision)
        return codes, decode(codes, self.dictionary[latents], self.pre_bias, ks=ks)

    def reconstruct_dead(self, x: Tensor, k_aux: int | None = None) -> Tensor | None:
        """Return what each row's k_aux strongest dead latents add to its reconstruction, [n, d];
        None if none is dead or k_aux is 0.

        The host must wait to learn how many are dead. With `dead_capacity` set, under
        torch.compile and torch.func, and for tensors without data, it need not: shapes follow
        from the sizes of the model alone, and zeros are returned while none is dead.

        Args:
            x: embeddings [n, d].
            k_aux: default self.k_aux; at most as many as are dead.
        """
        rows, _, deviation = self.standardized(x)
        out = self.reconstruct_dead_standardized(rows, k_aux)
        return out * deviation if self.standardize and out is not None else out

    def reconstruct_dead_standardized(self, x: Tensor, k_aux: int | None = None) -> Tensor | None:
        """`reconstruct_dead` for rows that `standardize` has been over already."""
        k = self.k_aux if k_aux is None else k_aux
        capacity = self.dead_capacity
        if capacity == 0 or k == 0:
            return None
        dead = self.dead
        if (
            capacity is not None
            or torch.compiler.is_compiling()
            or torch._C._functorch.peek_interpreter_stack() is not None
            or dead.is_meta
            or isinstance(dead, FakeTensor)
        ):
            # Latents by how long they were unused: the dead come first, and others are barred.
            unused = self.stats_last_nonzero.topk(min(capacity or self.hidden_dim, self.hidden_dim))
            bias = self.latent_bias[unused.indices]
            bias = bias.masked_fill(unused.values <= self.dead_threshold, -torch.inf)
            k = min(k, len(bias))
            _, out = self._autoencode(x, unused.indices, [k], "fast", bias)
            return out[0] - self.pre_bias
        latents = dead.nonzero().squeeze(1)
        if len(latents) == 0:
            return None
        k = min(k, len(latents))
        if len(latents) <= 2 * k:
            return self._reconstruct_densely(x, latents, k)
        _, out = self._autoencode(x, latents, [k], "fast")
        return out[0] - self.pre_bias

    def _reconstruct_densely(self, x: Tensor, latents: Tensor, k: int) -> Tensor:
        """Return what each row's k strongest of these latents add to its reconstruction.

        With half of them active, dense products of all take three quarters of the time.
        """
        weight = self.encoder.weight[latents]
        # The bias passes the gradient on to pre_bias, which saves a product over all rows.
        fixed = self.pre_bias.detach()
        bias = self.latent_bias[latents] - weight @ (self.pre_bias - fixed)
        pre = F.linear(x - fixed, weight, bias)
        active = topk_relu(pre, k).to_dense() if k < len(latents) else pre.relu()
        return active @ (weight if self.tied else self.dictionary[latents])

    def decode(self, codes: SparseCodes) -> Tensor:
        """Return the reconstructions [n, d] of codes.

        Where the model standardizes rows, a code does not hold the mean and the deviation of its
        row: the reconstruction is that of the standardized row, at mean 0 and deviation 1. Times
        the deviation and plus the mean that `standardized(x)` returns it is that of x, as
        `forward` and `autoencode` give it.
        """
        return decode(codes, self.dictionary, self.pre_bias)

    # ---- dense queries against stored codes ---------------------------------------------

    def rerank(
        self, q: ArraySource | Embeddings, shortlist: int = 100, space: str = "embeddings"
    ) -> Rerank:
        """Return what `InvertedIndex.search` needs to score documents by embeddings q [n, d].

        With the index built of `codes` with metric="ip" and `norms=model.norms(codes, space)`,
        scores are cosines of q with the documents' reconstructions x̂, times the query's norm,
        which changes no order. Documents take no more bytes for it:

        - space "embeddings": ⟨q, x̂⟩ / |x̂|;
        - space "adapter": the same about pre_bias, where the adapter was trained: after
          `TrainConfig.whitening`, and on `input_subspace` alone. Often more accurate, even than
          dense embeddings (docs/notes/training.md).

        Sums are of float32 at least, whatever the dtypes of q and the model.

        Raises:
            TypeError, ValueError: if q is not floating-point [n, d]; if `space` is neither; if
                the model standardizes rows, whose scale a code does not hold; with "adapter" if
                encoder and decoder were trained apart.
        """
        return dense.rerank(self, q, shortlist, space)

    def norms(self, codes: SparseCodes, space: str = "embeddings") -> Tensor:
        """Norms [n] of reconstructions, as `InvertedIndex.build(norms=)` takes them; see `rerank`.

        They are float32, or float64 of a float64 model. A code without an active latent has the
        least positive norm of float32 in place of 0.
        """
        return dense.norms(self, codes, space)

    @property
    def spaces(self) -> tuple[str, ...]:
        """The spaces of `rerank` that this model has."""
        return dense.spaces(self)

    def check_space(self, space: str) -> None:
        """Raise TypeError or ValueError unless `space` is one of `spaces`."""
        dense.check_space(self, space)

    def forward(
        self, x: Any, k: int | None = None, *, compute: Callable[..., Any] | None = None
    ) -> Any:
        """Encode and decode x.

        Args:
            x: embeddings [n, d], or of any number of leading dimensions, or one row [d].
            k: active latents per row; default self.k.
            compute: what to return instead, compute(self, x), for any x. Wrappers such as
                DistributedDataParallel and FSDP do their work around `forward` alone: only there
                are sharded weights whole, and only of it are gradients synchronized. `CSRLoss`
                computes its terms so.

        Returns:
            (reconstruction in the shape and scale of x, SparseCodes [n, k] of its n rows).
        """
        if compute is not None:
            return compute(self, x)
        check_tensor("x", x, (..., self.input_dim))
        rows, mean, deviation = self.standardized(x.reshape(-1, self.input_dim))
        codes = self.encode_standardized(rows, k)
        return (self.decode(codes) * deviation + mean).reshape(x.shape), codes

    @property
    def dead(self) -> Tensor:
        """[h] bool: latents that no row has used for more than `dead_threshold` steps."""
        return self.stats_last_nonzero > self.dead_threshold

    @torch.no_grad()
    def update_stats(
        self, codes: SparseCodes, threshold: float = 1e-5, *, new_step: bool = True
    ) -> None:
        """Count an optimizer step in which `codes` were used (values above `threshold`).

        With new_step=False the codes are further ones of the step that was counted last, as where
        gradients accumulate over several batches.
        """
        transformed = torch._C._are_functorch_transforms_active()
        if transformed and not torch._C._functorch.is_functorch_wrapped_tensor(
            self.stats_last_nonzero
        ):
            raise RuntimeError(
                "update_stats: counts change in place, which torch.func refuses of a buffer that "
                "is no argument of the transformed function; call loss.eval() first"
            )
        # One place more, for slots that hold nothing: no shape depends on what the codes hold,
        # so a GPU need not be waited for.
        check_codes("codes", codes, self.hidden_dim)
        latents = torch.where(codes.values > threshold, codes.latents(), self.hidden_dim)
        used = self.stats_last_nonzero.new_zeros(self.hidden_dim + 1)
        used.scatter_(0, latents.flatten(), 1)
        if new_step:
            self.stats_last_nonzero += 1
        self.stats_last_nonzero.masked_fill_(used[:-1] != 0, 0)

    def train(self, mode: bool = True) -> SparseAutoencoder:
        """Return the model in training mode, or with False in evaluation mode."""
        if mode != self.training:
            # Steps that a CUDA graph takes leave no trace in a tensor's version.
            forget(self)
            kept.forget(self.encoder.weight)
        return super().train(mode)

    def extra_repr(self) -> str:
        """Return the text that `print(module)` shows."""
        return (
            f"input_dim={self.input_dim}, hidden_dim={self.hidden_dim}, k={self.k}, "
            f"k_aux={self.k_aux}, standardize={self.standardize}, tied={self.tied}"
        )

    # ---- storage ----------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        shared = {} if self.partner is None else {"partner": self.partner}
        return {name: getattr(self, name) for name in storage.CONFIG_NAMES} | shared

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write config.json and model.safetensors into `directory`, each renamed into place.

        A tied model stores its weight once, as encoder.weight.

        Raises:
            ValueError: if a weight is NaN or infinite; nothing is written.
        """
        storage.save(self, directory)

    @classmethod
    def from_pretrained(
        cls,
        directory: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> SparseAutoencoder:
        """Return the model in a directory that `save_pretrained` or sentence-transformers wrote.

        It is float32, on the CPU and in evaluation mode. Either of two tied weights may be absent
        from the file.

        Args:
            directory: or "org/name" of a repository of the Hugging Face Hub, where there is no
                such folder.
            revision: of the repository: a branch, tag or commit.
            token: for the Hub; None: the one that is logged in.

        Raises:
            FileNotFoundError: if config.json or model.safetensors is missing, or there is no such
                repository.
            ValueError: if the files do not describe one model, or a weight is NaN or infinite.
        """
        if hub.is_repository(directory):
            name = str(directory)
            directory = hub.pull(name, hub.MODEL_FILES, revision=revision, token=token)
        return storage.load(cls, directory)

    def push_to_hub(self, repo_id: str, *, results: str | None = None, **options: Any) -> str:
        """Write the model, and a card, into a repository of the Hugging Face Hub.

        Args:
            repo_id: "org/name"; made if it does not exist.
            results: Markdown of what was measured, for the card: for example the table that
                `csrkern eval --output` writes.
            options: of `csrkern.hub.push`: private, revision, message, token.

        Returns: the address of the commit.

        Raises:
            ImportError: without huggingface_hub.
            ValueError: if `repo_id` is not "org/name", or a weight is NaN or infinite.
            OSError: if the Hub cannot be reached, or refuses.
        """
        lines = [
            f"A sparse autoencoder of embeddings of {self.input_dim} dimensions: "
            f"{self.hidden_dim:,} latents, up to {self.k} active.",
            "",
            "```python",
            "from csrkern.nn import SparseAutoencoder",
            "",
            f'model = SparseAutoencoder.from_pretrained("{repo_id}")',
            "codes = model.encode(embeddings)",
            "```",
        ]
        tags = ("sparse-autoencoder", "sparse-encoder", "contrastive-sparse-representation")
        card = hub.card_of(repo_id.split("/")[-1], tags, lines, results)
        return hub.push(self.save_pretrained, repo_id, hub.MODEL_FILES, card, **options)


# ---- one weight under two names -----------------------------------------------------------


def _drop_decoder(
    _model: nn.Module, state: dict[str, Any], prefix: str, _metadata: dict[str, Any]
) -> None:
    """Leave one name for a tied weight: safetensors stores no tensor under two."""
    state.pop(prefix + storage.DECODER, None)


def _fill_both(
    _model: nn.Module,
    state: dict[str, Any],
    prefix: str,
    _metadata: dict[str, Any],
    _strict: bool,
    _missing: list[str],
    _unexpected: list[str],
    errors: list[str],
) -> None:
    """Put a tied weight that is stored under either name, or both, under both."""
    names = [name for name in (prefix + storage.ENCODER, prefix + storage.DECODER) if name in state]
    given = [state[name] for name in names]
    if len(given) == 2 and given[0] is not given[1] and not torch.equal(*given):
        errors.append(f"{names[1]} differs from {names[0]}, but a tied model has one weight.")
    if given:
        state[prefix + storage.ENCODER] = state[prefix + storage.DECODER] = given[0]


def _tie_again(model: nn.Module, _keys: Any) -> None:
    """Undo what load_state_dict(assign=True) does: a Parameter for each name."""
    assert isinstance(model, SparseAutoencoder)
    model._tie()
