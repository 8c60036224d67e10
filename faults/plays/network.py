"""Faults of the network, between each process and the server."""

import asyncio
import time

from faults.history import EntryId
from faults.plays.play import Play, Scene
from faults.plays.processes import fenced_in_time
from faults.proxy import Held
from faults.records import PARTITIONS
from faults.stage import Process, Stage

LONGEST = 30.0
"""Seconds that packets of a producer are held up: longer than any time-out of ours."""

LATE = 1.5
"""Seconds that an event takes where a commit is held up."""

# F9


async def cut(scene: Scene) -> None:
    """Cut a worker off for two sessions: both ways, then what it sends, then what it is sent. Then all of them."""
    stage = scene.stage
    for up, down in ((True, True), (True, False), (False, True)):
        await stage.handled(100)
        await cut_one(scene, up=up, down=down, seconds=2 * stage.session)
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


async def cut_one(scene: Scene, *, up: bool, down: bool, seconds: float) -> None:
    """Cut a worker off for a while."""
    chosen = scene.one()
    started = time.monotonic()
    scene.proxies[chosen].cut(up=up, down=down)
    await asyncio.sleep(seconds)
    scene.proxies[chosen].mend()
    scene.stage.note("cut", started, pid=chosen.pid)


# F10


async def worsen(scene: Scene) -> None:
    """Everything that a bad network does, to random processes: swallow, reset, hold and release, trickle, delay."""
    stage = scene.stage
    until = time.monotonic() + scene.seconds
    longest = min(LONGEST, scene.seconds)

    async def hold(victim: object, seconds: float) -> None:
        scene.proxies[victim].cut(up=True, down=scene.rng.random() < 0.5)  # type: ignore[index]
        await asyncio.sleep(seconds)
        scene.proxies[victim].mend()  # type: ignore[index]

    producer = scene.rng.choice(stage.producers)
    started = time.monotonic()
    held = asyncio.create_task(hold(producer, longest))
    while time.monotonic() < until:
        await trouble(scene, scene.rng.choice([p for p in (*stage.alive, *stage.producers) if p is not producer]))
    await held
    stage.note("cut", started, pid=producer.pid)
    await stage.shared()


async def trouble(scene: Scene, process: Process) -> None:
    """One thing that a bad network does to a process, for a moment."""
    started, proxy = time.monotonic(), scene.proxies[process]
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
    scene.stage.note("cut", started, pid=process.pid)


async def come_late(scene: Scene) -> None:
    """Hold up a commit: until it has been repeated, and others have followed; then until there is another owner.

    Events of its partition take long, so that the next commit does not hide at once what the late one may have done.
    """
    stage, partition = scene.stage, scene.rng.randrange(PARTITIONS)
    stage.slow_down(partition, LATE)
    owner, held = await _caught(scene, partition)
    started, before = time.monotonic(), await stage.offset(partition)
    await _moved(stage, partition, before)
    await _moved(stage, partition, await stage.offset(partition))
    held.released.set()
    await asyncio.sleep(LATE)
    stage.note("late", started, pid=owner.pid)

    owner, held = await _caught(scene, partition)
    started = time.monotonic()
    scene.proxies[owner].cut(down=False)

    async def replaced() -> bool:
        return await stage.owner(partition) is not owner

    await stage.until(replaced, f"nobody has replaced the owner of partition {partition}")
    await asyncio.sleep(LATE / 4)
    held.released.set()
    await asyncio.sleep(LATE / 2)
    scene.proxies[owner].mend()
    stage.note("cut", started, pid=owner.pid)
    stage.speed_up()
    await stage.shared()


async def _caught(scene: Scene, partition: int) -> tuple[Process, Held]:
    """The owner of a partition, with a commit of it that does not arrive."""
    owner = await scene.stage.owner(partition)
    log = f":log:{partition}\r\n".encode()
    held = scene.proxies[owner].hold(
        lambda data: log in data and b":pos:record\r\n" in data and b":processors\r\n" not in data
    )
    await scene.stage.until(held.caught.is_set, f"no commit of partition {partition} came along")
    return owner, held


async def _moved(stage: Stage, partition: int, before: EntryId) -> None:
    async def moved() -> bool:
        return await stage.offset(partition) > before

    await stage.until(moved, f"the position of partition {partition} does not move")


PLAYS = (
    Play("F9", "the network is cut, both ways and one way", cut, fenced_in_time, proxied=True),
    Play(
        "F10",
        "a bad network: lost replies, resets, late packets, single bytes, delays",
        worsen,
        seconds=32,  # so that packets come LONGEST late
        proxied=True,
        environment={"RUNNEL_SEND_TIMEOUT": "5"},
    ),
    Play("F10-late", "commits come late: behind their repetition, and behind the next owner", come_late, proxied=True),
)
