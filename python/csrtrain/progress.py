"""Show work under way: progress bars, and scalars for TensorBoard."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from csrkern.storage import is_standard_output
from csrtrain.lines import printable

if TYPE_CHECKING:
    from rich.console import Console


Show = Callable[[int, Mapping[str, float], float], None]
Log = Callable[[int, Mapping[str, float]], None]

SHOWN_AFTER = 1.0  # seconds of work before there is a bar: most commands are done by then


@contextlib.contextmanager
def working(
    description: str,
    total: int | None = None,
    *,
    unit: str | None = None,
    prints: bool = False,
    wanted: bool = True,
) -> Iterator[Callable[..., None]]:
    """Yield advance(n, total=None): a bar or, without a total, a pulse while the block takes long.

    With a `unit`, the bar shows how many of these are done and how long the rest takes.

    The bar is on standard error, and only if that is a terminal and a bar is `wanted`; not if
    the block `prints` to a terminal.
    """
    from rich import progress as bars
    from rich.console import Console

    console = Console(stderr=True)
    if not (wanted and console.is_terminal) or (prints and sys.stdout.isatty()):
        yield lambda n, total=None: None
        return
    counted = bars.TextColumn("{task.completed:,.0f} of {task.total:,.0f} " + str(unit))
    last = (bars.TimeElapsedColumn(),) if unit is None else (counted, bars.TimeRemainingColumn())
    columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), *last)
    # Standard output must not be redirected: it may be a pipe.
    bar = bars.Progress(*columns, console=console, transient=True, redirect_stdout=False)
    task = bar.add_task(description, total=1 if unit and total is None else total)
    start = threading.Timer(SHOWN_AFTER, bar.start)
    start.daemon = True
    start.start()
    try:
        yield lambda n, total=None: bar.update(task, advance=n, total=total)
    finally:
        start.cancel()
        start.join()
        bar.stop()


@contextlib.contextmanager
def progress_bar(wanted: bool, start: int, steps: int) -> Iterator[Show]:
    """Yield show(steps done, losses, rows per second).

    The bar is on standard error, and only if that is a terminal or a notebook.
    """
    from rich import progress as bars
    from rich.console import Console

    console = Console(stderr=True)
    if not (wanted and (console.is_terminal or console.is_jupyter)):
        yield lambda done, losses, rate: None
        return
    columns = (
        bars.TextColumn("training"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[state]}"),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=console, redirect_stdout=sys.stdout.isatty()) as bar:
        task = bar.add_task("train", total=steps, completed=start, state="")

        def show(done: int, losses: Mapping[str, float], rate: float) -> None:
            state = f"loss {losses['loss']:.4f}  dead {losses['dead']:.1%}  {rate:,.0f} rows/s"
            bar.update(task, completed=done, state=state)

        yield show


@contextlib.contextmanager
def scalar_log(folder: str | os.PathLike[str] | None, start: int) -> Iterator[Log]:
    """Yield log(steps done, scalars by name), which writes TensorBoard event files.

    Scalars of steps after `start` that an interrupted run left there are hidden.

    Raises:
        ImportError: if the package tensorboard is missing.
    """
    if folder is None:
        yield lambda done, scalars: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "log_dir needs the package tensorboard: pip install 'csrkern[tensorboard]'"
        ) from error
    with SummaryWriter(os.fspath(folder), purge_step=start + 1) as writer:

        def log(done: int, scalars: Mapping[str, float]) -> None:
            for name, value in scalars.items():
                writer.add_scalar(name, value, done)

        yield log


def console(*, stderr: bool = False) -> Console:
    """Return a console for tables and messages, wide enough for tables if not a terminal."""
    from rich.console import Console

    standard = Console(stderr=stderr)
    return standard if standard.is_terminal else Console(width=110, stderr=stderr)


def say(message: str, *outputs: Path | None) -> None:
    """Print a message as it is, on a stream that none of the `outputs` goes to."""
    print(printable(message, keep="\n"), file=stream_beside(*outputs), flush=True)


def stream_beside(*outputs: Path | None) -> TextIO:
    """Return standard output or, if one of the `outputs` goes there, standard error."""
    uses_stdout = any(output is not None and is_standard_output(output) for output in outputs)
    return sys.stderr if uses_stdout else sys.stdout
