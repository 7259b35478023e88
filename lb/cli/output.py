"""How `lb` prints: data on stdout, everything else on stderr, colour only where it is welcome."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from lb.errors import AccordError, OperatorError, UsageError

F = TypeVar("F", bound=Callable[..., Any])

RICH_COLUMN_EXTRA = 3  # What rich's box adds to each column.

COLOURS = {
    "healthy": "green",
    "active": "green",
    "up": "green",
    "ready": "green",
    "unhealthy": "red",
    "down": "red",
    "disabled": "red",
    "draining": "yellow",
    "checking": "yellow",
    "ok": "green",
    "forming": "yellow",
    "no-quorum": "red",
    "removed": "red",
    "damaged": "red",
    "stopped-apply": "red",
}


def output_option(command: F) -> F:
    """Give a command `-o json`."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["text", "json"]),
        default="text",
        help="How to print what was found.",
    )(command)


def yes_option(command: F) -> F:
    """Give a command `--yes`, for those that ask before they act."""
    return click.option("-y", "--yes", is_flag=True, help="Do not ask first.")(command)


def confirm(what: str, yes: bool) -> None:
    """Say what will be done, and go on only if the person says so."""
    if yes:
        return
    say(what)
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to be asked", "add --yes if that is what you want")
    if not click.confirm("Go on?", err=True):
        raise OperatorError("nothing was done")


def print_json(plain: Any) -> None:
    """Print one JSON value."""
    click.echo(json.dumps(plain, indent=2, ensure_ascii=False))


def say(line: str) -> None:
    """Tell the person something that is no data."""
    click.echo(line, err=True)


def say_error(error: AccordError) -> None:
    """Tell what went wrong, and the cure if there is one."""
    lines = error.message.rstrip("\n")
    # Errors in a file name their place themselves; anything else is said to come from us.
    say(lines if "\n" in lines else f"lb: {lines}")
    if error.hint:
        say(f"    {error.hint}")


def colour(word: str, text: str | None = None) -> str:
    """Colour a state's word on a terminal, unless NO_COLOR says otherwise."""
    shown = word if text is None else text
    if word not in COLOURS or not may_colour():
        return shown
    return click.style(shown, fg=COLOURS[word])


def may_colour() -> bool:
    """Whether stdout is a terminal whose owner did not decline colour."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows aligned; on a terminal drawn by rich, where that is installed."""
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    drawn = sum(widths) + RICH_COLUMN_EXTRA * len(widths)
    # Where there is no room rich would cut addresses; a wrapped line still holds them whole.
    fits = drawn <= shutil.get_terminal_size().columns
    if sys.stdout.isatty() and fits and _draw_with_rich(headers, rows):
        return
    for row in (headers, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        cells = [colour(cell.strip(), cell) for cell in cells]
        click.echo("  ".join(cells).rstrip())


def _draw_with_rich(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    try:
        from rich import box  # noqa: PLC0415 - optional, and 67 ms
        from rich.console import Console  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415
    except ImportError:
        return False
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for header in headers:
        table.add_column(header)
    for row in rows:
        table.add_row(*(Text(cell, style=COLOURS.get(cell, "")) for cell in row))
    Console().print(table)
    return True


def span(seconds: float) -> str:
    """Write a time span for a person: `4d 3h`, `12m 5s`, `8s`."""
    rest = int(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])


def milliseconds(value: float | None) -> str:
    """Write a latency; a dash where nothing was measured."""
    if value is None:
        return "-"
    return f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms"
