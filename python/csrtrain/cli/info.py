"""The command info."""

from __future__ import annotations

import os
import platform

from csrtrain.cli import shared
from csrtrain.cli.lines import emit


def info(as_json: shared.Json = False) -> None:
    """Show versions, the instruction set in use, threads, CUDA and Triton."""
    from importlib.metadata import PackageNotFoundError, version

    import numpy
    import torch

    import csrkern
    from csrkern.roofline import instruction_set

    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    cuda = "no GPU"
    if torch.cuda.is_available():
        cuda = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    facts = {
        "csrkern": csrkern.__version__,
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "PyTorch": torch.__version__,
        "NumPy": numpy.__version__,
        "Triton": installed("triton"),
        "sentence-transformers": installed("sentence-transformers"),
        "instruction set": instruction_set(),
        "cores": str(os.cpu_count()),
        "PyTorch threads": str(torch.get_num_threads()),
        "CUDA": cuda,
    }
    if as_json:
        emit(facts)
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")
