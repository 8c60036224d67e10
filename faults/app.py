"""What the workers run: every event leaves one line in the journal, after a handler that takes a while.

The journal also gets what the worker asks of Redis (acquires and commits, with their answers) and what it announces.
"""

import asyncio
import ctypes
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path

from faults.journal import Journal
from faults.records import PARTITIONS, Step
from runnel import App
from runnel._redis import scripts
from runnel._redis.keys import StreamKeys
from runnel._redis.link import Link
from runnel._worker import committer

DIRECTORY = Path(os.environ["FAULTS_DIRECTORY"])
SLOWEST = float(os.environ.get("FAULTS_HANDLER", "0.005"))
LONG_SHARE = float(os.environ.get("FAULTS_LONG_SHARE", "0.001"))
"""Share of the events that take a second."""

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
            ctypes.PyDLL(None).usleep(int(float(seconds) * 1e6))
            journal.write("X", f"{time.monotonic():.4f}", number)
    elif random.random() < LONG_SHARE:
        await asyncio.sleep(1.0)
    elif SLOWEST:
        await asyncio.sleep(random.uniform(0, SLOWEST))


@app.processor(steps)
async def record(events):  # type: ignore[no-untyped-def]
    """Handle each event, and write it down."""
    async for event in events:
        started = time.monotonic()
        step: Step = event.record
        await handle(step)
        journal.write(
            *("E", f"{started:.4f}", f"{time.monotonic():.4f}", event.partition, events.token, event.id),
            *(step.key, step.number, step.producer, step.serial, step.expected),
        )


_acquire, _commit = scripts.acquire, scripts.commit


async def acquire(
    link: Link, keys: StreamKeys, processor: str, partition: int, token: int, member: str
) -> scripts.Acquired | scripts.Stale:
    """The product's own, with a line for each answer."""
    sent = time.monotonic()
    answer = await _acquire(link, keys, processor, partition, token, member)
    told = (
        ("STALE", "-", 0, "-")
        if isinstance(answer, scripts.Stale)
        else ("OK", answer.offset.decode(), answer.lost, answer.rolled_back.decode() or "-")
    )
    journal.write("A", f"{sent:.4f}", f"{time.monotonic():.4f}", partition, token, *told)
    return answer


async def commit(
    link: Link, keys: StreamKeys, processor: str, member: str, slot_group: int, commits: Sequence[scripts.Commit]
) -> list[tuple[scripts.CommitStatus, bytes]]:
    """The product's own, with a line for each part of each answer."""
    sent = time.monotonic()
    answers = await _commit(link, keys, processor, member, slot_group, commits)
    times = (f"{sent:.4f}", f"{time.monotonic():.4f}")
    for item, (status, _) in zip(commits, answers, strict=True):
        positions = (item.previous.decode(), item.offset.decode())
        journal.write("C", *times, item.partition, item.token, status.value, *positions)
    return answers


scripts.acquire = acquire
committer.commit = commit
