"""The command warmup."""

from __future__ import annotations

import os
from typing import Annotated, Literal

import typer

from csrtrain.cli import shared
from csrtrain.cli.lines import emit


def warmup(
    input_dim: Annotated[
        int, typer.Option("--input-dim", "-d", min=1, help="Width of the embeddings.")
    ],
    hidden_dim: Annotated[int, typer.Option("--hidden-dim", min=1, help="Latents.")],
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Active latents per row.")],
    batch_size: Annotated[int, shared.whole("Rows of a batch.")] = 4096,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"],
        typer.Option(help="Data type that the model computes in."),
    ] = "float32",
    as_json: shared.Json = False,
) -> None:
    """Compile the GPU kernels and measure their best configurations, once.

    Choices are kept on disk for later runs of batches of about this size; CSRKERN_TUNE=off
    ignores them.

    [bold]Example[/bold]

      csrkern warmup --input-dim 1024 --hidden-dim 16384 --k 32
    """
    import torch

    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not torch.cuda.is_available() and not interpreted:
        raise ValueError("warmup is for GPU kernels, and PyTorch sees no CUDA device here")

    from csrkern.kernels import tuning
    from csrkern.kernels.warmup import warm_up

    def show(name: str, seconds: float) -> None:
        if as_json:
            emit({"kernel": name, "seconds": seconds})
        else:
            print(f"{name:<20} {seconds:8.2f} s", flush=True)

    device = "cpu" if interpreted else "cuda"
    sizes = batch_size, input_dim, hidden_dim, k
    warm_up(*sizes, getattr(torch, dtype), device, show)
    path = str(tuning.choices_path())
    message = f"choices: {path}\nNext: csrkern train and csrkern encode take them by themselves"
    shared.report({"choices": path}, message, as_json)
