"""The training loop: embeddings in, a SparseAutoencoder out."""

from __future__ import annotations

import contextlib
import math
import os
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csrkern.nn import SparseAutoencoder
from csrtrain.checkpoint import FILE_NAME, load_checkpoint, save_checkpoint
from csrtrain.config import TrainConfig
from csrtrain.data import (
    Array,
    Source,
    check_rows_finite,
    chunks,
    load_embeddings,
    load_labels,
    rows,
)
from csrtrain.loss import CSRLoss

ADAM_EPS = 6.25e-10


@dataclass(frozen=True)
class StepReport:
    """What one optimiser step did.

    Attributes:
        step: its number, from 1.
        steps: steps of the whole run.
        losses: the terms of `CSRLoss` by name, and "dead", the share of dead latents.
        lr: learning rate.
        rows_per_second: rows trained on per second, over the run so far.
    """

    step: int
    steps: int
    losses: dict[str, float]
    lr: float
    rows_per_second: float


def train(
    embeddings: Source,
    labels: Source | None = None,
    config: TrainConfig | None = None,
    *,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    progress: bool = True,
    on_step: Callable[[StepReport], None] | None = None,
    device: str | torch.device | None = None,
) -> SparseAutoencoder:
    """Trains a sparse autoencoder on frozen embeddings.

    Embeddings in mapped files are read batch by batch and never held whole. The same data,
    config, device and number of threads give the same model, bit for bit, also through any
    number of interruptions that are resumed. The global random state is left as it was.

    Args:
        embeddings: [n, d], a path or an array; see `load_embeddings`.
        labels: [n] integers or strings, a path or an array; needed for contrast="label".
        config: settings; default `TrainConfig()`.
        checkpoint_dir: folder for checkpoint.pt, written every `checkpoint_every` steps and
            at the end.
        checkpoint_every: default: ten times a run.
        resume: go on from the checkpoint in `checkpoint_dir`, or start if there is none.
        progress: show a progress bar with the loss, the dead latents and rows per second.
        on_step: called after every step with its StepReport; collect these for a history.
        device: where to train; default a CUDA device if there is one, else the CPU.

    Returns:
        The model, in evaluation mode, on the CPU.

    Raises:
        TypeError, ValueError: if the data or the settings do not fit, or the checkpoint
            belongs to another run.
        FileExistsError: if `checkpoint_dir` holds a checkpoint and `resume` is False.
        FloatingPointError: if the loss is not finite; the message names the step and rows.

    Source: Wen et al., ICML 2025 (arXiv 2503.01776); see `CSRLoss`.
    """
    if isinstance(labels, TrainConfig):
        raise TypeError("labels: expected labels, got a TrainConfig; pass it as config=")
    array = load_embeddings(embeddings, check_finite=False)
    n, d = array.shape
    if n < 2:
        raise ValueError(f"embeddings: expected at least 2 rows to train on, got {n}")
    config = (config or TrainConfig()).resolve(n, d)
    assert config.steps is not None
    assert config.batch_size is not None
    if resume and checkpoint_dir is None:
        raise ValueError("resume: expected a checkpoint_dir to resume from")
    label_tensor = _labels_for(config, labels, n)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = _new_model(config, d)
        mean, variance = _moments(array, model)
        with torch.no_grad():
            model.pre_bias.copy_(mean)
        model.to(device).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, eps=ADAM_EPS, fused=True)
        data = _fingerprint(array, mean, label_tensor)
        start = 0
        if checkpoint_dir is not None:
            start = _resume(checkpoint_dir, resume, config, data, model, optimizer)
        every = checkpoint_every or max(1, config.steps // 10)

        loss_of = loss_for(config, variance)
        order = BatchOrder(n, config.batch_size, config.seed)
        began = time.perf_counter()
        with _progress_bar(progress, start, config.steps) as show:
            for step in range(start, config.steps):
                index = order(step)
                x = rows(array, index).to(device)
                y = None if label_tensor is None else label_tensor[index].to(device)
                for group in optimizer.param_groups:
                    group["lr"] = config.lr_at(step)
                terms = loss_of(model, x, y)
                # One transfer for all of them: each would make a GPU wait.
                values = torch.stack([term.detach() for term in terms.values()]).tolist()
                losses = dict(zip(terms, values, strict=True))
                _check_finite_loss(losses, step, index, x)
                optimizer.zero_grad()
                terms["loss"].backward()
                optimizer.step()

                done = step + 1
                rate = (done - start) * len(index) / (time.perf_counter() - began)
                show(done, losses, rate)
                if on_step is not None:
                    on_step(StepReport(done, config.steps, losses, config.lr_at(step), rate))
                if checkpoint_dir is not None and (done % every == 0 or done == config.steps):
                    save_checkpoint(
                        checkpoint_dir,
                        step=done,
                        config=config,
                        model=model,
                        optimizer=optimizer,
                        data=data,
                    )
    return model.cpu().eval()


def loss_for(config: TrainConfig, variance: float = 1.0) -> CSRLoss:
    """The loss of a resolved config, for embeddings of this variance per dimension."""
    assert config.gamma is not None
    return CSRLoss(
        config.beta,
        config.gamma,
        config.temperature,
        config.contrast,
        prefixes=config.prefixes,
        recon_weight=1 / variance if config.relative_recon else 1.0,
    )


class BatchOrder:
    """The rows of every batch: whole batches of one shuffle per epoch.

    They follow from the seed and the step alone, so a resumed run needs no other position.
    """

    def __init__(self, n: int, batch_size: int, seed: int) -> None:
        self._n = n
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.long)

    def __call__(self, step: int) -> Tensor:
        """Row numbers [batch_size] of a step counted from 0, ascending."""
        epoch, batch = divmod(step, self._n // self._batch_size)
        if epoch != self._epoch:
            mixed = np.random.SeedSequence((self._seed, epoch)).generate_state(1)
            generator = torch.Generator().manual_seed(int(mixed[0]))
            self._order = torch.randperm(self._n, generator=generator)
            self._epoch = epoch
        picked = self._order[batch * self._batch_size : (batch + 1) * self._batch_size]
        # Ascending rows read a mapped file forwards; the loss does not depend on the order.
        return picked.sort().values


def _labels_for(config: TrainConfig, labels: Source | None, n: int) -> Tensor | None:
    if config.contrast != "label":
        return None
    if labels is None:
        raise ValueError(
            "labels: expected one per embedding, since contrast='label'; "
            "use contrast='self' for data without labels"
        )
    return load_labels(labels, n=n)


def _new_model(config: TrainConfig, d: int) -> SparseAutoencoder:
    assert config.hidden_dim is not None
    return SparseAutoencoder(
        d,
        config.hidden_dim,
        config.k,
        k_aux=config.k_aux,
        normalize=config.normalize,
        dead_threshold=config.dead_threshold,
        tied=config.tied,
    )


def _moments(array: Array, model: SparseAutoencoder) -> tuple[Tensor, float]:
    """(mean [d], variance per dimension) in the model's space; refuses rows not finite."""
    total = torch.zeros(array.shape[1], dtype=torch.float64)
    square = 0.0
    for start, chunk in chunks(array):
        check_rows_finite(chunk, start, "embeddings")
        x = model.standardize(chunk)[0].double()
        total += x.sum(0)
        square += float(x.square().sum())
    mean = total / len(array)
    variance = square / (len(array) * len(mean)) - float(mean.square().mean())
    if variance <= 1e-12 * float(mean.square().mean()):
        raise ValueError("embeddings: expected rows that differ; all of them are equal")
    return mean.float(), variance


def _fingerprint(array: Array, mean: Tensor, labels: Tensor | None) -> dict[str, Any]:
    """What tells one data set from another: its shape, mean and labels."""
    label_sum = None if labels is None else zlib.crc32(labels.numpy().tobytes())
    return {"shape": list(array.shape), "mean": mean.clone(), "labels": label_sum}


def _resume(
    directory: str | os.PathLike[str],
    resume: bool,
    config: TrainConfig,
    data: dict[str, Any],
    model: SparseAutoencoder,
    optimizer: torch.optim.Optimizer,
) -> int:
    """Steps already done, after restoring the model, the optimiser and the random state."""
    if not resume:
        path = Path(directory) / FILE_NAME
        if path.exists():
            raise FileExistsError(
                f"{path} is there already: resume the run it belongs to (resume=True), "
                "or choose another folder"
            )
        return 0
    content = load_checkpoint(directory, config=config, data=data)
    if content is None:
        return 0
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    torch.set_rng_state(content["rng"])
    return content["step"]


def _check_finite_loss(losses: dict[str, float], step: int, index: Tensor, x: Tensor) -> None:
    if math.isfinite(losses["loss"]):
        return
    terms = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
    first = ", ".join(map(str, index[:5].tolist()))
    raise FloatingPointError(
        f"step {step + 1}: the loss is not finite ({terms}) on the batch of rows {first}, ... "
        f"(largest magnitude {float(x.abs().max()):.4g}); no step was taken on it. "
        "Try a lower learning rate (lr), or normalize=True for embeddings of large magnitude"
    )


@contextlib.contextmanager
def _progress_bar(
    wanted: bool, start: int, steps: int
) -> Iterator[Callable[[int, dict[str, float], float], None]]:
    """Yields show(steps done, losses, rows per second)."""
    if not wanted:
        yield lambda done, losses, rate: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        task = bar.add_task("train", total=steps, completed=start, state="")

        def show(done: int, losses: dict[str, float], rate: float) -> None:
            state = f"loss {losses['loss']:.4f}  dead {losses['dead']:.1%}  {rate:,.0f} rows/s"
            bar.update(task, completed=done, state=state)

        yield show
