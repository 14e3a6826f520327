"""Quantizers to compare codes with: rows in a few bytes each, learned from other rows.

All learn from rows at norm 1, since rows are compared by cosine. FAISS trains the codebooks; RaBitQ
and TurboQuant, which are rotations with scalar grids, are written here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from csrtrain.pca import PCA
from csrtrain.training.quantizer import residual_quantizer

CENTROIDS = 256  # of a codebook, so that a codeword takes a byte
_SAMPLE = 10_000  # rows to learn from: FAISS asks for 39 a centroid, more gain little
_SCALE_BYTES = 2


class Stored(NamedTuple):
    """Rows as a quantizer reads them back.

    Attributes:
        rows: [n, d].
        active: numbers that a row holds: codewords, or dimensions.
        n_bytes: of a row, with what it stores besides, such as a scale. What all rows share
            (codebooks, rotation, mean) is not counted.
    """

    rows: Tensor
    active: int
    n_bytes: int


@dataclass(frozen=True)
class Quantizer:
    """A way to store rows in few bytes.

    Attributes:
        learn: (sample [m, d], x [n, d], n_bytes, seed) -> x as stored in at most `n_bytes` bytes
            a row and read back.
        codebooks: learned by FAISS; needs `CENTROIDS` rows.
        rotation: learned by FAISS; needs as many rows as dimensions.
    """

    learn: Callable[[np.ndarray, np.ndarray, int, int], Stored]
    codebooks: bool = True
    rotation: bool = False


def obstacle(name: str, train: Tensor) -> str:
    """Return why the quantizer of this name cannot learn from `train` [m, d]; "" if it can.

    FAISS raises below 256 rows. With fewer rows than dimensions, OPQ writes past its buffers, and
    the process crashes.
    """
    quantizer = QUANTIZERS[name]
    m, d = min(len(train), _SAMPLE), train.shape[1]
    if quantizer.codebooks and find_spec("faiss") is None:
        return "needs FAISS, which is not installed: pip install 'csrkern[eval]'"
    if quantizer.codebooks and m < CENTROIDS:
        return f"expected at least {CENTROIDS} rows, got {m}"
    if quantizer.rotation and m < d:
        return f"expected at least as many rows as dimensions, {d}, got {m}"
    return ""


def quantize(name: str, train: Tensor, x: Tensor, n_bytes: int, seed: int = 0) -> Stored:
    """Return x [n, d] as stored in at most `n_bytes` bytes a row, and read back at norm 1.

    Args:
        name: of `QUANTIZERS`.
        train: [m, d], to learn from.
        seed: of what the method draws: first centroids, first codes, or a rotation.

    Raises:
        ImportError: if FAISS is missing.
        ValueError: if the name is unknown, `n_bytes` is too few, or `train` has too few rows.
    """
    if name not in QUANTIZERS:
        raise ValueError(f"quantizer: expected one of {', '.join(QUANTIZERS)}, got {name!r}")
    if reason := obstacle(name, train):
        raise (ValueError if "rows" in reason else ImportError)(f"train: {reason}")
    least = 1 if QUANTIZERS[name].codebooks else _SCALE_BYTES + 1
    if n_bytes < least:
        raise ValueError(f"n_bytes: expected at least {least}, got {n_bytes}")
    sample = train[:: max(1, len(train) // _SAMPLE)][:_SAMPLE]
    return QUANTIZERS[name].learn(_unit(sample), _unit(x), n_bytes, seed)


def _unit(rows: Tensor) -> np.ndarray:
    # In float64, where no square of a float32 overflows.
    unit = torch.nn.functional.normalize(rows.double(), dim=1, eps=1e-300)
    return np.ascontiguousarray(unit.numpy(), dtype=np.float32)


def _codewords(stored: np.ndarray, n_bytes: int) -> Stored:
    return Stored(torch.from_numpy(np.ascontiguousarray(stored)), n_bytes, n_bytes)


def _divisor(d: int, most: int) -> int:
    return max(parts for parts in range(1, max(1, most) + 1) if d % parts == 0)


def _product(
    sample: np.ndarray, x: np.ndarray, n_bytes: int, seed: int, rotate: bool = False
) -> Stored:
    """PQ, or with `rotate` OPQ: a codeword for each of as many equal parts as fit."""
    import faiss

    d = x.shape[1]
    parts = _divisor(d, n_bytes)
    quantizer = faiss.ProductQuantizer(d, parts, CENTROIDS.bit_length() - 1)
    quantizer.cp.min_points_per_centroid = 1  # else FAISS warns for every codebook
    quantizer.cp.seed += seed
    rotation: Any = None
    if rotate:
        rotation = faiss.OPQMatrix(d, parts)
        rotation.niter = 10
        rotation.pq = quantizer
        rotation.train(sample)
        sample, x = rotation.apply(sample), rotation.apply(x)
    quantizer.train(sample)
    stored = quantizer.decode(quantizer.compute_codes(x))
    return _codewords(stored if rotation is None else rotation.reverse_transform(stored), parts)


def _residual(sample: np.ndarray, x: np.ndarray, n_bytes: int, seed: int) -> Stored:
    """RQ: a sum of codewords, each for what those before it leave over, found with a beam."""
    quantizer = residual_quantizer(sample, n_bytes, seed)
    return _codewords(quantizer.decode(quantizer.compute_codes(x)), n_bytes)


def _local_search(sample: np.ndarray, x: np.ndarray, n_bytes: int, seed: int) -> Stored:
    """LSQ: a sum of codewords that are chosen together, by iterated local search."""
    import faiss

    quantizer = faiss.LocalSearchQuantizer(x.shape[1], n_bytes, CENTROIDS.bit_length() - 1)
    quantizer.random_seed += seed
    quantizer.train(sample)
    return _codewords(quantizer.decode(quantizer.compute_codes(x)), n_bytes)


def _in_parts(
    learn: Callable[[np.ndarray, np.ndarray, int, int], Stored],
    sample: np.ndarray,
    x: np.ndarray,
    n_bytes: int,
    seed: int,
    part_bytes: int,
) -> Stored:
    """Products: codes of another quantizer for each of equal parts, of `part_bytes` or more."""
    parts = _divisor(x.shape[1], n_bytes // part_bytes)
    columns = (np.split(side, parts, axis=1) for side in (sample, x))
    stored = [
        learn(np.ascontiguousarray(a), np.ascontiguousarray(b), n_bytes // parts, seed)
        for a, b in zip(*columns, strict=True)
    ]
    return Stored(
        torch.cat([part.rows for part in stored], 1),
        sum(part.active for part in stored),
        sum(part.n_bytes for part in stored),
    )


def _rabitq(sample: np.ndarray, x: np.ndarray, n_bytes: int, seed: int, bits: int) -> Stored:
    """RaBitQ: the point of a rotated grid of `bits` bits a dimension at the least angle.

    As in the paper about the mean of the rows, with one number a row besides, in float16: the
    length that brings the point nearest to the row. (The paper's own, for estimates without bias,
    ranks less well by cosine.) Where not all dimensions fit, as many principal directions as do.
    """
    rows, pca = torch.from_numpy(x), PCA(torch.from_numpy(sample))
    dims = min(rows.shape[1], 8 * (n_bytes - _SCALE_BYTES) // bits)
    basis = pca.directions[:, :dims] @ random_rotation(dims, seed)
    stored = []
    for part in rows.split(1024):
        turned = (part - pca.mean) @ basis
        point = nearest_by_angle(turned, bits)
        length = (turned * point).sum(1, keepdim=True) / point.square().sum(1, keepdim=True)
        stored.append((length.half().float() * point) @ basis.T + pca.mean)
    return Stored(torch.cat(stored), dims, _SCALE_BYTES + -(-dims * bits // 8))


def _turboquant(sample: np.ndarray, x: np.ndarray, n_bytes: int, seed: int, bits: int) -> Stored:
    """TurboQuant for least squares: rotated rows, the best scalar codebook for each coordinate.

    Rows are at norm 1, so that none is stored. Where not all dimensions fit, as many principal
    directions as do (through the origin, and again at norm 1, which a cosine does not see).
    """
    rows, seen = torch.from_numpy(x), torch.from_numpy(sample)
    dims = min(rows.shape[1], 8 * n_bytes // bits)
    basis = PCA(seen, -seen).directions[:, :dims] @ random_rotation(dims, seed)
    # A coordinate of a random direction is nearly normal, of variance 1 / dims.
    codebook = gaussian_codebook(bits) / math.sqrt(dims)
    turned = torch.nn.functional.normalize(rows @ basis, dim=1, eps=1e-30)
    points = codebook[torch.bucketize(turned, (codebook[1:] + codebook[:-1]) / 2)]
    return Stored(points @ basis.T, dims, -(-dims * bits // 8))


def random_rotation(dims: int, seed: int) -> Tensor:
    """Return an orthogonal matrix [dims, dims], uniform among all."""
    normal = torch.randn(
        dims, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    q, r = torch.linalg.qr(normal)
    return (q * r.diagonal().sign()).float()


def nearest_by_angle(rows: Tensor, bits: int) -> Tensor:
    """Return the points of {±½, ±1½, … ±(2^bits − 1)/2}^d at the least angle to rows [n, d].

    Scaled from 0 to infinity, a row passes all points that can be nearest: each of its magnitudes
    takes the next step where the scaled row passes a whole number.
    """
    sizes = rows.abs().double()
    steps = torch.arange(1, 2 ** (bits - 1), dtype=torch.float64)
    scales = steps / sizes[:, :, None].clamp(min=1e-30)
    ordered, order = scales.flatten(1).sort(1)
    # A step adds the magnitude to the product with the row; to the square, (s + ½)² − (s − ½)².
    product = sizes.repeat_interleave(len(steps), 1).gather(1, order).cumsum(1)
    square = (2 * steps).repeat(rows.shape[1])[order].cumsum(1)
    half = sizes.sum(1, keepdim=True) / 2
    products = torch.cat([half, half + product], 1)
    squares = rows.shape[1] / 4 + torch.cat([torch.zeros_like(half), square], 1)
    best = (products / squares.sqrt()).argmax(1, keepdim=True)
    first = torch.cat([torch.zeros_like(half), ordered], 1).gather(1, best)
    points = (scales <= first[:, :, None]).sum(2) + 0.5
    return torch.where(rows < 0, -points, points).float()


def gaussian_codebook(bits: int) -> Tensor:
    """Return the 2^bits numbers, ascending, that code a standard normal with the least square."""
    normal = torch.distributions.Normal(
        torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    )
    codebook = normal.icdf((torch.arange(2**bits, dtype=torch.float64) + 0.5) / 2**bits)
    for _ in range(500):  # of Lloyd's algorithm: 4 bits then move by less than 1e-9
        bounds = torch.cat(
            [codebook[:1] - 30, (codebook[1:] + codebook[:-1]) / 2, codebook[-1:] + 30]
        )
        density, below = normal.log_prob(bounds).exp(), normal.cdf(bounds)
        codebook = (density[:-1] - density[1:]) / (below[1:] - below[:-1])
    return codebook.float()


def _by_bits(name: str, learn: Callable[..., Stored]) -> Iterator[tuple[str, Quantizer]]:
    for bits in range(1, 5):
        yield f"{name}-{bits}", Quantizer(partial(learn, bits=bits), codebooks=False)


QUANTIZERS = {
    "PQ": Quantizer(_product),
    "OPQ": Quantizer(partial(_product, rotate=True), rotation=True),
    "RQ": Quantizer(_residual),
    "PRQ": Quantizer(partial(_in_parts, _residual, part_bytes=16)),
    "LSQ": Quantizer(_local_search),
    # The time to learn grows with the cube of the codewords of a part.
    "PLSQ": Quantizer(partial(_in_parts, _local_search, part_bytes=8)),
    **dict(_by_bits("RaBitQ", _rabitq)),
    **dict(_by_bits("TurboQuant", _turboquant)),
}
