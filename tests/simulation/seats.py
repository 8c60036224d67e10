"""A seat in the group: heartbeats and the lease, as ``_worker/heartbeats.py`` has them."""

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from runnel._core.lease import Lease
from runnel._redis import scripts
from runnel._redis.scripts import Beat, Op
from simulation.calls import Call, Caller, Reply

if TYPE_CHECKING:
    from simulation.world import World

PARTITIONS = 3
SESSION, INTERVAL, SILENCE, JOIN_DELAY, GRACE = 1000, 100, 150, 50, 600
"""Milliseconds."""


class Seat(Caller):
    """What the heartbeat thread knows of one member.

    Attributes:
        lease: how long what is granted from now on may be acted on. The end of one is final: the next seat has another.
        releases: what was handed back, until the coordinator has confirmed it.
        floor: new tokens must be above it.
        joined, settled, leaving: as the thread's holder has them.
        late: the last answer came to a repeated question, so the next heartbeat is due at once.
        paused: whether what it was last granted is paused; ``None`` if it was granted nothing.
        connected: whether the server sees a subscription of this member.
        cut, mended: whether it was lost and is not back yet, and when it was last back (ms of the world's clock).
    """

    def __init__(self, world: "World", name: str) -> None:
        super().__init__(world, name)
        self.seat = scripts.Seat(world.control, name, PARTITIONS, SESSION, JOIN_DELAY, GRACE, SILENCE)
        self.lease = Lease(SESSION / 1000)
        self.releases: list[tuple[int, int]] = []
        self.epoch, self.floor = "", 0
        self.joined = self.evicted = self.settled = self.leaving = self.late = False
        self.paused: bool | None = None
        self.connected = self.cut = False
        self.told = self.seen = 0
        self.mended = -SESSION

    def beat(self, reply: Reply = Reply.HEARD) -> None:
        """Begin a heartbeat, or repeat the one that was not answered yet."""
        if "beat" not in self.calls:
            self.calls["beat"] = self.heartbeat()
        self.carry_on("beat", reply)

    def heartbeat(self) -> Call:
        """Composed once, but for how long its answer has been waited for."""
        world = self.world
        op = Op.DRAIN if self.leaving else Op.BEAT if self.joined else Op.REJOIN if self.evicted else Op.JOIN
        releases = tuple(self.releases)
        asked, attempts = world.seconds, 0

        def compose() -> tuple[Any, Coroutine[Any, Any, Beat]]:
            nonlocal attempts
            attempts += 1
            return op, scripts.heartbeat(
                world.lab,
                self.seat,
                op,
                epoch=self.epoch,
                settled=self.settled and not releases,
                floor=self.floor,
                unheard=world.seconds - asked if attempts > 1 else 0.0,
                releases=releases,
            )

        def answered(beat: Beat) -> None:
            for release in releases:
                self.releases.remove(release)
            if beat.known:
                if self.seen == self.told or "lease without the loop" in world.faults:
                    self.lease.renew(world.seconds if "lease from the answer" in world.faults else asked)
                self.told += beat.full
                self.joined, self.evicted, self.epoch = True, False, beat.epoch
                if beat.full:
                    self.paused = bool(beat.paused) if beat.granted else None
                    self.settled = beat.waiting == 0 and not beat.revoked
            else:
                if "lease that does not end" not in world.faults:
                    self.lease.end()
                    if "lease that revives" not in world.faults:
                        self.lease = Lease(SESSION / 1000)
                self.evicted = self.evicted or self.joined
                self.joined = self.settled = False
            self.late = attempts > 1 or (not beat.known and not self.leaving)
            self.heard(beat)

        return Call("beat", compose, answered)

    def heard(self, beat: Beat) -> None:
        """The worker's loop is told."""
        raise NotImplementedError

    def connect(self, connected: bool) -> None:
        """Whether the server sees a subscription of this member."""
        if connected and self.cut:
            self.cut, self.mended = False, self.world.time
        self.cut = self.cut or not connected
        self.connected = connected
        self.world.lab.set(self.world.control.wake(self.name), int(connected))
