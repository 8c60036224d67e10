"""Trying again while Redis is away: jittered back-off, and one announcement at each end."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from runnel._core.backoff import delays
from runnel.errors import RedisError, RedisUnavailable
from runnel.instruments import Instruments, RedisGivenUp, RedisLost, RedisRecovered

__all__ = ["patiently"]

T = TypeVar("T")

FIRST_DELAY = 0.02
"""Seconds. Short, since most failures are a connection that was closed and can be made again at once."""

MOST_DELAY = 1.0
"""Seconds. After an outage, everybody is back within that."""


async def patiently(
    role: str,
    operation: Callable[[], Awaitable[T]],
    instruments: Instruments,
    *,
    limit: float | None = None,
    most_delay: float = MOST_DELAY,
) -> T:
    """Repeat an operation that may be repeated until Redis answers.

    Arguments:
        role: what the operation is for, in a word or two, for the announcements.
        operation: must not do its work twice when it is called twice.
        instruments: where to announce.
        limit: seconds after which to give up; ``None`` for never. Without a limit, errors that waiting may not mend are
            waited for as well: a worker outlives a mistake in Redis that somebody is about to correct.
        most_delay: seconds between two attempts at most.

    Raises:
        RedisUnavailable: ``limit`` has passed.
        RedisError: the server refused the operation, and there is a limit.
    """
    started = time.monotonic()
    reported = False
    waits: Iterator[float] | None = None
    try:
        while True:
            try:
                result = await operation()
            except (RedisUnavailable, RedisError) as error:
                waits = waits or delays(FIRST_DELAY, most_delay, random.random)
                delay = next(waits)
                waited = time.monotonic() - started
                if limit is not None and (isinstance(error, RedisError) or waited + delay > limit):
                    raise
                if not reported:
                    reported = True
                    instruments.announce(RedisLost(role, error))
                await asyncio.sleep(delay)
            else:
                if reported:
                    reported = False
                    instruments.announce(RedisRecovered(role, time.monotonic() - started))
                return result
    finally:
        if reported:
            instruments.announce(RedisGivenUp(role))
