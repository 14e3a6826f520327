"""The command train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from csrkern.storage import check_folder
from csrtrain.cli import shared
from csrtrain.cli.kinds import expect
from csrtrain.cli.lines import MOST_LATENTS


def train(
    embeddings: shared.Embeddings,
    output: shared.Output,
    labels: Annotated[
        str | None, shared.array("A label for each row, integers or strings.")
    ] = None,
    partners: Annotated[
        str | None, shared.array("Embeddings that belong to these, such as documents.")
    ] = None,
    pairs: Annotated[
        str | None, shared.array("Rows (embedding, partner), from 0 (default: row with row).")
    ] = None,
    preset: Annotated[
        Literal["imagenet", "text", "clip", "csrv2"] | None,
        typer.Option(help="Published settings to start from (default: the recommended recipe)."),
    ] = None,
    contrast: Annotated[
        Literal["self", "label", "pair", "clip", "none"] | None,
        typer.Option(
            help="self: spread the codes out; label: also pull rows of one label together; pair "
            "and clip: rows find their partners (default: label if there are --labels, clip if "
            "there are --partners, else self)."
        ),
    ] = None,
    input_subspace: Annotated[
        int | None, shared.whole("Train on this many principal directions.")
    ] = None,
    whitening: Annotated[
        float,
        typer.Option(help="Make weak directions stronger (to 1) or weaker (to -1); see tune."),
    ] = 0.0,
    k: Annotated[int | None, shared.whole("Active latents a row (default: 32).")] = None,
    ks: Annotated[
        str,
        typer.Option(
            metavar="K,K,...",
            help="Smaller k's that the model serves as well (default: 4, 8, 16, ..., below k).",
        ),
    ] = "",
    hidden_dim: Annotated[
        int | None, shared.whole("Number of latents (default: 4096).", max=MOST_LATENTS)
    ] = None,
    gamma: Annotated[
        float | None, typer.Option(help="Weight of the contrast (default: 0.1, with labels 1).")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Temperature of the contrast (default: 0.2).")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of Adam.")] = None,
    batch_size: Annotated[int | None, shared.whole("Rows a step (default: 512).")] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the data (default: by its size).")
    ] = None,
    steps: Annotated[int | None, shared.whole("Optimizer steps, instead of --epochs.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same model.")] = 0,
    threads: shared.Threads = None,
    checkpoints: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Keep a checkpoint here while training.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint in --checkpoints.")
    ] = False,
    log_dir: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write scalars for TensorBoard here.")
    ] = None,
    as_json: shared.Json = False,
    force: shared.Force = False,
) -> None:
    """Train an adapter that turns embeddings into sparse codes.

    [bold]Examples[/bold]

      csrkern train embeddings.npy -o model

      csrkern train data.npz:emb --labels data.npz:label --k 16 --ks 2,4,8 -o model

      csrkern train data.npz:emb --preset text --input-subspace 128 -o model

      torchrun --nproc-per-node 8 -m csrtrain train embeddings.npy -o model
    """
    shared.check_free(output, force, folder=True)
    for directory in (checkpoints, log_dir):
        if directory is not None:
            check_folder(directory)
    expect(embeddings, "embeddings")
    shared.use_threads(threads)
    from csrtrain import train as train_model
    from csrtrain.training import distributed
    from csrtrain.training.config import TrainConfig

    settings: dict[str, Any] = {
        "contrast": contrast,
        "k": k,
        "hidden_dim": hidden_dim,
        "gamma": gamma,
        "temperature": temperature,
        "lr": lr,
        "batch_size": batch_size,
        "epochs": epochs,
        "steps": steps,
        "ks": shared.numbers(ks, "--ks") or None,
        "input_subspace": input_subspace,
    }
    changes = {name: value for name, value in settings.items() if value is not None}
    if whitening:
        changes["whitening"] = whitening
    if contrast == "none":
        changes["contrast"] = None
    if contrast == "label" and not labels:
        raise ValueError("--contrast label needs --labels; without them use --contrast self")
    if preset is None:
        config = TrainConfig(seed=seed, **changes)
    else:
        config = TrainConfig.preset(preset, seed=seed, **changes)
    model = train_model(
        embeddings,
        labels,
        config,
        partners=partners,
        pairs=pairs,
        checkpoint_dir=checkpoints,
        resume=resume,
        log_dir=log_dir,
    )
    if distributed.rank() > 0:
        return
    with shared.folder_for(output) as folder:
        model.save_pretrained(folder)
    shared.report(
        {"output": str(output), **model.config()},
        f"Wrote {output}: {model.input_dim} dimensions to {model.k} of {model.hidden_dim} latents."
        f"\nNext: csrkern encode {shared.quoted(output, embeddings)} -o codes.safetensors",
        as_json,
    )
