"""Folders for large temporary files, which are removed even if their process is killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX, LOCK = "csrkern-scratch-", "lock"


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield an empty folder and remove it when the block ends.

    The folder of a killed process is removed when the next one is made: its lock is free then.
    """
    _sweep(Path(tempfile.gettempdir()))
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        with open(folder / LOCK, "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not os.fstat(lock.fileno()).st_nlink:
                continue  # swept before it was locked
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return


def _sweep(parent: Path) -> None:
    for folder in parent.glob(f"{PREFIX}*"):
        # A folder that has no lock file yet is left alone.
        with contextlib.suppress(OSError), open(folder / LOCK, "r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock.fileno()).st_nlink:
                shutil.rmtree(folder, ignore_errors=True)
