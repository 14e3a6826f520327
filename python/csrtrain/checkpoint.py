"""Checkpoints: everything a run needs to go on as if it had never stopped."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from csrkern.storage import write_atomically
from csrtrain.config import TrainConfig

FILE_NAME = "checkpoint.pt"
FILE_FORMAT = "csrkern-checkpoint-1"


def save_checkpoint(
    directory: str | os.PathLike[str],
    *,
    step: int,
    config: TrainConfig,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    data: dict[str, Any],
    best: dict[str, Any] | None = None,
) -> None:
    """Writes `directory`/checkpoint.pt, renamed into place: a crash leaves the one before.

    Args:
        directory: made if it is not there.
        step: optimiser steps done; also says where in the data the run stands, since the
            order of the rows follows from the seed and the step alone.
        config: resolved.
        model, optimizer: their state is stored.
        data: what identifies the embeddings and labels; `load_checkpoint` compares it.
        best: the best model so far, where the run is evaluated.

    Raises:
        FloatingPointError: if a weight is not finite; the file before is kept.
    """
    state = model.state_dict()
    broken = [name for name, t in state.items() if not bool(torch.isfinite(t).all())]
    if broken:
        raise FloatingPointError(
            f"step {step}: {', '.join(broken)} became NaN or infinite; the last good checkpoint "
            "is kept. Try a lower learning rate (lr)"
        )
    content = {
        "format": FILE_FORMAT,
        "step": step,
        "config": config.to_dict(),
        "model": state,
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "data": data,
        "best": best,
    }
    payload = io.BytesIO()
    torch.save(content, payload)
    Path(directory).mkdir(parents=True, exist_ok=True)
    write_atomically(Path(directory) / FILE_NAME, payload.getvalue())


def load_checkpoint(
    directory: str | os.PathLike[str], *, config: TrainConfig, data: dict[str, Any]
) -> dict[str, Any] | None:
    """The content of `directory`/checkpoint.pt, or None if there is no such file.

    Raises:
        ValueError: if the file is damaged, or was written with other settings or data.
    """
    path = Path(directory) / FILE_NAME
    if not path.is_file():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is damaged: {first_line}; remove it to start anew") from error
    if not isinstance(content, dict) or content.get("format") != FILE_FORMAT:
        raise ValueError(f"{path} is not a checkpoint of this release ({FILE_FORMAT})")
    now, then = config.to_dict(), content["config"]
    changed = [
        f"{name} = {then.get(name)!r}, now {now.get(name)!r}"
        for name in sorted(now.keys() | then.keys())
        if now.get(name) != then.get(name)
    ]
    if changed:
        raise ValueError(
            f"{path} was written with other settings: {'; '.join(changed)}. "
            "Use those, or another checkpoint folder"
        )
    if not _same_data(content["data"], data):
        raise ValueError(
            f"{path} was written for other embeddings or labels; "
            "use those, or another checkpoint folder"
        )
    return content


def _same_data(a: dict[str, Any], b: dict[str, Any]) -> bool:
    def same(x: Any, y: Any) -> bool:
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            return torch.equal(x, y)
        return type(x) is type(y) and x == y

    return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
