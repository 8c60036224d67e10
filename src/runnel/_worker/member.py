"""A worker's seat in the group of one processor: from the coordinator's answers to running partitions."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from runnel._core.entry_ids import BEGINNING
from runnel._core.generations import Generation
from runnel._core.lease import Lease
from runnel._core.meters import Meter
from runnel._core.partitions import PartitionState
from runnel._core.read_ahead import ReadAhead
from runnel._core.reconcile import reconcile
from runnel._core.slow import InProgress
from runnel._core.tracebacks import user_traceback
from runnel._redis import scripts
from runnel._redis.durability import confirmation
from runnel._redis.keys import ControlKeys
from runnel._redis.link import Endpoint
from runnel._redis.patience import patiently
from runnel._redis.scripts import Acquired, Beat, Seat, Stale
from runnel._worker.consumer import PartitionConsumer
from runnel._worker.heartbeats import Heartbeats, Holder
from runnel._worker.slot_groups import SlotGroups
from runnel._worker.succession import Succession
from runnel._worker.watchdog import Watchdog
from runnel.feed import Feed
from runnel.instruments import (
    Announcement,
    Instruments,
    LossDetected,
    PartitionFailed,
    PartitionsPaused,
    PartitionsResumed,
    TaskFailed,
)
from runnel.processors import Processor
from runnel.settings import Settings

__all__ = ["Member", "seat"]


LOSSES_INTERVAL = 10.0
"""Seconds. A look costs the server about 30 µs per partition (256 of them, Redis 7.0.15)."""


MEASURE_INTERVAL = 0.5
"""Seconds that a metric may be behind; far below the interval of any scrape."""


def seat(keys: ControlKeys, member: str, partition_count: int, settings: Settings) -> Seat:
    """The terms of a member, from the settings."""
    return Seat(
        keys,
        member,
        partition_count,
        session=int(settings.session_timeout * 1000),
        join_delay=int(settings.join_delay * 1000),
        grace=int(settings.grace_period * 1000),
        # One heartbeat late and without a connection: see the header of heartbeat.lua.
        silence=int(settings.heartbeat_interval * 1500),
    )


class Member:
    """Runs the partitions that the coordinator grants.

    Attributes:
        processor: whose partitions.
        generation: of the stream, to which they belong.
        keys: of that generation.
        holder: the seat, shared with the heartbeat thread.
        processed: events acknowledged in partitions that are not ours any more.
        released: partitions handed back.
        rebalances: changes of the assignment that this member has seen, pauses included.
        meter: measures the processing, if it is to be measured.
    """

    def __init__(
        self,
        name: str,
        processor: Processor[Any],
        generation: Generation,
        endpoint: Endpoint,
        settings: Settings,
        instruments: Instruments,
        halt: Callable[[str, BaseException], None],
        fail: Callable[[BaseException], None],
        *,
        measured: bool = False,
    ) -> None:
        """Arguments:
        name: of the worker, and so of its members.
        processor: what to run.
        generation: of its stream.
        endpoint: where Redis is.
        settings: of the app.
        instruments: where to announce.
        halt: stops the worker because of an error in a processor.
        fail: ends the worker at once because of an error of ours.
        measured: whether to measure the processing.
        """
        self.processor = processor
        self.generation = generation
        self.keys = processor.stream.keys_of(generation)
        self._halt = halt
        self._fail = fail
        self.processed = 0
        self.released = 0
        self.rebalances = 0
        self.meter = Meter() if measured else None
        self._commits_before = 0
        self._epoch = ""
        self._succession = Succession(processor, generation, instruments)
        self._instruments = instruments
        control = self.keys.control(processor.name)
        terms = seat(control, name, generation.partition_count, settings)
        self.holder = Holder(
            processor.name,
            replace(terms, grace=int(processor.grace_period * 1000), slot_groups=generation.slot_groups),
            self._on_beat,
            self._on_moved,
        )
        self.holder.in_progress = self._in_progress
        self._watchdog = Watchdog(
            processor.name, self.keys, control, processor.stall_timeout, self._at_work, instruments
        )
        self.holder.watch = self._watchdog.run
        self.holder.on_sealed = self._succession.look
        self._heartbeats: Heartbeats
        self._consumers: dict[int, PartitionConsumer] = {}
        self._ending: dict[int, set[asyncio.Task[None]]] = {}
        self._committed: dict[int, tuple[int, bytes]] = {}  # where we have left off, and under which token
        self._link = endpoint.link()
        ahead = ReadAhead(processor.prefetch_count, settings.prefetch_bytes)
        self._slot_groups = SlotGroups(
            endpoint,
            self._link,
            self.keys,
            processor.name,
            name,
            ahead,
            confirmation(processor.stream.options.durability),
            verdicts=self,
            instruments=instruments,
            loop_ended=self._loop_ended,
        )
        self._loops: list[asyncio.Task[None]] = []

    @property
    def in_flight(self) -> int:
        """How many events functions are working on."""
        return sum(consumer.in_flight for consumer in self._consumers.values())

    @property
    def consumers(self) -> tuple[PartitionConsumer, ...]:
        """What runs now; from any thread."""
        return tuple(self._consumers.values())

    @property
    def stalled(self) -> frozenset[int]:
        """The partitions that have events and make no progress."""
        return self._watchdog.stalled

    @property
    def commits(self) -> int:
        """Positions that were committed."""
        return self._commits_before + self._slot_groups.commits

    def start(self, heartbeats: Heartbeats) -> None:
        """Act on what will be granted."""
        self._heartbeats = heartbeats
        self._loops = [
            asyncio.create_task(self._look_for_losses(), name=f"runnel-losses-{self.processor.name}"),
        ]
        if self.meter is not None:
            self._loops.append(asyncio.create_task(self._measure(), name=f"runnel-meter-{self.processor.name}"))
        for loop in self._loops:
            loop.add_done_callback(self._loop_ended)

    def _loop_ended(self, loop: asyncio.Task[None]) -> None:
        """Better to end than to live without one of them: others take over."""
        if not loop.cancelled() and (error := loop.exception()) is not None:
            self.announce(TaskFailed(loop.get_name(), error))
            self._fail(error)

    async def successor(self) -> Generation | None:
        """Wait until there is nothing left to do in this generation; returns the one to go on with, if there is one."""
        return await self._succession.wait(self._link)

    def take_over(self, other: "Member") -> None:
        """Go on counting where the seat in the generation before has ended."""
        self.processed, self.released, self.rebalances = other.processed, other.released, other.rebalances
        self._commits_before = other.commits
        self.meter = other.meter

    async def retire(self) -> None:
        """Leave the group in good order, while the worker goes on."""
        await self.drain()
        self._heartbeats.retire(self.holder)
        await self.close()

    async def drain(self) -> None:
        """Hand everything back in good order. Ends when nothing is held any more."""
        self.holder.draining = True  # before the first release, or the coordinator would grant it to us again
        self._heartbeats.nudge(self.holder)
        for consumer in tuple(self._consumers.values()):
            consumer.drain()
        while tasks := self._tasks():
            await asyncio.wait(tasks)

    def _tasks(self) -> set[asyncio.Task[None]]:
        """All that run a function, also in partitions that are not ours any more."""
        return set().union(*self._ending.values(), (consumer.task for consumer in self._consumers.values()))

    def abort(self) -> None:
        """Drop everything at once."""
        self.holder.draining = True
        for task in self._tasks():  # one that was lost before may wait for something since then
            task.cancel()
        for consumer in tuple(self._consumers.values()):
            consumer.lose("aborted")

    async def close(self) -> None:
        """End reading and committing, and disconnect."""
        for task in self._loops:
            task.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self._slot_groups.close()
        await self._link.close()

    # What the coordinator says

    def _on_beat(self, beat: Beat, lease: Lease) -> None:
        if not beat.known:
            for consumer in tuple(self._consumers.values()):
                consumer.lose("evicted from the group")
            return
        epoch, _, _ = beat.epoch.partition("@")
        if epoch != self._epoch:
            self._epoch = epoch
            self.rebalances += 1
        for consumer in self._consumers.values():
            if consumer.feed.suspended:
                consumer.feed.poke()
        if not beat.full:
            return
        # What is released and not yet confirmed still counts as held: the answer may have crossed the release.
        releasing = dict(self.holder.releases)
        held = {p: c.feed.token for p, c in self._consumers.items() if c.state is not PartitionState.LOST} | releasing
        draining = releasing | (held if self.holder.draining else {})
        plan = reconcile(held, draining, beat.granted, beat.revoked)
        if plan.release:
            self.holder.releases += plan.release
            self._heartbeats.nudge(self.holder)
        for partition in plan.lose:
            if partition in self._consumers:
                self._consumers[partition].lose("granted to another member")
        for partition in plan.drain:
            if partition in self._consumers:
                self._consumers[partition].drain()
        self._park(beat)
        if not self.holder.draining:
            for partition, token in plan.acquire:
                feed = Feed(partition, token, self.keys.log(partition), lease)
                self._begin(feed, quarantined=partition in beat.quarantined, paused=partition in beat.paused)
            if idle := tuple(sorted(partition for partition, _ in plan.acquire if partition in beat.paused)):
                self.announce(PartitionsPaused(self.processor.name, idle))

    def _park(self, beat: Beat) -> None:
        """Stop what is parked, and go on with what is not any more."""
        stopped, resumed = [], []
        for partition in sorted(self._consumers.keys() & beat.granted.keys()):
            consumer = self._consumers[partition]
            if partition in beat.quarantined or partition in beat.paused:
                quarantined = partition in beat.quarantined or consumer.marked_after(beat.sent)
                if consumer.park(quarantined=quarantined):
                    stopped.append(partition)
            elif consumer.marked_after(beat.sent):
                self.holder.settled = False  # it may not know of our mark yet: have it all said once more
            elif consumer.resume():
                resumed.append(partition)
        if stopped:
            self.announce(PartitionsPaused(self.processor.name, tuple(stopped)))
        if resumed:
            self.announce(PartitionsResumed(self.processor.name, tuple(resumed)))

    def _in_progress(self) -> list[InProgress]:
        """The first event in progress of each partition. Called on the heartbeat thread, so it only reads."""
        found = []
        for partition, consumer in tuple(self._consumers.items()):
            if event := consumer.in_progress:
                found.append((partition, consumer.feed.token, event))
        return found

    def _at_work(self) -> dict[int, tuple[int, str]]:
        """Token and doing of each partition that should make progress. Called on the heartbeat thread."""
        return {c.feed.partition: (c.feed.token, c.doing) for c in tuple(self._consumers.values()) if c.at_work}

    def _on_moved(self) -> None:
        for consumer in self._consumers.values():
            self._slot_groups.committer(consumer.feed.partition).probe(consumer.feed)

    def _begin(self, feed: Feed, *, quarantined: bool, paused: bool) -> None:
        partition = feed.partition
        committer = self._slot_groups.committer(partition)
        feed.on_done = committer.mark
        feed.on_room = self._slot_groups.reader(partition).look
        feed.flush = committer.flush
        ending = self._ending.setdefault(partition, set())
        if partition in self._consumers:
            ending.add(self._consumers[partition].task)
        consumer = PartitionConsumer(
            self,
            self.processor,
            feed,
            quarantined=quarantined,
            paused=paused,
            after=frozenset(ending),
            meter=self.meter,
        )
        self._consumers[partition] = consumer
        consumer.task.add_done_callback(lambda task: self._ended(consumer, task))

    def _ended(self, consumer: PartitionConsumer, task: asyncio.Task[None]) -> None:
        partition = consumer.feed.partition
        consumer.measure()
        self.processed += consumer.processed
        if self._consumers.get(partition) is consumer:
            del self._consumers[partition]
        self._ending.get(partition, set()).discard(task)
        if consumer.committed != BEGINNING:
            self._committed[partition] = consumer.feed.token, consumer.committed
        error = _cancellation(consumer) if task.cancelled() else task.exception()
        if error is not None:
            self.announce(PartitionFailed(self.processor.name, partition, (), "halt", error))
            self._halt(self.processor.name, error)  # better to stop than to go on without a partition

    async def _measure(self) -> None:
        """Have counted what idle partitions have processed last; busy ones see to that themselves."""
        while True:
            await asyncio.sleep(MEASURE_INTERVAL)
            for consumer in self.consumers:
                consumer.measure()

    async def _look_for_losses(self) -> None:
        """Notice entries that were removed unread while we run; `acquire` notices those that were before."""
        keys = self.keys
        while True:
            await asyncio.sleep(LOSSES_INTERVAL)
            by_group: dict[int, list[Feed]] = {}
            for consumer in self._consumers.values():
                if not consumer.feed.ended:
                    by_group.setdefault(keys.slot_group(consumer.feed.partition), []).append(consumer.feed)
            for feeds in by_group.values():
                cursors = [(feed.cursor, feed.read) for feed in feeds]
                logs = [feed.log for feed in feeds]

                async def attempt(logs: list[str] = logs, cursors: list[tuple[bytes, int]] = cursors) -> list[int]:
                    return await scripts.losses(self._link, self.processor.name, logs, cursors)

                lost = await patiently("look for losses", attempt, self._instruments)
                for feed, seen, entries in zip(feeds, cursors, lost, strict=True):
                    if feed.ended or (feed.cursor, feed.read) != seen:
                        continue
                    if entries < 0:
                        self.rewound(feed, "replaced", feed.committed, b"")
                    elif entries:
                        await self._lost(feed, entries)

    async def _lost(self, feed: Feed, entries: int) -> None:
        """So many entries behind what a feed has read were removed.

        First it is counted, for operators, who look later; then it is part of what is committed: if we end in between,
        it may be counted once more, but it is not hidden. If the partition is not ours any more, its owner finds out.
        """
        keys, name, member = self.keys, self.processor.name, self.holder.seat.member
        count, starts = feed.count + entries, feed.starts

        async def attempt() -> bool:
            return await scripts.count_loss(self._link, keys, name, feed.partition, feed.token, member, entries, count)

        if await patiently("count a loss", attempt, self._instruments):
            if feed.starts == starts:
                feed.skip(entries)
                self._slot_groups.committer(feed.partition).probe(feed)  # the count is part of the position
            self.announce(LossDetected(name, feed.partition, entries))

    # What the consumers need

    def announce(self, announcement: Announcement) -> None:
        """Tell the instruments."""
        self._instruments.announce(announcement)

    async def acquire(self, feed: Feed, reached: bytes) -> Acquired | Stale:
        """Fence the previous owner and learn the position; ``reached`` is where it is for all that this one knows."""
        keys, member = self.keys, self.holder.seat.member
        before = self._committed.get(feed.partition, scripts.NOTHING)
        known = before if reached == BEGINNING else (feed.token, reached)

        async def attempt() -> Acquired | Stale:
            return await scripts.acquire(
                self._link, keys, self.processor.name, feed.partition, feed.token, member, known
            )

        answer = await patiently("acquire", attempt, self._instruments)
        if isinstance(answer, Acquired):  # from here on the feed knows better
            self._committed.pop(feed.partition, None)
        return answer

    async def flush(self, feed: Feed) -> None:
        """Wait until the progress is committed."""
        await feed.flush(feed)

    async def quarantine(self, feed: Feed, event_ids: tuple[str, ...], error: BaseException) -> None:
        """Mark the partition as poisoned, for all to see."""
        details = {
            "events": event_ids,
            "error": f"{type(error).__name__}: {error}",
            "traceback": user_traceback(error) or f"{type(error).__name__}: {error}",
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }

        async def attempt() -> bool:
            return await scripts.quarantine(self._link, self.holder.seat, feed.partition, feed.token, details)

        await patiently("quarantine", attempt, self._instruments)

    def reading(self, feed: Feed, wanted: bool) -> None:
        """Read for this feed, or do not any more."""
        reader = self._slot_groups.reader(feed.partition)
        if wanted:
            reader.add(feed)
        else:
            reader.remove(feed)

    def release(self, feed: Feed, floor: int = 0) -> None:
        """Hand the partition back."""
        self.released += 1
        self.holder.floor = max(self.holder.floor, floor)
        self.holder.releases.append((feed.partition, feed.token))
        self._heartbeats.nudge(self.holder)

    def halt(self, processor: str, error: BaseException) -> None:
        """Stop the worker because of this error."""
        self._halt(processor, error)

    # What the committer finds out

    def fenced(self, feed: Feed) -> None:
        """Somebody else owns the partition, or has left a higher token there. What does the coordinator say?

        1. An acquire is held up. 2. All is deleted, and the clock was set back, so that later tokens are lower. 3. The
        acquire arrives: its token fences the owner, and nobody has it.
        """
        self._lose(feed, "fenced by a newer owner")
        self.holder.settled = False
        self._heartbeats.nudge(self.holder)

    def rewound(self, feed: Feed, reason: str, expected: bytes, stored: bytes) -> None:
        """Redis holds another position than the one we committed last."""
        consumer = self._consumers.get(feed.partition)
        if consumer is not None and consumer.feed is feed:
            consumer.rewind(reason, expected, stored)

    def _lose(self, feed: Feed, reason: str) -> None:
        consumer = self._consumers.get(feed.partition)
        if consumer is not None and consumer.feed is feed:
            consumer.lose(reason)


def _cancellation(consumer: PartitionConsumer) -> BaseException | None:
    """What to say of a consumer whose task was cancelled; nothing if that was us, because its partition was lost."""
    if consumer.state is PartitionState.LOST:
        return None
    return asyncio.CancelledError("the task of the processor's function was cancelled, and not by the worker")
