"""A folder on any file system that fsspec knows, with atomic writes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from csrkern.storage import crc32c, flush_folder, write_atomically, write_durably

TRIES, FIRST_PAUSE = 6, 0.1  # about 3 seconds in all, on top of the file system's own retries
_FINAL = (
    *(FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError),
    *(ValueError, TypeError, NotImplementedError, ImportError),
)
T = TypeVar("T")

Place = str | bytes | os.PathLike[str]
"""A path on this machine, or a URL that fsspec knows."""


def patiently(call: Callable[[], T]) -> T:
    """Return the result of `call`, repeated a few times after errors of a network or a server."""
    for turn in range(TRIES):
        try:
            return call()
        except _FINAL:
            raise
        except Exception:
            if turn == TRIES - 1:
                raise
            time.sleep(FIRST_PAUSE * 2**turn * random.uniform(0.5, 1))
    raise AssertionError


def import_fsspec() -> Any:
    """Return fsspec, or raise an ImportError that says how to install it."""
    try:
        import fsspec
    except ImportError as error:
        raise ImportError("this needs fsspec: pip install 'csrkern[ray]'") from error
    return fsspec


def file_system(location: Place, options: Mapping[str, Any] | None = None) -> tuple[Any, str]:
    """Return the fsspec file system of a URL or a path, and the path on it.

    A path on this machine, also after "file://", is taken literally: "::" and "*" are characters
    of its name.

    Raises:
        ImportError: without fsspec.
    """
    fsspec = import_fsspec()
    from fsspec.implementations.local import LocalFileSystem

    url = os.fsdecode(location)
    if url.startswith("file://") or "://" not in url:
        return LocalFileSystem(), os.path.abspath(url.removeprefix("file://"))
    system, path = fsspec.core.url_to_fs(url, **(options or {}))
    return system, path.rstrip("/")


@dataclass(frozen=True)
class Folder:
    """A folder by its URL, such as "/data/codes" or "s3://bucket/codes".

    It travels between processes as its URL; every process opens its own file system.

    Attributes:
        url: of the folder.
        options: for the file system, as fsspec takes them (keys, endpoints).
    """

    url: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(location: Place, options: Mapping[str, Any] | None = None) -> Folder:
        """Make one from a URL or a path, which becomes absolute: workers run in other folders.

        Raises:
            ImportError: without fsspec.
        """
        import_fsspec()
        url = os.fsdecode(location)
        return Folder(url if "://" in url else os.path.abspath(url), dict(options or {}))

    def _open(self) -> tuple[Any, str]:
        return file_system(self.url, self.options)

    @property
    def local(self) -> Path | None:
        """The path, if the folder is on this machine; else None."""
        system, path = self._open()
        from fsspec.implementations.local import LocalFileSystem

        return Path(path) if isinstance(system, LocalFileSystem) else None

    def check_writable(self) -> None:
        """Write a small file and remove it, so that hours of work do not end in an error.

        Raises:
            NotADirectoryError: if the folder is a file.
            OSError: if nothing can be written there.
        """
        name = f".csrkern-probe-{uuid.uuid4().hex}"
        if (local := self.local) is not None:
            if local.exists() and not local.is_dir():
                raise NotADirectoryError(f"{local} is a file; expected a folder, or a name for one")
            local.mkdir(parents=True, exist_ok=True)
            write_durably(local / name, b"csrkern")
            (local / name).unlink()
            return
        system, path = self._open()
        patiently(lambda: system.pipe_file(f"{path}/{name}", b"csrkern"))
        with contextlib.suppress(PermissionError):  # may write but not remove
            patiently(lambda: system.rm_file(f"{path}/{name}"))

    def read(self, name: str) -> bytes:
        """Return the bytes of a file.

        Raises:
            FileNotFoundError: if it is not there.
        """
        system, path = self._open()
        return patiently(lambda: bytes(system.cat_file(f"{path}/{name}")))

    def write(self, name: str, payload: bytes) -> None:
        """Write a file; readers see either the old bytes or the new ones."""
        if (local := self.local) is not None:
            local.mkdir(parents=True, exist_ok=True)
            write_atomically(local / name, payload)
            flush_folder(local)
        else:
            system, path = self._open()
            # Object stores put whole objects.
            patiently(lambda: system.pipe_file(f"{path}/{name}", payload))

    def create(self, name: str, payload: bytes) -> None:
        """Write a file that does not exist yet; of several concurrent writers one succeeds.

        The payload must be unique: it identifies the writer if a server's answer is lost.

        Raises:
            FileExistsError: if it is there.
        """
        if (local := self.local) is not None:
            local.mkdir(parents=True, exist_ok=True)
            partial = local / f".{name}.{os.getpid()}.{threading.get_ident()}.tmp"
            try:
                write_durably(partial, payload)
                os.link(partial, local / name)
            finally:
                partial.unlink(missing_ok=True)
            flush_folder(local)
            return
        system, path = self._open()
        try:
            patiently(lambda: system.pipe_file(f"{path}/{name}", payload, mode="create"))
        except Exception:  # fsspec does not know every server's "it exists"
            try:
                stored = self.read(name)
            except FileNotFoundError:
                stored = None
            if stored is None:
                raise
            if stored != payload:
                raise FileExistsError(f"{self.url}/{name}") from None

    def upload(self, file: Path, name: str) -> None:
        """Copy a file of this machine; not atomic, so nobody may read the name meanwhile."""
        if (local := self.local) is None:
            system, path = self._open()
            patiently(lambda: system.put_file(str(file), f"{path}/{name}"))
            return
        target = local / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "rb") as source, open(target, "wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
            copy.flush()
            os.fsync(copy.fileno())
        flush_folder(target.parent)

    def fetch(self, name: str, file: Path) -> None:
        """Copy a file to this machine."""
        system, path = self._open()
        patiently(lambda: system.get_file(f"{path}/{name}", str(file)))

    def remove_unfinished(self, prefix: str) -> None:
        """Remove unfinished files, left by killed writers, whose names begin with `prefix`."""
        if (local := self.local) is not None:  # object stores put whole objects
            for file in local.iterdir():
                if file.name.startswith(f".{prefix}") and file.suffix == ".tmp":
                    file.unlink(missing_ok=True)

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the bytes of the files directly in the folder that begin with `prefix`."""
        system, path = self._open()

        def list_files() -> list[dict[str, Any]]:
            system.invalidate_cache()
            try:
                return list(system.ls(path, detail=True))
            except FileNotFoundError:
                return []

        entries = {facts["name"].rsplit("/", 1)[-1]: facts for facts in patiently(list_files)}
        return {name: int(f["size"] or 0) for name, f in entries.items() if name.startswith(prefix)}


def read_record(folder: Folder, name: str, kind: str, version: int) -> dict[str, Any] | None:
    """Return the record that `write_record` wrote, or None if there is no such file.

    Raises:
        ValueError: if it is damaged, of another kind or of another version.
    """
    try:
        text = folder.read(name)
    except FileNotFoundError:
        return None
    where = f"{folder.url}/{name}"
    try:
        record = json.loads(text)
        body = record["body"]
        actual_kind, number, checksum = record["format"], record["version"], record["crc32c"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{where} is damaged: it is not a {kind} file") from error
    if actual_kind != kind:
        raise ValueError(f"{where} is a {actual_kind} file; expected {kind}")
    if number != version:
        raise ValueError(f"{where} has version {number}; this release reads version {version}")
    if checksum != _checksum(body) or not isinstance(body, dict):
        raise ValueError(f"{where} is damaged: its checksum is wrong")
    return body


def write_record(
    folder: Folder, name: str, kind: str, version: int, body: Mapping[str, Any]
) -> None:
    """Write a small JSON file with its kind, version and a checksum, atomically."""
    folder.write(name, record_bytes(kind, version, body))


def record_bytes(kind: str, version: int, body: Mapping[str, Any]) -> bytes:
    """Return the bytes that `write_record` writes."""
    record = {"format": kind, "version": version, "crc32c": _checksum(body), "body": body}
    return json.dumps(record, indent=1).encode()


def _checksum(body: Any) -> int:
    return crc32c(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())
