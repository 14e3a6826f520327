"""Operators under Python threads, worker processes and changing thread counts."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
import torch
from sums import small_integers
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import csrkern
from csrkern import SparseCodes
from csrkern.ops.transpose import transpose

H, D, K = 300, 24, 7
TASKS = "/proc/self/task"


def _with_gradients(compute: Callable[..., Tensor], *leaves: Tensor) -> tuple[Tensor, ...]:
    leaves = tuple(leaf.detach().requires_grad_() for leaf in leaves)
    out = compute(*leaves)
    return (out.detach(), *torch.autograd.grad(out.sin().sum(), leaves))


def _codes(seed: int, n: int = 400) -> SparseCodes:
    return csrkern.topk_relu(small_integers(n, H, limit=9, seed=seed), K)


def _topk_relu(seed: int) -> tuple[Tensor, ...]:
    pre = small_integers(400, H, limit=9, seed=seed)
    return _with_gradients(lambda pre: csrkern.topk_relu(pre, K).values, pre)


def _encode(seed: int) -> tuple[Tensor, ...]:
    x, weight = torch.randn(200, D, generator=torch.Generator().manual_seed(seed)), _weight()
    return _with_gradients(lambda *leaves: csrkern.encode(*leaves, k=K).values, x, weight)


def _decode(seed: int) -> tuple[Tensor, ...]:
    codes = _codes(seed)
    return _with_gradients(
        lambda v, w: csrkern.decode(SparseCodes(v, codes.indices, H), w), codes.values, _weight()
    )


def _similarity(seed: int) -> tuple[Tensor, ...]:
    a, b = _codes(seed), _codes(seed + 1)
    return _with_gradients(
        lambda v, w: csrkern.similarity(SparseCodes(v, a.indices, H), SparseCodes(w, b.indices, H)),
        *(a.values, b.values),
    )


def _info_nce(seed: int) -> tuple[Tensor, ...]:
    codes = _codes(seed)
    return _with_gradients(
        lambda v: csrkern.info_nce(SparseCodes(v, codes.indices, H), temperature=0.2), codes.values
    )


def _transpose(seed: int) -> tuple[Tensor, ...]:
    return transpose(_codes(seed, n=3000))


def _weight() -> Tensor:
    return small_integers(H, D, seed=99) / 4


OPERATORS = {
    "topk_relu": _topk_relu,
    "encode": _encode,
    "decode": _decode,
    "similarity": _similarity,
    "info_nce": _info_nce,
    "transpose": _transpose,
}


def same(results: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(results, expected, strict=True))


def run_at_once(jobs: list[Callable[[], None]]) -> list[BaseException]:
    """Each job in its own thread, all starting together; what they raised."""
    start, errors = threading.Barrier(len(jobs)), []

    def guarded(job: Callable[[], None]) -> None:
        try:
            start.wait(timeout=60)
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(job,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive(), "a thread hangs"
    return errors


def repeat(operator: Callable[[int], tuple[Tensor, ...]], seed: int, times: int):
    """A job that checks the operator against what it gives here, alone."""
    expected = operator(seed)

    def job() -> None:
        for _ in range(times):
            assert same(operator(seed), expected), operator.__name__

    return job


@pytest.fixture(params=[1, 3])
def num_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("num_threads")
@pytest.mark.parametrize("name", OPERATORS)
def test_one_operator_in_several_threads(name):
    assert run_at_once([repeat(OPERATORS[name], 10 * i, 6) for i in range(4)]) == []


@pytest.mark.usefixtures("num_threads")
def test_different_operators_in_several_threads():
    assert run_at_once([repeat(operator, 5, 8) for operator in OPERATORS.values()]) == []


def test_an_error_in_one_thread_leaves_the_others_alone():
    def fail() -> None:
        for _ in range(20):
            with pytest.raises(ValueError, match="k: expected"):
                csrkern.topk_relu(torch.ones(2, 3), 4)

    assert run_at_once([fail, *(repeat(_decode, i, 6) for i in range(2))]) == []


@pytest.mark.parametrize("name", OPERATORS)
def test_set_num_threads_changes_no_result(name):
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, 4, 2, 7, 1):
            torch.set_num_threads(count)
            results.append(OPERATORS[name](3))
    finally:
        torch.set_num_threads(before)
    assert all(same(result, results[0]) for result in results[1:])


counts_threads = pytest.mark.skipif(not os.path.isdir(TASKS), reason="counts threads in /proc")


def printed(script: str) -> list[str]:
    """By a process of its own: other packages that tests import have threads, too."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    return run.stdout.split()


@counts_threads
def test_set_num_threads_is_followed():
    script = (
        "import os, torch, csrkern\n"
        "pre = torch.rand(2000, 300)\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "for count in (1, 4, 6):\n"
        "    torch.set_num_threads(count)\n"
        "    csrkern.topk_relu(pre, 5)\n"
        "    print(len(os.listdir('/proc/self/task')) - before)\n"
    )
    assert printed(script) == ["0", "3", "5"]  # the caller works too


# ---- processes ------------------------------------------------------------------------


class EncodedRows(Dataset):
    """Row i: its dense values, the codes of its activations, and of it under a weight."""

    def __init__(self, pre: Tensor, weight: Tensor) -> None:
        self.pre = pre
        self.weight = weight

    def __len__(self) -> int:
        return len(self.pre)

    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        row = self.pre[i : i + 1]
        codes = csrkern.topk_relu(row, K)
        encoded = csrkern.encode(row, self.weight, k=K)
        return (row[0], codes.values[0], codes.indices[0], encoded.values[0], encoded.indices[0])


@pytest.mark.filterwarnings("ignore:.*fork", "ignore:This DataLoader will create")
def test_in_the_workers_of_a_data_loader():
    data = EncodedRows(torch.randn(60, 40), torch.randn(500, 40))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        expected = csrkern.topk_relu(data.pre, K)  # OpenMP and our pool have threads now
        encoded = csrkern.encode(data.pre, data.weight, k=K)
        loader = DataLoader(
            data, batch_size=8, num_workers=2, multiprocessing_context="fork", timeout=60
        )
        for _ in range(2):
            rows, values, indices, *codes = map(torch.cat, zip(*loader, strict=True))
            assert torch.equal(rows, data.pre)
            assert SparseCodes(values, indices, 40).equal(expected)
            assert SparseCodes(*codes, 500).equal(encoded)
            assert csrkern.topk_relu(data.pre, K).equal(expected)  # and the parent goes on
    finally:
        torch.set_num_threads(before)


def _children_work(pre: Tensor, queue) -> None:
    codes = csrkern.topk_relu(pre, K)
    starts, *_ = transpose(codes)
    queue.put((codes.indices[::100].tolist(), starts.tolist()))


def work_of_children(pre: Tensor, times: int) -> list[tuple]:
    """What forked children answer, one after the other."""
    context, answers = multiprocessing.get_context("fork"), []
    for _ in range(times):
        queue = context.Queue()
        child = context.Process(target=_children_work, args=(pre, queue), daemon=True)
        child.start()
        answers.append(queue.get(timeout=60))
        child.join(timeout=60)
        assert child.exitcode == 0
    return answers


@counts_threads
def test_a_forked_child_gets_helpers_of_its_own():
    script = (
        "import os, torch, csrkern\n"
        "torch.set_num_threads(4)\n"
        "pre = torch.rand(2000, 300)\n"
        "csrkern.topk_relu(pre, 5)\n"  # now the parent has them, and the child none of these
        "if os.fork() == 0:\n"
        "    csrkern.topk_relu(pre, 5)\n"
        "    print(len(os.listdir('/proc/self/task')), flush=True)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
    )
    assert printed(script) == ["4"]


@pytest.mark.usefixtures("four_threads")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_forks_while_another_thread_computes():
    pre, stop = torch.randn(2000, H), threading.Event()
    expected = csrkern.topk_relu(pre, K)
    want = (expected.indices[::100].tolist(), transpose(expected).starts.tolist())

    def keep_the_helpers_busy() -> None:
        while not stop.is_set():
            csrkern.topk_relu(pre, K)

    busy = threading.Thread(target=keep_the_helpers_busy, daemon=True)
    busy.start()
    try:
        assert all(answer == want for answer in work_of_children(pre, 5))
    finally:
        stop.set()
        busy.join(timeout=60)
