"""The command serve: an index over HTTP."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Annotated

import typer

from csrtrain.cli import shared
from csrtrain.cli.kinds import expect_model, index_folder

LOOPBACK = ("127.0.0.1", "::1", "localhost")
NEEDED = ("fastapi", "uvicorn", "prometheus_client")


def serve(
    index: shared.IndexFolder,
    model: Annotated[
        str | None, shared.adapter("The adapter of embeddings (default: the one INDEX remembers).")
    ] = None,
    text_model: shared.TextModelName = None,
    payloads: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What hits bring with them: .jsonl, lines or .parquet, a row for each id from 0, "
            "or for each document in the order of index.ids.",
        ),
    ] = None,
    filter_by: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD", help="Field of payloads to filter by; may be repeated."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any free one.")] = 8000,
    workers: Annotated[
        int, shared.whole("Processes, which share the mapped index; one a core.", max=1024)
    ] = 1,
    threads: Annotated[int, shared.whole("CPU threads of a search.", max=shared.MOST_THREADS)] = 1,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File of the key that requests need (default: CSRKERN_API_KEY)."
        ),
    ] = None,
    max_body: Annotated[int, shared.whole("MiB of a request.", max=1024)] = 8,
    max_queries: Annotated[int, shared.whole("Queries of a request.")] = 1024,
    max_top_k: Annotated[int, shared.whole("Hits of a query.")] = 1000,
    concurrency: Annotated[int, shared.whole("Requests that a process holds at a time.")] = 64,
    timeout: Annotated[
        float, typer.Option(min=0.01, max=3600, help="Seconds for a request.")
    ] = 30.0,
    as_json: shared.Json = False,
) -> None:
    """Serve an index over HTTP until Ctrl-C or SIGTERM; needs csrkern\\[serve].

    Takes codes, and embeddings and texts where the index remembers models or they are named. A
    changed index, or changed payloads, are taken up without losing a request. /docs describes what
    can be asked.

    [bold]Examples[/bold]

      csrkern serve index --payloads lines.jsonl

      csrkern serve index --workers 4 --host 0.0.0.0 --api-key-file key
    """
    for package in NEEDED:
        if importlib.util.find_spec(package) is None:
            raise ImportError(
                f"the server needs {package}, which is not installed; run: "
                f"{sys.executable} -m pip install 'csrkern[serve]'"
            )
    from csrkern import InvertedIndex
    from csrkern.arguments import check_number
    from csrtrain.serve import processes
    from csrtrain.serve.settings import Settings

    folder = index_folder(index)
    if model is not None:
        expect_model(model)
    settings = Settings(
        index=str(folder),
        model=model,
        text_model=text_model,
        payloads=None if payloads is None else str(payloads),
        filter_by=tuple(filter_by or ()),
        threads=threads,
        api_key_file=None if api_key_file is None else str(api_key_file),
        max_body=max_body << 20,
        max_queries=max_queries,
        max_top_k=max_top_k,
        concurrency=concurrency,
        timeout=check_number("--timeout", timeout),  # typer 0.19 lets NaN pass
    )
    # What can be told at once; processes that load them say the rest in their logs.
    documents = len(InvertedIndex.load(folder))
    has_key = settings.key() is not None
    if payloads is None and filter_by:
        raise ValueError("--filter-by: expected --payloads with it")
    if payloads is not None:
        payloads.stat()
    port = processes.free_port(host, port)
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    if host not in LOOPBACK and not has_key:
        print(
            f"csrkern: anyone who reaches {host} may ask; give --api-key-file or CSRKERN_API_KEY",
            file=sys.stderr,
        )
    shared.report(
        {"url": url, "documents": documents, "workers": workers, "key": has_key},
        f"Serving {documents} documents at {url}; Ctrl-C ends it.\n"
        f"Next: {url}/docs says what can be asked, {url}/index what is served",
        as_json,
    )
    processes.run(settings, host, port, workers)
