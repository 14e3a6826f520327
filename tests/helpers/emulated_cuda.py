"""`pytest -p emulated_cuda`: tests of the CUDA index on the PTX that nvcc makes.

See emulated_ptx.
"""

from __future__ import annotations

import ctypes
from collections.abc import Generator
from typing import Any

import cudaplugin
import pytest
from emulated_reports import fail_on

EMULATOR = ctypes.CDLL(cudaplugin.MODULE.__file__)
EMULATOR.emu_reports.restype = ctypes.c_char_p


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Run a test, and fail it for what it made the emulator report."""
    EMULATOR.emu_clear_reports()
    result = yield
    fail_on(EMULATOR.emu_reports().decode())
    return result
