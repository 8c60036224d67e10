"""Dead letters: looking at them, sending them back to where they come from, and removing them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from runnel._core.entry_ids import parse
from runnel._redis import queries, scripts
from runnel._redis.link import Link
from runnel.admin.access import connected
from runnel.app import App
from runnel.errors import NoSuchLetter, StreamFull
from runnel.events import Event
from runnel.middleware.dead_letter import DEAD_LETTER_HEADERS, DeadLetterMiddleware, routed, sink_of
from runnel.processors import Processor
from runnel.streams import Stream

__all__ = [
    "DeadLetter",
    "Plan",
    "list_dead_letters",
    "patience_for",
    "plan_purge",
    "plan_replay",
    "purge_dead_letters",
    "replay_dead_letters",
    "sinks",
]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that failed.

    Attributes:
        name: ``partition/id`` in the stream of dead letters.
        stream: that stream's name.
        processor: which failed; ``None`` where it does not say.
        error: type and message; ``None`` where it does not say.
        source: ``stream/partition/id`` of the event that failed; ``None`` where it does not say.
        event: the letter itself.
    """

    name: str
    stream: str
    processor: str | None
    error: str | None
    source: str | None
    event: Event[Any] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """What can be done with a letter.

    Attributes:
        letter: the letter.
        to: the stream that it comes from and goes back to; ``None`` if it cannot.
        obstacle: why it must stay; else empty.
    """

    letter: DeadLetter
    to: str | None
    obstacle: str = ""


async def list_dead_letters(app: App, stream: Stream[Any], names: Sequence[str] | None = None) -> list[DeadLetter]:
    """The dead letters of a stream, the oldest first.

    Arguments:
        app: the app.
        stream: whose events failed, or where the dead letters are.
        names: ``partition/id``, or only the id; ``None`` for all.

    Raises:
        NoSuchLetter: one of the names is not there.
        RedisUnavailable: Redis cannot be reached.
    """
    async with connected(app) as link:
        return await _letters(link, app, stream, names)


async def plan_replay(app: App, stream: Stream[Any], names: Sequence[str] | None = None) -> list[Plan]:
    """What :func:`replay_dead_letters` would do. Changes nothing. Arguments and errors as :func:`list_dead_letters`."""
    return [_to_source(app, plan) for plan in await plan_purge(app, stream, names)]


async def plan_purge(app: App, stream: Stream[Any], names: Sequence[str] | None = None) -> list[Plan]:
    """What :func:`purge_dead_letters` would do. Changes nothing. Arguments and errors as :func:`list_dead_letters`."""
    async with connected(app) as link:
        unread: dict[str, str] = {}
        for sink in sinks(app, stream):
            unread |= await _unread(link, sink)
        plans = []
        for letter in await _letters(link, app, stream, names):
            processor = unread.get(f"{letter.stream}/{letter.name}")
            plans.append(Plan(letter, None, f'"{processor}" has not processed it yet' if processor else ""))
        return plans


async def replay_dead_letters(app: App, plans: Sequence[Plan]) -> int:
    """Move letters back to the streams they come from, each to the partition of its own key.

    Each is appended once, also if this is interrupted and done again (within a week), and then removed from the dead
    letters. It comes after everything that was sent meanwhile, later events of its own key included.

    Arguments:
        app: the app.
        plans: what :func:`plan_replay` has found; any part of it.

    Returns:
        How many were moved. Those with an obstacle stay.

    Raises:
        StreamFull: a stream has no room. What was not moved is still there.
        RedisUnavailable: Redis cannot be reached. Repeat it.
    """
    moved = 0
    async with app, connected(app) as link:
        for plan in plans:
            if plan.to is None or plan.letter.source is None:
                continue
            event, to = plan.letter.event, app.streams[plan.to]
            kept = {name: value for name, value in event.headers.items() if name not in DEAD_LETTER_HEADERS}
            origin = f"replay/{event.stream}/{event.partition}/{event.id}"
            partition = int(plan.letter.source.rsplit("/", 2)[1])
            async with patience_for(to):
                await to.send_once(
                    routed(to, event, partition),
                    [part for item in event.data.items() for part in item],
                    {**kept, "replayed": f"{event.stream}/{event.partition}/{event.id}"},
                    origin=origin,
                )
            moved += await _remove(link, app, [plan.letter])
    return moved


async def purge_dead_letters(app: App, plans: Sequence[Plan]) -> int:
    """Remove letters for good.

    Arguments:
        app: the app.
        plans: what :func:`plan_purge` has found; any part of it.

    Returns:
        How many were removed. Those with an obstacle stay.

    Raises:
        RedisUnavailable: Redis cannot be reached. Repeat it.
    """
    async with connected(app) as link:
        return await _remove(link, app, [plan.letter for plan in plans if not plan.obstacle])


def sinks(app: App, stream: Stream[Any], processor: Processor[Any] | None = None) -> list[Stream[Any]]:
    """Where dead letters of a stream are: what its processors' middleware says, or the stream ``<name>.dead``.

    Arguments:
        app: the app.
        stream: whose events failed; if it is itself where dead letters go, that is the answer.
        processor: where those of this one go; never to the stream itself, also if that has dead letters.
    """
    chosen = app.processors.values() if processor is None else [processor]
    every = [m for one in chosen for m in one.middleware if isinstance(m, DeadLetterMiddleware)]
    if processor is None and (stream.name.endswith(".dead") or any(m.sink is stream for m in every)):
        return [stream]
    usual = sink_of(stream)
    found = {m.sink.name: m.sink for m in every if m.source is stream is not m.sink}
    return list(found.values()) if processor is not None and found else list({**found, usual.name: usual}.values())


@asynccontextmanager
async def patience_for(stream: Stream[Any]) -> AsyncIterator[None]:
    """Sending once waits for ever; a command does not.

    Raises:
        StreamFull: the stream's ``on_full_timeout`` has passed.
    """
    seconds = stream.options.limits.on_full_timeout
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise StreamFull(
            f'"{stream.name}" has not taken the event within {seconds:g} s: it is full, or Redis is away. Do it again '
            "later; nothing is sent twice."
        ) from None


async def _letters(link: Link, app: App, stream: Stream[Any], names: Sequence[str] | None) -> list[DeadLetter]:
    found: list[DeadLetter] = []
    for sink in sinks(app, stream):
        if not await sink.check(link):
            continue  # nothing ever failed
        for partition in range(sink.partition_count):
            first = b"-"
            while part := await queries.entries(link, sink.keys, partition, first):
                found += [_letter(Event(sink.name, partition, entry, sink.codec)) for entry in part]
                first = b"(" + part[-1][0]
    found.sort(key=lambda letter: parse(letter.event.id))
    if names is None:
        return found
    missing = [name for name in names if all(name not in (one.name, one.event.id) for one in found)]
    if missing:
        raise NoSuchLetter(f'There is no dead letter "{missing[0]}". `runnel dead list` shows those there are.')
    return [one for one in found if one.name in names or one.event.id in names]


def _letter(event: Event[Any]) -> DeadLetter:
    said = {name: value.decode(errors="replace") for name, value in event.headers.items()}
    return DeadLetter(
        f"{event.partition}/{event.id}",
        event.stream,
        said.get("processor"),
        said.get("error"),
        said.get("source"),
        event,
    )


def _to_source(app: App, plan: Plan) -> Plan:
    parts = (plan.letter.source or "").rsplit("/", 2)
    if plan.obstacle:
        return plan
    if len(parts) != 3 or not parts[1].isdigit():
        return replace(plan, obstacle="it does not say where it comes from")
    if parts[0] not in app.streams:
        return replace(plan, obstacle=f'the app has no stream "{parts[0]}"')
    return replace(plan, to=parts[0])


async def _unread(link: Link, sink: Stream[Any]) -> dict[str, str]:
    """The letters that a registered processor has not processed yet, by ``stream/partition/id``."""
    found: dict[str, str] = {}
    if not await sink.check(link):
        return found
    for processor in await queries.registered_processors(link, sink.keys):
        looks = await scripts.look(link, sink.keys, processor, range(sink.partition_count))
        for partition, look in looks.items():
            first = look.following
            while first and (part := await queries.entries(link, sink.keys, partition, first)):
                found |= {f"{sink.name}/{partition}/{entry[0].decode()}": processor for entry in part}
                first = b"(" + part[-1][0]
    return found


async def _remove(link: Link, app: App, letters: Sequence[DeadLetter]) -> int:
    by_log: dict[str, list[str]] = {}
    for letter in letters:
        log = app.streams[letter.stream].keys.log(letter.event.partition)
        by_log.setdefault(log, []).append(letter.event.id)
    return sum([await queries.delete_entries(link, log, ids) for log, ids in by_log.items()])
