"""What aot.py compiles: every kernel at the shapes that decide its constants, and its budget."""

from __future__ import annotations

from typing import Any, NamedTuple

from csrkern.kernels import gather, info_nce, similarity, topk_relu, transpose
from csrkern.kernels.encode import bounds as encode_bounds
from csrkern.kernels.encode import propose as encode_propose
from csrkern.kernels.encode import verified as encode_verified

CODES, FLOATS, INTS, LONGS = "*i32", "*fp32", "*i32", "*i64"


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
    offsets = {"counts": INTS, "totals": LONGS, "n_blocks": "i32", "dim": "i32"}
    offsets |= {"BLOCK": transpose.LATENTS_AT_ONCE, "AT_ONCE": transpose.BLOCKS_AT_ONCE}
    found.append(Case("transpose offsets", transpose.offsets_kernel, offsets, 1, 255, 24_000))
    place = {**codes, "starts": LONGS, "cursors": INTS, "rows": INTS, "slots": INTS}
    place |= {"sorted_values": FLOATS, "n": "i32", "k": "i32", "rows_per_block": "i32"}
    place |= {"dim": "i32", "K_PAD": 32}
    found.append(Case("transpose place", transpose.place_kernel, place, 1, 64, 20_000))

    found += encode_cases()
    for element in (FLOATS, "*i16"):
        width = {"ROWS": gather.ROWS_AT_ONCE, "BLOCK": 512}
        wide = 4 if element == FLOATS else 2
        sizes = {"n": "i32", "k": "i32", "dim": "i32", "d": "i32", "stride_table": "i32"}
        sizes["ENDS"] = (32, 128)
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
        scattered |= {"entries": "i32", "pieces": "i32", "n": "i32", "dim": "i32", "k": "i32"}
        scattered |= {"d": "i32", "stride_source": "i32"}
        scattered |= {"begin_slot": "i32", "end_slot": "i32", "FIRST": False}
        scattered |= {"PIECE": gather.PIECE, **width}
        name = f"scatter_sum {element[1:]}"
        found.append(Case(name, gather.scatter_sum_kernel, scattered, wide, 128, 30_000))
        name = f"scatter_sum pieces {element[1:]}"
        found.append(Case(name, gather.scatter_pieces_kernel, scattered, wide, 128, 30_000))

    block = {"BLOCK": similarity.POSTINGS_AT_ONCE}
    scored = {**codes, **lists, "out": FLOATS, "skewed": INTS, "k": "i32", "m": "i32"}
    scored |= {"dim": "i32", "limit": "i32", "K_PAD": 32, **block, "FILL": 1024}
    found.append(Case("similarity", similarity.similarity_kernel, scored, 1, 64, 20_000))
    gathered = {**scored, "other_values": FLOATS, "other_indices": CODES, "dense": FLOATS}
    gathered |= {"n": "i32", "other_k": "i32", "OTHER_PAD": 32}
    gathered |= {"BLOCK": similarity.GATHERED_AT_ONCE // 32}
    kernel = similarity.similarity_gather_kernel
    # Triton 3.9 takes 32 registers, 3.6 takes 80.
    found.append(Case("similarity gather", kernel, gathered, 8, 80, 20_000, 16_384))
    slopes = {"grad": FLOATS, "stride_n": "i32", "stride_m": "i32", **codes, **lists}
    slopes |= {"grad_values": FLOATS, "k": "i32", "dim": "i32", **block}
    kernel = similarity.similarity_backward_kernel
    found.append(Case("similarity backward", kernel, slopes, 1, 64, 20_000))
    for labeled in (None, INTS):
        name = "labels" if labeled else "pairs"
        classes = {"classes": labeled, "other_classes": labeled}
        tail = {"n": "i32", "k": "i32", "m": "i32", "dim": "i32", "scale": "fp32"}
        tail["ONE_SET"] = bool(labeled)
        forward = {**codes, **lists, **classes, "n_positives": labeled, "scratch": FLOATS}
        forward |= {"loss": FLOATS, "peak": FLOATS, "log_total": FLOATS, **tail, **block}
        found.append(Case(f"info_nce {name}", info_nce.info_nce_kernel, forward, 1, 96, 40_000))
        back = {**codes, **lists, **classes, "weight": FLOATS}
        back |= {"pull": FLOATS if labeled else None, "peak": FLOATS, "log_total": FLOATS}
        back |= {"scratch": FLOATS, "grad_values": FLOATS, **tail}
        back |= {"BY_ROW": True, "BY_COLUMN": bool(labeled), **block}
        kernel = info_nce.info_nce_backward_kernel
        found.append(Case(f"info_nce backward {name}", kernel, back, 1, 96, 40_000))
    return found


def encode_cases() -> list[Case]:
    """Return the kernels of a verified encoding at h = 16,384 and k = 32."""
    capacity = encode_verified.LEAST_CAPACITY
    codes = {"values": FLOATS, "indices": CODES, "n": "i32", "h": "i32", "k": "i32", "d": "i32"}
    layer = {
        "x": FLOATS,
        "weight": FLOATS,
        "stride": "i32",
        "bias": FLOATS,
        "counts": INTS,
        **codes,
    }
    layer |= {"LANES": encode_verified.LANES, "TILE": encode_verified.RESCORED_AT_ONCE}
    scored = {"bias": FLOATS, "maxima": FLOATS, "h": "i32", "groups": "i32"}
    scored["GROUP"] = encode_propose.GROUP
    found = []
    rows = {"rows": FLOATS, "stride": "i32", "rounded": "*i16", "norms": FLOATS}
    rows |= {"residuals": FLOATS, "d": "i32", "BLOCK": 1024}
    found.append(Case("encode: round rows", encode_bounds.round_rows_kernel, rows, 4, 64, 20_000))
    product = {**codes, **scored, "x": "*bf16", "weight": "*bf16", "products": "*i16"}
    # Each where it fits: the registers of Hopper, others, an AMD unit's shared memory.
    fits = (("sm_90",), ("sm_80", "sm_90", "sm_100"), ("gfx942",))
    for tile, on in zip(encode_propose.TILES, fits, strict=True):
        arguments = {**product, **tile}
        warps, stages = arguments.pop("num_warps"), arguments.pop("num_stages")
        name = f"encode: product {tile['BM']}x{tile['BN']}x{tile['BK']}"
        kernel = encode_propose.product_kernel
        found.append(Case(name, kernel, arguments, warps, 255, 60_000, 147_456, stages, on))
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
    found.append(Case("encode: rescore", encode_verified.rescore_kernel, summed, 4, 128, 50_000))
    ranked = {**codes, "keys": LONGS, "counts": INTS, "K_PAD": 32, "CAPACITY": capacity, "TILE": 64}
    found.append(Case("encode: rank", encode_verified.rank_kernel, ranked, 4, 128, 30_000))
    plan = topk_relu.Plan.of(16_384, 32)._asdict()
    plan.pop("num_warps")
    full = {**layer, "rows": FLOATS, "scratch": LONGS, **plan}
    found.append(Case("encode: repair", encode_verified.repair_kernel, full, 8, 128, 90_000))
    return found
