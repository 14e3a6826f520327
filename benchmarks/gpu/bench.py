#!/usr/bin/env python3
"""Times every GPU kernel beside its peers and its floor, and writes what it finds as JSON.

    python benchmarks/gpu/bench.py --out build/gpu/results.json [--only topk_relu]
    TRITON_INTERPRET=1 python benchmarks/gpu/bench.py --tiny    # no GPU: every step, no times

A time is the median of replays of a CUDA graph, each after the L2 cache was overwritten. The
floor is csrkern.roofline's compulsory work over two measured ceilings, a device copy and a
bfloat16 matrix product; the gather ceiling is embedding_bag's best. A measurement that the
results file has for this commit is not repeated. The results of the peer are compared with ours
before either is timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.provenance import commit, versions
from csrkern import SparseCodes, reference, roofline
from csrkern.kernels import encode, gather, info_nce, similarity, topk_relu, transpose

# name: rows, width, latents, active latents
SHAPES = {
    "S1": (4096, 1024, 16_384, 32),
    "S2": (4096, 4096, 16_384, 32),
    "S3": (8192, 1024, 65_536, 64),
    "S4": (8192, 768, 4096, 16),
    "S5": (4096, 4096, 131_072, 256),
}
TINY = {"tiny": (6, 40, 200, 5)}
DENSE_SCORES = 2**28  # peers that hold [n, n] or [n, h] are left out above this many elements


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


def same_values(ours: Any, theirs: Any) -> bool:
    """The values of a selection, bit for bit."""
    return torch.equal(ours[0], theirs[0])


def timings(shape: tuple[int, int, int, int], device: str, dtype: torch.dtype) -> Iterator[Timing]:
    """What is timed at one shape; tensors are made when the generator gets there."""
    n, d, h, k = shape
    size = dtype.itemsize
    name = str(dtype).removeprefix("torch.")
    x, weight = torch.randn(n, d, device=device), torch.randn(h, d, device=device) / d**0.5
    x, weight = x.to(dtype), weight.to(dtype)
    if n * h <= DENSE_SCORES:
        pre = x @ weight.T
        yield Timing(
            "topk_relu",
            lambda: topk_relu.topk_relu(pre, k, None),
            {"torch.topk + relu": lambda: (torch.topk(pre, k)[0].relu_(),)},
            roofline.topk_relu(n, h, k, size),
            same_values,
        )
        dense_encode = {"linear + topk": lambda: (torch.topk(F.linear(x, weight), k)[0].relu_(),)}
        bare = {"bare GEMM": lambda: x @ weight.T}
    else:
        dense_encode, bare = {}, {}
    yield Timing(
        "encode",
        lambda: encode.encode(x, weight, None, None, k, False),
        dense_encode,
        roofline.encode(n, d, h, k, size, name),
        lambda a, b: close(a[0], b[0]),
    )
    if bare:
        yield Timing("bare GEMM", bare["bare GEMM"], {}, roofline.gemm(n, d, h, size, name), close)

    values, indices = encode.encode(x, weight, None, None, k, False)
    long_indices, table = indices.long(), weight
    yield Timing(
        "decode",
        lambda: gather.gather_sum(values, indices, table, None, [k])[0],
        {
            "embedding_bag": lambda: F.embedding_bag(
                long_indices, table, per_sample_weights=values, mode="sum"
            )
        },
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
    starts, rows, slots, sorted_values = transpose.transpose(values, indices, h)
    yield Timing(
        "decode backward",
        lambda: (
            gather.gather_dot(values, indices, table, x[None], [k]),
            gather.scatter_sum(starts, rows, slots, h, [x], [values.float()], [0], [k]),
        ),
        {},
        roofline.decode_backward(n, d, h, k, size),
        close,
    )
    codes = SparseCodes(values.float(), indices, h).normalize()
    starts, rows, _, sorted_values = transpose.transpose(codes.values, indices, h)
    postings = starts, rows, sorted_values
    uses = starts.diff().cpu()
    met = int((uses * uses).sum())
    dense = codes.to_dense() if n * h <= DENSE_SCORES else None
    yield Timing(
        "similarity",
        lambda: similarity.similarity(codes.values, indices, postings, n),
        {} if dense is None else {"dense GEMM": lambda: dense @ dense.T},
        roofline.similarity(n, n, k, met),
        close,
    )
    yield Timing(
        "info_nce",
        lambda: info_nce.info_nce(codes.values, indices, postings, n, True, 0.2, None, None, None)[
            0
        ].mean(),
        {}
        if dense is None
        else {"dense": lambda: reference.info_nce(codes, temperature=0.2, normalize=False)},
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


def ceilings(clock: Clock, device: str) -> dict[str, float]:
    """Bytes a second of a copy, flops a second of a bfloat16 product, both on random data."""
    side = 8192 if clock.gpu else 64
    source = torch.randn(side, side * 8, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    copy = clock.median(lambda: target.copy_(source))
    product = clock.median(lambda: a @ b)
    return {
        "copy_bytes_per_s": 2e6 * source.nbytes / copy,
        "bf16_flops_per_s": 2e6 * side**3 / product,
    }


def main() -> None:
    """Measures what is not yet in the results; prints the table last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="", help="operators whose name contains this")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--tiny", action="store_true", help="CPU tensors, in the interpreter")
    options = parser.parse_args()
    device = "cpu" if options.tiny else "cuda"
    shapes = TINY if options.tiny else {name: SHAPES[name] for name in options.shapes}
    here = commit()
    results: dict[str, Any] = {"commit": here, "versions": versions(), "rows": {}}
    if options.out and options.out.exists():
        before = json.loads(options.out.read_text())
        results = before if before["commit"] == here else results
    clock = Clock(device)
    if "ceilings" not in results:
        results["ceilings"] = ceilings(clock, device)
        results["device"] = torch.cuda.get_device_name() if clock.gpu else "no GPU"
    limit = results["ceilings"]
    for shape_name, shape in shapes.items():
        for dtype in (torch.float32, torch.bfloat16):
            for timing in timings(shape, device, dtype):
                key = f"{timing.op} {shape_name} {str(dtype).removeprefix('torch.')}"
                if key in results["rows"] or options.only not in timing.op:
                    continue
                for peer, run in timing.peers.items():
                    if not timing.same(timing.ours(), run()):
                        raise SystemExit(f"{key}: our result differs from that of {peer}")
                if options.tiny:
                    timing.ours()
                    others = ", ".join(timing.peers) or "nothing"
                    print(f"{key}: ran in the interpreter, compared with {others}")
                    continue
                cost = timing.cost
                floor = max(
                    (cost.read + cost.written) / limit["copy_bytes_per_s"],
                    cost.flops / limit["bf16_flops_per_s"] if timing.op != "topk_relu" else 0,
                )
                results["rows"][key] = {
                    "us": clock.median(timing.ours),
                    "floor_us": floor * 1e6,
                    "peers_us": {peer: clock.median(run) for peer, run in timing.peers.items()},
                }
                if options.out:
                    beside = options.out.with_suffix(".new")
                    beside.write_text(json.dumps(results, indent=1))
                    beside.replace(options.out)
    if options.tiny:
        return
    print(f"{results['device']}: {limit}")
    for key, row in results["rows"].items():
        peers = "  ".join(f"{peer} {us / row['us']:.2f}x" for peer, us in row["peers_us"].items())
        print(f"{key:32} {row['us']:10.1f} us  floor {row['floor_us'] / row['us']:4.0%}  {peers}")


if __name__ == "__main__":
    main()
