"""The command eval: compare the accuracy of codes with other ways to a smaller vector."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from csrkern.storage import is_stream, resolve
from csrtrain.cli import shared
from csrtrain.cli.kinds import expect, expect_model
from csrtrain.cli.lines import emit
from csrtrain.progress import console, say, stream_beside

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from csrkern.nn import SparseAutoencoder
    from csrtrain.evaluation.comparison import Result, Task


def evaluate(
    embeddings: shared.Embeddings,
    labels: Annotated[str | None, shared.array("Label of each row.")] = None,
    model: Annotated[str | None, shared.adapter("The model whose codes are compared.")] = None,
    test: Annotated[
        str | None, shared.array("Query embeddings. Default: hold out a share of EMBEDDINGS.")
    ] = None,
    test_labels: Annotated[str | None, shared.array("Labels of the query embeddings.")] = None,
    qrels: Annotated[
        str | None,
        shared.array("Relevance judgments instead of labels: rows (query, document, grade)."),
    ] = None,
    holdout: Annotated[
        float, typer.Option(help="Share of the rows that become queries where there is no --test.")
    ] = 0.2,
    k: Annotated[
        str, typer.Option("--k", metavar="K,K,...", help="Numbers of active dimensions to compare.")
    ] = "4,8,16,32",
    matryoshka: Annotated[
        bool, typer.Option("--matryoshka", help="Train a Matryoshka-Adaptor to compare with.")
    ] = False,
    quantizers: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME,...",
            help="Quantizers to compare with, of PQ, OPQ, RQ, PRQ, LSQ, PLSQ, RaBitQ-1 to "
            "RaBitQ-4, TurboQuant-1 to TurboQuant-4. Default: those that learn in a minute or two.",
        ),
    ] = None,
    probes: Annotated[
        bool,
        typer.Option(
            "--probes", help="Measure a linear probe and k-means, too; needs scikit-learn."
        ),
    ] = False,
    show_all: Annotated[
        bool, typer.Option("--all", help="Print every method at every size, not verdicts only.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE.csv", help="Write the table.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write the table and charts.")
    ] = None,
    threads: shared.Threads = None,
    as_json: shared.Json = False,
    force: shared.Force = False,
) -> None:
    """Compare codes with dense vectors, PCA, int8, binary, quantizers and more.

    With labels, each query takes the label of its nearest row by cosine; with --qrels, rankings
    are scored by nDCG@10 and others. Prints what to take for how many bytes of a row that is
    scanned; --all prints every method. Codebooks need FAISS, and enough rows. A model must not
    have been trained on the labels of the queries: give those as --test.

    [bold]Examples[/bold]

      csrkern eval train.npy --labels y.npy --test test.npy --test-labels y_test.npy --model model

      csrkern eval data.npz:docs --test data.npz:queries --qrels data.npz:qrels --report out.html
    """
    for path, suffix in ((output, ".csv"), (report, ".html")):
        if path is not None:
            shared.check_free(path, force, suffix)
    if output and report and not is_stream(output) and resolve(output) == resolve(report):
        raise ValueError(f"--output and --report: expected two files, got {output} for both")
    expect(embeddings, "embeddings")
    if test is not None:
        expect(test, "embeddings")
    if model is not None:
        expect_model(model)
    shared.use_threads(threads)
    from csrkern.storage import write_atomically
    from csrtrain.charts import check_matplotlib
    from csrtrain.evaluation.comparison import left_out
    from csrtrain.evaluation.eval_report import to_csv, to_html
    from csrtrain.progress import working

    if report is not None:
        check_matplotlib()
    names = _quantizers(quantizers)
    with working("comparing"):
        task = _task(embeddings, labels, test, test_labels, qrels, holdout, probes)
        adapter = None if model is None else _adapter(model, task.database.shape[1])
        results = list(_results(task, adapter, shared.numbers(k, "--k"), names, matryoshka))
    omitted = left_out(task.database, names)
    notes = [f"{name} is left out: {reason}" for name, reason in omitted.items()]
    title = f"{len(task.queries):,} queries, {len(task.database):,} rows"
    if as_json:
        sizes = {"queries": len(task.queries), "rows": len(task.database)}
        table = [dataclasses.asdict(result) for result in results]
        emit({**sizes, "results": table, "left_out": omitted}, stream_beside(output, report))
    else:
        if show_all:
            _print(results, title, stream_beside(output, report))
        else:
            _print_verdicts(results, title, output, report)
        for note in notes:
            say(note, output, report)

    outputs = (output, lambda: to_csv(results)), (report, lambda: to_html(results, title, notes))
    for path, text in outputs:
        if path is not None:
            write_atomically(path, text().encode())
            if not as_json:
                say(f"Wrote {path}", output, report)
    if not as_json:
        following = f"train {shared.quoted(embeddings)} -o model"
        if model is not None:
            following = f"encode {shared.quoted(model, embeddings)} -o codes.safetensors"
        say(f"Next: csrkern {following}", output, report)


def _task(
    embeddings: str,
    labels: str | None,
    test: str | None,
    test_labels: str | None,
    qrels: str | None,
    holdout: float,
    probes: bool,
) -> Task:
    from csrkern.embeddings.labels import number_labels, read_integers, read_labels
    from csrtrain.evaluation.comparison import Task

    if (labels is None) == (qrels is None):
        raise ValueError("expected either --labels or --qrels, to judge by")
    if qrels is not None and test is None:
        raise ValueError("--qrels needs --test, the embeddings of the queries")
    if labels is not None and (test is None) != (test_labels is None):
        raise ValueError("--test and --test-labels belong together; give both or none")
    database = _rows(embeddings)
    queries = None
    if test is not None:
        queries = _rows(test)
        if queries.shape[1] != database.shape[1]:
            raise ValueError(
                f"--test: expected embeddings of {database.shape[1]} dimensions, got "
                f"{queries.shape[1]}"
            )
    if qrels is not None:
        assert queries is not None
        from csrtrain.evaluation.metrics import Judgments

        judgments = Judgments(read_integers(qrels), len(queries), len(database))
        return Task(database, queries, judgments=judgments)
    assert labels is not None
    raw_labels = read_labels(labels, n=len(database))
    if queries is None or test_labels is None:
        (database_labels,) = number_labels(raw_labels)
        return _split(
            Task(database, database, database_labels, database_labels, probes=probes), holdout
        )
    raw_query_labels = read_labels(test_labels, n=len(queries))
    database_labels, query_labels = number_labels(raw_labels, raw_query_labels)
    return Task(database, queries, database_labels, query_labels, probes=probes)


def _quantizers(names: str | None) -> tuple[str, ...]:
    from csrtrain.evaluation.comparison import QUICK_QUANTIZERS
    from csrtrain.evaluation.quantizers import QUANTIZERS

    if names is None:
        return QUICK_QUANTIZERS
    chosen = tuple(name.strip() for name in names.split(",") if name.strip())
    for name in chosen:
        if name not in QUANTIZERS:
            raise ValueError(
                f"--quantizers: expected some of {', '.join(QUANTIZERS)}, got {name!r}"
            )
    return chosen


def _rows(embeddings: str) -> Tensor:
    import torch

    from csrkern.embeddings.dataset import open_embeddings

    return torch.cat([*open_embeddings("embeddings", embeddings).pieces()])


def _split(task: Task, holdout: float) -> Task:
    """Split rows at random, always alike: a share of them become queries."""
    import torch

    assert task.database_labels is not None
    n = len(task.database)
    n_queries = round(holdout * n) if 0 < holdout < 1 else 0
    if not 0 < n_queries < n:
        raise ValueError(
            f"--holdout: expected a share between 0 and 1 of {n} rows that leaves some on both "
            f"sides, got {holdout}"
        )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    database_rows, query_rows = order[n_queries:].sort().values, order[:n_queries].sort().values
    return dataclasses.replace(
        task,
        database=task.database[database_rows],
        queries=task.database[query_rows],
        database_labels=task.database_labels[database_rows],
        query_labels=task.database_labels[query_rows],
    )


def _adapter(model: str, d: int) -> SparseAutoencoder:
    from csrkern.nn import SparseAutoencoder

    adapter = SparseAutoencoder.from_pretrained(model)
    if adapter.input_dim != d:
        raise ValueError(f"{model} takes {adapter.input_dim} dimensions, the embeddings have {d}")
    return adapter


def _results(
    task: Task,
    adapter: SparseAutoencoder | None,
    ks: tuple[int, ...],
    quantizers: Sequence[str],
    matryoshka: bool,
) -> Iterator[Result]:
    from csrtrain.evaluation.comparison import (
        compare_adapter,
        compare_codes,
        compare_dense,
        compare_quantizers,
    )

    if adapter is not None:
        yield from compare_codes(task, adapter, ks)
    yield from compare_dense(task, task.database, ks)
    yield from compare_quantizers(task, task.database, ks, quantizers)
    if matryoshka:
        from csrtrain.training.matryoshka import train_matryoshka

        widths = [*ks, *(2 * k for k in ks)]
        trained = train_matryoshka(task.database, widths)
        yield from compare_adapter(task, trained, ks, "Matryoshka-Adaptor")


def _print_verdicts(results: list[Result], title: str, *outputs: Path | None) -> None:
    from csrtrain.evaluation.verdicts import verdicts

    say(f"{title}, {next(iter(results[0].scores))}", *outputs)
    for dense in [result for result in results if result.method == "dense"]:
        say(f"Dense vectors, {dense.bytes_per_vector} bytes: {100 * dense.main:.1f}%.", *outputs)
    for verdict in verdicts(results):
        say(str(verdict), *outputs)
    say("Every method: --all, --output FILE.csv or --report FILE.html.", *outputs)


def _print(results: list[Result], title: str, stream: TextIO) -> None:
    from rich.table import Table

    measures = list(dict.fromkeys(name for result in results for name in result.scores))
    table = Table(title=title, title_justify="left")
    table.add_column("method")
    for name in ("active", "bytes a vector", *measures):
        table.add_column(name, justify="right")
    last = None
    for result in sorted(results, key=lambda r: (r.bytes_per_vector, r.method)):
        if last is not None and result.bytes_per_vector != last:
            table.add_section()
        last = result.bytes_per_vector
        table.add_row(
            result.method,
            str(result.active),
            str(result.bytes_per_vector),
            *(f"{100 * result.scores[n]:.1f}%" if n in result.scores else "" for n in measures),
            style="bold cyan" if result.method.startswith("CSR") else None,
        )
    console(stderr=stream is sys.stderr).print(table)
