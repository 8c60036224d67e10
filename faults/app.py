"""What the workers run: every event leaves one line in the journal, after a handler that takes a while.

The journal also gets what the worker asks of Redis (acquires and commits, with their answers) and what it announces.

===================  ==========  ========================================================================
variable             default
===================  ==========  ========================================================================
FAULTS_HANDLER       0.005       the longest that an event takes, in seconds
FAULTS_LONG_SHARE    0.001       share of the events that take a second
FAULTS_POLICY        halt        exception policy; with ``ignore`` and ``quarantine`` there are dead letters
FAULTS_MUTANT                    the mutant that this process is, see ``mutants``
FAULTS_COUNT_TASKS               if set, the file ``tasks-PID`` says how many asyncio tasks there are
===================  ==========  ========================================================================

While a play runs, files switch things on: ``slow`` holds a partition and how many seconds each of its events takes, and
``healed-N`` heals what the order ``fail N`` made ill.
"""

import asyncio
import ctypes
import os
import random
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from faults import mutants
from faults.history import UNREADABLE
from faults.journal import Journal
from faults.records import PARTITIONS, POISON, Step
from runnel import App, Event, ExceptionPolicy
from runnel._redis import scripts
from runnel._redis.durability import Confirmation
from runnel._redis.keys import StreamKeys
from runnel._redis.link import Link
from runnel._worker import committer
from runnel.errors import DecodeError
from runnel.middleware import DeadLetterMiddleware

DIRECTORY = Path(os.environ["FAULTS_DIRECTORY"])
SLOWEST = float(os.environ.get("FAULTS_HANDLER", "0.005"))
LONG_SHARE = float(os.environ.get("FAULTS_LONG_SHARE", "0.001"))
POLICY = ExceptionPolicy(os.environ.get("FAULTS_POLICY", "halt"))
SWITCH = DIRECTORY / "slow"

mutants.become(os.environ.get("FAULTS_MUTANT"))
journal = Journal(DIRECTORY, "worker")
app = App(name=os.environ["FAULTS_APP"])
app.instruments.subscribe(journal.announced)
steps = app.stream(
    "steps",
    record=Step,
    partition_by="key",
    partition_count=PARTITIONS,
    partition_size=int(os.environ.get("FAULTS_PARTITION_SIZE", "0")),
)


class Ill(Exception):
    """What a failing event fails with."""


async def handle(step: Step) -> None:
    """Take as long as the event says: 0 to 5 ms, one in a thousand a second, and what a fault has ordered."""
    order, _, rest = step.body.partition(" ")
    seconds, _, number = rest.partition(" ")
    if order == "block":  # the mistake under test: nothing else runs meanwhile
        time.sleep(float(seconds))  # noqa: ASYNC251
        journal.write("X", f"{time.monotonic():.4f}", number)
    elif order == "hold":  # a C function that does not give up the interpreter's lock
        once = DIRECTORY / f"held-{number}"  # the next owner would be lost as well
        if not once.exists():
            once.touch()
            journal.write(
                "X", f"{time.monotonic():.4f}", number
            )  # before: who is killed now has been told all the same
            ctypes.PyDLL(None).usleep(int(float(seconds) * 1e6))
    elif order == "large":
        journal.write("X", f"{time.monotonic():.4f}", number.split(" ")[0])
    elif order == POISON:
        raise Ill("for ever")
    elif order == "fail":
        if not (DIRECTORY / f"healed-{number}").exists():
            raise Ill(number)
        journal.write("X", f"{time.monotonic():.4f}", number)
    elif random.random() < LONG_SHARE:
        await asyncio.sleep(1.0)
    elif SLOWEST:
        await asyncio.sleep(random.uniform(0, SLOWEST))


async def dawdle(partition: int) -> None:
    """Take as long as the switch says for this partition, and no longer than it says so."""
    started = time.monotonic()
    while time.monotonic() < started + _slowness(partition):  # noqa: ASYNC110  the switch is another process's file
        await asyncio.sleep(0.05)


def _slowness(partition: int) -> float:
    try:
        which, seconds = SWITCH.read_text().split()
    except FileNotFoundError:
        return 0.0
    return float(seconds) if int(which) == partition else 0.0


_dead_letters = [] if POLICY is ExceptionPolicy.HALT else [DeadLetterMiddleware(source=steps)]


@app.processor(steps, exception_policy=POLICY, middleware=_dead_letters)
async def record(events):  # type: ignore[no-untyped-def]
    """Handle each event, and write it down."""
    async for event in events:
        started, result = time.monotonic(), "P"
        try:
            await dawdle(event.partition)
            await handle(event.record)
            result = "E"
        except asyncio.CancelledError:
            result = "K"
            raise
        finally:
            journal.write(
                *(result, f"{started:.4f}", f"{time.monotonic():.4f}", event.partition, events.token, event.id),
                *_what_it_is(event),
            )


def _what_it_is(event: Event[Step]) -> tuple[Any, ...]:
    try:
        step = event.record
    except DecodeError:
        content = b"".join(part for item in event.data.items() for part in item)
        return UNREADABLE, 0, UNREADABLE, 0, zlib.crc32(content)
    return step.key, step.number, step.producer, step.serial, step.expected


async def count_tasks() -> None:
    """Write down how many tasks there are, every second."""
    path = DIRECTORY / f"tasks-{os.getpid()}"
    while True:
        new = path.with_suffix(".new")
        new.write_text(str(len(asyncio.all_tasks())))
        new.rename(path)
        await asyncio.sleep(1.0)


if "FAULTS_COUNT_TASKS" in os.environ:
    app.task(count_tasks)


_acquire, _commit = scripts.acquire, scripts.commit


async def acquire(
    link: Link, keys: StreamKeys, processor: str, partition: int, token: int, member: str, known: tuple[int, bytes]
) -> scripts.Acquired | scripts.Stale:
    """The product's own, with a line for each answer."""
    sent = time.monotonic()
    answer = await _acquire(link, keys, processor, partition, token, member, known)
    told = (
        ("STALE", "-", 0, "-")
        if isinstance(answer, scripts.Stale)
        else ("OK", answer.offset.decode(), answer.lost, answer.rolled_back.decode() or "-")
    )
    journal.write("A", f"{sent:.4f}", f"{time.monotonic():.4f}", partition, token, *told)
    return answer


async def commit(
    link: Link,
    keys: StreamKeys,
    processor: str,
    member: str,
    slot_group: int,
    commits: Sequence[scripts.Commit],
    confirm: Confirmation,
) -> list[tuple[scripts.CommitStatus, bytes]]:
    """The product's own, with a line for each part of each answer."""
    sent = time.monotonic()
    answers = await _commit(link, keys, processor, member, slot_group, commits, confirm)
    times = (f"{sent:.4f}", f"{time.monotonic():.4f}")
    for item, (status, _) in zip(commits, answers, strict=True):
        positions = (item.previous.decode(), item.offset.decode())
        journal.write("C", *times, item.partition, item.token, status.value, *positions)
    return answers


scripts.acquire = acquire
committer.commit = commit
