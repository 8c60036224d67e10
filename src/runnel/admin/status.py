"""What runs, where it stands, and what is wrong."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from runnel._core.generations import Generations
from runnel._redis import queries, scripts
from runnel._redis.groups import GroupState, MemberState, Parked, group_state, server_time
from runnel._redis.link import Link
from runnel._redis.scripts import Look
from runnel.admin.access import connected
from runnel.admin.lag import oldest_waiting, waiting
from runnel.app import App
from runnel.streams import Stream

__all__ = [
    "MemberStatus",
    "PartitionStatus",
    "ProcessorStatus",
    "Rate",
    "SlowEvent",
    "Stall",
    "Status",
    "StreamStatus",
    "look_at",
    "status_of",
    "watch_status",
]


@dataclass(frozen=True, slots=True)
class SlowEvent:
    """An event that has been in progress for more than a second.

    Attributes:
        event: its id.
        seconds: for how long.
    """

    event: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Stall:
    """A partition that has events and makes no progress.

    Attributes:
        doing: what it does instead, in words.
        seconds: for how long.
    """

    doing: str
    seconds: float


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    """A partition in the hands of a processor.

    Attributes:
        partition: its number.
        state: ``running``, ``moving`` (its owner is to hand it back), ``quarantined``, ``paused``, ``orphaned`` (its
            owner is silent) or ``unowned``.
        owner: the worker that owns it; ``None`` for nobody.
        owned: seconds since it was granted; ``None`` for nobody.
        position: id of the last event whose processing is committed; ``None`` if it never had an owner.
        lag: events behind the position.
        oldest: seconds since the oldest of them was sent; 0 if there is none.
        in_progress: the event that is being processed, if that has taken more than a second.
        stall: why there is no progress, if there has been none for ``stall_timeout``.
        processed: entries of the log up to the position, counted from its first one.
        sent: entries of the log, counted from its first one.
        lost: events that were removed before they were processed, so far.
        rollbacks: how often Redis had lost what was processed, so far.
    """

    partition: int
    state: str
    owner: str | None
    owned: float | None
    position: str | None
    lag: int
    oldest: float
    in_progress: SlowEvent | None
    stall: Stall | None
    processed: int
    sent: int
    lost: int
    rollbacks: int


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """A worker's seat in the group of a processor.

    Attributes:
        name: of the worker.
        state: ``alive``, ``leaving`` or ``silent``.
        silent: seconds since its last heartbeat.
        partitions: that it owns.
    """

    name: str
    state: str
    silent: float
    partitions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rate:
    """Events per second, over the time between two looks.

    Attributes:
        sent: appended to the stream.
        processed: by the processor.
    """

    sent: float
    processed: float


@dataclass(frozen=True, slots=True)
class ProcessorStatus:
    """A processor.

    Attributes:
        name: of the processor.
        stream: what it processes.
        declared: whether the app has it; if not, it is only registered in Redis, and holds back trimming.
        paused: seconds for which it has been paused; ``None`` if it is not.
        paused_by: user and machine.
        members: its workers, in the order in which they came.
        partitions: of the stream; empty if nothing was sent yet and no worker has run.
        rate: events per second; ``None`` at the first look, and at the first one at a generation.
        generation: of the stream, to which the partitions belong.
        later: events that wait in later generations, until those in this one are processed.
    """

    name: str
    stream: str
    declared: bool
    paused: float | None
    paused_by: str | None
    members: tuple[MemberStatus, ...]
    partitions: tuple[PartitionStatus, ...]
    rate: Rate | None = None
    generation: int = 0
    later: int = 0

    @property
    def lag(self) -> int:
        """Events that wait."""
        return sum(partition.lag for partition in self.partitions) + self.later

    @property
    def oldest(self) -> float:
        """Seconds for which the oldest of them has been waiting."""
        return max((partition.oldest for partition in self.partitions), default=0.0)

    @property
    def lost(self) -> int:
        """Events that were removed before they were processed."""
        return sum(partition.lost for partition in self.partitions)

    @property
    def rollbacks(self) -> int:
        """How often Redis had lost what was processed."""
        return sum(partition.rollbacks for partition in self.partitions)


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """A stream.

    Attributes:
        name: its name.
        partition_count: of the generation in use.
        entries: that there are, in all generations; ``None`` if nothing was sent yet and no worker has run.
        moved: address of the server that it was moved to, or is being moved to; else empty.
    """

    name: str
    partition_count: int
    entries: int | None
    moved: str = ""


@dataclass(frozen=True, slots=True)
class Status:
    """An app at one moment.

    Attributes:
        app: its name.
        server: name and version of the server.
        at: the moment, by the server's clock, in seconds since 1970.
        streams: of the app.
        processors: of the app, and those that are registered on its streams besides.
    """

    app: str
    server: str
    at: float
    streams: tuple[StreamStatus, ...]
    processors: tuple[ProcessorStatus, ...]

    @property
    def workers(self) -> tuple[str, ...]:
        """The names of all workers."""
        return tuple(dict.fromkeys(member.name for processor in self.processors for member in processor.members))


async def status_of(app: App, *, over: float = 0.0) -> Status:
    """Look at an app. Changes nothing.

    Arguments:
        app: the app.
        over: seconds between two looks, from which rates are computed; 0 for one look and no rates.

    Raises:
        MetadataMismatch: a stream is stored with other properties.
        RedisUnavailable: Redis cannot be reached.
    """
    async with connected(app) as link:
        first = await _status(link, app)
        if not over:
            return first
        await asyncio.sleep(over)
        return _with_rates(first, await _status(link, app))


async def watch_status(app: App, interval: float) -> AsyncGenerator[Status, None]:
    """Look at an app again and again, for ever; with rates from the second look on.

    Arguments:
        app: the app.
        interval: seconds between two looks.

    Raises:
        MetadataMismatch: a stream is stored with other properties.
        RedisUnavailable: Redis cannot be reached. Call it again to go on.
    """
    async with connected(app) as link:
        earlier = await _status(link, app)
        yield earlier
        while True:
            await asyncio.sleep(interval)
            later = await _status(link, app)
            yield _with_rates(earlier, later)
            earlier = later


def _with_rates(earlier: Status, later: Status) -> Status:
    before = {(processor.name, processor.stream): processor for processor in earlier.processors}
    seconds = later.at - earlier.at
    processors = []
    for processor in later.processors:
        previous = before.get((processor.name, processor.stream))
        if previous is None or previous.generation != processor.generation or seconds <= 0:
            processors.append(processor)
            continue
        # A position that was moved back is no negative work.
        sent, done = (
            sum(max(0, now - then) for now, then in zip(_of(processor, what), _of(previous, what), strict=False))
            for what in ("sent", "processed")
        )
        processors.append(replace(processor, rate=Rate(sent / seconds, done / seconds)))
    return replace(later, processors=tuple(processors))


def _of(processor: ProcessorStatus, what: str) -> list[int]:
    return [getattr(partition, what) for partition in processor.partitions]


async def _status(link: Link, app: App) -> Status:
    streams, processors = [], []
    by_stream: dict[str, list[str]] = {name: [] for name in app.streams}
    for processor in app.processors.values():
        by_stream.setdefault(processor.stream.name, []).append(processor.name)
    for name, declared in by_stream.items():
        stream = app.streams[name]
        exists = await stream.check(link)
        registered = await queries.registered_processors(link, stream.keys) if exists else []
        entries: int | None = None
        for one in () if exists is None else exists.existing:
            keys = stream.keys_of(one)
            lengths = [await queries.length(link, keys, p) for p in range(one.partition_count)]
            entries = sum(lengths, entries or 0)
        moved = "" if exists is None else exists.moved or exists.moving
        streams.append(StreamStatus(name, stream.partition_count, entries, moved))
        names = [*declared, *(other for other in registered if other not in declared)]
        processors += [await look_at(link, stream, one, exists, declared=one in declared) for one in names]
    version = await queries.server_version(link)
    return Status(app.name, version, await server_time(link), tuple(streams), tuple(processors))


async def look_at(
    link: Link, stream: Stream[Any], processor: str, generations: Generations | None, *, declared: bool = True
) -> ProcessorStatus:
    """The state of one processor, and of its partitions; none if the stream was never used."""
    generation, later = stream.generation, 0
    if generations is not None:
        generation = generations.of_processor(stream.keys.group_name(processor))
        for one in generations.existing:
            if one.number > generation.number:
                keys = stream.keys_of(one)
                later += sum([await queries.length(link, keys, p) for p in range(one.partition_count)])
    keys, partitions = stream.keys_of(generation), range(0 if generations is None else generation.partition_count)
    group = await group_state(link, keys.control(processor))
    looks = await scripts.look(link, keys, processor, partitions)
    now = await server_time(link)
    found = []
    for partition in partitions:
        look = looks[partition]
        found.append(_partition(partition, group, look, await waiting(link, keys, partition, look), now))
    members = tuple(
        MemberStatus(
            member.name,
            "silent" if is_silent(member) else "leaving" if member.draining else "alive",
            member.silent,
            tuple(sorted(p for p, owner in group.owners.items() if owner.member == member.name)),
        )
        for member in group.members
    )
    paused = None if group.paused is None else max(0.0, now - since(group.paused))
    by = None if group.paused is None else group.paused.details["by"]
    return ProcessorStatus(
        processor, stream.name, declared, paused, by, members, tuple(found), generation=generation.number, later=later
    )


def is_silent(member: MemberState) -> bool:
    """Whether a member looks dead: without a connection, or half a session without a heartbeat."""
    return not member.connected or member.silent > member.session / 2


def since(parked: Parked) -> float:
    """Since when something is parked, in seconds since 1970; the time of who did it."""
    return datetime.fromisoformat(parked.details["since"]).timestamp()


def _partition(partition: int, group: GroupState, look: Look, lag: int, now: float) -> PartitionStatus:
    owner = group.owners.get(partition)
    member = next((member for member in group.members if owner is not None and member.name == owner.member), None)
    if owner is None or member is None:  # nobody's, or of a member that is gone
        owner, state = None, "unowned"
    elif is_silent(member):
        state = "orphaned"
    elif partition in group.quarantined:
        state = "quarantined"
    elif group.paused is not None:
        state = "paused"
    else:
        state = "moving" if owner.revoked else "running"
    # A note of an earlier owner is out of date.
    slow, stalled = (
        note if owner is not None and note is not None and note.token == owner.token else None
        for note in (group.slow.get(partition), group.stalled.get(partition))
    )
    return PartitionStatus(
        partition,
        state,
        owner.member if owner else None,
        # A token is the server's time of the grant in milliseconds, or a little more.
        max(0.0, now - owner.token / 1000) if owner else None,
        look.offset.decode() if look.offset is not None else None,
        lag,
        oldest_waiting(look, now),
        None if slow is None else SlowEvent(slow.what, max(0.0, now - slow.since)),
        None if stalled is None else Stall(stalled.what, max(0.0, now - stalled.since)),
        look.count if look.offset is not None else look.added - look.length,
        look.added,
        look.lost,
        look.rollbacks,
    )
