"""Faults of the server: restarted, stopped for a while, at another time, out of memory, and emptied by hand."""

import asyncio
import time
from collections.abc import Iterable

from faults.checker import Violation
from faults.history import History
from faults.places import OneServer
from faults.plays.play import Play, Scene
from faults.plays.processes import no_false_alarm, nothing_moves
from faults.records import PARTITIONS

# F6


async def restart(scene: Scene) -> None:
    """Crash the server, sometimes without its last writes; stop it with DEBUG SLEEP; hold its clients; in turn."""
    stage = scene.stage
    await asyncio.sleep(3.0)  # what was set up before the first crash is on disk
    until = time.monotonic() + scene.seconds
    while True:
        await stage.handled(150)
        await crash_it(scene)
        await stage.handled(150)
        await asyncio.sleep(1.0)  # so that faults do not make up a single one that is longer than a session
        if time.monotonic() > until:
            return
        await pause(scene)
        await stage.handled(150)
        await asyncio.sleep(1.0)
        await sleep(scene)
        await stage.handled(150)
        await asyncio.sleep(1.0)


async def crash_it(scene: Scene) -> None:
    """Crash the server and start it again."""
    place = scene.stage.place
    assert isinstance(place, OneServer)
    crashed = await place.crash(scene.rng.uniform(0.1, 1.0), scene.rng.choice((0.0, 0.5, 1.5)))
    scene.stage.note("crash", crashed)


async def pause(scene: Scene) -> None:
    """Hold its clients for half a session."""
    await scene.stage.ask("CLIENT", "PAUSE", int(scene.stage.session * 500), scene.rng.choice(("ALL", "WRITE")))


async def sleep(scene: Scene) -> None:
    """Stop it for half a session."""
    await scene.stage.ask("DEBUG", "SLEEP", scene.stage.session / 2)


def nobody_is_evicted(history: History, scene: Scene) -> Iterable[Violation]:
    """Every partition stays with its owner."""
    yield from (violation for violation in nothing_moves(history, scene) if violation.check != "repeat")


# F11


async def clocks(scene: Scene) -> None:
    """The server's clock jumps an hour ahead, back, and runs at double speed."""
    stage, place = scene.stage, scene.stage.place
    assert isinstance(place, OneServer)
    assert place.clock is not None
    for ahead, factor in ((3600, 1), (0, 1), (-3600, 1), (0, 2), (0, 1)):
        started = time.monotonic()
        place.clock.set(ahead, factor)
        await stage.handled(150)
        await asyncio.sleep(scene.seconds / 5)
        stage.note("clock", started)


def ids_grow(history: History, scene: Scene) -> Iterable[Violation]:
    """Jumps evict nobody, ids never fall, and nothing is taken for lost."""
    yield from nothing_moves(history, scene)
    yield from no_false_alarm(history, "SequenceGap", "LossDetected", "LogReplaced")
    last: dict[str, tuple[int, tuple[int, int]]] = {}
    for send in sorted(history.sends.values(), key=lambda send: send.serial):
        if send.id is not None:
            before = last.get(send.key)
            if before is not None and send.id <= before[1]:
                yield Violation("F11", f"{send} has a lower id than the event before it, {before}")
            last[send.key] = (send.number, send.id)


# F14


async def memory(scene: Scene) -> None:
    """maxmemory at what is used: producers cannot append, workers go on; then there is memory again."""
    until = time.monotonic() + scene.seconds
    while time.monotonic() < until:
        await fill_memory(scene)
        await scene.stage.handled(150)


async def fill_memory(scene: Scene) -> None:
    """No memory is left for a while."""
    stage = scene.stage
    info = (await stage.ask("INFO", "memory")).decode()
    used = int(next(line for line in info.splitlines() if line.startswith("used_memory:")).split(":")[1])
    await stage.ask("CONFIG", "SET", "maxmemory", max(used - 100_000, 1))
    started = time.monotonic()
    await asyncio.sleep(min(5.0, scene.seconds / 4))
    stage.note("memory", started)
    await stage.ask("CONFIG", "SET", "maxmemory", 0)


def producers_had_to_wait(history: History, scene: Scene) -> Iterable[Violation]:
    """Nothing moves, nothing is repeated; and there was no memory indeed: sends had to wait."""
    yield from nothing_moves(history, scene)
    waits = [
        (note.at - note.fields.get("seconds", 0.0), note.at)
        for note in history.notes
        if note.name in ("RedisLost", "RedisRecovered") and note.fields["role"] == "send"
    ]
    for d in history.disturbances:
        if d.kind == "memory" and not any(since <= d.ended and until >= d.started for since, until in waits):
            yield Violation("F14", "no send had to wait; that is not what was played", d.started)


# F15


async def destroy(scene: Scene) -> None:
    """Each command that an operator may regret."""
    stage = scene.stage
    harmless = _without_harm(scene)
    scene.rng.shuffle(harmless)
    for command in harmless:
        await stage.ask(*command)
        await stage.handled(60)
    for key in await stage.ask("KEYS", f"{stage.steps.keys.sequences_prefix(0)}*"):
        # Here alone, and not in a mix: an append that is being repeated then would be doubled.
        await stage.ask("DEL", key)
    await stage.handled(60)
    await stage.shared()
    for harm in _with_harm(scene):
        await _destroying(scene, *harm)
        await stage.handled(100)
        await stage.shared()


def _without_harm(scene: Scene) -> list[tuple[object, ...]]:
    """What loses nothing but what can be made again."""
    stage, keys = scene.stage, scene.stage.steps.keys
    return [
        ("SCRIPT", "FLUSH"),
        ("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"),
        ("CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes"),
        *(("XGROUP", "DESTROY", keys.log(p), "record") for p in scene.rng.sample(range(PARTITIONS), 3)),
        *(("DEL", key) for key in (stage.control.group, stage.control.members, stage.control.targets)),
        ("DEL", stage.control.owners),
        ("DEL", stage.control.slow),
        ("DEL", keys.metadata),
        ("DEL", keys.registered(0)),
    ]


def _with_harm(scene: Scene) -> list[tuple[str, tuple[object, ...], int | None]]:
    """What destroys events, or forgets positions; and of which partition, ``None`` for all."""
    keys = scene.stage.steps.keys
    first, second, third, fourth = scene.rng.sample(range(PARTITIONS), 4)
    return [
        ("destroy", ("XTRIM", keys.log(first), "MAXLEN", 0), first),
        ("destroy", ("XTRIM", keys.log(second), "MAXLEN", 0), second),
        ("destroy", ("DEL", keys.log(third)), third),
        ("destroy", ("DEL", keys.log(fourth)), fourth),
        ("forget", ("DEL", keys.positions(0, "record")), None),
        ("destroy", ("FLUSHALL",), None),
    ]


async def command_without_harm(scene: Scene) -> None:
    """One of them."""
    await scene.stage.ask(*scene.rng.choice(_without_harm(scene)))


async def command_with_harm(scene: Scene) -> None:
    """One of them."""
    await _destroying(scene, *scene.rng.choice(_with_harm(scene)))


async def _destroying(scene: Scene, kind: str, command: tuple[object, ...], partition: int | None) -> None:
    started = time.monotonic()
    await scene.stage.ask(*command)
    scene.stage.note(kind, started, partition=partition)


PLAYS = (
    Play(
        "F6",
        "the server crashes and restarts, sleeps, pauses its clients",
        restart,
        nobody_is_evicted,
        append_only=True,
        server=("--enable-debug-command", "yes"),
    ),
    Play("F11", "the server's clock jumps and runs at another speed", clocks, ids_grow, seconds=15, clock=True),
    Play("F14", "no memory is left in the server", memory, producers_had_to_wait, seconds=15),
    Play("F15", "commands that destroy", destroy),
)
