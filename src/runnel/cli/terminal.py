"""What commands share: consoles, errors as one message, and the event loop."""

import asyncio
import errno
import functools
import io
import json
import os
import sys
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Sequence
from contextlib import aclosing
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from runnel._worker import loop_factory
from runnel.admin.findings import number
from runnel.errors import RedisUnavailable, RunnelError

__all__ = [
    "AsJSON",
    "Execute",
    "Partitions",
    "Watch",
    "loop_name",
    "notes",
    "number",
    "output",
    "repeatedly",
    "reporting",
    "rounded",
    "run",
    "show_json",
    "show_table",
    "span",
    "tolerate",
    "watching",
]

P = ParamSpec("P")
T = TypeVar("T")

output = Console(highlight=False, soft_wrap=True)
"""For data."""

notes = Console(stderr=True, highlight=False, soft_wrap=True)
"""For everything else."""


def reporting(command: Callable[P, T]) -> Callable[P, T]:
    """End a command that fails with a message and the error's exit status, without a traceback."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except RunnelError as error:
            notes.print("Error:", style="bold red", end=" ")
            notes.print(str(error), markup=False)
            raise typer.Exit(error.exit_status) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:  # `| head`
            sys.stdout = None
            raise typer.Exit(1) from None
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            sys.stdout = None
            notes.print("Error: The output cannot be written, since the disk is full.", markup=False)
            raise typer.Exit(1) from None

    return wrapped


def tolerate() -> None:
    """Run with whatever standard streams there are.

    A character that the encoding of a stream does not have is written as its escape. A closed descriptor is opened on
    nothing: otherwise the next socket gets its number, and libuv ends the process when it closes that.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def loop_name() -> str:
    """The event loop that :func:`run` uses."""
    return "asyncio" if loop_factory() is None else "uvloop"


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a new event loop."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(coroutine)


AsJSON = Annotated[bool, typer.Option("--json", help="As JSON.")]
Execute = Annotated[bool, typer.Option("--execute", help="Do it, instead of only showing it.")]
Partitions = Annotated[list[int] | None, typer.Option("--partition", help="Only this one; may be repeated.")]
Watch = Annotated[bool, typer.Option("-w", "--watch", help="Look again every two seconds, until Ctrl-C.")]

INTERVAL = 2.0
"""Seconds between two looks of a person who watches."""

ENDLESS = 10_000
"""Columns of a table at most."""


def show_table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[str] = ()) -> None:
    """Rows below headings, as wide as they are: a terminal wraps what is too wide, a program gets one row per line.

    Arguments:
        headings: of the columns.
        rows: a cell per column.
        right: the columns that hold numbers.
    """
    table = Table(box=None, pad_edge=False, header_style="bold" if output.is_terminal else "")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))
    wide = Console(width=ENDLESS, force_terminal=output.is_terminal, no_color=output.no_color, highlight=False)
    with wide.capture() as captured:
        wide.print(table)
    typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def show_json(data: Any, *, lines: bool = False) -> None:
    """Data for programs; ``lines`` puts it on one line, where more will follow."""
    typer.echo(json.dumps(data, indent=None if lines else 2))


def rounded(data: Any) -> Any:
    """Figures of ours without digits that nobody has measured. Not for records, whose numbers are their sender's."""
    match data:
        case float():
            return round(data, 3)
        case dict():
            return {name: rounded(value) for name, value in data.items()}
        case list() | tuple():
            return [rounded(value) for value in data]
        case _:
            return data


def span(seconds: float) -> str:
    """A time span for people: ``0.8 s``, ``42 s``, ``5 min``, ``3 h 20 min``, ``2 d 4 h``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


async def repeatedly(look: Callable[[], Coroutine[Any, Any, T]], interval: float) -> AsyncGenerator[T, None]:
    """Look every ``interval`` seconds, for ever."""
    while True:
        yield await look()
        await asyncio.sleep(interval)


async def watching(look: Callable[[], AsyncGenerator[T, None]], show: Callable[[T], None]) -> None:
    """Show one look after the other, for ever; on a terminal in place of the one before. An outage is waited for."""
    seen = False
    while True:
        try:
            async with aclosing(look()) as looks:
                async for found in looks:
                    if output.is_terminal:
                        output.clear()
                    seen = True
                    show(found)
        except RedisUnavailable as error:
            if not seen:
                raise
            notes.print(error.what, style="red", markup=False)
            await asyncio.sleep(INTERVAL)
