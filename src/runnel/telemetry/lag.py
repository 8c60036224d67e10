"""How far the owned partitions of a worker are behind: looked at now and then, off the hot path."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from runnel._redis import scripts
from runnel._redis.groups import server_time
from runnel._redis.link import Link
from runnel._worker import Worker
from runnel.admin.lag import oldest_waiting, waiting
from runnel.errors import RedisError, RedisUnavailable

__all__ = ["Lag", "Lags"]

INTERVAL = 5.0
"""Seconds between two looks. Each is a round trip per processor and slot group, however many partitions there are: for
every one, the thread takes the interpreter's lock from the processors."""


@dataclass(frozen=True, slots=True)
class Lag:
    """Of one partition: events not processed, and the age of the oldest of them in seconds."""

    events: int
    seconds: float


class Lags:
    """The lags of one worker. Runs on any event loop, with a connection of its own."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._known: dict[tuple[str, int], Lag] = {}

    def now(self) -> dict[tuple[str, int], Lag]:
        """What the last look found, by processor and partition. Of partitions that are gone, nothing."""
        owned = {
            (member.processor.name, consumer.feed.partition)
            for member in self._worker.members
            for consumer in member.consumers
        }
        return {key: lag for key, lag in self._known.items() if key in owned}

    async def run(self) -> None:
        """Look for ever. While Redis is away, what was found last stays."""
        link = self._worker.app.endpoint.link()
        try:
            while True:
                with suppress(RedisUnavailable, RedisError):  # the worker's own operations tell about it
                    self._known = await self._look(link)
                await asyncio.sleep(INTERVAL)
        finally:
            await link.close()

    async def _look(self, link: Link) -> dict[tuple[str, int], Lag]:
        found = {}
        now = await server_time(link)
        for member in self._worker.members:
            keys, name = member.keys, member.processor.name
            looks = await scripts.look(link, keys, name, [consumer.feed.partition for consumer in member.consumers])
            for partition, look in looks.items():
                events = await waiting(link, keys, partition, look)
                found[name, partition] = Lag(events, oldest_waiting(look, now))
        return found
