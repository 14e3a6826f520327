"""The commands of `csrkern ray`: encode, build, serve and search on a Ray cluster."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from csrtrain.cli_commands import Metric, StoredValues
from csrtrain.cli_io import Json, Values, load_codes, report, say

app = typer.Typer(
    help="More than one machine: encode, build, serve and search on a Ray cluster, or on a Ray of "
    "this machine where no --address is given. Needs csrkern\\[ray].",
    no_args_is_help=True,
)

Address = Annotated[
    str | None,
    typer.Option(help="Of a Ray cluster (default: RAY_ADDRESS, else a local one)."),
]
Place = Annotated[str, typer.Option("--output", "-o", metavar="FOLDER|URL", help="Where to write.")]
Options = Annotated[
    str | None,
    typer.Option(
        "--storage", metavar="JSON", help="Options of the file system, as fsspec takes them."
    ),
]


@app.command()
def encode(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A folder written by train.")],
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE...", help=".npy, .parquet or .lance files or folders."),
    ],
    output: Place,
    k: Annotated[int | None, typer.Option(min=1, help="Active latents a row.")] = None,
    values: Annotated[Values, typer.Option(help="Precision of stored values.")] = Values.FLOAT16,
    column: Annotated[str | None, typer.Option(help="Of Parquet and Lance files.")] = None,
    piece_rows: Annotated[int, typer.Option(min=1, help="Rows of one piece.")] = 100_000,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes.")] = None,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs a process.")] = 0,
    address: Address = None,
    storage: Options = None,
    as_json: Json = False,
) -> None:
    """Encode a corpus of many files; run it again to go on after an interruption."""
    from csrtrain.scale import encode_corpus

    with _progress("encoding", "rows") as progress:
        manifest = encode_corpus(
            sources,
            model,
            output,
            k=k,
            values=values.value,
            column=column,
            piece_rows=piece_rows,
            workers=workers,
            gpus_per_worker=gpus,
            address=address,
            options=_options(storage),
            progress=progress,
        )
    rows, pieces = manifest["rows"], len(manifest["pieces"])
    report(
        {"output": output, "codes": rows, "pieces": pieces},
        f"Wrote {output}: {rows} codes in {pieces} pieces.\n"
        f"Next: csrkern ray build {output} -o index",
        as_json,
    )


@app.command()
def build(
    codes: Annotated[str, typer.Argument(metavar="CODES", help="A folder of ray encode.")],
    output: Place,
    shards: Annotated[int, typer.Option(min=1, help="Indexes to divide the codes among.")] = 8,
    metric: Annotated[Metric, typer.Option(help="What search ranks by.")] = Metric.COSINE,
    values: Annotated[
        StoredValues, typer.Option(help="Precision of the stored values.")
    ] = StoredValues.FLOAT16,
    workers: Annotated[int | None, typer.Option(min=1, help="Shards built at a time.")] = None,
    address: Address = None,
    storage: Options = None,
    as_json: Json = False,
) -> None:
    """Build a sharded index; run it again to go on after an interruption."""
    from csrtrain.scale import build_shards

    with _progress("building", "codes") as progress:
        found = build_shards(
            codes,
            output,
            shards=shards,
            metric=metric.value,
            values=values.value,
            workers=workers,
            address=address,
            options=_options(storage),
            progress=progress,
        )
    shards = len(found.shards)
    report(
        {"output": output, "codes": len(found), "shards": shards, "generation": found.number},
        f"Wrote {output}: {len(found)} codes in {shards} shards, generation {found.number}.\n"
        f"Next: csrkern ray serve {output}",
        as_json,
    )


@app.command()
def serve(
    index: Annotated[str, typer.Argument(metavar="INDEX", help="A folder of ray build.")],
    replicas: Annotated[int, typer.Option(min=1, help="Processes that hold the same.")] = 1,
    groups: Annotated[
        int | None, typer.Option(min=1, help="Processes to divide the shards among.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Cores a process.")] = 1,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the HTTP interface.")] = 8000,
    host: Annotated[str, typer.Option(help="To listen on.")] = "127.0.0.1",
    address: Address = None,
    storage: Options = None,
) -> None:
    """Serve a sharded index over HTTP until Ctrl-C; new generations are taken up as they come."""
    from csrtrain.scale import ShardedIndex
    from csrtrain.scale.cluster import connected

    with connected(address):
        from ray import serve as ray_serve

        ray_serve.start(http_options={"host": host, "port": port})
        served = ShardedIndex.serve(
            index, replicas=replicas, groups=groups, threads=threads, options=_options(storage)
        )
        found = served.generation()
        say(
            f"Serving {len(found)} codes in {len(found.shards)} shards at "
            f"http://{host}:{port}/csrkern\nNext: csrkern ray search "
            f"http://{host}:{port}/csrkern queries.safetensors"
        )
        try:
            while True:
                time.sleep(3600)
        finally:
            ray_serve.shutdown()


@app.command()
def search(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where ray serve listens.")],
    queries: Annotated[Path, typer.Argument(metavar="QUERIES", help="A file of codes.")],
    topk: Annotated[int, typer.Option(min=1, max=10_000, help="Hits a query.")] = 10,
    deadline: Annotated[float, typer.Option(min=0.001, help="Seconds to wait.")] = 10.0,
) -> None:
    """Search a served index; a JSON line for each query."""
    import urllib.error
    import urllib.request

    codes = load_codes(queries, "make codes of embeddings with csrkern encode")
    values, indices = codes.numpy()
    for row_values, row_indices in zip(values, indices, strict=True):
        body = {
            "values": [row_values.tolist()],
            "indices": [row_indices.tolist()],
            "topk": topk,
            "deadline": deadline,
        }
        request = urllib.request.Request(
            url, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=deadline + 10) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            raise ValueError(json.load(error)["error"]) from error
        print(
            json.dumps(
                {
                    "ids": answer["ids"][0],
                    "scores": answer["scores"][0],
                    "missing": answer["missing"],
                }
            )
        )


@contextlib.contextmanager
def _progress(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(what),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} " + unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=False) as bar:
        task = bar.add_task(what, total=1)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _options(storage: str | None) -> dict[str, object] | None:
    if storage is None:
        return None
    try:
        found = json.loads(storage)
    except ValueError as error:
        raise ValueError(f"--storage: expected a JSON object, got {storage!r}") from error
    if not isinstance(found, dict):
        raise ValueError(f"--storage: expected a JSON object, got {storage!r}")
    return found
