"""The commands of `csrkern ray`: encode, build, serve and search on a Ray cluster."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from csrkern.storage import check_folder
from csrtrain.cli import shared
from csrtrain.cli.kinds import expect, expect_model
from csrtrain.cli.search import emit_hits, print_hits
from csrtrain.lines import parse_object

app = typer.Typer(
    help="More than one machine: encode, build, serve and search on a Ray cluster, or on a Ray of "
    "this machine where no --address is given. Needs csrkern\\[ray].",
    no_args_is_help=True,
)

QUERIES_AT_ONCE = 64  # in one request

Address = Annotated[
    str | None,
    typer.Option(help="Address of a Ray cluster (default: RAY_ADDRESS, else a new local one)."),
]
Place = Annotated[str, typer.Option("--output", "-o", metavar="FOLDER|URL", help="Where to write.")]
Options = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="JSON",
        help="Options of the file system, a JSON object as fsspec takes it.",
    ),
]


@app.command()
def encode(
    model: shared.Adapter,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...", help="Files or folders of embeddings: .npy, .parquet or .lance."
        ),
    ],
    output: Place,
    k: Annotated[int | None, shared.whole("Active latents a row.")] = None,
    dtype: shared.StoredAs = "float32",
    column: Annotated[
        str | None,
        typer.Option(help="Column of Parquet and Lance files that holds the embeddings."),
    ] = None,
    piece_rows: Annotated[int, shared.whole("Rows of one piece, the unit of work.")] = 100_000,
    workers: Annotated[int | None, shared.whole("Number of processes.")] = None,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of each process.")] = 0,
    address: Address = None,
    storage: Options = None,
    as_json: shared.Json = False,
) -> None:
    """Encode a corpus of many files; run it again to go on after an interruption."""
    _check_output(output)
    expect_model(model, "csrkern ray encode MODEL SOURCE...")
    from csrkern.arguments import check_number

    check_number("--gpus", gpus)
    from csrtrain.scale import encode_corpus

    with _progress("encoding", "rows") as progress:
        manifest = encode_corpus(
            sources,
            model,
            output,
            k=k,
            dtype=dtype,
            column=column,
            piece_rows=piece_rows,
            workers=workers,
            gpus_per_worker=gpus,
            address=address,
            options=_options(storage),
            progress=progress,
        )
    rows, pieces = manifest["rows"], len(manifest["pieces"])
    shared.report(
        {"output": output, "codes": rows, "pieces": pieces},
        f"Wrote {output}: {rows} codes in {pieces} pieces.\n"
        f"Next: csrkern ray build {shared.quoted(output)} -o index",
        as_json,
    )


@app.command()
def build(
    codes: Annotated[str, typer.Argument(metavar="CODES", help="Folder written by ray encode.")],
    output: Place,
    shards: Annotated[int, shared.whole("Number of indexes that the codes are divided among.")] = 8,
    metric: shared.Metric = "cosine",
    dtype: shared.IndexDtype = "float16",
    largest: Annotated[
        float | None, typer.Option(help="Largest value, for uint8 or uint4 with metric ip.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the index there, at once when all is built.")
    ] = False,
    workers: Annotated[int | None, shared.whole("Number of shards built at a time.")] = None,
    address: Address = None,
    storage: Options = None,
    as_json: shared.Json = False,
) -> None:
    """Build a sharded index; run it again to go on after an interruption."""
    _check_output(output)
    expect(codes, "corpus")
    from csrkern.arguments import check_number

    if largest is not None:
        check_number("--largest", largest)
    from csrtrain.scale import build_shards

    with _progress("building", "codes") as progress:
        index = build_shards(
            codes,
            output,
            shards=shards,
            metric=metric,
            dtype=dtype,
            largest=largest,
            replace=replace,
            workers=workers,
            address=address,
            options=_options(storage),
            progress=progress,
        )
    shards = len(index.shards)
    shared.report(
        {"output": output, "codes": len(index), "shards": shards, "generation": index.number},
        f"Wrote {output}: {len(index)} codes in {shards} shards, generation {index.number}.\n"
        f"Next: csrkern ray serve {shared.quoted(output)}",
        as_json,
    )


@app.command()
def serve(
    index: Annotated[str, typer.Argument(metavar="INDEX", help="Folder written by ray build.")],
    replicas: Annotated[
        int, shared.whole("Copies of each group of shards, for more queries a second.")
    ] = 1,
    groups: Annotated[
        int | None, shared.whole("Groups of shards, each in processes of its own.")
    ] = None,
    threads: Annotated[int, shared.whole("Threads of each process.", max=shared.MOST_THREADS)] = 1,
    port: Annotated[int, shared.whole("Port of the HTTP interface.", max=65535)] = 8000,
    host: Annotated[
        str, typer.Option(help="Address that the HTTP interface listens on.")
    ] = "127.0.0.1",
    address: Address = None,
    storage: Options = None,
    as_json: shared.Json = False,
) -> None:
    """Serve a sharded index over HTTP until Ctrl-C; new generations are taken up as they come."""
    expect(index, "shards")
    from csrtrain.scale import ShardedIndex
    from csrtrain.scale.cluster import connected

    with connected(address):
        from ray import serve as ray_serve

        ray_serve.start(http_options={"host": host, "port": port})
        served = ShardedIndex.serve(
            index, replicas=replicas, groups=groups, threads=threads, options=_options(storage)
        )
        current = served.generation()
        url = f"http://{host}:{port}/csrkern"
        facts = {"codes": len(current), "shards": len(current.shards), "generation": current.number}
        shared.report(
            {"url": url, **facts},
            f"Serving {len(current)} codes in {len(current.shards)} shards at {url}\n"
            f"Ask it: csrkern ray search {url} CODES",
            as_json,
        )
        try:
            while True:
                time.sleep(3600)
        finally:
            ray_serve.shutdown()


@app.command()
def search(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="Address that `csrkern ray serve` printed.")
    ],
    queries: Annotated[
        Path, typer.Argument(metavar="QUERIES", help="File of codes, written by encode.")
    ],
    top_k: Annotated[int, shared.whole("Hits a query.", max=10_000)] = 10,
    deadline: Annotated[
        float, typer.Option(min=0.001, max=3600, help="Seconds to wait for an answer.")
    ] = 10.0,
    any_model: shared.AnyModel = False,
    as_json: shared.Json = False,
) -> None:
    """Search a served index.

    With --json a line for each query: {"query": 0, "hits": [...], "missing": [...]}, where missing
    names the shards that did not answer before the deadline: hits are of the others only.
    """
    import numpy as np

    from csrkern.arguments import check_number

    check_number("--deadline", deadline)
    codes = shared.load_codes(queries, "make codes of embeddings with csrkern encode")
    values, indices = codes.numpy()
    options: dict[str, Any] = {"top_k": top_k, "deadline": deadline}
    if not any_model:
        options["fingerprint"] = codes.fingerprint
    missing: set[str] = set()
    ids = np.full((len(values), top_k), -1, np.int64)
    scores = np.full((len(values), top_k), -np.inf, np.float32)
    records: list[dict[str, Any]] = []
    for first in range(0, len(values), QUERIES_AT_ONCE):
        part = slice(first, first + QUERIES_AT_ONCE)
        body = {"values": values[part].tolist(), "indices": indices[part].tolist(), **options}
        answer = _ask(url, body, deadline)
        missing |= set(answer["missing"])
        for query, (row_ids, row_scores) in enumerate(
            zip(answer["ids"], answer["scores"], strict=True)
        ):
            ids[first + query, : len(row_ids)] = row_ids
            scores[first + query, : len(row_ids)] = row_scores
            records.append({"missing": answer["missing"]})
    if as_json:
        emit_hits(records, scores, ids)
    else:
        print_hits(scores, ids)
    if missing:
        print(
            f"incomplete: {len(missing)} shards did not answer within {deadline:g} s: "
            f"{', '.join(sorted(missing))}",
            file=sys.stderr,
        )


def _ask(url: str, body: dict[str, Any], deadline: float) -> dict[str, Any]:
    """Return the answer of a server; asked again until the deadline if it is restarting."""
    import http.client
    import urllib.error
    import urllib.request

    payload, until = json.dumps(body).encode(), time.monotonic() + deadline
    request = urllib.request.Request(url, payload, {"Content-Type": "application/json"})
    while True:
        remaining = max(0.1, until - time.monotonic())
        try:
            with urllib.request.urlopen(request, timeout=remaining + 1) as response:
                return dict(json.load(response))
        except urllib.error.HTTPError as error:
            if error.code in (400, 409):
                raise ValueError(json.load(error)["error"]) from error
            reason = f"it answers {error.code} {error.reason}"
        except urllib.error.URLError as error:
            reason = str(error.reason)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = str(error) or type(error).__name__
        if time.monotonic() + 0.2 > until:
            raise OSError(
                f"no answer from {url} within {deadline:g} s: {reason}; is csrkern ray serve "
                "running there?"
            )
        time.sleep(0.2)


def _check_output(output: str) -> None:
    """Raise, before any work, if `output` is a folder of this machine that cannot be written."""
    if "://" not in output:
        check_folder(output)


@contextlib.contextmanager
def _progress(description: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yield show(done, total)."""
    from csrtrain.progress import working

    with working(description, unit=unit) as advance:
        shown = 0

        def show(done: int, total: int) -> None:
            nonlocal shown
            advance(done - shown, total)
            shown = done

        yield show


def _options(storage: str | None) -> dict[str, object] | None:
    return None if storage is None else parse_object("--storage", storage)
