"""Looks at the positions while a play runs: what falls and rises again between two commits is seen nowhere else."""

import asyncio
import time
from collections.abc import Sequence

from faults.history import Look, entry_id
from runnel._redis.link import Link
from runnel.errors import RedisError, RedisUnavailable

INTERVAL = 0.02
"""Seconds between two looks; a partition has some 20 commits in a second."""


class Watcher:
    """Takes looks, over connections of its own, for as long as the servers answer.

    Attributes:
        looks: those at which something was new.
    """

    def __init__(self, link: Link) -> None:
        """Arguments:
        link: to the servers; used by nobody else, and closed with this.
        """
        self.looks: list[Look] = []
        self._link = link
        self._seen: dict[int, tuple[int, str]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def watch(self, keys: Sequence[str]) -> None:
        """Look at positions under these keys. Each is looked at by itself: its server may hang."""
        self._tasks += [asyncio.create_task(self._run(key)) for key in keys]

    async def close(self) -> None:
        """Look no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._link.close()

    async def _run(self, key: str) -> None:
        while True:
            sent = time.monotonic()
            try:
                flat = await self._link.at(key).call("HGETALL", key, timeout=1.0)
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
