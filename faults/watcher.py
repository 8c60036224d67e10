"""Looks at the positions while a play runs: what falls and rises again between two commits is seen nowhere else."""

import asyncio
import time

from faults.history import Look, entry_id
from runnel._redis.link import Endpoint, Link
from runnel.errors import RedisError, RedisUnavailable

INTERVAL = 0.02
"""Seconds between two looks; a partition has some 20 commits in a second."""


class Watcher:
    """Takes looks, over a connection of its own, for as long as the server answers.

    Attributes:
        looks: those at which something was new.
    """

    def __init__(self, url: str, key: str) -> None:
        """Arguments:
        url: of the server.
        key: of the positions.
        """
        self.looks: list[Look] = []
        self._link = Link(Endpoint(url))
        self._key = key
        self._seen: dict[int, tuple[int, str]] = {}
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Look no more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._link.close()

    async def _run(self) -> None:
        while True:
            sent = time.monotonic()
            try:
                flat = await self._link.call("HGETALL", self._key, timeout=1.0)
            except (RedisUnavailable, RedisError):
                flat = []
            now = time.monotonic()
            for field, value in zip(flat[::2], flat[1::2], strict=True):
                if field.isdigit():
                    self._see(sent, now, int(field), value.decode())
            await asyncio.sleep(INTERVAL)

    def _see(self, sent: float, answered: float, partition: int, value: str) -> None:
        owner, offset = value.split("|")[:2]
        token = int(owner.split(":")[0])
        if self._seen.get(partition) != (token, offset):
            self._seen[partition] = token, offset
            self.looks.append(Look(sent, answered, partition, token, entry_id(offset)))
