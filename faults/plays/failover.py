"""Faults of several servers: another one takes over, in good order or not, and slots move between them."""

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

from faults.checker import Violation
from faults.history import Disturbance, History
from faults.places import InCluster, Several, WithSentinels
from faults.plays.play import Play, Scene
from faults.plays.processes import no_false_alarm
from faults.plays.servers import nobody_is_evicted
from faults.records import PARTITIONS
from runnel.server import EmbeddedServer

SPLIT = 1.0
"""Seconds for which an old primary may go on to believe that it is one. Sentinels would tell it after some 10."""

UNREPLICATED = 1.0
"""Seconds of writes that are lost where they are to be."""

BETWEEN_KEYS = 0.05
"""Seconds between two keys of a slot that is moved."""

TakeOver = Callable[[Scene, Several, str, EmbeddedServer], Awaitable[None]]


async def request(scene: Scene, place: Several, key: str, old: EmbeddedServer) -> None:
    """Ask for it, in good order where that can be had; the old primary may go on for a moment."""
    await asyncio.to_thread(place.fail_over, key, forced=False)
    await asyncio.sleep(SPLIT)


async def force(scene: Scene, place: Several, key: str, old: EmbeddedServer) -> None:
    """Ask for it, without the help of the old primary."""
    await asyncio.to_thread(place.fail_over, key, forced=True)
    await asyncio.sleep(SPLIT)


async def crash(scene: Scene, place: Several, key: str, old: EmbeddedServer) -> None:
    """Kill the primary, and start it again when there is another."""
    await asyncio.to_thread(old.kill)
    await _until_another(scene, place, key, old)
    await asyncio.to_thread(old.start)


async def freeze(scene: Scene, place: Several, key: str, old: EmbeddedServer) -> None:
    """Freeze the primary until there is another. Then it goes on, and believes that it still is one."""
    pid = old.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        await _until_another(scene, place, key, old)
    finally:
        os.kill(pid, signal.SIGCONT)
    await asyncio.sleep(SPLIT)


async def unreplicated_crash(scene: Scene, place: Several, key: str, old: EmbeddedServer) -> None:
    """The same as a crash, after its replicas have been cut off for a while."""
    await asyncio.to_thread(place.cut_off_replicas, old)
    await asyncio.sleep(UNREPLICATED)
    await crash(scene, place, key, old)
    await asyncio.to_thread(place.mend_replicas)


async def _until_another(scene: Scene, place: Several, key: str, old: EmbeddedServer) -> None:
    async def replaced() -> bool:
        return await asyncio.to_thread(place.primary, key) is not old

    await scene.stage.until(replaced, "nobody has taken over")


async def take_over(scene: Scene, how: TakeOver, key: str) -> None:
    """Have another server take over what has a key, and wait until everything goes on and all servers agree."""
    stage, place = scene.stage, _place(scene)
    old = await asyncio.to_thread(place.primary, key)
    concerned = await asyncio.to_thread(_served_by, scene, old)
    started = time.monotonic()
    await how(scene, place, key, old)
    await asyncio.to_thread(place.settle)
    kind = "fail-over" if stage.environment["RUNNEL_DURABILITY"] == "replica" else "lossy fail-over"
    for partition in concerned:
        stage.note(kind, started, partition=partition)
    stage.note(_name(how), started)
    await stage.all_go_on()


async def move_there_and_back(scene: Scene, keys: list[str]) -> None:
    """Move the slots of keys to other primaries, at once and key by key, and back."""
    stage, place = scene.stage, _place(scene)
    assert isinstance(place, InCluster)
    primaries = await asyncio.to_thread(_primaries, scene)
    homes = [await asyncio.to_thread(place.primary, key) for key in keys]
    away = [scene.rng.choice([node for node in primaries if node is not home]) for home in homes]
    for nodes in (away, homes):
        started = time.monotonic()
        moves = zip(keys, nodes, strict=True)
        await asyncio.gather(*(asyncio.to_thread(place.move, key, node, BETWEEN_KEYS) for key, node in moves))
        stage.note(MOVE, started)
        await stage.all_go_on()
    await asyncio.to_thread(place.settle)


MOVE = "slots that move"


def _name(how: TakeOver) -> str:
    """How another server took over."""
    return f"fail-over by {how.__name__.replace('_', ' ')}"


def _place(scene: Scene) -> Several:
    assert isinstance(scene.stage.place, Several)
    return scene.stage.place


def _primaries(scene: Scene) -> list[EmbeddedServer]:
    """Who serves the logs."""
    place, keys = _place(scene), scene.stage.steps.keys
    return list(dict.fromkeys(place.primary(keys.log(partition)) for partition in range(PARTITIONS)))


def _served_by(scene: Scene, node: EmbeddedServer) -> list[int]:
    """The partitions whose logs a server has."""
    place, keys = _place(scene), scene.stage.steps.keys
    return [partition for partition in range(PARTITIONS) if place.primary(keys.log(partition)) is node]


# F7


async def by_sentinels(scene: Scene, takes_over: tuple[TakeOver, ...]) -> None:
    """One after the other."""
    for how in takes_over:
        await take_over(scene, how, scene.stage.control.group)


# F8


async def in_cluster(scene: Scene, takes_over: tuple[TakeOver, ...]) -> None:
    """One after the other, of the coordinator's primary or of one with data; then slots move that are in use."""
    stage = scene.stage
    for how in takes_over:
        log = stage.steps.keys.log(scene.rng.randrange(PARTITIONS))
        await take_over(scene, how, scene.rng.choice((stage.control.group, log)))
    log = stage.steps.keys.log(scene.rng.randrange(PARTITIONS))
    await move_there_and_back(scene, [stage.control.group, log, stage.steps.keys.metadata])


# Both


def goes_on(history: History, scene: Scene) -> Iterable[Violation]:
    """Nobody is evicted; nobody misses entries, since none were deleted. Says for how long a partition stood still."""
    yield from nobody_is_evicted(history, scene)
    yield from no_false_alarm(history, "LossDetected", "LogReplaced")
    names = {MOVE, *map(_name, (request, force, crash, freeze, unreplicated_crash))}
    for d in history.disturbances:
        if d.kind in names:
            figure = f"{d.kind}: stood still"
            scene.figures[figure] = max(scene.figures.get(figure, 0.0), _stood_still(history, d))


def _stood_still(history: History, during: Disturbance) -> float:
    """The longest that no event of a partition was begun, in seconds."""
    starts: dict[int, list[float]] = {}
    for effect in history.effects:
        starts.setdefault(effect.partition, []).append(effect.started)
    return max(
        later - earlier
        for times in starts.values()
        for earlier, later in itertools.pairwise(sorted(times))
        if later > during.started and earlier < during.ended
    )


def rolled_back(history: History, scene: Scene) -> Iterable[Violation]:
    """The same; and something was rolled back."""
    yield from goes_on(history, scene)
    rewinds = [n for n in history.notes if n.name == "PartitionRewound" and n.fields["reason"] == "rollback"]
    scene.figures["rewound"] = len(rewinds)
    if not rewinds:
        yield Violation("rollback", "nothing was rolled back; that is not what was played")


def _play(number: str, title: str, act: Callable[[Scene], Awaitable[None]], durability: str, **more: object) -> Play:
    judge = goes_on if durability == "replica" else rolled_back
    return Play(number, title, act, judge, environment={"RUNNEL_DURABILITY": durability}, **more)  # type: ignore[arg-type]


PLAYS = (
    _play(
        "F7",
        "fail-overs by sentinels; a replica confirms",
        partial(by_sentinels, takes_over=(request, crash, freeze)),
        "replica",
        place=partial(WithSentinels, replicas=1),
    ),
    _play(
        "F7-primary",
        "fail-overs by sentinels; nobody waits for replicas, which lose writes",
        partial(by_sentinels, takes_over=(force, freeze, unreplicated_crash)),
        "primary",
        place=partial(WithSentinels, replicas=2),
    ),
    _play(
        "F8",
        "fail-overs of a cluster, and slots that move; a replica confirms",
        partial(in_cluster, takes_over=(request, crash, freeze)),
        "replica",
        place=InCluster,
    ),
    _play(
        "F8-primary",
        "fail-overs of a cluster, and slots that move; nobody waits for replicas, which lose writes",
        partial(in_cluster, takes_over=(force, freeze, unreplicated_crash)),
        "primary",
        place=InCluster,
    ),
)
