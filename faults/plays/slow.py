"""A slow consumer: one partition takes ten seconds per event; the others must not notice."""

import asyncio
import time
from collections.abc import Iterable
from statistics import median, quantiles

from faults.checker import Violation
from faults.history import History, Send
from faults.plays.play import Play, Scene
from faults.records import PARTITIONS

SIZE = 200
"""Entries that a partition keeps: full after some nine seconds of the default rate."""

PER_EVENT = 10.0
"""Seconds that an event of the slow partition takes."""

UNAFFECTED = 0.1
"""Seconds by which the other partitions may be slower, from the call of ``send`` to the handler (p99)."""


async def dam_up(scene: Scene) -> None:
    """Take 10 s per event in one partition, until well after its log is full; then let it flow again."""
    stage, slow = scene.stage, scene.rng.randrange(PARTITIONS)
    log = stage.steps.keys.log(slow)
    calm = time.monotonic()
    await asyncio.sleep(scene.seconds / 4)
    started = time.monotonic()
    stage.slow_down(slow, PER_EVENT)

    async def waiting() -> int:
        behind = "({}-{}".format(*await stage.offset(slow))
        return len(await stage.ask("XRANGE", log, behind, "+"))

    async def full() -> bool:
        return await waiting() >= SIZE - 20

    await stage.until(full, f"partition {slow} was not full")
    filled = time.monotonic()
    most = 0
    while time.monotonic() < filled + scene.seconds * 3 / 4:
        most = max(most, await waiting())
        await asyncio.sleep(0.2)
    stage.note("slow", started, partition=slow)
    stage.speed_up()
    scene.figures |= {"slow": slow, "full after": filled - started, "unprocessed at most": most, "calm since": calm}


def the_others_go_on(history: History, scene: Scene) -> Iterable[Violation]:
    """The others keep their latency and get all events; senders to the slow one wait, and nothing is refused."""
    (slow,) = (d for d in history.disturbances if d.kind == "slow")
    full = slow.started + scene.figures["full after"]
    began = {effect.serial: effect.started for effect in reversed(history.effects)}
    place = {item.key: item.partition for item in (*history.log, *history.effects)}
    others = [send for send in history.sends.values() if place.get(send.key) != slow.partition]
    ours = [send for send in history.sends.values() if place.get(send.key) == slow.partition]
    before = _latencies(others, began, scene.figures.pop("calm since"), slow.started)
    during = _latencies(others, began, full, slow.ended)
    waited = [send.ended - send.invoked for send in ours if send.ended is not None and full < send.invoked < slow.ended]
    scene.figures |= {
        "latency p99 before": quantiles(before, n=100)[98],
        "latency p99 beside a full one": quantiles(during, n=100)[98],
        "wait of senders to the slow one": median(waited) if waited else 0.0,
    }
    if quantiles(during, n=100)[98] > quantiles(before, n=100)[98] + UNAFFECTED:
        yield Violation("F12", "the other partitions became slower", slow.started)
    missing = sum(
        full < send.invoked < slow.ended - 1.0 and began.get(send.serial, 1e99) > slow.ended for send in others
    )
    if missing:
        yield Violation("F12", f"{missing} events of other partitions were not begun while one was slow", slow.started)
    if refused := [send for send in history.sends.values() if send.outcome == "F"]:
        yield Violation("F12", f"{len(refused)} sends were refused, {refused[0]} the first", refused[0].ended)
    if not waited or median(waited) < 1.0:
        yield Violation("F12", "senders to a full partition do not wait", full, slow.partition)
    if (most := scene.figures["unprocessed at most"]) > SIZE:
        yield Violation("F12", f"{most} entries wait in a partition that may hold {SIZE}", full, slow.partition)


def _latencies(sends: list[Send], began: dict[tuple[str, int], float], since: float, until: float) -> list[float]:
    return [
        began[send.serial] - send.invoked for send in sends if since < send.invoked < until and send.serial in began
    ]


PLAYS = (
    Play(
        "F12",
        "a slow consumer: one partition takes 10 s per event",
        dam_up,
        the_others_go_on,
        environment={
            "FAULTS_PARTITION_SIZE": str(SIZE),
            "FAULTS_LONG_SHARE": "0",  # they would hold up their own partitions
            "RUNNEL_ON_FULL_TIMEOUT": "120",
        },
    ),
)
