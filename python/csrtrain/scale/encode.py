"""A corpus of any size becomes pieces of codes: a Ray Data pipeline that can be broken off.

Pieces are planned before anything is encoded, and the plan is written down. A worker reads the
rows of a piece, encodes them, writes the codes and then a receipt: rows, bytes and checksum. A
piece without a receipt is not there, so a run that was killed goes on with what lacks one, a
piece that is done twice is the same file, and the manifest at the end is made of receipts only.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from csrtrain.scale.cluster import connected, import_ray
from csrtrain.scale.corpus import Piece, Reader, plan
from csrtrain.scale.folder import Folder, read_record, write_record

PLAN, MANIFEST = "plan.json", "codes.json"
KIND, RECEIPT, VERSION = "csrkern-corpus", "csrkern-piece", 1

Progress = Callable[[int, int], None]
"""Called with rows done and rows altogether."""


def encode_corpus(
    sources: Sequence[str] | str,
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    k: int | None = None,
    values: str = "float16",
    column: str | None = None,
    piece_rows: int = 100_000,
    workers: int | None = None,
    gpus_per_worker: float = 0,
    address: str | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Encodes all rows of many files into files of codes, on a Ray cluster.

    A run that was killed, by anything at any instant, goes on where it stopped when it is
    called again with the same arguments: no row is lost and none is there twice.

    Args:
        sources: .npy, .parquet or .lance files, folders of them, or patterns, on any file
            system that fsspec knows; rows are numbered in the order of the files.
        model: folder of a `SparseAutoencoder`, on this machine; a copy goes to `output`.
        output: folder or URL for the pieces and their manifest, codes.json.
        k: active latents a row; None: the model's.
        values: "float16" or "float32", the form in which codes are stored.
        column: of Parquet and Lance files; None: the only one that holds lists of floats.
        piece_rows: rows of one piece; 100,000 of k = 32 take 13 MB as float16.
        workers: processes that encode; None: one for each core, or each GPU asked for.
        gpus_per_worker: 1 encodes on GPUs, a part of 1 shares them.
        address: of a Ray cluster; None: the one that RAY_ADDRESS names, or a local one.
        options: of the file systems of `sources` and `output`, as fsspec takes them.
        progress: called as pieces are done.

    Returns: the manifest: rows, dim, k, the model's fingerprint, and the pieces with their
        checksums.

    Raises:
        FileNotFoundError: if a source is not there.
        ValueError: if files do not fit the model or each other, or `output` holds the codes
            of another corpus, model or setting.
        ImportError: without Ray.
    """
    import_ray()
    from csrkern.nn import SparseAutoencoder

    adapter = SparseAutoencoder.from_pretrained(model)
    k = adapter.k if k is None else k
    out = Folder.of(output, options)
    reader = Reader(column, options)
    files = _shapes(reader, [sources] if isinstance(sources, str) else sources, adapter.input_dim)
    work = {
        "files": [[source, rows, reader.stamp(source)] for source, rows in files],
        "piece_rows": piece_rows,
        "fingerprint": adapter.fingerprint,
        "dim": adapter.hidden_dim,
        "k": k,
        "values": values,
    }
    _agree(out, work)
    pieces = list(plan(files, piece_rows))
    receipts = _receipts(out, pieces)
    total = sum(piece.rows for piece in pieces)
    done = sum(receipt["rows"] for receipt in receipts.values())
    if progress is not None:
        progress(done, total)
    todo = [piece for piece in pieces if piece.number not in receipts]
    if todo:
        with connected(address) as ray:
            model_file = f"model-{work['fingerprint']}.pt"
            # From there a worker on any machine can read it, whichever machines have died.
            out.write(model_file, _packed(adapter))
            job = Job(out, reader, model_file, k, values, gpus_per_worker > 0)
            for receipt in _run(ray, job, todo, workers, gpus_per_worker):
                receipts[receipt["number"]] = receipt
                done += receipt["rows"]
                if progress is not None:
                    progress(done, total)
    manifest = {**work, "rows": total, "pieces": [receipts[piece.number] for piece in pieces]}
    write_record(out, MANIFEST, KIND, VERSION, manifest)
    return manifest


def read_codes_manifest(folder: Folder) -> dict[str, Any]:
    """The manifest of a corpus that has been encoded to its end.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged.
    """
    manifest = read_record(folder, MANIFEST, KIND, VERSION)
    if manifest is None:
        begun = " (the encoding was broken off: run it again)" if folder.sizes(PLAN) else ""
        raise FileNotFoundError(f"{folder.url} has no {MANIFEST}{begun}")
    return manifest


@dataclass(frozen=True)
class Job:
    """What a worker needs to encode pieces."""

    output: Folder
    reader: Reader
    model_file: str  # in `output`
    k: int
    values: str
    on_gpu: bool


class Encoder:
    """A Ray Data worker: pieces in, receipts out."""

    def __init__(self, job: Job) -> None:
        import torch

        self._job = job
        self._model = _unpacked(job.output.read(job.model_file)).eval()
        if job.on_gpu:
            self._model.to("cuda")
        else:
            torch.set_num_threads(1)  # one worker a core

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Encodes and writes a piece, and then its receipt."""
        from csrkern import _C, SparseCodes
        from csrtrain.evaluate import encode_all

        piece, job = Piece(**row), self._job
        embeddings = job.reader.read(piece.source, piece.first, piece.rows)
        codes: SparseCodes = encode_all(self._model, np.asarray(embeddings), job.k)
        payload = codes.to_bytes(values=job.values)
        checksum = int(_C.crc32c(payload))
        receipt = {
            "number": piece.number,
            "file": piece.name(checksum),
            "first_id": piece.first_id,
            "rows": len(codes),
            "bytes": len(payload),
            "crc32c": checksum,
        }
        job.output.write(piece.name(checksum), payload)
        write_record(job.output, piece.receipt, RECEIPT, VERSION, receipt)
        return receipt


def _run(
    ray: Any, job: Job, todo: Sequence[Piece], workers: int | None, gpus: float
) -> Iterable[dict[str, Any]]:
    """Receipts as pieces are done; a worker or node that dies is replaced, its piece done again."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    for name in ("ray.data", "ray.data._internal.progress", "ray.data._internal.util"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if workers is None:
        resources = ray.cluster_resources()
        there = resources.get("GPU", 0) / gpus if gpus else resources.get("CPU", 1)
        workers = max(1, int(there))
    workers = min(workers, len(todo))
    rows = [piece.as_row() for piece in todo]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        Encoder,
        fn_constructor_args=(job,),
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=0 if gpus else 1,
        num_gpus=gpus or None,
    )
    yield from dataset.iter_rows()


def _shapes(reader: Reader, sources: Sequence[str], width: int) -> list[tuple[str, int]]:
    """(URL, rows) of every file, all `width` wide."""
    found = []
    for source in reader.files(sources):
        rows, columns = reader.shape(source)
        if rows and columns != width:
            raise ValueError(f"{source}: the model expects {width} columns, the file has {columns}")
        found.append((source, rows))
    if not sum(rows for _, rows in found):
        raise ValueError(f"expected at least one row, got {len(found)} empty files")
    return found


def _agree(out: Folder, work: Mapping[str, Any]) -> None:
    """Writes the plan, or finds that the folder's is the same."""
    held = read_record(out, PLAN, KIND, VERSION)
    if held is None:
        write_record(out, PLAN, KIND, VERSION, work)
    elif held != work:
        other = ", ".join(sorted(name for name in work if held.get(name) != work[name]))
        raise ValueError(
            f"{out.url} holds the codes of another run, which differs in: {other}; "
            "choose another folder, or remove that one"
        )


def _receipts(out: Folder, pieces: Sequence[Piece]) -> dict[int, dict[str, Any]]:
    """Of the pieces that are written as their receipts say, by number."""
    sizes = out.sizes("piece-")
    begun = [piece for piece in pieces if piece.receipt in sizes]
    with ThreadPoolExecutor(16) as pool:
        read = pool.map(lambda p: read_record(out, p.receipt, RECEIPT, VERSION), begun)
    found = {}
    for piece, receipt in zip(begun, read, strict=True):
        if receipt is not None and sizes.get(receipt["file"]) == receipt["bytes"]:
            found[piece.number] = receipt
    return found


def _packed(adapter: Any) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save({"config": adapter.config(), "state": adapter.state_dict()}, buffer)
    return buffer.getvalue()


def _unpacked(payload: bytes) -> Any:
    import torch

    from csrkern.nn import SparseAutoencoder

    held = torch.load(io.BytesIO(payload), weights_only=True)
    adapter = SparseAutoencoder(**held["config"])
    adapter.load_state_dict(held["state"])
    return adapter
