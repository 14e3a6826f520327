"""The command embed: turn texts into embeddings or codes."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from csrkern.storage import is_stream
from csrtrain.cli import shared
from csrtrain.cli.kinds import expect, expect_model
from csrtrain.cli.lines import MADE_BY, count_lines, emit, numbers_of, read_records, text_of
from csrtrain.lines import Record, set_aside, to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from csrtrain.recipe import Recipe
    from csrtrain.texts import TextCoder

CHUNK = 512  # texts that are read, embedded and written at a time
SUFFIXES = (".npy", ".safetensors", ".jsonl")


def embed(
    texts: Annotated[
        str,
        typer.Argument(
            metavar="TEXTS",
            help="A file of lines, or of JSON lines (.jsonl); - or nothing: standard input.",
        ),
    ] = "-",
    text_model: shared.TextModelName = None,
    model: Annotated[
        str | None, shared.adapter("Adapter written by train: write codes instead of embeddings.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help=".npy for embeddings, .safetensors for codes, .jsonl for either "
            "(default: JSON lines on standard output).",
        ),
    ] = None,
    field: Annotated[str, typer.Option(help="Field of JSON lines that holds the text.")] = "text",
    query: Annotated[
        bool, typer.Option("--query", help="Use the model's prompt for queries, if it has one.")
    ] = False,
    dtype: shared.StoredAs = "float32",
    batch_size: Annotated[int, shared.whole("Texts that the model reads at a time.")] = 32,
    threads: shared.Threads = None,
    as_json: shared.Json = False,
    force: shared.Force = False,
) -> None:
    """Turn texts into embeddings or codes, by any sentence-transformers model.

    A dense model gives embeddings or, with an adapter, codes; a SparseEncoder gives codes.

    JSON lines keep what each line held and add embedding, or indices, values, dim and csrkern, the
    models that made them. A field of its own that has such a name is kept as embedding_ and so on.

    [bold]Examples[/bold]

      csrkern embed lines.txt -o embeddings.npy

      csrkern embed lines.txt --model model -o codes.safetensors

      cat lines.txt | csrkern embed --model model | csrkern search index -
    """
    suffix = ".jsonl"
    if output is not None:
        shared.check_free(output, force)
        # A device or a pipe takes lines, as standard output does, unless its name says otherwise.
        if output.suffix.lower() in SUFFIXES or not is_stream(output):
            suffix = output.suffix.lower()
        if suffix not in SUFFIXES:
            raise ValueError(f"{output}: expected a file that ends in {', '.join(SUFFIXES)}")
    if texts != "-":
        expect(texts, "lines")
    if model is not None:
        expect_model(model)
    shared.use_threads(threads)
    records = read_records(texts, field)
    from csrtrain.progress import working
    from csrtrain.recipe import Recipe
    from csrtrain.texts import MINILM, TextCoder

    recipe = Recipe(text_model or MINILM, model)
    with working("loading the text model"):
        coder = TextCoder(recipe)
        gives_codes = coder.text_model.sparse or model is not None
        recipe = dataclasses.replace(recipe, text_fingerprint=coder.text_model.fingerprint)
    if suffix == (".npy" if gives_codes else ".safetensors"):
        form = "codes, which go" if gives_codes else "embeddings without --model, which go"
        raise ValueError(f"{output}: the model gives {form} into another kind of file")
    with working("embedding texts", count_lines(texts), prints=output is None) as advance:
        chunks = _embedded(records, field, coder, query, batch_size, advance)
        if output is None or suffix == ".jsonl":
            count = _write_lines(chunks, output, recipe)
        else:
            count = _write_array(chunks, output, dtype, recipe)
    if output is not None:
        shared.report(
            {"output": str(output), "texts": count, "codes": gives_codes},
            f"Wrote {output}: {count} texts.{_next(output, suffix, gives_codes)}",
            as_json,
            output,
        )


def _next(output: Path, suffix: str, gives_codes: bool) -> str:
    """Return a line that says what to do with the file; nothing for a device or a pipe."""
    if not output.is_file():
        return ""
    if gives_codes:
        return f"\nNext: csrkern index {shared.quoted(output)} -o index"
    if suffix == ".npy":
        return f"\nNext: csrkern train {shared.quoted(output)} -o model"
    return f"\nNext: csrkern search index {shared.quoted(output)}"


def _embedded(
    records: Iterator[Record],
    field: str,
    coder: TextCoder,
    query: bool,
    batch_size: int,
    advance: Callable[[int], None],
) -> Iterator[tuple[list[Record], Any]]:
    """Yield records, a chunk at a time, and their embeddings or codes."""
    while chunk := list(itertools.islice(records, CHUNK)):
        texts = [text_of(record, field) for record in chunk]
        options: dict[str, Any] = {"query": query, "batch_size": batch_size}
        if coder.text_model.sparse or coder.recipe.adapter is not None:
            yield chunk, coder.codes_of_texts(texts, **options)
        else:
            yield chunk, coder.text_model.embed(texts, **options)
        advance(len(chunk))


def _lines(embedded: Any, recipe: Recipe) -> Iterator[dict[str, Any]]:
    """Yield the fields that are added to each record."""
    import numpy as np

    if isinstance(embedded, np.ndarray):
        for row in embedded:
            yield {"embedding": numbers_of(row)}
        return
    from csrkern.integrations.rows import rows_of

    made_by = dataclasses.replace(recipe, fingerprint=embedded.fingerprint)
    shared_fields = {"dim": embedded.dim, MADE_BY: json.loads(made_by.to_json())}
    for indices, values in rows_of(embedded):
        yield {"indices": indices.tolist(), "values": numbers_of(values), **shared_fields}


def _write_lines(
    chunks: Iterator[tuple[list[Record], Any]], output: Path | None, recipe: Recipe
) -> int:
    from csrkern.storage import write_atomically

    lines: list[str] = []
    count = 0
    for records, embedded in chunks:
        for record, added in zip(records, _lines(embedded, recipe), strict=True):
            count += 1
            line = set_aside(record.fields, added) | added
            if output is None:
                emit(line)
            else:
                lines.append(to_json(line) + "\n")
    if output is not None:
        write_atomically(output, "".join(lines).encode())
    return count


def _write_array(
    chunks: Iterator[tuple[list[Record], Any]], output: Path, dtype: str, recipe: Recipe
) -> int:
    import io

    import numpy as np

    from csrkern.storage import write_atomically
    from csrtrain.recipe import RECIPE_KEY
    from csrtrain.texts import stack

    parts = [embedded for _, embedded in chunks]
    if not parts:
        raise ValueError("expected at least one line of text, got none")
    stacked = stack(parts)
    if isinstance(stacked, np.ndarray):
        payload = io.BytesIO()
        np.save(payload, stacked)
        write_atomically(output, payload.getvalue())
    else:
        stacked.save(output, dtype=dtype, notes={RECIPE_KEY: recipe.to_json()})
    return len(stacked)
