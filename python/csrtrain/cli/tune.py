"""The command tune: the settings that serve embeddings best in given bytes."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from typing import TYPE_CHECKING, Annotated

import typer

from csrtrain.cli import shared
from csrtrain.cli.kinds import expect
from csrtrain.cli.lines import emit
from csrtrain.progress import console, say

if TYPE_CHECKING:
    from collections.abc import Callable

    from csrtrain.tuning import Setting, Trial, Tuned


def tune(
    embeddings: shared.Embeddings,
    output: shared.Output,
    n_bytes: Annotated[
        int, typer.Option("--bytes", min=3, max=4096, help="Bytes of a document in the index.")
    ] = 32,
    labels: Annotated[
        str | None, shared.array("Judge by the labels of held-out rows, one for each row.")
    ] = None,
    queries: Annotated[str | None, shared.array("Judge by queries; needs --qrels.")] = None,
    qrels: Annotated[
        str | None, shared.array("Relevance judgments: rows (query, document, grade).")
    ] = None,
    lists: Annotated[
        bool,
        typer.Option(
            "--lists/--no-lists",
            help="Try lists, too, for which models are trained; else fine codes alone.",
        ),
    ] = True,
    hidden_dims: Annotated[
        list[int] | None,
        typer.Option("--hidden-dim", min=1, help="Number of latents to try; may be repeated."),
    ] = None,
    steps: Annotated[
        int | None, shared.whole("Optimizer steps of each training (default: by the data).")
    ] = None,
    threads: shared.Threads = None,
    as_json: shared.Json = False,
    force: shared.Force = False,
) -> None:
    """Find the best index in a given number of bytes, with or without a model, and write it.

    It tries fine codes alone in all of the bytes, in a half, a quarter and so on: as they are,
    behind principal directions, and behind a projection learned from --labels or from --queries
    with --qrels. With lists it trains models and tries each --hidden-dim, several weights of weak
    directions, and several splits of the bytes between latents (values of a byte or half a byte)
    and fine codes.

    It judges by rows or queries that are held out: by their labels, by their judgments or, without
    either, by their dense neighbors. It writes PATH/index, PATH/trials.html with charts of score
    against bytes, latents and queries a second, and PATH/model if there are lists. If reading only
    some cells of fine codes is faster and scores as high, it says how many (--probes of csrkern
    search). Needs FAISS and matplotlib.

    [bold]Examples[/bold]

      csrkern tune embeddings.npy --bytes 32 -o tuned

      csrkern tune data.npz:x --labels data.npz:y --bytes 16 --no-lists -o tuned

      csrkern tune data.npz:docs --queries data.npz:queries --qrels data.npz:qrels -o tuned
    """
    shared.check_free(output, force, folder=True)
    expect(embeddings, "embeddings")
    shared.use_threads(threads)
    from csrtrain.charts import check_matplotlib
    from csrtrain.recipe import Recipe
    from csrtrain.training.config import TrainConfig
    from csrtrain.tuning import tune as find

    check_matplotlib()
    tuned = find(
        embeddings,
        labels,
        n_bytes=n_bytes,
        queries=queries,
        qrels=qrels,
        lists=lists,
        hidden_dims=hidden_dims or None,
        config=TrainConfig(steps=steps),
    )
    model, index = tuned.build(embeddings)
    with shared.folder_for(output) as folder:
        if model is None:
            shutil.rmtree(folder / "model", ignore_errors=True)  # of an earlier run
        else:
            model.save_pretrained(folder / "model")
        index.save(folder / "index")
        Recipe(codes=len(index)).save_to_index(folder / "index", model)
        (folder / "trials.html").write_text(_page(tuned))
    if as_json:
        facts = dataclasses.asdict(dataclasses.replace(tuned, projection=None))
        width = None if tuned.projection is None else tuned.projection.width
        emit({"output": str(output), **facts, "projection": width}, None)
        return
    _print(tuned)
    setting = tuned.best.setting
    latents = f", k = {setting.k} ({setting.dtype})" if setting.k else ""
    say(
        f"Best: {_model(tuned.best)}{latents}, {setting.fine_bytes} bytes of fine code.\n"
        f"Wrote {output}: {'' if model is None else 'model, '}index and trials.html.\n"
        f"Next: csrkern search {shared.quoted(output / 'index', 'queries.npy')}"
        + (f" --probes {tuned.best.probes}" if tuned.best.probes else "")
    )


def _print(tuned: Tuned) -> None:
    from rich.table import Table

    table = Table(title=f"{tuned.measure}; dense: {100 * tuned.dense:.1f}%", title_justify="left")
    table.add_column("model")
    for name in ("k", "fine bytes", "bytes", "score", "queries/s", "probes"):
        table.add_column(name, justify="right")
    for trial in sorted(tuned.trials, key=lambda trial: -trial.score):
        setting = trial.setting
        table.add_row(
            _model(trial),
            f"{setting.k} {setting.dtype}" if setting.k else "",
            str(setting.fine_bytes),
            str(setting.n_bytes),
            f"{100 * trial.score:.1f}%",
            f"{trial.queries_per_second:,.0f}",
            str(trial.probes or ""),
            style="bold cyan" if trial is tuned.best else None,
        )
    console().print(table)


def _model(trial: Trial) -> str:
    setting = trial.setting
    n = setting.directions
    behind = "" if n is None else f" behind a projection to {n} dimensions"
    if setting.whitening is None:
        return f"fine codes alone{behind}"
    model = f"h = {setting.hidden_dim:,}, whitening {setting.whitening:g}"
    return f"{model}; fine codes{behind}" if behind else model


def _point(setting: Setting) -> str:
    return f"{setting.k}{'½' if setting.dtype == 'uint4' else ''}+{setting.fine_bytes}"


def _page(tuned: Tuned) -> str:
    """Return a page with charts: score against bytes, latents and queries a second."""
    from csrtrain.charts import COLORS, Series, line_chart
    from csrtrain.evaluation.eval_report import STYLE

    gray, *colors = COLORS[7], *COLORS[:7], *COLORS[8:]
    models = list(dict.fromkeys(map(_model, tuned.trials)))
    charts: dict[str, Callable[[Trial], float]] = {
        "bytes of a document": lambda trial: trial.setting.n_bytes,
        "latents of a document": lambda trial: trial.setting.k,
        "queries a second, one thread": lambda trial: trial.queries_per_second,
    }
    if not any(trial.setting.k for trial in tuned.trials):
        del charts["latents of a document"]
    figures = []
    for title, of in charts.items():
        series = [Series("dense", gray, [1], [100 * tuned.dense], dashed=True)]
        for name, color in zip(models, itertools.cycle(colors)):
            points = sorted(
                (of(trial), 100 * trial.score, _point(trial.setting))
                for trial in tuned.trials
                if _model(trial) == name
            )
            x, y, names = zip(*points, strict=True)
            # Without latents it has no place on a logarithmic axis: a level, not a point.
            series.append(Series(name, color, x, y, names, dashed=x == (0,)))
        chart = line_chart(
            series, title=f"{tuned.measure} against {title}", x=title, unit="%", log=2
        )
        figures.append(f"<figure>{chart}</figure>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>csrkern tune</title>'
        f"<style>{STYLE}</style></head><body><h1>{tuned.measure}</h1>\n"
        "<p>Points are named by latents, ½ where a value takes half a byte, + bytes of fine code."
        "</p>\n" + "\n".join(figures) + "</body></html>\n"
    )
