"""The index on disk: a directory of raw arrays and a header; see docs/index-format.md."""

from __future__ import annotations

import json
import os
import re
import secrets
from pathlib import Path
from typing import Any

import numpy as np

from csrkern import _C

FORMAT = "csrkern-index"
VERSION = 1
HEADER = "index.json"
# "checksums" covers those checked later, list by list; the others have one in the header.
DTYPES = {
    "terms": "<i4",
    "offsets": "<u8",
    "checksums": "<u4",
    "postings": "|u1",
    "ids": "<i8",
    "maxima": "|u1",
    "scales": "<f4",
}
OPTIONAL = {"ids", "maxima", "scales"}
CHECKED_LATER = {"postings", "maxima", "scales"}
_FILE_NAME = re.compile(rf"({'|'.join(DTYPES)})-[0-9a-f]{{16}}\.bin")
_LARGEST_HEADER = 1 << 20


def write(path: str | os.PathLike[str], facts: dict[str, Any], arrays: dict[str, Any]) -> None:
    """Writes arrays under new names, then renames a header that names them into place.

    So at any instant the directory holds one whole index: the old one until the header is
    renamed, the new one from then on. Files that the header does not name are then removed.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: expected a directory to save the index in, found a file")
    folder.mkdir(parents=True, exist_ok=True)
    generation = secrets.token_hex(8)
    written = {}
    for name, array in arrays.items():
        file_name = f"{name}-{generation}.bin"
        _write_file(folder / file_name, memoryview(array).cast("B") if array.size else b"")
        written[name] = {"file": file_name, "size": array.size}
        if name not in CHECKED_LATER:
            written[name]["crc32c"] = _C.crc32c(array)
    body = {**facts, "arrays": written}
    header = {
        "format": FORMAT,
        "version": VERSION,
        "crc32c": _C.crc32c(_canonical(body)),
        "index": body,
    }
    beside = folder / f".{HEADER}-{generation}"
    _write_file(beside, json.dumps(header, indent=1).encode())
    _flush_folder(folder)
    os.replace(beside, folder / HEADER)
    _flush_folder(folder)
    kept = {entry["file"] for entry in written.values()}
    for file in folder.iterdir():
        ours = _FILE_NAME.fullmatch(file.name) or file.name.startswith(f".{HEADER}-")
        if ours and file.name not in kept:
            file.unlink(missing_ok=True)


def read(path: str | os.PathLike[str], mmap: bool) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header's facts and the arrays, all but the postings checked against checksums.

    Raises:
        FileNotFoundError: if there is no index at `path`.
        ValueError: if its files are not a whole, unaltered index of this version.
    """
    folder = Path(path)
    facts = _read_header(folder)
    while True:
        try:
            return facts, _read_arrays(folder, facts, mmap)
        except FileNotFoundError as error:
            # A save that ended between our two reads has replaced the files: read what it wrote.
            newer = _read_header(folder)
            if newer == facts:
                raise ValueError(f"{folder} is damaged: no file {error.filename}") from error
            facts = newer


def _read_header(folder: Path) -> dict[str, Any]:
    file = folder / HEADER
    if not file.is_file():
        raise FileNotFoundError(f"no index at {folder}: it has no {HEADER}")
    damaged = ValueError(f"{file} is damaged: it is not the header of an index")
    with open(file, "rb") as stream:
        text = stream.read(_LARGEST_HEADER + 1)
    try:
        header = json.loads(text) if len(text) <= _LARGEST_HEADER else None
    except (ValueError, RecursionError) as error:
        raise damaged from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise damaged
    if header.get("version") != VERSION:
        raise ValueError(
            f"{file} has format version {header.get('version')!r}; "
            f"this release reads version {VERSION}"
        )
    body = header.get("index")
    if not isinstance(body, dict) or header.get("crc32c") != _C.crc32c(_canonical(body)):
        raise damaged
    if not _sane(body):
        raise damaged
    return body


def _sane(body: dict[str, Any]) -> bool:
    """Types and ranges of the header, so that what follows need not ask."""

    def count(value: Any, limit: int) -> bool:
        return type(value) is int and 0 <= value <= limit

    arrays = body.get("arrays")
    if not isinstance(arrays, dict) or not set(DTYPES) - OPTIONAL <= set(arrays) <= set(DTYPES):
        return False
    for name, entry in arrays.items():
        if not isinstance(entry, dict) or not count(entry.get("size"), 1 << 48):
            return False
        match = _FILE_NAME.fullmatch(str(entry.get("file")))
        if match is None or match[1] != name:
            return False
    return (
        count(body.get("documents"), 1 << 40)
        and count(body.get("dim"), 2**31 - 1)
        and count(body.get("k"), 2**31 - 1)
        and count(body.get("window"), 65_536)
        and count(body.get("block"), 65_536)
        and body.get("metric") in ("ip", "cosine")
        and body.get("values") in ("float16", "float32")
    )


def _read_arrays(folder: Path, facts: dict[str, Any], mmap: bool) -> dict[str, np.ndarray]:
    arrays = {}
    for name, entry in facts["arrays"].items():
        file, dtype, size = folder / entry["file"], np.dtype(DTYPES[name]), entry["size"]
        with open(file, "rb") as stream:
            found = os.fstat(stream.fileno()).st_size
            if found != size * dtype.itemsize:
                raise ValueError(
                    f"{file} is damaged: expected {size * dtype.itemsize} bytes, found {found}"
                )
            if mmap and size:
                array: np.ndarray = np.memmap(stream, dtype=dtype, mode="r", shape=(size,))
            else:
                array = _C.empty_pages(found).view(dtype)
                if stream.readinto(array.data.cast("B")) != found:
                    raise ValueError(f"{file} is damaged: it ended early")
        if name not in CHECKED_LATER and _C.crc32c(array) != entry.get("crc32c"):
            raise ValueError(f"{file} is damaged: its checksum is wrong")
        arrays[name] = array
    return arrays


def _canonical(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def _write_file(file: Path, data: Any) -> None:
    with open(file, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _flush_folder(folder: Path) -> None:
    """Makes new names durable; a system that cannot open directories needs no such thing."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
