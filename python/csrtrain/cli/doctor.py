"""The command doctor."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from csrtrain.cli import shared
from csrtrain.cli.lines import emit

_PACKAGES = {"faiss-cpu": "FAISS", "sentence-transformers": "sentence-transformers"}


def doctor(as_json: shared.Json = False) -> None:
    """Show this machine, versions, the path that each operator takes, and what would be faster.

    The first thing to send with a bug report.
    """
    import numpy
    import torch

    import csrkern
    from csrkern.arguments import thread_count
    from csrkern.roofline import instruction_set, multiplies_bfloat16, processor_name

    index_on_gpu = _index_on_gpu()
    gpu = torch.cuda.is_available()
    facts = {
        "csrkern": csrkern.__version__,
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "PyTorch": torch.__version__,
        "NumPy": numpy.__version__,
        "Triton": _installed("triton"),
        **{name: _installed(package) for package, name in _PACKAGES.items()},
        "processor": processor_name(),
        "instruction set": instruction_set(),
        "processors": f"{thread_count(None)} of {os.cpu_count()} to run on",
        "PyTorch threads": str(torch.get_num_threads()),
        "CUDA": f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}" if gpu else "no GPU",
        "index on a GPU": index_on_gpu or "ready",
    }
    paths = _paths(instruction_set(), multiplies_bfloat16(), gpu)
    advice = _advice(gpu, index_on_gpu)
    if as_json:
        emit({**facts, "paths": paths, "advice": advice})
        return
    width = max(map(len, [*facts, *paths]))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")
    print()
    for name, value in paths.items():
        print(f"{name:<{width}}  {value}")
    print()
    print(*(advice or ["Nothing stands in the way of the fastest path."]), sep="\n")
    print("Next: csrkern demo")


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _index_on_gpu() -> str:
    """Return why the index cannot be on a GPU, or nothing."""
    from csrkern.index.cuda.parts import load_native

    try:
        load_native()
    except RuntimeError as error:
        return str(error)
    return ""


def _paths(isa: str, bfloat16: bool, gpu: bool) -> dict[str, str]:
    """Return what runs each operator: on CPUs, and where there is one on a GPU."""
    native = f"native, {isa}"
    proposed = "a product in bfloat16 proposes, sums in double decide"
    product = "a float32 product proposes, sums in double decide"
    on_cpu = {
        "topk_relu": native,
        "encode, float32": f"{native}; {proposed if bfloat16 else product}",
        "decode, autoencode": native,
        "similarity, info_nce": native,
        "index": native,
    }
    if not gpu:
        return on_cpu
    on_gpu = "Triton" if _installed("triton") != "not installed" else "Triton, which is missing"
    return {
        name: f"{path}; on a GPU {'CUDA' if name == 'index' else on_gpu}"
        for name, path in on_cpu.items()
    }


def _advice(gpu: bool, index_on_gpu: str) -> list[str]:
    """Return a sentence for everything that keeps a faster path from being taken."""
    import torch

    from csrkern.arguments import thread_count
    from csrkern.roofline import instruction_set

    advice = []
    if os.environ.get("CSRKERN_ISA"):
        advice.append(
            f"CSRKERN_ISA={os.environ['CSRKERN_ISA']} chooses the instruction set; without it "
            "the best that this processor has would be taken."
        )
    elif instruction_set() == "portable":
        advice.append(
            "No vector kernels for this processor: the portable ones are several times slower."
        )
    threads, processors = torch.get_num_threads(), thread_count(None)
    if threads < processors:
        advice.append(
            f"PyTorch has {threads} threads and {processors} processors: raise OMP_NUM_THREADS or "
            "call torch.set_num_threads, unless other processes need them."
        )
    if gpu and _installed("triton") == "not installed":
        advice.append("There is a GPU but no Triton, which the operators need there: install it.")
    if gpu and index_on_gpu:
        advice.append(f"The index cannot use the GPU: {index_on_gpu}.")
    if _installed("faiss-cpu") == "not installed":
        advice.append("Without FAISS no fine codes can be learned: pip install 'csrkern[eval]'.")
    return advice
