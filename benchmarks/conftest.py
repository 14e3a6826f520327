"""The `race` fixture of the benchmarks, and the table at the end of a run."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.harness.race import Race, Report, Row, cases_of
from csrkern import roofline

REPORT = pytest.StashKey[Report]()


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Iterator[Report]:
    """This run's rows and files."""
    option = request.config.option
    before = torch.get_num_threads()
    threads = option.benchmark_threads or before
    torch.set_num_threads(threads)
    report = Report(option.benchmark_results, option.benchmark_size, threads)
    report.ceilings = roofline.measure_machine((1, threads), quick=report.size == "tiny")
    request.config.stash[REPORT] = report
    yield report
    torch.set_num_threads(before)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    items = cases_of(metafunc.function, metafunc.config.option.benchmark_size)
    if items is not None:
        metafunc.parametrize("case", items, ids=lambda item: "-".join(map(str, item)))
    # A module with ON_GPU makes its tensors on the default device, and runs on a GPU, too.
    if "race" in metafunc.fixturenames and on_gpu(metafunc.module):
        metafunc.parametrize("race", ["cpu", "cuda"], indirect=True)


def on_gpu(module: Any) -> bool:
    return getattr(module, "ON_GPU", False) and torch.cuda.is_available()


@pytest.fixture(scope="session")
def gpu() -> roofline.Machine:
    """The GPU's ceilings."""
    return roofline.measure_gpu()


@pytest.fixture
def race(request: pytest.FixtureRequest, benchmark: Any, report: Report) -> Iterator[Race]:
    """Times ours against peers and records the rows."""
    torch.manual_seed(0)
    device = getattr(request, "param", "cpu")
    assert report.ceilings is not None
    if device == "cpu":
        yield Race(benchmark, report.ceilings, report)
        return
    with torch.device(device):
        machine = request.getfixturevalue("gpu")
        yield Race(benchmark, machine, report, device, torch.cuda.synchronize)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    report = config.stash.get(REPORT, None)
    if report is None or not report.rows:
        return
    out = io.StringIO()
    console = Console(
        file=out, width=max(140, terminalreporter._tw.fullwidth), no_color=True, markup=False
    )
    for op, rows in itertools.groupby(report.rows, key=lambda row: row.op):
        console.print(table_of(op, list(rows)))
    terminalreporter.write_line(out.getvalue().rstrip("\n"))
    dirty = " (with changes not committed)" if report.commit["dirty"] else ""
    terminalreporter.write_line(
        f"{report.machine['cpu']}, {report.machine['cores']} cores, {report.threads} threads, "
        f"{report.machine['csrkern_isa']}; commit {(report.commit['id'] or 'none')[:10]}{dirty}"
    )
    terminalreporter.write_line(f"saved: {report.json_path}\n       {report.csv_path}")


def table_of(op: str, rows: list[Row]) -> Table:
    """Ours, the peer, the ratio, and the share of the floor, for one operator."""
    table = Table(title=op, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name in ("case", "peer"):
        table.add_column(name, overflow="fold")
    for name in ("threads", "ours", "peer", "ratio", "floor", "spread"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("notes", overflow="fold")
    before = None
    for row in rows:
        case = row.case if row.dtype == "float32" else f"{row.case} {row.dtype}"
        if row.ours_figures and (case, row.threads) != before:
            rate = row.items / row.ours_ms * 1e3 if row.items > 1 else None
            ours = milliseconds(row.ours_ms)
            notes = _notes("", row.ours_figures, rate)
            table.add_row(case, "(ours)", str(row.threads), ours, "", "", "", "", notes)
        before = (case, row.threads)
        rate = row.items / row.peer_ms * 1e3 if row.items > 1 and row.peer_ms else None
        table.add_row(
            case,
            row.peer,
            str(row.threads),
            milliseconds(row.ours_ms),
            "–" if row.peer_ms is None else milliseconds(row.peer_ms),
            "–" if row.ratio is None else f"{row.ratio:.2f}×",
            "–" if row.floor_share is None else f"{row.floor_share:.0%}",
            f"{max(row.ours_spread, row.peer_spread or 0):.0%}",
            _notes(row.note, row.peer_figures, rate),
        )
    return table


def _notes(note: str, figures: Mapping[str, float | str], rate: float | None) -> str:
    """What does not fit a column: "13,572/s, recall 0.999, build_s 0.1"."""
    parts = [note] if note else []
    parts += [] if rate is None else [f"{rate:,.0f}/s"]
    parts += [f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items()]
    return ", ".join(parts)


def milliseconds(value: float) -> str:
    """Three digits with a unit."""
    if value < 1:
        return f"{value * 1e3:.3g} µs"
    return f"{value:.3g} ms" if value < 1000 else f"{value / 1000:.3g} s"
