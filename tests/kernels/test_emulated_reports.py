"""Races that an emulator of PTX reports fail tests, also with pytest-xdist."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from emulated_reports import fail_on

HELPERS = Path(__file__).parents[1] / "helpers"
RACE = "RACE: a_kernel line 5 block 0 thread 33: read after write of thread 0 at shared 0x0"
EMULATOR = f"""
import pytest

seen = ""

def reports():
    return seen

@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    global seen
    seen = {RACE!r} if "race" in item.name else ""
    return (yield)

def pytest_terminal_summary():
    pass
"""


@pytest.mark.parametrize(
    "report", [RACE, "UNINIT shared read: k line 1 block 0 thread 0: offset 4"]
)
def test_reports_fail(report):
    with pytest.raises(pytest.fail.Exception, match="reported by the emulator"):
        fail_on(f"warp-race: harmless\n{report}\n")


@pytest.mark.parametrize("kind", ["race-same-value", "warp-race", "warp-race-same-value"])
def test_what_no_gpu_shows_is_passed_over(kind):
    fail_on(f"{kind}: a_kernel line 5\n")
    fail_on("")


@pytest.mark.parametrize("processes", [[], ["-n2"]])
def test_a_race_fails_its_test_alone(tmp_path, processes):
    if processes:
        pytest.importorskip("xdist")
    (tmp_path / "emuplugin.py").write_text(EMULATOR)
    (tmp_path / "ptx.py").write_text("from emuplugin import reports\n")
    tests = "def test_race(): pass\n\ndef test_without(): pass\n"
    (tmp_path / "test_two.py").write_text(tests)
    options = ["-p", "emulated_ptx", "-p", "no:cacheprovider", *processes]
    paths = ":".join(map(str, (tmp_path, HELPERS, *sys.path)))
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "test_two.py"],
        cwd=tmp_path, env={"PYTHONPATH": paths, "HOME": str(tmp_path)}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert run.returncode == 1, run.stdout + run.stderr
    assert "1 failed, 1 passed" in run.stdout
    assert RACE in run.stdout
