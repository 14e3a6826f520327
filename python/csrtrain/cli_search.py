"""The command search: codes, embeddings or words in, the best matches out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from csrtrain.cli_io import (
    EMBEDDING_FILES,
    Force,
    Json,
    TextModelName,
    Threads,
    check_free,
    console,
    load_codes,
    read_lines,
    say,
    split_name,
    use_threads,
)
from csrtrain.cli_lines import codes_of_records, emit, field_of, numbers_of, read_records

if TYPE_CHECKING:
    from csrkern import SparseCodes
    from csrtrain.texts import TextCoder

LINES = (".txt", ".jsonl", ".ndjson")
FILES = (*LINES, *EMBEDDING_FILES, ".safetensors")
CODE_FIELDS = ("embedding", "indices", "values", "dim")
FIELD = "text"


def search(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="A folder written by index.")],
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
    text_model: TextModelName = None,
    topk: Annotated[int, typer.Option(min=1, help="Hits a query.")] = 10,
    texts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A text line for each code, to print.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE.npz", help="Write scores and ids, \\[n, topk]."
        ),
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="Queries whose hits are printed.")] = 5,
    threads: Threads = None,
    as_json: Json = False,
    force: Force = False,
) -> None:
    """Find the best matches in an index, exactly.

    With --json a line for each query: {"query": 0, "text": ..., "hits": [...]}.

    [bold]Examples[/bold]

      csrkern search index "a device for telling time" --texts lines.txt

      csrkern search index queries.safetensors --topk 20 -o hits.npz

      csrkern search index queries.npy --model model --json
    """
    if output is not None:
        check_free(output, force)
    from csrkern import InvertedIndex
    from csrtrain.progress import working
    from csrtrain.texts import Recipe, TextCoder

    found_in = InvertedIndex.load(index)
    lines = None if texts is None else read_lines(texts, len(found_in))
    use_threads(threads)
    recipe = Recipe(text_model, None if model is None else str(model))
    coder = TextCoder(recipe.over(Recipe.of_index(index)))
    records, codes = _read_queries(queries, coder, found_in.dim, model is not None)
    with working("searching"):
        started = time.perf_counter()
        scores, ids = found_in.search(codes, topk=topk, num_threads=threads)
        seconds = time.perf_counter() - started
    if output is not None:
        _write_hits(output, scores, ids)
    if as_json:
        emit_hits(records, scores, ids, lines)
        return
    print_hits(scores[:show], ids[:show], lines)
    say(
        f"{len(codes)} queries in {seconds * 1e3:.1f} ms, {1e6 * seconds / max(1, len(codes)):.1f} "
        "µs each" + (f"; wrote {output}" if output else "")
    )


def _read_queries(
    queries: str, coder: TextCoder, dim: int, embeddings: bool
) -> tuple[list[dict[str, Any]], SparseCodes]:
    """A record for each query, with what its JSON line held, and their codes.

    A file that could hold codes or embeddings holds `embeddings`, or else codes.
    """
    file, _ = split_name(queries)
    suffix = file.suffix.lower()
    # A name of a file that is not there is a mistake, not a query of one word.
    named = suffix in FILES and " " not in queries
    if queries == "-" or (suffix in LINES and (named or file.is_file())):
        records = list(read_records(queries, FIELD))
        if not records:
            raise ValueError("expected at least one query, got none")
        return records, _codes_of(records, coder, dim)
    if not named and not file.is_file():
        records = [{FIELD: queries}]
        return records, _codes_of(records, coder, dim)
    if embeddings or (suffix in EMBEDDING_FILES and coder.recipe.adapter is not None):
        from csrtrain.data import load_embeddings

        codes = coder.codes_of_embeddings(load_embeddings(*split_name(queries)))
    else:
        codes = load_codes(Path(queries), "give the --model that encodes embeddings")
    return [{} for _ in range(len(codes))], codes


def _codes_of(records: list[dict[str, Any]], coder: TextCoder, dim: int) -> SparseCodes:
    """Codes of JSON lines; the first one decides of what kind they are."""
    from csrtrain.progress import working

    if "indices" in records[0]:
        return codes_of_records(records, dim)
    with working("encoding the queries"):
        if "embedding" in records[0]:
            import numpy as np

            return coder.codes_of_embeddings(
                np.array([field_of(record, "embedding", list) for record in records], np.float32)
            )
        return coder.codes_of_texts([field_of(r, FIELD, str) for r in records], query=True)


def _write_hits(path: Path, scores: Any, ids: Any) -> None:
    import io

    import numpy as np

    from csrkern.storage import write_atomically

    payload = io.BytesIO()
    np.savez(payload, scores=scores, ids=ids)
    write_atomically(path, payload.getvalue())


def emit_hits(records: list[dict[str, Any]], scores: Any, ids: Any, lines: Any = None) -> None:
    """A JSON line for each query: its record, and hits, with the `lines` that they stand for."""
    for query, record in enumerate(records):
        found = zip(ids[query].tolist(), numbers_of(scores[query]), strict=True)
        hits = [
            {"id": hit, "score": score} | ({} if lines is None else {FIELD: lines[hit]})
            for hit, score in found
            if hit >= 0
        ]
        kept = {name: value for name, value in record.items() if name not in CODE_FIELDS}
        emit({"query": query, **kept, "hits": hits})


def print_hits(scores: Any, ids: Any, lines: list[str] | None = None) -> None:
    """A table of every query's hits."""
    from rich.markup import escape
    from rich.table import Table

    if not len(ids):
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("query", "rank", "score", "id"):
        table.add_column(name, justify="right")
    if lines is not None:
        table.add_column("text")
    for query, (row_scores, row_ids) in enumerate(zip(scores, ids, strict=True)):
        for rank, (score, hit) in enumerate(zip(row_scores, row_ids, strict=True), start=1):
            if hit < 0:
                continue
            cells = [str(query), str(rank), f"{score:.4f}", str(hit)]
            table.add_row(*cells, *([] if lines is None else [escape(lines[hit])]))
    console().print(table)
