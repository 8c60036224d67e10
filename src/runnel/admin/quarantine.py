"""Quarantined partitions: what failed there, trying it again, and going on without it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from runnel._core.entry_ids import parse
from runnel._redis import queries, scripts
from runnel._redis.groups import Parked, group_state
from runnel._redis.link import Link
from runnel.admin.access import chosen_partitions, connected, generation_of, processor_of
from runnel.admin.dead_letters import patience_for, sinks
from runnel.admin.lag import waiting
from runnel.app import App
from runnel.errors import NotQuarantined
from runnel.events import Event
from runnel.middleware.dead_letter import forward
from runnel.processors import Processor

__all__ = ["Quarantine", "Skipped", "failed_events", "list_quarantines", "retry_quarantine", "skip_quarantine"]


@dataclass(frozen=True, slots=True)
class Quarantine:
    """A partition that is not processed because its processor has failed there.

    Attributes:
        processor: its name.
        stream: the stream's name.
        partition: its number.
        owner: the worker in which it failed. The quarantine ends with that worker.
        events: ids of the event, or of the batch, that failed; empty if it failed before it had taken any.
        error: type and message.
        traceback: as Python prints it.
        since: when, in ISO 8601 (UTC).
        lag: events that wait in the partition, the failed ones included.
    """

    processor: str
    stream: str
    partition: int
    owner: str
    events: tuple[str, ...]
    error: str
    traceback: str
    since: str
    lag: int
    mark: Parked = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Skipped:
    """What became of a quarantined partition.

    Attributes:
        partition: its number.
        sink: name of the stream where the dead letters are.
        events: ids of the events that are dead letters there now.
        missing: ids of those that had been removed from the log, so that nothing of them is left.
        lifted: whether this has ended the quarantine. If not, it had ended meanwhile: the events are dead letters, and
            may have been processed as well.
    """

    partition: int
    sink: str
    events: tuple[str, ...]
    missing: tuple[str, ...]
    lifted: bool


async def list_quarantines(
    app: App, processor: str | None = None, partitions: Sequence[int] | None = None
) -> list[Quarantine]:
    """The quarantined partitions, by processor and number.

    Arguments:
        app: the app.
        processor: of this one only.
        partitions: these only; they need a processor.

    Raises:
        UnknownProcessor: the app has none of that name.
        NoSuchPlace: a partition does not exist.
        RedisUnavailable: Redis cannot be reached.
    """
    processors = list(app.processors.values()) if processor is None else [processor_of(app, processor)]
    async with connected(app) as link:
        return [found for one in processors for found in await _quarantines(link, one, partitions)]


async def failed_events(app: App, quarantine: Quarantine) -> list[Event[Any]]:
    """The events that failed, as far as they are still in the log.

    Arguments:
        app: the app.
        quarantine: what :func:`list_quarantines` has found.

    Raises:
        RedisUnavailable: Redis cannot be reached.
    """
    async with connected(app) as link:
        return await _events(link, processor_of(app, quarantine.processor), quarantine)


async def retry_quarantine(app: App, processor: str, partitions: Sequence[int] | None = None) -> list[Quarantine]:
    """Let the failed events be tried again, by the workers that own the partitions.

    Arguments:
        app: the app.
        processor: name of the processor.
        partitions: their numbers; ``None`` for all that are quarantined.

    Returns:
        What was quarantined. If it fails once more, it is quarantined again.

    Raises:
        UnknownProcessor: the app has none of that name.
        NotQuarantined: one of the partitions is not, or not any more. The others are tried again in the latter case.
        RedisUnavailable: Redis cannot be reached. Repeat it.
    """
    chosen = processor_of(app, processor)
    async with connected(app) as link:
        found = await _quarantines(link, chosen, partitions)
        _all_there(chosen, found, partitions)
        retried = [one for one in found if await _lift(link, chosen, one)]
        for one in found:
            if partitions is not None and one not in retried:
                raise _ended(one)
        return retried


async def skip_quarantine(app: App, processor: str, partitions: Sequence[int]) -> list[Skipped]:
    """Move the failed events to the dead letters, and let the workers go on behind them.

    1. Send them to the dead letters, if the quarantine still is the same: if its owner has stopped, or somebody retries
       them, they may be processed at this moment. Once, however often this is repeated.
    2. Move the position behind them, if it still is in front of them.
    3. End the quarantine, if it still is the same.

    If it is interrupted, repeat it. Until then the partition stays quarantined.

    Arguments:
        app: the app.
        processor: name of the processor.
        partitions: their numbers.

    Returns:
        What became of each of them.

    Raises:
        UnknownProcessor: the app has none of that name.
        NotQuarantined: one of the partitions is not, or not any more, or failed before it had taken an event.
        StreamFull: the dead letters have no room.
        RedisUnavailable: Redis cannot be reached. Repeat it.
    """
    chosen = processor_of(app, processor)
    skipped = []
    async with app, connected(app) as link:
        found = await _quarantines(link, chosen, partitions)
        _all_there(chosen, found, partitions)
        for one in found:
            if not one.events:
                raise NotQuarantined(
                    f'"{processor}" failed in partition {one.partition} before it had taken an event, so there is none '
                    f"to skip ({one.error}). Mend the code and restart the workers, or retry it."
                )
        for one in found:
            events = await _events(link, chosen, one)
            sink = sinks(app, chosen.stream, chosen)[0]
            for event in events:
                if not await _stands(link, chosen, one):
                    raise _ended(one)
                async with patience_for(sink):
                    await forward(sink, event, processor, one.error)  # 1
            await _move_behind(link, chosen, one)  # 2
            lifted = await _lift(link, chosen, one)  # 3
            there = tuple(event.id for event in events)
            missing = tuple(event for event in one.events if event not in there)
            skipped.append(Skipped(one.partition, sink.name, there, missing, lifted))
    return skipped


async def _quarantines(link: Link, processor: Processor[Any], partitions: Sequence[int] | None) -> list[Quarantine]:
    stream = processor.stream
    generation = await generation_of(link, stream, processor.name)
    keys, chosen = stream.keys_of(generation), chosen_partitions(stream, partitions, generation)
    group = await group_state(link, keys.control(processor.name))
    marked = [partition for partition in chosen if partition in group.quarantined]
    looks = await scripts.look(link, keys, processor.name, marked)
    found = []
    for partition in marked:
        mark = group.quarantined[partition]
        details = mark.details
        found.append(
            Quarantine(
                processor.name,
                stream.name,
                partition,
                mark.member,
                tuple(details["events"]),
                details["error"],
                details["traceback"],
                details["since"],
                await waiting(link, keys, partition, looks[partition]),
                mark,
            )
        )
    return found


def _all_there(processor: Processor[Any], found: Sequence[Quarantine], partitions: Sequence[int] | None) -> None:
    missing = sorted(set(partitions or ()) - {one.partition for one in found})
    if missing:
        which = ", ".join(map(str, missing))
        raise NotQuarantined(
            f'"{processor.name}" is not quarantined in partition {which}. `runnel quarantine list` shows where it is.'
        )


def _ended(quarantine: Quarantine) -> NotQuarantined:
    return NotQuarantined(
        f'The quarantine of "{quarantine.processor}" in partition {quarantine.partition} has ended meanwhile: its '
        "worker has stopped, or somebody has retried or skipped it. `runnel quarantine list` shows whether it has "
        "failed anew."
    )


async def _events(link: Link, processor: Processor[Any], quarantine: Quarantine) -> list[Event[Any]]:
    stream, wanted = processor.stream, {event.encode() for event in quarantine.events}
    if not wanted:
        return []
    keys = stream.keys_of(await generation_of(link, stream, processor.name))
    first, last = quarantine.events[0].encode(), quarantine.events[-1].encode()
    found: list[Event[Any]] = []
    while part := await queries.entries(link, keys, quarantine.partition, first, last):
        found += [Event(stream.name, quarantine.partition, entry, stream.codec) for entry in part if entry[0] in wanted]
        first = b"(" + part[-1][0]
    return found


async def _move_behind(link: Link, processor: Processor[Any], quarantine: Quarantine) -> None:
    """Put the position behind the failed events, unless it is there or further already.

    If the log has replaced the one in which they failed, nothing changes: the next owner finds that out.
    """
    stream, partition = processor.stream, quarantine.partition
    keys = stream.keys_of(await generation_of(link, stream, processor.name))
    last = quarantine.events[-1].encode()
    look = (await scripts.look(link, keys, processor.name, [partition]))[partition]
    if look.offset is None or parse(look.offset) >= parse(last):
        return
    done = await scripts.count_entries(link, keys, partition, look.offset, last)
    await scripts.reset(link, keys, processor.name, partition, last, look.count + done, expected=look.offset)


async def _stands(link: Link, processor: Processor[Any], quarantine: Quarantine) -> bool:
    """Whether a quarantine has not ended, and the partition has not failed anew."""
    keys = processor.stream.keys_of(await generation_of(link, processor.stream, processor.name))
    group = await group_state(link, keys.control(processor.name))
    return group.quarantined.get(quarantine.partition) == quarantine.mark


async def _lift(link: Link, processor: Processor[Any], quarantine: Quarantine) -> bool:
    """End a quarantine, unless it has ended already, or the partition has failed anew."""
    keys = processor.stream.keys_of(await generation_of(link, processor.stream, processor.name))
    return await scripts.park(link, keys.control(processor.name), quarantine.partition, quarantine.mark.raw, b"")
