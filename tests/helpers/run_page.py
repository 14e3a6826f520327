"""Run the blocks of a page, given as JSON on standard input: run_page.py PAGE < blocks.

A program of its own, so that a page finds a fresh interpreter and none of the names of a test.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import subprocess
import sys
import types
from typing import Any

NUMBER = re.compile(r"(-?\d[\d,]*(?:\.\d+)?)")
END = "--- end of the block"


def main() -> None:
    page, given = sys.argv[1], json.load(sys.stdin)
    sys.argv = [""]
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    # One shell for the page, as a reader has it: `kill %1` ends what an earlier block started.
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    shell = subprocess.Popen(["bash", "-eo", "pipefail"], text=True, bufsize=1, **pipes)
    for block in given:
        print(f"--- {page}:{block['line']}", flush=True)
        if block["language"] == "python":
            printed = run_python(page, block, vars(module))
        else:
            printed = run_bash(shell, block["code"])
        print(printed, end="", flush=True)
        if block["output"] is not None and not same(block["output"], printed):
            sys.exit(f"the page shows another output:\n{block['output']}")


def run_python(page: str, block: dict[str, Any], names: dict[str, Any]) -> str:
    """What a Python block prints."""
    lines = "\n" * (block["line"] - 1)  # so that a traceback names the line of the page
    code = compile(lines + block["code"], page, "exec", dont_inherit=True)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(code, names)
    except BaseException:
        print(printed.getvalue(), flush=True)
        raise
    return printed.getvalue()


def run_bash(shell: subprocess.Popen[str], code: str) -> str:
    """What a block prints in `shell`; its commands find an empty standard input."""
    assert shell.stdin
    assert shell.stdout
    shell.stdin.write(f"{{\n{code}\n}} </dev/null\nprintf '\\n{END}\\n'\n")
    lines = []
    for line in shell.stdout:
        if line.rstrip("\n") == END:
            return "".join(lines)[:-1]
        lines.append(line)
    sys.exit("".join([*lines, f"exit status {shell.wait()}"]))


def same(shown: str, printed: str) -> bool:
    """Equal but for white space; numbers with a decimal point may differ by 5%."""
    a, b = (NUMBER.split(" ".join(text.split())) for text in (shown, printed))
    return len(a) == len(b) and all(x == y or close(x, y) for x, y in zip(a, b, strict=True))


def close(x: str, y: str) -> bool:
    """Whether both are numbers with a decimal point, and near each other."""
    if not (NUMBER.fullmatch(x) and NUMBER.fullmatch(y) and "." in x):
        return False
    return math.isclose(float(x.replace(",", "")), float(y.replace(",", "")), rel_tol=0.05)


if __name__ == "__main__":
    main()
