"""Blocks of rows: each is written to a scratch that stays in cache, and read from there.

On a CUDA device a block is read on a second stream while the next one is written: a matrix product
and what selects from the one before it share the processors. Events order the two, so the host
waits for nothing and a CUDA graph can hold it all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

# A block of rows begin..end, and which part of the scratch holds it.
Pass = Callable[[int, int, int], None]


def in_blocks(
    n: int, rows: int, streams: int, device: torch.device, write: Pass, read: Pass
) -> None:
    """write(begin, end, part), then read(begin, end, part), for every block of `rows` of n rows.

    With two streams the scratch has parts 0 and 1, which take turns. Neither pass may keep what it
    allocates beyond its end, nor may `read` allocate: memory belongs to the current stream. With
    one stream, and on other devices than CUDA, everything runs in turn.
    """
    blocks = [
        (begin, min(begin + rows, n), number % streams)
        for number, begin in enumerate(range(0, n, rows))
    ]
    if streams == 1 or device.type != "cuda":
        for block in blocks:
            write(*block)
            read(*block)
        return
    writer = torch.cuda.current_stream(device)
    reader = reader_beside(device, writer.cuda_stream)
    done: list[torch.cuda.Event] = []
    try:
        for number, block in enumerate(blocks):
            if number >= streams:  # this part of the scratch has been read
                writer.wait_event(done[number - streams])
            write(*block)
            reader.wait_stream(writer)
            with torch.cuda.stream(reader):
                read(*block)
            done.append(reader.record_event())
    finally:  # whatever frees or overwrites the tensors comes after
        writer.wait_stream(reader)


@functools.cache
def reader_beside(device: torch.device, stream: int) -> torch.cuda.Stream:
    """Return the second stream of a stream, given by its address: no two share one."""
    return torch.cuda.Stream(device)
