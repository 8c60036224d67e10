"""Looking at the events of a stream, decoded, in the order of their ids."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from runnel._core.entry_ids import BEGINNING, parse
from runnel._core.generations import Generation
from runnel._core.points import point
from runnel._core.routing import canonical_bytes
from runnel._redis import queries
from runnel._redis.generations import generations_of
from runnel._redis.groups import server_time
from runnel._redis.link import REPLY_TIMEOUT, Endpoint, Link
from runnel._redis.patience import patiently
from runnel.admin.access import chosen_partitions, connected
from runnel.app import App
from runnel.events import Event
from runnel.streams import Stream

__all__ = ["key_of", "tail_of"]

FIRST_USE = 0.5
"""Seconds between two looks at whether a stream is used yet."""

BLOCK = 2.0
"""Seconds for which the server waits for something new. If nothing comes, the stream may have been divided anew."""


async def tail_of(
    app: App,
    stream: Stream[Any],
    *,
    number: int | None = 10,
    start: str | None = None,
    partitions: Sequence[int] | None = None,
    key: str | None = None,
    follow: bool = False,
) -> AsyncGenerator[Event[Any], None]:
    """The events of a stream, across partitions in the order of their ids. Changes nothing.

    Arguments:
        app: the app.
        stream: the stream.
        number: the last so many; with ``start``, so many from there on. ``None`` for all.
        start: where to begin: ``earliest``, ``latest``, an id, a time, or a duration before now such as ``-5m``.
        partitions: their numbers; ``None`` for all.
        key: only events with this key, in its canonical text.
        follow: go on with what is sent from now on, for ever, in the order of arrival, also when the stream is divided
            anew. An outage is waited for, and announced by ``app.instruments``.

    Raises:
        NoSuchPlace: ``start`` is no place in a stream, or a partition does not exist, or not any more.
        MetadataMismatch: the stream is stored with other properties.
        RedisUnavailable: Redis cannot be reached, and nothing is followed yet.
    """
    async with connected(app) as link:
        begin = b"-" if start is None else point(start, await server_time(link))
        if not await stream.check(link) and len(await link.endpoint.primaries()) > 1:
            # Where its entries will be is not decided before it is used.
            while follow and not await stream.check(link):  # noqa: ASYNC110  whoever uses it first cannot tell us
                await asyncio.sleep(FIRST_USE)
            begin, number = b"-", None if start is None else number  # all of it is new
        generation = stream.generation
        cursors = {}
        for partition in chosen_partitions(stream, partitions, generation):
            state = await queries.log_state(link, stream.keys_of(generation), partition)
            cursors[partition] = b"0-0" if state is None else state.last
        if begin is not None and (start is not None or number is None):
            shown = 0
            async for event in _forwards(link, stream, cursors, begin, key):
                if shown == number:
                    break
                shown += 1
                yield event
        elif start is None and number is not None:
            for event in await _last(link, stream, cursors, number, key):
                yield event
        if follow:
            async for event in _arriving(app, link.endpoint, stream, generation, cursors, partitions, key):
                yield event


def key_of(stream: Stream[Any], event: Event[Any]) -> str | None:
    """The partition key of an event in its canonical text; ``None`` if the event cannot be decoded.

    Arguments:
        stream: that it is of.
        event: the event.
    """
    try:
        record = event.record
        by = stream.partition_by
        return canonical_bytes(getattr(record, by) if isinstance(by, str) else by(record)).decode(errors="replace")
    except Exception:  # the record's, or the user's own callable's
        return None


async def _forwards(
    link: Link, stream: Stream[Any], ends: dict[int, bytes], begin: bytes, key: str | None
) -> AsyncIterator[Event[Any]]:
    """From ``begin`` to the ends, merged."""
    firsts = dict.fromkeys(ends, begin)
    buffers: dict[int, list[Any]] = {partition: [] for partition in ends}
    while True:
        for partition, buffer in buffers.items():
            if not buffer and firsts[partition]:
                part = await queries.entries(link, stream.keys, partition, firsts[partition], ends[partition])
                buffer.extend(reversed(part))
                firsts[partition] = b"(" + part[-1][0] if part else b""
        there = [partition for partition, buffer in buffers.items() if buffer]
        if not there:
            return
        earliest = min(there, key=lambda partition: parse(buffers[partition][-1][0]))
        event = Event(stream.name, earliest, buffers[earliest].pop(), stream.codec)
        if key is None or key_of(stream, event) == key:
            yield event


async def _last(
    link: Link, stream: Stream[Any], ends: dict[int, bytes], number: int, key: str | None
) -> list[Event[Any]]:
    """The last so many up to the ends."""
    found: list[Event[Any]] = []
    for partition, end in ends.items():
        last, missing = end, number
        while missing > 0 and (
            part := await queries.entries_back(
                link, stream.keys, partition, last, min(number, queries.AT_ONCE) if key is None else queries.AT_ONCE
            )
        ):
            events = [Event(stream.name, partition, entry, stream.codec) for entry in part]
            fitting = [event for event in events if key is None or key_of(stream, event) == key][:missing]
            found += fitting
            missing -= len(fitting)
            last = b"(" + part[-1][0]
    return sorted(found, key=lambda event: parse(event.id))[-number:] if number else []


async def _arriving(
    app: App,
    endpoint: Endpoint,
    stream: Stream[Any],
    generation: Generation,
    cursors: dict[int, bytes],
    partitions: Sequence[int] | None,
    key: str | None,
) -> AsyncIterator[Event[Any]]:
    """What comes, as it comes: one blocking read per slot group, each on a link of its own.

    When the stream is divided anew, everything in one generation comes before what is in the next one.
    """
    while True:
        arrived: asyncio.Queue[list[Event[Any]]] = asyncio.Queue(maxsize=1)
        keys = stream.keys_of(generation)
        by_group: dict[int, dict[int, bytes]] = {}
        for partition, cursor in cursors.items():
            by_group.setdefault(keys.slot_group(partition), {})[partition] = cursor
        readers = [
            asyncio.create_task(_read_on(app, endpoint, stream, generation, group, arrived))
            for group in by_group.values()
        ]
        try:
            left = len(readers)
            while left:
                events = await arrived.get()
                left -= not events
                for event in events:
                    if key is None or key_of(stream, event) == key:
                        yield event
            generation, *_ = await asyncio.gather(*readers)
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
        cursors = dict.fromkeys(chosen_partitions(stream, partitions, generation), BEGINNING)


async def _read_on(
    app: App,
    endpoint: Endpoint,
    stream: Stream[Any],
    generation: Generation,
    cursors: dict[int, bytes],
    arrived: asyncio.Queue[list[Event[Any]]],
) -> Generation:
    """Read what comes behind the cursors, which are in one slot group, for as long as something may come there.

    Ends with an empty list, and returns the generation that comes next.
    """
    keys = stream.keys_of(generation)
    partitions = {keys.log(partition).encode(): partition for partition in cursors}
    following: Generation | None = None
    link = endpoint.link()

    async def read() -> Any:
        return await queries.read(
            link,
            [keys.log(partition) for partition in cursors],
            list(cursors.values()),
            count=queries.AT_ONCE,
            block=int(BLOCK * 1000) if following is None else None,
            timeout=REPLY_TIMEOUT + BLOCK,
        )

    async def look() -> Generation | None:
        generations = await generations_of(link, keys)
        return None if generations is None else generations.after(generation)

    try:
        while True:
            events = []
            for log, entries in await patiently("tail", read, app.instruments):
                partition = partitions[log]
                cursors[partition] = entries[-1][0]
                events += [Event(stream.name, partition, entry, stream.codec) for entry in entries]
            if events:
                await arrived.put(sorted(events, key=lambda event: parse(event.id)))
            elif following is None:
                # If there is one, this is sealed, but something may have come between the read and the look.
                following = await patiently("tail", look, app.instruments)
            else:
                await arrived.put([])
                return following
    finally:
        await link.close()
