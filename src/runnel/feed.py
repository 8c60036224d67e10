"""The meeting point of one partition inside a worker: its buffer and its progress.

The reader fills the buffer, ``Events`` hands it out and marks what is done, the committer takes the progress. All three
run on one event loop, so nothing here is locked.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from runnel._core.lease import Lease

__all__ = ["Feed", "RawEntry"]

RawEntry = list[Any]
"""An entry as the server sends it: ``[id, [field, value, ...]]``."""

SLICE = 0.002
"""Seconds that one partition may run without giving way. With 16 busy partitions the loop is then held for at most
about 30 ms, well below any time-out."""

_monotonic = time.monotonic


class Feed:
    """The buffer and the progress of one partition, for as long as one member owns it.

    Attributes:
        partition: its number.
        token: the fencing token of this ownership.
        log: key of its log.
        entries: what was read and not yet handed out.
        cursor: id of the last entry that was read.
        began: where ``cursor`` was at the beginning: at a position, which may be no entry of the log.
        starts: how often it has begun.
        done: id of the last entry that was processed.
        count: entries of the log up to ``done``, counted from its first one.
        read: the same up to ``cursor``.
        lost: of these, entries that were removed from the log unread since the feed began.
        committed: what Redis holds as the position.
        dirty: whether the committer has been told of ``done``.
        stale: Redis holds another position than ``committed``, or may; nothing is committed until :meth:`begin`.
        probed: commit also without progress, to find out whether the position was moved.
        suspended: handing out waits for the lease to be renewed.
        ended: nothing more is handed out.
        room: the next read is issued when so few entries are left; below zero, when the processor waits for one.
        waiting: the processor waits for an entry.
        batch: how many entries the processor takes at a time.
        full: the last read brought as much as was asked for, so there may be more.
        starved: the processor had to wait although there may be more.
        check_at: monotonic time from which nothing may be handed out without :meth:`ready`.
    """

    __slots__ = (
        "_arrived",
        "_lease",
        "batch",
        "began",
        "check_at",
        "committed",
        "count",
        "cursor",
        "dirty",
        "done",
        "ended",
        "entries",
        "flush",
        "full",
        "log",
        "lost",
        "on_done",
        "on_room",
        "partition",
        "probed",
        "read",
        "room",
        "stale",
        "starts",
        "starved",
        "suspended",
        "token",
        "waiting",
    )

    def __init__(self, partition: int, token: int, log: str, lease: Lease) -> None:
        self.partition = partition
        self.token = token
        self.log = log
        self.room = 0
        self.batch = 1
        self.waiting = self.full = self.starved = False
        self.entries: deque[RawEntry] = deque()
        self.began = self.cursor = self.done = self.committed = b"0-0"
        self.count = self.read = self.lost = self.starts = 0
        self.dirty = False
        self.ended = True
        self.stale, self.probed = True, False  # until `begin`: there may be a position already
        self.suspended = False
        self.check_at = 0.0
        self._lease = lease
        self._arrived = asyncio.Event()
        # Set by who owns the feed: tell the committer, tell the reader, wait for the commit.
        self.on_done: Callable[[Feed], None]
        self.on_room: Callable[[Feed], None]
        self.flush: Callable[[Feed], Awaitable[None]]

    @property
    def capacity(self) -> int:
        """How many entries the buffer may hold: what is left when the next read is issued, and that read."""
        return max(1, 2 * self.room)

    def begin(self, offset: bytes, count: int) -> None:
        """Start, or start over, behind ``offset``."""
        self.entries.clear()
        self.starts += 1
        self.began = self.cursor = self.done = self.committed = offset
        self.count = self.read = count
        self.lost = 0
        self.dirty = False
        self.stale = False
        self.full = self.starved = False
        self.ended = False
        self.check_at = 0.0

    def end(self) -> None:
        """Hand out nothing more. What is being processed may finish and is still marked as done."""
        self.ended = True
        self.check_at = 0.0
        self._arrived.set()

    def hungry(self) -> bool:
        """Whether there is room for another read."""
        if self.ended:
            return False
        return len(self.entries) <= self.room if self.room >= 0 else self.waiting and not self.entries

    def add(self, entries: Sequence[RawEntry], *, full: bool) -> None:
        """Take what was read behind ``cursor``."""
        self.full = full
        self.cursor = entries[-1][0]
        self.read += len(entries)
        self.entries.extend(entries)
        self._arrived.set()

    def skip(self, lost: int) -> None:
        """So many entries behind ``cursor`` were removed from the log unread."""
        self.read += lost
        self.count += lost
        self.lost += lost

    @property
    def processed(self) -> int:
        """The same as ``count``, without those that were lost under way: it grows with each event by one."""
        return self.count - self.lost

    def poke(self) -> None:
        """Look at the lease again."""
        self._arrived.set()

    def finish(self, last: bytes, number: int) -> None:
        """``number`` entries up to ``last`` are processed."""
        self.done = last
        self.count += number
        if not self.dirty:
            self.dirty = True
            self.on_done(self)

    async def ready(self, *, holding: bool = False) -> bool:
        """Give way to the others; wait for an entry to hand out and for a lease to do it under.

        Arguments:
            holding: the caller has entries to hand out already.

        Returns:
            False if nothing more is handed out.
        """
        if self.entries or self.ended:  # who iterates again and again behind the end must not stop the event loop
            await asyncio.sleep(0)
        while not self.ended:
            if self.entries or holding:
                now, deadline = _monotonic(), self._lease.deadline
                if now < deadline:
                    self.suspended = False
                    self.check_at = min(now + SLICE, deadline)
                    return True
                self.suspended = True  # the heartbeat thread's next success pokes us
                self._arrived.clear()
                await self._arrived.wait()
            else:
                await self._arrival()
        return False

    async def pause(self, seconds: float) -> None:
        """Wait for so long, or until nothing more is handed out."""
        until = _monotonic() + seconds
        while not self.ended and (remaining := until - _monotonic()) > 0:
            self._arrived.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(remaining):
                    await self._arrived.wait()

    async def more(self, deadline: float) -> bool:
        """Wait for an entry until ``deadline`` (monotonic). False if there is none, or nothing more is handed out."""
        while not self.entries and not self.ended:
            remaining = deadline - _monotonic()
            if remaining <= 0:
                return False
            try:
                async with asyncio.timeout(remaining):
                    await self._arrival()
            except TimeoutError:
                return False
        return not self.ended

    async def _arrival(self) -> None:
        """Wait for an entry, or for the end."""
        self._arrived.clear()
        self.waiting = True
        if self.full:
            self.starved = True
        if self.room < 0:
            self.on_room(self)
        try:
            await self._arrived.wait()
        finally:
            self.waiting = False
