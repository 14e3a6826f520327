from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import simulated_gpu
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    # Read when Triton is imported, which nothing before the tests does.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# On a loaded machine any deadline is missed.
settings.register_profile("csrkern", deadline=None)
settings.load_profile("csrkern")


SLOW = tuple(
    line
    for line in (Path(__file__).parent / "slow.txt").read_text().splitlines()
    if not line.startswith("#")
)


# Folders whose files take long come first: one that came last would keep one worker waiting.
FIRST = ("project", "scale", "demo", "kernels", "integrations", "training", "index")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that slow.txt names, and put folders that take long first."""
    for item in items:
        if item.nodeid.startswith(SLOW):
            item.add_marker(pytest.mark.slow)
    folders = [f"tests/{name}/" for name in FIRST]
    items.sort(key=lambda item: [not item.nodeid.startswith(folder) for folder in folders])


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fills fresh `torch.empty` buffers with NaN, so that an unwritten output shows."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For batches that gain nothing from a second thread, and wait for it on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def four_threads() -> Iterator[None]:
    """Four threads, on however many processors."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def restored() -> Iterator[None]:
    """Whatever a test replaces in sentence-transformers is put back."""
    from csrkern.integrations.sentence_transformers import patch as integration

    yield
    integration.restore()


@pytest.fixture(params=["package", "accelerated"])
def side(request: pytest.FixtureRequest, restored: None) -> str:
    """sentence-transformers as it comes, and on our kernels."""
    from csrkern.integrations.sentence_transformers import patch as integration

    if request.param == "accelerated":
        integration.accelerate()
    return request.param


@pytest.fixture(scope="session")
def simulated_module() -> ModuleType:
    """csrkern._cuda with a simulated GPU."""
    if shutil.which("make") is None:
        pytest.skip("needs make")
    pytest.importorskip("pybind11")
    return simulated_gpu.load()


@pytest.fixture(
    params=[
        "simulated",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
            ],
        ),
    ]
)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """PyTorch's name of where tensors for an index on a GPU are, which may be simulated."""
    if request.param == "simulated":
        module = request.getfixturevalue("simulated_module")
        monkeypatch.setitem(sys.modules, "csrkern._cuda", module)
        return "cpu"
    return "cuda"
