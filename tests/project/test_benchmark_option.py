"""`pytest --benchmark` as typed, and the harness behind it."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.harness import generators
from benchmarks.harness import race as harness
from benchmarks.harness.race import Contestant, Missing, Race, Report, Row
from benchmarks.index import bench_index, big_ann, charts
from benchmarks.index import data as index_data
from benchmarks.index.data import Data
from benchmarks.index.engine import Engine, Field
from benchmarks.index.peers import SPARSE
from csrkern.roofline import Cost, Machine

ROOT = Path(__file__).resolve().parents[2]
RATE = {1: {1: 1e9}}
MACHINE = Machine(read=RATE, fill=RATE, copy=RATE, gemm={1: {"float32": 1e9}})


def run_pytest(*arguments: str) -> subprocess.CompletedProcess[str]:
    """pytest from the root of the repository, free of what this pytest left in the environment."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_benchmark_as_typed_runs_the_selection_and_saves_it(tmp_path: Path) -> None:
    done = run_pytest(
        "--benchmark",
        *("-k", "topk and 2048-float32-32"),
        "--benchmark-size=tiny",
        f"--benchmark-results={tmp_path}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert "torch.topk + relu" in done.stdout
    assert "tests/" not in done.stdout

    (folder,) = tmp_path.iterdir()
    (saved,) = folder.glob("*.json")
    run = json.loads(saved.read_text())
    assert run["machine"]["name"] == folder.name
    assert {"cpu", "cores", "caches", "memory_bytes", "instruction_set"} <= run["machine"].keys()
    assert {"python", "torch", "numpy", "csrkern"} <= run["versions"].keys()
    assert run["ceilings"]["read"]
    (row,) = run["rows"]
    assert row["case"] == "[16, 2048] k=32"
    assert row["ratio"] == pytest.approx(row["peer_ms"] / row["ours_ms"])
    assert row["floor_share"] == pytest.approx(row["floor_ms"] / row["ours_ms"])

    with open(folder / "results.csv", newline="") as file:
        (line,) = csv.DictReader(file)
    assert (line["op"], line["device"], line["peer"]) == ("topk_relu", "cpu", "torch.topk + relu")
    assert float(line["ours_ms"]) == pytest.approx(row["ours_ms"], rel=1e-3)
    assert line["commit"] == (run["commit"]["id"] or "")
    assert {p.name for p in folder.iterdir()} == {saved.name, "results.csv"}


def test_index_benchmarks_run_and_their_tables_hold_every_engine(tmp_path: Path) -> None:
    done = run_pytest(
        "--benchmark",
        *("-k", "bench_index"),
        "--benchmark-size=tiny",
        "--benchmark-threads=1",
        f"--benchmark-results={tmp_path}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (results,) = tmp_path.glob("*/results.csv")
    with open(results, newline="") as file:
        rows = list(csv.DictReader(file))
    by_peer = {row["peer"]: row for row in rows if row["op"] == "index search"}
    assert set(by_peer) == set(bench_index.EXACT)
    for name in ("SciPy", "torch.sparse"):  # the peers that need nothing but what tests need
        assert "recall=1" in by_peer[name]["peer_figures"]
        assert float(by_peer[name]["ratio"]) > 0

    with contextlib.suppress(ImportError):
        charts.write_charts(results)
    with open(results.with_name("index-recall.csv"), newline="") as file:
        curve = list(csv.DictReader(file))
    exact, fast = (
        [line for line in curve if line["engine"] == name] for name in ("csrkern", "csrkern fast")
    )
    assert len(exact) == 1
    assert fast
    assert all(0.5 < float(line["recall"]) <= 1 for line in exact + fast)
    with open(results.with_name("index-size.csv"), newline="") as file:
        mine = next(line for line in csv.DictReader(file) if line["engine"] == "csrkern")
    assert (mine["codes"], mine["n"]) == ("skewed", "2000")
    measured = ("save_s", "load_ms", "first_ms", "peak_mb", "build_s", "postings_per_s")
    assert all(float(mine[name]) > 0 for name in measured)


def test_an_engine_is_raced_at_its_fastest_setting_that_finds_enough() -> None:
    data = Data.make(300, 64, 4, "uniform", 8, None)
    wrong = np.full_like(data.truth, -1)
    engine = Engine(
        run=lambda threads, found, wait: (time.sleep(wait), found)[1],
        ids=lambda found: np.where(np.arange(10) < found, data.truth, wrong),
        truth=data.truth,
        figures={"build_s": 1.0, "bytes_per_code": 2.0},
        settings=[
            {"found": 5, "wait": 0.001},
            {"found": 10, "wait": 0.02},
            {"found": 9, "wait": 0.01},
            {"found": 8, "wait": 0.04},
        ],
    )
    field = Field(data, 1, {"engine": lambda data, threads: [engine]})

    def recall_of(side: Contestant | Missing) -> float | str:
        assert isinstance(side, Contestant)
        return side.figures["recall"]

    assert [recall_of(field.best("engine", 1, least)) for least in (0.2, 0.85, 0.95)] == [
        *(0.5, 0.9, 1.0)
    ]
    assert [recall_of(side) for side in field.frontier("engine", 1).values()] == [0.5, 0.9, 1.0]


@pytest.mark.parametrize("name", ["kANNolo", "Seismic", "SINDI float32", "splade-index"])
def test_an_engine_of_another_package_finds_the_best(name: str) -> None:
    data = Data.make(600, 400, 12, "text", 9, None)
    found = Field(data, 1, SPARSE).best(name, 1, 0.95)
    if isinstance(found, Missing):
        pytest.skip(found.reason)
    assert float(found.figures["recall"]) >= 0.95
    assert float(found.figures["bytes_per_code"]) > 20  # a row has 12 entries


def test_pisa_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    big_ann.draw(600, 9, tmp_path)
    command = ["-m", "benchmarks.index.big_ann", str(tmp_path), "--peers", "PISA", "--rounds", "1"]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("PISA"))
    if "see benchmarks/README.md" in line:
        pytest.skip(line)
    assert float(line.split()[1]) >= 0.95
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pyvsag", SimpleNamespace())
        missing = Field(Data.make(100, 64, 4, "uniform", 2, None), 1, SPARSE).built("PISA")
    assert missing == Missing("crashes in a process that has imported pyvsag")


def test_plans_of_fast_searches_are_measured_on_other_queries() -> None:
    data = Data.make(3000, 400, 12, "text", 9, None)
    assert data.like is not None
    assert data.like.shape[0] == index_data.LIKE
    engines = Field(data, 1, SPARSE).built("csrkern fast")
    assert not isinstance(engines, Missing)
    measured = engines[0].index.stats()["recall"].values()
    assert {(plan["of"], plan["measured"]) for plan in measured} == {("queries", index_data.LIKE)}


def test_the_curve_shows_only_settings_that_no_other_beats() -> None:
    line = {"codes": "c", "engine": "e"}
    points = [(1.0, 1.0), (0.9, 0.5), (0.95, 2.0), (0.85, 2.0), (0.82, 3.0), (0.5, 9.0)]
    table = [{**line, "recall": r, "queries_per_s": q} for r, q in points]
    shown = [(0.82, 3.0), (0.95, 2.0), (1.0, 1.0)]
    assert list(charts.curve_panels(table)) == [("c", {"e": shown})]


def test_rows_of_text_have_their_statistics() -> None:
    drawn = generators.text(3000, 5000, 60, seed=1)
    lengths = np.diff(drawn.indptr)
    assert drawn.has_canonical_format
    assert 55 < lengths.mean() < 65
    assert lengths.min() > 5
    assert lengths.max() > 100
    assert 0 < drawn.data.min() < drawn.data.max() < 4
    use = np.sort(np.bincount(drawn.indices, minlength=5000))
    assert use[-10:].min() > 50 * np.median(use)
    np.testing.assert_array_equal(
        drawn.toarray(), generators.text(3000, 5000, 60, seed=1).toarray()
    )
    same = drawn[:200] @ generators.text(200, 5000, 60, seed=2).T
    other = drawn[:200] @ generators.text(200, 5000, 60, seed=2, law_seed=1).T
    assert same.max() > 1.5 * other.max()


def test_files_are_drawn_and_raced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    big_ann.draw(300, 7, tmp_path)
    data = big_ann.read(*(tmp_path / name for name in big_ann.NAMES), 7)
    assert (
        data.truth.tolist()
        == index_data.exact_top_k(data.queries, data.documents, data.dim).tolist()
    )
    big_ann.race(data, ["SciPy"], threads=1, rounds=1)
    header, exact, scipy, fast, *_ = capsys.readouterr().out.splitlines()
    assert "recall@10  queries/s" in header
    assert exact.startswith("csrkern  ")
    assert scipy.startswith("SciPy  ")
    assert all(" 1.0000 " in line for line in (exact, scipy))
    assert fast.startswith("csrkern fast @ mode=fast recall=")
    big_ann.big_ann.write_truth(np.ones((7, 9)), np.ones((7, 9), int), tmp_path / "truth.gt")
    with pytest.raises(SystemExit, match=r"expected 10 hits for each of 7 queries, got \[7, 9\]"):
        big_ann.read(*(tmp_path / name for name in big_ann.NAMES), 7)


def test_the_truth_does_not_depend_on_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    documents, queries = (generators.skewed(n, 128, 8, seed=n) for n in (500, 7))
    dense = [index_data.to_csr(side, 128).toarray() for side in (queries, documents)]
    scores = dense[0] @ dense[1].T
    whole = index_data.exact_top_k(queries, documents, 128)
    monkeypatch.setattr(index_data, "_SLICE_SCORES", 7 * 33)
    np.testing.assert_array_equal(index_data.exact_top_k(queries, documents, 128), whole)
    best = -np.sort(-scores, axis=1)[:, :10]
    np.testing.assert_allclose(np.take_along_axis(scores, whole, 1), best, rtol=1e-6)


def test_pytest_alone_never_collects_a_benchmark() -> None:
    # Of the other folders of tests/ nothing is asked, and their imports take 12 s.
    folders = [path for path in (ROOT / "tests").iterdir() if path.is_dir()]
    others = [f"--ignore={path}" for path in folders if path.name != "project"]
    alone = run_pytest("--collect-only", "--continue-on-collection-errors", *others)
    assert "tests/project/test_benchmark_option.py" in alone.stdout
    assert "bench_topk_relu" not in alone.stdout
    everything = run_pytest("--collect-only", "benchmarks")
    assert everything.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, everything.stdout


def test_every_benchmark_is_collected() -> None:
    done = run_pytest("--benchmark", "--collect-only")
    assert done.returncode == 0, done.stdout + done.stderr
    files = sorted((ROOT / "benchmarks").rglob("bench_*.py"))
    assert files
    for file in files:
        assert f"{file.relative_to(ROOT).as_posix()}::" in done.stdout


def test_parallel_workers_are_refused() -> None:
    done = run_pytest("--benchmark", "-n", "2")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "leave out -n" in done.stderr


class Stopwatch:
    """Stands in for pytest-benchmark's fixture: its pedantic mode, with a clock of our own."""

    def __init__(self, seconds: float) -> None:
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=[]))
        self.extra_info: dict[str, Any] = {}
        self.seconds = seconds

    def pedantic(self, target: Any, setup: Any, rounds: int) -> None:
        for _ in range(rounds):
            setup()
            target()
            self.stats.stats.data.append(self.seconds)


@pytest.fixture
def report(tmp_path: Path) -> Report:
    return Report(tmp_path, "tiny", 1)


def test_contestants_take_turns_and_medians_are_compared(report: Report) -> None:
    calls: list[str] = []
    race = Race(Stopwatch(0.002), MACHINE, report)
    rows = race(
        "op",
        "case",
        ours=lambda: calls.append("ours"),
        peers={
            "one": lambda: calls.append("one"),
            "two": Contestant(lambda: calls.append("two"), {"recall": 0.5}),
            "none": Missing("not installed"),
        },
        cost=Cost(read=1e6),
    )
    assert calls[-6:] == ["one", "two", "ours"] * 2
    one, two, none = rows
    assert one.ours_ms == pytest.approx(2.0)
    assert one.peer_ms is not None
    assert one.ratio == one.peer_ms / one.ours_ms
    assert (one.floor_ms, one.floor_share) == (pytest.approx(1.0), pytest.approx(0.5))
    assert two.peer_figures == {"recall": 0.5}
    assert (none.peer_ms, none.ratio, none.note) == (None, None, "not installed")
    assert report.rows == rows


def test_ours_cannot_be_missing(report: Report) -> None:
    with pytest.raises(TypeError, match="ours must run"):
        Race(Stopwatch(1.0), MACHINE, report)("op", "c", ours=Missing("?"), peers={}, cost=None)


def a_row(case: str, peer: str, ours_ms: float) -> Row:
    filled = dict.fromkeys(Row.__dataclass_fields__)
    filled |= {"op": "op", "case": case, "dtype": "float32", "device": "cpu", "threads": 2}
    filled |= {"peer": peer, "ours_ms": ours_ms, "ours_figures": {}, "peer_figures": {}}
    return Row(**filled)  # type: ignore[arg-type]


def test_a_later_run_replaces_its_rows_in_the_csv_and_keeps_the_others(tmp_path: Path) -> None:
    first = Report(tmp_path, "quick", 2)
    first.add([a_row("k=8", "a", 1.0), a_row("k=32", "a", 2.0)])
    second = Report(tmp_path, "quick", 2)
    second.add([a_row("k=32", "a", 3.0)])
    second.add([a_row("k=128", "a", 4.0)])
    with open(second.csv_path, newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["case"], line["ours_ms"]) for line in lines] == [
        ("k=8", "1"),
        ("k=32", "3"),
        ("k=128", "4"),
    ]
    assert all(line["date"] and line["versions"] for line in lines)


def test_an_interrupted_write_leaves_the_old_file(
    report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    report.add([a_row("k=8", "a", 1.0)])
    files = {file: file.read_bytes() for file in report.folder.iterdir()}
    assert set(files) == {report.json_path, report.csv_path}

    def crash(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="disk full"):
        report.add([a_row("k=8", "a", 2.0)])
    assert {file: file.read_bytes() for file in report.folder.iterdir()} == files


def test_a_size_without_cases_takes_those_of_the_next_smaller() -> None:
    @harness.cases(tiny=[1], quick=[2])
    def bench(case: int) -> None: ...

    assert [harness.cases_of(bench, size) for size in harness.SIZES] == [[1], [2], [2]]
    assert harness.cases_of(test_ours_cannot_be_missing, "tiny") is None


def test_spread_is_the_interquartile_range_over_the_median() -> None:
    assert harness.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 3)
    assert harness.spread([7.0]) == 0.0
