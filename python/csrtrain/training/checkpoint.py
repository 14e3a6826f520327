"""Checkpoints: everything a run needs to go on as if it had never stopped.

The file is one of torch.save, a zip archive, with a digest of itself as the archive's comment.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch

from csrkern.storage import write_atomically
from csrtrain.training.config import TrainConfig

FILE_NAME = "checkpoint.pt"
FILE_FORMAT = "csrkern-checkpoint-2"


def save_checkpoint(
    directory: str | os.PathLike[str],
    *,
    step: int,
    config: TrainConfig,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    data: dict[str, Any],
    best: dict[str, Any],
) -> None:
    """Write `directory`/checkpoint.pt, renamed into place: a crash leaves the previous one.

    Args:
        directory: made if it is not there.
        step: optimizer steps done. The order of the rows follows from the seed and the step,
            so it also gives the position in the data.
        config: resolved.
        model, optimizer: their state is stored.
        data: facts that identify the embeddings and labels; `load_checkpoint` compares them.
        best: the best model so far, where the run is evaluated.

    Raises:
        FloatingPointError: if a weight is not finite; the previous file is kept.
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
    write_atomically(Path(directory) / FILE_NAME, _with_digest(payload.getvalue()))


def load_checkpoint(
    directory: str | os.PathLike[str], *, config: TrainConfig, data: dict[str, Any]
) -> dict[str, Any] | None:
    """Return the content of `directory`/checkpoint.pt, or None if there is no such file.

    The number of steps may be another one, if those already done are the same in both runs.

    Raises:
        ValueError: if the file is damaged, or was written with other settings or data.
    """
    path = Path(directory) / FILE_NAME
    if not path.is_file():
        return None
    stored = path.read_bytes()
    if not _has_digest(stored):
        raise ValueError(f"{path} is damaged: its checksum is wrong; remove it to start anew")
    try:
        content = torch.load(io.BytesIO(stored), map_location="cpu", weights_only=True)
    except Exception as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is damaged: {first_line}; remove it to start anew") from error
    if not isinstance(content, dict) or content.get("format") != FILE_FORMAT:
        raise ValueError(f"{path} is not a checkpoint of this release ({FILE_FORMAT})")
    current, stored_config = config.to_dict(), content["config"]
    changed = [
        f"{name} = {stored_config.get(name)!r}, now {current.get(name)!r}"
        for name in sorted((current.keys() | stored_config.keys()) - {"steps"})
        if current.get(name) != stored_config.get(name)
    ]
    if not changed and current["steps"] != stored_config["steps"]:
        _check_steps(
            f"{path}: steps = {stored_config['steps']}, now {current['steps']}", content, config
        )
    if changed:
        raise ValueError(
            f"{path} was written with other settings: {'; '.join(changed)}. "
            "Use those, or another checkpoint folder"
        )
    if content["data"] != data:
        raise ValueError(
            f"{path} was written for other embeddings or labels; "
            "use those, or another checkpoint folder"
        )
    return content


def _check_steps(change: str, content: dict[str, Any], config: TrainConfig) -> None:
    """Raise ValueError unless the steps done are the same in a run of the new length."""
    done, stored = content["step"], TrainConfig(**content["config"])
    if config.steps is not None and config.steps < done:
        raise ValueError(f"{change}: expected at least the {done} steps that are done")
    for step in range(done):
        if (config.lr_at(step), config.k_at(step)) != (stored.lr_at(step), stored.k_at(step)):
            raise ValueError(
                f"{change}: step {step + 1}, which is done, would have had another "
                "learning rate (decay) or k (anneal). Use the same steps, or another checkpoint "
                "folder"
            )


def _with_digest(archive: bytes) -> bytes:
    # A zip archive ends with the length of its comment, here 0, and the comment.
    digest = hashlib.sha256(archive).hexdigest().encode()
    return archive[:-2] + len(digest).to_bytes(2, "little") + digest


def _has_digest(stored: bytes) -> bool:
    archive = stored[:-66] + bytes(2)
    return len(stored) > 66 and _with_digest(archive) == stored
