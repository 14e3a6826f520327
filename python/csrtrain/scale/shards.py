"""The manifest of a sharded index: the shards that it consists of at the moment.

A generation of the index is a file that never changes, such as shards-000007.json. A change
creates the file of the next number, atomically and only if it does not exist, so if two processes
change the index at once, one has to retry. shards.json has the number from which to look for the
newest. A search uses one generation throughout, and readers turn to the next as a whole.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from csrkern import InvertedIndex
from csrkern.identity import check_same_model
from csrkern.storage import crc32c
from csrtrain.scale.folder import Folder, read_record, record_bytes, write_record

NEWEST, STAGED = "shards.json", "staged.json"
ADDED = "added"  # begins the source of shards from add_shard
KIND, GENERATION_KIND, VERSION = "csrkern-shards", "csrkern-generation", 1
_PLAIN_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Shard:
    """One index of a sharded one.

    Attributes:
        name: of its folder; no other shard ever gets it.
        codes: how many.
        first_id, last_id: the range of their ids.
        source: origin of the codes, for a build that goes on.
        files: bytes and checksum of each file, by name.
    """

    name: str
    codes: int
    first_id: int
    last_id: int
    source: str
    files: Mapping[str, tuple[int, int]]

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(size for size, _ in self.files.values())


@dataclass(frozen=True)
class Generation:
    """The shards that make up the index, and what they share.

    Attributes:
        number: 0 is the empty one.
        form: dim, metric, dtype, largest (value that squares can hold) and quantizer (fingerprint
            and dim of that of the fine codes, None without), the same for all shards; fingerprint
            of the model of the first, None if it is not known.
        shards: in the order in which they came, so that old ones keep their positions.
    """

    number: int = 0
    form: Mapping[str, Any] = field(default_factory=dict)
    shards: tuple[Shard, ...] = ()

    def __len__(self) -> int:
        return sum(shard.codes for shard in self.shards)

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the model that made the codes; None: not known."""
        return self.form.get("fingerprint")

    def with_shard(
        self, shard: Shard, form: Mapping[str, Any], *, any_model: bool = False
    ) -> Generation:
        """Return the next generation, with one more shard.

        Raises:
            ValueError: if the shard has another form, ids would repeat, or (ModelMismatchError)
                another model made its codes, unless any_model.
        """
        shared = {*form, *self.form} - {"fingerprint"}
        differing = sorted(name for name in shared if form.get(name) != self.form.get(name))
        if self.shards and differing:
            raise ValueError(
                f"shard {shard.name}: expected {_list(self.form, differing)} as the others, "
                f"got {_list(form, differing)}"
            )
        check_same_model(
            f"shard {shard.name}",
            form.get("fingerprint"),
            self.fingerprint,
            any_model=any_model,
            holder="the other shards",
        )
        for other in self.shards:
            if shard.first_id <= other.last_id and other.first_id <= shard.last_id:
                raise ValueError(
                    f"shard {shard.name}: its ids {shard.first_id} to {shard.last_id} meet those "
                    f"of shard {other.name}, {other.first_id} to {other.last_id}"
                )
        common = self.form if self.shards else form
        return Generation(self.number + 1, dict(common), (*self.shards, shard))

    def holds(self, source: str) -> bool:
        """Whether a shard was made of `source`."""
        return any(shard.source == source for shard in self.shards)


def newest(folder: Folder, known: Generation | None = None) -> Generation:
    """Return the newest generation, or the empty one; the search begins after `known`.

    Raises:
        ValueError: if a manifest is damaged.
        FileNotFoundError: if the generation that shards.json names is gone.
    """
    latest = known
    if latest is None:
        body = read_record(folder, NEWEST, KIND, VERSION)
        latest = Generation() if body is None else generation(folder, body["number"])
    while True:
        try:
            latest = generation(folder, latest.number + 1)
        except FileNotFoundError:
            return latest


def generation(folder: Folder, number: int) -> Generation:
    """Read a generation by its number.

    Raises:
        FileNotFoundError: if there is no such generation.
        ValueError: if its file is damaged.
    """
    name = _file_name(number)
    body = read_record(folder, name, GENERATION_KIND, VERSION)
    if body is None:
        raise FileNotFoundError(f"{folder.url} has no {name}")
    return _generation_of(body, f"{folder.url}/{name}")


def change(folder: Folder, to: Callable[[Generation], Generation]) -> Generation:
    """Publish a change of the newest generation; retry if another process published first.

    Args:
        to: returns the next generation, or the same if there is nothing to change.
    """
    while True:
        current = newest(folder)
        updated = to(current)
        if updated.number == current.number:
            return current
        body = {**_body(updated), "writer": uuid.uuid4().hex}  # unique
        try:
            folder.create(_file_name(updated.number), record_bytes(GENERATION_KIND, VERSION, body))
        except FileExistsError:
            continue
        write_record(folder, NEWEST, KIND, VERSION, {"number": updated.number})
        return updated


def read_staged(folder: Folder) -> Generation:
    """Read the shards that wait for the others: see `build_shards(replace=True)`."""
    body = read_record(folder, STAGED, GENERATION_KIND, VERSION)
    return Generation() if body is None else _generation_of(body, f"{folder.url}/{STAGED}")


def write_staged(folder: Folder, staged: Generation) -> None:
    """Write the shards that wait for the others."""
    write_record(folder, STAGED, GENERATION_KIND, VERSION, _body(staged))


def _body(index: Generation) -> dict[str, Any]:
    return {
        "number": index.number,
        "form": dict(index.form),
        "shards": [asdict(shard) for shard in index.shards],
    }


def _generation_of(body: Mapping[str, Any], where: str) -> Generation:
    try:
        shards = tuple(
            Shard(**{**shard, "files": {n: (f[0], f[1]) for n, f in shard["files"].items()}})
            for shard in body["shards"]
        )
        index = Generation(body["number"], body["form"], shards)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{where} is damaged: {error!r}") from error
    for shard in shards:
        for part in (shard.name, *shard.files):
            if _PLAIN_NAME.fullmatch(part) is None or part.startswith("."):
                raise ValueError(f"{where} is damaged: {part!r} is no file name")
    return index


def upload(folder: Folder, local: Path, source: str | None = None) -> tuple[Shard, dict[str, Any]]:
    """Copy an index on this machine into `folder` as a shard; return it and its form.

    It is not part of the index until a generation names it.

    Args:
        source: what it was made of; None: derived from the checksums of its files.
    """
    index = InvertedIndex.load(local)
    files = {}
    name = f"shard-{uuid.uuid4().hex[:12]}"
    for file in sorted(file for file in local.iterdir() if file.is_file()):
        files[file.name] = size_and_checksum(file)
        folder.upload(file, f"{name}/{file.name}")
    ids = index.ids
    first, last = (int(ids.min()), int(ids.max())) if len(ids) else (0, -1)
    if source is None:
        source = f"{ADDED} {crc32c(json.dumps(files).encode()):08x}"
    form: dict[str, Any] = {"dim": index.dim, "metric": index.metric, "dtype": index.dtype}
    form |= {"largest": index.stats()["largest"], "fingerprint": index.fingerprint}
    quantizer = index.quantizer
    if quantizer is not None:
        form["quantizer"] = {"fingerprint": quantizer.fingerprint, "dim": quantizer.dim}
    return Shard(name, len(index), first, last, source, files), form


def open_shard(folder: Folder, shard: Shard, cache: Path) -> InvertedIndex:
    """Return the shard's index, mapped; copy it to `cache` first if another machine has it.

    Only one thread at a time may open a shard.

    Raises:
        OSError: if a file is missing or cannot be read.
        ValueError: if a file differs from the manifest's sizes and checksums.
    """
    if (root := folder.local) is not None:
        for name, (size, _) in shard.files.items():  # the index checks the checksums itself
            actual = (root / shard.name / name).stat().st_size
            if actual != size:
                raise ValueError(
                    f"{root / shard.name / name} is damaged: expected {size} bytes, found {actual}"
                )
        return InvertedIndex.load(root / shard.name)
    cached = cache / shard.name
    cached.mkdir(parents=True, exist_ok=True)
    for name, (size, checksum) in shard.files.items():
        file = cached / name
        if file.is_file() and file.stat().st_size == size:
            continue
        partial = file.with_name(f".{name}.tmp")
        folder.fetch(f"{shard.name}/{name}", partial)
        if size_and_checksum(partial) != (size, checksum):
            partial.unlink()
            raise ValueError(f"{folder.url}/{shard.name}/{name} is damaged: its checksum is wrong")
        partial.rename(file)
    return InvertedIndex.load(cached)


def size_and_checksum(file: Path) -> tuple[int, int]:
    """Return bytes and CRC-32C of a file, which is mapped: shards may not fit into memory."""
    size = file.stat().st_size
    data = np.memmap(file, np.uint8, mode="r") if size else np.zeros(0, np.uint8)
    return size, crc32c(data)


def _file_name(number: int) -> str:
    return f"shards-{int(number):06d}.json"


def _list(form: Mapping[str, Any], names: list[str]) -> str:
    return ", ".join(f"{name}={form.get(name)!r}" for name in names)
