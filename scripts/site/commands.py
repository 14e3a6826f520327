"""The page of commands, from the command line's own help."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer

from csrtrain.cli.app import app


def commands() -> str:
    """Every command with its usage, its help and a table of its options."""
    return "\n\n".join(described(name, command) for name, command in all_commands())


def all_commands() -> Iterator[tuple[str, Any]]:
    """(full name, command) of every command, those of groups included."""

    def below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        for word, one in getattr(command, "commands", {}).items():
            if hasattr(one, "commands"):
                yield from below(f"{name} {word}", one)
            else:
                yield f"{name} {word}", one

    yield from below("csrkern", typer.main.get_command(app))


def described(name: str, command: Any) -> str:
    """One command as Markdown."""
    context = typer.Context(command, info_name=name)
    usage = command.get_usage(context).removeprefix("Usage: ")
    text, *rest = (
        (command.help or "")
        .replace("[bold]Example[/bold]", "[bold]Examples[/bold]")
        .split("[bold]Examples[/bold]")
    )
    parts = [f"## {name}", f"```text\n{usage}\n```", plain(text)]
    if rest:
        lines = [line.strip() for line in rest[0].splitlines() if line.strip()]
        parts.append("```text\n" + "\n".join(lines) + "\n```")
    table = [row(context, parameter) for parameter in command.get_params(context)]
    parts.append("\n".join(["| Argument | Meaning |", "|---|---|", *filter(None, table)]))
    return "\n\n".join(part for part in parts if part)


def row(context: Any, parameter: Any) -> str:
    """One argument or option as a row of a table."""
    record = parameter.get_help_record(context)
    if record is None:
        return ""
    names, text = (plain(part).replace("|", "\\|") for part in record)
    return f"| `{names}` | {text} |"


def plain(text: str) -> str:
    """Text without the marks that color it in a terminal."""
    text = re.sub(r"\[/?(bold|dim|green|red|yellow|cyan|italic)\]", "", text).replace("\\[", "[")
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n")).strip()
