"""What the commands do, as typed functions: looking at a running system and mending it.

Nothing in the worker knows this module.
"""

from dataclasses import dataclass
from typing import Any

from runnel._core.entry_ids import BEGINNING, parse, text
from runnel._redis import queries, scripts
from runnel._redis.keys import ControlKeys
from runnel._redis.link import Link
from runnel.app import App
from runnel.errors import ConfigurationError, UnknownProcessor, did_you_mean
from runnel.streams import Stream

__all__ = ["Reset", "apply_reset", "plan_reset"]


@dataclass(frozen=True, slots=True)
class Reset:
    """What a reset does to one partition.

    Attributes:
        partition: its number.
        position: id of the last processed event now; ``None`` if the processor never had this partition.
        offset: the same after the reset; processing goes on behind it.
        count: entries of the log up to ``offset``, counted from its first one.
        lag: events that wait now.
        new_lag: events that will wait.
    """

    partition: int
    position: str | None
    offset: str
    count: int
    lag: int
    new_lag: int


async def plan_reset(app: App, processor: str, start: str, partitions: list[int] | None = None) -> list[Reset]:
    """What it would mean to let a processor go on from another place. Changes nothing.

    Arguments:
        app: the app.
        processor: name of the processor.
        start: the id of the first event to process; ``0`` for the first there is, ``$`` for those yet to come.
        partitions: their numbers; ``None`` for all.

    Raises:
        UnknownProcessor: the app has none of that name.
        ConfigurationError: ``start`` is no entry id, or a partition does not exist.
        RedisUnavailable: Redis cannot be reached.
    """
    stream = _processor_stream(app, processor)
    first = None if start == "$" else text(parse(start))
    chosen = list(range(stream.partition_count)) if partitions is None else partitions
    for partition in chosen:
        if not 0 <= partition < stream.partition_count:
            raise ConfigurationError(
                f'Stream "{stream.name}" has the partitions 0 to {stream.partition_count - 1}, but not {partition}.'
            )
    link = Link(app.endpoint)
    try:
        await stream.declare(link)
        resets = []
        for partition in chosen:
            state = await queries.log_state(link, stream.keys, partition)
            if state is None:
                continue  # nothing was ever sent there
            stored = await queries.position(link, stream.keys, processor, partition)
            if first is None:
                offset: bytes = state.last
            else:
                offset = await queries.entry_before(link, stream.keys, partition, first) or BEGINNING
            waiting = await scripts.count_entries(link, stream.keys, partition, offset, state.last)
            lag = state.length if stored is None else state.added - stored[1]
            resets.append(
                Reset(
                    partition,
                    None if stored is None else stored[0].decode(),
                    offset.decode(),
                    state.added - waiting,
                    lag,
                    waiting,
                )
            )
        return resets
    finally:
        await link.close()


async def apply_reset(app: App, processor: str, resets: list[Reset]) -> None:
    """Move the positions. Running owners finish the event in progress and go on from there, without a restart.

    Raises:
        UnknownProcessor: the app has none of that name.
        RedisUnavailable: Redis cannot be reached. Repeat it: it can be done twice.
    """
    stream = _processor_stream(app, processor)
    link = Link(app.endpoint)
    try:
        for reset in resets:
            await scripts.reset(link, stream.keys, processor, reset.partition, reset.offset.encode(), reset.count)
        await queries.publish_moved(link, ControlKeys.of(app.name, stream.name, processor))
    finally:
        await link.close()


def _processor_stream(app: App, processor: str) -> Stream[Any]:
    if processor not in app.processors:
        raise UnknownProcessor(
            f'The app "{app.name}" has no processor "{processor}".{did_you_mean(processor, app.processors)}'
        )
    return app.processors[processor].stream
