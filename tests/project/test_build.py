"""The native tests (make sanitize) are of what the module is made of."""

from __future__ import annotations

import ast
import csv
import importlib.util
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_native_tests_are_compiled_like_the_module():
    wanted = ("COMMON_FLAGS", "ISA_FLAGS", "NVCC_FLAGS")
    constants = {
        node.targets[0].id: eval(compile(ast.Expression(node.value), "setup.py", "eval"))
        for node in ast.parse((ROOT / "setup.py").read_text()).body
        if isinstance(node, ast.Assign) and node.targets[0].id in wanted
    }
    show = "show: ; @$(foreach f,CXXFLAGS FLAGS_avx2 FLAGS_avx512 FLAGS_neon,echo $($f);)"
    made = subprocess.run(
        ["make", "--no-print-directory", "-C", ROOT / "csrc/tests", "--eval", show, "show"],
        capture_output=True,
        text=True,
        check=True,
    )
    common, *isas = (line.split() for line in made.stdout.splitlines())
    assert isas == list(constants["ISA_FLAGS"].values())
    arithmetic = {"-std=c++17", "-fno-math-errno", "-ffp-contract=off"}
    assert arithmetic <= set(common) & set(constants["COMMON_FLAGS"])
    assert {"-fmad=false", "-std=c++17"} <= set(constants["NVCC_FLAGS"])
    assert not {"-ffast-math", "-Ofast"} & {*common, *constants["COMMON_FLAGS"]}


@pytest.mark.parametrize(
    ("system", "compiler", "absent", "link"),
    [
        ("win32", "clang++", {"-fPIC", "-pthread"}, "-shared"),
        ("darwin", "c++", {"-s"}, "-bundle"),
    ],
)
def test_other_systems_are_built_with_flags_of_their_own(
    monkeypatch, system, compiler, absent, link
):
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setenv("CSRKERN_CUDA", "0")
    monkeypatch.delenv("CXX", raising=False)
    build = runpy.run_path(str(ROOT / "setup.py"))["NinjaBuildExt"]
    rules = dict(rule.split(" =", 1) for rule in build.cpu_rules())
    assert rules["compiler"].strip() == compiler
    assert not absent & {*rules["flags"].split(), *rules["link"].split()}
    assert rules["link"].split()[0] == link
    assert not rules["libraries"].strip()


def test_table_of_cuda_kernels_has_every_target_and_no_spills():
    with (ROOT / "benchmarks" / "results" / "cuda_resources.csv").open() as file:
        rows = list(csv.DictReader(file))
    kernels = {row["kernel"] for row in rows}
    sources = "".join(p.read_text() for p in (ROOT / "csrc/cuda").glob("*.hpp"))
    names = re.findall(r"^struct (\w+) \{\n  static constexpr const char\* kName", sources, re.M)
    assert len(names) > 8
    assert {kernel.split("<")[0] for kernel in kernels} == set(names)
    for target in ("sm_80", "sm_90a", "sm_100"):
        mine = [row for row in rows if row["target"] == target]
        assert {row["kernel"] for row in mine} == kernels
        assert all(int(row["spilled_bytes"]) == 0 for row in mine)


@pytest.mark.skipif(importlib.util.find_spec("csrkern._cuda") is None, reason="built without nvcc")
def test_cuda_kernels_stay_within_their_budgets():
    run = subprocess.run(
        [sys.executable, ROOT / "scripts" / "gpu" / "cuda_resources.py", "--check"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


@pytest.fixture
def build():
    spec = importlib.util.spec_from_file_location("build", ROOT / "benchmarks/gpu/build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_modules_of_the_same_sources_are_kept(monkeypatch, tmp_path, build):
    monkeypatch.setattr(build, "BUILT", tmp_path / "native.txt")
    monkeypatch.setattr(build, "modules", lambda: "csrkern._C")
    assert not build.is_built()
    build.BUILT.write_text(build.sources())
    assert build.is_built()
    monkeypatch.setattr(build, "modules", lambda: "csrkern._C, csrkern._other")
    assert not build.is_built()  # other modules
    build.BUILT.write_text(build.sources())
    assert not build.is_built()  # one that cannot be loaded


def test_a_gpu_machine_may_lack_the_build_packages(monkeypatch, tmp_path, build):
    # benchmarks/gpu/build.py borrows pybind11's headers from PyTorch, and ninja as a program.
    find = importlib.util.find_spec
    missing = {"pybind11", "ninja"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in missing else find(name)
    )
    monkeypatch.delitem(sys.modules, "pybind11", raising=False)
    build.lend_pybind11()
    lent = sys.modules.pop("pybind11")
    assert (Path(lent.get_include()) / "pybind11" / "pybind11.h").is_file()

    program = tmp_path / "bin" / "ninja"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho given $1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setenv("PYTHONPATH", "")
    build.lend_ninja(tmp_path)
    run = [sys.executable, "-m", "ninja", "--version"]
    assert subprocess.run(run, capture_output=True, text=True).stdout == "given --version\n"


def test_commit_hooks_run_the_pinned_tools():
    """A hook of another version would format what `make check` refuses."""
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    used = set(re.findall(r"\[([\w-]+==[\d.]+)\]", hooks))
    assert {tool.split("==")[0] for tool in used} == {"clang-format", "codespell", "ruff"}
    assert used <= set((ROOT / "constraints.txt").read_text().splitlines())
