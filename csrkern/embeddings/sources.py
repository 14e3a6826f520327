"""Arrays from files of every kind and from memory. Needs PyTorch."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csrkern.arguments import array_of
from csrkern.embeddings import files
from csrkern.embeddings.arrays import Held, held_array
from csrkern.embeddings.tables import ParquetTable, read_rows, table_columns

Array = np.ndarray | Tensor
"""An array of embeddings, labels or integers: NumPy's (mapped or not) or a CPU tensor."""


def read_source(argument: str, source: Any, check: files.Check) -> tuple[str, Array]:
    """Return (name for messages, array) of a path or an array.

    Args:
        argument: what the caller calls it.
        source: a path, "file:name" of an array in a file, or an array.
        check: what the array must be.

    Raises:
        FileNotFoundError: if there is no such file.
        TypeError, ValueError: if it holds no such array, or several; the message says what it
            does hold.
        ImportError: if a .parquet file is given without pyarrow.
    """
    if isinstance(source, (str, bytes, os.PathLike)):
        name, array = _read_file(os.fsdecode(source), check)
    else:
        name, array = argument, _array_of(argument, source)
    check(name, held_of(array))
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


def held_of(array: Array) -> Held:
    """Describe an array or a tensor."""
    if not isinstance(array, Tensor):
        return held_array(array)
    kind = "float" if array.dtype.is_floating_point else "int"
    if array.dtype == torch.bool or array.dtype.is_complex:
        kind = "other"
    return Held(tuple(array.shape), str(array.dtype), kind)


# ---- files ------------------------------------------------------------------------------


def _read_file(name: str, check: files.Check) -> tuple[str, Array]:
    path, key = files.split_name(name)
    if not os.path.exists(path):  # False also of a name that is too long
        raise FileNotFoundError(f"no file at {path}")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected a file of embeddings or labels")
    if not path.is_file():
        raise ValueError(f"{path} is a device or a pipe; expected a file, which can be read twice")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: expected a file that ends in {', '.join(_READERS)}")
    return reader(path, key, check)


def _read_npy(path: Path, key: str | None, _check: Any) -> tuple[str, Array]:
    _no_key(path, key)
    return str(path), files.open_npy(path)


def _read_npz(path: Path, key: str | None, check: files.Check) -> tuple[str, Array]:
    with open(path, "rb") as file:
        if file.read(6) == b"\x93NUMPY":
            raise files.damaged(str(path), ".npz", "it is a single array; rename it to .npy")
    with files.readable(str(path), ".npz"), zipfile.ZipFile(path) as archive:
        held = files.npz_headers(archive, str(path))
        name = files.choose(str(path), held, key, check)
        with archive.open(f"{name}.npy") as member:
            try:
                array = np.lib.format.read_array(member, allow_pickle=False)
            except ValueError as error:
                raise files.damaged(f"{path}[{name}]", ".npz", error) from error
    return f"{path}[{name}]", array


def _read_safetensors(path: Path, key: str | None, check: files.Check) -> tuple[str, Array]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return _choose(path, load_file(path), key, check)
    except SafetensorError as error:
        raise files.damaged(str(path), ".safetensors", error) from error


def _read_torch(path: Path, key: str | None, check: files.Check) -> tuple[str, Array]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # PyTorch's own words advise to read such a file all the same, code and all.
        pickled = isinstance(error, pickle.UnpicklingError)
        said = ValueError("it is damaged, or holds more than tensors") if pickled else error
        reason = files.damaged(str(path), "weights-only PyTorch", said)
        raise ValueError(f"{reason}; save a plain tensor with torch.save(tensor, path)") from error
    if isinstance(content, Tensor):
        _no_key(path, key)
        return str(path), _array_of(str(path), content)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a tensor or a dict, got {type(content).__name__}")
    arrays = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    name, array = _choose(path, arrays, key, check)
    return name, _array_of(name, array)


def _choose(
    path: Path, arrays: dict[str, Tensor], key: str | None, check: files.Check
) -> tuple[str, Tensor]:
    held = {name: held_of(array) for name, array in arrays.items()}
    name = files.choose(str(path), held, key, check)
    return f"{path}[{name}]", arrays[name]


def _read_parquet(path: Path, key: str | None, check: files.Check) -> tuple[str, Array]:
    with files.readable(str(path), ".parquet"):
        table = ParquetTable(path, str(path))
        columns = table_columns(str(path), table.schema, key, check)
        return columns.name, read_rows(table, columns, 0, table.rows)


_READERS: dict[str, Callable[[Path, str | None, files.Check], tuple[str, Array]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".parquet": _read_parquet,
    ".pt": _read_torch,
    ".pth": _read_torch,
}


def _no_key(path: Path, key: str | None) -> None:
    if key is not None:
        raise ValueError(f"{path} holds a single array; leave out :{key}")
