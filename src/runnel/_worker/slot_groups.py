"""Reading and committing for the partitions of a member, by slot group: a call can only cover keys of one slot."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from runnel._core.read_ahead import ReadAhead
from runnel._redis.durability import Confirmation
from runnel._redis.keys import StreamKeys
from runnel._redis.link import Endpoint, Link
from runnel._redis.patience import patiently
from runnel._redis.scripts import had
from runnel._worker.committer import Committer, Verdicts
from runnel._worker.reader import Reader
from runnel.feed import Feed
from runnel.instruments import Instruments

__all__ = ["SlotGroups"]


@dataclass(frozen=True, slots=True)
class _SlotGroup:
    """What one slot group of the stream has in this member: one blocking read, and one commit in flight."""

    link: Link
    reader: Reader
    committer: Committer
    loops: tuple[asyncio.Task[None], asyncio.Task[None]]


class SlotGroups:
    """A reader and a committer for each slot group of which the member has ever owned a partition.

    On a single server there is one slot group, so one read and one commit cover all partitions. On a cluster, groups
    are independent of each other: while the primary of one is away, the others go on.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        link: Link,
        keys: StreamKeys,
        processor: str,
        member: str,
        ahead: ReadAhead,
        confirm: Confirmation,
        verdicts: Verdicts,
        instruments: Instruments,
        loop_ended: Callable[[asyncio.Task[None]], None],
    ) -> None:
        """Arguments:
        endpoint: where Redis is, for the connections of the readers.
        link: of the member; for committing.
        keys: of what is read.
        processor: for whom.
        member: its name.
        ahead: decides how much all of them together read at a time.
        confirm: where positions must be stored.
        verdicts: who must know when a commit is refused.
        instruments: where to announce.
        loop_ended: called when a task that should not end has.
        """
        self._loop_ended = loop_ended
        self._endpoint = endpoint
        self._link = link
        self._keys = keys
        self._processor = processor
        self._member = member
        self._ahead = ahead
        self._confirm = confirm
        self._verdicts = verdicts
        self._instruments = instruments
        self._groups: dict[int, _SlotGroup] = {}

    def reader(self, partition: int) -> Reader:
        """Who reads this partition."""
        return self._of(partition).reader

    def committer(self, partition: int) -> Committer:
        """Who commits its position."""
        return self._of(partition).committer

    @property
    def commits(self) -> int:
        """Positions that were committed."""
        return sum(group.committer.commits for group in self._groups.values())

    async def close(self) -> None:
        """End reading and committing, and disconnect."""
        loops = [loop for group in self._groups.values() for loop in group.loops]
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        for group in self._groups.values():
            await group.reader.close()
            await group.link.close()

    def _feeds(self) -> int:
        return sum(group.reader.feeds for group in self._groups.values())

    async def _lost_sight(self, link: Link, feeds: list[Feed]) -> None:
        """The server was away, or it is another one: it may have lost what was committed, or what was read.

        The former is found out by a commit, also where nothing new arrives; the latter here, by the last entry.
        """
        for feed in feeds:
            if not feed.ended:
                self.committer(feed.partition).probe(feed)
        read = [(feed, feed.cursor) for feed in feeds if not feed.ended and feed.cursor != feed.began]
        if not read:
            return

        async def attempt() -> list[bool]:
            return await had(link, [feed.log for feed, _ in read], [cursor for _, cursor in read])

        for (feed, cursor), known in zip(read, await patiently("read", attempt, self._instruments), strict=True):
            if not known and not feed.ended and feed.cursor == cursor:
                self._verdicts.rewound(feed, "replaced", feed.committed, b"")

    def _of(self, partition: int) -> _SlotGroup:
        number = self._keys.slot_group(partition)
        group = self._groups.get(number)
        if group is None:
            group = self._groups[number] = self._begin(number)
        return group

    def _begin(self, number: int) -> _SlotGroup:
        link = self._endpoint.link(identify=True)
        reader = Reader(link, self._link, self._ahead, self._instruments, self._feeds, self._lost_sight)
        committer = Committer(
            self._link,
            self._keys,
            number,
            self._processor,
            self._member,
            self._confirm,
            self._verdicts,
            self._instruments,
        )
        loops = (
            asyncio.create_task(reader.run(), name=f"runnel-reader-{self._processor}-{number}"),
            asyncio.create_task(committer.run(), name=f"runnel-committer-{self._processor}-{number}"),
        )
        for loop in loops:
            loop.add_done_callback(self._loop_ended)
        return _SlotGroup(link, reader, committer, loops)
