"""train and train_two: adapters from embeddings."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from csrkern.nn import SparseAutoencoder
from csrkern.typing import ArraySource
from csrtrain.progress import working
from csrtrain.training.config import TrainConfig
from csrtrain.training.dataset import Dataset
from csrtrain.training.loop import RunOptions, StepReport, run
from csrtrain.training.stopping import Evaluate


# Train in any mode of the caller, such as under torch.no_grad().
@torch.inference_mode(False)
@torch.enable_grad()
def train(
    embeddings: ArraySource,
    labels: ArraySource | None = None,
    config: TrainConfig | None = None,
    *,
    partners: ArraySource | None = None,
    pairs: ArraySource | None = None,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    evaluate: Evaluate | None = None,
    evaluate_every: int | None = None,
    patience: int | None = None,
    log_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    on_step: Callable[[StepReport], None] | None = None,
    device: str | torch.device | None = None,
    graphs: bool = True,
) -> SparseAutoencoder:
    """Train a sparse autoencoder on frozen embeddings.

    Embeddings in mapped files are read batch by batch, ahead of the step that needs them, and
    never held whole. The same data, config, device and number of threads give the same model,
    bit for bit, also through any number of interruptions that are resumed. The global random
    state is left as it was.

    In a torch.distributed process group (`torchrun -m csrtrain train ...`) every process trains
    on its share of each batch, and the run is that of one process except for rounding. Call with
    the same arguments on each; checkpoints and logs are written by rank 0 and may be resumed
    on another number of processes.

    Args:
        embeddings: [n, d], a path or an array; see `load_embeddings`.
        labels: [n] integers or strings, a path or an array: rows of one label are brought
            together (contrast="label", the default where labels are given).
        config: settings; default `TrainConfig()`.
        partners: [m, d] embeddings that belong to those of `embeddings` (documents to queries,
            captions to images), for contrast="clip" (the default where they are given) or "pair".
        pairs: [p, 2] rows of `embeddings` and of `partners` that belong together; None: those
            of the same number.
        checkpoint_dir: folder for checkpoint.pt, written every `checkpoint_every` steps and
            at the end.
        checkpoint_every: default: ten times a run.
        resume: go on from the checkpoint in `checkpoint_dir`, or start if there is none. The
            number of steps may be another one, as long as those already done are the same in
            both runs.
        evaluate: scores a model, more being better; then the best one is returned.
        evaluate_every: steps between evaluations; default: ten times a run.
        patience: stop after this many evaluations in a row without a better score.
        log_dir: folder for TensorBoard scalars; needs `pip install csrkern[tensorboard]`.
        progress: show a progress bar with the loss, the dead latents and rows per second.
        on_step: called after every step with its StepReport; collect these for a history.
        device: where to train; default a CUDA device if there is one, else the CPU.
        graphs: on a CUDA device take each step as one CUDA graph, where its shapes stay the
            same: in one process, and not with `anneal`.

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
    options = RunOptions(
        checkpoint_dir=checkpoint_dir,
        checkpoint_every=checkpoint_every,
        resume=resume,
        evaluate=evaluate,
        evaluate_every=evaluate_every,
        patience=patience,
        log_dir=log_dir,
        progress=progress,
        on_step=on_step,
        device=device,
        graphs=graphs,
    )
    with working("reading the embeddings", wanted=progress):
        data = Dataset.of(embeddings, labels, config, partners, pairs)
    (model,) = run(data, options)
    return model


@torch.inference_mode(False)
@torch.enable_grad()
def train_two(
    embeddings: ArraySource,
    partners: ArraySource,
    config: TrainConfig | None = None,
    *,
    pairs: ArraySource | None = None,
    **options: Any,
) -> tuple[SparseAutoencoder, SparseAutoencoder]:
    """Train an adapter for each of two modalities, with codes over the same latents.

    Args:
        embeddings: [n, d], of one modality.
        partners: [m, d'], of the other; d' need not be d.
        config: settings; contrast "clip" (the default) or "pair".
        pairs: [p, 2] rows of both that belong together; None: those of the same number.
        **options: the arguments of `train` from `checkpoint_dir` on. `evaluate` gets the pair
            of models.

    Returns:
        The adapters of `embeddings` and of `partners`, in evaluation mode, on the CPU.

    Raises: as `train`.
    """
    run_options = RunOptions(**options)
    with working("reading the embeddings", wanted=run_options.progress):
        data = Dataset.of(embeddings, None, config, partners, pairs, two=True)
    first, second = run(data, run_options)
    return first, second
