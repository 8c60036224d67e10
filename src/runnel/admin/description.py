"""How a stream is laid out in Redis, and where its processors are in it."""

from dataclasses import dataclass
from typing import Any

from runnel._core.generations import Generation
from runnel._core.slots import slot_of
from runnel._redis import queries, scripts
from runnel._redis.link import Link
from runnel.admin.access import connected
from runnel.app import App
from runnel.errors import UnusedStream
from runnel.streams import Stream

__all__ = ["Description", "GenerationDescription", "PartitionDescription", "describe_stream", "registered_in"]


@dataclass(frozen=True, slots=True)
class PartitionDescription:
    """A partition.

    Attributes:
        partition: its number.
        slot_group: the slot group that it is in.
        slot: its hash slot on a Redis Cluster.
        key: of its log.
        entries: that there are.
        last: id of the last entry that was ever added; ``None`` for none.
        positions: processor -> id of the last event that it has processed; ``None`` if it never had the partition.
    """

    partition: int
    slot_group: int
    slot: int
    key: str
    entries: int
    last: str | None
    positions: dict[str, str | None]


@dataclass(frozen=True, slots=True)
class GenerationDescription:
    """One generation of a stream: how it is divided, and whether producers append to it.

    Attributes:
        generation: its number; 0 for the first.
        partition_count: of its partitions.
        slot_groups: over how many they are spread.
        in_use: whether producers append to it.
        partitions: in the order of their numbers.
    """

    generation: int
    partition_count: int
    slot_groups: int
    in_use: bool
    partitions: tuple[PartitionDescription, ...]


@dataclass(frozen=True, slots=True)
class Description:
    """A stream.

    Attributes:
        stream: its name.
        hasher: from a key to a number, by name.
        format: of the records.
        metadata: the key of what is stored about it.
        generations: those whose logs there are, the one in use last.
        processors: registered ones, and the generation that each is at.
        moved: address of the server that it was moved to, or is being moved to; else empty.
    """

    stream: str
    hasher: str
    format: str
    metadata: str
    generations: tuple[GenerationDescription, ...]
    processors: dict[str, int]
    moved: str


async def describe_stream(app: App, stream: Stream[Any]) -> Description:
    """How a stream is laid out. Changes nothing.

    Arguments:
        app: the app.
        stream: one of its streams.

    Raises:
        UnusedStream: nothing was ever sent to it, and no worker has run.
        MetadataMismatch: it is stored with other properties.
        RedisUnavailable: Redis cannot be reached.
    """
    async with connected(app) as link:
        generations = await stream.check(link)
        if generations is None:
            raise UnusedStream(
                f'Nothing is stored of "{stream.name}": nothing was ever sent to it, and no worker has run. It will '
                f"have {stream.partition_count} partitions."
            )
        stored = await queries.metadata(link, stream.keys)
        names = await registered_in(link, stream, generations.existing)
        described = []
        for generation in generations.existing:
            partitions = await _partitions(link, stream, generation, names)
            described.append(
                GenerationDescription(
                    generation.number,
                    generation.partition_count,
                    generation.slot_groups,
                    generation is generations.current,
                    partitions,
                )
            )
        return Description(
            stream.name,
            stored["hasher"],
            stored["format"],
            stream.keys.metadata,
            tuple(described),
            {name: generations.of_processor(stream.keys.group_name(name)).number for name in names},
            generations.moved or generations.moving,
        )


async def registered_in(link: Link, stream: Stream[Any], generations: tuple[Generation, ...]) -> list[str]:
    """The processors that are registered on any of these generations."""
    found: set[str] = set()
    for generation in generations:
        found.update(await queries.registered_processors(link, stream.keys_of(generation)))
    return sorted(found)


async def _partitions(
    link: Link, stream: Stream[Any], generation: Generation, names: list[str]
) -> tuple[PartitionDescription, ...]:
    keys, everything = stream.keys_of(generation), range(generation.partition_count)
    looks = {name: await scripts.look(link, keys, name, everything) for name in names}
    found = []
    for partition in everything:
        state = await queries.log_state(link, keys, partition)
        offsets = {name: looks[name][partition].offset for name in names}
        found.append(
            PartitionDescription(
                partition,
                keys.slot_group(partition),
                slot_of(keys.log(partition)),
                keys.log(partition),
                0 if state is None else state.length,
                None if state is None or state.added == 0 else state.last.decode(),
                {name: None if offset is None else offset.decode() for name, offset in offsets.items()},
            )
        )
    return tuple(found)
