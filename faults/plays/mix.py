"""A random mix of all that the other plays do, two things at a time now and then, a quarter of the time quiet."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from faults.plays import network, poison, processes, servers
from faults.plays.play import Play, Scene, give
from faults.records import PARTITIONS

Stroke = Callable[[Scene], Awaitable[None]]

LEAST_WORKERS, MOST_WORKERS = 3, 6


async def freeze(scene: Scene) -> None:
    """Some workers, for less or for more than a session."""
    await scene.stage.frozen(scene.some(2), scene.rng.choice((0.5, 2.0)) * scene.stage.session)


async def block(scene: Scene) -> None:
    """An event that blocks its worker's event loop for two sessions."""
    give(scene, f"block {2 * scene.stage.session}")


async def cut(scene: Scene) -> None:
    """A worker, in one direction or both, for more or for less than a session."""
    up, down = scene.rng.choice(((True, True), (True, False), (False, True)))
    await network.cut_one(scene, up=up, down=down, seconds=scene.rng.choice((0.5, 2.0)) * scene.stage.session)


async def trouble(scene: Scene) -> None:
    """What a bad network does, to several processes, one after the other."""
    for _ in range(3):
        await network.trouble(scene, scene.rng.choice([*scene.stage.alive, *scene.stage.producers]))


async def slow(scene: Scene) -> None:
    """A partition that takes long for each event."""
    scene.stage.slow_down(scene.rng.randrange(PARTITIONS), 10.0)
    await asyncio.sleep(scene.stage.session)
    scene.stage.speed_up()


async def undecodable(scene: Scene) -> None:
    """Entries that are no records."""
    for fields in poison.RAW:
        await scene.stage.inject(scene.rng.randrange(PARTITIONS), *fields)


async def large(scene: Scene) -> None:
    """An event of 20 MB."""
    give(scene, f"large {poison.LARGE}")


async def scale(scene: Scene) -> None:
    """More workers, or fewer."""
    stage = scene.stage
    if len(stage.alive) < MOST_WORKERS and scene.rng.random() < 0.5:
        await scene.start_worker()
    elif len(stage.alive) > LEAST_WORKERS:
        stage.terminate(scene.one())


STROKES: tuple[Stroke, ...] = (
    processes.kill_one,
    processes.kill_one,
    processes.replace_one,
    freeze,
    block,
    cut,
    trouble,
    slow,
    undecodable,
    large,
    scale,
    servers.crash_it,
    servers.crash_it,
    servers.pause,
    servers.sleep,
    servers.fill_memory,
    servers.command_without_harm,
    servers.command_without_harm,
    servers.command_with_harm,
)

ALONE: tuple[Stroke, ...] = (poison.delete_unread, processes.hold_one)
"""What waits for others to do their work: an order may be lost when the server crashes at the same time."""


async def mix(scene: Scene) -> None:
    """One or two strokes at once; then a quiet time of a third of what they took."""
    stage, strokes = scene.stage, 0
    stage.forgiven = {3: "unreachable"}  # whoever starts while the server is away does not wait for it
    until = time.monotonic() + scene.seconds
    await asyncio.sleep(3.0)  # what was set up before the first crash is on disk
    while time.monotonic() < until:
        stage.check_processes()
        while len(stage.alive) < LEAST_WORKERS:
            await scene.start_worker()
        number = scene.rng.choice((1, 1, 2))
        chosen = scene.rng.sample((*STROKES, *ALONE) if number == 1 else STROKES, number)
        names = " and ".join(stroke.__name__ for stroke in chosen)
        started = time.monotonic()
        await asyncio.gather(*(stroke(scene) for stroke in chosen))
        stage.note(f"mix: {names}", started)
        strokes += len(chosen)
        await asyncio.sleep(max(0.5, (time.monotonic() - started) / 3))
    scene.figures["strokes"] = strokes
    while len(stage.alive) < LEAST_WORKERS:
        await scene.start_worker()
    await stage.shared()
    await stage.handled(100)


PLAYS = (
    Play(
        "F18",
        "a random mix of all of it, a quarter of the time quiet",
        mix,
        seconds=30.0,
        proxied=True,
        append_only=True,
        server=("--enable-debug-command", "yes"),
        environment={"FAULTS_POLICY": "ignore", "FAULTS_POISON_EVERY": "100", "RUNNEL_SEND_TIMEOUT": "5"},
    ),
)
