"""Workers, producers and faults, played without processes on the clock of a test; the scripts and the server are real.

A :class:`Member` mirrors ``runnel._worker`` (heartbeats, member, reader, committer, consumer) through the same pure
functions. What waits
there is a call here: a command that is repeated until its answer is known. :class:`Reply` says what becomes of it
each time.
"""

from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from judge import Judge
from laboratory import CORRECT, Laboratory, Mutant, now
from runnel._core.lease import Lease
from runnel._core.partitions import PartitionState, Step, advance
from runnel._core.reconcile import reconcile
from runnel._redis import queries, scripts
from runnel._redis.keys import ControlKeys, StreamKeys
from runnel._redis.scripts import Acquired, AppendStatus, Batch, Beat, Commit, CommitStatus, Op, Seat, Stale

PROCESSOR = "delays"
PARTITIONS = 3
SESSION, INTERVAL, SILENCE, JOIN_DELAY, GRACE = 1000, 100, 150, 50, 600
"""Milliseconds."""
PREFETCH = 3
START = 1_700_000_000_000
HOUR = 3_600_000


class Reply(Enum):
    """What becomes of a command."""

    HEARD = "carried out and answered"
    LOST = "carried out; the answer is lost, so it is repeated"
    LATE = "held up in the network: it is repeated, and this one arrives some time later"
    HELD = "carried out; the answer arrives with the next attempt"


@dataclass
class Call:
    """A command, repeated until its answer is known."""

    what: str
    compose: Callable[[], tuple[Any, Coroutine[Any, Any, Any]]]
    answered: Callable[[Any], None]
    held: list[Any] = field(default_factory=list)


@dataclass
class Share:
    """A partition in the hands of a member: a feed and its consumer."""

    partition: int
    token: int
    state: PartitionState = PartitionState.GRANTED
    buffer: deque[tuple[bytes, bytes]] = field(default_factory=deque)
    hand: tuple[bytes, bytes] | None = None
    cursor: bytes = b"0-0"
    done: bytes = b"0-0"
    committed: bytes = b"0-0"
    count: int = 0
    read: int = 0
    ended: bool = True
    stale: bool = False
    to_acquire: bool = True
    rewinding: bool = False
    drained_at: int = 0

    def begin(self, offset: bytes, count: int) -> None:
        self.buffer.clear()
        self.cursor = self.done = self.committed = offset
        self.count = self.read = count
        self.stale = self.ended = self.to_acquire = self.rewinding = False

    def rewind(self) -> None:
        self.rewinding = self.stale = self.ended = True


class Caller:
    """Who sends commands: one at a time per purpose."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.calls: dict[str, Call] = {}

    def carry_on(self, purpose: str, reply: Reply) -> None:
        """One attempt at the call that is open for this purpose."""
        call = self.calls[purpose]
        if call.held:
            del self.calls[purpose]
            call.answered(call.held.pop())
            return
        detail, work = call.compose()
        if reply is Reply.LATE:
            self.world.wire.append((call.what, self.name, detail, work))
            return
        answer = self.world.carry_out(call.what, self.name, detail, work)
        if reply is Reply.HEARD:
            del self.calls[purpose]
            call.answered(answer)
        elif reply is Reply.HELD:
            call.held.append(answer)


class Member(Caller):
    """A worker's seat in the group."""

    def __init__(self, world: "World", name: str) -> None:
        super().__init__(world, name)
        self.seat = Seat(world.control, name, PARTITIONS, SESSION, JOIN_DELAY, GRACE, SILENCE)
        self.lease = Lease(SESSION / 1000)
        self.shares: dict[int, Share] = {}
        self.releases: list[tuple[int, int]] = []
        self.inbox: list[Beat] = []
        self.epoch, self.floor = "", 0
        self.joined = self.settled = self.leaving = self.gone = self.frozen = self.blocked = False
        self.connected = True

    # Heartbeats

    def beat(self, reply: Reply = Reply.HEARD) -> None:
        if "beat" not in self.calls:
            op = Op.DRAIN if self.leaving else Op.BEAT if self.joined else Op.JOIN
            releases = tuple(self.releases)
            sent = 0.0

            def compose() -> tuple[Any, Coroutine[Any, Any, Beat]]:
                nonlocal sent
                sent = self.world.seconds
                settled = self.settled and not releases
                return op, scripts.heartbeat(
                    self.world.lab,
                    self.seat,
                    op,
                    epoch=self.epoch,
                    settled=settled,
                    floor=self.floor,
                    releases=releases,
                )

            def answered(beat: Beat) -> None:
                for release in releases:
                    self.releases.remove(release)
                if beat.known:
                    self.lease.renew(self.world.seconds if "lease from the answer" in self.world.faults else sent)
                    self.joined, self.epoch = True, beat.epoch
                    if beat.full:
                        self.settled = beat.waiting == 0 and not beat.revoked
                else:
                    self.lease.end()
                    self.joined = self.settled = False
                self.inbox.append(beat)
                self.look_into_inbox()

            self.calls["beat"] = Call("beat", compose, answered)
        self.carry_on("beat", reply)

    def look_into_inbox(self) -> None:
        """The worker's loop, which may be blocked by a handler, sees what the heartbeat thread has heard."""
        while self.inbox and not self.blocked:
            self.on_beat(self.inbox.pop(0))

    def on_beat(self, beat: Beat) -> None:
        if not beat.known:
            for share in tuple(self.shares.values()):
                self.lose(share)
        if not beat.known or not beat.full:
            return
        releasing = dict(self.releases)
        held = {p: share.token for p, share in self.shares.items()} | releasing
        draining = releasing | (held if self.leaving else {})
        plan = reconcile(held, draining, beat.granted, beat.revoked)
        self.releases += plan.release
        for partition in plan.lose:
            if partition in self.shares:
                self.lose(self.shares[partition])
        for partition in plan.drain:
            if partition in self.shares:
                self.drain(self.shares[partition])
        if not self.leaving:
            for partition, token in plan.acquire:
                self.shares[partition] = Share(partition, token)

    # The life of a partition

    def lose(self, share: Share) -> None:
        share.state = advance(share.state, Step.LOSE)
        del self.shares[share.partition]
        self.calls.pop(f"acquire {share.partition}", None)

    def drain(self, share: Share) -> None:
        if share.state is not PartitionState.DRAINING:
            share.state = advance(share.state, Step.DRAIN)
            share.ended, share.drained_at = True, self.world.time
            self.tidy()

    def tidy(self) -> None:
        """Release what is drained; give up what takes longer than the grace period."""
        for share in tuple(self.shares.values()):
            if share.state is not PartitionState.DRAINING or self.blocked:
                continue
            given_up = self.world.time - share.drained_at >= GRACE
            idle = share.hand is None and f"acquire {share.partition}" not in self.calls
            if given_up or (idle and (share.stale or share.done == share.committed)):
                share.state = advance(share.state, Step.RELEASE)
                del self.shares[share.partition]
                self.calls.pop(f"acquire {share.partition}", None)
                self.releases.append((share.partition, share.token))

    def acquire(self, share: Share, reply: Reply = Reply.HEARD) -> None:
        world, partition, token = self.world, share.partition, share.token

        def answered(answer: Acquired | Stale) -> None:
            if isinstance(answer, Stale):
                self.lose(share)
                self.floor = max(self.floor, answer.token)
                self.releases.append((partition, token))
                return
            world.judge.told(partition, answer)
            share.begin(answer.offset, answer.count)
            if share.state is PartitionState.GRANTED:
                share.state = advance(share.state, Step.ACQUIRE)
            elif share.state is PartitionState.DRAINING:
                share.ended = True
                self.tidy()

        purpose = f"acquire {partition}"
        if purpose not in self.calls:
            self.calls[purpose] = Call(
                "acquire",
                lambda: (
                    (partition, token),
                    scripts.acquire(world.lab, world.keys, PROCESSOR, partition, token, self.name),
                ),
                answered,
            )
        self.carry_on(purpose, reply)

    # Reading, handling, committing

    def read(self, reply: Reply = Reply.HEARD) -> None:
        hungry = [s for s in self.shares.values() if not s.ended and len(s.buffer) <= PREFETCH]
        if "read" not in self.calls and hungry:
            logs = {self.world.keys.log(share.partition).encode(): share for share in hungry}
            cursors = {log: share.cursor for log, share in logs.items()}

            def compose() -> tuple[Any, Coroutine[Any, Any, Any]]:
                names = [log.decode() for log in logs]
                if "XREADGROUP" in self.world.faults:
                    return None, self.world.lab.call(
                        "XREADGROUP",
                        "GROUP",
                        PROCESSOR,
                        self.name,
                        "COUNT",
                        PREFETCH,
                        "NOACK",
                        "STREAMS",
                        *names,
                        *(">" for _ in names),
                    )
                return None, queries.read(
                    self.world.lab, names, list(cursors.values()), count=PREFETCH, block=None, timeout=1
                )

            def answered(found: Any) -> None:
                for log, entries in found or ():
                    share = logs[log]
                    current = self.shares.get(share.partition) is share and not share.ended
                    if current and (share.cursor == cursors[log] or "XREADGROUP" in self.world.faults):
                        share.cursor = entries[-1][0]
                        share.read += len(entries)
                        share.buffer.extend((entry_id, flat[1]) for entry_id, flat in entries)

            self.calls["read"] = Call("read", compose, answered)
        if "read" in self.calls:
            self.carry_on("read", reply)

    def may_act(self, share: Share) -> bool:
        """Whether user code may be given the next event."""
        in_time = self.world.seconds < self.lease.deadline or "no deadline" in self.world.faults
        return in_time and not share.ended and not self.blocked

    def take(self, share: Share) -> None:
        """Hand out the next event."""
        if share.hand is None and share.buffer and self.may_act(share):
            share.hand = share.buffer.popleft()
            self.world.judge.handed_out(share, self)
            if "commit first" in self.world.faults:
                share.done, share.count = share.hand[0], share.count + 1

    def finish(self, share: Share) -> None:
        """The handler is done with its event."""
        if share.hand is not None:
            self.world.judge.processed(share)
            if "commit first" not in self.world.faults:
                share.done, share.count = share.hand[0], share.count + 1
            share.hand = None
            self.tidy()

    def commit(self, reply: Reply = Reply.HEARD, *, probe: bool = False) -> None:
        shares = [
            s for s in self.shares.values() if not s.stale and not s.to_acquire and (s.done != s.committed or probe)
        ]
        if "commit" not in self.calls and shares:

            def compose() -> tuple[Any, Coroutine[Any, Any, Any]]:
                if "merge into a retry" in self.world.faults:
                    items[:] = [Commit(s.partition, s.token, s.committed, s.done, s.count) for s in shares]
                return list(items), scripts.commit(self.world.lab, self.world.keys, PROCESSOR, self.name, 0, items)

            items = [Commit(s.partition, s.token, s.committed, s.done, s.count) for s in shares]

            def answered(answers: Sequence[tuple[CommitStatus, bytes]]) -> None:
                for share, item, (status, _) in zip(shares, items, answers, strict=True):
                    if share.stale or share.committed != item.previous or self.shares.get(share.partition) is not share:
                        continue
                    if status in (CommitStatus.OK, CommitStatus.DUP):
                        share.committed = item.offset
                    elif status is CommitStatus.FENCED:
                        self.lose(share)
                    else:
                        self.world.judge.rewound(item.partition, status)
                        share.stale = True
                        if share.state is PartitionState.RUNNING:
                            share.rewind()
                self.tidy()

            self.calls["commit"] = Call("commit", compose, answered)
        if "commit" in self.calls:
            self.carry_on("commit", reply)

    def look_for_losses(self) -> None:
        shares = [share for share in self.shares.values() if not share.ended]
        if shares:
            logs = [self.world.keys.log(share.partition) for share in shares]
            answers = now(scripts.losses(self.world.lab, logs, [(share.cursor, share.read) for share in shares]))
            for share, lost in zip(shares, answers, strict=True):
                if lost:
                    self.world.judge.lost(share.partition, lost)
                    share.read += lost
                    share.count += lost

    def step(self, what: str, reply: Reply) -> None:
        """One thing that a worker does of itself, wherever it is due."""
        shares = tuple(self.shares.values())
        match what:
            case "beat":
                self.beat(reply)
            case _ if self.blocked:
                return
            case "acquire":
                for share in shares:
                    if self.wants_acquire(share):
                        self.acquire(share, reply)
            case "read":
                self.read(reply)
            case "take":
                for share in shares:
                    self.take(share)
            case "finish":
                for share in shares:
                    self.finish(share)
            case "commit":
                self.commit(reply)
            case "work":
                self.work(reply)
        self.tidy()

    def wants_acquire(self, share: Share) -> bool:
        due = share.to_acquire or (share.rewinding and share.hand is None)
        running = share.state in (PartitionState.GRANTED, PartitionState.RUNNING)
        return due and (running or f"acquire {share.partition}" in self.calls)

    def work(self, reply: Reply = Reply.HEARD, *, events: int = 1) -> None:
        """Everything that a worker does of itself, once round; handlers finish so many events of each partition."""
        for what in ("acquire", "read", *("finish", "take") * events, "commit"):
            self.step(what, reply)

    # Coming and going

    def leave(self) -> None:
        """Drain, and be gone when that is done."""
        self.leaving = True
        for share in tuple(self.shares.values()):
            self.drain(share)

    def farewell(self, reply: Reply = Reply.HEARD) -> None:
        """Say good-bye, once, and end, whatever becomes of it."""
        releases = tuple(self.releases)
        self.calls = {
            "leave": Call(
                "beat",
                lambda: (Op.LEAVE, scripts.heartbeat(self.world.lab, self.seat, Op.LEAVE, releases=releases)),
                lambda _: None,
            )
        }
        self.carry_on("leave", reply)
        self.crash()

    def crash(self, *, noticed: bool = True) -> None:
        """End without a word. It is noticed at once where the connection is closed by a living machine."""
        self.gone = True
        self.shares, self.calls = {}, {}
        if noticed:
            self.connect(False)

    def connect(self, connected: bool) -> None:
        """Whether the server sees a subscription of this member."""
        self.connected = connected
        self.world.lab.ask("HSET", "test", self.world.control.wake(self.name), int(connected))

    def freeze(self, frozen: bool) -> None:
        self.frozen = frozen

    def block(self, blocked: bool) -> None:
        """A handler blocks the worker's loop; heartbeats go on."""
        self.blocked = blocked
        self.look_into_inbox()
        self.tidy()


class Producer(Caller):
    """Sends to one stream; one append at a time."""

    def __init__(self, world: "World", name: str) -> None:
        super().__init__(world, name)
        self.lives = 0
        self.sequences: dict[int, int] = {}

    def send(self, partition: int, number: int = 1, reply: Reply = Reply.HEARD) -> None:
        if "append" not in self.calls:
            values = [self.world.new_value(partition) for _ in range(number)]
            self.compose(partition, values)
        self.carry_on("append", reply)

    def compose(self, partition: int, values: list[bytes]) -> None:
        sequence = self.sequences.get(partition, 0) + 1
        batch = Batch(partition, f"{self.name}.{self.lives}", sequence, sequence - 1, values, b"data")

        def answered(answers: Sequence[scripts.Appended]) -> None:
            [answer] = answers
            if answer.status in (AppendStatus.OK, AppendStatus.DUP):
                self.sequences[partition] = sequence
                self.world.judge.confirmed(partition, values)
            elif answer.status is AppendStatus.GAP:
                self.world.judge.gap(partition)
                self.forget()
                self.compose(partition, values)

        self.calls["append"] = Call(
            "append",
            lambda: (
                batch,
                scripts.append(
                    self.world.lab, self.world.keys, 0, [batch], limit=self.world.limit, trim=False, expiry=10**9
                ),
            ),
            answered,
        )

    def forget(self) -> None:
        """Go on under a new name; what was unanswered may or may not be in the log."""
        self.calls = {}
        self.lives += 1
        self.sequences = {}


class World:
    """The server, everybody who talks to it, and what is still on its way there."""

    def __init__(self, lab: Laboratory, mutant: Mutant = CORRECT, limit: int = 0) -> None:
        self.lab = lab
        lab.use(mutant)
        self.faults = mutant.member
        self.limit = limit
        self.keys = StreamKeys("app", "flights")
        self.control = ControlKeys.of("app", "flights", PROCESSOR)
        self.time, self.skew, self.run = START, 0, 1
        self.members: list[Member] = []
        self.producers = [Producer(self, name) for name in ("p", "q")]
        self.wire: list[tuple[str, str, Any, Coroutine[Any, Any, Any]]] = []
        self.snapshot: dict[bytes, bytes] | None = None
        self.values = 0
        self.names = 0
        self.judge = Judge(self)
        lab.ask("FLUSHALL")
        self.tick(0)

    @property
    def seconds(self) -> float:
        """The monotonic clock of everybody."""
        return self.time / 1000

    @property
    def alive(self) -> list[Member]:
        return [member for member in self.members if not member.gone]

    def tick(self, milliseconds: int) -> None:
        """Time goes by."""
        self.time += milliseconds
        seconds, rest = divmod(self.time + self.skew, 1000)
        self.lab.ask("HSET", "test", "seconds", seconds, "micros", rest * 1000, "run", self.run)
        for member in self.alive:
            if not member.frozen:
                member.tidy()

    def jump(self, milliseconds: int) -> None:
        """Somebody sets the server's clock."""
        self.skew += milliseconds
        self.judge.clock_set(milliseconds)
        self.tick(0)

    def join(self) -> Member:
        self.names += 1
        member = Member(self, f"m{self.names}")
        member.connect(True)
        self.members.append(member)
        member.beat()
        return member

    def new_value(self, partition: int) -> bytes:
        self.values += 1
        return b"%d.%d" % (partition, self.values)

    def carry_out(self, what: str, who: str, detail: Any, work: Coroutine[Any, Any, Any]) -> Any:
        answer = now(work)
        self.judge.carried_out(what, who, detail, answer)
        return answer

    def arrive(self, n: int = 0) -> None:
        """A command arrives that its sender has long given up; nobody hears the answer."""
        if self.wire:
            self.carry_out(*self.wire.pop(n % len(self.wire)))

    def close(self) -> None:
        for *_, work in self.wire:
            work.close()

    def everybody(self, rounds: int = 1, *, events: int = 1) -> None:
        """Everybody who can beats and works, and time goes by."""
        for _ in range(rounds):
            for member in self.alive:
                if not member.frozen:
                    member.beat()
                    if not member.blocked:
                        member.work(events=events)
                    if member.leaving and not member.shares:
                        member.farewell()
            self.tick(INTERVAL)

    # Faults of the server

    def restart(self) -> None:
        """A new run id; nobody is connected."""
        self.run += 1
        for member in self.alive:
            member.connect(False)
        self.tick(0)

    def delete(self, key: str) -> None:
        self.judge.hurt(key)
        self.lab.ask("DEL", key)
        self.judge.look_again()

    def flush(self) -> None:
        self.judge.hurt("")
        self.lab.ask("FLUSHALL")
        self.tick(0)
        for member in self.alive:
            member.connect(member.connected)
        self.judge.look_again()

    def _data(self, slot: str) -> list[bytes]:
        """The keys of one slot: control or data; all for an empty name."""
        tag = {"control": self.control.prefix, "data": self.keys.positions_prefix(0)[: -len(":pos:")], "": "runnel:"}[
            slot
        ]
        return [key for key in self.lab.ask("KEYS", "runnel:*") if key.startswith(tag.encode())]

    def remember(self) -> None:
        """What a replica or a file holds."""
        keys = self._data("")
        self.snapshot = dict(zip(keys, self.lab.ask_all(("DUMP", key) for key in keys), strict=True)) if keys else {}

    def roll_back(self, slot: str = "") -> None:
        """The server loses what was written since; in one slot, or in all."""
        assert self.snapshot is not None
        self.judge.hurt(slot)
        tag = self._data(slot)
        if tag:
            self.lab.ask("DEL", *tag)
        prefixes = {
            "control": self.control.prefix,
            "data": self.keys.positions_prefix(0)[: -len(":pos:")],
            "": "runnel:",
        }
        for key, value in self.snapshot.items():
            if key.startswith(prefixes[slot].encode()):
                self.lab.ask("RESTORE", key, 0, value)
        self.judge.look_again()

    def look_for_losses(self) -> None:
        for member in self.alive:
            if not member.frozen and not member.blocked:
                member.look_for_losses()

    def reset_to(self, partition: int, *, end: bool) -> None:
        """Somebody moves the position to the beginning or the end of what is there, as `admin.plan_reset` says it."""
        state = now(queries.log_state(self.lab, self.keys, partition))
        if state is not None:
            self.reset(partition, state.last if end else b"0-0", state.added - (0 if end else state.length))

    def reset(self, partition: int, offset: bytes, count: int) -> None:
        """Somebody moves the position by hand."""
        now(scripts.reset(self.lab, self.keys, PROCESSOR, partition, offset, count))
        self.judge.reset(partition, offset)

    # The end

    def heal(self) -> None:
        """All faults end; within a bounded time everything must be as it should."""
        while self.wire:
            self.arrive()
        for member in self.alive:
            member.freeze(False)
            member.block(False)
            member.connect(True)
        if not any(not member.leaving for member in self.alive):
            self.join()
        for _ in range(80):
            self.everybody(events=PREFETCH)
            for producer in self.producers:
                while producer.calls:
                    producer.carry_on("append", Reply.HEARD)
                    self.everybody()
            if self.judge.settled():
                break
        self.look_for_losses()
        self.everybody(3)
        self.judge.healed()
