#!/usr/bin/env python3
"""Prints, for each operator and shape, the work no kernel can avoid and its time on an H200.

    python scripts/gpu_floors.py > benchmarks/results/h200_floors.csv

Arithmetic only (csrkern.roofline): nothing was run. The ceilings are a device copy's 4.3 TB/s and
a bfloat16 matrix product's 790 TFLOP/s; float32 products outside tensor cores are held to 60.
"""

from __future__ import annotations

import csv
import sys

from csrkern import roofline

COPY = 4.3e12
FLOPS = {"bfloat16": 790e12, "float32": 60e12}
# rows, width, latents, active latents
SHAPES = {
    "S1": (4096, 1024, 16_384, 32),
    "S2": (4096, 4096, 16_384, 32),
    "S3": (8192, 1024, 65_536, 64),
    "S4": (8192, 768, 4096, 16),
    "S5": (4096, 4096, 131_072, 256),
}


def main() -> None:
    """One row for each operator, shape and dtype."""
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(("operator", "shape", "dtype", "megabytes", "gigaflops", "floor_us", "bound_by"))
    for shape, (n, d, h, k) in SHAPES.items():
        met = n * n * k * k // h  # latents used evenly
        for dtype, size in (("float32", 4), ("bfloat16", 2)):
            costs = {
                "topk_relu": roofline.topk_relu(n, h, k, size),
                "encode": roofline.encode(n, d, h, k, size, dtype),
                "decode": roofline.decode(n, d, h, k, size),
                "decode backward": roofline.decode_backward(n, d, h, k, size),
                "encode backward": roofline.encode_backward(n, d, h, k, size),
                "transpose": roofline.Cost(8.0 * n * k, 12.0 * n * k + 8 * h),
                "similarity": roofline.similarity(n, n, k, met),
                "info_nce": roofline.info_nce(n, n, k, met),
                "info_nce backward": roofline.info_nce(n, n, k, met, backward=True),
            }
            for name, cost in costs.items():
                memory = (cost.read + cost.written) / COPY
                # Only encode is a matrix product; sums of gathered rows use no tensor cores.
                compute = cost.flops / FLOPS[dtype if name == "encode" else "float32"]
                bound = "memory" if memory >= compute else "compute"
                amount = f"{(cost.read + cost.written) / 1e6:.1f}", f"{cost.flops / 1e9:.2f}"
                out.writerow(
                    (name, shape, dtype, *amount, f"{max(memory, compute) * 1e6:.1f}", bound)
                )


if __name__ == "__main__":
    main()
