"""The server, everybody who talks to it, what is still on its way there, and the time."""

from collections.abc import Coroutine
from typing import Any

from runnel._redis import scripts
from runnel._redis.keys import ControlKeys, StreamKeys
from simulation.calls import Reply
from simulation.damage import Damage
from simulation.judge import Judge
from simulation.laboratory import CORRECT, Laboratory, Mutant, now
from simulation.members import PREFETCH, Member
from simulation.owners import PROCESSOR
from simulation.producers import Producer
from simulation.seats import INTERVAL, PARTITIONS, SESSION

START = 1_700_000_000_000
HOUR = 3_600_000
"""Milliseconds."""

ROUNDS = 32
"""Within so many rounds after the last fault everything must be as it should: 8 s of its time, at a session of 1 s."""


class World:
    """One schedule's.

    Attributes:
        time: milliseconds of everybody's monotonic clock; the server's differs by ``skew``.
        run, replication: numbers of the server's run, and of its time as a primary.
        paused: whether somebody has paused the processor.
        wire: commands that were held up, and are no longer waited for.
    """

    def __init__(self, lab: Laboratory, mutant: Mutant = CORRECT, limit: int = 0) -> None:
        self.lab = lab
        lab.use(mutant)
        self.faults = mutant.member
        self.limit = limit
        self.keys = StreamKeys("app", "flights")
        self.control = ControlKeys.of("app", "flights", PROCESSOR)
        self.logs = [self.keys.log(partition) for partition in range(PARTITIONS)]
        self.time, self.skew, self.run, self.replication = START, 0, 1, 1
        self.members: list[Member] = []
        self.producers = [Producer(self, name) for name in ("p", "q")]
        self.wire: list[tuple[str, str, Any, Coroutine[Any, Any, Any]]] = []
        self.paused = False
        self.values = 0
        self.names = 0
        self.judge = Judge(self)
        self.damage = Damage(self)
        lab.empty(forget=True)
        self.tick(0)

    @property
    def seconds(self) -> float:
        """The monotonic clock of everybody."""
        return self.time / 1000

    @property
    def alive(self) -> list[Member]:
        return [member for member in self.members if not member.gone]

    def log(self, partition: int) -> str:
        return self.logs[partition]

    # Time

    def tick(self, milliseconds: int) -> None:
        """Time goes by."""
        self.time += milliseconds
        seconds, rest = divmod(self.time + self.skew, 1000)
        self.lab.set("seconds", seconds)
        self.lab.set("micros", rest * 1000)
        self.lab.set("run", self.run)
        self.lab.set("replication", self.replication)
        for member in self.alive:
            if not member.frozen:
                member.tidy()

    def jump(self, milliseconds: int) -> None:
        """Somebody sets the server's clock."""
        self.skew += milliseconds
        self.judge.clock_set(milliseconds)
        self.tick(0)

    # Everybody

    def join(self) -> Member:
        self.names += 1
        member = Member(self, f"m{self.names}")
        member.connect(True)
        self.members.append(member)
        member.beat()
        return member

    def new_value(self, partition: int, producer: str) -> bytes:
        """Names an event: a later one of the same producer has a higher number."""
        self.values += 1
        return b"%d.%s.%d" % (partition, producer.encode(), self.values)

    def everybody(self, rounds: int = 1, *, events: int = 1, interval: int = INTERVAL) -> None:
        """Everybody who can beats and works, and time goes by."""
        for _ in range(rounds):
            for member in self.alive:
                if not member.frozen:
                    member.beat()
                    if member.late:
                        member.beat()
                    if not member.blocked:
                        member.work(events=events)
                    if member.leaving and not member.shares:
                        member.farewell()
            self.tick(interval)

    def look_for_losses(self) -> None:
        for member in self.alive:
            if not member.frozen and not member.blocked:
                member.look_for_losses()

    # The network and the server

    def carry_out(self, what: str, who: str, detail: Any, work: Coroutine[Any, Any, Any]) -> Any:
        answer = now(work)
        self.judge.carried_out(what, who, detail, answer)
        return answer

    def arrive(self, n: int = 0) -> None:
        """A command arrives that its sender has long given up; nobody hears the answer."""
        if self.wire:
            self.carry_out(*self.wire.pop(n % len(self.wire)))

    def fail_over(self, *, back: bool) -> None:
        """Another process is the primary, or one that was it before; nobody is connected."""
        self.replication += 1
        self.run += -1 if back else 1
        for member in self.alive:
            member.connect(False)
        self.tick(0)

    def restart(self) -> None:
        """A new run id; nobody is connected."""
        self.run += 1
        for member in self.alive:
            member.connect(False)
        self.tick(0)

    def pause(self, paused: bool) -> None:
        """Somebody pauses the processor, or resumes it."""
        self.paused = paused
        there = self.lab.ask("HGET", self.control.parked, scripts.ALL) or b""
        now(scripts.park(self.lab, self.control, scripts.ALL, there, b"|{}" if paused else b""))
        self.judge.paused((self.lab.ask("HGET", self.control.group, "epoch") or b"").decode())

    def close(self) -> None:
        for *_, work in self.wire:
            work.close()

    # The end

    def heal(self) -> None:
        """All faults end; within a bounded time everything must be as it should.

        Each producer sends once more to where it has sent before: that is how it learns of a loss which no worker can
        know of, of events that nobody had read.
        """
        self.pause(False)
        while self.wire:
            self.arrive()
        for member in self.alive:
            member.freeze(False)
            member.block(False)
            member.deafen(False)
            member.connect(True)
        if all(member.leaving for member in self.alive):
            self.join()
        for producer in self.producers:
            producer.append(Reply.HEARD)
            for partition in tuple(producer.lanes):
                producer.send(partition)
        self._settle()
        self.look_for_losses()  # a hole behind what was read ahead shows at the end of the log
        self._settle()
        self.judge.healed()

    def _settle(self) -> None:
        for _ in range(ROUNDS):
            self.everybody(events=PREFETCH, interval=SESSION // 4)
            for producer in self.producers:
                producer.append()
            if self.judge.settled():
                return
