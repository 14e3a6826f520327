"""Folders for large files on this machine's disk that nobody needs once their process is dead."""

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
    """Yield an empty folder; it goes when the block ends.

    That of a process that was killed goes when the next one is made: its lock is free then.
    """
    _sweep(Path(tempfile.gettempdir()))
    while True:
        place = Path(tempfile.mkdtemp(prefix=PREFIX))
        with open(place / LOCK, "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not os.fstat(lock.fileno()).st_nlink:
                continue  # swept before it was locked
            try:
                yield place
            finally:
                shutil.rmtree(place, ignore_errors=True)
            return


def _sweep(parent: Path) -> None:
    for place in parent.glob(f"{PREFIX}*"):
        # One whose process has made it but not yet the lock is left alone.
        with contextlib.suppress(OSError), open(place / LOCK, "r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock.fileno()).st_nlink:
                shutil.rmtree(place, ignore_errors=True)
