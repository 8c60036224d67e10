"""Dividing a stream anew under load, while whatever takes part is killed: order, no loss, no duplicate."""

import asyncio
import os
import random
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from history import Effect, read_history

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

APPS = Path(__file__).parent / "apps"


@dataclass
class Crowd:
    """Producers, workers and a migration, each a process."""

    directory: Path
    environment: dict[str, str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """One more process of Python."""
        log = self.directory / f"{len(self.processes)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, *arguments], cwd=APPS, env=self.environment, stdout=out, stderr=out
            )
        self.processes.append(process)
        return process

    def worker(self) -> subprocess.Popen[bytes]:
        return self.start("-m", "runnel", "worker", "recorder:app")

    def producer(self) -> subprocess.Popen[bytes]:
        return self.start("sender.py")

    def migrate(self, partitions: int) -> subprocess.Popen[bytes]:
        return self.start(
            *("-m", "runnel", "stream", "migrate", "recorder:steps"), "--partitions", str(partitions), "--execute"
        )

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Without a warning."""
        process.kill()
        process.wait()

    def history(self) -> list[Effect]:
        """What the workers have done."""
        return read_history(Path(self.environment["TEST_HISTORY"]))

    def confirmed(self) -> dict[str, int]:
        """The last number that was confirmed, for every key."""
        found: dict[str, int] = {}
        for line in Path(self.environment["TEST_CONFIRMED"]).read_text().splitlines():
            key, number = line.split()
            found[key] = max(found.get(key, -1), int(number))
        return found

    def logs(self) -> str:
        """What was printed last."""
        return "\n".join(path.read_text()[-800:] for path in sorted(self.directory.glob("*.log")))

    def close(self) -> None:
        """End everything, by process id."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def wrong(effects: list[Effect], confirmed: dict[str, int]) -> list[str]:
    """What breaks the promises: events of a key in order; each in the log once; none lost that was confirmed."""
    found = []
    by_key: dict[str, list[Effect]] = defaultdict(list)
    for effect in effects:
        by_key[effect.key].append(effect)
    for key in confirmed.keys() | by_key.keys():
        places: dict[int, tuple[int, tuple[int, int]]] = {}
        following, ended = 0, 0.0
        for effect in by_key[key]:
            place = (effect.partition, effect.entry_id)
            if places.setdefault(effect.number, place) != place:
                found.append(f"twice in the log: {key} {effect.number} at {places[effect.number]} and {place}")
            if effect.number > following:
                found.append(f"out of order, or lost: {key} {effect.number} instead of {following}")
            if effect.number == following:
                if effect.started < ended:
                    found.append(f"at the same time as the one before: {key} {effect.number}")
                following, ended = following + 1, effect.ended
        if following <= confirmed.get(key, -1):
            found.append(f"lost: {key} {following}, although {confirmed[key]} is confirmed")
    return found


async def until(condition: "object", what: str, seconds: float = 40.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.2)


@pytest.mark.parametrize(
    ("seed", "partitions", "topology"), [(1, 7, "single"), (2, 5, "cluster")], indirect=["topology"]
)
async def test_whoever_is_killed_while_a_stream_is_divided_anew_nothing_is_lost_doubled_or_disordered(
    seed: int, partitions: int, app_name: str, redis_url: str, tmp_path: Path
) -> None:
    chance = random.Random(seed)
    environment = os.environ | {
        "RUNNEL_REDIS_URL": redis_url,
        "TEST_APP": app_name,
        "TEST_HISTORY": str(tmp_path / "history"),
        "TEST_CONFIRMED": str(tmp_path / "confirmed"),
        "TEST_HANDLER": "0.002",
    }
    for name in ("history", "confirmed"):
        (tmp_path / name).touch()
    crowd = Crowd(tmp_path, environment)
    try:
        workers = [crowd.worker() for _ in range(3)]
        producers = [crowd.producer() for _ in range(2)]
        await until(lambda: len(crowd.history()) > 500, crowd.logs())
        migration = crowd.migrate(partitions)
        await asyncio.sleep(chance.uniform(0.3, 1.2))
        crowd.kill(migration)
        migration = crowd.migrate(partitions)
        await asyncio.sleep(chance.uniform(0.3, 1.2))
        for crew, start in ((workers, crowd.worker), (producers, crowd.producer)):
            victim = chance.randrange(len(crew))
            crowd.kill(crew[victim])
            crew[victim] = start()
        await until(lambda: migration.poll() is not None, crowd.logs())
        assert migration.returncode == 0, crowd.logs()
        done = len(crowd.history())
        await until(lambda: len(crowd.history()) > done + 500, crowd.logs())
        for producer in producers:
            crowd.kill(producer)
        confirmed = crowd.confirmed()

        def complete() -> bool:
            last: dict[str, int] = {}
            for effect in crowd.history():
                last[effect.key] = max(last.get(effect.key, -1), effect.number)
            return all(last.get(key, -1) >= number for key, number in confirmed.items())

        await until(complete, crowd.logs())
        history = crowd.history()
        assert wrong(history, confirmed) == []
        assert {effect.partition for effect in history[-300:]} <= set(range(partitions))
    finally:
        crowd.close()
