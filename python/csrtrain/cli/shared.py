"""Shared by the commands: options, named arrays in files, outputs that are never half written."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from csrkern.storage import check_file, check_folder, is_stream, resolve
from csrtrain.cli.lines import JSON_LINES, emit
from csrtrain.lines import printable
from csrtrain.progress import say, stream_beside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from csrkern import SparseCodes

ARRAY = "FILE[:ARRAY]"
EMBEDDING_FILES = (".npy", ".npz", ".parquet", ".pt", ".pth")  # and .safetensors, as codes are
SUFFIXES = (*EMBEDDING_FILES, ".safetensors", ".txt", ".csv", ".html", *JSON_LINES)
MOST_THREADS = 1024

Embeddings = Annotated[
    str,
    typer.Argument(
        metavar=ARRAY,
        help="Embeddings: .npy, .npz, .safetensors, .parquet or .pt; "
        ":ARRAY names one of several arrays in a file.",
    ),
]
MODEL = "MODEL|ORG/NAME"
INDEX = "INDEX|ORG/NAME"
Adapter = Annotated[
    str,
    typer.Argument(metavar=MODEL, help="Folder written by train, or a repository of the Hub."),
]
IndexFolder = Annotated[
    str,
    typer.Argument(metavar=INDEX, help="Folder written by index, or a repository of the Hub."),
]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="PATH", help="Where to write.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]
AnyModel = Annotated[
    bool,
    typer.Option(
        "--any-model", help="Take codes of another model, too, though scores mean nothing then."
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, max=MOST_THREADS, metavar="N", help="CPU threads (default: every core)."),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print JSON, one object a line, instead of text.")
]
TextModelName = Annotated[
    str | None,
    typer.Option(
        "--text-model",
        metavar="NAME|FOLDER",
        help="The sentence-transformers model that reads texts.",
    ),
]


Metric = Annotated[Literal["ip", "cosine"], typer.Option(help="What search ranks by.")]
IndexDtype = Annotated[
    Literal["float16", "uint8", "uint4", "float32"],
    typer.Option(
        "--dtype",
        help="Precision of the stored values; uint8 is the smallest for scores, uint4 for "
        "lists that only choose what fine codes score.",
    ),
]


def whole(text: str, **options: Any) -> Any:
    """Return an option that takes a positive integer."""
    return typer.Option(min=1, help=text, **options)


def array(text: str) -> Any:
    """Return an option that names an array in a file."""
    return typer.Option(metavar=ARRAY, help=text)


StoredAs = Annotated[
    Literal["float32", "float16"],
    typer.Option("--dtype", help="Precision of the values in a file of codes; float32 is exact."),
]


def numbers(text: str, option: str) -> tuple[int, ...]:
    """Parse positive integers separated by commas."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"{option}: expected positive numbers like 4,8,16, got {text!r}")
    return tuple(int(part) for part in parts)


def check_free(path: Path, force: bool, *suffixes: str, folder: bool = False) -> None:
    """Raise, before any work, if an output exists, has the wrong suffix or cannot be written.

    Args:
        path: the output; a device, a pipe and the standard output are always free.
        force: overwrite what is there.
        suffixes: of files of this kind; other suffixes that the commands know are refused.
        folder: the output is a folder.
    """
    if str(path) == "-":
        raise ValueError("--output: expected a path, got -; /dev/stdout is the standard output")
    try:
        str(path).encode()
    except UnicodeEncodeError as error:  # bytes of an argument that Python keeps as surrogates
        raise ValueError(
            f"--output: expected a name in UTF-8, as safetensors does, got {path}"
        ) from error
    if not folder and is_stream(path):
        return check_file(path)
    if suffixes and (suffix := path.suffix.lower()) in SUFFIXES and suffix not in suffixes:
        raise ValueError(
            f"{path}: expected a name that ends in {' or '.join(suffixes)}, which is what will be "
            f"written, such as {quoted(path.with_suffix(suffixes[0]))}"
        )
    if os.path.exists(path) and not force and folder == os.path.isdir(path):
        raise ValueError(f"{path} exists; choose another --output or add --force")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path.parent} is not a folder; create it first")
    (check_folder if folder else check_file)(path)


@contextlib.contextmanager
def folder_for(path: Path) -> Iterator[Path]:
    """Yield where to write the files of the folder `path`, so that it is never half written.

    A new folder is made next to it and renamed; an error or Ctrl-C leaves nothing of it. An
    existing folder is written to file by file, and Ctrl-C waits until that is done.
    """
    target = resolve(path)
    if target.is_dir():
        with _uninterrupted():
            yield target
        return
    temporary = Path(tempfile.mkdtemp(prefix=".csrkern-", dir=target.parent))
    try:
        folder = temporary / target.name
        folder.mkdir()
        yield folder
        os.replace(folder, target)
    except OSError as error:
        if not str(error.filename).startswith(str(temporary)):
            raise
        reported = path / os.path.relpath(error.filename, folder)
        raise OSError(error.errno, error.strerror, os.path.normpath(reported)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C within the block to its end."""
    signals: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _frame: signals.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if signals:
        raise KeyboardInterrupt


def adapter(text: str) -> Any:
    """Return an option that names a model."""
    return typer.Option(metavar=MODEL, help=text)


def load_codes(path: Path, instead: str) -> SparseCodes:
    """Return the codes in a file; an error says what to do `instead` with embeddings."""
    from csrkern import SparseCodes
    from csrkern.embeddings.files import split_name

    file, _ = split_name(str(path))
    if file.suffix.lower() in EMBEDDING_FILES and file.exists():
        raise ValueError(f"{path}: expected a file of codes, got a {file.suffix} file; {instead}")
    try:
        return SparseCodes.load(path)
    except ValueError as error:
        raise ValueError(f"{error}; {instead}") from error


def use_threads(threads: int | None) -> None:
    """Limit the threads of PyTorch's and our operators, if a number is given."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def report(record: dict[str, Any], message: str, as_json: bool, output: Path | None = None) -> None:
    """Print the record if `as_json`, else the message, on the stream that `say` chooses."""
    if as_json:
        emit(record, stream_beside(output))
    else:
        say(message, output)


def quoted(*words: str | Path) -> str:
    """Quote words of a command line for a shell; file names may hold any bytes."""
    return " ".join(map(_quoted, map(str, words)))


def _quoted(word: str) -> str:
    if word.startswith("-"):
        word = f"./{word}"
    if printable(word) == word:
        return shlex.quote(word)
    escaped = (
        chr(byte) if 32 <= byte < 127 and byte not in b"\\'" else f"\\x{byte:02x}"
        for byte in os.fsencode(word)
    )
    return f"$'{''.join(escaped)}'"
