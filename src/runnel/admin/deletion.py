"""Forgetting a processor: its positions, its group, and its say in what may be trimmed."""

from dataclasses import dataclass
from typing import Any

from runnel._core.generations import Generations
from runnel._redis import queries, scripts
from runnel._redis.generations import forget_processor
from runnel.admin.access import connected
from runnel.admin.status import look_at
from runnel.app import App
from runnel.errors import ProcessorInUse, UnknownProcessor, did_you_mean
from runnel.streams import Stream

__all__ = ["Deletion", "delete_processor", "plan_deletion"]


@dataclass(frozen=True, slots=True)
class Deletion:
    """What is known of a processor in Redis.

    Attributes:
        processor: its name.
        stream: what it processes.
        declared: whether the app has it on that stream; if so, and if a worker runs it again, it begins at the first
            event there is.
        lag: events that it has not processed.
        workers: those that run it; there must be none.
    """

    processor: str
    stream: str
    declared: bool
    lag: int
    workers: tuple[str, ...]


async def plan_deletion(app: App, processor: str) -> Deletion:
    """What :func:`delete_processor` would forget. Changes nothing.

    Arguments:
        app: the app.
        processor: name of a processor of the app, or of one that is only registered in Redis, on one of its streams.
            Of one that has been moved to another stream, what is left on a stream where the app does not have it any
            more comes first.

    Raises:
        UnknownProcessor: there is none, or nothing is known of it in Redis.
        RedisUnavailable: Redis cannot be reached.
    """
    async with connected(app) as link:
        registered: dict[str, list[Stream[Any]]] = {}
        found: dict[str, Generations] = {}
        for stream in app.streams.values():
            if generations := await stream.check(link):
                found[stream.name] = generations
                for one in generations.existing:
                    for name in await queries.registered_processors(link, stream.keys_of(one)):
                        registered.setdefault(name, []).append(stream)
        if processor not in registered:
            if processor in app.processors:
                raise UnknownProcessor(f'Redis knows nothing of "{processor}": no worker has ever run it.')
            known = [*app.processors, *registered]
            raise UnknownProcessor(
                f'There is no processor "{processor}", neither in the app "{app.name}" nor registered on one of its '
                f"streams.{did_you_mean(processor, known)}"
            )
        stream = min(registered[processor], key=lambda stream: _declares(app, processor, stream))
        state = await look_at(link, stream, processor, found[stream.name])
        workers = tuple(member.name for member in state.members if member.state != "silent")
        return Deletion(processor, stream.name, _declares(app, processor, stream), state.lag, workers)


def _declares(app: App, processor: str, stream: Stream[Any]) -> bool:
    """Whether the app has a processor of that name, and on that stream."""
    return processor in app.processors and app.processors[processor].stream is stream


async def delete_processor(app: App, deletion: Deletion) -> None:
    """Forget a processor. Events stay where they are; they may be trimmed without regard for it.

    Arguments:
        app: the app.
        deletion: what :func:`plan_deletion` has found.

    Raises:
        ProcessorInUse: workers run it; nothing was changed.
        RedisUnavailable: Redis cannot be reached. Repeat it: it can be done twice.
    """
    stream = app.streams[deletion.stream]
    async with connected(app) as link:
        generations = await stream.check(link)
        existing = () if generations is None else generations.existing
        # The groups first: while they have members, nothing is forgotten.
        alive = [
            name
            for generation in existing
            for name in await scripts.forget_group(link, stream.keys_of(generation).control(deletion.processor))
        ]
        if alive:
            raise ProcessorInUse(
                f'"{deletion.processor}" is run by {", ".join(alive)}. Stop its workers first; one that has crashed '
                "counts until its session timeout has passed."
            )
        # The registrations last: as long as there is one, this can be done again.
        await forget_processor(link, stream.keys, deletion.processor)
        for generation in existing:
            keys = stream.keys_of(generation)
            for slot_group in range(keys.slot_groups):
                partitions = [p for p in range(generation.partition_count) if keys.slot_group(p) == slot_group]
                await scripts.forget_positions(link, keys, deletion.processor, slot_group, partitions)
