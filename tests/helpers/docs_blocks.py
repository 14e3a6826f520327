"""The code blocks of the documentation: where they are, what they need, and how a page is run.

A page is run as a reader would type it: in a fresh interpreter and an empty folder, block after
block. Python blocks share their names, shell blocks the folder. Nothing else is given.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUNNER = Path(__file__).parent / "run_page.py"
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN, SHOWN, OUTPUT = ("python", "bash"), ("json", "text", "http"), "output"
SECONDS = 900  # a page takes 5 to 20 on a quiet machine

# What a block may need that no test machine has, and what is tested instead.
ELSEWHERE = {
    "checkout": "builds or installs the package; the tests need it installed",
    "network": "needs a package index or a model hub; tests/integrations/test_hub.py has one",
    "minutes": "takes minutes; tests/demo/test_demo.py runs the demo",
    "cluster": "needs a cluster; tests/scale/test_scale_ray.py starts one",
    "postgres": "needs PostgreSQL; tests/integrations/test_pgvector.py starts one and runs it",
    "engines": "needs running search engines; tests/integrations/test_engines.py has them",
}


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        page: its file, relative to the repository.
        line: the line where its code begins.
        language: the first word after the fence.
        needs: what it needs beyond the test suite, from `needs=` after the language.
        code: what is between the fences.
        output: the `output` block that follows it, if one does.
    """

    page: str
    line: int
    language: str
    needs: str | None
    code: str
    output: str | None = None

    @property
    def id(self) -> str:
        """Its place, for the name of a test."""
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """Every page whose blocks are run."""
    found = ["README.md", "CONTRIBUTING.md", "docs/**/*.md", "examples/*/*.md", "benchmarks/*.md"]
    return sorted({path for pattern in found for path in ROOT.glob(pattern)})


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order, each with the output that follows it."""
    text, name = page.read_text(), page.relative_to(ROOT).as_posix()
    found: list[Block] = []
    end = 0
    for fence in FENCE.finditer(text):
        language, _, needs = fence[1].partition(" needs=")
        if language == OUTPUT:
            assert text[end : fence.start()].strip() == "", f"{name}: whose output is {fence[2]!r}?"
            found[-1] = dataclasses.replace(found[-1], output=fence[2])
        else:
            line = text.count("\n", 0, fence.start(2)) + 1
            found.append(Block(name, line, language, needs or None, fence[2]))
        end = fence.end()
    return found


def why_not(needs: str | None) -> str | None:
    """Why a block cannot run here; None if it can."""
    if needs is None:
        return None
    if needs in ELSEWHERE:
        return ELSEWHERE[needs]
    if needs == "gpu":
        import torch

        there = torch.cuda.is_available() and importlib.util.find_spec("csrkern._cuda")
        return None if there else "needs a GPU"
    return None if importlib.util.find_spec(needs) else f"needs {needs}"


def run_page(page: str, of_page: list[Block], folder: Path) -> None:
    """Run the blocks of a page that can run here, in `folder`; AssertionError if one fails."""
    runs = [b for b in of_page if b.language in RUN and why_not(b.needs) is None]
    if any(re.search(r"^python examples/", b.code, re.MULTILINE) for b in runs):
        (folder / "examples").symlink_to(ROOT / "examples")  # the reader is in a checkout
    content = json.dumps([dataclasses.asdict(b) for b in runs])
    # Another program may listen where the page's server would.
    content = re.sub(r"(localhost:|--port )8000", rf"\g<1>{free_port()}", content)
    log = folder.with_suffix(".log")  # no pipe: a server that the page leaves would keep it open
    with log.open("w") as output:
        program = subprocess.Popen(
            [sys.executable, RUNNER, ROOT / page],
            cwd=folder,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            program.communicate(content, timeout=SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)  # servers, too
            print(log.read_text())
    assert program.returncode == 0, f"{page} does not run as typed; see above"


def environment() -> dict[str, str]:
    """The reader's: this Python's commands first; no colors, no network, one thread."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "NO_COLOR": "1",
        "OMP_NUM_THREADS": "1",
    }


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
