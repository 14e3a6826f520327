"""The commands demo, encode, index and info."""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from csrtrain.cli_io import (
    AnyModel,
    Embeddings,
    Force,
    Json,
    Output,
    TextModelName,
    Threads,
    Values,
    check_free,
    console,
    folder_for,
    load_codes,
    quoted,
    report,
    split_name,
    use_threads,
)
from csrtrain.cli_lines import (
    JSON_LINES,
    codes_of_records,
    emit,
    read_records,
    recipe_of_records,
)
from csrtrain.lines import check_text


class Metric(str, Enum):
    """Scores that an index ranks by."""

    INNER_PRODUCT = "ip"
    COSINE = "cosine"


class StoredValues(str, Enum):
    """How an index stores values."""

    FLOAT16 = "float16"
    UINT16 = "uint16"
    UINT8 = "uint8"
    FLOAT32 = "float32"


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where everything goes.")
    ] = Path("csrkern-demo"),
    ask: Annotated[
        str | None,
        typer.Option(metavar="DEFINITION", help="Find the words for a definition of your own."),
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
        bool, typer.Option("--quick", help="A shorter training, for a first look: 20 seconds.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show it all on real data: a reverse dictionary, from a definition to its word.

    Trains two adapters on 16,060 WordNet definitions that are part of this package, one without
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
        from csrtrain.demo import run

        result = run(output, quick=quick, out=out)
        if as_json:
            emit({"output": str(output), **dataclasses.asdict(result)})
        return
    from csrtrain.demo_ask import answer, show

    found = answer(output, ask, text_model, quick=quick, out=out)
    if as_json:
        kinds = {"hits": found.hits, "dense": found.dense}
        hits = {kind: [hit._asdict() for hit in hits] for kind, hits in kinds.items()}
        emit({"definition": ask, **hits})
    else:
        show(ask, found, out)


def encode(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A folder written by train.")],
    embeddings: Embeddings,
    output: Output,
    k: Annotated[
        int | None, typer.Option(min=1, help="Active latents a row (default: the model's).")
    ] = None,
    values: Annotated[
        Values, typer.Option(help="Precision of the stored values.")
    ] = Values.FLOAT16,
    text_model: TextModelName = None,
    threads: Threads = None,
    as_json: Json = False,
    force: Force = False,
) -> None:
    """Turn embeddings into sparse codes.

    With --text-model, what made the embeddings is remembered, and search takes words.

    [bold]Example[/bold]

      csrkern encode model embeddings.npy -o codes.safetensors
    """
    check_free(output, force, ".safetensors")
    use_threads(threads)
    from csrkern.nn import SparseAutoencoder
    from csrtrain.data import load_embeddings
    from csrtrain.evaluate import encode_all
    from csrtrain.progress import working
    from csrtrain.texts import RECIPE_KEY, Recipe

    adapter = SparseAutoencoder.from_pretrained(model).eval()
    with working("reading the embeddings"):
        rows = load_embeddings(*split_name(embeddings))
    with working("encoding", len(rows)) as advance:
        codes = encode_all(adapter, rows, k, on_rows=advance)
    recipe = Recipe(text_model, str(model))
    codes.save(output, values=values.value, notes={RECIPE_KEY: recipe.to_json()})
    facts = {"output": str(output), "codes": len(codes), "k": codes.k, "dim": codes.dim}
    message = f"Wrote {output}: {len(codes)} codes, {codes.k} of {codes.dim} latents"
    if output.is_file():  # not a device or a pipe
        size = output.stat().st_size / len(codes)
        facts["bytes_per_code"] = size
        message += f", {size:.0f} bytes a code.\nNext: csrkern index {quoted(output)} -o index"
    report(facts, message, as_json, output)


def index(
    codes: Annotated[
        str,
        typer.Argument(
            metavar="CODES", help="A file written by encode or embed; -: JSON lines of embed."
        ),
    ],
    output: Output,
    metric: Annotated[
        Metric,
        typer.Option(help="What search ranks by; InvertedIndex.build in Python takes ip if none."),
    ] = Metric.COSINE,
    values: Annotated[
        StoredValues, typer.Option(help="Precision of the stored values; uint8 is the smallest.")
    ] = StoredValues.FLOAT16,
    text_model: TextModelName = None,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL", help="The adapter that made the codes (default: as CODES say)."
        ),
    ] = None,
    any_model: AnyModel = False,
    threads: Threads = None,
    as_json: Json = False,
    force: Force = False,
) -> None:
    """Build an inverted index over codes, for exact search.

    It keeps a copy of the adapter that made the codes and the name of the text model, and so search
    takes words.

    [bold]Example[/bold]

      csrkern index codes.safetensors -o index
    """
    check_free(output, force, folder=True)
    from csrkern import InvertedIndex
    from csrkern.identity import check_same_model
    from csrtrain.progress import working
    from csrtrain.texts import Recipe, load_adapter

    recipe = Recipe(text_model, None if model is None else str(model))
    with working("reading the codes"):
        if codes == "-" or codes.lower().endswith(JSON_LINES):
            records = list(read_records(codes))
            read = codes_of_records(records)
            recipe = recipe.over(recipe_of_records(records))
        else:
            read = load_codes(Path(codes), "make codes of embeddings with csrkern encode")
            recipe = recipe.over(Recipe.of_codes(Path(codes)))
        adapter = load_adapter(recipe, needed=model is not None)
        if adapter is not None:
            check_same_model(
                "standard input" if codes == "-" else codes,
                read.fingerprint,
                adapter.fingerprint,
                any_model=any_model,
                holder=f"the adapter {recipe.adapter}",
            )
            if model is not None and read.fingerprint is None:
                read.fingerprint = adapter.fingerprint
    with working("building the index"):
        started = time.perf_counter()
        built = InvertedIndex.build(
            read, metric=metric.value, values=values.value, num_threads=threads
        )
        seconds = time.perf_counter() - started
        with folder_for(output) as folder:
            built.save(folder)  # first: where it fails, the index before keeps its recipe
            recipe = dataclasses.replace(recipe, fingerprint=None, codes=len(built))
            recipe.save_to_index(folder, adapter)
    # Words, or the codes themselves: something that search takes.
    queries = "some words" if recipe.text_model else None if codes == "-" else codes
    report(
        {"output": str(output), "codes": len(built), "dim": built.dim, "seconds": seconds},
        f"Wrote {output}: {len(built)} codes over {built.dim} latents, built in {seconds:.2f} s."
        + ("" if queries is None else f"\nNext: csrkern search {quoted(output, queries)}"),
        as_json,
    )


def info(as_json: Json = False) -> None:
    """Show versions, the instruction set in use, threads, CUDA and Triton."""
    from importlib.metadata import PackageNotFoundError, version

    import numpy
    import torch

    import csrkern
    from csrkern import _C

    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    cuda = "no GPU"
    if torch.cuda.is_available():
        cuda = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    facts = {
        "csrkern": csrkern.__version__,
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "PyTorch": torch.__version__,
        "NumPy": numpy.__version__,
        "Triton": installed("triton"),
        "sentence-transformers": installed("sentence-transformers"),
        "instruction set": _C.isa(),
        "cores": str(os.cpu_count()),
        "PyTorch threads": str(torch.get_num_threads()),
        "CUDA": cuda,
    }
    if as_json:
        emit(facts)
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")
