"""Projection: the directions of embeddings that tell what belongs together; NumPy alone."""

from __future__ import annotations

import io
import os
import zipfile
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from csrkern import _C
from csrkern.arguments import check_int, check_within, float32_array, float32_rows, thread_count
from csrkern.storage import write_atomically

if TYPE_CHECKING:
    from csrkern.typing import VectorsLike


LARGEST = 1e15  # entries up to here cannot overflow in a sum of squares
FIRST = np.zeros(1, np.int64)  # the column at which the only block of a product begins


def bounded_array(name: str, given: VectorsLike, axes: int) -> np.ndarray:
    """Return a float32 array of so many axes, of finite numbers up to `LARGEST`; a copy."""
    array = np.array(float32_array(name, given))
    if array.ndim != axes:
        raise ValueError(f"{name}: expected {axes} axes, got {array.ndim}")
    check_within(name, array, LARGEST)
    return array


class Projection:
    """A linear map of embeddings to fewer dimensions; `csrtrain.learn_projection` learns it.

    An embedding is brought to L2 norm 1, the center is taken away, inner products with the
    directions are taken, and these are brought to norm 1. Cosines of what comes out compare
    embeddings by what the directions tell of them.

    Args:
        directions: [p, d], finite, not all 0. Kept in float32, as is the center.
        center: [d], finite.

    Raises:
        TypeError, ValueError: if shapes disagree or a number is not finite or beyond 1e15.

    Source: learned whitening (Mikolajczyk & Matas, ICCV 2007; Radenovic et al., arXiv 1711.02512).

    Example:
        >>> projection = csrkern.Projection([[0.0, 2.0, 0.0], [0.0, 0.0, 1.0]], [0.0, 0.0, 0.0])
        >>> projection([[5.0, 3.0, 8.0]]).round(3).tolist()
        [[0.6, 0.8]]
    """

    def __init__(self, directions: VectorsLike, center: VectorsLike) -> None:
        self.directions = bounded_array("directions", directions, 2)
        self.center = bounded_array("center", center, 1)
        if not len(self.directions) or self.directions.shape[1] != self.dim or not self.dim:
            raise ValueError(
                f"directions: expected [p, {self.dim}], as wide as the center is long, got "
                f"{list(self.directions.shape)}"
            )
        if not self.directions.any():
            raise ValueError("directions: expected some number that is not 0")

    @property
    def dim(self) -> int:
        """Width d of the embeddings."""
        return len(self.center)

    @property
    def width(self) -> int:
        """Width p of what comes out."""
        return len(self.directions)

    def __call__(self, embeddings: VectorsLike, *, num_threads: int | None = None) -> np.ndarray:
        """Return what embeddings [n, d] become: float32 [n, p], each row at norm 1.

        A row that all directions miss becomes zeros.

        Raises:
            TypeError, ValueError: if embeddings are not finite numbers [n, d] of at most 1e15.
        """
        rows = float32_rows("embeddings", embeddings, self.dim, LARGEST)
        return self.apply(rows, thread_count(num_threads))

    def truncate(self, width: int) -> Projection:
        """Return the projection to its first `width` directions, the strongest of a learned one.

        Fine codes of fewer dimensions are learned and searched faster, and tell less.

        Args:
            width: from 1 to `self.width`.

        Raises:
            TypeError, ValueError: if `width` is anything else.
        """
        width = check_int("width", width, 1, self.width)
        return Projection(self.directions[:width], self.center)

    def apply(self, rows: np.ndarray, threads: int) -> np.ndarray:
        """Return the same for rows float32 [n, d] that have been checked."""
        rows = _C.unit_rows(rows, self.center, threads)
        products = _C.block_products(rows, self._block, FIRST, threads)
        projected: np.ndarray = _C.unit_rows(products[:, 0], None, threads)
        return projected

    @cached_property
    def _block(self) -> np.ndarray:
        """The directions as products read them, [1, d, p]."""
        return np.ascontiguousarray(self.directions.T)[None]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, an .npz archive of `directions` and `center`.

        Raises:
            OSError: if the file cannot be written.
        """
        payload = io.BytesIO()
        np.savez(payload, directions=self.directions, center=self.center)
        write_atomically(path, payload.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Projection:
        """Read what `save` wrote.

        Raises:
            OSError: if there is no such file, or it cannot be read.
            ValueError: if it is damaged, or something else.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(file["directions"], file["center"])
        except (ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{os.fsdecode(path)} is not a projection: {error}") from error

    def __repr__(self) -> str:
        return f"{type(self).__name__}(dim={self.dim}, width={self.width})"


__all__ = ["Projection"]
