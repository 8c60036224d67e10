"""Letting a processor go on from another place."""

from collections.abc import Sequence
from dataclasses import dataclass

from runnel._core.entry_ids import BEGINNING
from runnel._core.points import point
from runnel._redis import queries, scripts
from runnel._redis.groups import server_time
from runnel._redis.keys import StreamKeys
from runnel._redis.link import Link
from runnel._redis.scripts import Look
from runnel.admin.access import chosen_partitions, connected, generation_of, processor_of
from runnel.admin.lag import waiting
from runnel.app import App
from runnel.errors import MigrationConflict

__all__ = ["Reset", "Shift", "apply_reset", "plan_reset"]


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
        generation: of the stream, in which all of this holds.
    """

    partition: int
    position: str | None
    offset: str
    count: int
    lag: int
    new_lag: int
    generation: int


@dataclass(frozen=True, slots=True)
class Shift:
    """So many events forwards, or backwards if negative, from where the processor is.

    Attributes:
        by: the number of events per partition.
    """

    by: int


async def plan_reset(
    app: App, processor: str, start: str | Shift, partitions: Sequence[int] | None = None
) -> list[Reset]:
    """What it would mean to let a processor go on from another place. Changes nothing.

    Arguments:
        app: the app.
        processor: name of the processor.
        start: the first event to process: its id; ``0`` or ``earliest`` for the first there is, ``$`` or ``latest`` for
            those yet to come; a time; a duration before now such as ``-5m``; or a :class:`Shift`.
        partitions: their numbers; ``None`` for all.

    Returns:
        The partitions to which something was ever sent.

    Raises:
        UnknownProcessor: the app has none of that name.
        NoSuchPlace: ``start`` is no place in a stream, or a partition does not exist.
        RedisUnavailable: Redis cannot be reached.
    """
    stream = processor_of(app, processor).stream
    async with connected(app) as link:
        if not isinstance(start, Shift):
            first = point(start, await server_time(link))
        if not await stream.check(link):
            chosen_partitions(stream, partitions)
            return []
        generation = await generation_of(link, stream, processor)
        keys = stream.keys_of(generation)
        looks = await scripts.look(link, keys, processor, chosen_partitions(stream, partitions, generation))
        resets = []
        for partition, look in looks.items():
            if not look.last:
                continue  # nothing was ever sent there
            if isinstance(start, Shift):
                offset = await _shifted(link, keys, partition, look, start.by)
            elif first is None:
                offset = look.last
            else:
                offset = await queries.entry_before(link, keys, partition, first) or BEGINNING
            new_lag = await scripts.count_entries(link, keys, partition, offset, look.last)
            resets.append(
                Reset(
                    partition,
                    None if look.offset is None else look.offset.decode(),
                    offset.decode(),
                    look.added - new_lag,
                    await waiting(link, keys, partition, look),
                    new_lag,
                    generation.number,
                )
            )
        return resets


async def apply_reset(app: App, processor: str, resets: Sequence[Reset]) -> None:
    """Move the positions. Running owners finish the event in progress and go on from there, without a restart.

    Arguments:
        app: the app.
        processor: name of the processor.
        resets: what :func:`plan_reset` has found; any part of it.

    Raises:
        UnknownProcessor: the app has none of that name.
        MigrationConflict: the processor has gone on to partitions of another generation since; nothing was changed.
        RedisUnavailable: Redis cannot be reached. Repeat it: it can be done twice.
    """
    stream = processor_of(app, processor).stream
    async with connected(app) as link:
        generation = await generation_of(link, stream, processor)
        if any(reset.generation != generation.number for reset in resets):
            raise MigrationConflict(
                f'"{stream.name}" was divided anew, and "{processor}" has gone on to its generation '
                f"{generation.number} since this was planned. Nothing was changed. Plan it again."
            )
        keys = stream.keys_of(generation)
        for reset in resets:
            await scripts.reset(link, keys, processor, reset.partition, reset.offset.encode(), reset.count)
        await queries.publish(link, keys.control(processor), queries.MOVED)


async def _shifted(link: Link, keys: StreamKeys, partition: int, look: Look, by: int) -> bytes:
    """The position so many entries further on or back; the end or the beginning where there are fewer."""
    offset = BEGINNING if look.offset is None else look.offset
    if by >= 0:
        return await queries.entry_after(link, keys, partition, offset, by) or offset
    # To repeat n of the entries up to the position, go on behind the one before them.
    return await queries.entry_back(link, keys, partition, offset, -by) or BEGINNING
