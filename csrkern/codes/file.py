"""The file of SparseCodes, made whole, read whole or in pieces; imports no PyTorch.

A safetensors file of values and indices, both [n, k], whose metadata say what it is.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from csrkern.identity import check_fingerprint

KEY, FORMAT = "csrkern", "csrkern-codes"
VERSION = 1  # of files of codes and of packed codes
VALUES = {"F32": "<f4", "F16": "<f2"}
INDICES = {"U16": "<u2", "I32": "<i4"}
PACKED = {"U8": "u1"}


class Stored(NamedTuple):
    """What a file of codes holds, its arrays mapped; the fingerprint as of SparseCodes."""

    values: np.ndarray
    indices: np.ndarray
    dim: int
    fingerprint: str | None


def pack(
    form: str,
    tensors: dict[str, np.ndarray],
    facts: dict[str, Any],
    fingerprint: str | None,
    notes: dict[str, str] | None = None,
) -> bytes:
    """Return a file of tensors, of `facts` that say what they are, and of notes."""
    from safetensors.numpy import save

    header = {"format": form, "version": VERSION, **facts}
    if check_fingerprint("fingerprint", fingerprint) is not None:
        header["fingerprint"] = fingerprint
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    return bytes(save(tensors, metadata={**(notes or {}), KEY: json.dumps(header)}))


def notes(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the notes in a file that `read` accepts."""
    from safetensors import safe_open

    with safe_open(os.fspath(path), framework="np") as file:
        metadata: dict[str, str] = file.metadata() or {}
    return {name: text for name, text in metadata.items() if name != KEY}


def read(path: str | os.PathLike[str]) -> Stored:
    """Values and indices [n, k] as they are stored, mapped from the file, dim and fingerprint.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, of another version or no code file.
    """
    name = os.fspath(path)
    header = read_header(name, "code file", FORMAT, {"values", "indices"})
    entries, begin = entries_of(name)
    values, indices, dim = entries["values"], entries["indices"], header.get("dim")
    if values["dtype"] not in VALUES or indices["dtype"] not in INDICES or type(dim) is not int:
        raise ValueError(
            f"{name} is damaged: expected float values, uint16 or int32 indices and an "
            f"integer dim, got {values['dtype']}, {indices['dtype']} and {dim!r}"
        )
    if len(values["shape"]) != 2 or values["shape"] != indices["shape"]:
        raise ValueError(
            f"{name} is damaged: expected values and indices of one shape [n, k], "
            f"got {values['shape']} and {indices['shape']}"
        )
    try:
        fingerprint = check_fingerprint("fingerprint", header.get("fingerprint"))
    except ValueError as error:
        raise ValueError(f"{name} is damaged: {error}") from error
    arrays = map_array(name, values, begin), map_array(name, indices, begin)
    return Stored(*arrays, dim, fingerprint)


def read_header(name: str, what: str, form: str, tensors: set[str]) -> dict[str, Any]:
    """Return the metadata of a file, checked to be whole and to hold these tensors.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, of another version or no `what`.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(name).is_file():
        raise FileNotFoundError(f"no {what} at {name}")
    try:
        with safe_open(name, framework="np") as file:  # checks sizes and offsets
            header = json.loads((file.metadata() or {}).get(KEY, "{}"))
            missing = tensors - set(file.keys())
    except (SafetensorError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{name} is damaged: {error} (or not a csrkern {what})") from error
    if not isinstance(header, dict) or header.get("format") != form:
        raise ValueError(f"{name} is not a csrkern {what}")
    if header.get("version") != VERSION:
        raise ValueError(
            f"{name} has format version {header.get('version')}; "
            f"this release reads version {VERSION}"
        )
    if missing:
        raise ValueError(f"{name} is damaged: it lacks {' and '.join(sorted(missing))}")
    return header


def entries_of(name: str) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file, and where its data begin."""
    with open(name, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), 8 + length


def map_array(name: str, entry: dict[str, Any], begin: int) -> np.ndarray:
    """Return a tensor of `entries_of`, mapped from its file."""
    dtype, shape = np.dtype((VALUES | INDICES | PACKED)[entry["dtype"]]), tuple(entry["shape"])
    if 0 in shape:  # which no system maps
        return np.zeros(shape, dtype)
    offset = begin + entry["data_offsets"][0]
    return np.memmap(name, dtype=dtype, mode="r", offset=offset, shape=shape)
