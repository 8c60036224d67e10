"""A process that sends: ``python -m faults.producer NAME KIND RATE``. Ends at SIGTERM, when everything has an outcome.

Most events are sent one by one, without waiting for the one before; some in lists. What is sent follows the feed; what
the file ``NAME.orders`` holds becomes the body of the next event. With the variable FAULTS_POISON_EVERY, one in so many
events always fails.
"""

import asyncio
import itertools
import os
import random
import signal
import sys
import time
from pathlib import Path

from faults import mutants
from faults.journal import Journal
from faults.records import PARTITIONS, POISON, Step, feed
from runnel import App
from runnel.errors import RedisUnavailable, RunnelError

POISON_EVERY = int(os.environ.get("FAULTS_POISON_EVERY", "0"))

OUTSTANDING = 2_000
"""Events without an outcome at most: while Redis is away, a producer does not go on for ever."""


class Sender:
    """Sends what a feed has, and writes down what became of it."""

    def __init__(self, name: str, kind: str, directory: Path) -> None:
        self.app = App(name=os.environ["FAULTS_APP"])
        self._journal = Journal(directory, f"producer-{name}")
        self.app.instruments.subscribe(self._journal.announced)
        self._steps = self.app.stream(
            "steps",
            record=Step,
            partition_by="key",
            partition_count=PARTITIONS,
            partition_size=int(os.environ.get("FAULTS_PARTITION_SIZE", "0")),
        )
        self._feed = feed(kind, name)
        self._orders = directory / f"{name}.orders"
        self._tasks: set[asyncio.Task[None]] = set()
        self._outstanding = 0

    async def run(self, rate: float, stop: asyncio.Event) -> None:
        """Send ``rate`` events a second until told to stop; then wait for the outcomes."""
        started, sent = time.monotonic(), 0
        while not stop.is_set():
            due = int((time.monotonic() - started) * rate) - sent
            sent += max(due, 0)
            while due > 0 and self._outstanding < OUTSTANDING:
                number = min(due, random.choice((1, 1, 1, 2, 20)))
                due -= number
                self._outstanding += number
                task = asyncio.create_task(self._send([self._ordered(s) for s in itertools.islice(self._feed, number)]))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(0.02)
        await asyncio.gather(*self._tasks)
        await self.app.aclose()

    def _ordered(self, step: Step) -> Step:
        if self._orders.exists():
            body = self._orders.read_text()
            self._orders.unlink()
            if body.startswith("large "):
                body += " " + "x" * int(body.split(" ")[1])
        elif POISON_EVERY and step.serial % POISON_EVERY == POISON_EVERY - 1:
            body = POISON
        else:
            return step
        return step.model_copy(update={"body": body}).sealed()

    async def _send(self, steps: list[Step]) -> None:
        for step in steps:
            self._journal.write("I", _now(), step.serial, step.key, step.number, step.check)
        try:
            ids = await self._steps.send(*steps)
        except RunnelError as error:
            # Of a list, other partitions may have been appended to before one was refused.
            kind = "U" if isinstance(error, RedisUnavailable) or len(steps) > 1 else "F"
            for step in steps:
                self._journal.write(kind, _now(), step.serial, type(error).__name__)
        else:
            for step, entry_id in zip(steps, ids, strict=True):
                self._journal.write("O", _now(), step.serial, entry_id)
        finally:
            self._outstanding -= len(steps)


def _now() -> str:
    return f"{time.monotonic():.4f}"


async def main(name: str, kind: str, rate: float) -> None:
    """Send until SIGTERM."""
    mutants.become(os.environ.get("FAULTS_MUTANT"))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await Sender(name, kind, Path(os.environ["FAULTS_DIRECTORY"])).run(rate, stop)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
