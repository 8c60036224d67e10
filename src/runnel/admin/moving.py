"""Moving a stream to another server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from runnel._core.generations import Generation, Generations
from runnel._core.slots import slot_groups_for
from runnel._redis import copying, queries
from runnel._redis import generations as steps
from runnel._redis.durability import confirmation
from runnel._redis.groups import group_state
from runnel._redis.link import Endpoint, Link
from runnel._redis.topology import endpoint_for
from runnel.admin.access import connected
from runnel.admin.dead_letters import sinks
from runnel.admin.description import registered_in
from runnel.app import App
from runnel.errors import MoveFailed, NotDurable, UnusedStream
from runnel.streams import Stream

__all__ = ["Move", "Moved", "move_stream", "plan_move"]

INTERVAL = 0.3
"""Seconds between two looks at whether the workers have let go."""


@dataclass(frozen=True, slots=True)
class Move:
    """What is to be moved: a stream.

    Attributes:
        stream: its name.
        to: where to; the address without its password.
        entries: that it has.
        processors: that are registered.
        workers: that run them now, and will stop to.
        moved: whether it is there already.
        slot_groups: of the generation in use; it keeps them.
        usual: slot groups that a new stream would have there.
    """

    stream: str
    to: str
    entries: int
    processors: tuple[str, ...]
    workers: tuple[str, ...]
    moved: bool
    slot_groups: int
    usual: int


@dataclass(frozen=True, slots=True)
class Moved:
    """How far a move is.

    Attributes:
        stream: name of the stream that is moved.
        step: a phrase, such as ``waiting for 2 workers``.
    """

    stream: str
    step: str


async def plan_move(app: App, stream: Stream[Any], to: str) -> list[Move]:
    """What :func:`move_stream` would move: the stream, and those for its dead letters. Changes nothing.

    Arguments:
        app: the app, with the address of the server where the stream is.
        stream: what to move.
        to: address of the other server, written as ``redis_url``.

    Raises:
        UnusedStream: nothing is stored of it.
        ConfigurationError: ``to`` is no address.
        MoveFailed: the other server has a stream of that name.
        MetadataMismatch: it is stored with other properties.
        RedisUnavailable: one of the servers cannot be reached.
    """
    endpoint = endpoint_for(to)
    async with connected(app) as link, _connected_to(endpoint) as target:
        await target.call("PING")
        if await stream.check(link) is None:
            raise UnusedStream(f'Nothing is stored of "{stream.name}", so there is nothing to move.')
        together = await _together(link, app, stream)
        await _look_there(link, target, together)
        return [await _plan(link, one, endpoint) for one in together]


async def move_stream(app: App, stream: Stream[Any], to: str) -> AsyncIterator[Moved]:
    """Move a stream, and then those for its dead letters, to another server, with all that belongs to them.

    1. Declare it, and seal the stream: producers wait from then on.
    2. Wait until the workers have let go: each finishes and commits the event in progress, and leaves the group.
    3. Copy logs with their ids, positions, seals, pauses, and what is known of what was sent once.
    4. Compare both servers.
    5. Let the stream be used there. Here, producers and workers that come get the error ``StreamMoved``.

    It may be interrupted at any point, and done again: it goes on behind what is there.

    Arguments:
        app: the app, with the address of the server where the stream is.
        stream: what to move.
        to: address of the other server, written as ``redis_url``.

    Yields:
        Each step when it is done, or what is waited for.

    Raises:
        MigrationConflict: it is being moved somewhere else already.
        MoveFailed: the other server has a stream of that name, or the copy is not the same.
        RedisUnavailable: one of the servers cannot be reached. Repeat it.
    """
    endpoint = endpoint_for(to)
    async with connected(app) as source, _connected_to(endpoint) as target:
        together = await _together(source, app, stream)
        await _look_there(source, target, together)
        for one in together:
            async for moved in _move(source, target, one, endpoint.safe_url):
                yield moved


async def _move(source: Link, target: Link, stream: Stream[Any], address: str) -> AsyncIterator[Moved]:
    generations = await stream.check(source)
    if generations is None or generations.moved:
        return
    confirm = confirmation(stream.options.durability)
    number = await steps.leave(source, stream.keys, address, uuid4().hex, confirm)  # 1
    yield Moved(stream.name, "sealed")
    stored = await queries.metadata(source, stream.keys)
    generations = await stream.check(source)
    assert generations is not None
    existing = generations.existing
    names = await registered_in(source, stream, existing)
    for generation in existing:
        for name in names:
            await queries.publish(source, stream.keys_of(generation).control(name), queries.SEALED)
    while workers := await _workers(source, stream, existing, names):  # 2
        yield Moved(stream.name, f"waiting for {', '.join(workers)}")
        await asyncio.sleep(INTERVAL)
    if await steps.arrive(target, stream.keys, stored, number):
        async for moved in _copy(source, target, stream, generations, names, address):  # 3, 4
            yield moved
    await steps.settle(source, target, stream.keys, number, address, confirm)  # 5
    yield Moved(stream.name, "moved")


async def _copy(
    source: Link, target: Link, stream: Stream[Any], generations: Generations, names: list[str], address: str
) -> AsyncIterator[Moved]:
    """Copy everything, and compare."""
    existing, confirm = generations.existing, confirmation(stream.options.durability)
    for generation in existing:
        keys = stream.keys_of(generation)
        for partition in range(generation.partition_count):
            if copied := await copying.copy_log(source, target, keys, partition, confirm):
                yield Moved(stream.name, f"copied {copied} events of partition {partition}")
        await copying.copy_positions(source, target, keys, generation, confirm)
        for name in names:
            await copying.copy_pause(source, target, keys, name)
    for generation in generations.earlier:
        await copying.copy_seals(source, target, stream.keys_of(generation))
    await copying.copy_sequences(source, target, [stream.keys_of(generation) for generation in existing])
    for generation in existing:
        for partition in range(generation.partition_count):
            if found := await copying.differences(source, target, stream.keys_of(generation), partition):
                raise MoveFailed(
                    f'"{stream.name}" is not the same on {address}: {"; ".join(found)}. It is not used there yet. See '
                    "whether somebody writes to it, and do it again."
                )


async def _look_there(source: Link, target: Link, streams: list[Stream[Any]]) -> None:
    """Make sure that all of them can be moved, before the first one is sealed.

    Raises:
        MoveFailed: the other server has a stream of that name, or cannot store it as its durability asks for.
        ConfigurationError: likewise.
    """
    for stream in streams:
        stored, durability = await queries.metadata(source, stream.keys), stream.options.durability
        if "moved" not in stored:
            await steps.vacant(target, stream.keys, stored.get("moving", "").partition("|")[0])
            await queries.check_durability(target, stream.keys, durability)
            try:
                await target.at(stream.keys.metadata).call("PING", confirm=confirmation(durability))
            except NotDurable as error:
                raise MoveFailed(
                    f'"{stream.name}" has durability="{durability}", and {target.endpoint.safe_url} cannot confirm it: '
                    f"{error} Nothing was changed."
                ) from error


async def _together(link: Link, app: App, stream: Stream[Any]) -> list[Stream[Any]]:
    """The stream, and those for its dead letters that were ever used."""
    return [stream, *[sink for sink in sinks(app, stream) if sink is not stream and await sink.check(link)]]


async def _plan(link: Link, stream: Stream[Any], endpoint: Endpoint) -> Move:
    generations = await stream.check(link)
    assert generations is not None
    existing = generations.existing
    names = await registered_in(link, stream, existing)
    entries = 0
    for generation in existing:
        keys = stream.keys_of(generation)
        entries += sum([await queries.length(link, keys, partition) for partition in range(generation.partition_count)])
    workers = await _workers(link, stream, existing, names)
    current = generations.current
    return Move(
        stream.name,
        endpoint.safe_url,
        entries,
        tuple(names),
        tuple(workers),
        bool(generations.moved),
        current.slot_groups,
        slot_groups_for(len(await endpoint.primaries()), current.partition_count),
    )


async def _workers(link: Link, stream: Stream[Any], generations: tuple[Generation, ...], names: list[str]) -> list[str]:
    """Who still has a seat, and may act on it: one whose connection is cut may, until its session has passed."""
    found: set[str] = set()
    for generation in generations:
        for name in names:
            group = await group_state(link, stream.keys_of(generation).control(name))
            found.update(member.name for member in group.members if member.silent <= member.session)
    return sorted(found)


@asynccontextmanager
async def _connected_to(endpoint: Endpoint) -> AsyncIterator[Link]:
    link = endpoint.link()
    try:
        yield link
    finally:
        await link.close()
