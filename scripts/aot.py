#!/usr/bin/env python3
"""Compiles every Triton kernel for GPUs that need not be there, and checks what they use.

    python scripts/aot.py            # rewrites benchmarks/results/aot.csv
    python scripts/aot.py --check    # fails where a kernel uses more than the table allows

A row says what one kernel, at one shape, becomes on one target: registers a thread, bytes
spilled, bytes of shared memory, bytes of machine code, seconds of processor time, and the
occupancy that registers and shared memory allow (warps a processor can hold, over the most it
can). None of this was run. Spills are 0 and budgets hold on every target, or this fails.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

os.environ.pop("TRITON_INTERPRET", None)
# Source lines are a third of a binary; they are not what runs.
os.environ["TRITON_DISABLE_LINE_INFO"] = "1"
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from csrkern.kernels import (
    encode_propose,
    encode_verified,
    gather,
    info_nce,
    similarity,
    topk_relu,
    transpose,
)
from csrkern.kernels._common import BATCH_SIZES

TABLE = Path(__file__).parents[1] / "benchmarks" / "results" / "aot.csv"
MAX_PROGRAMS = 32  # that a processor holds, whatever they use
CODES, FLOATS, INTS, LONGS = "*i32", "*fp32", "*i32", "*i64"


class Processor(NamedTuple):
    """One multiprocessor (NVIDIA) or compute unit (AMD): what its programs share."""

    target: GPUTarget
    registers: int
    shared: int  # bytes
    warps: int


PROCESSORS = {
    "sm_80": Processor(GPUTarget("cuda", 80, 32), 65_536, 164 * 1024, 64),
    "sm_90": Processor(GPUTarget("cuda", 90, 32), 65_536, 228 * 1024, 64),
    "sm_100": Processor(GPUTarget("cuda", 100, 32), 65_536, 228 * 1024, 64),
    # Four SIMDs of 512 registers a lane, 64 lanes.
    "gfx942": Processor(GPUTarget("hip", "gfx942", 64), 4 * 512 * 64, 64 * 1024, 32),
}


class Case(NamedTuple):
    """A kernel at one shape: argument types by name (a value is a constant), and its budget."""

    name: str
    kernel: Any
    arguments: dict[str, Any]
    num_warps: int
    registers: int  # at most, on any target
    code: int  # bytes, likewise
    num_stages: int = 3
    on: tuple[str, ...] = ()  # targets, where it is not for all


def cases() -> list[Case]:
    """Every kernel at the shapes that decide its constants."""
    found = []
    codes = {"values": FLOATS, "indices": CODES}
    lists = {"starts": LONGS, "rows": INTS, "sorted_values": FLOATS}
    for h, k, element in (
        (8192, 32, FLOATS),
        (16_384, 32, "*i16"),
        (131_072, 256, FLOATS),
        (16_384, 1024, "*fp16"),
    ):
        plan = topk_relu.Plan.of(h, k)._asdict()
        warps = plan.pop("num_warps")
        arguments = {"pre": element, "stride_n": "i32", "stride_h": 1, "latent_mask": None}
        arguments |= {"values": element, "indices": CODES, "scratch": LONGS}
        arguments |= {"n": "i32", "h": "i32", "k": "i32", **plan}
        name = f"topk_relu h={h} k={k} {element[1:]}"
        found.append(Case(name, topk_relu.topk_relu_kernel, arguments, warps, 128, 50_000))
    for change in topk_relu.Plan.of(16_384, 32).configs()[1:]:
        plan = {**topk_relu.Plan.of(16_384, 32)._asdict(), **change}
        warps = plan.pop("num_warps")
        name = f"topk_relu h=16384 k=32 fp32, {warps} warps, {plan['READS']} reads"
        arguments = {**arguments, "pre": FLOATS, "values": FLOATS, **plan}
        found.append(Case(name, topk_relu.topk_relu_kernel, arguments, warps, 128, 50_000))
    backward = {"grad": FLOATS, "values": FLOATS, "indices": CODES, "out": FLOATS}
    backward |= {"n": "i32", "dim": "i32", "k": "i32", "K_PAD": 32, "BLOCK": 4096}
    found.append(
        Case("topk_relu backward", topk_relu.topk_relu_backward_kernel, backward, 4, 64, 20_000)
    )

    count = {**codes, "counts": INTS, "entries": "i32", "entries_per_block": "i32", "dim": "i32"}
    found.append(
        Case("transpose count", transpose.count_kernel, {**count, "BLOCK": 1024}, 4, 64, 20_000)
    )
    offsets = {"counts": INTS, "totals": LONGS, "n_blocks": "i32", "dim": "i32", "BLOCK": 256}
    found.append(Case("transpose offsets", transpose.offsets_kernel, offsets, 4, 64, 20_000))
    place = {**codes, "starts": LONGS, "cursors": INTS, "rows": INTS, "slots": INTS}
    place |= {"sorted_values": FLOATS, "n": "i32", "k": "i32", "rows_per_block": "i32"}
    place |= {"dim": "i32", "K_PAD": 32}
    found.append(Case("transpose place", transpose.place_kernel, place, 1, 64, 20_000))

    found += encode_cases()
    for element in (FLOATS, "*i16"):
        width = {"ROWS": gather.ROWS_AT_ONCE, "BLOCK": 512}
        wide = 4 if element == FLOATS else 2
        sizes = {"n": "i32", "k": "i32", "d": "i32", "stride_table": "i32", "ENDS": (32, 128)}
        summed = {**codes, "table": element, "bias": element, "out": element, **sizes, **width}
        found.append(
            Case(f"gather_sum {element[1:]}", gather.gather_sum_kernel, summed, wide, 128, 40_000)
        )
        dotted = {**codes, "table": element, "rows": element, "out": FLOATS, **sizes}
        for config in gather.DOT_CONFIGS:
            config = {**dotted, **config, "BLOCK": gather.DOT_WIDTH}
            warps = config.pop("num_warps")
            name = f"gather_dot {config['ROWS']} rows {element[1:]}"
            found.append(Case(name, gather.gather_dot_kernel, config, warps, 168, 40_000))
        scattered = {"starts": LONGS, "first_pieces": LONGS, "rows": INTS, "slots": INTS}
        scattered |= {"source": element, "scale": FLOATS, "partial": FLOATS, "out": FLOATS}
        scattered |= {"dim": "i32", "k": "i32", "d": "i32", "stride_source": "i32"}
        scattered |= {"begin_slot": "i32", "end_slot": "i32", "FIRST": False}
        scattered |= {"PIECE": gather.PIECE, **width}
        name = f"scatter_sum {element[1:]}"
        found.append(Case(name, gather.scatter_sum_kernel, scattered, wide, 128, 30_000))
        name = f"scatter_sum pieces {element[1:]}"
        found.append(Case(name, gather.scatter_pieces_kernel, scattered, wide, 128, 30_000))

    block = {"BLOCK": similarity.POSTINGS_AT_ONCE}
    scored = {**codes, **lists, "out": FLOATS, "k": "i32", "m": "i32", **block, "FILL": 1024}
    found.append(Case("similarity", similarity.similarity_kernel, scored, 1, 64, 20_000))
    slopes = {"grad": FLOATS, "stride_n": "i32", "stride_m": "i32", **codes, **lists}
    slopes |= {"grad_values": FLOATS, "k": "i32", **block}
    kernel = similarity.similarity_backward_kernel
    found.append(Case("similarity backward", kernel, slopes, 1, 64, 20_000))
    for labelled in (None, INTS):
        name = "labels" if labelled else "pairs"
        classes = {"classes": labelled, "other_classes": labelled}
        tail = {"n": "i32", "k": "i32", "m": "i32", "scale": "fp32", "ONE_SET": bool(labelled)}
        forward = {**codes, **lists, **classes, "n_positives": labelled, "scratch": FLOATS}
        forward |= {"loss": FLOATS, "peak": FLOATS, "log_total": FLOATS, **tail, **block}
        found.append(Case(f"info_nce {name}", info_nce.info_nce_kernel, forward, 1, 96, 40_000))
        back = {**codes, **lists, **classes, "weight": FLOATS}
        back |= {"pull": FLOATS if labelled else None, "peak": FLOATS, "log_total": FLOATS}
        back |= {"scratch": FLOATS, "grad_values": FLOATS, **tail}
        back |= {"BY_ROW": True, "BY_COLUMN": bool(labelled), **block}
        kernel = info_nce.info_nce_backward_kernel
        found.append(Case(f"info_nce backward {name}", kernel, back, 1, 96, 40_000))
    return found


def encode_cases() -> list[Case]:
    """The kernels of a verified encoding at h = 16,384 and k = 32."""
    kernels = encode_verified
    capacity = kernels.LEAST_CAPACITY
    codes = {"values": FLOATS, "indices": CODES, "n": "i32", "h": "i32", "k": "i32", "d": "i32"}
    layer = {
        "x": FLOATS,
        "weight": FLOATS,
        "stride": "i32",
        "bias": FLOATS,
        "counts": INTS,
        **codes,
    }
    layer |= {"LANES": kernels.LANES, "TILE": kernels.RESCORED_AT_ONCE}
    scored = {"bias": FLOATS, "maxima": FLOATS, "h": "i32", "groups": "i32"}
    scored["GROUP"] = encode_propose.GROUP
    found = []
    rows = {"rows": FLOATS, "stride": "i32", "rounded": "*i16", "norms": FLOATS}
    rows |= {"residuals": FLOATS, "d": "i32", "BLOCK": 1024}
    found.append(Case("encode: round rows", encode_propose.round_rows_kernel, rows, 4, 64, 20_000))
    product = {**codes, **scored, "x": "*bf16", "weight": "*bf16", "products": "*i16"}
    # Each where it fits: the registers of Hopper, others, an AMD unit's shared memory.
    fits = (("sm_90",), ("sm_80", "sm_90", "sm_100"), ("gfx942",))
    for tile, on in zip(encode_propose.TILES, fits, strict=True):
        arguments = {**product, **tile}
        warps, stages = arguments.pop("num_warps"), arguments.pop("num_stages")
        name = f"encode: product {tile['BM']}x{tile['BN']}x{tile['BK']}"
        kernel = encode_propose.product_kernel
        found.append(Case(name, kernel, arguments, warps, 255, 120_000, stages, on))
    maxima = {**scored, "products": FLOATS, "BLOCK": 128}
    found.append(Case("encode: maxima", encode_propose.maxima_kernel, maxima, 4, 128, 20_000))
    chosen = {**codes, **scored, "norms": FLOATS, "residuals": FLOATS, "limits": FLOATS}
    chosen |= {"scratch": INTS, "candidates": INTS, "counts": INTS, "relative": "fp32"}
    chosen |= {"FOLDS": 1, "HELD": 512, "CAPACITY": capacity, "BLOCK": 512}
    for element in (FLOATS, "*i16"):
        name = f"encode: candidates {element[1:]}"
        arguments = {**chosen, "products": element}
        found.append(Case(name, encode_propose.candidates_kernel, arguments, 8, 128, 50_000))
    summed = {**layer, "candidates": INTS, "keys": LONGS, "CAPACITY": capacity}
    found.append(Case("encode: rescore", kernels.rescore_kernel, summed, 4, 128, 50_000))
    ranked = {**codes, "keys": LONGS, "counts": INTS, "K_PAD": 32, "CAPACITY": capacity, "TILE": 64}
    found.append(Case("encode: rank", kernels.rank_kernel, ranked, 4, 128, 30_000))
    plan = topk_relu.Plan.of(16_384, 32)._asdict()
    plan.pop("num_warps")
    full = {**layer, "rows": FLOATS, "scratch": LONGS, **plan}
    found.append(Case("encode: repair", kernels.repair_kernel, full, 8, 128, 90_000))
    return found


def build(case: Case, target: GPUTarget) -> Any:
    """The compiled kernel, pointers and sizes divisible by 16 as real ones are."""
    names = case.kernel.arg_names
    signature, constants, attributes = {}, {}, {}
    for position, name in enumerate(names):
        value = case.arguments[name]
        if not isinstance(value, str):
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name] = value
        if value.startswith("*") or (value == "i32" and name not in BATCH_SIZES):
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(case.kernel, signature, constants, attributes)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    return triton.compile(source, target=target, options=options)


def resources(compiled: Any, target: GPUTarget) -> tuple[int, int, int]:
    """Registers a thread, bytes spilled, bytes of machine code."""
    if target.backend == "hip":
        text = compiled.asm["amdgcn"]

        def number(field: str) -> int:
            match = re.search(rf"\.{field}:\s+(\d+)", text)
            if match is None:
                raise RuntimeError(f"no {field} in the AMD assembly")
            return int(match.group(1))

        spilled = 4 * number("vgpr_spill_count") + number("private_segment_fixed_size")
        return number("vgpr_count"), spilled, len(compiled.asm["hsaco"])
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        run = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        )
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", run.stdout + run.stderr))
    return int(found["REG"]), int(found["STACK"]) + int(found["LOCAL"]), len(compiled.asm["cubin"])


def occupancy(processor: Processor, warps: int, registers: int, shared: int) -> float:
    """Warps that fit a processor together, over the most it holds."""
    lanes = processor.target.warp_size
    per_thread = -(-registers // 8) * 8
    programs = min(processor.registers // (per_thread * lanes * warps), MAX_PROGRAMS)
    if shared:
        programs = min(programs, processor.shared // (shared + 1024))
    return min(programs * warps, processor.warps) / processor.warps


def cpu_seconds() -> float:
    """Of this process and the assemblers it ran."""
    return sum(os.times()[:4])


def main() -> int:
    """Compiles, compares with the budgets, writes or checks the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="do not write the table")
    parser.add_argument("--targets", nargs="+", choices=PROCESSORS, default=list(PROCESSORS))
    parser.add_argument(
        "--only", default="", help="kernels whose name contains this; other rows stay"
    )
    options = parser.parse_args()
    rows, wrong = [], []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        for case in cases():
            for name in options.targets:
                if options.only not in case.name or (case.on and name not in case.on):
                    continue
                processor = PROCESSORS[name]
                began = cpu_seconds()
                compiled = build(case, processor.target)
                seconds = cpu_seconds() - began
                registers, spilled, code = resources(compiled, processor.target)
                shared = compiled.metadata.shared
                held = occupancy(processor, case.num_warps, registers, shared)
                measured = (case.num_warps, registers, spilled, shared, code)
                rows.append((case.name, name, *measured, f"{held:.2f}", f"{seconds:.1f}"))
                print(*rows[-1], sep="\t", flush=True)
                label = f"{case.name} on {name}"
                if spilled:
                    wrong.append(f"{label}: spills {spilled} bytes, expected none")
                if registers > case.registers:
                    wrong.append(f"{label}: {registers} registers, expected <= {case.registers}")
                if code > case.code:
                    wrong.append(f"{label}: {code} bytes of code, expected <= {case.code}")
    if not options.check:
        header = ("kernel", "target", "warps", "registers", "spilled_bytes", "shared_bytes")
        header += ("code_bytes", "occupancy", "compile_seconds")
        TABLE.parent.mkdir(parents=True, exist_ok=True)
        if options.only:
            with TABLE.open(newline="") as file:
                before = [tuple(row) for row in csv.reader(file)][1:]
            new = {row[:2]: row for row in rows}
            rows = [new.pop(row[:2], row) for row in before] + list(new.values())
        beside = TABLE.with_suffix(".csv.new")
        with beside.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *rows])
        beside.replace(TABLE)
    print(*wrong, sep="\n", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
