"""Build shards from pieces of codes, by Ray tasks; a shard is an index in the usual file format."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from csrkern import InvertedIndex
from csrkern.arguments import check_int
from csrkern.codes import file as codes_file
from csrkern.identity import common_fingerprint
from csrkern.index.rows import Rows
from csrkern.index.segment import SQUARES, check_form
from csrkern.storage import crc32c
from csrtrain.scale.cluster import connected, import_ray
from csrtrain.scale.encode import RETRIES, read_codes_manifest
from csrtrain.scale.folder import Folder, Place
from csrtrain.scale.scratch import scratch_folder
from csrtrain.scale.shards import (
    ADDED,
    Generation,
    Shard,
    change,
    newest,
    read_staged,
    upload,
    write_staged,
)

SEGMENT_CODES = 1_000_000

Progress = Callable[[int, int], None]
"""Called with codes built and codes altogether."""


@dataclass(frozen=True)
class ShardPlan:
    """Pieces that follow each other and become one shard.

    Attributes:
        pieces: their entries in the manifest of codes.
    """

    pieces: Sequence[Mapping[str, Any]]

    @property
    def source(self) -> str:
        """Name of these codes: the numbers of the pieces and a checksum of their checksums."""
        sums = ",".join(str(piece["crc32c"]) for piece in self.pieces)
        first, last = self.pieces[0]["number"], self.pieces[-1]["number"]
        return f"pieces {first}-{last} {crc32c(sums.encode()):08x}"

    @property
    def rows(self) -> int:
        """Codes of the shard."""
        return sum(piece["rows"] for piece in self.pieces)


def build_shards(
    codes: Place,
    output: Place,
    *,
    shards: int = 8,
    metric: str = "cosine",
    dtype: str = "float16",
    largest: float | None = None,
    replace: bool = False,
    workers: int | None = None,
    address: str | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Generation:
    """Build a sharded index of codes that `encode_corpus` wrote, on a Ray cluster.

    Each shard is published as it is done. If a killed run is called again, it builds the shards
    that are not published yet; if a worker or a node dies, its shard is built again elsewhere.
    Ids are the row numbers of the corpus.

    Args:
        codes: folder of `encode_corpus`.
        output: folder or URL for the shards and their manifest.
        shards: how many; each gets whole pieces that follow each other, as evenly as that goes.
        metric, dtype, largest: of `InvertedIndex.build`; "uint8" and "uint4" need `largest`
            with metric "ip", as all shards must round alike.
        replace: publish all new shards at once when the last is built. They replace the shards
            in `output`, whatever those are; searches turn from the old to the new ones.
        workers: shards built at a time; None: as many as there are cores.
        address: of a Ray cluster; None: the one that RAY_ADDRESS names, or a local one.
        options: of the file systems, as fsspec takes them.
        progress: called as shards are done.

    Returns: the newest generation.

    Raises:
        FileNotFoundError: if `codes` has no manifest.
        OSError: if nothing can be written to `output`.
        ValueError: if pieces are damaged, or `output` holds other shards without `replace`.
        RuntimeError: if the worker on a shard died again and again.
        ImportError: without Ray.
    """
    import_ray()
    check_int("shards", shards, 1, 2**31)
    workers = None if workers is None else check_int("workers", workers, 1, 2**31)
    check_form(metric, dtype, None, None, largest)
    if dtype in SQUARES and metric == "ip" and largest is None:
        raise ValueError(f"largest: expected a number with dtype='{dtype}' and metric='ip'")
    source, out = Folder.of(codes, options), Folder.of(output, options)
    manifest = read_codes_manifest(source)
    out.check_writable()
    plans = list(shard_plans(manifest["pieces"], shards))
    form = {"dim": manifest["dim"], "metric": metric, "dtype": dtype, "largest": largest}
    form["fingerprint"] = manifest.get("fingerprint")
    built = newest(out)
    staging = replace and not _is_built_of(built, plans, form)
    if staging:
        built = read_staged(out)
        if _mismatch(built, plans, form):
            built = Generation()
    elif mismatch := _mismatch(built, plans, form):
        raise ValueError(
            f"{out.url} holds {mismatch}; choose another folder, add to this one with add_shard, "
            "or replace=True"
        )
    todo = [plan for plan in plans if not built.holds(plan.source)]
    total = sum(plan.rows for plan in plans)
    done = total - sum(plan.rows for plan in todo)
    progress = progress or (lambda done, total: None)
    progress(done, total)
    if todo:
        with (
            connected(address) as ray,
            contextlib.closing(_run(ray, source, out, todo, form, workers)) as running,
        ):
            for shard, shard_form in running:
                if staging:
                    built = built.with_shard(shard, shard_form)
                    write_staged(out, built)
                else:
                    built = _add(out, shard, shard_form)
                done += shard.codes
                progress(done, total)
    if staging:
        new = built
        built = change(out, lambda latest: Generation(latest.number + 1, new.form, new.shards))
        write_staged(out, Generation())
    return built


def add_shard(
    index: str | PathLike[str],
    output: Place,
    *,
    any_model: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Generation:
    """Add an index, saved on this machine, to a sharded one, as one change of its manifest.

    Any number of processes may add at once. Adding the same index again changes nothing.

    Args:
        index: folder of `InvertedIndex.save`; no shard has one of its ids.
        output: folder of the sharded index; created if missing.
        any_model: accept codes of another model than that of the shards.

    Raises:
        ValueError: if its dim, metric or dtype differ from the shards', the ranges of ids
            overlap, or (ModelMismatchError) another model made its codes.
    """
    out = Folder.of(output, options)
    out.check_writable()
    return _add(out, *upload(out, Path(index)), any_model=any_model)


def _add(
    out: Folder, shard: Shard, form: Mapping[str, Any], *, any_model: bool = False
) -> Generation:
    def add(current: Generation) -> Generation:
        return (
            current
            if current.holds(shard.source)
            else current.with_shard(shard, form, any_model=any_model)
        )

    return change(out, add)


def _is_built_of(built: Generation, plans: Sequence[ShardPlan], form: Mapping[str, Any]) -> bool:
    """Whether the index consists of exactly the shards that the plans make."""
    all_held = all(built.holds(plan.source) for plan in plans)
    return all_held and len(built.shards) == len(plans) and not _mismatch(built, plans, form)


def _mismatch(built: Generation, plans: Sequence[ShardPlan], form: Mapping[str, Any]) -> str:
    """Describe what in the index neither fits the plans nor was added; empty if nothing."""
    if not built.shards:
        return ""
    for name in ("dim", "metric", "dtype"):  # the largest value is rounded when it is stored
        if built.form[name] != form[name]:
            return f"shards with {name}={built.form[name]!r}"
    fingerprint = built.form.get("fingerprint")
    if None not in (fingerprint, form["fingerprint"]) and fingerprint != form["fingerprint"]:
        return f"codes of another model (fingerprint {fingerprint})"
    sources = {plan.source for plan in plans}
    for shard in built.shards:
        if shard.source not in sources and not shard.source.startswith(ADDED):
            return f"shards of other codes ({shard.source})"
    return ""


def shard_plans(pieces: Sequence[Mapping[str, Any]], shards: int) -> Iterator[ShardPlan]:
    """Cut pieces into at most `shards` runs of nearly equally many codes."""
    ends = np.cumsum([piece["rows"] for piece in pieces])
    targets = ends[-1] * np.arange(1, shards + 1) / shards
    cuts = [0, *(int(np.argmin(np.abs(ends - target))) + 1 for target in targets[:-1]), len(pieces)]
    for begin, end in itertools.pairwise(cuts):
        if end > begin:
            yield ShardPlan(pieces[begin:end])


def build_one(source: Folder, out: Folder, plan: ShardPlan, form: Mapping[str, Any]) -> Any:
    """Build a shard from its pieces, copy it to `out`, and return it and its form."""
    first = plan.pieces[0]["first_id"]
    with scratch_folder() as scratch:
        InvertedIndex.build_streaming(
            _read_pieces(source, plan, scratch),
            scratch / "index",
            ids=np.arange(first, first + plan.rows),
            num_threads=1,
            **{name: form[name] for name in ("dim", "metric", "dtype", "largest")},
        )
        return upload(out, scratch / "index", plan.source)


def _read_pieces(source: Folder, plan: ShardPlan, scratch: Path) -> Iterator[Rows]:
    """Yield codes, about a million at a time: each batch becomes a segment."""
    batch: list[codes_file.Stored] = []
    for number, piece in enumerate(plan.pieces, start=1):
        payload = source.read(piece["file"])
        if len(payload) != piece["bytes"] or crc32c(payload) != piece["crc32c"]:
            raise ValueError(
                f"{source.url}/{piece['file']} is damaged: its checksum is wrong; remove it and "
                "encode again, which makes only what is not there"
            )
        file = scratch / piece["file"]
        file.write_bytes(payload)
        stored = codes_file.read(file)
        # Copies: a mapping holds its file open.
        batch.append(
            stored._replace(values=np.array(stored.values), indices=np.array(stored.indices))
        )
        file.unlink()
        if number == len(plan.pieces) or sum(len(s.values) for s in batch) >= SEGMENT_CODES:
            yield Rows(
                np.concatenate([s.values for s in batch]),
                np.concatenate([s.indices for s in batch]),
                None,
                batch[0].dim,
                common_fingerprint(source.url, [s.fingerprint for s in batch]),
            )
            batch = []


def _run(
    ray: Any,
    source: Folder,
    out: Folder,
    todo: Sequence[ShardPlan],
    form: Mapping[str, Any],
    workers: int | None,
) -> Generator[tuple[Shard, dict[str, Any]], None, None]:
    """Yield shards as they are done, building at most `workers` at a time."""
    if workers is None:
        workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
    task = ray.remote(num_cpus=1, max_retries=RETRIES)(build_one)
    waiting = list(todo)
    running: list[Any] = []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                running.append(task.remote(source, out, waiting.pop(0), form))
            (ready, *_), running = ray.wait(running, num_returns=1)
            yield ray.get(ready)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None  # without the tracebacks that Ray puts into the message
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError) as error:
        raise RuntimeError(
            f"the workers on a shard died {RETRIES + 1} times; did they run out of memory? "
            "More shards, or fewer workers, take less"
        ) from error
    finally:
        for task_ref in running:
            ray.cancel(task_ref)  # which removes its scratch
