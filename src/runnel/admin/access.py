"""What the functions of this package begin with: a connection, and names that must exist."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from runnel._core.generations import Generation
from runnel._redis.generations import generations_of
from runnel._redis.link import Link
from runnel.app import App
from runnel.errors import NoSuchPlace, UnknownProcessor, did_you_mean
from runnel.processors import Processor
from runnel.streams import Stream

__all__ = ["chosen_partitions", "connected", "generation_of", "processor_of"]


@asynccontextmanager
async def connected(app: App) -> AsyncIterator[Link]:
    """Connections to the servers of an app, for a block."""
    link = app.endpoint.link()
    try:
        yield link
    finally:
        await link.close()


def processor_of(app: App, name: str) -> Processor[Any]:
    """The processor of that name.

    Raises:
        UnknownProcessor: the app has none.
    """
    if not isinstance(name, str):
        raise UnknownProcessor(f'A processor is given by its name, such as "printer", not as a {type(name).__name__}.')
    if name not in app.processors:
        known = ", ".join(app.processors) or "none"
        raise UnknownProcessor(
            f'The app "{app.name}" has no processor "{name}".{did_you_mean(name, app.processors)} It has: {known}.'
        )
    return app.processors[name]


async def generation_of(link: Link, stream: Stream[Any], processor: str) -> Generation:
    """The generation of a stream that a processor is at; of what was never used, the first one."""
    found = await generations_of(link, stream.keys)
    return stream.generation if found is None else found.of_processor(stream.keys.group_name(processor))


def chosen_partitions(
    stream: Stream[Any], partitions: Iterable[int] | None, generation: Generation | None = None
) -> list[int]:
    """The partitions of a generation of a stream, or those that were named, each once and in order.

    Arguments:
        stream: the stream.
        partitions: their numbers; ``None`` for all.
        generation: default: the one in use.

    Raises:
        NoSuchPlace: one does not exist.
    """
    count = (generation or stream.generation).partition_count
    if partitions is None:
        return list(range(count))
    for partition in partitions:
        if not 0 <= partition < count:
            raise NoSuchPlace(f'Stream "{stream.name}" has the partitions 0 to {count - 1}, but not {partition}.')
    return sorted(set(partitions))
