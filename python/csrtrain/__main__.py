"""`python -m csrtrain ...` is `csrkern ...`; `torchrun -m csrtrain train ...` on many processes."""

from __future__ import annotations

import os


def run() -> None:
    """Run the command line, in a process group where torchrun started this process."""
    from csrtrain.cli.app import main

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        main()
    from csrtrain.training import distributed

    with distributed.process_group():
        main()


if __name__ == "__main__":
    run()
