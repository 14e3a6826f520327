"""`csrtrain.train` on the machines of a Ray cluster: Ray Train starts the processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from csrtrain.scale.cluster import connected


def train_on_ray(
    embeddings: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    workers: int,
    use_gpu: bool = False,
    address: str | None = None,
    storage: str | None = None,
    **options: Any,
) -> Path:
    """Train on several processes of a cluster and save the model.

    Args:
        embeddings: a file that every node can read under this name.
        output: folder for the model, one that every node can write.
        workers: processes; they share each batch.
        use_gpu: a GPU each, with NCCL; else a core each, with gloo.
        address: of a Ray cluster; None: the one that RAY_ADDRESS names, or a local one.
        storage: folder for Ray Train's own records; None: Ray's default.
        **options: of `csrtrain.train`, such as config, labels, checkpoint_dir and resume.

    Returns: `output`.

    Raises: the errors of `train`; OSError if nothing can be written to `output`, before training.
    """
    with connected(address):
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        trainer = TorchTrainer(
            _loop,
            train_loop_config={
                "embeddings": os.path.abspath(os.fsdecode(embeddings)),
                "output": os.path.abspath(os.fsdecode(output)),
                "options": options,
            },
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu),
            run_config=RunConfig(storage_path=storage),
        )
        trainer.fit()
    return Path(output)


def _loop(work: dict[str, Any]) -> None:
    """Train in one process; Ray Train has made the process group."""
    from csrtrain import train
    from csrtrain.scale.folder import Folder
    from csrtrain.training import distributed

    if distributed.rank() == 0:
        Folder.of(work["output"]).check_writable()
    model = train(work["embeddings"], progress=False, **work["options"])
    if distributed.rank() == 0:
        model.save_pretrained(work["output"])
