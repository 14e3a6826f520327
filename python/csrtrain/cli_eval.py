"""The command eval: what codes keep, beside dense vectors and the training-free baselines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from csrtrain.cli_io import (
    ARRAY,
    Embeddings,
    Force,
    Threads,
    check_free,
    console,
    numbers,
    say,
    split_name,
    use_threads,
)

if TYPE_CHECKING:
    from torch import Tensor

    from csrtrain.data import Array
    from csrtrain.evaluate import Outcome

TITLES = {"csr": "CSR", "pca": "PCA", "top-k": "top-k, untrained", "first dims": "first dims"}


def evaluate(
    embeddings: Embeddings,
    labels: Annotated[str, typer.Option(metavar=ARRAY, help="A label for each row.")],
    model: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="A folder written by train.")
    ] = None,
    test: Annotated[
        str | None, typer.Option(metavar=ARRAY, help="Embeddings that ask, if in another array.")
    ] = None,
    test_labels: Annotated[str | None, typer.Option(metavar=ARRAY, help="Their labels.")] = None,
    holdout: Annotated[
        float, typer.Option(help="Share of the rows that ask where there is no --test.")
    ] = 0.2,
    k: Annotated[
        str, typer.Option("--k", metavar="K,K,...", help="Active dimensions.")
    ] = "4,8,16,32",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE.csv", help="Write the table.")
    ] = None,
    threads: Threads = None,
    force: Force = False,
) -> None:
    """Compare codes by 1-NN accuracy with dense vectors, PCA and more.

    Each query takes the label of its nearest row by cosine. Every k is shown beside PCA with as
    many numbers and PCA with as many bytes. A model must not have been trained on the labels of
    the rows that ask: give those as --test.

    [bold]Examples[/bold]

      csrkern eval train.npy --labels y.npy --test test.npy --test-labels y_test.npy --model model

      csrkern eval data.npz:emb --labels data.npz:label --k 8,32 -o accuracy.csv
    """
    if output is not None:
        check_free(output, force)
    use_threads(threads)
    if (test is None) != (test_labels is None):
        raise ValueError("--test and --test-labels belong together; give both or none")
    from csrtrain.data import load_embeddings, number_labels, read_labels
    from csrtrain.evaluate import compare

    ks = numbers(k, "--k")
    database: Array = load_embeddings(*split_name(embeddings))
    stored = read_labels(*split_name(labels), n=len(database))
    if test is None or test_labels is None:
        (wanted,) = number_labels(stored)
        database, wanted, queries, query_labels = _split(database, wanted, holdout)
    else:
        queries = load_embeddings(*split_name(test))
        asked = read_labels(*split_name(test_labels), n=len(queries))
        wanted, query_labels = number_labels(stored, asked)
    if queries.shape[1] != database.shape[1]:
        raise ValueError(
            f"--test: expected embeddings of {database.shape[1]} dimensions, got {queries.shape[1]}"
        )
    adapter = None
    if model is not None:
        from csrkern.nn import SparseAutoencoder

        adapter = SparseAutoencoder.from_pretrained(model).eval()
        if adapter.input_dim != database.shape[1]:
            raise ValueError(
                f"{model} takes {adapter.input_dim} dimensions, the embeddings have "
                f"{database.shape[1]}"
            )
    outcomes = list(compare(database, wanted, queries, query_labels, models=adapter, ks=ks))
    _print(outcomes, len(database), len(queries))
    if output is not None:
        _write(output, outcomes)
        say(f"Wrote {output}")


def _split(
    embeddings: Array, labels: Tensor, holdout: float
) -> tuple[Array, Tensor, Array, Tensor]:
    """A random part of the rows asks the rest; always the same part."""
    import torch

    from csrtrain.data import rows

    n = len(labels)
    asking = round(holdout * n)
    if not 0 < asking < n:
        raise ValueError(f"--holdout: expected a share that leaves rows on both sides of {n}")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    left, right = order[asking:].sort().values, order[:asking].sort().values
    return rows(embeddings, left), labels[left], rows(embeddings, right), labels[right]


def _print(outcomes: list[Outcome], n_rows: int, n_queries: int) -> None:
    from rich.table import Table

    table = Table(
        title=f"1-NN accuracy, {n_queries:,} queries, {n_rows:,} rows", title_justify="left"
    )
    table.add_column("method")
    for name in ("active", "bytes a vector", "accuracy"):
        table.add_column(name, justify="right")
    for before, outcome in zip([None, *outcomes], outcomes, strict=False):
        if before is None or outcome.method == outcomes[1].method:
            table.add_section()
        table.add_row(
            TITLES.get(outcome.method, outcome.method),
            str(outcome.active),
            str(outcome.bytes_per_vector),
            f"{100 * outcome.accuracy:.1f}%",
            style="bold cyan" if outcome.method == "csr" else None,
        )
    console().print(table)


def _write(path: Path, outcomes: list[Outcome]) -> None:
    from csrkern.storage import write_atomically

    lines = ["method,active,bytes_per_vector,accuracy"]
    lines += [f"{o.method},{o.active},{o.bytes_per_vector},{o.accuracy:.6f}" for o in outcomes]
    write_atomically(path, ("\n".join(lines) + "\n").encode())
