"""Reads the logs of a run, and the dead letters, from the server."""

import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from faults.history import UNREADABLE, Entry, EntryId, Letter, Send, entry_id
from faults.records import Step
from runnel.errors import DecodeError, RecordError
from runnel.events import Event
from runnel.streams import Stream

Ask = Callable[..., Awaitable[Any]]


async def entries(ask: Ask, stream: Stream[Step], raw: Mapping[tuple[int, EntryId], Send]) -> list[Entry]:
    """Everything that is in the logs now.

    Arguments:
        ask: sends a command.
        stream: whose logs.
        raw: what was appended by hand.
    """
    found = []
    for partition in range(stream.partition_count):
        for name, flat in await ask("XRANGE", stream.keys.log(partition), "-", "+"):
            place = partition, entry_id(name.decode())
            try:
                step = stream.codec.decode(flat)
                what = step.key, step.number, (step.producer, step.serial), step.expected
            except RecordError:
                send = raw.get(place)
                key, number, serial = (
                    (send.key, send.number, send.serial) if send is not None else (UNREADABLE, 0, (UNREADABLE, 0))
                )
                what = key, number, serial, zlib.crc32(b"".join(flat))
            found.append(Entry(*place, *what))
    return found


async def letters(ask: Ask, sink: Stream[Step]) -> list[Letter]:
    """The dead letters."""
    found = []
    for partition in range(sink.partition_count):
        for item in await ask("XRANGE", sink.keys.log(partition), "-", "+"):
            event = Event(sink.name, partition, item, sink.codec)
            _, its_partition, its_id = event.headers["source"].decode().rsplit("/", 2)
            try:
                check = event.record.expected
            except DecodeError:
                check = zlib.crc32(b"".join(part for field in event.data.items() for part in field))
            found.append(Letter(partition, entry_id(event.id), (int(its_partition), entry_id(its_id)), check))
    return found
