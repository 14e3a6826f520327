"""Tries the newest wheel of a folder where there is no compiler and no PyTorch.

python scripts/try_wheel.py dist       # in a new virtual environment with NumPy alone
python scripts/try_wheel.py --here     # what is installed for this Python

Builds, searches, changes, saves and loads an index, in several threads too, and prints the wheel's
size, which has a limit.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

MOST_BYTES = 2_000_000


def try_here() -> None:
    """Use the index of the csrkern that is installed; PyTorch may not be loaded."""
    import numpy as np

    import csrkern

    here = Path(csrkern.__file__).parent
    assert "site-packages" in here.parts, f"{here} is not an installed package"
    assert (here / "py.typed").is_file(), "the wheel has no py.typed"
    random = np.random.default_rng(0)
    latents = np.argsort(random.random((2000, 256)), axis=1)[:, :16].astype(np.int32)
    values = random.random((2000, 16), np.float32) + 0.01

    def build() -> csrkern.InvertedIndex:
        return csrkern.InvertedIndex.build((values, latents), dim=256, metric="cosine")

    index = build()
    queries = values[:100], latents[:100]
    scores, ids = index.search(queries, top_k=5)
    assert (ids[:, 0] == np.arange(100)).all(), "a code was not nearest to itself"
    with tempfile.TemporaryDirectory() as folder:
        index.save(folder)
        loaded = csrkern.InvertedIndex.load(folder)
        again = loaded.search(queries, top_k=5)
        assert (again[0] == scores).all()
        assert (again[1] == ids).all()
        loaded.remove([0])
        assert loaded.search(queries, top_k=1)[1][0, 0] != 0
    try_threads(build, queries, ids)
    assert "torch" not in sys.modules, "the index has loaded PyTorch"
    cuda = try_cuda(index, queries, ids)
    isa = csrkern._C.isa()
    python = f"Python {sys.version.split()[0]} {'without' if without_gil() else 'with'} the GIL"
    print(f"csrkern {csrkern.__version__}, {isa}, {python}: built, searched, saved, loaded; {cuda}")


def without_gil() -> bool:
    """Return whether this Python has no GIL; to import csrkern may not have brought it back."""
    free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    assert not (free_threaded and sys._is_gil_enabled()), "csrkern has enabled the GIL"
    return free_threaded


def try_threads(build: Callable[[], Any], queries: Any, expected: Any) -> None:
    """Search, build and change indexes in six threads at once; all find what one thread does."""
    index, changing = build(), build()

    def search() -> None:
        assert (index.search(queries, top_k=5)[1] == expected).all()

    def rebuild() -> None:
        assert (build().search(queries, top_k=5)[1] == expected).all()

    def search_changing() -> None:
        assert set(changing.search(queries, top_k=1)[1][:, 0]) <= {*range(100), 5000}

    def change() -> None:
        changing.add((queries[0][:1], queries[1][:1]), ids=[5000])
        changing.remove([5000])

    start, failed = threading.Barrier(6), []

    def repeat(work: Callable[[], None]) -> None:
        start.wait()
        try:
            for _ in range(20):
                work()
        except BaseException as error:
            failed.append(error)

    works = search, search, rebuild, search_changing, search_changing, change
    threads = [threading.Thread(target=repeat, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def try_cuda(index: Any, queries: Any, ids: Any) -> str:
    """Search on a GPU, if the wheel can and there is one; say what there is."""
    if importlib.util.find_spec("csrkern._cuda") is None:
        return "without the GPU part"
    try:
        found = index.to("cuda").search(queries, top_k=5)[1]
    except RuntimeError as error:
        if "no CUDA device" not in str(error):
            raise
        return "the GPU part loads, there is no GPU"
    assert (found == ids).all(), "the GPU found something else"
    return "searched on a GPU"


def try_wheel(wheel: Path) -> None:
    """Installs the wheel into an environment of its own, with NumPy, and tries it there."""
    with zipfile.ZipFile(wheel) as archive:
        entries = archive.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    native = [entry for entry in entries if entry.filename.endswith(".so")]
    size = wheel.stat().st_size
    assert size <= MOST_BYTES, f"{wheel.name}: expected at most {MOST_BYTES:,} bytes, got {size:,}"
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = f"{folder}/bin/python"
        # No compiler is found where PATH has nothing else.
        environment = {**os.environ, "PATH": f"{folder}/bin", "PYTHONPATH": ""}
        for what in (["numpy", "--only-binary=:all:"], ["--no-deps", str(wheel.resolve())]):
            command = [python, "-m", "pip", "install", "--quiet", *what]
            subprocess.run(command, check=True, env=environment, cwd=folder)
        script = [python, str(Path(__file__).resolve()), "--here"]
        subprocess.run(script, check=True, env=environment, cwd=folder)
        absent = subprocess.run([python, "-c", "import torch"], capture_output=True)
        assert absent.returncode != 0, "PyTorch was there to be found"
    print(f"{wheel.name}: {size / 1e6:.2f} MB, unpacked {unpacked / 1e6:.2f} MB")
    for entry in native:
        packed, size = entry.compress_size / 1e6, entry.file_size / 1e6
        print(f"  {entry.filename.split('.')[0]}: {packed:.2f} MB, unpacked {size:.2f} MB")


def main() -> None:
    """Says what it did; fails loudly."""
    if sys.argv[1:] == ["--here"]:
        try_here()
    elif len(sys.argv) == 2 and (wheels := list(Path(sys.argv[1]).glob("csrkern-*.whl"))):
        try_wheel(max(wheels, key=lambda wheel: wheel.stat().st_mtime))
    else:
        sys.exit(f"{__doc__}\nExpected a folder that holds a csrkern wheel, or --here")


if __name__ == "__main__":
    main()
