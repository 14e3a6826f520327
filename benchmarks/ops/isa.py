"""Every operator on AVX2 against AVX-512: what a processor without AVX-512 gives up.

    python -m benchmarks.ops.isa [THREADS]

The instruction set is chosen once a process, so processes of the two take turns; each warms up,
times its own calls, and the fastest median of the rounds is kept. Writes
benchmarks/results/<machine>/isa.json.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import provenance

ROUNDS, CALLS = 3, 15
SIZES = (4096, 768, 8192)  # rows, dimensions, latents
CASES = [
    *[("topk_relu", k, dtype) for k in (32, 256) for dtype in ("float32", "bfloat16")],
    *[
        (op, k, dtype)
        for op in ("decode", "decode backward")
        for k in (32, 128)
        for dtype in ("float32", "float16", "bfloat16")
    ],
    *[("encode", 32, dtype) for dtype in ("float32", "bfloat16")],
    *[(op, 32, "float32") for op in ("similarity", "info_nce", "index search")],
]


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
    index = csrkern.InvertedIndex.build(codes, metric="ip")
    threads = torch.get_num_threads()
    return lambda: index.search(codes, num_threads=threads)


def milliseconds(run: Callable[[], Any]) -> float:
    """The median of some calls, after two to warm up."""
    took = []
    for _ in range(CALLS + 2):
        start = time.perf_counter()
        run()
        took.append((time.perf_counter() - start) * 1e3)
    return statistics.median(took[2:])


def measure(threads: int) -> None:
    """In a process of one instruction set: a line for each case."""
    import torch

    torch.set_num_threads(threads)
    for case in CASES:
        sys.stdout.write(f"{milliseconds(operation(*case, *SIZES))}\n")


def compare(threads: int) -> Path:
    """Runs all rounds, shows the table and returns the file written."""
    best: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for isa in ("avx512", "avx2"):
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.ops.isa", "--measure", str(threads)],
                cwd=provenance.ROOT,
                env={**os.environ, "CSRKERN_ISA": isa},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            found = [float(line) for line in done.stdout.split()]
            best[isa] = list(map(min, found, best.get(isa, found)))
    rows = [
        {"operator": op, "k": k, "dtype": dtype, "avx2_ms": a, "avx512_ms": b, "ratio": a / b}
        for (op, k, dtype), a, b in zip(CASES, best["avx2"], best["avx512"], strict=True)
    ]
    for row in rows:
        sys.stdout.write(
            f"{row['operator']:16} k={row['k']:<4} {row['dtype']:9} {row['avx2_ms']:9.2f} ms"
            f" {row['avx512_ms']:9.2f} ms  {row['ratio']:.2f}x\n"
        )
    return provenance.save("isa.json", threads=threads, rows=rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(int(sys.argv[2]))
    else:
        sys.stdout.write(f"saved: {compare(int(sys.argv[1]) if sys.argv[1:] else 2)}\n")
