#!/usr/bin/env python3
"""Builds csrkern._C in place with what a machine with PyTorch has.

As `setup.py build_ext --inplace`; but pybind11's headers come from PyTorch where the package is
missing, and ninja may be a program instead of a package. Modules that were built from the same
sources for this Python are kept: bring them and build/native.txt along to save a minute.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import types
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "build" / "native.txt"  # what the modules were built from


def modules() -> str:
    """The modules to build: csrkern._cuda where nvcc is."""
    return "csrkern._C" + ", csrkern._cuda" * (shutil.which("nvcc") is not None)


def sources() -> str:
    """A digest of what the modules are built from, and for which Python."""
    made = hashlib.sha256(f"{sysconfig.get_config_var('EXT_SUFFIX')} {modules()}".encode())
    for path in sorted([ROOT / "setup.py", *(ROOT / "csrc").rglob("*")]):
        if path.is_file():
            made.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return made.hexdigest()


def is_built() -> bool:
    """Whether the modules are there, of these sources, and can be loaded."""
    if not BUILT.exists() or BUILT.read_text() != sources():
        return False
    loads = subprocess.run([sys.executable, "-c", f"import {modules()}"], cwd=ROOT)
    return loads.returncode == 0


def lend_pybind11() -> None:
    """A module with PyTorch's copy of the headers, if there is none."""
    if importlib.util.find_spec("pybind11") is not None:
        return
    torch = importlib.util.find_spec("torch")
    assert torch is not None
    assert torch.origin is not None
    headers = Path(torch.origin).parent / "include"
    if not (headers / "pybind11").is_dir():
        sys.exit("no pybind11 here, neither as a package nor within PyTorch")
    module = types.ModuleType("pybind11")
    module.get_include = lambda: str(headers)  # type: ignore[attr-defined]
    sys.modules["pybind11"] = module


def lend_ninja(folder: Path) -> None:
    """A package in `folder` that runs the program, if there is no package."""
    if importlib.util.find_spec("ninja") is not None:
        return
    program = shutil.which("ninja")
    if program is None:
        sys.exit("no ninja here, neither as a package nor as a program")
    (folder / "ninja").mkdir()
    script = f"import os, sys\nos.execv({program!r}, [{program!r}, *sys.argv[1:]])\n"
    (folder / "ninja" / "__init__.py").touch()
    (folder / "ninja" / "__main__.py").write_text(script)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{folder}:{before}" if before else str(folder)


def main() -> None:
    """Builds, unless it was done."""
    os.chdir(ROOT)
    if is_built():
        print("built before")
        return
    with tempfile.TemporaryDirectory() as folder:
        lend_pybind11()
        lend_ninja(Path(folder))
        sys.argv = ["setup.py", "-q", "build_ext", "--inplace"]
        runpy.run_path("setup.py", run_name="__main__")
    BUILT.parent.mkdir(exist_ok=True)
    BUILT.write_text(sources())


if __name__ == "__main__":
    main()
