"""Codes for Seismic, which searches them approximately, with values in float16."""

from __future__ import annotations

import io
import os

import numpy as np

from csrkern.codes import SparseCodes
from csrkern.integrations.rows import codes_of, rows_of
from csrkern.storage import write_atomically


def write(codes: SparseCodes, path: str | os.PathLike[str]) -> None:
    """Writes the file that `SeismicIndexRaw.build(path)` reads; a row's number is its id.

    Little-endian uint32 and float32: the number of rows, then each row's length, latents in
    ascending order, and values.
    """
    out = io.BytesIO()
    out.write(np.array([len(codes)], "<u4").tobytes())
    for latents, values in map(_ascending, rows_of(codes)):
        out.write(np.array([len(latents)], "<u4").tobytes())
        out.write(latents.astype("<u4").tobytes())
        out.write(values.astype("<f4").tobytes())
    write_atomically(path, out.getvalue())


def queries(codes: SparseCodes) -> list[tuple[np.ndarray, np.ndarray]]:
    """Latents int32, ascending, and float32 values of each code, as `search` takes them."""
    return [
        (latents.astype(np.int32), values.astype(np.float32))
        for latents, values in map(_ascending, rows_of(codes))
    ]


def _ascending(row: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(row[0])
    return row[0][order], row[1][order]


def read(path: str | os.PathLike[str], dim: int, *, k: int | None = None) -> SparseCodes:
    """The codes over `dim` latents in a file of `write`.

    Raises:
        ValueError: if it ends early or late, or a latent is out of range.
    """
    words = np.fromfile(path, "<u4")
    lengths: list[int] = []
    at, parts = 1, []
    for _ in range(int(words[0]) if len(words) else -1):
        length = int(words[at]) if at < len(words) else -1
        end = at + 1 + 2 * length
        if length < 0 or end > len(words):
            break
        lengths.append(length)
        parts.append(words[at + 1 : end])
        at = end
    if not len(words) or len(lengths) != words[0] or at != len(words):
        raise ValueError(f"{os.fspath(path)} is not a whole file of Seismic's rows")
    latents = [part[: len(part) // 2] for part in parts]
    values = [part[len(part) // 2 :].view("<f4") for part in parts]
    nothing = np.zeros(0, "<u4")
    return codes_of(
        np.concatenate([nothing, *latents]),
        np.concatenate([nothing.view("<f4"), *values]),
        np.array(lengths, np.int64),
        dim,
        k,
    )
