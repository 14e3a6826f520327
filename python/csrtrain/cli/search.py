"""The command search: find the best matches of codes, embeddings or words."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from csrkern.storage import is_stream
from csrtrain.cli import lines, shared
from csrtrain.cli.kinds import expect, expect_model, index_folder, kind_of
from csrtrain.lines import Record, printable, set_aside
from csrtrain.progress import console, say, stream_beside

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from csrkern import FineQuantizer, InvertedIndex, SparseCodes
    from csrkern.embeddings.dataset import Embeddings
    from csrtrain.texts import TextCoder

LINES = (".txt", *lines.JSON_LINES)
QUERIES = ("embeddings", "codes", "lines")
FILES = (*LINES, *shared.EMBEDDING_FILES, ".safetensors")


def search(
    index: shared.IndexFolder,
    queries: Annotated[
        str,
        typer.Argument(
            metavar="QUERIES",
            help="Words; or a file of codes, of embeddings, of lines (.txt) or of JSON lines "
            "(.jsonl) with text, embedding, or indices and values; -: lines of standard input.",
        ),
    ],
    model: Annotated[
        str | None, shared.adapter("The adapter of embeddings (default: the one INDEX remembers).")
    ] = None,
    text_model: shared.TextModelName = None,
    top_k: Annotated[int, shared.whole("Hits a query.")] = 10,
    probes: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=256,
            help="With an index of fine codes alone: how many cells to read; 8 to 16 find nearly "
            "everything (default: all cells).",
        ),
    ] = None,
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

    If the index holds fine codes, embedded queries are scored by them. An index of fine codes alone
    takes embeddings or words and needs no adapter.

    --json prints a line for each query: {"query": 0, "text": ..., "hits": [...]}. Fields called
    query or hits in a query's own JSON line are printed as query_ and hits_.

    [bold]Examples[/bold]

      csrkern search index "a device for telling time" --texts lines.txt

      csrkern search index queries.safetensors --top-k 20 -o hits.npz

      csrkern search index queries.npy --model model --json
    """
    if output is not None:
        shared.check_free(output, force, ".npz")
    from csrkern import InvertedIndex
    from csrkern.embeddings.files import split_name
    from csrkern.identity import check_same_model
    from csrtrain.progress import working
    from csrtrain.recipe import Recipe
    from csrtrain.texts import TextCoder

    usage = "csrkern search INDEX QUERIES"
    folder = index_folder(index, usage)
    if model is not None:
        expect_model(model)
    if kind_of(queries) in ("index", "model", "table"):
        expect(queries, *QUERIES, usage=usage)
    inverted, stored = InvertedIndex.load(folder), Recipe.of_index(folder)
    if probes is not None and not inverted.only_fine:
        raise ValueError(
            f"--probes: {index} has lists, and only an index of fine codes alone has cells to "
            "read; leave it out"
        )
    text_of_id = None if texts is None else _texts_by_id(texts, inverted, stored.codes)
    shared.use_threads(threads)
    recipe = Recipe(text_model, model)
    coder = TextCoder(recipe.over(stored), any_model=any_model)
    fields, asked = _read_queries(queries, coder, inverted, model is not None)
    if asked.codes is not None:
        check_same_model(
            queries if os.path.isfile(split_name(queries)[0]) else "queries",
            asked.codes.fingerprint,
            inverted.fingerprint,
            any_model=any_model,
            holder=index,
        )
    with working("searching"):
        started = time.perf_counter()
        scores, ids = _find(inverted, asked, top_k, probes, threads)
        seconds = time.perf_counter() - started
    if output is not None:
        _write_hits(output, scores, ids)
    if as_json:
        emit_hits(fields, scores, ids, text_of_id, output)
        return
    print_hits(scores[:show], ids[:show], text_of_id, output)
    say(
        f"{len(ids)} queries in {seconds * 1e3:.1f} ms, {1e6 * seconds / max(1, len(ids)):.1f} "
        "µs each"
        + (f"; wrote {output}" if output else "")
        + f"\nNext: csrkern serve {shared.quoted(index)}",
        output,
    )


@dataclass(frozen=True)
class _Asked:
    """Queries, as codes or as embeddings or both.

    Attributes:
        codes: None for an index without lists.
        embedded: None where they came as codes.
    """

    codes: SparseCodes | None
    embedded: Embeddings | None = None


def _find(
    index: InvertedIndex, asked: _Asked, top_k: int, probes: int | None, threads: int | None
) -> tuple[Any, Any]:
    import torch

    from csrkern import Refine

    dense = None
    if index.quantizer is not None and asked.embedded is not None:
        dense = torch.cat([*asked.embedded.pieces()])
    if asked.codes is None:
        assert dense is not None
        return index.search_fine(dense, top_k, probes=probes, num_threads=threads)
    rerank = None if dense is None else Refine(dense)
    return index.search(asked.codes, top_k, rerank=rerank, any_model=True, num_threads=threads)


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
    queries: str, coder: TextCoder, index: InvertedIndex, embeddings: bool
) -> tuple[list[dict[str, Any]], _Asked]:
    """Return the other fields of each query's JSON line, and the queries.

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
        return _of_records(records, coder, index)
    if not is_file_name and not os.path.isfile(file):
        return _of_records([Record("QUERIES", {lines.FIELD: queries})], coder, index)
    alone = _quantizer_alone(index) is not None
    if alone and suffix == ".safetensors" and _holds_codes(file):
        raise _codes_refused(queries, index)
    if alone or embeddings or (suffix in shared.EMBEDDING_FILES and coder.recipe.adapter):
        asked = _of_embeddings(queries, coder, index)
        return [{} for _ in range(len(asked.embedded or ()))], asked
    from csrtrain.recipe import Recipe

    codes = shared.load_codes(Path(queries), "give the --model that encodes embeddings")
    coder.check_codes(Recipe.of_codes(Path(queries)), queries)
    return [{} for _ in range(len(codes))], _Asked(codes)


def _quantizer_alone(index: InvertedIndex) -> FineQuantizer | None:
    """Return the quantizer of an index without lists; None: it has lists."""
    return index.quantizer if index.only_fine else None


def _holds_codes(file: Path) -> bool:
    from csrkern.codes import file as codes_file

    try:
        codes_file.read(file)
    except (FileNotFoundError, ValueError):
        return False
    return True


def _codes_refused(name: str, index: InvertedIndex) -> ValueError:
    assert index.quantizer is not None
    return ValueError(
        f"{name}: expected embeddings of {index.quantizer.dim} dimensions (a .npy, .npz, "
        ".safetensors or .parquet file, or JSON lines with embedding) or words, got codes; the "
        "index holds fine codes alone, no lists that codes could be looked up in"
    )


def _of_embeddings(embeddings: Any, coder: TextCoder, index: InvertedIndex) -> _Asked:
    """Return embeddings as they are and, for an index with lists, their codes."""
    from csrkern.embeddings.dataset import open_embeddings

    quantizer = _quantizer_alone(index)
    if quantizer is not None:
        return _Asked(None, open_embeddings("queries", embeddings, width=quantizer.dim))
    opened = open_embeddings("queries", embeddings)
    return _Asked(coder.codes_of_embeddings(opened), opened)


def _of_records(
    records: list[Record], coder: TextCoder, index: InvertedIndex
) -> tuple[list[dict[str, Any]], _Asked]:
    """Return the fields of JSON lines besides codes and embeddings, and the queries.

    The first line decides for all: they are codes or embeddings if it holds lists of that name,
    else texts.
    """
    from csrtrain.progress import working

    if _holds(records[0], "indices", "values"):
        if _quantizer_alone(index):
            raise _codes_refused(records[0].where, index)
        coder.check_codes(lines.recipe_of_records(records), records[0].where)
        codes = lines.codes_of_records(records, index.dim)
        return _without(records, lines.CODE_FIELDS), _Asked(codes)
    with working("encoding the queries"):
        if _holds(records[0], "embedding"):
            asked = _of_embeddings(lines.embeddings_of(records), coder, index)
            return _without(records, ("embedding",)), asked
        texts = [lines.text_of(record) for record in records]
        embedded = coder.text_model.embed(texts, query=True)
        if not coder.text_model.sparse:
            asked = _of_embeddings(embedded, coder, index)
        elif _quantizer_alone(index):
            raise _codes_refused(f"the text model {coder.recipe.text_model}", index)
        else:
            asked = _Asked(embedded)
        return _without(records, ()), asked


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
