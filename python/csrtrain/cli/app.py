"""The `csrkern` command: its subcommands, and how errors end.

Bad input ends in one line on standard error and exit code 2, never in a traceback;
CSRKERN_DEBUG=1 shows it. Commands import what they need when they run, so that
`csrkern --help` stays fast.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Sequence

import typer

from csrtrain.cli import (
    demo,
    doctor,
    embed,
    encode,
    eval,
    index,
    ray,
    search,
    serve,
    train,
    tune,
    warmup,
)
from csrtrain.lines import printable

INTERRUPTED = 130

app = typer.Typer(
    help="Sparse codes for embeddings: train an adapter, encode, index and search.",
    epilog="New here? Run: csrkern demo",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    demo.demo,
    train.train,
    embed.embed,
    encode.encode,
    index.index,
    search.search,
    serve.serve,
    eval.evaluate,
    tune.tune,
    doctor.doctor,
    warmup.warmup,
):
    app.command("eval" if command is eval.evaluate else None)(command)
app.add_typer(ray.app, name="ray")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0, 2 for bad input, 1 for a bug, 130 for Ctrl-C."""
    sys.exit(_run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    if sys.stderr is None:  # closed: drop what is printed there
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    if sys.stdout is None:
        return _fail("standard output is closed", 2)
    if hasattr(sys.stdout, "reconfigure"):  # escape what the encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = app(args=arguments, prog_name="csrkern", standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        _drop_output()
        if isinstance(error, BrokenPipeError) and error.filename is None:
            return 1  # the reader (`| head`) has gone: exit silently with 1, as typer does
        if os.environ.get("CSRKERN_DEBUG", "0") not in ("", "0"):
            raise
        return _fail(*_explain(error))
    if code == INTERRUPTED:  # typer may have turned Ctrl-C into its exit code
        return _fail("interrupted", INTERRUPTED)
    return code if isinstance(code, int) else 0


def _drop_output() -> None:
    """Discard what standard output does not take; else Python reports an error at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explain(error: Exception) -> tuple[str, int]:
    """Return one line about an error, and the exit code."""
    if hasattr(error, "format_message"):  # typer's own errors, of any click version
        command = getattr(getattr(error, "ctx", None), "command_path", "csrkern")
        message = error.format_message()
        return (f"{message} (see {command} --help)" if message else ""), 2
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror, 2
    message = str(error).strip()
    # PyTorch's allocators raise a RuntimeError or a subclass.
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and re.search("out of memory|can't allocate", message)
    ):
        return f"not enough memory. {message}", 2
    if isinstance(error, (ValueError, TypeError, OSError, ImportError)):
        return message, 2
    name = type(error).__name__
    return f"{name}: {message} (a bug: CSRKERN_DEBUG=1 shows where; please report it)", 1


def _fail(message: str, code: int) -> int:
    if message:
        line = printable(re.sub(r"\s*\n\s*", " ", message))
        with contextlib.suppress(OSError):
            print(f"csrkern: {line}", file=sys.stderr)
    return code
