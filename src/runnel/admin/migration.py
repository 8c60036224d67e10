"""Dividing a stream anew, while producers and workers go on."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from runnel._core.generations import Generation, Generations
from runnel._redis import generations as steps
from runnel._redis import queries, scripts
from runnel._redis.durability import confirmation
from runnel._redis.groups import group_state
from runnel._redis.link import Link
from runnel.admin.access import connected
from runnel.admin.description import registered_in
from runnel.admin.lag import waiting
from runnel.admin.status import is_silent
from runnel.app import App
from runnel.errors import ConfigurationError, MigrationConflict, UnusedStream
from runnel.streams import Stream

__all__ = ["Migration", "Remaining", "begin_migration", "plan_migration", "purge_generations", "watch_migration"]

MOST_PARTITIONS = 4096
"""As the setting ``partition_count``."""

INTERVAL = 0.5
"""Seconds between two looks at what the processors have left."""


@dataclass(frozen=True, slots=True)
class Remaining:
    """A processor that is not at the generation in use yet.

    Attributes:
        processor: its name.
        generation: where it is.
        events: that it has not processed in generations before the one in use.
        workers: that run it. If there are none, nothing becomes less.
        paused: whether a person has paused it; then it does not go on either.
        quarantined: partitions that are; neither.
    """

    processor: str
    generation: int
    events: int
    workers: int
    paused: bool
    quarantined: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Migration:
    """What :func:`begin_migration` would do, or has done.

    Attributes:
        stream: its name.
        before: the generation in use.
        after: the one that takes its place; the same one if the stream is divided like that already.
        earlier: those before ``after`` whose logs there are.
        remaining: the processors that have something left in those. What is sent after the migration waits for that.
    """

    stream: str
    before: Generation
    after: Generation
    earlier: tuple[Generation, ...]
    remaining: tuple[Remaining, ...]

    @property
    def needed(self) -> bool:
        """Whether there is anything to change."""
        return self.after != self.before


async def plan_migration(
    app: App, stream: Stream[Any], *, partition_count: int | None = None, slot_groups: int | None = None
) -> Migration:
    """What it would mean to divide a stream anew. Changes nothing.

    Arguments:
        app: the app.
        stream: what to divide.
        partition_count: how many partitions it shall have; ``None`` for as many as it has.
        slot_groups: over how many slot groups they shall be spread; ``None`` for as many as now, or as a new stream
            with a ``partition_count`` that is given would have on these servers if that is more.
            Where both are ``None``, and somebody has begun to divide it, that is gone on with.

    Raises:
        UnusedStream: it was never used, so that its declaration counts.
        ConfigurationError: a number is out of range.
        MigrationConflict: somebody has begun to divide it in another way.
        MetadataMismatch: it is stored with other properties.
        RedisUnavailable: Redis cannot be reached.
    """
    async with connected(app) as link:
        generations = await _generations(link, stream)
        current = generations.current
        after = generations.following
        if after is None or partition_count is not None or slot_groups is not None:
            after = current.divided_anew(partition_count, slot_groups, primaries=len(await link.endpoint.primaries()))
        if not 1 <= after.partition_count <= MOST_PARTITIONS:
            raise ConfigurationError(f"A stream has 1 to {MOST_PARTITIONS} partitions, not {after.partition_count}.")
        if not 1 <= after.slot_groups <= after.partition_count:
            raise ConfigurationError(
                f"{after.partition_count} partitions can be in 1 to {after.partition_count} slot groups, not "
                f"{after.slot_groups}."
            )
        if generations.following not in (None, after):
            raise _conflict(stream, generations)
        if after.division == current.division and generations.following is None:
            after = current
        earlier = tuple(one for one in generations.existing if one.number < after.number)
        return Migration(
            stream.name, current, after, earlier, await _remaining(link, app, stream, generations, earlier)
        )


async def begin_migration(app: App, stream: Stream[Any], migration: Migration) -> None:
    """Let producers go over to another division of the stream, and tell the workers.

    1. Declare the new generation.
    2. Seal the old one, and name the new one: see :func:`runnel._redis.generations.see_through`.
    3. Wake the workers. Each goes over when everything in the old generation is processed.

    It may be interrupted at any point, and done again; two at once do what one does.

    Arguments:
        app: the app.
        stream: what to divide.
        migration: what :func:`plan_migration` has found.

    Raises:
        MigrationConflict: somebody has begun to divide it in another way.
        RedisUnavailable: Redis cannot be reached. Repeat it.
    """
    async with connected(app) as link:
        if migration.needed and not await steps.propose(link, stream.keys, migration.after):
            generations = await _generations(link, stream)
            if generations.newest != migration.after and migration.after not in generations.existing:
                raise _conflict(stream, generations)
        generations = await steps.see_through(link, stream.keys, confirmation(stream.options.durability))
        for generation in generations.existing:
            for name in await queries.registered_processors(link, stream.keys_of(generation)):
                await queries.publish(link, stream.keys_of(generation).control(name), queries.SEALED)


async def watch_migration(app: App, stream: Stream[Any]) -> AsyncIterator[tuple[Remaining, ...]]:
    """What is left to process before the generation in use, every half second; the last time, nothing.

    Arguments:
        app: the app.
        stream: what was divided anew.

    Raises:
        UnusedStream: it was never used.
        RedisUnavailable: Redis cannot be reached. Call it again to go on.
    """
    async with connected(app) as link:
        while True:
            generations = await _generations(link, stream)
            left = await _remaining(link, app, stream, generations, generations.existing[:-1])
            yield left
            if not left:
                return
            await asyncio.sleep(INTERVAL)


async def purge_generations(app: App, stream: Stream[Any]) -> list[Generation]:
    """Remove the logs of earlier generations that every registered processor has processed.

    Arguments:
        app: the app.
        stream: what was divided anew.

    Returns:
        Those that were removed.

    Raises:
        UnusedStream: it was never used.
        RedisUnavailable: Redis cannot be reached. Repeat it.
    """
    purged = []
    async with connected(app) as link:
        generations = await _generations(link, stream)
        left = await _remaining(link, app, stream, generations, generations.existing[:-1])
        needed = min((one.generation for one in left), default=generations.current.number)
        for generation in generations.earlier:  # those that are gone already too: that may have been interrupted
            if generation.number < needed:
                keys = stream.keys_of(generation)
                for name in await queries.registered_processors(link, keys):
                    await scripts.forget_group(link, keys.control(name))
                await steps.forget(link, stream.keys, generation)
                if generation.number >= generations.oldest:
                    purged.append(generation)
    return purged


async def _generations(link: Link, stream: Stream[Any]) -> Generations:
    generations = await stream.check(link)
    if generations is None:
        raise UnusedStream(
            f'Nothing is stored of "{stream.name}", so there is nothing to migrate: what its declaration says counts.'
        )
    if address := generations.moving or generations.moved:
        raise MigrationConflict(f'"{stream.name}" is moved to {address}. Migrate it there.')
    return generations


async def _remaining(
    link: Link, app: App, stream: Stream[Any], generations: Generations, earlier: tuple[Generation, ...]
) -> tuple[Remaining, ...]:
    """The processors that have something left in earlier generations, or whose workers are about to go on.

    A processor of the app that is not registered there yet counts if it has workers: they have just begun.
    """
    found = []
    registered = await registered_in(link, stream, earlier)
    ours = [name for name, processor in app.processors.items() if processor.stream is stream]
    for name in sorted({*registered, *ours}):
        at = generations.of_processor(stream.keys.group_name(name)).number
        for generation in (one for one in earlier if one.number >= at):
            keys = stream.keys_of(generation)
            looks = await scripts.look(link, keys, name, range(generation.partition_count))
            events = sum([await waiting(link, keys, partition, one) for partition, one in looks.items()])
            group = await group_state(link, keys.control(name))
            alive = [member for member in group.members if not is_silent(member)]
            if alive or (events and name in registered):
                found.append(
                    Remaining(
                        name,
                        generation.number,
                        events,
                        len(alive),
                        group.paused is not None,
                        tuple(sorted(group.quarantined)),
                    )
                )
                break
    return tuple(found)


def _conflict(stream: Stream[Any], generations: Generations) -> MigrationConflict:
    new = generations.newest
    return MigrationConflict(
        f'Somebody else has divided "{stream.name}" anew, into {new.partition_count} partitions in {new.slot_groups} '
        "slot groups. See `runnel stream describe`; if that is not what you want, migrate it from there."
    )
