"""What each operator must move and compute, and how fast a machine can do that.

A `Cost` is plain arithmetic over shapes: every input read once, every output written once,
every multiply-add that the result depends on counted as two flops. Nothing is charged for
scratch, for reading twice, or for caches missed: those are choices. `measure_machine` finds
the ceilings of this machine, and `floor_seconds` divides one by the other, so

    share of the floor = floor_seconds / measured seconds

says how much of the time no implementation could save. It is a floor, not a prediction: a
scattered read cannot reach streaming bandwidth and a sparse sum cannot reach GEMM speed.
"""

from __future__ import annotations

import itertools
import math
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csrkern import _C

if TYPE_CHECKING:
    import torch

INDEX_BYTES = 4  # SparseCodes hold int32 latents


def instruction_set() -> str:
    """Return the name of the vector instructions that the native kernels use on this machine."""
    return str(_C.isa())


def processor_name() -> str:
    """Return the processor's name, as far as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for products in bfloat16, which `encode` uses."""
    return bool(_C.multiplies_bfloat16())


@dataclass(frozen=True)
class Cost:
    """Compulsory work: bytes read, bytes written, and flops in the arithmetic of `dtype`."""

    read: float = 0.0
    written: float = 0.0
    flops: float = 0.0
    dtype: str = "float32"

    def __add__(self, other: Cost) -> Cost:
        if self.flops and other.flops and self.dtype != other.dtype:
            raise ValueError(f"costs in {self.dtype} and {other.dtype} have no common ceiling")
        return Cost(
            self.read + other.read,
            self.written + other.written,
            self.flops + other.flops,
            self.dtype if self.flops else other.dtype,
        )


def codes_bytes(n: int, k: int, itemsize: int) -> float:
    """SparseCodes of n rows: a value of `itemsize` bytes and an int32 latent in every slot."""
    return n * k * (itemsize + INDEX_BYTES)


def sparse_products(use_a: Any, use_b: Any) -> int:
    """Multiply-adds of a sparse product: Σ over latents of uses in a times uses in b.

    `use_a` and `use_b` [h] count the rows in which each latent is active; for codes that use
    their latents evenly this is n·m·k²/h.
    """
    return sum(int(a) * int(b) for a, b in zip(use_a, use_b, strict=True))


def topk_relu(n: int, h: int, k: int, itemsize: int = 4) -> Cost:
    """Every pre-activation read once (a comparison each), the codes written."""
    return Cost(read=n * h * itemsize, written=codes_bytes(n, k, itemsize), flops=n * h)


def gemm(n: int, d: int, h: int, itemsize: int = 4, dtype: str = "float32") -> Cost:
    """[n, d] times [d, h]: 2·n·d·h flops, both factors read, the product written."""
    return Cost(itemsize * (n * d + h * d), itemsize * n * h, 2.0 * n * d * h, dtype)


def encode(n: int, d: int, h: int, k: int, itemsize: int = 4, dtype: str = "float32") -> Cost:
    """Return the cost of the encoder GEMM with only the codes written."""
    read = itemsize * (n * d + h * d + h + d)
    return Cost(read, codes_bytes(n, k, itemsize), 2.0 * n * d * h, dtype)


def encode_backward(
    n: int, d: int, h: int, k: int, itemsize: int = 4, dtype: str = "float32"
) -> Cost:
    """dx and dW over the selected latents only: n·k rows of d, twice; dW and db are dense."""
    read = codes_bytes(n, k, itemsize) + itemsize * (n * d + h * d)
    written = itemsize * (n * d + h * d + h + d)
    return Cost(read, written, 2 * (2.0 * n * k * d), dtype)


def decode(n: int, d: int, h: int, k: int, itemsize: int = 4, dtype: str = "float32") -> Cost:
    """Codes and the rows of W that can be touched (at most n·k of h) read, [n, d] written."""
    read = codes_bytes(n, k, itemsize) + itemsize * min(h, n * k) * d
    return Cost(read, itemsize * n * d, 2.0 * n * k * d, dtype)


def decode_backward(
    n: int, d: int, h: int, k: int, itemsize: int = 4, dtype: str = "float32"
) -> Cost:
    """d_values (a dot product a slot) and dW (a scaled row a slot, dense [h, d] written)."""
    read = codes_bytes(n, k, itemsize) + itemsize * (n * d + min(h, n * k) * d)
    return Cost(read, itemsize * (n * k + h * d), 2 * (2.0 * n * k * d), dtype)


def pack(n: int, k: int, row_bytes: int, unpack: bool = False) -> Cost:
    """Float32 codes read and rows of `row_bytes` written, or the reverse."""
    codes, rows = codes_bytes(n, k, 4), float(n * row_bytes)
    return Cost(rows, codes) if unpack else Cost(codes, rows)


def encode_omp(n: int, d: int, h: int, k: int, turns: int, itemsize: int = 4) -> Cost:
    """Return the cost of a product with the dictionary in each turn, and of a fit of k latents."""
    product = gemm(n, d, h, itemsize)
    flops = turns * product.flops + n * (2.0 * d * k * k + k**3 / 3)
    return Cost(product.read, codes_bytes(n, k, itemsize), flops)


def prefix_errors(
    n: int, d: int, h: int, k: int, itemsize: int = 4, dtype: str = "float32"
) -> Cost:
    """Codes, x and the rows of W that can be touched read; a multiply-add and a square a slot."""
    read = codes_bytes(n, k, itemsize) + itemsize * (n + min(h, n * k)) * d
    return Cost(read, 4.0 * k, 2 * (2.0 * n * k * d), dtype)


def prefix_errors_backward(
    n: int, d: int, h: int, k: int, itemsize: int = 4, dtype: str = "float32"
) -> Cost:
    """Residual, weighted sum, d_values and dW: a multiply-add each for every slot and column."""
    read = codes_bytes(n, k, itemsize) + 4.0 * n * d + itemsize * min(h, n * k) * d
    return Cost(read, itemsize * (n * k + h * d), 4 * (2.0 * n * k * d), dtype)


def similarity(n: int, m: int, k: int, pairs: int, itemsize: int = 4) -> Cost:
    """Both sets of codes read, [n, m] written, `pairs` multiply-adds (see `sparse_products`)."""
    return Cost(codes_bytes(n + m, k, itemsize), float(itemsize) * n * m, 2.0 * pairs)


def info_nce(n: int, m: int, k: int, pairs: int, itemsize: int = 4, backward: bool = False) -> Cost:
    """Return the cost of summing scores that are not zero; the backward meets each twice more."""
    read = codes_bytes(n + m, k, itemsize)
    written = float(itemsize) * ((n + m) * k if backward else 1)
    return Cost(read, written, 2.0 * pairs * (3 if backward else 1))


def train_step(
    n: int,
    d: int,
    h: int,
    k: int,
    k_aux: int,
    pairs: int = 0,
    itemsize: int = 4,
    dtype: str = "float32",
) -> Cost:
    """One CSR step: a single encoder GEMM for k, 4k and aux; decodes and gradients sparse; Adam.

    `k_aux` is 0 when no latent is dead; `pairs` is that of the contrastive term at k. The tied
    dictionary's gradient comes from the decoder (k, 4k, aux) and the encoder (4k and aux).
    Adam reads weight, gradient and both moments, and writes weight and moments.
    """
    active = k + 4 * k + k_aux
    selected = 4 * k + k_aux
    flops = 2.0 * n * d * (h + active + 2 * active + selected)
    parameters = itemsize * (h * d + h + d)
    contrast = info_nce(n, n, k, pairs, itemsize, backward=True).flops if pairs else 0.0
    return Cost(itemsize * n * d + 4 * parameters, 4 * parameters, flops + contrast, dtype)


def search(postings: float, n_queries: int, top_k: int, bytes_per_posting: int = 4) -> Cost:
    """Return an inverted scan: each of the queries' postings read and added once, top-k written.

    Exact pruning reads fewer postings, so a share above 1 is possible and says so.
    """
    return Cost(postings * bytes_per_posting, n_queries * top_k * 12.0, 2.0 * postings)


@dataclass(frozen=True)
class Machine:
    """Measured ceilings. Bandwidths: threads -> working set in bytes -> bytes a second."""

    read: Mapping[int, Mapping[int, float]]
    fill: Mapping[int, Mapping[int, float]]
    copy: Mapping[int, Mapping[int, float]]  # counts the bytes read and the bytes written
    gemm: Mapping[int, Mapping[str, float]]  # threads -> dtype -> flops a second
    extra: Mapping[str, Any] = field(default_factory=dict)

    def bandwidth(self, kind: str, threads: int, working_set: float) -> float:
        """Bytes a second for `kind` (read, fill or copy), between measured sizes by their logs."""
        table: Mapping[int, Mapping[int, float]] = getattr(self, kind)
        points = sorted(table[self._threads(threads, table)].items())
        if working_set <= points[0][0]:
            return points[0][1]
        for (small, fast), (large, slow) in itertools.pairwise(points):
            if working_set <= large:
                along = math.log(working_set / small) / math.log(large / small)
                return fast + along * (slow - fast)
        return points[-1][1]

    def flops(self, threads: int, dtype: str) -> float:
        """Flops a second of the best GEMM in `dtype`; other types are held to float32's."""
        table = self.gemm[self._threads(threads, self.gemm)]
        return table.get(dtype, table["float32"])

    @staticmethod
    def _threads(threads: int, table: Mapping[int, Any]) -> int:
        """Return the measured thread count to hold `threads` against: itself or the next larger."""
        larger = [t for t in table if t >= threads]
        return min(larger) if larger else max(table)


def memory_seconds(cost: Cost, machine: Machine, threads: int) -> float:
    """Time of the compulsory traffic: what is both read and written copies, the rest streams."""
    working_set = cost.read + cost.written
    both = min(cost.read, cost.written)

    def seconds(kind: str, amount: float) -> float:
        return amount / machine.bandwidth(kind, threads, working_set) if amount else 0.0

    return (
        seconds("copy", 2 * both)
        + seconds("read", cost.read - both)
        + seconds("fill", cost.written - both)
    )


def compute_seconds(cost: Cost, machine: Machine, threads: int) -> float:
    """Time of the flops at GEMM speed."""
    return cost.flops / machine.flops(threads, cost.dtype) if cost.flops else 0.0


def floor_seconds(cost: Cost, machine: Machine, threads: int) -> float:
    """Return the larger of memory and compute time: both can overlap, neither can be saved."""
    return max(
        memory_seconds(cost, machine, threads),
        compute_seconds(cost, machine, threads),
    )


def bound_by(cost: Cost, machine: Machine, threads: int) -> str:
    """Which ceiling sets the floor: "memory" or "compute"."""
    memory = memory_seconds(cost, machine, threads)
    return "memory" if memory >= compute_seconds(cost, machine, threads) else "compute"


def measure_machine(threads: tuple[int, ...] | None = None, *, quick: bool = False) -> Machine:
    """Measures this CPU's ceilings with PyTorch: about 6 s a thread count, 0.3 s if `quick`.

    `threads` defaults to (1, torch.get_num_threads()). Each figure is the best of several
    repetitions, since a ceiling is what the machine can do, not what it does on average.
    `quick` measures fewer and smaller sizes: enough to test with, not to quote.
    """
    import torch

    before = torch.get_num_threads()
    counts = tuple(sorted(set(threads or (1, before))))
    sizes = (1 << 20,) if quick else tuple(1 << p for p in (22, 24, 25, 26, 28))
    seconds = 0.02 if quick else 0.3
    read: dict[int, dict[int, float]] = {}
    fill: dict[int, dict[int, float]] = {}
    copy: dict[int, dict[int, float]] = {}
    flops: dict[int, dict[str, float]] = {}
    try:
        for count in counts:
            torch.set_num_threads(count)
            read[count], fill[count], copy[count] = _bandwidths(sizes, seconds)
            flops[count] = {
                str(dtype).removeprefix("torch."): _gemm_flops(dtype, quick, seconds)
                for dtype in (torch.float32, torch.bfloat16)
            }
    finally:
        torch.set_num_threads(before)
    tables: tuple[dict[int, dict[Any, float]], ...] = (read, fill, copy, flops)
    for fewer, more in itertools.pairwise(counts):
        # More threads cannot lower a ceiling: where they seem to, the machine was disturbed.
        for table in tables:
            for key, value in table[fewer].items():
                table[more][key] = max(value, table[more][key])
    return Machine(read, fill, copy, flops, {"quick": quick})


def measure_gpu() -> Machine:
    """Measures the current CUDA device's ceilings, in about a second, filed under one thread.

    Raises:
        RuntimeError: if PyTorch sees no CUDA device.
    """
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("measure_gpu: PyTorch sees no CUDA device")

    def seconds(run: Callable[[], Any]) -> float:
        def waited() -> None:
            run()
            torch.cuda.synchronize()

        return _best_seconds(waited, 0.1)

    size = 2**31  # of both together; many times any L2 cache
    source, target = (torch.randn(size // 8, device="cuda") for _ in range(2))
    read = {1: {size: size / 2 / seconds(source.sum)}}
    fill = {1: {size: size / 2 / seconds(partial(target.fill_, 1.0))}}
    copy = {1: {size: size / seconds(partial(target.copy_, source))}}
    flops = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        a, b = (torch.randn(8192, 8192, device="cuda").to(dtype) for _ in range(2))
        taken = seconds(partial(torch.mm, a, b, out=torch.empty_like(a)))
        flops[str(dtype).removeprefix("torch.")] = 2.0 * 8192**3 / taken
    return Machine(read, fill, copy, {1: flops})


def _bandwidths(
    sizes: tuple[int, ...], seconds: float
) -> tuple[dict[int, float], dict[int, float], dict[int, float]]:
    """Read, fill and copy bandwidth by working set; a copy's set is source and target together."""
    import torch

    read, fill, copy = {}, {}, {}
    for size in sizes:
        block = torch.ones(size // 4)
        half = size // 8
        source, target = block[:half], block[half : 2 * half]
        read[size] = size / _best_seconds(block.sum, seconds)
        fill[size] = size / _best_seconds(partial(block.fill_, 1.0), seconds)
        copy[size] = size / _best_seconds(partial(target.copy_, source), seconds)
    return read, fill, copy


def _gemm_flops(dtype: torch.dtype, quick: bool, seconds: float) -> float:
    """Return the best over a few shapes, the result preallocated."""
    import torch

    best = 0.0
    for n, d, h in ((256, 256, 256),) if quick else ((1024, 1024, 1024), (512, 768, 4096)):
        a, b = torch.ones(n, d, dtype=dtype), torch.ones(h, d, dtype=dtype)
        out = torch.empty(n, h, dtype=dtype)
        taken = _best_seconds(partial(torch.mm, a, b.T, out=out), seconds)
        best = max(best, 2.0 * n * d * h / taken)
    return best


def _best_seconds(run: Callable[[], Any], seconds: float) -> float:
    """Return the fastest of at least three calls, repeated for about `seconds` after a warm-up."""
    run()
    best, calls, stop = math.inf, 0, time.perf_counter() + seconds
    while calls < 3 or time.perf_counter() < stop:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
        calls += 1
    return best
