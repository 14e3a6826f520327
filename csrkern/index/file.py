"""The index on disk: a directory of raw arrays and a header; see docs/index-format.md."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from csrkern import _C
from csrkern.identity import check_fingerprint
from csrkern.index.fine import WORDS, FineQuantizer, restore_quantizer
from csrkern.index.segment import (
    LEAST_EXPONENT,
    METRICS,
    MOST_EXPONENT,
    SIZES,
    SQUARES,
    USUAL_WINDOW,
    VALUE_DTYPES,
    Form,
    Segment,
    arrays_of,
    restore_segment,
)
from csrkern.locks import ForkLock
from csrkern.storage import crc32c, flush_folder, write_atomically, write_durably

FORMAT = "csrkern-index"
# Of indexes with float values, with uint8 values, with fine codes, with a projection, with uint4
# values, and with a graph or plans for one; the lower, the more releases read them.
VERSIONS = (2, 3, 4, 5, 6, 7)
FLOATS_VERSION, BYTES_VERSION, FINE_VERSION, PROJECTION_VERSION = VERSIONS[:4]
GROUPS_VERSION, GRAPH_VERSION = VERSIONS[4:]
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
    "norms": "<f4",
    "fine": "|u1",
    "neighbors": "<u4",
    "alive": "<u8",
}
OPTIONAL = {"ids", "maxima", "scales", "norms", "fine", "neighbors", "alive"}
CHECKED_LATER = {"postings", "maxima", "scales"}
PROJECTION = {"directions", "center"}
QUANTIZER_DTYPES = dict.fromkeys(("codebooks", "mean", "lengths", *sorted(PROJECTION)), "<f4")
QUANTIZER_OPTIONAL = {"lengths", *PROJECTION}
# Of the plan of a fast search.
PLAN_SHARES = {"recall", "kept", "bound_share", "found", "at_least"}
PLAN_FLAGS = {"own", "strong"}
PLAN_COUNTS = {
    **{"codes": 2**63, "queries": 2**31, "factor": 1024, "width": 1024},
    **dict.fromkeys(("fewest", "most"), 2**62),
}
PLAN_ADDED = {"strong", "width", "least"}  # the first plans lacked them
ALL_DTYPES = {**DTYPES, **QUANTIZER_DTYPES}
_FILE_NAME = re.compile(rf"({'|'.join(ALL_DTYPES)})-[0-9a-f]{{16}}\.bin")
_LARGEST_HEADER = 1 << 24
# Smaller arrays are read, not mapped: a process may have 65,530 mappings.
_LEAST_MAPPED = 1 << 16

# Held by whoever writes to a directory, from taking the state of its index on: an older state
# must not replace a newer one, nor one thread remove the files that another is about to name.
SAVING = ForkLock()


def write(path: str | os.PathLike[str], facts: dict[str, Any], segments: Sequence[Segment]) -> None:
    """Write segments under new names, then rename a header that names them into place.

    So at any instant the directory holds one whole index: the old one until the header is
    renamed, the new one from then on. Files that the header does not name are then removed.
    Lists that are in the directory already are not written again. After a failure the directory
    holds what it held before. The caller holds `SAVING`.
    """
    folder = Path(os.fsdecode(path))
    with unfinished(path) as written:
        entries = [_write_segment(folder, segment, written) for segment in segments]
        body = {**facts, "segments": entries}
        if quantizer := facts.get("quantizer"):
            body["quantizer"] = _write_quantizer(folder, quantizer, written)
        header = {
            "format": FORMAT,
            "version": _version(body),
            "crc32c": crc32c(_canonical(body)),
            "index": body,
        }
        text = json.dumps(header, indent=1).encode()
        if len(text) > _LARGEST_HEADER:
            raise ValueError(
                f"{folder}: the header of an index cannot name {len(entries)} segments; merge them "
                "with compact(), or stream in larger chunks"
            )
        flush_folder(folder)
        write_atomically(folder / HEADER, text)
        flush_folder(folder)
    kept = _files_of(body)
    for file in folder.iterdir():
        ours = _FILE_NAME.fullmatch(file.name) or file.name.startswith(f".{HEADER}")
        if ours and file.name not in kept:
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def unfinished(path: str | os.PathLike[str]) -> Iterator[list[str]]:
    """Make a directory and give a list for the names of the files that are written to it.

    After a failure these are removed, unless the directory's header names them, and so is the
    directory if it was made here.

    Raises:
        ValueError: if `path` names no directory.
    """
    folder = Path(os.fsdecode(path))
    if not os.fspath(path):
        raise ValueError("path: expected a directory to save the index in, got an empty string")
    made = not folder.exists()
    if not made and not folder.is_dir():
        raise ValueError(f"{folder}: expected a directory to save the index in, found a file")
    folder.mkdir(parents=True, exist_ok=True)
    written: list[str] = []
    try:
        yield written
    except BaseException:
        with contextlib.suppress(OSError):
            try:
                kept = _files_of(_read_header(folder))
            except (FileNotFoundError, ValueError):
                kept = set()
            for name in set(written) - kept:
                (folder / name).unlink(missing_ok=True)
            if made:
                folder.rmdir()
        raise


def move_to(
    path: str | os.PathLike[str], form: Form, dim: int, segment: Segment, written: list[str]
) -> Segment:
    """Write a segment's arrays to a directory, not yet its index, and map them from there.

    Appends the names of the files to `written`. The caller holds `SAVING`.
    """
    folder = Path(os.fsdecode(path))
    entry = _write_segment(folder, segment, written)
    moved = restore_segment(form, dim, entry, _read_arrays(folder, entry, mmap=True))
    moved.files = segment.files
    return moved


def _files_of(body: dict[str, Any]) -> set[str]:
    holders = [*body["segments"], body.get("quantizer") or {"arrays": {}}]
    return {array["file"] for holder in holders for array in holder["arrays"].values()}


def _write_segment(folder: Path, segment: Segment, written: list[str]) -> dict[str, Any]:
    """Write a segment's arrays, as far as `folder` lacks them; return its entry in the header."""
    held = {n: array for n, array in arrays_of(segment).items() if n != "alive"}
    arrays = _write_once(folder, held, segment.files, written)
    if segment.alive is not None:
        arrays = arrays | _write_arrays(folder, {"alive": segment.alive}, written)
    return {**{name: getattr(segment, name) for name in SIZES}, "arrays": arrays}


def _write_quantizer(folder: Path, quantizer: FineQuantizer, written: list[str]) -> dict[str, Any]:
    """Write a quantizer's arrays as `_write_segment`; return its entry in the header."""
    arrays = _write_once(folder, quantizer.arrays, quantizer.files, written)
    return {"parts": quantizer.parts, "arrays": arrays}


def _write_once(
    folder: Path, held: dict[str, np.ndarray], files: dict[str, Any], written: list[str]
) -> dict[str, Any]:
    """Write arrays unless `files`, by folder, names those that hold them; return their entries."""
    here = os.path.realpath(folder)
    arrays: dict[str, Any] | None = files.get(here)
    if arrays is None or not all(_is_there(folder, name, e) for name, e in arrays.items()):
        arrays = files[here] = _write_arrays(folder, held, written)
    return arrays


def _write_arrays(
    folder: Path, arrays: dict[str, np.ndarray], written: list[str]
) -> dict[str, Any]:
    generation = os.urandom(8).hex()
    entries = {}
    for name, array in arrays.items():
        file_name = f"{name}-{generation}.bin"
        written.append(file_name)
        write_durably(folder / file_name, array.data.cast("B") if array.size else b"")
        entries[name] = {"file": file_name, "size": array.size}
        if name not in CHECKED_LATER:
            entries[name]["crc32c"] = crc32c(array)
    return entries


def _is_there(folder: Path, name: str, entry: dict[str, Any]) -> bool:
    try:
        n_bytes = os.stat(folder / entry["file"]).st_size
    except OSError:
        return False
    return bool(n_bytes == entry["size"] * np.dtype(ALL_DTYPES[name]).itemsize)


def read(
    path: str | os.PathLike[str], mmap: bool
) -> tuple[dict[str, Any], list[dict[str, np.ndarray]]]:
    """Return the header's facts and each segment's arrays, all but the postings checked.

    Raises:
        FileNotFoundError: if there is no index at `path`.
        ValueError: if its files are not a whole, unaltered index of this version.
    """
    folder = Path(os.fsdecode(path))
    facts = _read_header(folder)
    while True:
        try:
            arrays = [_read_arrays(folder, entry, mmap) for entry in facts["segments"]]
            if entry := facts.get("quantizer"):
                facts = {**facts, "quantizer": _read_quantizer(folder, entry)}
            return facts, arrays
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
    if header.get("version") not in VERSIONS:
        raise ValueError(
            f"{file} has format version {header.get('version')!r}; "
            f"this release reads versions {VERSIONS[0]} to {VERSIONS[-1]}"
        )
    body = header.get("index")
    if not isinstance(body, dict):
        raise damaged
    try:
        whole = header.get("crc32c") == crc32c(_canonical(body))
    except RecursionError as error:
        raise damaged from error
    if whole and body.get("values") == "uint16":
        raise ValueError(
            f"{file}: values in uint16 are not supported; build the index again, with "
            "dtype='uint8' or 'float16'"
        )
    if not whole or not _sane(body) or header["version"] != _version(body):
        raise damaged
    return body


def _version(body: dict[str, Any]) -> int:
    walked = any(plan.get("width") for plan in body.get("fast", ()))
    if walked or any("neighbors" in entry["arrays"] for entry in body["segments"]):
        return GRAPH_VERSION
    if body["values"] == "uint4":
        return GROUPS_VERSION
    if "quantizer" in body:
        is_plain = PROJECTION.isdisjoint(body["quantizer"]["arrays"])
        return FINE_VERSION if is_plain else PROJECTION_VERSION
    return BYTES_VERSION if body["values"] == "uint8" else FLOATS_VERSION


def _count(value: Any, limit: int) -> bool:
    return type(value) is int and 0 <= value <= limit


def _sane(body: dict[str, Any]) -> bool:
    """Types and ranges of the header, so that what follows need not ask."""
    segments, window = body.get("segments"), body.get("window", USUAL_WINDOW)
    return (
        isinstance(segments, list)
        and len(segments) > 0
        and all(isinstance(entry, dict) and _sane_segment(entry) for entry in segments)
        and _count(body.get("dim"), 2**31 - 1)
        and _count(body.get("k"), 2**31 - 1)
        and _count(body.get("next_id"), 2**63)
        and body.get("metric") in METRICS
        and body.get("values") in VALUE_DTYPES
        and _sane_exponent(body)
        and _count(window, 65_536)
        and window % 64 == 0 < window
        and any(body.get("cluster", "") is choice for choice in (None, True, False))
        and _sane_fingerprint(body.get("fingerprint"))
        and ("quantizer" not in body or _sane_quantizer(body["quantizer"]))
        and ("fast" not in body or _sane_plans(body["fast"]))
    )


def _sane_plans(plans: Any) -> bool:
    return isinstance(plans, list) and all(map(_sane_plan, plans))


def _sane_plan(plan: Any) -> bool:
    """Whether it has the fields of `csrkern.index.fast.Plan`."""
    fields = {*PLAN_SHARES, *PLAN_COUNTS, *PLAN_FLAGS, "least"}
    if not isinstance(plan, dict) or {*plan, *PLAN_ADDED} != fields:
        return False
    return (
        all(type(plan[name]) in (int, float) and 0 <= plan[name] <= 1 for name in PLAN_SHARES)
        and all(_count(plan.get(name, 0), most) for name, most in PLAN_COUNTS.items())
        and all(type(plan.get(name, False)) is bool for name in PLAN_FLAGS)
        and (not plan.get("width") or _walks_only(plan))
    )


def _walks_only(plan: dict[str, Any]) -> bool:
    least = plan.get("least", 0)
    return (
        plan["factor"] == 0
        and not plan.get("strong")
        and plan["bound_share"] == 1
        and type(least) in (int, float)
        and 0 <= least < math.inf
    )


def _sane_fingerprint(fingerprint: Any) -> bool:
    try:
        check_fingerprint("fingerprint", fingerprint)
    except ValueError:
        return False
    return True


def _sane_exponent(body: dict[str, Any]) -> bool:
    exponent = body.get("exponent")
    if body["values"] not in SQUARES or exponent is None:
        return exponent is None
    return type(exponent) is int and LEAST_EXPONENT <= exponent <= MOST_EXPONENT


def _sane_segment(entry: dict[str, Any]) -> bool:
    return (
        _sane_arrays(entry.get("arrays"), set(DTYPES), OPTIONAL)
        and _count(entry.get("documents"), 1 << 40)
        and _count(entry.get("window"), 65_536)
        and _count(entry.get("block"), 65_536)
    )


def _sane_quantizer(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and _sane_arrays(entry.get("arrays"), set(QUANTIZER_DTYPES), QUANTIZER_OPTIONAL)
        and _count(entry.get("parts"), 1 << 16)
        and entry["parts"] > 0
    )


def _sane_arrays(arrays: Any, names: set[str], optional: set[str]) -> bool:
    if not isinstance(arrays, dict) or not names - optional <= set(arrays) <= names:
        return False
    for name, array in arrays.items():
        if not isinstance(array, dict) or not _count(array.get("size"), 1 << 48):
            return False
        match = _FILE_NAME.fullmatch(str(array.get("file")))
        if match is None or match[1] != name:
            return False
    return True


def _read_arrays(folder: Path, entry: dict[str, Any], mmap: bool) -> dict[str, np.ndarray]:
    arrays = {}
    for name, stored in entry["arrays"].items():
        file, dtype, size = folder / stored["file"], np.dtype(ALL_DTYPES[name]), stored["size"]
        if not stat.S_ISREG(os.stat(file).st_mode):  # a pipe would keep us waiting
            raise ValueError(f"{file} is damaged: it is not a file")
        with open(file, "rb") as stream:
            n_bytes = os.fstat(stream.fileno()).st_size
            if n_bytes != size * dtype.itemsize:
                raise ValueError(
                    f"{file} is damaged: expected {size * dtype.itemsize} bytes, found {n_bytes}"
                )
            if mmap and n_bytes >= _LEAST_MAPPED:
                array: np.ndarray = _C.map_file(stream.fileno(), n_bytes).view(dtype)
            else:
                large = n_bytes >= _LEAST_MAPPED
                array = _C.empty_pages(n_bytes).view(dtype) if large else np.empty(size, dtype)
                if n_bytes and stream.readinto(array.data.cast("B")) != n_bytes:
                    raise ValueError(f"{file} is damaged: it ended early")
        if name not in CHECKED_LATER and crc32c(array) != stored.get("crc32c"):
            raise ValueError(f"{file} is damaged: its checksum is wrong")
        arrays[name] = array
    return arrays


def _read_quantizer(folder: Path, entry: dict[str, Any]) -> FineQuantizer:
    arrays = _read_arrays(folder, entry, mmap=False)
    try:
        shape = -1, WORDS, len(arrays["mean"]) // entry["parts"]
        arrays["codebooks"] = arrays["codebooks"].reshape(shape)
        if "directions" in arrays:
            arrays["directions"] = arrays["directions"].reshape(len(arrays["mean"]), -1)
        quantizer = restore_quantizer(entry["parts"], arrays)
    except ValueError as error:
        raise ValueError(f"{folder} is damaged: its quantizer: {error}") from error
    quantizer.files[os.path.realpath(folder)] = entry["arrays"]
    return quantizer


def _canonical(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
