"""PackedCodes against what NumPy and zlib make of the same latents and values."""

from __future__ import annotations

import zlib

import numpy as np
import torch

import csrkern
from benchmarks.harness.race import Contestant, Race, cases
from csrkern import PackedCodes, roofline

Case = tuple[int, int, int]  # n, h, k
CASES: dict[str, list[Case]] = {
    "tiny": [(64, 256, 8)],
    "quick": [(20_000, 4096, 32)],
    "full": [(50_000, 4096, 8), (50_000, 4096, 32), (50_000, 16_384, 32), (50_000, 8192, 128)],
}
BITS = 4


def drawn(case: Case) -> csrkern.SparseCodes:
    n, h, k = case
    return csrkern.SparseCodes.cat(
        [csrkern.topk_relu(torch.randn(min(n - at, 2000), h), k) for at in range(0, n, 2000)]
    )


def levels(codes: csrkern.SparseCodes) -> tuple[np.ndarray, np.ndarray]:
    """Float32 scales [n, 1], and values as levels of BITS bits [n, k]."""
    values = codes.values.numpy()
    scales = values.max(1, keepdims=True) / ((1 << BITS) - 1)
    return scales, np.rint(values / np.maximum(scales, 1e-30)).astype(np.uint8)


class BitFields:
    """NumPy: a scale a row, then fields of fixed width, the latents of ceil(log2 h) bits."""

    def __init__(self, codes: csrkern.SparseCodes) -> None:
        self.k, self.width = codes.k, max(1, (codes.dim - 1).bit_length()) + BITS
        self.places = np.arange(self.width, dtype=np.uint32)

    def pack(self, codes: csrkern.SparseCodes) -> tuple[np.ndarray, np.ndarray]:
        scales, values = levels(codes)
        fields = codes.indices.numpy().astype(np.uint32) << BITS | values
        bits = (fields[:, :, None] >> self.places & 1).astype(np.uint8)
        return scales, np.packbits(bits.reshape(len(fields), -1), axis=1)

    def unpack(self, scales: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        bits = np.unpackbits(rows, axis=1, count=self.k * self.width)
        bits = bits.reshape(len(rows), self.k, self.width).astype(np.uint32)
        fields = (bits << self.places).sum(2, dtype=np.uint32)
        return (fields & (1 << BITS) - 1) * scales, (fields >> BITS).astype(np.int32)


def deflated(codes: csrkern.SparseCodes) -> bytes:
    """zlib at its fastest: latents in ascending order, as differences, and levels of values."""
    order = codes.indices.argsort(1)
    scales, values = levels(codes)
    latents = codes.indices.gather(1, order).numpy()
    steps = np.diff(latents, axis=1, prepend=0).astype("<u2")
    sorted_values = np.take_along_axis(values, order.numpy(), 1)
    return zlib.compress(scales.tobytes() + steps.tobytes() + sorted_values.tobytes(), 1)


def inflated(packed: bytes, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    data = zlib.decompress(packed)
    scales = np.frombuffer(data, np.float32, n)[:, None]
    steps = np.frombuffer(data, "<u2", n * k, 4 * n).reshape(n, k)
    values = np.frombuffer(data, np.uint8, n * k, (4 + 2 * k) * n).reshape(n, k)
    return values * scales, np.cumsum(steps, axis=1, dtype=np.int32)


@cases(**CASES)
def bench_pack(race: Race, case: Case) -> None:
    n, h, k = case
    codes = drawn(case)
    fields = BitFields(codes)
    packed, scaled, smaller = PackedCodes.pack(codes, BITS), fields.pack(codes), deflated(codes)
    sizes = {
        "ours": packed.rows.shape[1],
        "NumPy bit fields": sum(part.nbytes for part in scaled) / n,
        "zlib": len(smaller) / n,
    }
    race(
        "pack",
        f"n={n} h={h} k={k}",
        ours=Contestant(lambda: PackedCodes.pack(codes, BITS), {"bytes_per_code": sizes["ours"]}),
        peers={
            "NumPy bit fields": Contestant(
                lambda: fields.pack(codes), {"bytes_per_code": sizes["NumPy bit fields"]}
            ),
            "zlib": Contestant(lambda: deflated(codes), {"bytes_per_code": sizes["zlib"]}),
        },
        cost=roofline.pack(n, k, packed.rows.shape[1]),
    )


@cases(**CASES)
def bench_unpack(race: Race, case: Case) -> None:
    n, h, k = case
    codes = drawn(case)
    fields = BitFields(codes)
    packed, scaled, smaller = PackedCodes.pack(codes, BITS), fields.pack(codes), deflated(codes)
    by_latent = codes.indices.sort(1).values.numpy()
    for latents in (fields.unpack(*scaled)[1], inflated(smaller, n, k)[1], packed.unpack().indices):
        np.testing.assert_array_equal(np.sort(latents, axis=1), by_latent)
    race(
        "unpack",
        f"n={n} h={h} k={k}",
        ours=packed.unpack,
        peers={
            "NumPy bit fields": lambda: fields.unpack(*scaled),
            "zlib": lambda: inflated(smaller, n, k),
        },
        cost=roofline.pack(n, k, packed.rows.shape[1], unpack=True),
    )
