"""Running a coroutine to its first wait before a task takes it over, as eager tasks of Python 3.12 and later do."""

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any

__all__ = ["begin"]


def begin(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
    """Run a coroutine to its first wait, now; the rest of it in a task.

    Up to there no task of its own is the current one, so it must not use what asks for it, such as ``asyncio.timeout``.

    Returns:
        The task; ``None`` if the coroutine had nothing to wait for and has ended.
    """
    try:
        waits_for = coroutine.send(None)
    except StopIteration:
        return None
    return loop.create_task(_go_on(coroutine, waits_for))


async def _go_on(coroutine: Coroutine[Any, Any, None], waits_for: Any) -> None:
    await _Rest(coroutine, waits_for)


class _Rest:
    """What is left of a coroutine that waits for something."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], waits_for: Any) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        waits_for = self._waits_for
        while True:
            try:
                try:
                    answer = yield waits_for
                except BaseException as error:  # cancelled, for instance: it is for the coroutine to handle
                    waits_for = self._coroutine.throw(error)
                else:
                    waits_for = self._coroutine.send(answer)
            except StopIteration:
                return
