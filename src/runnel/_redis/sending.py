"""What ``send`` returns: a future that may be used like a coroutine."""

import asyncio
from collections.abc import Callable, Generator
from typing import Any

__all__ = ["Sending"]


class Sending(asyncio.Future[list[str]]):
    """A send that is under way; its result is the ids of the new entries.

    A future, so that ``asyncio.gather`` needs no task for each of many concurrent sends: 7.5 instead of 12.3 µs of CPU
    each. It has what a coroutine has as well, so that ``asyncio.create_task`` and ``TaskGroup`` take it.
    """

    begin: Callable[[], None] | None = None
    """Sends it, with what else waits, if it is not under way yet. Who awaits a send has nothing to add: not to wait for
    the next turn of the loop makes a lone one 4 to 8 % faster."""

    _steps: Generator[Any, None, list[str]] | None = None

    def __await__(self) -> Generator[Any, None, list[str]]:
        begin, self.begin = self.begin, None
        if begin is not None and not self.done() and asyncio.get_running_loop() is self.get_loop():
            begin()
        return super().__await__()

    def send(self, value: None) -> Any:
        """As of a coroutine: go on to what is waited for."""
        if self._steps is None:
            self._steps = super().__await__()  # as a task, perhaps one of many
        return self._steps.send(value)

    def throw(self, kind: Any, value: Any = None, trace: Any = None, /) -> Any:
        """As of a coroutine: raise where it waits. Of the older form, with a class, the trace is left out."""
        if self._steps is None:
            self._steps = super().__await__()
        return self._steps.throw(kind if isinstance(kind, BaseException) else value or kind())

    def close(self) -> None:
        """As of a coroutine: nobody waits for it any more. What is sent is sent."""
