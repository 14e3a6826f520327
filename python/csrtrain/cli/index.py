"""The command index."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Annotated

import typer

from csrtrain.cli import shared
from csrtrain.cli.lines import JSON_LINES, codes_of_records, read_records, recipe_of_records


def index(
    codes: Annotated[
        str,
        typer.Argument(
            metavar="CODES", help="A file written by encode or embed; -: JSON lines of embed."
        ),
    ],
    output: shared.Output,
    metric: shared.Metric = "cosine",
    dtype: shared.IndexDtype = "float16",
    text_model: shared.TextModelName = None,
    embeddings: Annotated[
        str | None, shared.array("The embeddings that CODES were made of, to add fine codes.")
    ] = None,
    fine_bytes: Annotated[
        int, shared.whole("Bytes of a fine code; needs --embeddings and FAISS.", max=4096)
    ] = 16,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL", help="The adapter that made the codes (default: as CODES say)."
        ),
    ] = None,
    any_model: shared.AnyModel = False,
    threads: shared.Threads = None,
    as_json: shared.Json = False,
    force: shared.Force = False,
) -> None:
    """Build an inverted index over codes, for exact search.

    With --embeddings it also holds fine codes, by which search scores queries that are embedded.

    It keeps a copy of the adapter that made the codes and the name of the text model, and so search
    takes words.

    [bold]Examples[/bold]

      csrkern index codes.safetensors -o index

      csrkern index codes.safetensors --embeddings embeddings.npy -o index
    """
    shared.check_free(output, force, folder=True)
    from csrkern import InvertedIndex
    from csrkern.identity import check_same_model
    from csrtrain.progress import working
    from csrtrain.texts import Recipe, load_adapter

    recipe = Recipe(text_model, None if model is None else str(model))
    with working("reading the codes"):
        if codes == "-" or codes.lower().endswith(JSON_LINES):
            records = list(read_records(codes))
            loaded = codes_of_records(records)
            recipe = recipe.over(recipe_of_records(records))
        else:
            loaded = shared.load_codes(Path(codes), "make codes of embeddings with csrkern encode")
            recipe = recipe.over(Recipe.of_codes(Path(codes)))
        adapter = load_adapter(recipe, needed=model is not None)
        if adapter is not None:
            check_same_model(
                "standard input" if codes == "-" else codes,
                loaded.fingerprint,
                adapter.fingerprint,
                any_model=any_model,
                holder=f"the adapter {recipe.adapter}",
            )
            if model is not None and loaded.fingerprint is None:
                loaded.fingerprint = adapter.fingerprint
    fine = None
    if embeddings is not None:
        from csrtrain.indexing import fine_codes
        from csrtrain.training.quantizer import train_quantizer

        with working("learning and making fine codes"):
            quantizer = train_quantizer(embeddings, fine_bytes, progress=False)
            fine = fine_codes(quantizer, embeddings, threads)
    with working("building the index"):
        started = time.perf_counter()
        built = InvertedIndex.build(
            loaded, metric=metric, dtype=dtype, fine=fine, num_threads=threads
        )
        seconds = time.perf_counter() - started
        with shared.folder_for(output) as folder:
            built.save(folder)  # first: if it fails, the old index keeps its recipe
            recipe = dataclasses.replace(recipe, fingerprint=None, codes=len(built))
            recipe.save_to_index(folder, adapter)
    # Queries that search takes: words, or the codes themselves.
    queries = "some words" if recipe.text_model else None if codes == "-" else codes
    shared.report(
        {"output": str(output), "codes": len(built), "dim": built.dim, "seconds": seconds},
        f"Wrote {output}: {len(built)} codes over {built.dim} latents, built in {seconds:.2f} s."
        + ("" if queries is None else f"\nNext: csrkern search {shared.quoted(output, queries)}"),
        as_json,
    )
