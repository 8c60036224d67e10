"""Reads ahead for the partitions of a slot group: one blocking read for all that have room in their buffer."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from runnel._core.read_ahead import ReadAhead, Step
from runnel._redis.link import REPLY_TIMEOUT, Link
from runnel._redis.patience import patiently
from runnel._redis.queries import read, unblock
from runnel.errors import RunnelError
from runnel.feed import Feed
from runnel.instruments import Instruments

__all__ = ["Reader"]

BLOCK = 2.0
"""Seconds that a read waits on the server. Whatever changes meanwhile ends the wait, so this costs an idle worker half
a command per second; but for a reply that was lost on its way, the partitions stand still for so long, and the time-out
of a reply."""

ROOM = 0.002
"""Seconds to wait for room in a full buffer before the read blocks for the others alone. A busy partition makes room
within that, and ending a blocking read costs a command."""


class Reader:
    """Fills the feeds of one slot group of a member. A read has no effect on the server, so it is just repeated."""

    def __init__(
        self,
        link: Link,
        control: Link,
        ahead: ReadAhead,
        instruments: Instruments,
        all_feeds: Callable[[], int],
        lost_sight: Callable[[Link, list[Feed]], Awaitable[None]],
    ) -> None:
        """Arguments:
        link: for reading; identified, so that it can be unblocked.
        control: for unblocking it.
        ahead: decides how much to read at a time.
        instruments: where to announce outages.
        all_feeds: how many feeds share ``ahead``, those of this reader included.
        lost_sight: called with ``link`` and all feeds, when an answer has come over another connection than before, or
            there was an outage. It may be another server, or one that has lost something. What was read is handed out
            only when this has returned.
        """
        self._link = link
        self._control = control
        self._ahead = ahead
        self._instruments = instruments
        self._feeds: dict[bytes, Feed] = {}
        self._changed = asyncio.Event()
        self._blocked = False
        self._all_feeds = all_feeds
        self._lost_sight = lost_sight
        self._connection: object = None
        self._unblocking: asyncio.Task[None] | None = None

    @property
    def feeds(self) -> int:
        """How many feeds there are."""
        return len(self._feeds)

    def add(self, feed: Feed) -> None:
        """Read for this feed from now on."""
        self._feeds[feed.log.encode()] = feed
        self.look()

    def remove(self, feed: Feed) -> None:
        """Do not read for this feed any more."""
        self._feeds.pop(feed.log.encode(), None)

    def look(self, feed: Feed | None = None) -> None:
        """A feed is new, or has room again: look at them before going on to wait."""
        self._changed.set()
        if self._blocked and (self._unblocking is None or self._unblocking.done()):
            self._unblocking = asyncio.create_task(self._unblock(), name="runnel-unblock")

    async def run(self) -> None:
        """Read for ever.

        1. Nobody has room: wait for it.
        2. What there may be for all of them is too large for one answer: take what is there from a few at a time.
        3. Somebody is full and will soon have room: take what is there for the others, and give them a moment.
        4. Otherwise block until there is something.
        """
        while True:
            self._changed.clear()
            step = self._next_step()
            hungry = [feed for feed in self._feeds.values() if feed.hungry()]
            if not hungry:
                if not self._feeds:
                    await self._link.close()  # they have moved to other members, perhaps for good
                    self._connection = None
                await self._changed.wait()  # 1
            elif len(hungry) > step.partitions:
                if not await self._read_in_parts(hungry, step):  # 2
                    while not self._changed.is_set() and not await self._read(hungry, 1, BLOCK):  # 4
                        pass  # still nothing in any of them: do not look into each again
            elif len(hungry) == len(self._feeds) or (
                not await self._read(hungry, step.count, None) and not await self._room()  # 3
            ):
                await self._read(hungry, step.count, BLOCK)  # 4

    def _next_step(self) -> Step:
        """Decide how much to read, and tell the feeds from when on."""
        feeds = self._feeds.values()
        if any(feed.starved for feed in feeds):
            self._ahead.starved()
        batch = max((feed.batch for feed in feeds), default=1)
        step = self._ahead.step(max(1, len(feeds)), self._all_feeds() - len(feeds), batch)
        for feed in feeds:
            feed.starved, feed.room = False, step.room
        return step

    async def _read_in_parts(self, feeds: list[Feed], step: Step) -> bool:
        """Read without waiting, a few feeds at a time, until there was something."""
        for first in range(0, len(feeds), step.partitions):
            part = [feed for feed in feeds[first : first + step.partitions] if feed.hungry()]
            if part and await self._read(part, step.count, None):
                for feed in part:  # the others come first the next time
                    if self._feeds.pop(feed.log.encode(), None) is not None:  # it may be gone meanwhile
                        self._feeds[feed.log.encode()] = feed
                return True
        return False

    async def close(self) -> None:
        """End what is under way."""
        if self._unblocking is not None:
            self._unblocking.cancel()
            await asyncio.gather(self._unblocking, return_exceptions=True)

    async def _room(self) -> bool:
        try:
            async with asyncio.timeout(ROOM):
                await self._changed.wait()
        except TimeoutError:
            return self._changed.is_set()  # it may have come with the last moment
        return True

    async def _read(self, feeds: list[Feed], count: int, block: float | None) -> bool:
        names = [feed.log for feed in feeds]
        cursors = [feed.cursor for feed in feeds]

        away = False

        async def attempt() -> list[tuple[bytes, list[Any]]]:
            nonlocal away
            wait = None if away else block  # after an outage, we want to know when it is over
            self._blocked = wait is not None
            try:
                return await read(
                    self._link,
                    names,
                    cursors,
                    count=count,
                    block=None if wait is None else int(wait * 1000),
                    timeout=REPLY_TIMEOUT + (wait or 0),
                )
            except RunnelError:
                away = True
                raise
            finally:
                self._blocked = False

        found = await patiently("read", attempt, self._instruments)
        if not await self._in_sight(away):
            return True  # read again
        if not found:
            return False
        self._ahead.took(sum([len(entries) for _, entries in found]), self._link.reply_size)
        sent = dict(zip(names, cursors, strict=True))
        for log, entries in found:
            feed = self._feeds.get(log)
            # The feed may be gone, or have been set back, while the answer was on its way.
            if feed is not None and not feed.ended and feed.cursor == sent.get(feed.log):
                feed.add(entries, full=len(entries) == count)
        if not any(len(entries) == count for _, entries in found):
            # At rest, those who waited go on first, before the next read is composed and sent: from send to handler,
            # 0.18 ms instead of 0.23 at 1,000 events/s. Under load, the next read must be on its way meanwhile: one hot
            # partition has 513,000 events/s so, and 350,000 if it gives way after each read.
            await asyncio.sleep(0)
        return True

    async def _in_sight(self, away: bool) -> bool:
        """Whether we know the server that has just answered, perhaps after it was ``away``, or know it now.

        1. A server fails over, and loses the last entries, which we have read. 2. Others get ids below theirs. 3. We
        read from the new server behind what is lost, and skip them. So those that were not read just now are looked at
        as well.
        """
        before, connection = self._connection, self._link.connection
        if away or (before is not None and before is not connection):
            await self._lost_sight(self._link, list(self._feeds.values()))
            if self._link.connection is not connection:
                return False
        self._connection = connection
        return True

    async def _unblock(self) -> None:
        """End the blocking read, and the one after it if that began before the last change.

        The read may not have reached the server yet; and by the time that the answer to ending one read is here, the
        next may be under way, and another partition may have come meanwhile. So this goes on until the reader has seen
        the change: it clears ``_changed`` when it looks.
        """
        while self._blocked and self._changed.is_set():
            client_id, pause = self._link.client_id, 0.001
            try:
                if client_id is not None and (log := next(iter(self._feeds), None)) is not None:
                    await unblock(self._control, log.decode(), client_id)
            except RunnelError:  # Redis is away, so the read fails as well
                pause = 0.1
            await asyncio.sleep(pause)
