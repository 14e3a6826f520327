"""Blocks on two streams: whatever the streams do meanwhile, a block is read as it was written."""

from __future__ import annotations

import random

import pytest
import torch


@pytest.fixture
def blocks():
    from csrkern.kernels import _blocks as blocks

    return blocks


class FakeStream:
    """A queue of work that a GPU would do later, in an order of its own choice."""

    current: FakeStream
    cuda_stream = 1

    def __init__(self, *_):
        self.queue = []

    def record_event(self):
        event = {"passed": False}
        self.queue.append(lambda: event.update(passed=True))
        return event

    def wait_event(self, event):
        self.queue.append(event)  # no work, but what to wait for

    def wait_stream(self, other):
        self.queue.append(other.record_event())

    def __enter__(self):
        self.before, FakeStream.current = FakeStream.current, self

    def __exit__(self, *_):
        FakeStream.current = self.before


def run_all(streams, rng):
    """Does all work, one piece at a time of whichever stream may go on."""
    while any(stream.queue for stream in streams):
        ready = [s for s in streams if s.queue and (callable(s.queue[0]) or s.queue[0]["passed"])]
        assert ready, "the streams wait for each other"
        work = rng.choice(ready).queue.pop(0)
        if callable(work):
            work()


def copy_through(blocks, monkeypatch, seed, n=23, rows=4):
    """What is read of 0..n, by way of two parts of a scratch, and by when all was read."""
    writer, reader = FakeStream(), FakeStream()
    FakeStream.current = writer
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: FakeStream.current)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(blocks, "reader_beside", lambda *_: reader)
    scratch, out, order = [[None] * rows for _ in range(2)], [None] * n, []

    def write(begin, end, part):
        assert FakeStream.current is writer
        order.append(("write", begin))
        for i in range(begin, end):
            writer.queue.append(lambda i=i: scratch[part].__setitem__(i - begin, i))

    def read(begin, end, part):
        assert FakeStream.current is reader
        order.append(("read", begin))
        for i in range(begin, end):
            reader.queue.append(lambda i=i: out.__setitem__(i, scratch[part][i - begin]))

    blocks.in_blocks(n, rows, 2, torch.device("cuda", 0), write, read)
    assert order == [(what, b) for b in range(0, n, rows) for what in ("write", "read")]
    copied = []
    writer.queue.append(lambda: copied.extend(out))  # as whoever called would go on
    run_all([writer, reader], random.Random(seed))
    return copied


def test_two_streams_meet_in_nothing_but_what_events_order(blocks, monkeypatch):
    for seed in range(50):
        assert copy_through(blocks, monkeypatch, seed) == list(range(23))


@pytest.mark.parametrize("missing", ["wait_event", "wait_stream"])
def test_without_events_they_would(blocks, monkeypatch, missing):
    monkeypatch.setattr(FakeStream, missing, lambda *_: None)
    found = [copy_through(blocks, monkeypatch, seed) for seed in range(50)]
    assert any(copied != list(range(23)) for copied in found)


def test_streams_meet_again_after_an_error(blocks, monkeypatch):
    writer, reader = FakeStream(), FakeStream()
    FakeStream.current = writer
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: FakeStream.current)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(blocks, "reader_beside", lambda *_: reader)

    def read(begin, end, part):
        raise MemoryError

    with pytest.raises(MemoryError):
        blocks.in_blocks(3, 1, 2, torch.device("cuda", 0), lambda *_: None, read)
    assert FakeStream.current is writer
    assert isinstance(writer.queue[-1], dict)  # waits for the reader


@pytest.mark.parametrize("streams", [1, 2])
def test_in_turn_where_there_is_one_stream(blocks, streams):
    order = []
    blocks.in_blocks(
        5, 2, streams, torch.device("cpu"),
        lambda *block: order.append(("write", *block)),
        lambda *block: order.append(("read", *block)),
    )  # fmt: skip
    parts = [(0, 2, 0), (2, 4, 1 % streams), (4, 5, 0)]
    assert order == [(what, *part) for part in parts for what in ("write", "read")]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_and_in_a_graph(blocks):
    n, rows = 1000, 64
    x = torch.randn(n, 4096, device="cuda")
    scratch, out = x.new_empty(2, rows, 4096), torch.empty_like(x)

    def copy():
        blocks.in_blocks(
            n, rows, 2, x.device,
            lambda begin, end, part: scratch[part, : end - begin].copy_(x[begin:end]),
            lambda begin, end, part: out[begin:end].copy_(scratch[part, : end - begin]),
        )  # fmt: skip

    copy()
    assert torch.equal(out, x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        copy()
    x.normal_()
    graph.replay()
    assert torch.equal(out, x)
