"""A folder on any file system that fsspec knows, with writes that are whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from csrkern import _C
from csrkern.storage import write_atomically


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
    def of(place: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> Folder:
        """From a URL or a path, which is made absolute: workers run in other folders."""
        url = os.fspath(place)
        return Folder(url if "://" in url else os.path.abspath(url), dict(options or {}))

    def _open(self) -> tuple[Any, str]:
        try:
            import fsspec
        except ImportError as error:
            raise ImportError("this needs fsspec: pip install 'csrkern[ray]'") from error
        system, path = fsspec.core.url_to_fs(self.url, **self.options)
        return system, path.rstrip("/")

    @property
    def local(self) -> Path | None:
        """The path, where the folder is one of this machine's."""
        from fsspec.implementations.local import LocalFileSystem

        system, path = self._open()
        return Path(path) if isinstance(system, LocalFileSystem) else None

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            FileNotFoundError: if it is not there.
        """
        system, path = self._open()
        return bytes(system.cat_file(f"{path}/{name}"))

    def write(self, name: str, payload: bytes) -> None:
        """Writes a file; whoever reads sees the old bytes or the new ones."""
        if (here := self.local) is not None:
            target = here / name
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target, payload)
        else:
            system, path = self._open()
            system.pipe_file(f"{path}/{name}", payload)  # object stores put whole objects

    def upload(self, file: Path, name: str) -> None:
        """Copies a file of this machine; not for names that somebody may read meanwhile."""
        system, path = self._open()
        if self.local is not None:
            (Path(path) / name).parent.mkdir(parents=True, exist_ok=True)
        system.put_file(str(file), f"{path}/{name}")

    def fetch(self, name: str, file: Path) -> None:
        """Copies a file to this machine."""
        system, path = self._open()
        system.get_file(f"{path}/{name}", str(file))

    def names(self, prefix: str) -> list[str]:
        """Names of the files directly in the folder that begin with `prefix`, sorted."""
        system, path = self._open()
        system.invalidate_cache()
        found = (entry.rsplit("/", 1)[-1] for entry in system.glob(f"{path}/{prefix}*"))
        return sorted(name for name in found if name.startswith(prefix))

    def size(self, name: str) -> int | None:
        """Bytes of a file, None if it is not there."""
        system, path = self._open()
        system.invalidate_cache()
        try:
            return int(system.size(f"{path}/{name}"))
        except FileNotFoundError:
            return None


def read_record(folder: Folder, name: str, kind: str, version: int) -> dict[str, Any] | None:
    """What `write_record` wrote, None if there is no such file.

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
        found, number, checksum = record["format"], record["version"], record["crc32c"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{where} is damaged: it is not a {kind} file") from error
    if found != kind:
        raise ValueError(f"{where} is a {found} file; expected {kind}")
    if number != version:
        raise ValueError(f"{where} has version {number}; this release reads version {version}")
    if checksum != _checksum(body) or not isinstance(body, dict):
        raise ValueError(f"{where} is damaged: its checksum is wrong")
    return body


def write_record(
    folder: Folder, name: str, kind: str, version: int, body: Mapping[str, Any]
) -> None:
    """Writes a small JSON file that says what it is and carries a checksum, atomically."""
    record = {"format": kind, "version": version, "crc32c": _checksum(body), "body": body}
    folder.write(name, json.dumps(record, indent=1).encode())


def _checksum(body: Any) -> int:
    return int(_C.crc32c(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()))
