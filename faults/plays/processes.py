"""Faults of workers: killed, frozen, blocked, coming and going."""

import asyncio
import itertools
import signal
import time
from collections.abc import Iterable, Iterator
from statistics import median

from faults.checker import Violation
from faults.history import Acquire, Disturbance, Effect, History
from faults.known import Known
from faults.ownership import longest_standstill
from faults.plays.play import Play, Scene, order
from faults.records import PARTITIONS

HAND_OVER = 0.2
"""Seconds from the release of a partition until its next owner goes on, besides the handler's time: p99 under F17."""

UNTOLD = 0.5
"""Seconds that a worker which was replaced is not told so: it has finished its event by then, and has begun another if
it may. Who looks by the time alone must not depend on who is faster, the answer or the event."""

MID_COMMIT = 0.1
"""Seconds after which every worker has a commit under way, where the server holds writes."""

SETTLED = 5.0
"""Seconds after which who has joined has its share: others finish the event in progress, and that takes a second."""

IDLE = 1.0
"""Seconds that a partition may be idle while workers come and go, besides draining."""


# F1


async def crash(scene: Scene) -> None:
    """Kill a random worker every few seconds, and start another."""
    stage = scene.stage
    until = time.monotonic() + scene.seconds
    while time.monotonic() < until:
        await stage.handled(100)
        await kill_one(scene)
        await stage.shared()


async def kill_one(scene: Scene) -> None:
    """Kill a worker, and start another."""
    scene.stage.kill(scene.one())
    await scene.start_worker()


def taken_over_soon(history: History, scene: Scene) -> Iterable[Violation]:
    """The first event of an orphaned partition: after 1.0 s in the median, and in less than 2 s at the worst."""
    delays = [delay for d in history.disturbances if d.kind == "kill" for delay in take_overs(history, d).values()]
    worst_of_each = [
        max(found.values()) for d in history.disturbances if d.kind == "kill" and (found := take_overs(history, d))
    ]
    if not delays:
        yield Violation("F1", "nothing was taken over; that is not what was played")
        return
    scene.figures |= {
        "kills": len(worst_of_each),
        "take-over median of kills": median(worst_of_each),
        "take-over worst": max(delays),
    }
    if median(worst_of_each) > 1.0 or max(delays) >= 2.0:
        yield Violation("F1", f"taken over after {median(worst_of_each):.2f} s (median), {max(delays):.2f} s (worst)")


def take_overs(history: History, disturbance: Disturbance) -> dict[int, float]:
    """Per partition that a process owned: seconds until somebody else has *begun* an event that was waiting."""
    last: dict[int, Effect] = {}
    for effect in history.effects:
        if effect.ended <= disturbance.started + 0.05:
            last[effect.partition] = effect
    orphans = {p for p, effect in last.items() if effect.pid == disturbance.pid}
    found: dict[int, float] = {}
    for effect in sorted(history.effects, key=lambda e: e.started):
        if (
            effect.partition in orphans
            and effect.partition not in found
            and effect.token > last[effect.partition].token
        ):
            sent = history.sends[effect.serial]
            waiting_since = max(disturbance.started, sent.ended or sent.invoked)
            found[effect.partition] = effect.started - waiting_since
    return found


# F2, F3


async def freeze_long(scene: Scene) -> None:
    """SIGSTOP for two sessions: one worker, then several at once and in mid-commit.

    Before that, one until just after it was replaced.
    """
    stage = scene.stage
    session = stage.session
    until = time.monotonic() + scene.seconds
    await freeze_until_replaced(scene)
    most = 1
    while time.monotonic() < until:
        await stage.handled(100)
        if most > 1:  # in mid-commit: the server holds commits, and carries them out when nobody hears of it
            await stage.ask("CLIENT", "PAUSE", int(MID_COMMIT * 2000), "WRITE")
            await asyncio.sleep(MID_COMMIT)
        await stage.frozen(scene.some(most), 2 * session)
        await stage.shared()
        most = 3


async def freeze_until_replaced(scene: Scene) -> None:
    """SIGSTOP in the middle of an event with more behind it, SIGCONT in the middle of the next owner's first event.

    Nobody answers just then: it has nothing but its own clock to know that it was replaced.
    """
    stage, partition = scene.stage, scene.rng.randrange(PARTITIONS)
    stage.slow_down(partition, stage.session / 2)
    await asyncio.sleep(stage.session)  # some events are waiting by now
    worker = await stage.owner(partition)
    started = time.monotonic()
    worker.process.send_signal(signal.SIGSTOP)

    async def replaced() -> bool:
        return await stage.owner(partition) is not worker

    await stage.until(replaced, f"nobody has replaced the owner of partition {partition}")
    await asyncio.sleep(stage.session / 6)
    await stage.ask("CLIENT", "PAUSE", int(UNTOLD * 1000), "ALL")
    worker.process.send_signal(signal.SIGCONT)
    stage.note("freeze", started, pid=worker.pid)
    await asyncio.sleep(stage.session / 2)
    stage.speed_up()
    await stage.shared()


def fenced_in_time(history: History, scene: Scene) -> Iterable[Violation]:
    """What a worker owned that was frozen, cut off or held goes on within the session timeout + 1 s."""
    yield from _go_on_within(history, scene, ("freeze", "cut", "hold"), scene.stage.session + 1.0)


def _go_on_within(history: History, scene: Scene, kinds: tuple[str, ...], most: float) -> Iterator[Violation]:
    worst = 0.0
    for d in history.disturbances:
        if d.kind in kinds and d.ended - d.started > scene.stage.session:
            for partition, delay in take_overs(history, d).items():
                worst = max(worst, delay)
                if delay > most:
                    text = f"partition {partition} went on {delay:.2f} s after {d}, more than {most:.2f} s"
                    yield Violation("take-over", text, d.started, partition)
    scene.figures["taken over after at most"] = worst
    if not worst:
        yield Violation("take-over", "nothing was taken over; that is not what was played")


async def freeze_short(scene: Scene) -> None:
    """SIGSTOP for half a session."""
    stage = scene.stage
    until = time.monotonic() + scene.seconds
    while time.monotonic() < until:
        await stage.frozen(scene.some(2), stage.session / 2)
        await stage.handled(100)


def nothing_moves(history: History, scene: Scene) -> Iterable[Violation]:
    """No rebalance: no partition gets another owner; and nothing is repeated."""
    token: dict[int, int] = {}
    for acquire in history.acquires:
        if acquire.status == "OK":
            before = token.setdefault(acquire.partition, acquire.token)
            if before != acquire.token and scene.began < acquire.sent < scene.ended:
                text = f"token {before} was replaced: {acquire}"
                yield Violation("rebalance", text, acquire.answered, acquire.partition)
            token[acquire.partition] = acquire.token
    yield from nothing_repeated(history, scene)


def no_false_alarm(history: History, *names: str) -> Iterable[Violation]:
    """Nothing was lost or deleted, so nobody says so."""
    for note in history.notes:
        if note.name in names:
            yield Violation("alarm", f"nothing is gone: {note}", note.at, note.fields["partition"])


def nothing_repeated(history: History, scene: Scene) -> Iterable[Violation]:
    """Nothing was handled twice."""
    seen: dict[tuple[str, int], Effect] = {}
    for effect in (effect for effect in history.effects if effect.result == "done"):
        if effect.serial in seen:
            yield Violation("repeat", f"{seen[effect.serial]} and {effect}", effect.started, effect.partition)
        seen[effect.serial] = effect


# F4, F5


async def block(scene: Scene) -> None:
    """A handler calls time.sleep for three sessions, twice."""
    for _ in range(2):
        await order(scene, f"block {3 * scene.stage.session}")


async def hold(scene: Scene) -> None:
    """A handler calls a C function that keeps the interpreter's lock for two sessions, twice."""
    for _ in range(2):
        await hold_one(scene)
        await scene.stage.shared()


async def hold_one(scene: Scene) -> None:
    """A handler calls such a function."""
    stage = scene.stage
    pid, started = await order(scene, f"hold {2 * stage.session}")
    await asyncio.sleep(max(0.0, started + 2 * stage.session - time.monotonic()))
    stage.note("hold", started, pid=pid)


# F16, F17


async def churn(scene: Scene) -> None:
    """From one worker to six and back, every few seconds, and a rolling restart."""
    stage = scene.stage
    until = time.monotonic() + scene.seconds
    while time.monotonic() < until:
        while len(stage.alive) < 6:
            stage.start_worker()
        await stage.shared()
        await stage.handled(100)
        for worker in stage.alive:  # rolling: one goes, one comes
            if time.monotonic() > until:
                break
            stage.terminate(worker)
            stage.start_worker()
            await stage.shared()
        for worker in stage.alive[1:]:
            stage.terminate(worker)
        await stage.shared()
        await stage.handled(100)
    while len(stage.alive) < 3:
        stage.start_worker()
    await stage.shared()


def never_idle(history: History, scene: Scene) -> Iterable[Violation]:
    """Under churn, no partition is without an owner for longer than a second, and none moves that need not."""
    yield from nothing_repeated(history, scene)
    yield from only_what_must_moves(history)
    gaps = hand_overs(history)
    if not gaps:
        yield Violation("F16", "nothing was handed over; that is not what was played")
        return
    scene.figures |= {"hand-overs": len(gaps), "hand-over median": median(gaps), "hand-over worst": max(gaps)}
    if max(gaps) > IDLE:
        yield Violation("F16", f"a partition was idle for {max(gaps):.2f} s")
    if (still := longest_standstill(Known(history))) > IDLE:
        yield Violation("F16", f"an event waited for {still:.2f} s in a partition that nobody was at")


def only_what_must_moves(history: History) -> Iterable[Violation]:
    """A partition moves from one who leaves, or to one who has just come; never between two who stay."""
    came = {note.pid: note.at for note in reversed(history.notes) if note.name == "MemberJoined"}
    left = {d.pid: d.started for d in history.disturbances if d.kind == "term"}
    owner: dict[int, Acquire] = {}
    for acquire in history.acquires:
        before = owner.get(acquire.partition)
        if acquire.status != "OK":
            continue
        owner[acquire.partition] = acquire
        if before is None or before.pid == acquire.pid:
            continue
        stays = left.get(before.pid, float("inf")) > acquire.sent
        if stays and acquire.sent - came[acquire.pid] > SETTLED:
            yield Violation("F16", f"moved without need: {before}, then {acquire}", acquire.answered, acquire.partition)


async def stop(scene: Scene) -> None:
    """SIGTERM under load, and another worker in its place."""
    stage = scene.stage
    until = time.monotonic() + scene.seconds
    while time.monotonic() < until:
        await stage.handled(150)
        await replace_one(scene)
        await stage.shared()


async def replace_one(scene: Scene) -> None:
    """Ask a worker to stop, and start another."""
    scene.stage.terminate(scene.one())
    await scene.start_worker()


def handed_over_soon(history: History, scene: Scene) -> Iterable[Violation]:
    """Nothing repeated; hand-over p99 below 200 ms besides the handler's time."""
    yield from nothing_repeated(history, scene)
    gaps = sorted(hand_overs(history))
    if not gaps:
        yield Violation("F17", "nothing was handed over; that is not what was played")
        return
    p99 = gaps[min(len(gaps) - 1, int(len(gaps) * 0.99))]
    scene.figures |= {"hand-overs": len(gaps), "hand-over median": median(gaps), "hand-over p99": p99}
    if p99 > HAND_OVER:
        yield Violation("F17", f"hand-over took {p99:.3f} s (p99 of {len(gaps)})")


def hand_overs(history: History) -> list[float]:
    """Seconds from when a partition's function has finished its last event until its next owner goes on.

    That is when it has acquired it, and has begun the first event, where one was waiting.
    """
    found = []
    begun: dict[tuple[int, int], Effect] = {}
    for effect in sorted(history.effects, key=lambda effect: effect.started):
        begun.setdefault((effect.partition, effect.token), effect)
    released: dict[tuple[int, int], float] = {
        (note.fields["partition"], note.fields["token"]): note.at
        for note in history.notes
        if note.name == "PartitionReleased"
    }
    acquired: dict[int, list[tuple[int, float]]] = {}
    for acquire in history.acquires:
        if acquire.status == "OK":
            acquired.setdefault(acquire.partition, []).append((acquire.token, acquire.answered))
    for partition, owners in acquired.items():
        owners.sort()
        for (token, _), (successor, at) in itertools.pairwise(owners):
            if (since := released.get((partition, token))) is None:
                continue
            gap = at - since
            if (first := begun.get((partition, successor))) is not None:
                sent = history.sends[first.serial]
                gap = max(gap, first.started - max(since, sent.ended or sent.invoked))
            found.append(gap)
    return found


PLAYS = (
    Play(
        "F1",
        "crash: kill -9 of a worker, and another in its place",
        crash,
        taken_over_soon,
        session=None,
        environment={"FAULTS_LONG_SHARE": "0.01"},  # so that most kills come in the middle of an event
    ),
    Play("F2", "freeze for longer than the session", freeze_long, fenced_in_time),
    Play("F3", "freeze for half a session", freeze_short, nothing_moves, seconds=12),
    Play("F4", "a handler blocks the event loop for three sessions", block, nothing_moves),
    Play("F5", "a handler holds the interpreter's lock for two sessions", hold, fenced_in_time, workers=3),
    Play(
        "F16",
        "churn: 1 to 6 workers and back, rolling restarts",
        churn,
        never_idle,
        seconds=15,
        session=None,
        workers=1,
    ),
    Play("F17", "graceful stop under load", stop, handed_over_soon, session=None),
)
