"""The app that the demo's workers run, written as any user of Runnel would write it.

It is at home in ``runnel worker runnel.demo.app:app``, and in ``runnel status runnel.demo.app:app``.
"""

import functools
import os
import time
from pathlib import Path

from redis.asyncio import Redis

from runnel import App, Events
from runnel.demo.carryover import ON_TIME, Lateness, carry
from runnel.demo.flights import Flight
from runnel.demo.journal import Entry, Journal

__all__ = ["DIRECTORY", "PARENT", "app", "flights"]

DIRECTORY = "DEMO_DIRECTORY"
"""The variable that says where to write the journal. Default: here."""

PARENT = "DEMO_PARENT"
"""The variable with the process id of the demo, if it is the demo that has started this worker."""

app = App(name="runnel-demo")

flights = app.stream("flights", record=Flight, partition_by="tail", partition_count=16, partition_size=50_000)


@functools.cache
def store() -> "Redis":
    """Where the state of the aircraft is. It must outlive the worker, so it cannot be in its memory."""
    return Redis.from_url(app.settings.redis_url, decode_responses=True)


@functools.cache
def journal() -> Journal:
    """What was processed, for the verdict."""
    return Journal(Path(os.environ.get(DIRECTORY, ".")))


@app.processor(flights)
async def carryover(events: Events[Flight]) -> None:
    """Compute what each flight carries over from the one before it.

    An event may be processed again after a crash. So the state before each event is kept under the event's id, next to
    the latest state: a repeated event starts from where it started the first time, and has the same effect. (What was
    committed is not repeated. An app that runs for long would forget the states before that.)
    """
    async for event in events:
        start = time.monotonic()
        flight = event.record
        aircraft = f"aircraft:{flight.tail}"
        seen, latest = await store().hmget(aircraft, event.id, "latest")
        before = next(str(state) for state in (seen, latest, ON_TIME) if state is not None)
        carried, after = carry(Lateness.parse(before), flight)
        await store().hset(aircraft, mapping={event.id: before, "latest": str(after)})
        end = time.monotonic()
        journal().append(
            Entry(flight.number, carried, event.id, event.partition, events.token, os.getpid(), start, end)
        )


@app.task
async def open_journal() -> None:
    """Show the demo that this worker is up."""
    journal()


@app.timer(interval=1)
async def end_with_the_demo() -> None:
    """Where the demo was killed, nobody else would end its workers, which would wait for its server for ever."""
    parent = os.environ.get(PARENT)
    if parent is not None and os.getppid() != int(parent):
        os._exit(1)
