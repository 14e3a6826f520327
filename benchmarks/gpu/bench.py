#!/usr/bin/env python3
"""Times every GPU kernel beside its peers and its floor, and writes what it finds as JSON.

    python benchmarks/gpu/bench.py --out build/gpu/results.json [--only topk_relu]
    TRITON_INTERPRET=1 python benchmarks/gpu/bench.py --tiny    # no GPU: every step, no times

A time is the median of replays of a CUDA graph, each after the L2 cache was overwritten;
`eager_us` is that of a call by a host that queues one after another. The floor is
csrkern.roofline's compulsory work over two measured ceilings, a device copy and a bfloat16 matrix
product; a third, rows gathered from the L2 cache, is printed beside them. A measurement that the
results file has for this commit is not repeated. The results of a peer are compared with ours
before either is timed, and the codes of `encode` in float32 with those of the CPU, bit for bit.
Every configuration that was measured is kept, with its time. At the shapes of others what they
publish stands beside: measured by them, on another GPU, at a number of rows they do not tell.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

import csrkern
from benchmarks.harness.provenance import commit, versions
from csrkern import SparseCodes, reference, roofline
from csrkern.kernels import (
    gather,
    info_nce,
    prefix_errors,
    similarity,
    topk_relu,
    transpose,
    tuning,
)
from csrkern.kernels.encode import product as encode
from csrkern.kernels.encode import verified as encode_verified

# name: rows, width, latents, active latents
SHAPES = {
    "S1": (4096, 1024, 16_384, 32),
    "S2": (4096, 4096, 16_384, 32),
    "S3": (8192, 1024, 65_536, 64),
    "S4": (8192, 768, 4096, 16),
    "S5": (4096, 4096, 131_072, 256),
}
# Shapes that others publish, and what is timed there: flex-sae's decoder loss (arXiv 2505.24473),
# whose rows are not told, and a feedforward layer of TwELL's model of 1.5B parameters (arXiv
# 2603.23198), of which 29 of 5,632 neurons are active on average.
OTHERS = {
    "flex-sae-32": (4096, 2304, 65_536, 32),
    "flex-sae-64": (4096, 2304, 65_536, 64),
    "flex-sae-128": (4096, 2304, 65_536, 128),
    "TwELL": (4096, 2048, 5632, 29),
}
TIMED = {name: ("decoder loss",) for name in OTHERS} | {"TwELL": ("encode fast", "decode")}
PUBLISHED_US = {"flex-sae-32": 5580.0, "flex-sae-64": 6340.0, "flex-sae-128": 7960.0}
TINY = {"tiny": (6, 40, 200, 5)}
DENSE_SCORES = 2**31  # peers that hold [n, n] or [n, h] are left out above this many elements


class Timing(NamedTuple):
    """One thing to time: ours, its peers, its compulsory work."""

    op: str
    ours: Callable[[], Any]
    peers: dict[str, Callable[[], Any]]
    cost: roofline.Cost
    same: Callable[[Any, Any], bool]


def close(ours: Any, theirs: Any) -> bool:
    """Equal up to the rounding of sums."""
    difference = (ours.float() - theirs.float()).norm()
    return bool(difference <= 2e-2 * theirs.float().norm())


def close_values(ours: Any, theirs: Any) -> bool:
    """The values of a selection, up to rounding."""
    return close(ours[0], theirs[0])


def same_values(ours: Any, theirs: Any) -> bool:
    """The values of a selection, bit for bit."""
    return torch.equal(ours[0], theirs[0])


def compiled(run: Callable[..., Any], device: str) -> Callable[..., Any]:
    """By torch.compile; without a GPU traced only, which shows that it can be."""
    return torch.compile(run, backend="inductor" if device == "cuda" else "eager")


def timings(shape: tuple[int, int, int, int], device: str, dtype: torch.dtype) -> Iterator[Timing]:
    """What is timed at one shape; tensors are made when the generator gets there."""
    n, d, h, k = shape
    size = dtype.itemsize
    x, weight = torch.randn(n, d, device=device), torch.randn(h, d, device=device) / d**0.5
    x, weight = x.to(dtype), weight.to(dtype)
    yield from encoder_timings(x, weight, k, device)

    values, indices = encode.encode(x, weight, None, None, k, False)
    long_indices = indices.long()
    codes = SparseCodes(values, indices, h)
    csr = codes.to_torch_csr()
    dense_codes = codes.to_dense() if n * h <= DENSE_SCORES else None
    peers = {
        "embedding_bag": lambda: F.embedding_bag(
            long_indices, weight, per_sample_weights=values, mode="sum"
        ),
        "cuSPARSE": lambda: csr @ weight,
    }
    if dense_codes is not None:
        peers["dense GEMM"] = lambda: dense_codes @ weight
    if device == "cuda" and importlib.util.find_spec("sparsify"):
        from sparsify.utils import triton_decode

        peers["sparsify"] = lambda: triton_decode(long_indices, values, weight.mT)
    yield Timing(
        "decode",
        lambda: gather.gather_sum(values, indices, weight, None, [k])[0],
        peers,
        roofline.decode(n, d, h, k, size),
        close,
    )
    yield Timing(
        "transpose",
        lambda: transpose.transpose(values, indices, h),
        {"torch.sort": lambda: torch.sort(indices.flatten(), stable=True)},
        roofline.Cost(2 * n * k * 8, n * k * 12 + 8 * h),
        lambda a, b: True,  # their sort carries padded slots along
    )
    starts, rows, slots, _ = transpose.transpose(values, indices, h)
    peers = {}
    if dense_codes is not None:
        peers["two dense GEMMs"] = lambda: (
            (x @ weight.T).gather(1, long_indices) * (values != 0),
            dense_codes.T @ x,
        )
    yield Timing(
        "decode backward",
        lambda: (
            gather.gather_dot(values, indices, weight, x[None], [k]),
            gather.scatter_sum(starts, rows, slots, h, [x], [values.float()], [0], [k]),
        ),
        peers,
        roofline.decode_backward(n, d, h, k, size),
        lambda a, b: close(a[0], b[0]) and close(a[1], b[1]),
    )
    yield decoder_loss(values, indices, weight, x)
    yield prefix_loss(values, indices, weight, x)
    if dtype == torch.float32:  # what follows computes in it, whatever the codes came in
        yield from code_timings(codes.normalize())


def decoder_loss(values: Tensor, indices: Tensor, weight: Tensor, x: Tensor) -> Timing:
    """The mean square error of a reconstruction, its gradients of values and weight."""
    (n, k), (h, d) = values.shape, weight.shape
    long_indices = indices.long()

    def ours() -> tuple[Tensor, Tensor, Tensor]:
        error = gather.gather_sum(values, indices, weight, None, [k])[0] - x
        grad = error * (2 / error.numel())
        starts, rows, slots, _ = transpose.transpose(values, indices, h)
        return (
            error.square().mean(),
            gather.gather_dot(values, indices, weight, grad[None], [k]),
            gather.scatter_sum(starts, rows, slots, h, [grad], [values.float()], [0], [k]),
        )

    def theirs() -> tuple[Tensor, ...]:
        leaves = values.clone().requires_grad_(), weight.clone().requires_grad_()
        made = F.embedding_bag(long_indices, leaves[1], per_sample_weights=leaves[0], mode="sum")
        loss = (made - x).square().mean()
        return loss.detach(), *torch.autograd.grad(loss, leaves)

    size = weight.itemsize
    return Timing(
        "decoder loss",
        ours,
        {"embedding_bag": theirs},
        roofline.decode(n, d, h, k, size) + roofline.decode_backward(n, d, h, k, size),
        lambda a, b: close(a[0], b[0]) and close(a[2], b[2]),
    )


def prefix_loss(values: Tensor, indices: Tensor, weight: Tensor, x: Tensor) -> Timing:
    """The mean of the errors at every k, its gradients of values and weight."""
    (n, k), (h, d) = values.shape, weight.shape

    def ours() -> tuple[Tensor, Tensor, Tensor]:
        left = x.to(torch.float32, copy=True)
        errors = prefix_errors.prefix_errors(values, indices, weight, left)
        weights = torch.full_like(errors, 2 / (k * left.numel()))
        grads = prefix_errors.prefix_errors_backward(weights, left, values, indices, weight)
        return errors.mean(), *grads[:2]

    def theirs() -> tuple[Tensor, ...]:
        leaves = values.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = reference.prefix_errors(x, SparseCodes(leaves[0], indices, h), leaves[1]).mean()
        return loss.detach(), *torch.autograd.grad(loss, leaves)

    size = weight.itemsize
    return Timing(
        "prefix loss",
        ours,
        {"plain PyTorch": theirs} if n * k * d <= DENSE_SCORES else {},
        roofline.prefix_errors(n, d, h, k, size)
        + roofline.prefix_errors_backward(n, d, h, k, size),
        lambda a, b: close(a[0], b[0]) and close(a[2], b[2]),
    )


def encoder_timings(x: Tensor, weight: Tensor, k: int, device: str) -> Iterator[Timing]:
    """What selects: topk_relu and encode."""
    (n, d), h = x.shape, len(weight)
    size, name = x.itemsize, str(x.dtype).removeprefix("torch.")
    dense = {}

    def linear_topk(x: Tensor) -> tuple[Tensor]:
        return (torch.topk(F.linear(x, weight), k)[0].relu_(),)

    if n * h <= DENSE_SCORES:
        pre = x @ weight.T
        peers = {"torch.topk + relu": lambda: (torch.topk(pre, k)[0].relu_(),)}
        if device == "cuda" and importlib.util.find_spec("flashinfer"):
            import flashinfer

            peers["FlashInfer"] = lambda: (flashinfer.top_k(pre, k, sorted=True)[0].relu_(),)
        yield Timing(
            "topk_relu",
            lambda: topk_relu.topk_relu(pre, k, None),
            peers,
            roofline.topk_relu(n, h, k, size),
            same_values,
        )
        fused = compiled(linear_topk, device)
        narrow, narrow_weight = x.bfloat16(), weight.bfloat16()
        dense = {
            "linear + topk": lambda: linear_topk(x),
            "torch.compile": lambda: fused(x),
            "bfloat16 linear + topk": lambda: torch.topk(narrow @ narrow_weight.T, k)[:1],
        }
    cost = roofline.encode(n, d, h, k, size, name)
    if x.dtype == torch.float32:
        yield Timing(
            "encode verified",
            lambda: encode_verified.encode(x, weight, None, None, k),
            dense,
            cost,
            close_values,
        )
    yield Timing(
        "encode fast",
        lambda: encode.encode(x, weight, None, None, k, False),
        dense,
        cost,
        close_values,
    )
    if dense:
        gemm = roofline.gemm(n, d, h, size, name)
        yield Timing("bare GEMM", lambda: x @ weight.T, {}, gemm, close)


def code_timings(codes: SparseCodes) -> Iterator[Timing]:
    """What scores codes against codes."""
    (n, k), h = codes.values.shape, codes.dim
    starts, rows, _, sorted_values = transpose.transpose(codes.values, codes.indices, h)
    postings, both = (starts, rows, sorted_values), (codes.values, codes.indices)
    uses = starts.diff().cpu()
    met = int((uses * uses).sum())
    dense = codes.to_dense() if n * h <= DENSE_SCORES else None
    peers, loss_peers = {}, {}
    if dense is not None:
        csr = codes.to_torch_csr()
        peers = {"dense GEMM": lambda: dense @ dense.T, "cuSPARSE": lambda: csr @ dense.T}

        def reference_loss() -> Tensor:
            return reference.info_nce(codes, temperature=0.2, normalize=False)

        loss_peers = {"dense": reference_loss}
    yield Timing(
        "similarity",
        lambda: similarity.similarity(both, both, postings),
        peers,
        roofline.similarity(n, n, k, met),
        close,
    )
    yield Timing(
        "info_nce",
        lambda: info_nce.info_nce(
            codes.values, codes.indices, postings, n, True, 0.2, None, None, None
        )[0].mean(),
        loss_peers,
        roofline.info_nce(n, n, k, met),
        close,
    )


class Clock:
    """Medians in microseconds: graph replays with a cold L2 cache, or one call where no GPU is."""

    def __init__(self, device: str) -> None:
        self.gpu = device == "cuda"
        self.cold = torch.empty(2**26 if self.gpu else 0, device=device)

    def median(self, run: Callable[[], Any], replays: int = 15) -> float:
        """The median time of `run`; what cannot be captured is launched instead."""
        if not self.gpu:
            began = time.perf_counter()
            run()
            return (time.perf_counter() - began) * 1e6
        for _ in range(3):
            run()
        torch.cuda.synchronize()
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                run()
            run = graph.replay
        except RuntimeError as error:
            print(f"not captured, launched: {error}", file=sys.stderr)
            torch.cuda.synchronize()
        taken = []
        for _ in range(replays):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.cold.zero_()
            begin.record()
            run()
            end.record()
            end.synchronize()
            taken.append(begin.elapsed_time(end) * 1e3)
        return statistics.median(taken)

    def eager(self, run: Callable[[], Any], calls: int = 20) -> float:
        """The time of a call among others that the host queues without waiting."""
        if not self.gpu:
            return self.median(run)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e3 / calls


def exactness(shape: tuple[int, int, int, int], device: str, rows: int = 64) -> dict[str, Any]:
    """Whether float32 codes of some rows are the CPU's, and how many sums it took to make them so.

    All rows are encoded, by the tiles that are taken for so many.
    """
    n, d, h, k = shape
    x, weight = torch.randn(n, d, device=device), torch.randn(h, d, device=device) / d**0.5
    sample = torch.linspace(0, n - 1, min(rows, n), device=device).long()
    made = []

    class Watched(encode_verified.Proposer):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(self)

    usual, encode_verified.Proposer = encode_verified.Proposer, Watched
    try:
        values, indices = encode_verified.encode(x, weight, None, None, k)
    finally:
        encode_verified.Proposer = usual
    expected = csrkern.encode(x[sample].cpu(), weight.cpu(), k=k)
    counts = made[-1].counts
    found = counts >= 0
    return {
        "equal": SparseCodes(values[sample].cpu(), indices[sample].cpu(), h).equal(expected),
        "rows": len(sample),
        "proposals_per_k": float(counts[found].float().mean()) / k,
        "rows_summed_in_full": int((~found).sum()),
    }


def ceilings(clock: Clock, device: str) -> dict[str, float]:
    """Bytes a second of a copy and of rows gathered from the L2 cache, flops of a bf16 product.

    All on random data. The gathered table is 16 MB, and read 32 times over.
    """
    side = 8192 if clock.gpu else 64
    source = torch.randn(side, side * 8, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    table = torch.randn(side // 2, 1024, device=device)
    bags = torch.randint(0, side // 2, (side // 2, 32), device=device)
    return {
        "copy_bytes_per_s": 2e6 * source.nbytes / clock.median(lambda: target.copy_(source)),
        "bf16_flops_per_s": 2e6 * side**3 / clock.median(lambda: a @ b),
        "l2_gather_bytes_per_s": 1e6
        * bags.numel()
        * table[0].nbytes
        / clock.median(lambda: F.embedding_bag(bags, table, mode="sum")),
    }


def floor_seconds(timing: Timing, limit: dict[str, float]) -> float:
    """Compulsory bytes over the copy's rate, or flops of a matrix product over the product's."""
    cost = timing.cost
    memory = (cost.read + cost.written) / limit["copy_bytes_per_s"]
    products = timing.op.startswith(("encode", "bare"))
    return max(memory, cost.flops / limit["bf16_flops_per_s"] if products else 0.0)


def measure(timing: Timing, clock: Clock, limit: dict[str, float]) -> dict[str, Any]:
    """The row of one comparison; a peer that fails or differs says so instead of a time."""
    ours, peers, notes = timing.ours(), {}, {}
    for peer, run in timing.peers.items():
        try:
            if not timing.same(ours, run()):
                notes[peer] = "its result differs from ours"
                continue
            peers[peer] = clock.median(run)
        except RuntimeError as error:  # out of memory, or not built for these operands
            notes[peer] = str(error).split("\n")[0]
    del ours
    configurations: list[dict[str, Any]] = []

    def watched(run: functools.partial[Any]) -> float:
        seconds = usual(run)
        configurations.append({"configuration": run.args[0], "us": seconds * 1e6})
        return seconds

    usual, tuning.seconds = tuning.seconds, watched
    try:
        with tuning.tuning_mode("measure"):
            timing.ours()  # chooses its configuration
    finally:
        tuning.seconds = usual
    return {
        "us": clock.median(timing.ours),
        "eager_us": clock.eager(timing.ours),
        "floor_us": floor_seconds(timing, limit) * 1e6,
        "peers_us": peers,
        "notes": notes,
        "configurations": configurations,
    }


def save(results: dict[str, Any], path: Path | None) -> None:
    """Writes beside and renames."""
    if path:
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps(results, indent=1))
        beside.replace(path)


def main() -> int:
    """Measures what is not yet in the results; prints the table last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="", help="operators whose name contains this")
    every = {**OTHERS, **SHAPES}
    parser.add_argument("--shapes", nargs="+", choices=every, default=list(every))
    parser.add_argument("--once", action="store_true", help="run ours once, for a profiler")
    parser.add_argument("--tiny", action="store_true", help="CPU tensors, in the interpreter")
    options = parser.parse_args()
    device = "cpu" if options.tiny else "cuda"
    shapes = TINY if options.tiny else {name: every[name] for name in options.shapes}
    if options.once:
        for shape in shapes.values():
            for timing in timings(shape, device, torch.float32):
                timing.ours()
        return 0
    results: dict[str, Any] = {"commit": commit(), "versions": versions(), "rows": {}}
    if options.out and options.out.exists():
        before = json.loads(options.out.read_text())
        results = before if before["commit"] == results["commit"] else results
    clock = Clock(device)
    if "ceilings" not in results:
        results["ceilings"] = ceilings(clock, device)
        results["device"] = torch.cuda.get_device_name() if clock.gpu else "no GPU"
        save(results, options.out)
    limit, rows = results["ceilings"], results["rows"]
    for shape_name, shape in shapes.items():
        exact = results.setdefault("exact", {})
        of_others = shape_name in OTHERS
        if not of_others and shape_name not in exact and options.only in "encode verified":
            exact[shape_name] = exactness(shape, device)
            save(results, options.out)
        for dtype in (torch.float32, torch.bfloat16):
            for timing in timings(shape, device, dtype):
                key = f"{timing.op} {shape_name} {str(dtype).removeprefix('torch.')}"
                timed = timing.op in TIMED.get(shape_name, (timing.op,))
                if key not in rows and timed and options.only in timing.op:
                    rows[key] = measure(timing, clock, limit)
                    if shape_name in PUBLISHED_US:
                        rows[key]["published_us"] = PUBLISHED_US[shape_name]
                    save(results, options.out)
    if options.tiny:
        # Times of the interpreter say nothing; that every peer ran and agreed does.
        for key, row in rows.items():
            print(f"{key}: agrees with {', '.join(row['peers_us']) or 'nothing'} {row['notes']}")
        differs = any("differs" in n for row in rows.values() for n in row["notes"].values())
        return int(differs or not all(found["equal"] for found in exact.values()))
    print(f"{results['device']}: {limit}")
    for name, found in exact.items():
        print(f"encode {name}, float32: {found}")
    for key, row in rows.items():
        peers = "  ".join(f"{peer} {us / row['us']:.2f}x" for peer, us in row["peers_us"].items())
        failed = "  ".join(f"{peer}: {note[:60]}" for peer, note in row["notes"].items())
        share = row["floor_us"] / row["us"]
        times = f"{row['us']:10.1f} us, {row['eager_us']:10.1f} eager"
        if "published_us" in row:
            times += f", {row['published_us']:.0f} published"
        print(f"{key:32} {times}  floor {share:4.0%}  {peers}  {failed}")
    return int(not all(found["equal"] for found in exact.values()))


if __name__ == "__main__":
    sys.exit(main())
