"""Real worker processes, killed, frozen and stopped under load; the history they leave is what is tested."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from history import Effect, read_history, repeats, violations
from runnel import App, Record
from runnel._redis.keys import ControlKeys
from runnel._redis.topology import endpoint_for
from runnel.server import EmbeddedServer

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

APPS = Path(__file__).parent / "apps"
PARTITIONS = 16


class Step(Record):
    """The same as in the workers' app."""

    key: str
    number: int


@dataclass
class Cluster:
    """Worker processes of one app, a producer, and what they have done so far."""

    app: App
    url: str
    directory: Path
    environment: dict[str, str] = field(default_factory=dict)
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.steps = self.app.stream("steps", record=Step, partition_by="key")
        self.history_file = self.directory / "history"
        self.history_file.touch()
        self.link = endpoint_for(self.url).link()

    def start(self) -> subprocess.Popen[bytes]:
        """One more worker."""
        log = (self.directory / f"worker-{len(self.workers)}.log").open("wb")
        environment = os.environ | {
            "RUNNEL_REDIS_URL": self.url,
            "TEST_APP": self.app.name,
            "TEST_HISTORY": str(self.history_file),
            **self.environment,
        }
        command = [sys.executable, "-m", "runnel", "worker", "recorder:app"]
        with log:
            worker = subprocess.Popen(command, cwd=APPS, env=environment, stdout=log, stderr=log)
        self.workers.append(worker)
        return worker

    async def members(self) -> int:
        """How many of them own as many partitions as their share."""
        keys = ControlKeys.of(self.app.name, "steps", "record")
        owners = (await self.link.at(keys.owners).call("HVALS", keys.owners)) or []
        counts = Counter(owner.split(b"|")[0] for owner in owners)
        if len(owners) != PARTITIONS or any(owner.split(b"|")[2] != b"-1" for owner in owners):
            return 0
        return len(counts) if max(counts.values()) - min(counts.values()) <= 1 else 0

    async def shared_by(self, number: int) -> None:
        """Wait until so many workers share the partitions evenly."""
        deadline = time.monotonic() + 20
        while await self.members() != number:
            assert time.monotonic() < deadline, f"not shared by {number}: {self.logs()}"
            await asyncio.sleep(0.02)

    async def load(self, until: Callable[[], bool], *, keys: int = 64, pause: float = 0.01) -> None:
        """Send events of all keys in turn, until told to stop."""
        turn = 0
        while not until():
            batch = []
            for key in (f"key-{(turn * 8 + n) % keys}" for n in range(8)):
                batch.append(Step(key=key, number=self.sent[key]))
                self.sent[key] += 1
            await self.steps.send(*batch)
            turn += 1
            await asyncio.sleep(pause)

    def history(self) -> list[Effect]:
        """What they have done."""
        return read_history(self.history_file)

    async def handled_more(self, number: int) -> None:
        """Wait until so many more events were handled."""
        handled = len(self.history())
        deadline = time.monotonic() + 30
        while len(self.history()) < handled + number:
            assert time.monotonic() < deadline, f"no progress: {self.logs()}"
            await asyncio.sleep(0.02)

    async def drained(self, timeout: float = 30) -> list[Effect]:
        """Wait until everything sent was handled at least once."""
        deadline = time.monotonic() + timeout
        while True:
            history = self.history()
            if len({(effect.key, effect.number) for effect in history}) >= self.sent.total():
                return history
            assert time.monotonic() < deadline, f"{violations(history, self.sent)[:5]} {self.logs()}"
            await asyncio.sleep(0.05)

    def logs(self) -> str:
        """What the workers printed last."""
        return "\n".join(path.read_text()[-1500:] for path in sorted(self.directory.glob("worker-*.log")))

    async def close(self) -> None:
        """End everything, by process id."""
        for worker in self.workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGCONT)
                worker.kill()
            worker.wait()
        await self.app.aclose()
        await self.link.close()


@asynccontextmanager
async def cluster(name: str, url: str, directory: Path, **environment: str) -> AsyncIterator[Cluster]:
    """A cluster that is ended at the end."""
    running = Cluster(App(name=name, redis_url=url), url, directory, environment)
    try:
        yield running
    finally:
        await running.close()


@pytest.mark.everywhere
async def test_a_killed_worker_loses_nothing_and_its_partitions_go_on_within_two_seconds(
    app_name: str, redis_url: str, tmp_path: Path
) -> None:
    async with cluster(app_name, redis_url, tmp_path) as group:
        for _ in range(3):
            group.start()
        await group.shared_by(3)
        stop = asyncio.Event()
        load = asyncio.create_task(group.load(stop.is_set))
        takeovers = []
        for victim in tuple(group.workers):
            await group.handled_more(200)
            killed_at = time.monotonic()
            victim.kill()
            victim.wait()
            owner: dict[int, Effect] = {}
            for effect in group.history():
                owner[effect.partition] = effect
            orphans = {partition for partition, effect in owner.items() if effect.pid == victim.pid}
            assert orphans
            group.start()

            def resumed(since: float = killed_at, gone: int = victim.pid) -> dict[int, float]:
                first: dict[int, float] = {}
                for effect in group.history():
                    if effect.started > since and effect.pid != gone:
                        first.setdefault(effect.partition, effect.started - since)
                return first

            deadline = time.monotonic() + 10
            while not orphans <= set(resumed()):
                assert time.monotonic() < deadline, group.logs()
                await asyncio.sleep(0.02)
            takeovers.append(max(resumed()[partition] for partition in orphans))
            await group.shared_by(3)
        stop.set()
        await load
        history = await group.drained()
        assert violations(history, group.sent) == []
        print("takeover:", takeovers)
        assert max(takeovers) < 2.0, takeovers


@pytest.mark.everywhere
async def test_stopped_workers_repeat_nothing_and_exit_with_status_0(
    app_name: str, redis_url: str, tmp_path: Path
) -> None:
    async with cluster(app_name, redis_url, tmp_path) as group:
        for _ in range(3):
            group.start()
        await group.shared_by(3)
        stop = asyncio.Event()
        load = asyncio.create_task(group.load(stop.is_set))
        for worker in tuple(group.workers):
            await group.handled_more(200)
            worker.terminate()
            group.start()
            assert await asyncio.to_thread(worker.wait, 20) == 0, group.logs()
            await group.shared_by(3)
        stop.set()
        await load
        history = await group.drained()
        assert violations(history, group.sent) == []
        assert repeats(history) == 0


async def test_a_frozen_worker_is_fenced_when_it_wakes_up(app_name: str, redis_url: str, tmp_path: Path) -> None:
    session = 2.0
    async with cluster(app_name, redis_url, tmp_path, TEST_SESSION=str(session)) as group:
        group.start()
        group.start()
        await group.shared_by(2)
        stop = asyncio.Event()
        load = asyncio.create_task(group.load(stop.is_set))
        await group.handled_more(200)
        frozen = group.workers[0]
        frozen.send_signal(signal.SIGSTOP)
        frozen_at = time.monotonic()
        await group.shared_by(1)
        taken_after = time.monotonic() - frozen_at
        assert taken_after < session + 1, taken_after
        await group.handled_more(200)
        frozen.send_signal(signal.SIGCONT)
        await group.shared_by(2)
        await group.handled_more(200)
        stop.set()
        await load
        history = await group.drained()
        assert violations(history, group.sent, overlaps=True) == []
        # One event of each of its partitions may have been in the middle of its handler; no more than that.
        assert repeats(history) <= PARTITIONS, group.logs()


async def test_workers_survive_a_crash_and_restart_of_the_server(
    app_name: str, server_binary: str | Path | None, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    extra = ["--appendfsync", "always"]
    with EmbeddedServer(binary=server_binary, data_dir=data, append_only=True, extra=extra) as server:
        async with cluster(app_name, server.url, tmp_path) as group:
            group.start()
            group.start()
            await group.shared_by(2)
            stop = asyncio.Event()
            load = asyncio.create_task(group.load(stop.is_set))
            for _ in range(2):
                await group.handled_more(200)
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
            await group.handled_more(200)
            stop.set()
            await load
            history = await group.drained()
            assert violations(history, group.sent) == []
            assert all(worker.poll() is None for worker in group.workers)
            tokens = {(effect.partition, effect.token) for effect in history}
            assert len(tokens) == PARTITIONS, "a restart of the server must not move partitions"


async def test_a_handler_that_blocks_the_event_loop_keeps_its_partitions(
    app_name: str, redis_url: str, tmp_path: Path
) -> None:
    session = 1.0
    blocked = 3 * session
    async with cluster(app_name, redis_url, tmp_path, TEST_SESSION=str(session), TEST_BLOCK=str(blocked)) as group:
        group.start()
        group.start()
        await group.shared_by(2)
        await group.steps.send(Step(key="block", number=0))
        group.sent["block"] += 1
        started = time.monotonic()
        await group.load(lambda: time.monotonic() > started + blocked + session)
        history = await group.drained()
        assert violations(history, group.sent) == []
        assert repeats(history) == 0
        assert len({(effect.partition, effect.token) for effect in history}) <= PARTITIONS, group.logs()
