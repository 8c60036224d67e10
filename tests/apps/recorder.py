"""The app that the process tests run: every event leaves one line in a file outside Redis.

A line says when its handler started and ended (CLOCK_MONOTONIC, which all processes share), where, under which token,
and which event it was.
"""

import asyncio
import os
import random
import time

from runnel import App, Record

app = App(
    name=os.environ["TEST_APP"], **({"session_timeout": float(s)} if (s := os.environ.get("TEST_SESSION")) else {})
)


class Step(Record):
    """The ``number``-th event of ``key``."""

    key: str
    number: int


steps = app.stream("steps", record=Step, partition_by="key")
out = os.open(os.environ["TEST_HISTORY"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
slowest = float(os.environ.get("TEST_HANDLER", "0.003"))


@app.processor(steps)
async def record(events):
    """Take a little while over each event, and write it down."""
    async for event in events:
        started = time.monotonic()
        if event.key == "block" and event.number == 0:
            time.sleep(float(os.environ["TEST_BLOCK"]))  # noqa: ASYNC251  the mistake under test
        await asyncio.sleep(random.uniform(0, slowest))
        line = f"{started} {time.monotonic()} {os.getpid()} {event.partition} {events.token} {event.id}"
        os.write(out, f"{line} {event.key} {event.number}\n".encode())
