from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


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
    """Whatever a test exchanges in sentence-transformers is put back."""
    from csrkern.integrations import sentence_transformers as integration

    yield
    integration.restore()


@pytest.fixture(params=["package", "accelerated"])
def side(request: pytest.FixtureRequest, restored: None) -> str:
    """sentence-transformers as it comes, and on our kernels."""
    from csrkern.integrations import sentence_transformers as integration

    if request.param == "accelerated":
        integration.accelerate()
    return request.param
