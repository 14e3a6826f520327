"""Every operator on AVX2 against AVX-512: what a processor without AVX-512 gives up.

The instruction set is chosen once a process, so each side is a process of its own that waits
for its turn; its inputs are made there from the same seed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import Race, cases

Case = tuple[str, int, str]  # operator, k, dtype
FULL: list[Case] = [
    *[("topk_relu", k, dtype) for k in (32, 256) for dtype in ("float32", "bfloat16")],
    *[
        (op, k, dtype)
        for op in ("decode", "decode backward")
        for k in (32, 128)
        for dtype in ("float32", "float16", "bfloat16")
    ],
    *[("encode", 32, dtype) for dtype in ("float32", "bfloat16")],
    *[("similarity", 32, "float32"), ("info_nce", 32, "float32"), ("index search", 32, "float32")],
]


@cases(tiny=[("decode", 8, "float32"), ("index search", 8, "float32")], quick=FULL)
def bench_isa(race: Race, case: Case) -> None:
    import csrkern

    if csrkern._C.isa() != "avx512":
        pytest.skip("needs AVX-512 to compare with")
    operator, k, dtype = case
    size = "64 32 256" if race.size == "tiny" else "4096 768 8192"
    with (
        Worker("avx2", case, size, race.threads) as avx2,
        Worker("avx512", case, size, race.threads) as avx512,
    ):
        race(
            "AVX2",
            f"{operator} k={k}",
            dtype=dtype,
            ours=avx2.run,
            peers={"AVX-512": avx512.run},
            cost=None,
        )


class Worker:
    """A process that runs one operator, once for every `run`."""

    def __init__(self, isa: str, case: Case, size: str, threads: int) -> None:
        operator, k, dtype = case
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "benchmarks.bench_isa",
                operator,
                str(k),
                dtype,
                size,
                str(threads),
            ],
            # Idle threads must sleep: those of the one side would spin in the turn of the other.
            env={**os.environ, "CSRKERN_ISA": isa, "OMP_WAIT_POLICY": "passive"},
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()

    def run(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("\n")
        if not self.process.stdout.readline():
            raise RuntimeError("the benchmark's other process ended; see its message above")


def operation(operator: str, k: int, dtype: str, n: int, d: int, h: int) -> Callable[[], Any]:
    """The call to time, on inputs of this size."""
    import torch

    import csrkern

    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    pre, weight = torch.randn(n, h).to(kind), torch.randn(h, d).mul_(d**-0.5).to(kind)
    if operator == "topk_relu":
        return lambda: csrkern.topk_relu(pre, k)
    x = torch.randn(n, d).to(kind)
    if operator == "encode":
        return lambda: csrkern.encode(x, weight, k=k)
    codes = csrkern.topk_relu(pre, k)
    if operator == "decode":
        return lambda: csrkern.decode(codes, weight)
    if operator == "decode backward":
        weight.requires_grad_()
        values = codes.values.requires_grad_()
        out = csrkern.decode(codes, weight)
        return lambda: torch.autograd.grad(out, (values, weight), x, retain_graph=True)
    if operator == "similarity":
        return lambda: csrkern.similarity(codes, codes)
    if operator == "info_nce":
        return lambda: csrkern.info_nce(codes, temperature=0.1)
    index = csrkern.InvertedIndex.build(codes)
    threads = torch.get_num_threads()
    return lambda: index.search(codes, num_threads=threads)


def serve() -> None:
    import torch

    operator, k, dtype, size, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    run = operation(operator, int(k), dtype, *map(int, size.split()))
    for _ in sys.stdin:
        run()
        print(flush=True)


if __name__ == "__main__":
    serve()
