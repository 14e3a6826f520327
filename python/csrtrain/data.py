"""Embeddings and labels from files and arrays, checked, without loading mapped files whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csrkern.validation import check_rows_finite

Array = np.ndarray | Tensor
"""A 2-D array of embeddings or a 1-D array of labels; NumPy (mapped or not) or a CPU tensor."""

Source = str | os.PathLike[str] | np.ndarray | Tensor
"""A path, or an array in memory; functions also take other libraries' arrays, by DLPack."""

# Rows are read in pieces of about this many bytes: well inside memory, well above a seek.
_CHUNK_BYTES = 1 << 25


def load_embeddings(source: Source, key: str | None = None, *, check_finite: bool = True) -> Array:
    """Embeddings [n, d] from a file or an array.

    Files by their suffix: .npy (memory-mapped), .npz, .safetensors (memory-mapped),
    .parquet (a list column; needs `pip install csrkern[parquet]`), .pt or .pth (a tensor or
    a dict of tensors, read weights-only). float16, bfloat16, float32 and float64 stay as
    they are stored; `rows` converts what it reads.

    Args:
        source: a path, a NumPy array or a tensor.
        key: the array's name inside the file; not needed where only one would do.
        check_finite: read everything once and refuse NaN and infinity. `train` looks for
            itself, so it need not be done twice.

    Raises:
        FileNotFoundError: if there is no such file.
        TypeError, ValueError: if it holds no unambiguous, non-empty, finite 2-D
            floating-point array; the message says what it does hold.
        ImportError: if a .parquet file is given without pyarrow.
    """
    name, array = _read(
        "embeddings", source, key, lambda shape, kind: len(shape) == 2 and kind == "float"
    )
    if array.ndim != 2:
        raise ValueError(f"{name}: expected embeddings of shape [n, d], got {list(array.shape)}")
    if _kind(array) != "float":
        raise TypeError(f"{name}: expected floating-point embeddings, got {array.dtype}")
    if 0 in array.shape:
        raise ValueError(f"{name}: expected at least one row and one column, got {_shape(array)}")
    if check_finite:
        for start, chunk in chunks(array):
            check_rows_finite(chunk, start, name)
    return array


def load_labels(source: Source, key: str | None = None, *, n: int | None = None) -> Tensor:
    """Labels [n] as int64, from a file or an array as `load_embeddings` takes them.

    Integers stay as they are; strings are numbered in sorted order.

    Args:
        source: a path, a NumPy array or a tensor.
        key: the array's name inside the file; not needed where only one would do.
        n: the number of embeddings that the labels are for.

    Raises:
        FileNotFoundError, TypeError, ValueError, ImportError: as `load_embeddings`, or if
            there are not n labels.
    """
    return number_labels(read_labels(source, key, n=n))[0]


def read_labels(source: Source, key: str | None = None, *, n: int | None = None) -> np.ndarray:
    """Labels [n] as they are stored, integers or strings; arguments as for `load_labels`."""
    name, array = _read(
        "labels", source, key, lambda shape, kind: len(shape) == 1 and kind in ("int", "str")
    )
    if array.ndim != 1:
        raise ValueError(f"{name}: expected labels of shape [n], got {list(array.shape)}")
    if _kind(array) not in ("int", "str"):
        raise TypeError(f"{name}: expected integer or string labels, got {array.dtype}")
    if n is not None and len(array) != n:
        raise ValueError(f"{name}: expected {n} labels, one for each embedding, got {len(array)}")
    return array.numpy() if isinstance(array, Tensor) else array


def read_integers(source: Source, key: str | None = None) -> np.ndarray:
    """A 2-D array of integers, such as pairs or relevance judgements, from a file or an array.

    Raises: as `load_embeddings`.
    """
    name, array = _read(
        "integers", source, key, lambda shape, kind: len(shape) == 2 and kind == "int"
    )
    if array.ndim != 2 or _kind(array) != "int":
        raise ValueError(f"{name}: expected integers in rows, got {_shape(array)} {array.dtype}")
    return array.numpy() if isinstance(array, Tensor) else np.asarray(array)


def number_labels(*parts: np.ndarray) -> list[Tensor]:
    """int64 labels of arrays that share their classes, such as those of train and test rows.

    Integers stay as they are; strings are numbered in sorted order over all parts.

    Raises:
        ValueError: if some parts hold strings and others integers.
    """
    kinds = sorted({_kind(part) for part in parts})
    if len(kinds) > 1:
        raise ValueError(
            f"labels: expected only integers or only strings, got {' and '.join(kinds)}"
        )
    if kinds == ["str"]:
        _, numbers = np.unique(np.concatenate(parts), return_inverse=True)
        parts = tuple(np.split(numbers, np.cumsum([len(part) for part in parts])[:-1]))
    return [torch.from_numpy(np.array(part, np.int64)) for part in parts]


def rows(array: Array, index: Tensor | slice) -> Tensor:
    """The rows [m, d] of `array` at `index`, as float32 in memory of their own."""
    if isinstance(array, Tensor):
        return array[index].to(torch.float32, copy=True)
    picked = array[index.numpy() if isinstance(index, Tensor) else index]
    # A fresh tensor is aligned to 64 bytes, which NumPy memory is not; matrix products may
    # round differently by alignment, and runs must repeat bit for bit.
    out = torch.empty(picked.shape, dtype=torch.float32)
    return out.copy_(torch.from_numpy(np.array(picked)))


def chunks(array: Array) -> Iterator[tuple[int, Tensor]]:
    """(first row, float32 rows [m, d]) over the whole array, piece by piece."""
    size = max(1, _CHUNK_BYTES // (4 * array.shape[1]))
    for start in range(0, len(array), size):
        yield start, rows(array, slice(start, start + size))


def _read(
    name: str, source: Source, key: str | None, wanted: Callable[[tuple[int, ...], str], bool]
) -> tuple[str, Array]:
    """(name for messages, array) of a path or an array; `wanted` picks one of several."""
    if isinstance(source, Tensor):
        return name, source.detach().cpu()
    if isinstance(source, np.ndarray):
        return name, source.astype(source.dtype.newbyteorder("="), copy=False)
    if hasattr(source, "__dlpack__"):
        return name, torch.from_dlpack(source).cpu()
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            f"{name}: expected a path, a NumPy array or a tensor, got {type(source).__name__}"
        )
    path = Path(source)
    reader = _READERS.get(path.suffix.lower())
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    if reader is None:
        raise ValueError(f"{path}: expected a file that ends in {', '.join(_READERS)}")
    return reader(path, key, wanted)


def _read_npy(path: Path, key: str | None, _wanted: Any) -> tuple[str, Array]:
    _no_key(path, key)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a readable .npy file: {_line(error)}") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} is an .npz archive under another name; rename it to .npz")
    return str(path), array


def _read_npz(path: Path, key: str | None, wanted: Any) -> tuple[str, Array]:
    import zipfile

    try:
        with np.load(path, allow_pickle=False) as archive:
            if isinstance(archive, np.ndarray):
                raise ValueError("it is a single array; rename it to .npy")
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a readable .npz file: {_line(error)}") from error
    return _choose(path, arrays, key, wanted)


def _read_safetensors(path: Path, key: str | None, wanted: Any) -> tuple[str, Array]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return _choose(path, load_file(path), key, wanted)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable .safetensors file: {_line(error)}") from error


def _read_torch(path: Path, key: str | None, wanted: Any) -> tuple[str, Array]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} is not a readable weights-only PyTorch file: {_line(error)}; "
            "save a plain tensor with torch.save(tensor, path)"
        ) from error
    if isinstance(content, Tensor):
        _no_key(path, key)
        return str(path), content
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a tensor or a dict, got {type(content).__name__}")
    arrays = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    return _choose(path, arrays, key, wanted)


def _read_parquet(path: Path, key: str | None, wanted: Any) -> tuple[str, Array]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(
            f"reading {path} needs pyarrow: pip install 'csrkern[parquet]'"
        ) from error
    try:
        file = pq.ParquetFile(path)
        columns = {field.name: _ParquetColumn(field.type) for field in file.schema_arrow}
        name, _ = _choose(path, columns, key, wanted)
        column_name = name.removeprefix(f"{path}[").removesuffix("]")
        column = file.read([column_name]).column(0).combine_chunks()
    except pa.ArrowException as error:
        raise ValueError(f"{path} is not a readable .parquet file: {_line(error)}") from error
    if column.null_count:
        raise ValueError(f"{name}: {column.null_count} rows are empty (null); remove them first")
    if not columns[column_name].is_list:
        return name, column.to_numpy(zero_copy_only=False)
    lengths = np.unique(column.value_lengths().to_numpy(zero_copy_only=False))
    if len(lengths) > 1:
        raise ValueError(f"{name}: expected lists of one length, got {lengths[0]} to {lengths[-1]}")
    flat = column.flatten()
    if flat.null_count:
        raise ValueError(f"{name}: {flat.null_count} values are empty (null); remove such rows")
    return name, flat.to_numpy(zero_copy_only=False).reshape(len(column), -1)


class _ParquetColumn:
    """A column's dimensions and kind, for `_choose`, before anything is read."""

    def __init__(self, kind: Any) -> None:
        import pyarrow as pa

        self.is_list = (
            pa.types.is_list(kind)
            or pa.types.is_large_list(kind)
            or pa.types.is_fixed_size_list(kind)
        )
        element = kind.value_type if self.is_list else kind
        self.shape = ("rows", "list") if self.is_list else ("rows",)
        self.dtype = element
        text = pa.types.is_string(element) or pa.types.is_large_string(element)
        self.kind = (
            "float"
            if pa.types.is_floating(element)
            else "int"
            if pa.types.is_integer(element)
            else "str"
            if text
            else "other"
        )


_READERS: dict[str, Callable[[Path, str | None, Any], tuple[str, Array]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".parquet": _read_parquet,
    ".pt": _read_torch,
    ".pth": _read_torch,
}


def _choose(path: Path, arrays: dict[str, Any], key: str | None, wanted: Any) -> tuple[str, Any]:
    """The array called `key`, or the only wanted one."""
    held = ", ".join(f"{name} {_shape(a)} {a.dtype}" for name, a in arrays.items()) or "nothing"
    if key is not None:
        if key not in arrays:
            raise ValueError(f"{path} has no array {key!r}; it holds: {held}")
        return f"{path}[{key}]", arrays[key]
    fitting = [name for name, a in arrays.items() if wanted(tuple(a.shape), _kind(a))]
    if len(fitting) != 1:
        what = "several arrays that would do" if fitting else "no array that would do"
        raise ValueError(f"{path} holds {what}; name one as key. It holds: {held}")
    return f"{path}[{fitting[0]}]", arrays[fitting[0]]


def _kind(array: Any) -> str:
    """ "float", "int", "str" or "other"."""
    if isinstance(array, _ParquetColumn):
        return array.kind
    if isinstance(array, Tensor):
        if array.dtype.is_floating_point:
            return "float"
        return "other" if array.dtype in (torch.bool,) or array.dtype.is_complex else "int"
    if array.dtype.kind == "O" and all(isinstance(value, str) for value in array.flat):
        return "str"
    return {"f": "float", "i": "int", "u": "int", "U": "str"}.get(array.dtype.kind, "other")


def _shape(array: Any) -> str:
    return "[" + ", ".join(map(str, array.shape)) + "]"


def _no_key(path: Path, key: str | None) -> None:
    if key is not None:
        raise ValueError(f"{path} holds a single array; leave out the key {key!r}")


def _line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
