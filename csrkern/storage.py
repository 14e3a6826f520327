"""Write files so that a crash at any instant leaves the old one or the new one.

And read the small ones that describe others.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from csrkern import _C


def crc32c(data: Any) -> int:
    """Return the CRC-32C of contiguous bytes."""
    return int(_C.crc32c(data))


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return what a JSON file holds, with or without a byte-order mark in front.

    Raises:
        ValueError: if it holds no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)} is damaged: {error}") from error


TUNE_MODES = ("cached", "off", "measure")


def tune_mode() -> str:
    """Return how measured choices are taken, by CSRKERN_TUNE.

    Raises:
        ValueError: if it is none of these ways.
    """
    mode = os.environ.get("CSRKERN_TUNE") or "cached"
    if mode not in TUNE_MODES:
        raise ValueError(f"CSRKERN_TUNE: expected one of {', '.join(TUNE_MODES)}, got {mode!r}")
    return mode


def cache_folder() -> Path:
    """Return where measured choices are kept: CSRKERN_CACHE, or csrkern in the user's cache."""
    named = os.environ.get("CSRKERN_CACHE")
    if named:
        return Path(named)
    base = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if base.parts[0] == "~":  # a user without a home, as in a container: nothing is kept
        base = Path(os.devnull)
    return base / "csrkern"


def write_atomically(path: str | os.PathLike[str], payload: bytes | memoryview) -> None:
    """Write `payload` beside `path`, flush it to disk and rename it into place.

    A link is followed: its target is replaced, and the link stays. A device, a pipe or the
    standard output (see `is_stream`) is written straight through.

    Raises:
        OSError: naming `path`, if it cannot be written.
    """
    with _naming(path):
        if is_stream(path):
            with _open_stream(path) as stream:
                stream.write(payload)
            return
        target = resolve(path)
        beside = target.with_name(_temporary_name(target.name))
        try:
            write_durably(beside, payload)
            with contextlib.suppress(OSError):  # a new file; or a system without such modes
                shutil.copymode(target, beside)
            os.replace(beside, target)
        finally:
            beside.unlink(missing_ok=True)


def check_file(path: str | os.PathLike[str]) -> None:
    """Raise the OSError that `write_atomically` would meet: before work whose result goes there.

    A file that is there stays as it is, and so do the bytes in a pipe.
    """
    with _naming(path):
        if is_stream(path):
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return
        target = resolve(path)
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "expected a file, found a folder")
        _try_in(target.parent, target.name)


def check_folder(path: str | os.PathLike[str]) -> None:
    """Raise the OSError that writing files in the folder `path` would meet.

    A folder that is not there can be made where the nearest one above it can be written to.
    """
    with _naming(path):
        target = resolve(path)
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "expected a folder, found a file")
        there = next(folder for folder in (target, *target.parents) if _exists(folder))
        _try_in(there, target.name)


def resolve(path: str | os.PathLike[str]) -> Path:
    """Return the path of what `path` names or, as a link, leads to, whether that exists or not."""
    target = Path(os.path.realpath(path))
    _exists(target)  # a loop of links, or a name that is too long
    return target


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Return whether `path` names what takes bytes as they come and must not be replaced.

    That is a device, a pipe, or whatever this process has open as its standard output or error.
    """
    try:
        facts = os.stat(path)
    except OSError:
        return False
    if stat.S_ISREG(facts.st_mode):
        return _standard(facts) is not None
    return not stat.S_ISDIR(facts.st_mode)


def is_standard_output(path: str | os.PathLike[str]) -> bool:
    """Return whether what is written to `path` arrives at the standard output."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(1))
    except OSError:
        return False


def write_durably(path: Path, payload: bytes | memoryview) -> None:
    """Write a file under a name that nobody reads yet, and flush it to disk."""
    with _naming(path), open(path, "wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Make new names durable; a system that cannot open directories needs no such thing."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Make errors of the system name `path`, not the file beside it or none."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def _temporary_name(name: str) -> str:
    """Return a name that no other writer uses, and short enough for every file system."""
    return f".{name[:40]}.{os.getpid()}.{threading.get_ident()}.tmp"


def _try_in(folder: Path, name: str) -> None:
    beside = folder / _temporary_name(name)
    try:
        beside.touch()
    finally:
        beside.unlink(missing_ok=True)


def _exists(path: Path) -> bool:
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    return True


def _standard(facts: os.stat_result) -> int | None:
    """Return the descriptor, of standard output and error, that a file is open as."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # closed
            if os.path.samestat(facts, os.fstat(descriptor)):
                return descriptor
    return None


def _open_stream(path: str | os.PathLike[str]) -> BinaryIO:
    # The standard streams by their descriptors: opening a file of that name would begin it anew.
    descriptor = _standard(os.stat(path))
    return open(path if descriptor is None else os.dup(descriptor), "wb")
