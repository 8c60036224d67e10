"""The life of a member's partitions, from grant to release, as ``_worker/member.py`` and ``consumer.py`` have it."""

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runnel._core.entry_ids import BEGINNING
from runnel._core.lease import Lease
from runnel._core.partitions import PartitionState, Step, advance
from runnel._core.reconcile import reconcile
from runnel._redis import scripts
from runnel._redis.scripts import Acquired, Beat, Stale
from simulation.calls import Call, Reply
from simulation.seats import GRACE, Seat

if TYPE_CHECKING:
    from simulation.world import World

PROCESSOR = "delays"


@dataclass
class Share:
    """A partition in the hands of a member: a feed and its consumer.

    Attributes:
        lease: that under which it was granted.
        hand: the event that the handler has.
        to_acquire: it was granted, and is not yet acquired.
        probe: commit even without progress.
        told: Redis has said that the position is another one.
        parked: a person has paused the processor, and the member has heard of it.
    """

    partition: int
    token: int
    lease: Lease
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
    probe: bool = False
    told: bool = False
    parked: bool = False
    drained_at: int = 0

    def begin(self, offset: bytes, count: int) -> None:
        self.buffer.clear()
        self.cursor = self.done = self.committed = offset
        self.count = self.read = count
        self.stale = self.to_acquire = self.rewinding = self.probe = self.told = False
        self.ended = self.parked

    def park(self, parked: bool) -> None:
        """Finish what is in progress, and hand out nothing more; or go on from the position."""
        if parked != self.parked and self.state is PartitionState.RUNNING:
            self.ended = True
            self.rewinding = self.rewinding or not parked
        self.parked = parked

    def rewind(self, *, told: bool) -> None:
        """Finish what is in progress, without a commit, and acquire again."""
        self.stale, self.told = True, self.told or told
        if self.state is PartitionState.RUNNING:
            self.rewinding = self.ended = True


class Owner(Seat):
    """Acquires what is granted, loses what is taken, and hands back what is revoked.

    Attributes:
        shares: the partitions it holds.
        committed: partition -> token and position with which it has left off.
        inbox: what the heartbeat thread has heard and the worker's loop has not seen, with the lease of that moment.
        blocked: a handler blocks the worker's loop.
        deaf: the worker's loop acts, and has not yet come to see what the heartbeat thread has heard.
        leaving: it drains everything.
    """

    def __init__(self, world: "World", name: str) -> None:
        super().__init__(world, name)
        self.shares: dict[int, Share] = {}
        self.committed: dict[int, tuple[int, bytes]] = {}
        self.inbox: list[tuple[Beat, Lease]] = []
        self.blocked = self.deaf = False

    def heard(self, beat: Beat) -> None:
        self.inbox.append((beat, self.lease))
        self.look_into_inbox()

    def look_into_inbox(self) -> None:
        """The worker's loop, unless it is blocked by a handler or slow to hear, sees what the heartbeat thread has."""
        while self.inbox and not self.blocked and not self.deaf:
            beat, lease = self.inbox.pop(0)
            self.on_beat(beat, lease)
            self.seen += beat.known and beat.full

    def on_beat(self, beat: Beat, lease: Lease) -> None:
        ends = "lease that does not end" not in self.world.faults
        if not beat.known and ends:
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
            if partition in self.shares and ends:
                self.lose(self.shares[partition])
        for partition in plan.drain:
            if partition in self.shares:
                self.drain(self.shares[partition])
        if not self.leaving:
            for partition, token in plan.acquire:
                self.shares[partition] = Share(partition, token, lease)
            for partition in beat.granted.keys() & self.shares.keys():
                self.shares[partition].park(partition in beat.paused)

    def lose(self, share: Share) -> None:
        share.state = advance(share.state, Step.LOSE)
        self.forget(share)

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
                self.forget(share)
                self.releases.append((share.partition, share.token))

    def forget(self, share: Share) -> None:
        del self.shares[share.partition]
        if share.committed != BEGINNING and not share.told and "forgets what it committed" not in self.world.faults:
            self.committed[share.partition] = share.token, share.committed
        self.calls.pop(f"acquire {share.partition}", None)

    def wants_acquire(self, share: Share) -> bool:
        committed = share.stale or share.done == share.committed
        due = share.to_acquire or (share.rewinding and share.hand is None and committed)
        running = share.state in (PartitionState.GRANTED, PartitionState.RUNNING)
        return due and (running or f"acquire {share.partition}" in self.calls)

    def acquire(self, share: Share, reply: Reply = Reply.HEARD) -> None:
        """Fence the previous owner, and learn the position."""
        world, partition, token = self.world, share.partition, share.token

        def answered(answer: Acquired | Stale) -> None:
            if isinstance(answer, Stale):
                self.lose(share)
                self.floor = max(self.floor, answer.token)
                self.releases.append((partition, token))
                return
            self.committed.pop(partition, None)
            world.judge.told(partition, answer)
            world.judge.goes_on(self.name, share, answer)
            share.begin(answer.offset, answer.count)
            if share.state is PartitionState.GRANTED:
                share.state = advance(share.state, Step.ACQUIRE)
            elif share.state is PartitionState.DRAINING:
                share.ended = True
                self.tidy()

        purpose = f"acquire {partition}"
        if purpose not in self.calls:
            before = self.committed.get(partition, scripts.NOTHING)
            reached = BEGINNING if share.told else share.done
            known = before if reached == BEGINNING else (token, reached)
            self.calls[purpose] = Call(
                "acquire",
                lambda: (
                    (partition, token),
                    scripts.acquire(world.lab, world.keys, PROCESSOR, partition, token, self.name, known),
                ),
                answered,
            )
        self.carry_on(purpose, reply)

    def leave(self) -> None:
        """Drain, and be gone when that is done."""
        self.leaving = True
        for share in tuple(self.shares.values()):
            self.drain(share)
