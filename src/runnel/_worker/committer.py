"""Commits positions: one call in flight; what is finished meanwhile goes together with the next."""

import asyncio
from typing import Protocol

from runnel._redis.durability import Confirmation
from runnel._redis.keys import StreamKeys
from runnel._redis.link import Link
from runnel._redis.patience import patiently
from runnel._redis.scripts import Commit, CommitStatus, commit
from runnel.feed import Feed
from runnel.instruments import Instruments

__all__ = ["Committer", "Verdicts"]

INTERVAL = 0.01
"""Seconds from the beginning of a commit to that of the next one at least, unless somebody waits for it. What is
finished after a pause is committed at once; at 1,000 events per second, ten of them share a commit."""


class Verdicts(Protocol):
    """Who must know when a commit is refused; the member."""

    def fenced(self, feed: Feed) -> None:
        """Somebody else owns the partition."""

    def rewound(self, feed: Feed, reason: str, expected: bytes, stored: bytes) -> None:
        """Redis holds another position than the one we committed last, or it is not one of this log (``replaced``)."""


class Committer:
    """Takes the progress of the feeds of one slot group of a member to Redis.

    Attributes:
        commits: positions that were committed.
    """

    def __init__(
        self,
        link: Link,
        keys: StreamKeys,
        slot_group: int,
        processor: str,
        member: str,
        confirm: Confirmation,
        verdicts: Verdicts,
        instruments: Instruments,
    ) -> None:
        self._link = link
        self._keys = keys
        self._slot_group = slot_group
        self._processor = processor
        self._member = member
        self._confirm = confirm
        self._verdicts = verdicts
        self._instruments = instruments
        self.commits = 0
        self._progressed: list[Feed] = []
        self._under_way: tuple[Feed, ...] = ()
        self._wanted = asyncio.Event()
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._round = asyncio.Event()

    def mark(self, feed: Feed) -> None:
        """The feed has progress to commit. Called once per commit, not per event."""
        self._progressed.append(feed)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            if loop.time() >= self._due:
                self._wanted.set()
            else:
                self._timer = loop.call_at(self._due, self._hurry)

    def _hurry(self) -> None:
        """Commit now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wanted.set()

    def probe(self, feed: Feed) -> None:
        """Commit even if there is no progress: somebody may have moved the position, or the count has changed."""
        feed.probed = True
        self.mark(feed)

    async def flush(self, feed: Feed) -> None:
        """Wait until all that is done is committed, or cannot be any more, and no commit of it is on its way."""
        while feed in self._under_way or (feed.done != feed.committed and not feed.stale):
            self._hurry()
            await self._round.wait()

    async def run(self) -> None:
        """Commit for ever.

        1. Take what every feed has finished so far.
        2. Commit it, however long Redis is away. The call is repeated unchanged: merging further progress into a
           repeated commit would make an applied one look like a rollback.
        3. Tell the member what was refused, and those who wait that a round is over.
        """
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            feeds, commits = self._take()  # 1
            if commits:
                self._due = asyncio.get_running_loop().time() + INTERVAL
                self._under_way = tuple(feeds)
                answers = await self._commit(commits)  # 2
                self._under_way = ()
                for feed, item, (status, stored) in zip(feeds, commits, answers, strict=True):
                    self._apply(feed, item, status, stored)  # 3
            self._round.set()
            self._round = asyncio.Event()

    def _take(self) -> tuple[list[Feed], list[Commit]]:
        progressed, self._progressed = self._progressed, []
        feeds: list[Feed] = []
        commits: list[Commit] = []
        for feed in dict.fromkeys(progressed):  # one may be probed and have progress: a rollback would be counted twice
            feed.dirty = False
            if (feed.done != feed.committed or feed.probed) and not feed.stale:
                feed.probed = False
                feeds.append(feed)
                commits.append(Commit(feed.partition, feed.token, feed.committed, feed.done, feed.count))
        return feeds, commits

    async def _commit(self, commits: list[Commit]) -> list[tuple[CommitStatus, bytes]]:
        async def attempt() -> list[tuple[CommitStatus, bytes]]:
            return await commit(
                self._link, self._keys, self._processor, self._member, self._slot_group, commits, self._confirm
            )

        return await patiently("commit", attempt, self._instruments)

    def _apply(self, feed: Feed, item: Commit, status: CommitStatus, stored: bytes) -> None:
        if feed.committed != item.previous:
            return  # it was set back while the answer was on its way
        if status in (CommitStatus.OK, CommitStatus.DUP):
            if not feed.stale:
                feed.committed = item.offset
                self.commits += 1
            return
        feed.stale = True
        if status is CommitStatus.FENCED:
            self._verdicts.fenced(feed)
        else:
            # Where what was committed before is still there, what was processed since then is what is lost.
            expected = item.offset if item.previous == stored else item.previous
            self._verdicts.rewound(feed, status.value.lower(), expected, stored)
