"""The command index."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from csrtrain.cli import shared
from csrtrain.cli.kinds import expect, expect_model
from csrtrain.cli.lines import JSON_LINES, codes_of_records, read_records, recipe_of_records

if TYPE_CHECKING:
    from csrkern import Projection


def index(
    output: shared.Output,
    codes: Annotated[
        str | None,
        typer.Argument(
            metavar="CODES",
            help="A file written by encode or embed; -: JSON lines of embed; none: an index of "
            "fine codes alone.",
        ),
    ] = None,
    metric: shared.Metric = "cosine",
    dtype: shared.IndexDtype = "float16",
    text_model: shared.TextModelName = None,
    embeddings: Annotated[
        str | None, shared.array("Embeddings to make fine codes of, those CODES were made from.")
    ] = None,
    fine_bytes: Annotated[
        int, shared.whole("Bytes of a fine code; needs --embeddings and FAISS.", max=4096)
    ] = 16,
    labels: Annotated[
        str | None, shared.array("Labels of the embeddings, to learn a projection from.")
    ] = None,
    queries: Annotated[
        str | None, shared.array("Queries to learn a projection from; needs --qrels.")
    ] = None,
    qrels: Annotated[
        str | None, shared.array("Relevance judgments: rows (query, embedding, grade).")
    ] = None,
    model: Annotated[
        str | None, shared.adapter("The adapter that made the codes (default: as CODES say).")
    ] = None,
    any_model: shared.AnyModel = False,
    threads: shared.Threads = None,
    as_json: shared.Json = False,
    force: shared.Force = False,
) -> None:
    """Build an index over codes, over embeddings, or over both, for exact search.

    CODES go into inverted lists. With --embeddings the index also holds fine codes, a few bytes for
    each embedding, and search scores embedded queries by them. Without CODES it holds fine codes
    alone. --labels, or --queries with --qrels, teach a projection that the fine codes are made
    behind, if held-out rows gain by it.

    The index keeps a copy of the adapter that made the codes, and the name of the text model, so
    search can take words.

    [bold]Examples[/bold]

      csrkern index codes.safetensors -o index

      csrkern index codes.safetensors --embeddings embeddings.npy -o index

      csrkern index --embeddings data.npz:x --labels data.npz:y -o index
    """
    shared.check_free(output, force, folder=True)
    from csrkern import InvertedIndex
    from csrkern.identity import check_same_model
    from csrtrain.progress import working
    from csrtrain.recipe import Recipe
    from csrtrain.texts import load_adapter

    if codes is None and embeddings is None:
        raise ValueError("CODES: expected a file of codes, or --embeddings, or both; got neither")
    if codes is None and model is not None:
        raise ValueError("--model: expected CODES with it; fine codes alone need no adapter")
    if embeddings is None and (labels or queries or qrels):
        raise ValueError("--labels, --queries, --qrels: expected --embeddings with them")
    if (queries is None) != (qrels is None):
        raise ValueError("--queries, --qrels: expected both or neither")
    of_lines = codes is not None and (codes == "-" or codes.lower().endswith(JSON_LINES))
    if codes not in (None, "-"):
        expect(codes, "codes", *(["lines"] if of_lines else []))
    if embeddings is not None:
        expect(embeddings, "embeddings")
    if model is not None:
        expect_model(model)
    recipe = Recipe(text_model, model)
    loaded = adapter = None
    if codes is not None:
        with working("reading the codes"):
            if of_lines:
                records = list(read_records(codes))
                loaded = codes_of_records(records)
                recipe = recipe.over(recipe_of_records(records))
            else:
                instead = "make codes of embeddings with csrkern encode, or give --embeddings"
                loaded = shared.load_codes(Path(codes), instead)
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
    fine = projection = None
    if embeddings is not None:
        from csrtrain.indexing import fine_codes
        from csrtrain.training.quantizer import train_quantizer

        if labels is not None or qrels is not None:
            projection = _learn(embeddings, labels, queries, qrels)
        with working("learning and making fine codes"):
            quantizer = train_quantizer(
                embeddings, fine_bytes, projection=projection, progress=False
            )
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
    # What search takes: words, or the codes or embeddings themselves.
    asked = "some words" if recipe.text_model else None if codes == "-" else codes or embeddings
    facts = {"output": str(output), "codes": len(built), "dim": built.dim, "seconds": seconds}
    kept = f"{len(built)} codes over {built.dim} latents"
    if loaded is None:
        kept = f"{len(built)} fine codes of {fine_bytes} bytes"
    lines = [f"Wrote {output}: {kept}, built in {seconds:.2f} s."]
    if labels is not None or qrels is not None:
        facts["projection"] = None if projection is None else projection.width
        lines.append(
            "Held-out rows gain by no projection: fine codes are of the embeddings as they are."
            if projection is None
            else f"Held-out rows gain by a projection to {projection.width} dimensions: fine codes "
            "are made behind it."
        )
    if asked is not None:
        lines.append(f"Next: csrkern search {shared.quoted(output, asked)}")
    shared.report(facts, "\n".join(lines), as_json)


def _learn(
    embeddings: str, labels: str | None, queries: str | None, qrels: str | None
) -> Projection | None:
    """Return a projection learned from labels, or from queries and what is relevant to them."""
    from csrkern.embeddings.dataset import open_embeddings
    from csrkern.embeddings.labels import read_integers
    from csrtrain.evaluation.metrics import Judgments
    from csrtrain.training.projection import learn_projection

    if queries is None or qrels is None:
        return learn_projection(embeddings, labels)
    counts = (
        len(open_embeddings(name, rows))
        for name, rows in (("queries", queries), ("embeddings", embeddings))
    )
    pairs = Judgments(read_integers(qrels, "qrels"), *counts).pairs()
    return learn_projection(queries, labels, partners=embeddings, pairs=pairs)
