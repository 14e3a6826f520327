"""`pytest -p emulated_ptx`: kernel tests on the PTX that Triton makes, run by an emulator.

scripts/gpu/emulate.sh finds the emulator, which is not part of this project. It looks for a module
by a name that it does not have here, to replace what launches need no longer. Its reports fail
tests in every process of pytest-xdist.
"""

from __future__ import annotations

from collections.abc import Generator
from types import SimpleNamespace
from typing import Any

import pytest
from emulated_reports import fail_on

import csrkern.kernels

vars(csrkern.kernels)["encode_propose"] = SimpleNamespace(Proposer=SimpleNamespace(multiply=None))

import emuplugin  # noqa: E402
import ptx  # noqa: E402

pytest_terminal_summary = emuplugin.pytest_terminal_summary


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Run a test, and fail it for what it made the emulator report."""
    result = yield from emuplugin.pytest_runtest_call(item)
    fail_on(ptx.reports())
    return result
