"""`python -m csrtrain ...` is `csrkern ...`; `torchrun -m csrtrain train ...` on many processes."""

from __future__ import annotations

import os


def run() -> None:
    """Return the command line, in a process group where torchrun started this process."""
    from csrtrain.cli.app import main

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        main()
    import torch
    import torch.distributed as dist

    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if gpu else "gloo")
    try:
        main()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    run()
