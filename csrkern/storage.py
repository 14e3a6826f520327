"""Writing files so that a crash at any instant leaves the old one or the new one."""

from __future__ import annotations

import os
import threading
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], payload: bytes) -> None:
    """Writes `payload` beside `path`, flushes it to disk and renames it into place."""
    target = Path(path)
    beside = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        write_durably(beside, payload)
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def write_durably(path: Path, payload: bytes | memoryview) -> None:
    """Writes a file under a name that nobody reads yet, and flushes it to disk."""
    with open(path, "wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Makes new names durable; a system that cannot open directories needs no such thing."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
