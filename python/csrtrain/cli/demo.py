"""The command demo."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from csrtrain.cli import shared
from csrtrain.cli.lines import emit
from csrtrain.lines import check_text
from csrtrain.progress import console


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where everything goes.")
    ] = Path("csrkern-demo"),
    ask: Annotated[
        str | None,
        typer.Option(metavar="DEFINITION", help="Definition of your own to find words for."),
    ] = None,
    text_model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FOLDER",
            help="The sentence-transformers model that reads --ask: all-MiniLM-L6-v2, which "
            "the packaged embeddings come from, wherever it is.",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Train shorter, for a first look: 20 seconds.")
    ] = False,
    as_json: shared.Json = False,
) -> None:
    """Show it all on real data: a reverse dictionary, from a definition to its word.

    Trains two adapters on 16,060 WordNet definitions (the package csrkern-demo-data), one without
    labels and one with, searches with 3,877 others, and compares accuracy, bytes and time with
    dense vectors and PCA. Asks twelve everyday questions. Writes report.html, the models and the
    index; a second run replaces them.

    [bold]Examples[/bold]

      csrkern demo

      csrkern demo --ask "a device for telling time"
    """
    out = console(stderr=as_json)
    if ask is not None:
        check_text("--ask", ask)
    if ask is None:
        from csrtrain.demo.run import run

        report = run(output, quick=quick, out=out)
        if as_json:
            emit({"output": str(output), **dataclasses.asdict(report)})
        return
    from csrtrain.demo.ask import answer, show

    answers = answer(output, ask, text_model, quick=quick, out=out)
    if as_json:
        records = {
            name: {"bytes": result.bytes, "hits": [hit._asdict() for hit in result.hits]}
            for name, result in answers.items()
        }
        emit({"definition": ask, **records})
    else:
        show(ask, answers, out)
