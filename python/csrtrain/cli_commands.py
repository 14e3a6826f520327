"""The commands demo, encode, index, search and info."""

from __future__ import annotations

import os
import platform
import time
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from csrtrain.cli_io import (
    Embeddings,
    Force,
    Output,
    Threads,
    check_free,
    console,
    load_codes,
    read_lines,
    say,
    split_name,
    use_threads,
)


class Metric(str, Enum):
    """Scores that an index ranks by."""

    INNER_PRODUCT = "ip"
    COSINE = "cosine"


class Values(str, Enum):
    """How the values of codes are stored."""

    FLOAT16 = "float16"
    FLOAT32 = "float32"


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
) -> None:
    """Show it all on real data: a reverse dictionary, from a definition to its word.

    Trains two adapters on 16,060 WordNet definitions that are part of this package, one without
    labels and one with, searches 3,877 others, and compares accuracy, bytes and time with dense
    vectors and PCA. Writes report.html, the models and the index; a second run replaces them.

    [bold]Examples[/bold]

      csrkern demo

      csrkern demo --ask "a device for telling time"
    """
    if ask is None:
        from csrtrain.demo import run

        run(output, quick=quick)
    else:
        from csrtrain.demo_ask import answer

        answer(output, ask, text_model, quick=quick)


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
    threads: Threads = None,
    force: Force = False,
) -> None:
    """Turn embeddings into sparse codes.

    [bold]Example[/bold]

      csrkern encode model embeddings.npy -o codes.safetensors
    """
    check_free(output, force)
    use_threads(threads)
    from csrkern.nn import SparseAutoencoder
    from csrtrain.data import load_embeddings
    from csrtrain.evaluate import encode_all

    adapter = SparseAutoencoder.from_pretrained(model).eval()
    codes = encode_all(adapter, load_embeddings(*split_name(embeddings)), k)
    codes.save(output, values=values.value)
    size = output.stat().st_size / len(codes)
    say(
        f"Wrote {output}: {len(codes)} codes, {codes.k} of {codes.dim} latents, "
        f"{size:.0f} bytes a code.\nNext: csrkern index {output} -o index"
    )


def index(
    codes: Annotated[Path, typer.Argument(metavar="CODES", help="A file written by encode.")],
    output: Output,
    metric: Annotated[
        Metric,
        typer.Option(help="What search ranks by; InvertedIndex.build in Python takes ip if none."),
    ] = Metric.COSINE,
    values: Annotated[
        StoredValues, typer.Option(help="Precision of the stored values; uint8 is the smallest.")
    ] = StoredValues.FLOAT16,
    threads: Threads = None,
    force: Force = False,
) -> None:
    """Build an inverted index over codes, for exact search.

    [bold]Example[/bold]

      csrkern index codes.safetensors -o index
    """
    check_free(output, force)
    from csrkern import InvertedIndex

    started = time.perf_counter()
    built = InvertedIndex.build(
        load_codes(codes, "make codes of embeddings with csrkern encode"),
        metric=metric.value,
        values=values.value,
        num_threads=threads,
    )
    seconds = time.perf_counter() - started
    built.save(output)
    say(
        f"Wrote {output}: {len(built)} codes over {built.dim} latents, built in {seconds:.2f} s."
        f"\nNext: csrkern search {output} QUERIES"
    )


def search(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="A folder written by index.")],
    queries: Annotated[
        str, typer.Argument(metavar="QUERIES", help="Codes, or with --model embeddings.")
    ],
    model: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="Encode the queries with this model.")
    ] = None,
    topk: Annotated[int, typer.Option(min=1, help="Hits a query.")] = 10,
    texts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A text line for each code, to print.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.npz", help="Write scores and ids [n, topk]."),
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="Queries whose hits are printed.")] = 5,
    threads: Threads = None,
    force: Force = False,
) -> None:
    """Find the best matches in an index, exactly.

    [bold]Examples[/bold]

      csrkern search index queries.safetensors --topk 20 -o hits.npz

      csrkern search index queries.npy --model model --texts lines.txt
    """
    if output is not None:
        check_free(output, force)
    from csrkern import InvertedIndex

    found_in = InvertedIndex.load(index)
    lines = None if texts is None else read_lines(texts, len(found_in))
    if model is None:
        codes = load_codes(Path(queries), "give the --model that encodes embeddings")
    else:
        use_threads(threads)
        from csrkern.nn import SparseAutoencoder
        from csrtrain.data import load_embeddings
        from csrtrain.evaluate import encode_all

        adapter = SparseAutoencoder.from_pretrained(model).eval()
        codes = encode_all(adapter, load_embeddings(*split_name(queries)))
    started = time.perf_counter()
    scores, ids = found_in.search(codes, topk=topk, num_threads=threads)
    seconds = time.perf_counter() - started
    if output is not None:
        _write_hits(output, scores, ids)
    _print_hits(scores[:show], ids[:show], lines)
    say(
        f"{len(codes)} queries in {seconds * 1e3:.1f} ms, {1e6 * seconds / max(1, len(codes)):.1f} "
        "µs each" + (f"; wrote {output}" if output else "")
    )


def _write_hits(path: Path, scores: Any, ids: Any) -> None:
    import io

    import numpy as np

    from csrkern.storage import write_atomically

    payload = io.BytesIO()
    np.savez(payload, scores=scores, ids=ids)
    write_atomically(path, payload.getvalue())


def _print_hits(scores: Any, ids: Any, lines: list[str] | None) -> None:
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


def info() -> None:
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
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")
