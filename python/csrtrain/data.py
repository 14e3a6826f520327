"""Embeddings and labels from files and arrays, checked, without loading mapped files whole."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from csrkern.arguments import array_of
from csrkern.embeddings import Held, check_matrix, copy_floats, damaged, held_array, open_npy
from csrkern.ops.validation import check_rows_finite
from csrtrain import formats
from csrtrain.formats import readable

Array = np.ndarray | Tensor
"""A 2-D array of embeddings or a 1-D array of labels; NumPy (mapped or not) or a CPU tensor."""

Source = str | bytes | os.PathLike[str] | np.ndarray | Tensor
"""A path or an array. Functions also take lists, data frames, and arrays of other libraries."""

# Rows are read in pieces of about this many bytes: well inside memory, well above a seek.
_CHUNK_BYTES = 1 << 25


def load_embeddings(source: Source, key: str | None = None, *, check_finite: bool = True) -> Array:
    """Return embeddings [n, d] from a file or an array.

    Files by their suffix: .npy (memory-mapped), .npz, .safetensors (memory-mapped),
    .parquet (a column of lists, or columns of floats; needs `pip install csrkern[parquet]`),
    .pt or .pth (a tensor or a dict of tensors, read weights-only). float16, bfloat16, float32
    and float64 of either byte order stay as they are stored; `rows` converts what it reads.

    Args:
        source: a path, also as "file.npz:name"; a NumPy array, a tensor, a data frame or lists
            of numbers.
        key: the array's name inside the file; not needed where only one would do. In a .parquet
            file "emb_*" takes all columns of floats with such names as columns of a matrix.
        check_finite: read everything once and refuse NaN and infinity. What trains or encodes
            looks for itself, so it need not be done twice.

    Raises:
        FileNotFoundError: if there is no such file.
        TypeError, ValueError: if it holds no unambiguous, non-empty, finite 2-D
            floating-point array; the message says what it does hold.
        ImportError: if a .parquet file is given without pyarrow.
    """
    name, array = open_embeddings("embeddings", source, key)
    if check_finite:
        read_through(name, array)
    return array


def open_embeddings(argument: str, source: Source, key: str | None = None) -> tuple[str, Array]:
    """Return `load_embeddings`, with nothing read, and its name for messages.

    Args:
        argument: what the caller calls the source.
        source, key: as for `load_embeddings`.
    """
    name, array = _read(argument, source, key, _EMBEDDINGS)
    if 0 in array.shape:
        shape = list(array.shape)
        raise ValueError(f"{name}: expected at least one row and one column, got {shape}")
    return name, array


def read_through(name: str, array: Array) -> None:
    """Read embeddings once and raise ValueError naming the first row that is not finite."""
    for _ in chunks(array, name):
        pass


def load_labels(source: Source, key: str | None = None, *, n: int | None = None) -> Tensor:
    """Return labels [n] as int64, from a file or an array as `load_embeddings` takes them.

    Integers stay as they are; strings are numbered in sorted order.

    Args:
        source: a path, a NumPy array, a tensor, a column of a data frame or a list.
        key: the array's name inside the file; not needed where only one would do.
        n: the number of embeddings that the labels are for.

    Raises:
        FileNotFoundError, TypeError, ValueError, ImportError: as `load_embeddings`, or if
            there are not n labels.
    """
    return number_labels(read_labels(source, key, n=n))[0]


def read_labels(source: Source, key: str | None = None, *, n: int | None = None) -> np.ndarray:
    """Return labels [n] as they are stored, integers or strings; arguments as for `load_labels`."""
    name, array = _read("labels", source, key, _LABELS)
    if n is not None and len(array) != n:
        raise ValueError(f"{name}: expected {n} labels, one for each embedding, got {len(array)}")
    return _numpy(array)


def read_integers(
    source: Source, key: str | None = None, *, argument: str = "integers"
) -> np.ndarray:
    """Return a 2-D array of integers, such as pairs or relevance judgments, of a file or an array.

    Messages call an array in memory `argument`. Raises: as `load_embeddings`.
    """
    _, array = _read(argument, source, key, _INTEGERS)
    return _numpy(array)


def number_labels(*parts: np.ndarray) -> list[Tensor]:
    """Return int64 labels of arrays that share their classes, such as of train and test rows.

    Integers stay as they are; strings are numbered in sorted order over all parts.

    Raises:
        ValueError: if some parts hold strings and others integers, or an integer is 2^63 or more.
    """
    kinds = sorted({held_array(part).kind for part in parts})
    if len(kinds) > 1:
        raise ValueError(
            f"labels: expected only integers or only strings, got {' and '.join(kinds)}"
        )
    if kinds == ["str"]:
        _, numbers = np.unique(np.concatenate(parts), return_inverse=True)
        parts = tuple(np.split(numbers, np.cumsum([len(part) for part in parts])[:-1]))
    for part in parts:
        if part.dtype == np.uint64 and part.max(initial=0) >= 2**63:
            raise ValueError(f"labels: expected integers below 2^63, got {part.max()}")
    return [torch.from_numpy(np.array(part, np.int64)) for part in parts]


def rows(array: Array, index: Tensor | slice) -> Tensor:
    """Return the rows [m, d] of `array` at `index`, as float32 in memory of their own."""
    if isinstance(array, Tensor):
        return array[index].to(torch.float32, copy=True)
    picked = array[index.numpy() if isinstance(index, Tensor) else index]
    # A fresh tensor is aligned to 64 bytes, which NumPy memory is not; matrix products may
    # round differently by alignment, and runs must repeat bit for bit.
    out = torch.empty(picked.shape, dtype=torch.float32, device="cpu")
    copy_floats(picked, out.numpy())
    return out


def chunks(array: Array, name: str = "embeddings", first: int = 0) -> Iterator[tuple[int, Tensor]]:
    """Yield (first row, float32 rows [m, d]) over the whole array, piece by piece.

    Args:
        array: embeddings [n, d].
        name: what messages call it.
        first: number of its first row.

    Raises:
        ValueError: as `check_rows_finite`.
    """
    size = max(1, _CHUNK_BYTES // (4 * array.shape[1]))
    for start in range(0, len(array), size):
        chunk = rows(array, slice(start, start + size))
        check_rows_finite(chunk, first + start, name)
        yield first + start, chunk


class _Wanted(NamedTuple):
    """Which arrays a caller takes.

    Attributes:
        fits: tells them, where no name is given.
        check: raises TypeError or ValueError, with the name, unless an array is one of them.
    """

    fits: Callable[[Held], bool]
    check: Callable[[str, Held], None]


def _check_labels(name: str, held: Held) -> None:
    if held.kind not in ("int", "str"):
        hint = "; make strings of them with .astype(str)" if held.kind == "object" else ""
        raise TypeError(f"{name}: expected integer or string labels, got {held.dtype}{hint}")
    if len(held.shape) != 1:
        raise ValueError(f"{name}: expected labels of shape [n], got {held.sizes}")


def _check_integers(name: str, held: Held) -> None:
    if held.kind != "int" or len(held.shape) != 2:
        raise ValueError(f"{name}: expected integers in rows, got {held}")


_EMBEDDINGS = _Wanted(lambda held: held.is_matrix, check_matrix)
_LABELS = _Wanted(lambda held: len(held.shape) == 1 and held.kind in ("int", "str"), _check_labels)
_INTEGERS = _Wanted(lambda held: len(held.shape) == 2 and held.kind == "int", _check_integers)


def _read(argument: str, source: Any, key: str | None, wanted: _Wanted) -> tuple[str, Array]:
    """Return (name for messages, array) of a path or an array.

    Args:
        argument: what the caller calls it.
        source: a path or an array.
        key: the array's name inside a file, or None.
        wanted: what the array must be.
    """
    if isinstance(source, (str, bytes, os.PathLike)):
        name, array = _read_file(os.fsdecode(source), key, wanted)
    elif key is None:
        name, array = argument, _array_of(argument, source)
    else:
        raise ValueError(f"key: expected None for {argument} in memory, got {key!r}")
    wanted.check(name, _held(array))
    return name, array


def _array_of(argument: str, source: Any) -> Array:
    if isinstance(source, Tensor):
        if source.layout != torch.strided:
            raise TypeError(f"{argument}: expected a dense tensor, got one of {source.layout}")
        return source.detach().cpu()
    if hasattr(source, "__dlpack__") and not isinstance(source, np.ndarray):
        return torch.from_dlpack(source).cpu()
    if hasattr(source, "__array__") or isinstance(source, (list, tuple)):
        return np.asarray(array_of(argument, source))
    raise TypeError(
        f"{argument}: expected a path, a NumPy array, a tensor, a data frame or lists of numbers, "
        f"got {type(source).__name__}"
    )


def _held(array: Array) -> Held:
    if not isinstance(array, Tensor):
        return held_array(array)
    kind = "float" if array.dtype.is_floating_point else "int"
    if array.dtype == torch.bool or array.dtype.is_complex:
        kind = "other"
    return Held(tuple(array.shape), str(array.dtype), kind)


def _numpy(array: Array) -> np.ndarray:
    """Return labels or integers as a NumPy array in the machine's byte order."""
    if isinstance(array, Tensor):
        return array.numpy()
    return np.asarray(array).astype(array.dtype.newbyteorder("="), copy=False)


# ---- files ------------------------------------------------------------------------------


def _read_file(name: str, key: str | None, wanted: _Wanted) -> tuple[str, Array]:
    path = Path(name)
    if key is None:
        path, key = formats.split_name(name)
    if not os.path.exists(path):  # False also of a name that is too long
        raise FileNotFoundError(f"no file at {path}")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected a file of embeddings or labels")
    if not path.is_file():
        raise ValueError(f"{path} is a device or a pipe; expected a file, which can be read twice")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: expected a file that ends in {', '.join(_READERS)}")
    return reader(path, key, wanted)


def _read_npy(path: Path, key: str | None, _wanted: Any) -> tuple[str, Array]:
    _no_key(path, key)
    return str(path), open_npy(path)


def _read_npz(path: Path, key: str | None, wanted: _Wanted) -> tuple[str, Array]:
    with open(path, "rb") as file:
        if file.read(6) == b"\x93NUMPY":
            raise damaged(str(path), ".npz", "it is a single array; rename it to .npy")
    with readable(str(path), ".npz"), zipfile.ZipFile(path) as archive:
        held = formats.npz_headers(archive, str(path))
        name = formats.choose(str(path), held, key, wanted.fits)
        wanted.check(f"{path}[{name}]", held[name])
        with archive.open(f"{name}.npy") as member:
            try:
                array = np.lib.format.read_array(member, allow_pickle=False)
            except ValueError as error:
                raise damaged(f"{path}[{name}]", ".npz", error) from error
    return f"{path}[{name}]", array


def _read_safetensors(path: Path, key: str | None, wanted: _Wanted) -> tuple[str, Array]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return _choose(path, load_file(path), key, wanted)
    except SafetensorError as error:
        raise damaged(str(path), ".safetensors", error) from error


def _read_torch(path: Path, key: str | None, wanted: _Wanted) -> tuple[str, Array]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = damaged(str(path), "weights-only PyTorch", error)
        raise ValueError(f"{reason}; save a plain tensor with torch.save(tensor, path)") from error
    if isinstance(content, Tensor):
        _no_key(path, key)
        return str(path), _array_of(str(path), content)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a tensor or a dict, got {type(content).__name__}")
    arrays = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    name, array = _choose(path, arrays, key, wanted)
    return name, _array_of(name, array)


def _choose(
    path: Path, arrays: dict[str, Tensor], key: str | None, wanted: _Wanted
) -> tuple[str, Tensor]:
    held = {name: _held(array) for name, array in arrays.items()}
    name = formats.choose(str(path), held, key, wanted.fits)
    return f"{path}[{name}]", arrays[name]


def _read_parquet(path: Path, key: str | None, wanted: _Wanted) -> tuple[str, Array]:
    with readable(str(path), ".parquet"):
        table = formats.ParquetTable(path, str(path))
        columns = formats.table_columns(str(path), table.schema, key, wanted.fits)
        wanted.check(columns.name, columns.held)
        return columns.name, formats.read_rows(table, columns, 0, table.rows)


_READERS: dict[str, Callable[[Path, str | None, _Wanted], tuple[str, Array]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".parquet": _read_parquet,
    ".pt": _read_torch,
    ".pth": _read_torch,
}


def _no_key(path: Path, key: str | None) -> None:
    if key is not None:
        raise ValueError(f"{path} holds a single array; leave out the key {key!r}")
