"""The training loop: from a dataset and options to trained models."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from csrkern.arguments import check_at_least
from csrkern.nn import SparseAutoencoder
from csrtrain.progress import progress_bar, scalar_log
from csrtrain.training import distributed
from csrtrain.training.batches import BatchOrder, read_ahead
from csrtrain.training.checkpoint import FILE_NAME, load_checkpoint, save_checkpoint
from csrtrain.training.config import TrainConfig
from csrtrain.training.dataset import Dataset
from csrtrain.training.loss import CSRLoss
from csrtrain.training.steps import Steps
from csrtrain.training.stopping import Evaluate, Evaluation


@dataclass(frozen=True)
class StepReport:
    """The outcome of one optimizer step.

    Attributes:
        step: its number, from 1.
        steps: steps of the whole run.
        losses: the terms of `CSRLoss` by name, and "dead", the share of dead latents.
        lr: learning rate.
        rows_per_second: rows trained on per second, over the run so far and by all processes.
        score: of the evaluation after this step, if there was one.
    """

    step: int
    steps: int
    losses: dict[str, float]
    lr: float
    rows_per_second: float
    score: float | None = None


@dataclass(frozen=True)
class RunOptions:
    """Checkpoints, evaluation, output and device of a run: arguments of `train`, by name."""

    checkpoint_dir: str | os.PathLike[str] | None = None
    checkpoint_every: int | None = None
    resume: bool = False
    evaluate: Evaluate | None = None
    evaluate_every: int | None = None
    patience: int | None = None
    log_dir: str | os.PathLike[str] | None = None
    progress: bool = True
    on_step: Callable[[StepReport], None] | None = None
    device: str | torch.device | None = None
    graphs: bool = True

    def __post_init__(self) -> None:
        if self.resume and self.checkpoint_dir is None:
            raise ValueError("resume: expected a checkpoint_dir to resume from")
        for name in ("checkpoint_every", "evaluate_every", "patience"):
            if getattr(self, name) is not None:
                check_at_least(name, getattr(self, name), 1)
        if self.patience is not None and self.evaluate is None:
            raise ValueError("patience: expected an evaluate function to judge by")


def run(data: Dataset, options: RunOptions) -> list[SparseAutoencoder]:
    """Train the models of `data` and return them as users get them."""
    config = data.config
    assert config.steps is not None
    assert config.batch_size is not None
    if config.batch_size % distributed.world_size():
        raise ValueError(
            f"batch_size: expected a multiple of the {distributed.world_size()} processes, "
            f"got {config.batch_size}"
        )
    device = _device(options.device)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        models = nn.ModuleList(data.new_models()).to(device).train()
        loss_of = loss_for(config, data.variance)
        steps = Steps(config, models, loss_of, device, options.graphs)
        every = max(1, config.steps // 10)
        evaluation = Evaluation(options.evaluate, options.evaluate_every or every, options.patience)
        start = 0
        if options.checkpoint_dir is not None:
            start = _resume(options, data, models, steps, evaluation)
        every = options.checkpoint_every or every
        order = BatchOrder(len(data), config.batch_size, config.seed)

        def finished() -> Any:
            trained = data.finish(models)
            return trained[0] if len(trained) == 1 else tuple(trained)

        first = distributed.rank() == 0
        began = time.perf_counter()
        with (
            progress_bar(options.progress and first, start, config.steps) as show,
            scalar_log(options.log_dir if first else None, start) as log,
        ):
            for step, batch in enumerate(
                read_ahead(lambda step: data.read(order(step)), start, config.steps), start
            ):
                if evaluation.over:
                    break
                losses = steps(step, batch)
                done = step + 1
                rows_done = (done - start) * config.batch_size
                rate = rows_done / (time.perf_counter() - began)
                score = None
                if evaluation.due(done, config.steps):
                    score = evaluation.score(done, models, finished)
                show(done, losses, rate)
                scalars = {**losses, "lr": config.lr_at(step), "rows_per_second": rate}
                log(done, scalars if score is None else {**scalars, "score": score})
                due = done % every == 0 or done == config.steps or evaluation.over
                if options.on_step is not None:
                    options.on_step(
                        StepReport(done, config.steps, losses, config.lr_at(step), rate, score)
                    )
                if options.checkpoint_dir is not None and first and due:
                    save_checkpoint(
                        options.checkpoint_dir,
                        step=done,
                        config=config,
                        model=models,
                        optimizer=steps.optimizer,
                        data=data.fingerprint,
                        best=evaluation.best,
                    )
    if evaluation.best["model"] is not None:
        models.load_state_dict(evaluation.best["model"])
    return data.finish(models)


def loss_for(config: TrainConfig, variance: float = 1.0) -> CSRLoss:
    """Return the loss of a resolved config, for embeddings of this variance per dimension."""
    assert config.gamma is not None
    assert config.ks is not None
    return CSRLoss(
        config.beta,
        config.gamma,
        config.temperature,
        config.contrast,
        ks=config.ks,
        recon_weight=1 / variance if config.relative_recon else 1.0,
        balance=config.balance,
        gather=True,
    )


def _device(device: str | torch.device | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))


def _resume(
    options: RunOptions,
    data: Dataset,
    models: nn.ModuleList,
    steps: Steps,
    evaluation: Evaluation,
) -> int:
    """Return the step already done, after restoring models, optimizer and random state."""
    assert options.checkpoint_dir is not None
    if not options.resume:
        path = Path(options.checkpoint_dir) / FILE_NAME
        if path.exists():
            raise FileExistsError(
                f"{path} is there already: resume the run it belongs to (resume=True), "
                "or choose another folder"
            )
        return 0
    content = load_checkpoint(options.checkpoint_dir, config=data.config, data=data.fingerprint)
    if content is None:
        return 0
    models.load_state_dict(content["model"])
    steps.load(content["optimizer"])
    torch.set_rng_state(content["rng"])
    if evaluation.evaluate is not None:
        evaluation.best = content["best"]
    return content["step"]
