"""Encode a corpus of any size into pieces of codes, by workers of Ray, in resumable runs.

Pieces are planned before anything is encoded, and the plan is written down. A worker reads the
rows of a piece, encodes them, writes the codes and then a receipt: rows, bytes and checksum. Only
a piece with a receipt counts as done: a resumed run encodes the others, a piece that is done twice
is the same file, and the manifest at the end is made of receipts only.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from csrkern.arguments import check_choice, check_int
from csrkern.storage import crc32c
from csrtrain.scale.cluster import connected, import_ray
from csrtrain.scale.corpus import Piece, Reader, plan
from csrtrain.scale.folder import Folder, Place, read_record, write_record
from csrtrain.scale.scratch import scratch_folder

PLAN, MANIFEST = "plan.json", "codes.json"
KIND, RECEIPT, VERSION = "csrkern-corpus", "csrkern-piece", 1
# Retries after a worker died; if it dies more often, the work itself is the likely cause.
RETRIES = 3

Progress = Callable[[int, int], None]
"""Called with rows done and rows altogether."""


def encode_corpus(
    sources: Sequence[Place] | Place,
    model: str | os.PathLike[str],
    output: Place,
    *,
    k: int | None = None,
    dtype: str = "float32",
    column: str | None = None,
    piece_rows: int = 100_000,
    workers: int | None = None,
    gpus_per_worker: float = 0,
    address: str | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Encode all rows of many files into files of codes, on a Ray cluster.

    A run that was killed, at any instant, goes on where it stopped when it is called again with
    the same arguments: no row is lost or encoded twice into the result.

    Args:
        sources: .npy, .parquet or .lance files, folders of them, or patterns, on any file
            system that fsspec knows; rows are numbered in the order of the files. The name of an
            existing file or folder is not a pattern, even if it holds *, ? or [.
        model: folder of a `SparseAutoencoder`, on this machine; a copy goes to `output`.
        output: folder or URL for the pieces and their manifest, codes.json.
        k: active latents a row; None: the model's.
        dtype: "float32", or "float16", the form in which codes are stored.
        column: of Parquet and Lance files; None: the only one that holds lists of floats;
            "emb_*": all columns of floats with such names, as the columns of a matrix.
        piece_rows: rows of one piece; 100,000 of k = 32 take 19 MB.
        workers: processes that encode; None: one for each core, or each GPU asked for.
        gpus_per_worker: 1 encodes on GPUs, a part of 1 shares them.
        address: of a Ray cluster; None: the one that RAY_ADDRESS names, or a local one.
        options: of the file systems of `sources` and `output`, as fsspec takes them.
        progress: called as pieces are done.

    Returns: the manifest: rows, dim, k, the model's fingerprint, and the pieces with their
        checksums.

    Raises:
        FileNotFoundError: if a source is not there.
        OSError: if nothing can be written to `output`, or a worker cannot read a source.
        TypeError, ValueError: if files do not fit the model or each other, a row is not finite
            (the message names the file and the row), or `output` holds the codes of another
            corpus, model or setting.
        RuntimeError: if the worker on a piece died again and again.
        ImportError: without Ray.
    """
    import_ray()
    from csrkern.nn import SparseAutoencoder

    adapter = SparseAutoencoder.from_pretrained(model)
    k = adapter.k if k is None else check_int("k", k, 1, adapter.hidden_dim)
    piece_rows = check_int("piece_rows", piece_rows, 1, 2**31)
    workers = None if workers is None else check_int("workers", workers, 1, 2**31)
    check_choice("dtype", dtype, ("float16", "float32"))
    out = Folder.of(output, options)
    reader = Reader(column, options)
    if isinstance(sources, (str, bytes, os.PathLike)):
        sources = [sources]
    names = reader.files(sources)
    out.check_writable()
    files = _shapes(reader, names, adapter.input_dim)
    work = {
        "files": [[source, rows, reader.stamp(source)] for source, rows in files],
        "piece_rows": piece_rows,
        "fingerprint": adapter.fingerprint,
        "dim": adapter.hidden_dim,
        "k": k,
        "dtype": dtype,
    }
    _agree(out, work)
    pieces = list(plan(files, piece_rows))
    receipts = _receipts(out, pieces)
    total = sum(piece.rows for piece in pieces)
    done = sum(receipt["rows"] for receipt in receipts.values())
    progress = progress or (lambda done, total: None)
    progress(done, total)
    todo = [piece for piece in pieces if piece.number not in receipts]
    if todo:
        with connected(address) as ray:
            model_file = f"model-{work['fingerprint']}.pt"
            # Workers on every machine can read it there, whichever machines have died.
            out.write(model_file, _packed(adapter))
            job = Job(out, reader, model_file, k, dtype, gpus_per_worker > 0)
            with contextlib.closing(_run(ray, job, todo, workers, gpus_per_worker)) as running:
                for receipt in running:
                    receipts[receipt["number"]] = receipt
                    done += receipt["rows"]
                    progress(done, total)
    manifest = {**work, "rows": total, "pieces": [receipts[piece.number] for piece in pieces]}
    write_record(out, MANIFEST, KIND, VERSION, manifest)
    out.remove_unfinished("piece-")
    return manifest


def read_codes_manifest(folder: Folder) -> dict[str, Any]:
    """Return the manifest of a fully encoded corpus.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged.
    """
    manifest = read_record(folder, MANIFEST, KIND, VERSION)
    if manifest is None:
        hint = " (the encoding was broken off: run it again)" if folder.sizes(PLAN) else ""
        raise FileNotFoundError(f"{folder.url} has no {MANIFEST}{hint}")
    return manifest


@dataclass(frozen=True)
class Job:
    """Everything that a worker needs to encode pieces."""

    output: Folder
    reader: Reader
    model_file: str  # in `output`
    k: int
    dtype: str
    on_gpu: bool


class Encoder:
    """A worker of Ray: pieces in, receipts out."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def ready(self) -> None:
        """Return once the model is loaded."""
        self._model  # noqa: B018

    @functools.cached_property
    def _model(self) -> Any:
        import torch

        model = _unpacked(self._job.output.read(self._job.model_file)).eval()
        if self._job.on_gpu:
            return model.to("cuda")
        torch.set_num_threads(1)  # one worker a core
        return model

    def encode(self, piece: Piece) -> dict[str, Any]:
        """Encode and write a piece, and then its receipt."""
        from csrkern.embeddings.dataset import Embeddings

        job = self._job
        array = job.reader.read(piece.source, piece.first, piece.rows)
        codes = self._model.encode(Embeddings(piece.source, array, piece.first), job.k)
        with scratch_folder() as scratch:
            codes.save(scratch / "codes", dtype=job.dtype)
            payload = (scratch / "codes").read_bytes()
        checksum = crc32c(payload)
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
) -> Generator[dict[str, Any], None, None]:
    """Yield receipts as pieces are done, at most `workers` at a time.

    A worker or node that dies is replaced, and its piece is encoded again. When the generator
    ends, idle workers end at once and the others after their current piece.

    Raises: what a worker raises, in its words; RuntimeError if `RETRIES` + 1 workers died of a
        piece.
    """
    if workers is None:
        resources = ray.cluster_resources()
        capacity = resources.get("GPU", 0) / gpus if gpus else resources.get("CPU", 1)
        workers = max(1, int(capacity))
    options = {"num_cpus": 0 if gpus else 1, "num_gpus": gpus}
    worker = ray.remote(**options, max_restarts=-1, max_task_retries=RETRIES)(Encoder)
    encoders = [worker.remote(job) for _ in range(min(workers, len(todo)))]
    # A worker that the cluster has no room for is never ready and gets no piece.
    running = {encoder.ready.remote(): number for number, encoder in enumerate(encoders)}
    waiting, remaining = list(todo), len(todo)
    try:
        while remaining:
            (ready, *_), _ = ray.wait(list(running), num_returns=1)
            number, receipt = running.pop(ready), ray.get(ready)
            if waiting:
                running[encoders[number].encode.remote(waiting.pop(0))] = number
            if receipt is not None:
                remaining -= 1
                yield receipt
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None  # without the tracebacks that Ray puts into the message
    except ray.exceptions.RayActorError as error:
        raise RuntimeError(
            f"workers could not begin, or died {RETRIES + 1} times of one piece "
            f"({str(error).splitlines()[-1]}); if memory ran out, smaller piece_rows take less"
        ) from error
    finally:
        for number in set(range(len(encoders))) - set(running.values()):
            ray.kill(encoders[number])


def _shapes(reader: Reader, files: Sequence[str], width: int) -> list[tuple[str, int]]:
    """Return (URL, rows) of every file; all must be `width` wide."""
    sized = []
    for source in files:
        rows, columns = reader.shape(source)
        if rows and columns != width:
            raise ValueError(f"{source}: the model expects {width} columns, the file has {columns}")
        sized.append((source, rows))
    if not sum(rows for _, rows in sized):
        raise ValueError(f"expected at least one row, got {len(sized)} empty files")
    return sized


def _agree(out: Folder, work: Mapping[str, Any]) -> None:
    """Write the plan, or check that the folder has the same plan."""
    planned = read_record(out, PLAN, KIND, VERSION)
    if planned is None:
        write_record(out, PLAN, KIND, VERSION, work)
    elif planned != work:
        differing = ", ".join(sorted(name for name in work if planned.get(name) != work[name]))
        raise ValueError(
            f"{out.url} holds the codes of another run, which differs in: {differing}; "
            "choose another folder, or remove that one"
        )


def _receipts(out: Folder, pieces: Sequence[Piece]) -> dict[int, dict[str, Any]]:
    """Return receipts by piece number, of the pieces whose file has the size they state."""
    sizes = out.sizes("piece-")
    encoded = [piece for piece in pieces if piece.receipt in sizes]
    with ThreadPoolExecutor(16) as pool:
        receipts = pool.map(lambda p: read_record(out, p.receipt, RECEIPT, VERSION), encoded)
    complete = {}
    for piece, receipt in zip(encoded, receipts, strict=True):
        if receipt is not None and sizes.get(receipt["file"]) == receipt["bytes"]:
            complete[piece.number] = receipt
    return complete


def _packed(adapter: Any) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save({"config": adapter.config(), "state": adapter.state_dict()}, buffer)
    return buffer.getvalue()


def _unpacked(payload: bytes) -> Any:
    import torch

    from csrkern.nn import SparseAutoencoder

    saved = torch.load(io.BytesIO(payload), weights_only=True)
    adapter = SparseAutoencoder(**saved["config"])
    adapter.load_state_dict(saved["state"])
    return adapter
