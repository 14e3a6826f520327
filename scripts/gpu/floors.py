#!/usr/bin/env python3
"""Prints, for each operator and shape, the work no kernel can avoid and its time on an H200.

    python scripts/gpu/floors.py > benchmarks/results/h200_floors.csv
    python scripts/gpu/floors.py --kernels > benchmarks/results/h200_kernels.csv

The second table is by kernel, beside what the compiled kernel (benchmarks/results/aot.csv) lets a
processor hold: a kernel bound by memory needs warps enough to cover its latency, and a grid of
less than a wave leaves processors idle.

Arithmetic only (csrkern.roofline): nothing was run. The ceilings are a device copy's 4.3 TB/s and
a bfloat16 matrix product's 790 TFLOP/s; float32 products outside tensor cores are held to 60,
sums in double to 30.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import Any, NamedTuple

from csrkern import roofline

COPY = 4.3e12
FLOPS = {"bfloat16": 790e12, "float32": 60e12, "float64": 30e12}
# A row's candidates in a verified encoding, of 4 rows of normal data by the kernels' bound.
CANDIDATES = {"S1": 36, "S2": 47, "S3": 73, "S4": 18, "S5": 374}
PROCESSORS = 132
WARPS = 64  # that a processor holds
PIECE = 128  # entries of a list that one program sums
AOT = Path(__file__).parents[2] / "benchmarks" / "results" / "aot.csv"
# rows, width, latents, active latents
SHAPES = {
    "S1": (4096, 1024, 16_384, 32),
    "S2": (4096, 4096, 16_384, 32),
    "S3": (8192, 1024, 65_536, 64),
    "S4": (8192, 768, 4096, 16),
    "S5": (4096, 4096, 131_072, 256),
}


class Kernel(NamedTuple):
    """A kernel at a shape: its row of aot.csv, its programs, its compulsory work."""

    compiled: str
    programs: int
    cost: roofline.Cost


def kernels(n: int, d: int, h: int, k: int, size: int, candidates: int) -> list[Kernel]:
    """Return what each kernel reads from and writes to device memory, and computes."""
    element = "fp32" if size == 4 else "i16"
    met = n * n * k * k // h
    columns = -(-d // 512)
    slots = n * k
    # Latents used evenly have no list so long that it is cut, and no row is skewed.
    pieces = h * max((slots // h - 1) // PIECE, 0)
    # Sizes are compiled in by powers of two; from h = 2,048 on, and k <= 64, they are the same.
    select = f"topk_relu h={8192 if size == 4 else 16_384} k=32 {element}"
    select = "topk_relu h=131072 k=256 fp32" if k > 128 else select
    cost = roofline.Cost
    codes = roofline.codes_bytes(n, k, 4)
    found = [
        Kernel(select, min(n, 4096), roofline.topk_relu(n, h, k, size)),
        Kernel("topk_relu backward", n, cost((2.0 * size + 4) * slots, 1.0 * size * n * h)),
        Kernel("transpose count", min(128, n), cost(8.0 * slots, 4.0 * 128 * h)),
        Kernel("transpose offsets", -(-h // 256), cost(4.0 * 128 * h, 4.0 * 128 * h + 8 * h)),
        Kernel("transpose place", min(128, n), cost(8.0 * slots + 8 * h, 12.0 * slots)),
        Kernel(f"gather_sum {element}", n * columns, roofline.decode(n, d, h, k, size)),
        Kernel(
            f"gather_dot 8 rows {element}",
            n,
            cost(codes + size * d * (n + min(h, slots)), 4.0 * slots, 2.0 * slots * d),
        ),
        Kernel(
            f"scatter_sum {element}",
            h * columns,
            cost(12.0 * slots + 8 * h + size * n * d, 4.0 * h * d, 2.0 * slots * d),
        ),
        Kernel(
            f"scatter_sum pieces {element}",
            slots // PIECE * columns,
            cost(12.0 * PIECE * pieces, 4.0 * pieces * d, 2.0 * PIECE * pieces * d),
        ),
        Kernel(
            f"prefix_errors {element}", n * -(-d // 128), roofline.prefix_errors(n, d, h, k, size)
        ),
        Kernel(
            f"prefix_errors backward {element}",
            n * -(-d // 128),
            cost(
                codes + 4.0 * n * d + size * d * min(h, slots),
                4.0 * (slots * (1 + d) + n * d),
                3 * 2.0 * slots * d,
            ),
        ),
        Kernel("similarity", n, roofline.similarity(n, n, k, met)),
        Kernel("similarity gather", min(n, 528), cost(4.0 * n)),
        Kernel(
            "similarity backward",
            n,
            cost(4.0 * n * n + roofline.codes_bytes(2 * n, k, 4), 4.0 * slots, 2.0 * met),
        ),
        Kernel("info_nce pairs", min(n, 2112), roofline.info_nce(n, n, k, met)),
        Kernel(
            "info_nce backward pairs", min(n, 2112), roofline.info_nce(n, n, k, met, backward=True)
        ),
    ]
    if size == 4:  # the kernels of a verified encoding
        groups = -(-h // 16)
        product = cost(2.0 * (n + h) * d, 2.0 * n * h + 4.0 * n * groups, 2.0 * n * d * h,
                       "bfloat16")  # fmt: skip
        read = 4.0 * n * groups + 32.0 * n * candidates  # groups of the product that are read
        read += 4.0 * min(h, n * candidates) * d
        decided = cost(read, codes, 2.0 * n * candidates * d, "float64")
        found += [
            Kernel("encode: round rows", min(n, 2112), cost(4.0 * n * d, 2.0 * n * d, 4.0 * n * d)),
            Kernel("encode: round weight", min(h, 2112),
                   cost(4.0 * h * d, 2.0 * h * d, 4.0 * h * d)),
            *(
                Kernel(f"encode: product {tile}x64", PROCESSORS, product)
                for tile in ("192x256", "128x256", "128x128")
            ),
            Kernel("encode: decide", n, decided),
            Kernel("encode: exact maxima", 528, cost(4.0)),
            Kernel("encode: unproved", 528, cost(4.0)),
        ]  # fmt: skip
    return found


def kernel_table(out: Any) -> None:
    """One row for each kernel, shape and dtype."""
    with AOT.open() as file:
        compiled = {row["kernel"]: row for row in csv.DictReader(file) if row["target"] == "sm_90"}
    out.writerow(("kernel", "shape", "dtype", "megabytes", "gigaflops", "floor_us", "bound_by",
                  "registers", "shared_bytes", "occupancy", "warps_held", "waves"))  # fmt: skip
    for shape, (n, d, h, k) in SHAPES.items():
        for dtype, size in (("float32", 4), ("bfloat16", 2)):
            for kernel in kernels(n, d, h, k, size, CANDIDATES[shape]):
                use = compiled[kernel.compiled]
                held = round(float(use["occupancy"]) * WARPS)
                waves = kernel.programs / (PROCESSORS * (held // int(use["warps"])))
                resources = use["registers"], use["shared_bytes"], use["occupancy"], held
                amounts = floor(kernel.cost, kernel.cost.dtype)
                out.writerow((kernel.compiled, shape, dtype, *amounts, *resources, f"{waves:.1f}"))


def floor(cost: roofline.Cost, unit: str) -> tuple[str, str, str, str]:
    """Megabytes, gigaflops, microseconds at least, and what sets them."""
    memory, compute = (cost.read + cost.written) / COPY, cost.flops / FLOPS[unit]
    bound = "memory" if memory >= compute else "compute"
    amount = f"{(cost.read + cost.written) / 1e6:.1f}", f"{cost.flops / 1e9:.2f}"
    return (*amount, f"{max(memory, compute) * 1e6:.1f}", bound)


def operator_table(out: Any) -> None:
    """One row for each operator, shape and dtype."""
    out.writerow(("operator", "shape", "dtype", "megabytes", "gigaflops", "floor_us", "bound_by"))
    for shape, (n, d, h, k) in SHAPES.items():
        met = n * n * k * k // h  # latents used evenly
        for dtype, size in (("float32", 4), ("bfloat16", 2)):
            costs = {
                "topk_relu": roofline.topk_relu(n, h, k, size),
                "encode": roofline.encode(n, d, h, k, size, dtype),
                "decode": roofline.decode(n, d, h, k, size),
                "decode backward": roofline.decode_backward(n, d, h, k, size),
                "prefix_errors": roofline.prefix_errors(n, d, h, k, size),
                "prefix_errors backward": roofline.prefix_errors_backward(n, d, h, k, size),
                "encode backward": roofline.encode_backward(n, d, h, k, size),
                "transpose": roofline.Cost(8.0 * n * k, 12.0 * n * k + 8 * h),
                "similarity": roofline.similarity(n, n, k, met),
                "info_nce": roofline.info_nce(n, n, k, met),
                "info_nce backward": roofline.info_nce(n, n, k, met, backward=True),
            }
            for name, cost in costs.items():
                # Only encode is a matrix product; sums of gathered rows use no tensor cores.
                unit = dtype if name == "encode" else "float32"
                out.writerow((name, shape, dtype, *floor(cost, unit)))


def main() -> None:
    """Return the table of operators, or of kernels."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", action="store_true", help="by kernel, with its occupancy")
    table = kernel_table if parser.parse_args().kernels else operator_table
    table(csv.writer(sys.stdout, lineterminator="\n"))


if __name__ == "__main__":
    main()
