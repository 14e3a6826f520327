"""`pytest --benchmark`: run benchmarks/ instead of tests/, with pytest-benchmark turned on."""

from __future__ import annotations

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of a benchmark run; give them values with "=", as pytest reads them late."""
    group = parser.getgroup("csrkern benchmarks")
    group.addoption(
        "--benchmark",
        action="store_true",
        help="Run benchmarks/bench_*.py instead of the tests; -k narrows as usual.",
    )
    group.addoption(
        "--benchmark-size",
        choices=["tiny", "quick", "full"],
        default="quick",
        help="tiny: seconds, to test the benchmarks; quick: under 15 minutes on two cores; "
        "full: every shape. Default: quick.",
    )
    group.addoption(
        "--benchmark-threads",
        type=int,
        metavar="N",
        help="Threads for both sides of every comparison. Default: torch.get_num_threads().",
    )
    group.addoption(
        "--benchmark-embeddings",
        type=Path,
        metavar="FILE.npz",
        help="Embeddings of your own, arrays docs [n, d] and queries [m, d], to train an adapter "
        "on and to search its codes, too. Default: the packaged definitions only.",
    )
    group.addoption(
        "--benchmark-results",
        type=Path,
        metavar="DIR",
        default=BENCHMARKS / "results",
        help="Where <machine>/*.json and <machine>/results.csv go. Default: benchmarks/results.",
    )


@pytest.hookimpl(tryfirst=True)  # before pytest-benchmark reads its options
def pytest_configure(config: pytest.Config) -> None:
    """Points pytest at benchmarks/ and pytest-benchmark at its work."""
    option = config.option
    if not option.benchmark:
        return
    if getattr(option, "numprocesses", None):
        raise pytest.UsageError("--benchmark times one thing at a time: leave out -n")
    option.benchmark_only = option.benchmark_enable = option.benchmark_quiet = True
    option.benchmark_skip = option.benchmark_disable = False
    config.addinivalue_line("python_files", "bench_*.py")
    config.addinivalue_line("python_functions", "bench_*")
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = [str(BENCHMARKS)]
