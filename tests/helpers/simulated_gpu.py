"""csrkern._cuda with a GPU that is simulated on the CPU; see csrc/tests/simulated_kernel.hpp."""

from __future__ import annotations

import fcntl
import importlib.util
import subprocess
import sysconfig
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


@cache
def load() -> ModuleType:
    """The module, built once for all processes."""
    import pybind11

    includes = f"-I{pybind11.get_include()} -I{sysconfig.get_path('include')}"
    folder = ROOT / "build"
    folder.mkdir(exist_ok=True)
    with (folder / "simulated.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = subprocess.run(
            ["make", "-s", "-C", ROOT / "csrc/tests", "-j2", f"INCLUDES={includes}", "simulated"],
            capture_output=True,
            text=True,
        )
    assert made.returncode == 0, made.stderr
    file = ROOT / "build/sanitize/simulated/simulated_cuda.so"
    spec = importlib.util.spec_from_file_location("simulated_cuda", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
