"""What cannot be processed, or is not there any more, under each exception policy."""

import asyncio
import time
from collections.abc import Iterable
from contextlib import suppress

from faults.checker import Violation
from faults.history import History, entry_id
from faults.plays.play import Play, Scene, carried_out, give, order
from faults.plays.processes import kill_one, nothing_repeated
from faults.records import PARTITIONS, Step
from faults.stage import NAME, Broken
from runnel import App, ExceptionPolicy
from runnel.admin import Quarantine, list_quarantines, retry_quarantine, skip_quarantine
from runnel.middleware import DeadLetterMiddleware

LARGE = 20_000_000
"""Bytes of the body of a large event."""

LOSS_REPORTED_WITHIN = 15.0
"""Seconds: workers look for losses every ten."""

CREW = 6
"""Workers where an event halts them: it stops some of them within a second, and the others must be able to go on."""

RAW = ((b"data", b"\xff\xfe not a record"), (b"data", b'{"key": "incomplete"}'), (b"nothing", b"of ours"))
"""Entries that no worker can decode."""

# IGNORE


async def ignore(scene: Scene) -> None:
    """Events that fail, bytes that are no record, 20 MB, and deleted entries, while workers are killed."""
    stage = scene.stage
    until = time.monotonic() + scene.seconds
    await delete_unread(scene)
    await order(scene, f"large {LARGE}")
    while time.monotonic() < until:
        for fields in RAW:
            await stage.inject(scene.rng.randrange(PARTITIONS), *fields)
        await stage.handled(100)
        await kill_one(scene)
        await stage.shared()


async def delete_unread(scene: Scene) -> None:
    """Delete entries that wait behind a slow event: two in the middle, and the last one."""
    stage, partition = scene.stage, scene.rng.randrange(PARTITIONS)
    stage.slow_down(partition, 10.0)
    log = stage.steps.keys.log(partition)

    async def waiting() -> list[bytes]:
        behind = "({}-{}".format(*await stage.offset(partition))
        entries = [name for name, _ in await stage.ask("XRANGE", log, behind, "+")]
        return entries if len(entries) >= 60 else []  # what has been read is not unread any more

    entries = await stage.until(waiting, f"nothing is waiting in partition {partition}")
    for name in (entries[-10], entries[-5], entries[-1]):
        await stage.delete(partition, entry_id(name.decode()))
    stage.speed_up()
    with suppress(Broken):  # the checker says what is missing
        await stage.until(lambda: stage.announced("LossDetected"), "no loss is reported", LOSS_REPORTED_WITHIN)


def poison_was_taken(history: History, scene: Scene) -> Iterable[Violation]:
    """There was something to judge: events failed, and were put where they belong."""
    failed = {(effect.partition, effect.id) for effect in history.effects if effect.result == "failed"}
    if len(failed) < 20 or not set(history.raw) <= failed:
        yield Violation("F13", f"{len(failed)} events have failed; that is not what was played")


# QUARANTINE


async def quarantine(scene: Scene) -> None:
    """A partition fails, and is retried when it is healed; is skipped; or goes on when its worker is replaced."""
    stage = scene.stage
    app = App(name=NAME, redis_url=stage.place.url)
    steps = app.stream("steps", record=Step, partition_by="key", partition_count=PARTITIONS, partition_size=0)

    @app.processor(steps, exception_policy=ExceptionPolicy.QUARANTINE, middleware=[DeadLetterMiddleware(source=steps)])
    async def record(events):  # type: ignore[no-untyped-def]
        """Stands for the workers' own; commands need its name, its stream and its dead letters."""

    until, rounds = time.monotonic() + scene.seconds, 0
    while time.monotonic() < until:
        number = give(scene, "fail 0")
        found = await _quarantined(scene, app)
        await stage.handled(100)
        rounds += 1
        match rounds % 4:
            case 1:
                _heal(scene, number)
                await retry_quarantine(app, "record", [found.partition])
                await carried_out(scene, number)
            case 2:
                (skipped,) = await skip_quarantine(app, "record", [found.partition])
                if skipped.events != found.events:
                    scene.figures["skipped something else"] = 1
            case 3:  # another owner fails as well
                stage.kill(await stage.owner(found.partition))
                await scene.start_worker()
                await stage.until(
                    lambda owner=found.owner: _moved(app, owner), "the quarantine did not move with its partition"
                )
                _heal(scene, number)
                stage.terminate(await stage.owner(found.partition))
                await scene.start_worker()
                await carried_out(scene, number)
            case 0:  # it fails again when it is not healed
                await asyncio.sleep(1.0)  # the mark says since when it is there, to the second: so it will be another
                await retry_quarantine(app, "record", [found.partition])
                await stage.until(
                    lambda mark=found.mark: _again(app, mark), "what was retried in vain is not quarantined again"
                )
                await skip_quarantine(app, "record", [found.partition])
        await stage.until(lambda: _nothing_quarantined(app), "a partition is still quarantined")
        await stage.shared()
    scene.figures["quarantines"] = rounds
    await app.aclose()


async def _quarantined(scene: Scene, app: App) -> Quarantine:
    async def look() -> Quarantine | None:
        found = await list_quarantines(app)
        return found[0] if found else None

    found: Quarantine = await scene.stage.until(look, "no partition is shown as quarantined")
    return found


async def _moved(app: App, owner: str) -> bool:
    found = await list_quarantines(app)
    return bool(found) and found[0].owner != owner


async def _again(app: App, mark: object) -> bool:
    found = await list_quarantines(app)
    return bool(found) and found[0].mark != mark


async def _nothing_quarantined(app: App) -> bool:
    return not await list_quarantines(app)


def _heal(scene: Scene, number: int) -> None:
    (scene.stage.directory / f"healed-{number}").touch()


def stands_still(history: History, scene: Scene) -> Iterable[Violation]:
    """From the failure until the partition goes on, nothing of it is handled; nothing else stops for it."""
    if scene.figures.pop("skipped something else", 0):
        yield Violation("F13", "something else was skipped than what had failed")
    failures = [effect for effect in history.effects if effect.result == "failed"]
    for failure in failures:
        for effect in history.effects:
            if (
                effect.partition == failure.partition
                and effect.token == failure.token
                and effect.started >= failure.ended
                and not any(
                    a.token == failure.token and failure.ended <= a.answered <= effect.started
                    for a in history.acquires
                    if a.partition == failure.partition
                )
            ):
                yield Violation("F13", f"{effect} was handled behind {failure}", effect.started, effect.partition)
    if not failures:
        yield Violation("F13", "nothing has failed; that is not what was played")


# HALT


async def halt(scene: Scene) -> None:
    """A failing event stops its worker, and the next one, and the one after that; then it is healed."""
    stage = scene.stage
    stage.forgiven = {1: "halt"}
    until = time.monotonic() + scene.seconds
    while time.monotonic() < until:
        before = len(_halts(scene))
        number = give(scene, "fail 0")
        await stage.until(lambda least=before + 3: len(_halts(scene)) >= least, "no three workers have halted")
        _heal(scene, number)
        while len(stage.alive) < CREW:
            await scene.start_worker()
        await carried_out(scene, number)
        await stage.shared()
        await stage.handled(100)


def _halts(scene: Scene) -> list[int]:
    return [d.pid for d in scene.stage.disturbances if d.kind == "halt"]


def nothing_but_a_stop(history: History, scene: Scene) -> Iterable[Violation]:
    """A worker that halts hands over what it has as one that is asked to stop: nothing is repeated."""
    yield from nothing_repeated(history, scene)
    scene.figures["halts"] = len(_halts(scene))


PLAYS = (
    Play(
        "F13-ignore",
        "poison, ignored: failing events, no records, 20 MB, deleted entries, and kills",
        ignore,
        poison_was_taken,
        session=None,
        seconds=12,
        environment={"FAULTS_POLICY": "ignore", "FAULTS_POISON_EVERY": "40"},
    ),
    Play(
        "F13-quarantine",
        "poison, quarantined: retried, skipped, moved to another worker",
        quarantine,
        stands_still,
        seconds=12,
        session=None,
        environment={"FAULTS_POLICY": "quarantine"},
    ),
    Play(
        "F13-halt",
        "poison that halts one worker after the other, until it is healed",
        halt,
        nothing_but_a_stop,
        seconds=10,
        workers=CREW,
        session=None,
    ),
)
