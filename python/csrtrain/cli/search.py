"""The command search: find the best matches of codes, embeddings or words."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from csrkern.storage import is_stream
from csrtrain.cli import lines, shared
from csrtrain.lines import Record, printable, set_aside
from csrtrain.progress import console, say, stream_beside

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from csrkern import InvertedIndex, SparseCodes
    from csrtrain.texts import TextCoder

LINES = (".txt", *lines.JSON_LINES)
FILES = (*LINES, *shared.EMBEDDING_FILES, ".safetensors")


def search(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="Folder written by index.")],
    queries: Annotated[
        str,
        typer.Argument(
            metavar="QUERIES",
            help="Words; or a file of codes, of embeddings, of lines (.txt) or of JSON lines "
            "(.jsonl) with text, embedding, or indices and values; -: lines of standard input.",
        ),
    ],
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL", help="The adapter of embeddings (default: the one INDEX remembers)."
        ),
    ] = None,
    text_model: shared.TextModelName = None,
    top_k: Annotated[int, shared.whole("Hits a query.")] = 10,
    texts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="What to print beside hits: the file of lines that was encoded, or a line for "
            "each code of INDEX, in their order; of JSON lines, the text.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE.npz", help="Write scores and ids, \\[n, top_k]."
        ),
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="Queries whose hits are printed.")] = 5,
    any_model: shared.AnyModel = False,
    threads: shared.Threads = None,
    as_json: shared.Json = False,
    force: shared.Force = False,
) -> None:
    """Find the best matches in an index, exactly.

    Where the index holds fine codes, embedded queries are scored by them.

    With --json a line for each query: {"query": 0, "text": ..., "hits": [...]}. A field query or
    hits of the query's own JSON line is printed as query_ or hits_.

    [bold]Examples[/bold]

      csrkern search index "a device for telling time" --texts lines.txt

      csrkern search index queries.safetensors --top-k 20 -o hits.npz

      csrkern search index queries.npy --model model --json
    """
    if output is not None:
        shared.check_free(output, force, ".npz")
    import torch

    from csrkern import InvertedIndex, Refine
    from csrkern.embeddings.files import split_name
    from csrkern.identity import check_same_model
    from csrtrain.progress import working
    from csrtrain.texts import Recipe, TextCoder

    inverted, stored = InvertedIndex.load(index), Recipe.of_index(index)
    text_of_id = None if texts is None else _texts_by_id(texts, inverted, stored.codes)
    shared.use_threads(threads)
    recipe = Recipe(text_model, None if model is None else str(model))
    coder = TextCoder(recipe.over(stored), any_model=any_model)
    fields, codes = _read_queries(queries, coder, inverted.dim, model is not None)
    check_same_model(
        queries if os.path.isfile(split_name(queries)[0]) else "queries",
        codes.fingerprint,
        inverted.fingerprint,
        any_model=any_model,
        holder=str(index),
    )
    with working("searching"):
        started = time.perf_counter()
        rerank = None
        if inverted.quantizer is not None and coder.embedded is not None:
            rerank = Refine(torch.cat([*coder.embedded.pieces()]))
        scores, ids = inverted.search(
            codes, top_k, rerank=rerank, any_model=True, num_threads=threads
        )
        seconds = time.perf_counter() - started
    if output is not None:
        _write_hits(output, scores, ids)
    if as_json:
        emit_hits(fields, scores, ids, text_of_id, output)
        return
    print_hits(scores[:show], ids[:show], text_of_id, output)
    say(
        f"{len(codes)} queries in {seconds * 1e3:.1f} ms, {1e6 * seconds / max(1, len(codes)):.1f} "
        "µs each" + (f"; wrote {output}" if output else ""),
        output,
    )


def _texts_by_id(source: str, index: InvertedIndex, count: int | None) -> dict[int, str]:
    """Return the text of each document of an index.

    If the index was built of `count` lines, its ids are line numbers, whatever has been removed,
    and lines of added codes follow. Otherwise there is one line for each code, in id order.
    """
    texts = [lines.field_of(record, lines.FIELD, str) for record in lines.read_records(source)]
    ids = index.ids.tolist()
    if count is not None and len(texts) >= count:
        if ids and max(ids) >= len(texts):
            raise ValueError(
                f"{source}: expected a line for code {max(ids)}, which was added to the index of "
                f"{count} lines, got {len(texts)} lines; append those of the codes added"
            )
        return dict(enumerate(texts))
    if len(texts) != len(ids):
        first = "" if count in (None, len(ids)) else f"the {count} lines that were encoded, or "
        raise ValueError(
            f"{source}: expected {first}{len(ids)} lines, one for each code of the index, "
            f"got {len(texts)}"
        )
    return dict(zip(ids, texts, strict=True))


def _read_queries(
    queries: str, coder: TextCoder, dim: int, embeddings: bool
) -> tuple[list[dict[str, Any]], SparseCodes]:
    """Return the other fields of each query's JSON line, and the codes.

    `embeddings` says that an ambiguous file holds embeddings, not codes.
    """
    from csrkern.embeddings.files import split_name

    file, _ = split_name(queries)
    suffix = file.suffix.lower()
    # The name of a missing file is a mistake, not a query of one word.
    is_file_name = suffix in FILES and " " not in queries
    is_pipe = is_stream(queries)  # such as <(a command)
    if queries == "-" or is_pipe or (suffix in LINES and (is_file_name or os.path.isfile(file))):
        records = list(lines.read_records(queries))
        if not records:
            raise ValueError("expected at least one query, got none")
        return _codes_of(records, coder, dim)
    if not is_file_name and not os.path.isfile(file):
        return _codes_of([Record("QUERIES", {lines.FIELD: queries})], coder, dim)
    if embeddings or (suffix in shared.EMBEDDING_FILES and coder.recipe.adapter is not None):
        codes = coder.codes_of_embeddings(queries)
    else:
        from csrtrain.texts import Recipe

        codes = shared.load_codes(Path(queries), "give the --model that encodes embeddings")
        coder.check_codes(Recipe.of_codes(Path(queries)), queries)
    return [{} for _ in range(len(codes))], codes


def _codes_of(
    records: list[Record], coder: TextCoder, dim: int
) -> tuple[list[dict[str, Any]], SparseCodes]:
    """Return the fields of JSON lines besides codes and embeddings, and their codes.

    The first line decides for all: they are codes or embeddings if it holds lists of that name,
    else texts.
    """
    from csrtrain.progress import working

    if _holds(records[0], "indices", "values"):
        coder.check_codes(lines.recipe_of_records(records), records[0].where)
        return _without(records, lines.CODE_FIELDS), lines.codes_of_records(records, dim)
    with working("encoding the queries"):
        if _holds(records[0], "embedding"):
            codes = coder.codes_of_embeddings(lines.embeddings_of(records))
            return _without(records, ("embedding",)), codes
        codes = coder.codes_of_texts([lines.text_of(record) for record in records], query=True)
        return _without(records, ()), codes


def _holds(record: Record, *names: str) -> bool:
    """Whether a line has lists of these names or, without a text, the first field at all."""
    if lines.FIELD not in record.fields:
        return names[0] in record.fields
    return all(isinstance(record.fields.get(name), list) for name in names)


def _without(records: list[Record], names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in record.fields.items() if name not in names}
        for record in records
    ]


def _write_hits(path: Path, scores: Any, ids: Any) -> None:
    import io

    import numpy as np

    from csrkern.storage import write_atomically

    payload = io.BytesIO()
    np.savez(payload, scores=scores, ids=ids)
    write_atomically(path, payload.getvalue())


def emit_hits(
    fields: Sequence[dict[str, Any]],
    scores: Any,
    ids: Any,
    texts: Mapping[int, str] | None = None,
    output: Path | None = None,
) -> None:
    """Print a JSON line for each query: its number, its fields, and hits with the texts of ids.

    Prints on standard error if the `output` is on standard output.
    """
    for query, query_fields in enumerate(fields):
        pairs = zip(ids[query].tolist(), lines.numbers_of(scores[query]), strict=True)
        hits = [
            {"id": hit, "score": score} | ({} if texts is None else {lines.FIELD: texts[hit]})
            for hit, score in pairs
            if hit >= 0
        ]
        others = set_aside(query_fields, ("query", "hits"))
        lines.emit({"query": query, **others, "hits": hits}, stream_beside(output))


def print_hits(
    scores: Any,
    ids: Any,
    texts: Mapping[int, str] | None = None,
    output: Path | None = None,
) -> None:
    """Print a table of every query's hits, on the same stream as `emit_hits`."""
    from rich.table import Table
    from rich.text import Text

    if not len(ids):
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("query", "rank", "score", "id"):
        table.add_column(name, justify="right")
    if texts is not None:
        table.add_column("text")
    for query, (row_scores, row_ids) in enumerate(zip(scores, ids, strict=True)):
        for rank, (score, hit) in enumerate(zip(row_scores, row_ids, strict=True), start=1):
            if hit < 0:
                continue
            cells = [str(query), str(rank), f"{score:.4f}", str(hit)]
            shown = [] if texts is None else [Text(printable(texts[int(hit)], keep="\t"))]
            table.add_row(*cells, *shown)
    console(stderr=stream_beside(output) is sys.stderr).print(table)
