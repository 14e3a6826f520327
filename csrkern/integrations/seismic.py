"""Codes for Seismic, which searches them approximately, with values in float16.

`SeismicIndexRaw` takes latents below 65,536; for more, build the same file with
`SeismicIndexRawLV`.
"""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import numpy as np

from csrkern.codes.sparse import SparseCodes
from csrkern.integrations.rows import codes_of, float32_rows
from csrkern.storage import write_atomically

_NARROW_LATENTS = 2**16  # of SeismicIndexRaw, which stops the process's thread at others
_LARGEST = float(np.finfo(np.float16).max)


def write(codes: SparseCodes, path: str | os.PathLike[str]) -> None:
    """Write the file that `SeismicIndexRaw.build(path)` reads; a row's number is its id.

    Little-endian uint32 and float32: the number of rows, then each row's length, latents in
    ascending order, and values.

    Raises:
        TypeError: if `codes` are not SparseCodes.
        ValueError: if they are not valid, or a value is not finite or above 65,504, the most that
            Seismic's float16 holds; nothing is written then.

    Warns:
        UserWarning: if a latent is 65,536 or more, which only `SeismicIndexRawLV` takes.
    """
    out = io.BytesIO()
    out.write(np.array([len(codes)], "<u4").tobytes())
    highest = 0
    for row, (latents, values) in enumerate(map(_ascending, float32_rows(codes))):
        if values.max(initial=0) > _LARGEST:
            raise ValueError(
                f"codes: row {row} holds {values.max():.4g}, and Seismic's float16 at most "
                f"{_LARGEST:.0f}; scale the values of all codes"
            )
        highest = max(highest, int(latents.max(initial=0)))
        out.write(np.array([len(latents)], "<u4").tobytes())
        out.write(latents.astype("<u4").tobytes())
        out.write(values.astype("<f4").tobytes())
    write_atomically(path, out.getvalue())
    if highest >= _NARROW_LATENTS:
        warnings.warn(
            f"{os.fspath(path)} holds latent {highest}: build it with SeismicIndexRawLV, as "
            f"SeismicIndexRaw takes latents below {_NARROW_LATENTS}",
            UserWarning,
            stacklevel=2,
        )


def queries(codes: SparseCodes) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the latents int32, ascending, and float32 values of each code, as `search` takes them.

    Raises:
        TypeError, ValueError: if codes are not valid or not finite.
    """
    rows = map(_ascending, float32_rows(codes))
    return [(latents.astype(np.int32), values) for latents, values in rows]


def _ascending(row: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(row[0])
    return row[0][order], row[1][order]


def read(path: str | os.PathLike[str], dim: int, *, k: int | None = None) -> SparseCodes:
    """Return the codes over `dim` latents in a file of `write`.

    Raises:
        ValueError: if it ends early or late, a weight is negative or not finite, or a latent is
            out of range or occurs twice in a row.
    """
    content = Path(path).read_bytes()
    words = np.frombuffer(content[: len(content) // 4 * 4], "<u4")
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
    if not len(words) or len(lengths) != words[0] or 4 * at != len(content):
        raise ValueError(f"{os.fspath(path)} is not a whole file of Seismic's rows")
    latents = [part[: len(part) // 2] for part in parts]
    values = [part[len(part) // 2 :].view("<f4") for part in parts]
    nothing = np.zeros(0, "<u4")
    try:
        return codes_of(
            np.concatenate([nothing, *latents]),
            np.concatenate([nothing.view("<f4"), *values]),
            np.array(lengths, np.int64),
            dim,
            k,
        )
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error
