"""Cases for aot.py: every kernel at the shapes that decide its constants, with its budget.

By default these are the shapes of the tables of rooflines, and for each kernel and dtype what
holds the most state. With `everything` they are all that tests and benchmarks use.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from csrkern.kernels import gather, info_nce, prefix_errors, similarity, topk_relu, transpose
from csrkern.kernels._common import power_of_2
from csrkern.kernels.encode import bounds as encode_bounds
from csrkern.kernels.encode import propose as encode_propose
from csrkern.kernels.encode import verified as encode_verified

CODES, FLOATS, INTS, LONGS = "*i32", "*fp32", "*i32", "*i64"
ELEMENTS = (FLOATS, "*fp16", "*i16")  # bfloat16 goes as its bits
SLOTS = (16, 32, 64, 128, 256, 512, 1024)
# In the tables with odd sizes, too: they once spilled on one target or another.
ODD = ("gather_sum fp16 1 prefixes", "scatter_sum pieces fp16")


class Case(NamedTuple):
    """A kernel at one shape: argument types by name (a value is a constant), and its budget."""

    name: str
    kernel: Any
    arguments: dict[str, Any]
    num_warps: int
    registers: int  # at most, on any target
    code: int  # bytes, likewise
    shared: int = 8192  # bytes, likewise
    num_stages: int = 3
    on: tuple[str, ...] = ()  # targets, where it is not for all
    fused: bool = True  # may contract products and sums
    limited: bool = False  # its launch names the registers
    divisible: bool = True  # sizes, by 16
    odd: dict[str, Any] | None = None  # what changes where they are not
    spilled: int = 0  # bytes, by a Triton before 3.9, where registers are tight


def cases(everything: bool) -> list[Case]:
    """Return the cases, those of the tables first."""
    found = [
        *topk_relu_cases(everything),
        *transpose_cases(everything),
        *encode_cases(everything),
        *gather_cases(everything),
        *prefix_errors_cases(),
        *similarity_cases(everything),
        *info_nce_cases(),
    ]
    return found + [
        case._replace(name=f"{case.name}, odd sizes", divisible=False, **(case.odd or {}))
        for case in found
        if case.name in ODD or (everything and not case.name.startswith("topk_relu h="))
    ]


def size_of(element: str) -> int:
    """Return the bytes of an element."""
    return 4 if element == FLOATS else 2


def topk_relu_cases(everything: bool) -> Iterator[Case]:
    """All configurations of a plan; plans depend on h below 4,096 only."""
    shapes = [
        (8192, 32, FLOATS),
        (16_384, 32, "*i16"),
        (131_072, 256, FLOATS),
        (16_384, 1024, "*fp16"),
    ]
    decisive = [(16_384, 1024, FLOATS, True, False), (4096, 16, "*i16", True, False)]
    variants = [(*shape, False, False) for shape in shapes] + decisive
    if everything:
        sizes = itertools.product((64, 256, 1024, 2048, 16_384), SLOTS, ELEMENTS)
        kinds = ((False, False), (True, False), (False, True))
        every = [(*size, *kind) for size, kind in itertools.product(sizes, kinds)]
        variants += [one for one in every if one[1] <= one[0] and one not in variants]
    for h, k, element, masked, wide in variants:
        full = topk_relu.Plan.of(h, k, wide, masked)
        for number, config in enumerate(full.configs()[: None if everything else 1]):
            plan = {**full._asdict(), **config}
            warps = plan.pop("num_warps")
            arguments = {"pre": element, "stride_n": "i32", "stride_h": "i32" if wide else 1}
            arguments |= {"latent_mask": "*u8" if masked else None}
            arguments |= {"values": element, "indices": CODES, "scratch": LONGS}
            arguments |= {"n": "i32", "h": "i32", "k": "i32", "fold_bits": "i32", **plan}
            name = f"topk_relu h={h} k={k} {element[1:]}"
            name += " masked" * masked + " wide" * wide + f", {plan['READS']} reads" * (number > 0)
            kernel = topk_relu.topk_relu_kernel
            most = topk_relu.MASKED_REGISTERS if masked else topk_relu.REGISTERS
            yield Case(name, kernel, arguments, warps, most, 52_000, limited=True)
    for element, k in itertools.product(ELEMENTS, SLOTS) if everything else [(FLOATS, 32)]:
        backward = {"grad": element, "values": element, "indices": CODES, "out": element}
        backward |= {"n": "i32", "dim": "i32", "k": "i32", "K_PAD": k, "BLOCK": 4096}
        name = "topk_relu backward" + f" k={k} {element[1:]}" * everything
        yield Case(name, topk_relu.topk_relu_backward_kernel, backward, 4, 64, 20_000)


def transpose_cases(everything: bool) -> Iterator[Case]:
    """Return those of the three kernels of a transposition."""
    codes = {"values": FLOATS, "indices": CODES}
    count = {**codes, "counts": INTS, "entries": "i32", "entries_per_block": "i32", "dim": "i32"}
    yield Case("transpose count", transpose.count_kernel, {**count, "BLOCK": 1024}, 4, 64, 20_000)
    offsets = {"counts": INTS, "totals": LONGS, "n_blocks": "i32", "dim": "i32"}
    offsets |= {"BLOCK": transpose.LATENTS_AT_ONCE, "AT_ONCE": transpose.BLOCKS_AT_ONCE}
    yield Case("transpose offsets", transpose.offsets_kernel, offsets, 1, 255, 24_000)
    place = {**codes, "starts": LONGS, "cursors": INTS, "rows": INTS, "slots": INTS}
    place |= {"sorted_values": FLOATS, "n": "i32", "k": "i32", "rows_per_block": "i32"}
    place |= {"dim": "i32"}
    for k in (32, *SLOTS[2:], 2048) if everything else (32, 2048):
        name = "transpose place" + f" k={k}" * (k > 32)
        warps = max(1, min(k // 64, 8))
        budget = (64, 20_000) if k <= 1024 else (128, 20_000, 16_384)
        yield Case(name, transpose.place_kernel, {**place, "K_PAD": k}, warps, *budget)


def encode_cases(everything: bool) -> Iterator[Case]:
    """Return the kernels of a verified encoding."""
    codes = {"values": FLOATS, "indices": CODES, "n": "i32", "h": "i32", "k": "i32", "d": "i32"}
    codes |= {"depth": "i32", "pitch": "i32"}
    layer = {"x": FLOATS, "stride_x": "i32", "weight": FLOATS, "stride": "i32", "bias": FLOATS}
    scored = {"bias": FLOATS, "maxima": FLOATS, "h": "i32", "groups": "i32"}
    scored |= {"scales": FLOATS, "limits": FLOATS, "exponent": "i32"}
    rows = {"rows": FLOATS, "stride": "i32", "rounded": "*fp16", "entries": "i32", "BLOCK": 1024}
    rows |= {**codes, **scored, **dict.fromkeys(("bias", "limits", "zeros", "norms", "residuals"))}
    rows |= {"shift": FLOATS, "shifted": FLOATS}
    of_x = {"norms": FLOATS, "residuals": FLOATS, "zeros": INTS}
    of_weight = {"shift": None, "shifted": None, "bias": FLOATS, "limits": INTS}
    for name, more in (("rows", of_x), ("weight", of_weight)):
        kernel = encode_bounds.round_rows_kernel
        yield Case(f"encode: round {name}", kernel, {**rows, **more}, 4, 64, 20_000)
    product = {**codes, **scored, "x": "*fp16", "weight": "*fp16", "products": "*fp16"}
    product |= {"inverses": FLOATS}
    # Each where it fits: the registers of Hopper, others, an AMD unit's shared memory.
    fits = (("sm_90",), ("sm_90",), ("sm_80", "sm_90", "sm_100"), ("gfx942",), ())
    for tile, on in zip(encode_propose.TILES, fits, strict=True):
        arguments = {**product, **tile, "GROUP": encode_propose.GROUP}
        warps, stages = arguments.pop("num_warps"), arguments.pop("num_stages")
        name = f"encode: product {tile['BM'] + tile['MORE']}x{tile['BN']}x{tile['BK']}"
        kernel = encode_propose.product_kernel
        budget = (255, 60_000, 172_032)
        # The tile of 192 rows: 56 bytes, outside the loop of products.
        spilled = 56 if tile["MORE"] else 0
        yield Case(name, kernel, arguments, warps, *budget, stages, on, spilled=spilled)
    lists = {"candidates": INTS, "counts": INTS, "unproved": INTS, "n_unproved": INTS}
    summed = {**codes, **layer, **scored, **lists, "norms": FLOATS, "residuals": FLOATS}
    summed |= {"products": "*fp16", "scratch": INTS, "keys": LONGS}
    summed |= {"LANES": encode_verified.LANES, "ROWS": encode_verified.ROWS_AT_ONCE, "BLOCK": 512}
    shapes = [(16_384, 32), (65_536, 1024)]
    if everything:
        shapes += [(4096, 16), (65_536, 64), (131_072, 256)]
        shapes += [(h, k) for h in (1024, 8192, 65_536) for k in SLOTS if 64 * k <= 8 * h]
    for h, k in dict.fromkeys(shapes):
        of = f" h={h} k={k}" * ((h, k) != shapes[0])
        plan = encode_propose.candidates_plan(h, k, encode_verified.capacity_of(k))
        warps = plan.pop("num_warps")
        for even in (True, False) if everything else (True,):
            arguments = {**summed, **plan, "K_PAD": power_of_2(k), "EVEN": even}
            odd = ", odd" * (not even)
            most = encode_verified.DECIDE_REGISTERS if even else encode_verified.ODD_REGISTERS
            unproved = encode_verified.decide_unproved_kernel, encode_verified.UNPROVED_WARPS
            for kernel, some in ((encode_verified.decide_kernel, warps), unproved):
                name = "encode: unproved" if kernel is unproved[0] else "encode: decide"
                arguments["TILE"] = encode_verified.SUMMED_AT_ONCE * some
                name += of + odd
                yield Case(name, kernel, dict(arguments), some, most, 80_000, 8192, limited=True)
            if (h, k) == shapes[0]:
                kernel = encode_verified.exact_maxima_kernel
                name = f"encode: exact maxima{odd}"
                yield Case(name, kernel, arguments, 8, 128, 50_000, 65_536)


def gather_cases(everything: bool) -> Iterator[Case]:
    """Return those of the three sums over rows of a table."""
    codes = {"values": FLOATS, "indices": CODES}
    sizes = {"n": "i32", "k": "i32", "dim": "i32", "d": "i32", "stride_table": "i32"}
    scattered = {"starts": LONGS, "first_pieces": LONGS, "rows": INTS, "slots": INTS}
    scattered |= {"scale": FLOATS, "partial": FLOATS, "out": FLOATS}
    scattered |= {"entries": "i32", "pieces": "i32", "n": "i32", "dim": "i32", "k": "i32"}
    scattered |= {"d": "i32", "stride_source": "i32", "begin_slot": "i32", "end_slot": "i32"}
    scattered |= {"PIECE": gather.PIECE}
    prefixes = ((32, 128), (32,), (8, 32, 128, 256))
    for element in ELEMENTS:
        of = element[1:]
        widths = (512, 256, 128, 64, 32) if everything else (512,)
        for width in widths:
            shape = {"ROWS": gather.ROWS_AT_ONCE, "BLOCK": width}
            details = f" {width} columns" * (width < 512)
            for ends in prefixes if everything or element == "*fp16" else prefixes[:1]:
                name = f"gather_sum {of}{details}" + f" {len(ends)} prefixes" * (len(ends) != 2)
                arguments = {**codes, "table": element, "bias": element, "out": element, **sizes}
                arguments |= {"ENDS": ends, **shape}
                yield sliced_case(name, gather.gather_sum_kernel, arguments, element, 40_000)
            arguments = {**scattered, "source": element, "FIRST": False, **shape}
            name = f"scatter_sum {of}{details}"
            yield sliced_case(name, gather.scatter_sum_kernel, arguments, element, 30_000)
            name = f"scatter_sum pieces {of}{details}"
            yield sliced_case(name, gather.scatter_pieces_kernel, arguments, element, 30_000)
        some = prefixes if everything else prefixes[::2]
        for config, ends in itertools.product(gather.DOT_CONFIGS, some):
            if not everything and len(ends) > 2 and config != gather.DOT_CONFIGS[0]:
                continue
            arguments = {**codes, "table": element, "rows": element, "out": FLOATS, **sizes}
            arguments |= {"ENDS": ends, **config, "BLOCK": gather.DOT_WIDTH}
            warps = arguments.pop("num_warps")
            kernel = gather.gather_dot_kernel
            name = f"gather_dot {config['ROWS']} rows {of}"
            name += f" {len(ends)} prefixes" * (len(ends) != 2)
            yield Case(
                name,
                kernel,
                arguments,
                warps,
                gather.DOT_REGISTERS,
                60_000,
                fused=False,
                limited=True,
            )


def sliced_case(name: str, kernel: Any, arguments: dict[str, Any], element: str, code: int) -> Case:
    """Return the case of a kernel that takes a slice of the columns."""
    both = []
    for even in (True, False):
        columns = gather.columns_of_thread(size_of(element), even)
        warps = max(1, min(arguments["BLOCK"] // (32 * columns), 4))
        both.append({"arguments": {**arguments, "HOLD_BIAS": columns <= 4}, "num_warps": warps})
    spilled = 8 if element == "*fp16" else 0  # with four prefixes, or odd sizes
    budget = {"registers": 128, "code": code, "spilled": spilled}
    return Case(name, kernel, **both[0], **budget, fused=False, odd=both[1])


def prefix_errors_cases() -> Iterator[Case]:
    """Return the errors of all prefixes, and their gradient."""
    arguments = {"values": FLOATS, "indices": CODES, "residual": FLOATS, "n": "i32", "k": "i32"}
    arguments |= {"dim": "i32", "d": "i32", "stride_table": "i32"}
    arguments |= {"SLOTS": prefix_errors.SLOTS, "BLOCK": prefix_errors.BLOCK}
    forward = {**arguments, "squares": FLOATS}
    back = {**arguments, "weights": FLOATS, "dots": FLOATS, "sums": FLOATS, "grad_x": FLOATS}
    for element in ELEMENTS:
        of, table = element[1:], {"table": element}
        kernel = prefix_errors.prefix_errors_kernel
        name = f"prefix_errors {of}"
        yield Case(name, kernel, {**forward, **table}, 1, 96, 24_000, fused=False)
        kernel = prefix_errors.prefix_errors_backward_kernel
        name = f"prefix_errors backward {of}"
        yield Case(name, kernel, {**back, **table}, 1, 192, 36_000, fused=False)


def similarity_cases(everything: bool) -> Iterator[Case]:
    """Return those of similarity and its gradient."""
    codes = {"values": FLOATS, "indices": CODES}
    lists = {"starts": LONGS, "rows": INTS, "sorted_values": FLOATS}
    for k in (*SLOTS[1:], 2048) if everything else (32, 128, 2048):
        of = f" k={k}" * (k > 32)
        scored = {**codes, **lists, "out": FLOATS, "skewed": INTS, "k": "i32", "m": "i32"}
        scored |= {"dim": "i32", "limit": "i32", "FILL": 1024}
        scored |= {"SLOTS": min(k, similarity.SLOTS_AT_ONCE)}
        for number, config in enumerate(similarity.CONFIGS):
            if number and not everything:
                continue
            arguments = {**scored, **config}
            warps = arguments.pop("num_warps")
            name = f"similarity{of}" + f", {config['BLOCK']} postings" * (number > 0)
            yield Case(
                name, similarity.similarity_kernel, arguments, warps, 64, 20_000, fused=False
            )
        gathered = {**scored, "other_values": FLOATS, "other_indices": CODES, "dense": FLOATS}
        gathered |= {"n": "i32", "other_k": "i32", "K_PAD": k, "OTHER_PAD": k}
        gathered |= {"BLOCK": max(similarity.GATHERED_AT_ONCE // k, 1)}
        yield Case(
            f"similarity gather{of}",
            similarity.similarity_gather_kernel,
            gathered,
            8,
            similarity.GATHER_REGISTERS,
            20_000,
            16_384,
            fused=False,
            limited=True,
        )
    slopes = {"grad": FLOATS, "stride_n": "i32", "stride_m": "i32", **codes, **lists}
    slopes |= {"grad_values": FLOATS, "k": "i32", "dim": "i32"}
    slopes |= {"BLOCK": similarity.POSTINGS_AT_ONCE}
    yield Case(
        "similarity backward",
        similarity.similarity_backward_kernel,
        slopes,
        1,
        64,
        20_000,
        fused=False,
    )


def info_nce_cases() -> Iterator[Case]:
    """Return those of the loss and its gradient: pairs, and labels of one set."""
    codes = {"values": FLOATS, "indices": CODES}
    lists = {"starts": LONGS, "rows": INTS, "sorted_values": FLOATS}
    for labeled in (None, INTS):
        name = "labels" if labeled else "pairs"
        classes = {"classes": labeled, "other_classes": labeled}
        tail = {"n": "i32", "k": "i32", "m": "i32", "dim": "i32", "scale": "fp32"}
        tail |= {"ONE_SET": bool(labeled), "BLOCK": info_nce.POSTINGS_AT_ONCE}
        forward = {**codes, **lists, **classes, "n_positives": labeled, "scratch": FLOATS}
        forward |= {"loss": FLOATS, "peak": FLOATS, "log_total": FLOATS, **tail}
        yield Case(
            f"info_nce {name}", info_nce.info_nce_kernel, forward, 1, 96, 40_000, fused=False
        )
        back = {**codes, **lists, **classes, "weight": FLOATS}
        back |= {"pull": FLOATS if labeled else None, "peak": FLOATS, "log_total": FLOATS}
        back |= {"scratch": FLOATS, "grad_values": FLOATS, **tail}
        back |= {"BY_ROW": True, "BY_COLUMN": bool(labeled)}
        kernel = info_nce.info_nce_backward_kernel
        yield Case(f"info_nce backward {name}", kernel, back, 1, 96, 40_000, fused=False)
