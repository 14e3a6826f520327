"""The command warmup."""

from __future__ import annotations

import os
from enum import Enum
from typing import Annotated

import typer

from csrtrain.cli.io import Json, report
from csrtrain.cli.lines import emit


class Dtype(str, Enum):
    """What a model computes in."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


def warmup(
    input_dim: Annotated[
        int, typer.Option("--input-dim", "-d", min=1, help="Width of the embeddings.")
    ],
    hidden_dim: Annotated[int, typer.Option("--hidden-dim", min=1, help="Latents.")],
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Active latents per row.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a batch.")] = 4096,
    dtype: Annotated[
        Dtype, typer.Option(help="Data type that the model computes in.")
    ] = Dtype.FLOAT32,
    as_json: Json = False,
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
    warm_up(*sizes, getattr(torch, dtype.value), device, show)
    path = str(tuning.choices_path())
    report({"choices": path}, f"choices: {path}", as_json)
