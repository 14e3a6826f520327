"""`csrkern demo`: a reverse dictionary, from a definition to its word, in sparse codes."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.markup import escape

import csrkern
from csrkern import InvertedIndex, SparseCodes
from csrkern.nn import SparseAutoencoder
from csrkern.roofline import instruction_set, processor_name
from csrkern.storage import check_folder, write_atomically
from csrtrain import StepReport, TrainConfig, train
from csrtrain.charts import check_matplotlib
from csrtrain.cli.shared import quoted
from csrtrain.demo import search as demo_search
from csrtrain.demo.data import QUESTIONS, DemoData, Text, dictionary, load_demo, load_everyday
from csrtrain.demo.report import (
    FAMILIES,
    DemoResult,
    Example,
    Method,
    Training,
    method_name,
    render,
    signed,
)
from csrtrain.evaluation.metrics import latent_use
from csrtrain.progress import console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.table import Table

ACTIVE = (2, 4, 8, 16, 32)
PCA_DIMS = tuple(2 * k for k in ACTIVE)  # as many bytes: a code takes two more for each latent
RECIPES = {"self": TrainConfig(), "label": TrainConfig(contrast="label")}
QUICK_STEPS = 10
QUICK_NOTE = "This was a quick run, far from trained: leave out --quick for the real figures.\n"
ROUNDS, QUICK_ROUNDS = 5, 1
EXAMPLE_ACTIVE, EXAMPLE_PCA = (32, 8), 64
N_WORDS = 5
# The files of a demo folder; `model` and `index` are what --ask uses again.
MODELS = {"self": "model", "label": "model-label"}
INDEX, WORDS, RESULTS, REPORT = "index", "words.txt", "results.json", "report.html"


@dataclasses.dataclass(frozen=True)
class Trained:
    """An adapter with the codes of the training definitions at its largest k."""

    model: SparseAutoencoder
    codes: SparseCodes
    history: Training


def run(folder: Path, *, quick: bool = False, out: Console | None = None) -> DemoResult:
    """Train, search, compare, print the outcome to `out` and write all into `folder`.

    Raises:
        ImportError: if matplotlib, which draws the report's charts, is not installed.
        ValueError: if `folder` holds something that is not from an earlier demo.
    """
    _check_folder(folder)
    check_matplotlib()
    out = out or console()
    began = time.perf_counter()
    data = load_demo()
    out.print(
        f"[bold]A reverse dictionary.[/bold] {len(data.train):,} WordNet definitions to learn "
        f"from, {len(data.test):,} others that ask, {data.train.shape[1]} dimensions each."
    )
    trained = {family: _train(family, data, quick, out) for family in RECIPES}
    training_seconds = sum(t.history.seconds for t in trained.values())
    rounds = QUICK_ROUNDS if quick else ROUNDS
    rows, texts = dictionary()
    codes = trained["self"].model.encode(rows, ACTIVE[-1])
    out.print("Comparing with dense search, top-k and PCA ...", highlight=False)
    best = f"The fastest of {rounds} runs." if rounds > 1 else "A single run."
    methods = _compare(data, trained, rounds)
    encoding = _encoding_micros(trained["self"].model, data, rounds)
    result = DemoResult(
        methods=methods,
        trainings=[t.history for t in trained.values()],
        examples=_examples(rows, texts, trained["self"].model, codes),
        timing=(
            f"All {len(data.test):,} queries in one batch on {torch.get_num_threads()} threads, "
            "from the dense query embedding to the ids of its ten nearest: encoding or projecting "
            f"is part of it. {best} Dense and PCA search are a float32 "
            "matrix product and an exact top 10; CSR and top-k search an exact inverted index. "
            f"Encoding alone takes {encoding:.1f} µs of a CSR query. "
            "Bytes: 2 a number (float16), for sparse codes 2 more for its latent."
        ),
        facts=_facts(trained, training_seconds, quick),
    )
    out.print(_table(result))
    out.print(f"[dim]{result.timing}[/dim]\n")
    out.print(_summary(result, quick), highlight=False)
    out.print(_answers(result.examples, len(codes)))
    _write(folder, result, trained, codes, texts)
    out.print(
        f"\nTrained twice in {training_seconds:.0f} s, {time.perf_counter() - began:.0f} s in all."
        f"\n  report   {folder / REPORT}"
        f"\n  models   {folder / MODELS['self']} (self contrast: no labels), "
        f"{folder / MODELS['label']} (label contrast)"
        f"\n  index    {folder / INDEX}, with its words in {folder / WORDS}"
        f'\nAsk it: csrkern demo -o {quoted(folder)} --ask "a device for telling time"',
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return result


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; --output needs a folder")
    known = {*MODELS.values(), INDEX, WORDS, RESULTS, REPORT}
    if folder.is_dir() and (foreign := sorted(set(os.listdir(folder)) - known)):
        raise ValueError(
            f"{folder} holds {foreign[0]}, which is not from a demo; choose another --output"
        )
    check_folder(folder)


def _train(family: str, data: DemoData, quick: bool, out: Console) -> Trained:
    config = RECIPES[family]
    if quick:
        config = dataclasses.replace(config, steps=QUICK_STEPS)
    reports: list[StepReport] = []
    out.print(f"{FAMILIES[family]}:", highlight=False)
    began = time.perf_counter()
    labels = data.train_labels if family == "label" else None
    model = train(data.train, labels, config, on_step=reports.append)
    seconds = time.perf_counter() - began
    codes = model.encode(data.train, ACTIVE[-1])
    shown = reports[:: -max(1, len(reports) // 100)][::-1]  # ends with the last report
    history = Training(
        family,
        seconds,
        [report.step for report in shown],
        [100 * report.losses["dead"] for report in shown],
        latent_use(codes).tolist(),
    )
    return Trained(model, codes, history)


def _compare(data: DemoData, trained: dict[str, Trained], n_rounds: int) -> list[Method]:
    rows, queries = torch.from_numpy(data.train), torch.from_numpy(data.test)
    searches = [
        demo_search.dense_search(rows),
        *demo_search.topk_searches(rows, ACTIVE),
        *demo_search.pca_searches(rows, PCA_DIMS),
    ]
    for family, adapter in trained.items():
        searches += demo_search.csr_searches(family, adapter.model, adapter.codes, ACTIVE)
    # In rounds over all searches, so that a busy moment of the machine affects all alike.
    rounds = [[search.seconds(queries) for search in searches] for _ in range(n_rounds)]
    return [
        Method(
            family=search.family,
            active=search.active,
            bytes=search.bytes,
            accuracy=search.nearest_accuracy(queries, data.train_labels, data.test_labels),
            micros=1e6 * min(times) / len(queries),
        )
        for search, times in zip(searches, zip(*rounds, strict=True), strict=True)
    ]


def _encoding_micros(model: SparseAutoencoder, data: DemoData, n_rounds: int) -> float:
    queries = torch.from_numpy(data.test)
    with torch.inference_mode():
        times = [
            demo_search.seconds(lambda q: model.encode(q, 8), queries) for _ in range(n_rounds)
        ]
    return 1e6 * min(times) / len(queries)


def _examples(
    rows: np.ndarray, texts: list[Text], model: SparseAutoencoder, codes: SparseCodes
) -> list[Example]:
    """Return all packaged questions, with the words that every kind of search finds for each."""
    searches = [demo_search.dense_search(torch.from_numpy(rows))]
    searches += demo_search.csr_searches("self", model, codes, EXAMPLE_ACTIVE)
    searches[2:2] = demo_search.pca_searches(torch.from_numpy(rows), [EXAMPLE_PCA])
    questions = torch.from_numpy(load_everyday().questions)
    names = [method_name(s.family, s.active).removesuffix(" self contrast") for s in searches]
    rankings = {
        f"{name}, {search.bytes} bytes": search.run(questions)
        for name, search in zip(names, searches, strict=True)
    }
    examples = []
    for i, (question, answers) in enumerate(QUESTIONS.items()):
        words = {kind: _words(texts, ids[i], answers) for kind, ids in rankings.items()}
        examples.append(Example(question, answers, words))
    return examples


def _words(texts: list[Text], ids: np.ndarray, answers: tuple[str, ...]) -> list[str]:
    """Return a word of each of the nearest definitions: an answer if it has one, else the first."""
    words = [texts[row].words.split(", ") for row in ids[:N_WORDS] if row >= 0]
    return [next((word for word in synonyms if word in answers), synonyms[0]) for synonyms in words]


def _table(result: DemoResult) -> Table:
    from rich.table import Table

    table = Table(
        title="Words by definition: nearest neighbor in the same class", title_justify="left"
    )
    table.add_column("bytes a vector", justify="right")
    table.add_column("method")
    for heading in ("1-NN accuracy", "µs a query", "speed"):
        table.add_column(heading, justify="right")
    styles = {"self": "bold cyan", "label": "bold yellow"}
    for n_bytes, methods in result.by_bytes():
        for method in methods:
            table.add_row(
                str(n_bytes),
                method.name,
                f"{method.accuracy:.1f}%",
                f"{method.micros:.1f}",
                f"{result.speed(method):.1f}×",
                style=styles.get(method.family),
            )
        table.add_section()
    return table


def _answers(examples: Sequence[Example], n: int) -> Table:
    """Return a table with the rank of each question's answer, and words by the longest codes."""
    from rich.table import Table

    kinds = list(examples[0].found)
    table = Table(
        title=f"{len(examples)} questions, written before they were searched for, to {n:,} "
        f"definitions:\nthe place of the answer among the first {N_WORDS}",
        title_justify="left",
        show_footer=True,
    )
    table.add_column("question", footer="answered")
    for kind in kinds:
        answered = sum(example.place(kind) is not None for example in examples)
        heading = kind.replace(", ", "\n")
        table.add_column(heading, justify="right", footer=f"{answered} of {len(examples)}")
    table.add_column(f"nearest by {kinds[1].split(',')[0]}")
    for example in examples:
        words = [
            f"[bold cyan]{escape(word)}[/]" if word in example.answers else escape(word)
            for word in example.found[kinds[1]][:3]
        ]
        ranks = [str(example.place(kind) or "–") for kind in kinds]
        table.add_row(escape(example.question), *ranks, " · ".join(words))
    return table


def _summary(result: DemoResult, quick: bool) -> str:
    plain, labeled, pca = (
        result.method(*kind) for kind in (("self", 8), ("label", 8), ("pca", 16))
    )
    dense = result.dense
    return (
        f"[bold cyan]Without labels, CSR-8[/bold cyan] is {signed(plain.accuracy - pca.accuracy)} "
        f"points against PCA-16, in the same {plain.bytes} bytes, and "
        f"{signed(plain.accuracy - dense.accuracy)} against dense, in {dense.bytes}; "
        f"{result.speed(plain):.1f}× as fast as dense.\n"
        "[bold yellow]With labels, CSR-8[/bold yellow] is "
        f"{signed(labeled.accuracy - dense.accuracy)} points against the dense vectors it is made "
        "from.\n" + QUICK_NOTE * quick
    )


def _facts(trained: dict[str, Trained], seconds: float, quick: bool) -> dict[str, str]:
    model = trained["self"].model
    batch = RECIPES["self"].resolve(len(trained["self"].codes), model.input_dim).batch_size
    steps = ", ".join(
        f"{adapter.history.steps[-1]} steps with {family} contrast"
        for family, adapter in trained.items()
    )
    return {
        "Data": "WordNet 3.0 definitions, all-MiniLM-L6-v2 embeddings stored as int8",
        "Adapters": f"{model.input_dim} dimensions to {model.hidden_dim} latents; one adapter of "
        f"each kind serves every k ({', '.join(map(str, ACTIVE))})",
        "Self contrast": "label-free: codes rebuild their embedding and keep apart",
        "Label contrast": "codes of one class are also drawn together; test labels are never seen",
        "Training": f"{steps}, {batch:,} definitions a step; {seconds:.0f} s for both"
        + (" (a quick run, far from finished)" if quick else ""),
        "Processor": f"{processor_name()}, {instruction_set()}, {torch.get_num_threads()} threads",
        "Software": f"csrkern {csrkern.__version__}, PyTorch {torch.__version__}, "
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}",
    }


def _write(
    folder: Path,
    result: DemoResult,
    trained: dict[str, Trained],
    codes: SparseCodes,
    texts: list[Text],
) -> None:
    """Fill the folder; results.json is removed first and written last, to mark it as complete."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS).unlink(missing_ok=True)
    for family, name in MODELS.items():
        trained[family].model.save_pretrained(folder / name)
    InvertedIndex.build(codes, metric="cosine").save(folder / INDEX)
    lines = "".join(f"{text.words}\t{text.definition}\n" for text in texts)
    write_atomically(folder / WORDS, lines.encode())
    write_atomically(folder / REPORT, render(result).encode())
    results = json.dumps(dataclasses.asdict(result), indent=1, ensure_ascii=False)
    write_atomically(folder / RESULTS, results.encode())
