"""Faults of the network, between each process and the server."""

import asyncio
import time

from faults.plays.play import Play, Scene
from faults.plays.processes import fenced_in_time

# F9


async def cut(scene: Scene) -> None:
    """Cut a worker off for two sessions: both ways, then what it sends, then what it is sent. Then all of them."""
    stage = scene.stage
    for up, down in ((True, True), (True, False), (False, True)):
        await stage.handled(100)
        chosen = scene.one()
        started = time.monotonic()
        scene.proxies[chosen].cut(up=up, down=down)
        await asyncio.sleep(2 * stage.session)
        scene.proxies[chosen].mend()
        stage.note("cut", started, pid=chosen.pid)
        await stage.shared()
    everybody = list(scene.proxies)
    started = time.monotonic()
    for process in everybody:
        scene.proxies[process].cut()
    await asyncio.sleep(2 * stage.session)
    for process in everybody:
        scene.proxies[process].mend()
    for process in everybody:
        stage.note("away", started, pid=process.pid)
    await stage.shared()


# F10


async def worsen(scene: Scene) -> None:
    """Everything that a bad network does, to random processes: swallow, reset, hold and release, trickle, delay."""
    stage = scene.stage
    until = time.monotonic() + scene.seconds
    held: set[asyncio.Task[None]] = set()
    # 30 s where there is time for it: longer than any time-out of ours.
    longest = 30.0 if scene.seconds >= 60 else scene.seconds * 0.7

    async def hold(victim: object, seconds: float) -> None:
        scene.proxies[victim].cut(up=True, down=scene.rng.random() < 0.5)  # type: ignore[index]
        await asyncio.sleep(seconds)
        scene.proxies[victim].mend()  # type: ignore[index]

    producer = scene.rng.choice(stage.producers)
    started = time.monotonic()
    held.add(asyncio.create_task(hold(producer, longest)))
    while time.monotonic() < until:
        process = scene.rng.choice([p for p in (*stage.alive, *stage.producers) if p is not producer])
        proxy = scene.proxies[process]
        match scene.rng.randrange(5):
            case 0:
                proxy.swallow_reply()
            case 1 | 2:
                proxy.reset_in_reply()
            case 3:
                proxy.trickle = True
            case 4:
                proxy.delay = 0.2
        await asyncio.sleep(scene.rng.uniform(0.2, 1.0))
        proxy.mend()
    await asyncio.gather(*held)
    for process in (*stage.workers, *stage.producers):
        stage.note("cut", started, pid=process.pid)
    await stage.shared()


PLAYS = (
    Play("F9", "the network is cut, both ways and one way", cut, fenced_in_time, proxied=True),
    Play(
        "F10",
        "a bad network: lost replies, resets, late packets, single bytes, delays",
        worsen,
        proxied=True,
        environment={"RUNNEL_SEND_TIMEOUT": "5"},
    ),
)
