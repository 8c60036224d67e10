"""A long run at a steady rate, with workers coming and going: does anything grow that should not?"""

import asyncio
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import linear_regression, median

from faults import account
from faults.checker import check
from faults.places import OneServer
from faults.stage import Process, Stage
from runnel.server import EmbeddedServer
from runnel.settings import Settings

INTERVAL = 1.0
"""Seconds between two samples."""

CHURN = 15.0
"""Seconds between two changes of the workers."""

VETERANS, COMERS = 2, 2
"""Workers that stay from beginning to end, and are measured; and those that come and go."""

RATES = (("flights", 120.0), ("synthetic", 120.0), ("synthetic", 120.0))

SIZE = 300
"""Entries that a partition keeps, so that the data is as large at the end as in the middle."""

MB = 1_000_000


@dataclass(frozen=True)
class Bound:
    """By how much something may grow in the second half of a run: so much, and a share of what it was."""

    amount: float
    share: float = 0.0

    def of(self, value: float) -> float:
        """For something of this size."""
        return self.amount + self.share * value


BOUNDS = {
    "worker: RSS": Bound(1 * MB, 0.01),  # the interpreter's own arenas move by some 100 kB
    "worker: asyncio tasks": Bound(1),
    "worker: threads": Bound(0.5),
    "worker: open files": Bound(1),
    "server: RSS": Bound(2 * MB, 0.02),  # its allocator's
    "server: memory used": Bound(0.3 * MB, 0.03),
    "server: connections": Bound(3),  # a worker that is being replaced has its own until it has gone
    "server: keys": Bound(1),
    "server: scripts": Bound(2),  # some are first used late; there are 20 in all
}


@dataclass(frozen=True)
class Row:
    """What became of one thing: in the middle and at the end of the run, and by how much it grew from the one to the
    other, along a straight line through the second half."""

    name: str
    middle: float
    end: float
    growth: float
    bound: float

    @property
    def flat(self) -> bool:
        """Whether it does not grow."""
        return self.growth <= self.bound

    def __str__(self) -> str:
        unit, divisor = (" MB", MB) if "RSS" in self.name or "memory" in self.name else ("", 1)
        numbers = "".join(f"{n / divisor:>12,.2f}{unit or '   '}" for n in (self.middle, self.end, self.growth))
        return f"{self.name:<32}{numbers}   at most {self.bound / divisor:.2f}   {'flat' if self.flat else 'GROWS'}"


async def run(seed: int, directory: Path, *, binary: str | Path | None, minutes: float) -> int:
    """Run, print a table, and say whether everything is flat. Returns the exit status.

    1. Start server, workers and producers.
    2. Sample, and let workers come and go, until the time is over.
    3. Wait until everything is handled, and check the history as after any play.
    """
    directory.mkdir(parents=True)  # noqa: ASYNC240  nothing else runs yet
    server = EmbeddedServer(binary=binary, data_dir=directory / "data", start_timeout=30)
    place = OneServer(server, directory / "data")
    environment = {"FAULTS_PARTITION_SIZE": str(SIZE), "FAULTS_COUNT_TASKS": "yes"}
    stage = Stage(directory, place, Settings(name="default").session_timeout, environment)
    samples: dict[str, list[tuple[float, float]]] = defaultdict(list)
    try:
        await stage.open()
        veterans = [stage.start_worker() for _ in range(VETERANS)]
        comers = [stage.start_worker() for _ in range(COMERS)]
        for kind, rate in RATES:
            stage.start_producer(kind, rate)
        await stage.shared()
        await stage.handled(200)  # 1
        churn = asyncio.create_task(_churn(stage, comers, random.Random(seed)))
        started = time.monotonic()
        while (now := time.monotonic() - started) < minutes * 60:  # 2
            async for name, value in _sample(stage, veterans):
                samples[name].append((now, value))
            stage.check_processes()
            await asyncio.sleep(INTERVAL)
        churn.cancel()
        await asyncio.gather(churn, return_exceptions=True)
        history = await stage.finish()  # 3
        await stage.stop_workers()
    finally:
        await stage.close()
    (directory / "samples.json").write_text(json.dumps(samples))
    rows = list(rows_of(samples))
    violations = check(history)
    print(f"{'':<32}{'middle':>12}   {'end':>12}   {'growth':>12}")
    print("\n".join(map(str, rows)))
    growing = [row.name for row in rows if not row.flat]
    print(f"{len(history.effects):,} events, {len(stage.workers)} workers in {minutes:g} minutes.", end=" ")
    print("Everything is flat." if not growing else f"Not flat: {', '.join(growing)}.")
    if violations:
        (directory / "account.txt").write_text(account.of(violations, history))
        print(f"{len(violations)} promises were broken, {violations[0]} the first: {directory / 'account.txt'}")
    return 1 if growing or violations else 0


def rows_of(samples: dict[str, list[tuple[float, float]]]) -> Iterator[Row]:
    """What the samples say: name -> time (seconds) and value of each."""
    for name, points in samples.items():
        half = points[len(points) // 2 :]
        chunk = max(1, len(half) // 10)  # medians, so that a worker that starts just now does not count
        chunks = [half[n : n + chunk] for n in range(0, len(half), chunk)]
        times = [median(time for time, _ in part) for part in chunks]
        values = [median(value for _, value in part) for part in chunks]
        growth = linear_regression(times, values).slope * (times[-1] - times[0])
        bound = BOUNDS[name.split(" of ")[0]]
        yield Row(name, values[0], values[-1], growth, bound.of(values[0]))


async def _churn(stage: Stage, comers: list[Process], rng: random.Random) -> None:
    """Now and then a worker is killed, or stops, and another comes; sometimes somewhat later."""
    while True:
        await asyncio.sleep(CHURN)
        leaving = comers.pop(rng.randrange(len(comers)))
        rng.choice((stage.kill, stage.terminate))(leaving)
        await asyncio.sleep(rng.choice((0.0, CHURN / 3)))
        comers.append(stage.start_worker())


async def _sample(stage: Stage, veterans: list[Process]):  # type: ignore[no-untyped-def]
    for number, worker in enumerate(veterans):
        for name, read in WORKER.items():
            yield f"worker: {name} of {number}", read(worker.pid)
        yield f"worker: asyncio tasks of {number}", _tasks(stage.directory, worker.pid)
    memory, clients = await _info(stage, "memory"), await _info(stage, "clients")
    yield "server: RSS", _rss(int((await _info(stage, "server"))["process_id"]))
    yield "server: memory used", int(memory["used_memory"])
    yield "server: connections", int(clients["connected_clients"])
    yield "server: scripts", int(memory["number_of_cached_scripts"])
    yield "server: keys", await stage.ask("DBSIZE")


async def _info(stage: Stage, section: str) -> dict[str, str]:
    text = (await stage.ask("INFO", section)).decode()
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def _rss(pid: int) -> int:
    return _status(pid, "VmRSS") * 1024


def _threads(pid: int) -> int:
    return _status(pid, "Threads")


def _open_files(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def _status(pid: int, field: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def _tasks(directory: Path, pid: int) -> int:
    """What the worker has written last; see ``app``."""
    path = directory / f"tasks-{pid}"
    return int(path.read_text()) if path.exists() else 0


WORKER: dict[str, Callable[[int], int]] = {"RSS": _rss, "threads": _threads, "open files": _open_files}
