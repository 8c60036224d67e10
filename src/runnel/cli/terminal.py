"""What commands share: consoles, errors as one message, and the event loop."""

import asyncio
import functools
import sys
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import typer
from rich.console import Console

from runnel.errors import RunnelError

__all__ = ["loop_name", "notes", "output", "reporting", "run"]

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

    return wrapped


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def loop_name() -> str:
    """The event loop that :func:`run` uses."""
    return "asyncio" if _loop_factory() is None else "uvloop"


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a new event loop."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(coroutine)
