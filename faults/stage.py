"""Where a fault is played: servers of its own, worker and producer processes, and what is known of them."""

import asyncio
import os
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults import dump, history
from faults.history import Disturbance, EntryId, History, Send
from faults.places import Place
from faults.records import PARTITIONS, Step
from faults.watcher import Watcher
from runnel import App
from runnel._redis.keys import ControlKeys
from runnel._redis.topology import endpoint_for
from runnel.errors import RedisError, RedisUnavailable
from runnel.middleware.dead_letter import sink_of

ROOT = Path(__file__).parent.parent
NAME = "faults"
PATIENCE = 60.0
"""Seconds for what has no promised duration, such as the start of a process on a busy machine."""

DRAINED_WITHIN = 10.0
"""Seconds from the end of the faults until everything is handled; see C9."""


class Broken(AssertionError):
    """Something did not come about in time, or a process ended that should not have."""


class Unplayable(Exception):
    """This machine, or this server, cannot play it."""


@dataclass(eq=False)
class Process:
    """A worker or a producer."""

    name: str
    process: subprocess.Popen[bytes]
    output: Path
    expected_to_end: bool = False

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None


@dataclass
class Stage:
    """Everything that a play acts on.

    Attributes:
        directory: for journals, output, and the server's data.
        place: the servers. Started by the stage; killed and started by plays.
        session: the workers' session timeout in seconds.
        environment: more variables for workers and producers.
        workers: all that there ever were.
        producers: the same.
        disturbances: what was done to them.
        raw: what was appended by hand and is no record.
        forgiven: exit statuses with which a worker may end by itself, and what that is called.
        drained_after: seconds from the end of the faults until everything was handled and evenly shared.
    """

    directory: Path
    place: Place
    session: float
    environment: dict[str, str] = field(default_factory=dict)
    workers: list[Process] = field(default_factory=list)
    producers: list[Process] = field(default_factory=list)
    disturbances: list[Disturbance] = field(default_factory=list)
    raw: dict[tuple[int, EntryId], Send] = field(default_factory=dict)
    forgiven: dict[int, str] = field(default_factory=dict)
    drained_after: float = 0.0

    def __post_init__(self) -> None:
        self.place.start()
        self.link = endpoint_for(self.place.url).link()
        self.app = App(name=NAME, redis_url=self.place.url)
        self.steps = self.app.stream("steps", record=Step, partition_by="key", partition_count=PARTITIONS)
        self.control = ControlKeys.of(NAME, "steps", "record")
        self.watcher = Watcher(self.link.endpoint.link())

    async def open(self) -> None:
        """Begin to look. Before that, the stream is divided, as whoever comes first does it."""
        await self.steps.declare(self.link)
        self.watcher.watch(self._positions)

    @property
    def _positions(self) -> list[str]:
        """The keys of the positions, one per slot group."""
        keys = self.steps.keys
        return [keys.positions(slot_group, "record") for slot_group in range(keys.slot_groups)]

    # Processes

    def start_worker(self, url: str | None = None) -> Process:
        """One more worker."""
        worker = self._start("worker", ["-m", "runnel", "worker", "faults.app:app"], len(self.workers), url)
        self.workers.append(worker)
        return worker

    def start_producer(self, kind: str, rate: float, url: str | None = None) -> Process:
        """One more producer; see ``faults.producer``."""
        name = f"p{len(self.producers)}"
        producer = self._start("producer", ["-m", "faults.producer", name, kind, str(rate)], len(self.producers), url)
        self.producers.append(producer)
        return producer

    def _start(self, role: str, arguments: list[str], number: int, url: str | None) -> Process:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RUNNEL_")} | {
            "RUNNEL_REDIS_URL": url or self.place.url,
            "RUNNEL_SESSION_TIMEOUT": str(self.session),
            "FAULTS_APP": NAME,
            "FAULTS_DIRECTORY": str(self.directory),
            "PYTHONDONTWRITEBYTECODE": "1",
            **self.environment,
        }
        output = self.directory / f"{role}-{number}.out"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=environment,
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
            )
        return Process(f"{role}-{number}", process, output)

    @property
    def alive(self) -> list[Process]:
        """The workers that run."""
        return [worker for worker in self.workers if worker.alive and not worker.expected_to_end]

    def kill(self, worker: Process) -> None:
        """Crash it."""
        worker.expected_to_end = True
        worker.process.kill()
        now = time.monotonic()
        worker.process.wait()
        self.note("kill", now, pid=worker.pid)

    def terminate(self, worker: Process) -> None:
        """Ask it to stop."""
        worker.expected_to_end = True
        self.note("term", time.monotonic(), pid=worker.pid)
        worker.process.terminate()

    async def frozen(self, workers: Iterable[Process], seconds: float) -> None:
        """Stop processes for a while, as a suspended machine does."""
        chosen = list(workers)
        started = time.monotonic()
        for worker in chosen:
            worker.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        for worker in chosen:
            worker.process.send_signal(signal.SIGCONT)
        for worker in chosen:
            self.note("freeze", started, pid=worker.pid)

    def note(
        self, kind: str, started: float, *, pid: int = 0, partition: int | None = None, entry: EntryId | None = None
    ) -> None:
        """Write down what was done, from ``started`` until now."""
        self.disturbances.append(Disturbance(kind, started, time.monotonic(), pid, partition, entry))

    def slow_down(self, partition: int, seconds: float) -> None:
        """From now on, each event of a partition takes so long."""
        new = self.directory / "slow.new"
        new.write_text(f"{partition} {seconds}")
        new.rename(self.directory / "slow")

    def speed_up(self) -> None:
        """End what :meth:`slow_down` began, the event in progress included."""
        (self.directory / "slow").unlink(missing_ok=True)

    async def inject(self, partition: int, *fields: bytes) -> None:
        """Append something by hand that is no record."""
        invoked, number = time.monotonic(), len(self.raw)
        name: bytes = await self.ask("XADD", self.steps.keys.log(partition), "*", *fields)
        place = partition, history.entry_id(name.decode())
        check = zlib.crc32(b"".join(fields))
        self.raw[place] = Send(
            *(invoked, ("by hand", number), f"by-hand-{number}", 0, check, "O", time.monotonic(), place[1])
        )

    async def delete(self, partition: int, entry: EntryId) -> None:
        """Delete an entry by hand."""
        started = time.monotonic()
        name = "{}-{}".format(*entry)
        if await self.ask("XDEL", self.steps.keys.log(partition), name):
            self.note("delete", started, partition=partition, entry=entry)

    # What Redis says

    async def ask(self, *command: Any) -> Any:
        """A command of ours, whose first argument is its key if it has one; tried for as long as the server is away."""
        return await self.until(lambda: self._asked(*command), f"no answer to {command[0]}")

    async def _asked(self, *command: Any) -> tuple[Any]:
        try:
            line = self.link.at(str(command[1])) if len(command) > 1 else self.link
            return (await line.call(*command),)
        except (RedisUnavailable, RedisError):
            return ()  # type: ignore[return-value]

    async def until(self, condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
        """Wait for a condition; what it returned, or the only element of that if it is a tuple.

        Raises:
            Broken: it did not come true, or a process has ended that should not.
        """
        deadline = time.monotonic() + seconds
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found[0] if isinstance(found, tuple) else found
            self.check_processes()
            if time.monotonic() > deadline:
                raise Broken(f"{what}, within {seconds:g} s")
            await asyncio.sleep(0.02)

    def check_processes(self) -> None:
        """Nobody ends by itself, whatever is done to Redis.

        Raises:
            Broken: somebody has.
        """
        for process in (*self.workers, *self.producers):
            if not process.alive and not process.expected_to_end:
                if (why := self.forgiven.get(process.process.returncode)) and process in self.workers:
                    process.expected_to_end = True
                    self.note(why, time.monotonic(), pid=process.pid)
                    continue
                tail = process.output.read_text(errors="replace")[-1500:]
                raise Broken(f"{process.name} has ended with status {process.process.returncode}:\n{tail}")

    async def owners(self) -> dict[int, str]:
        """Partition -> member, of those that are not asked to hand it back."""
        flat = await self.ask("HGETALL", self.control.owners)
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return {int(p): owner.split(b"|")[0].decode() for p, owner in pairs if owner.split(b"|")[2] == b"-1"}

    async def owner(self, partition: int) -> Process:
        """Who has a partition."""

        async def found() -> Process | None:
            member = (await self.owners()).get(partition, "--")
            return next((w for w in self.alive if str(w.pid) == member.rsplit("-", 2)[1]), None)

        owner: Process = await self.until(found, f"nobody has partition {partition}")
        return owner

    async def offset(self, partition: int) -> EntryId:
        """The position."""
        keys = self.steps.keys
        stored = await self.ask("HGET", keys.positions(keys.slot_group(partition), "record"), partition) or b"|0-0"
        return history.entry_id(stored.split(b"|")[1].decode())

    async def offsets(self) -> dict[int, EntryId]:
        """The positions of all partitions that have one."""
        found = {}
        for key in self._positions:
            flat = await self.ask("HGETALL", key)
            for name, value in zip(flat[::2], flat[1::2], strict=True):
                if name.isdigit():
                    found[int(name)] = history.entry_id(value.split(b"|")[1].decode())
        return found

    async def shared(self, seconds: float = PATIENCE) -> None:
        """Wait until the workers that run share the partitions evenly."""

        async def evenly() -> bool:
            counts = Counter((await self.owners()).values())
            pids = {member.rsplit("-", 2)[1] for member in counts}
            running = {str(worker.pid) for worker in self.alive}
            least = PARTITIONS // max(1, len(running))
            return counts.total() == PARTITIONS and pids == running and set(counts.values()) <= {least, least + 1}

        await self.until(evenly, "the partitions were not shared evenly", seconds)

    async def handled(self, number: int) -> None:
        """Wait until so many more events were handled."""
        before = self.lines("E")
        await self.until(lambda: self.lines("E") >= before + number, f"no {number} more events were handled")

    async def all_go_on(self) -> None:
        """Wait until something more is committed in every partition."""
        before = await self.offsets()

        async def further() -> bool:
            now = await self.offsets()
            return all(now.get(partition, (0, 0)) > offset for partition, offset in before.items())

        await self.until(further, "not all partitions go on")

    def lines(self, kind: str, role: str = "worker") -> int:
        """How many lines of a kind the journals have."""
        mark = f"\n{kind} ".encode()
        return sum((b"\n" + path.read_bytes()).count(mark) for path in self.directory.glob(f"{role}-*.journal"))

    def announced(self, name: str) -> int:
        """How many announcements of a name the workers' journals have."""
        mark = f" {name} {{".encode()
        return sum(path.read_bytes().count(mark) for path in self.directory.glob("worker-*.journal"))

    # The end

    async def finish(self) -> History:
        """End the producers, wait until everything is handled, and read what there is. Workers go on."""
        for producer in self.producers:
            producer.expected_to_end = True
            if producer.alive:
                producer.process.terminate()
        for producer in self.producers:
            try:
                status = await asyncio.to_thread(producer.process.wait, PATIENCE)
            except subprocess.TimeoutExpired:
                raise Broken(f"{producer.name} did not end: {producer.output.read_text()[-1500:]}") from None
            if status not in (0, -signal.SIGKILL):
                raise Broken(f"{producer.name} has ended with {status}: {producer.output.read_text()[-1500:]}")
        over = time.monotonic()
        within = DRAINED_WITHIN + self.session  # who was the last to be killed may be missed for a session
        await self.shared(within)
        await self.until(self._drained, "C9: not everything was handled", over + within - time.monotonic())
        self.drained_after = time.monotonic() - over
        return await self.history()

    async def history(self) -> History:
        """Everything that is known so far."""
        found = self.recorded()
        found.log = await dump.entries(self.ask, self.steps, self.raw)
        found.letters = await dump.letters(self.ask, sink_of(self.steps))
        return found

    def recorded(self) -> History:
        """The same without what is in the servers."""
        found = history.read(self.directory, self.raw)
        found.looks = self.watcher.looks
        found.complete = self.environment.get("FAULTS_PARTITION_SIZE", "0") == "0"
        found.disturbances = sorted(self.disturbances, key=lambda d: d.started)
        return found

    async def _drained(self) -> bool:
        """Whether the positions of all partitions are at the end of their logs."""
        stored = await self.offsets()
        for partition in range(PARTITIONS):
            (last,) = await self.ask("XREVRANGE", self.steps.keys.log(partition), "+", "-", "COUNT", 1) or [None]
            if last is not None and stored.get(partition) != history.entry_id(last[0].decode()):
                return False
        return True

    async def stop_workers(self) -> None:
        """End all workers in good order.

        Raises:
            Broken: one did not end with status 0.
        """
        running = self.alive
        for worker in running:
            self.terminate(worker)
        for worker in running:
            try:
                status = await asyncio.to_thread(worker.process.wait, PATIENCE)
            except subprocess.TimeoutExpired:
                raise Broken(f"{worker.name} did not stop: {worker.output.read_text()[-1500:]}") from None
            if status != 0:
                raise Broken(f"{worker.name} has stopped with status {status}: {worker.output.read_text()[-1500:]}")

    async def close(self) -> None:
        """End everything, by process id."""
        for one in (*self.workers, *self.producers):
            if one.alive:
                one.process.send_signal(signal.SIGCONT)
                one.process.kill()
            one.process.wait()
        await self.watcher.close()
        await self.app.aclose()
        await self.link.close()
        self.place.stop()
