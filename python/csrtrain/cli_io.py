"""What the commands share: options, named arrays in files, outputs that are never half written."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from csrtrain.cli_lines import emit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from csrkern import SparseCodes

ARRAY = "FILE[:ARRAY]"
EMBEDDING_FILES = (".npy", ".npz", ".parquet", ".pt", ".pth")  # and .safetensors, as codes are

Embeddings = Annotated[
    str,
    typer.Argument(
        metavar=ARRAY,
        help="Embeddings: .npy, .npz, .safetensors, .parquet or .pt; "
        ":ARRAY names one of several arrays in a file.",
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="PATH", help="Where to write.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]
Threads = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="CPU threads (default: every core).")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, on a line, in place of text.")]
TextModelName = Annotated[
    str | None,
    typer.Option(
        "--text-model",
        metavar="NAME|FOLDER",
        help="The sentence-transformers model that reads texts.",
    ),
]


class Values(str, Enum):
    """How the values of codes are stored."""

    FLOAT16 = "float16"
    FLOAT32 = "float32"


def split_name(name: str) -> tuple[Path, str | None]:
    """(file, array) of "file:array"; the array is None if only a file is named."""
    if ":" in name and not Path(name).exists():
        path, _, key = name.rpartition(":")
        return Path(path), key
    return Path(name), None


def numbers(text: str, option: str) -> tuple[int, ...]:
    """Positive integers separated by commas."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"{option}: expected positive numbers like 4,8,16, got {text!r}")
    return tuple(int(part) for part in parts)


def check_free(path: Path, force: bool) -> Path:
    """`path`, in a folder that exists, and free unless `force` allows overwriting."""
    if path.exists() and not force:
        raise ValueError(f"{path} exists; choose another --output or add --force")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path.parent} is not a folder; create it first")
    return path


@contextlib.contextmanager
def folder_for(path: Path) -> Iterator[Path]:
    """Where to write the files of the folder `path`, so that it is never half written.

    A new one is made beside it and renamed; an error or Ctrl-C leaves nothing of it. One that is
    there is written to, file by file, and Ctrl-C waits until that is done.
    """
    if path.is_dir():
        with _uninterrupted():
            yield path
        return
    beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.absolute().parent))
    try:
        folder = beside / path.name
        folder.mkdir()
        yield folder
        os.replace(folder, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C within the block takes effect at its end."""
    asked: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: asked.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt


def load_codes(path: Path, instead: str) -> SparseCodes:
    """The codes in a file; an error says what to do `instead` with embeddings."""
    from csrkern import SparseCodes

    file, _ = split_name(str(path))
    if file.suffix.lower() in EMBEDDING_FILES and file.exists():
        raise ValueError(f"{path}: expected a file of codes, got a {file.suffix} file; {instead}")
    try:
        return SparseCodes.load(path)
    except ValueError as error:
        raise ValueError(f"{error}; {instead}") from error


def use_threads(threads: int | None) -> None:
    """Limits the threads of PyTorch's and our operators, if a number is given."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def read_lines(path: Path, expected: int) -> list[str]:
    """The lines of a text file, which must be `expected` many."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a UTF-8 text file: {error.reason}") from error
    if len(lines) != expected:
        raise ValueError(f"{path}: expected {expected} lines, one for each code, got {len(lines)}")
    return lines


def console(*, stderr: bool = False) -> Console:
    """Where tables and messages go; wide enough for tables when not a terminal."""
    from rich.console import Console

    plain = Console(stderr=stderr)
    return plain if plain.is_terminal else Console(width=110, stderr=stderr)


def say(message: str) -> None:
    """Prints a message as it is, however narrow the terminal."""
    console().print(message, soft_wrap=True, highlight=False)


def report(record: dict[str, Any], message: str, as_json: bool) -> None:
    """What a command did: the record if JSON is asked for, else the message."""
    if as_json:
        emit(record)
    else:
        say(message)
