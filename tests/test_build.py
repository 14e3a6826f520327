"""The native tests (make sanitize) are of what the module is made of."""

from __future__ import annotations

import ast
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_native_tests_are_compiled_like_the_module():
    constants = {
        node.targets[0].id: eval(compile(ast.Expression(node.value), "setup.py", "eval"))
        for node in ast.parse((ROOT / "setup.py").read_text()).body
        if isinstance(node, ast.Assign) and node.targets[0].id in ("COMMON_FLAGS", "ISA_FLAGS")
    }
    show = "show: ; @$(foreach f,CXXFLAGS AVX2 AVX512,echo $($f);)"
    made = subprocess.run(
        ["make", "--no-print-directory", "-C", ROOT / "csrc/tests", "--eval", show, "show"],
        capture_output=True,
        text=True,
        check=True,
    )
    common, avx2, avx512 = (line.split() for line in made.stdout.splitlines())
    assert avx2 == constants["ISA_FLAGS"]["_avx2"]
    assert avx512 == constants["ISA_FLAGS"]["_avx512"]
    arithmetic = {"-std=c++17", "-fno-math-errno", "-ffp-contract=off"}
    assert arithmetic <= set(common) & set(constants["COMMON_FLAGS"])
    assert not {"-ffast-math", "-Ofast"} & {*common, *constants["COMMON_FLAGS"]}
