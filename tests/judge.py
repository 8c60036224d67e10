"""What must be true, whatever happens: looked at with every answer of the server and after every step.

Where a schedule destroys what Redis holds, some promises become weaker: what is gone may be gone, if
somebody has been told.
"""

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from laboratory import as_mapping
from runnel._core.assignment import assign
from runnel._core.entry_ids import BEGINNING, parse
from runnel._redis.scripts import Acquired, Commit, CommitStatus, Op, Stale

if TYPE_CHECKING:
    from simulation import Member, Share, World

PROCESSOR = "delays"


class Violation(AssertionError):
    """A promise is broken."""


def must(condition: object, promise: str, detail: str) -> None:
    if not condition:
        raise Violation(f"{promise}: {detail}")


class Judge:
    """The history of one schedule, and what it must look like.

    Attributes:
        tokens: partition -> token and member that acquired last, as the data slot must hold them.
        positions: partition -> position, as the data slot must hold it.
        done: values whose handler has finished.
        sent: partition -> values that were confirmed to their producer.
        excused: values that somebody skipped by hand.
        reports: partition -> what a worker or a producer was told about losses.
        hurt_data, hurt_control: whether the schedule has destroyed something in the slot.
    """

    def __init__(self, world: "World") -> None:
        self.world = world
        self.tokens: dict[int, tuple[int, str]] = {}
        self.positions: dict[int, bytes] = {}
        self.granted: dict[int, tuple[int, str]] = {}
        self.members_of: dict[tuple[int, int], str] = {}
        self.done: set[bytes] = set()
        self.trail: dict[tuple[int, int, str], bytes] = {}
        self.sent: dict[int, set[bytes]] = defaultdict(set)
        self.excused: set[bytes] = set()
        self.reports: dict[int, list[str]] = defaultdict(list)
        self.hurt_data = self.hurt_control = False
        self.jumps: list[int] = []
        self.revoked: dict[tuple[int, int], int] = {}
        self.epoch = ""
        self.targets: dict[int, str] = {}
        self.repeats_allowed = False

    # What is told

    def carried_out(self, what: str, who: str, detail: Any, answer: Any) -> None:
        """The server has answered a command, whether or not anybody hears it."""
        if what == "commit":
            for item, (status, _) in zip(detail, answer, strict=True):
                self.committed(who, item, status)
        elif what == "acquire":
            self.acquired(who, *detail, answer)
        elif what == "beat":
            if answer.epoch != self.epoch and self.world.lab.ask("HLEN", self.world.control.targets):
                self.assigned(answer.epoch)
            if detail is Op.LEAVE:
                return
            for partition, token in answer.granted.items():
                self.grant(who, partition, token)
            for partition, token in answer.revoked.items():
                self.revoked.setdefault((partition, token), self.world.time)

    def grant(self, member: str, partition: int, token: int) -> None:
        before, owner = self.granted.get(partition, (0, ""))
        if not self.hurt_control:
            must(token >= before, "tokens grow", f"{member} is granted {partition} with {token} after {before}")
            must(
                token > before or owner == member,
                "one member per token",
                f"{member} and {owner} have {partition}:{token}",
            )
        self.granted[partition] = max((token, member), (before, owner))

    def acquired(self, member: str, partition: int, token: int, answer: Acquired | Stale) -> None:
        highest, owner = self.tokens.get(partition, (0, ""))
        if isinstance(answer, Stale):
            must(
                (highest, owner) > (token, ""),
                "who is refused is late",
                f"{member} with {token}; the last was {highest}",
            )
            return
        must(token >= highest, "tokens grow", f"{partition} acquired with {token} after {highest}")
        must(
            token > highest or owner == member,
            "one member per token",
            f"{member} and {owner} acquired {partition}:{token}",
        )
        before = self.positions.get(partition, BEGINNING)
        moved_with_reason = answer.rolled_back or answer.lost
        must(
            answer.offset == before or moved_with_reason,
            "positions form a chain",
            f"{partition}: {before!r} -> {answer.offset!r}",
        )
        self.tokens[partition] = (token, member)
        self.positions[partition] = answer.offset

    def committed(self, member: str, item: Commit, status: CommitStatus) -> None:
        if status is not CommitStatus.OK:
            if status is CommitStatus.FENCED:
                must(self.tokens[item.partition] > (item.token, ""), "only the late are fenced", str(item))
            return
        p = item.partition
        must(self.tokens.get(p) == (item.token, member), "no commit below the highest token", f"{member}: {item}")
        must(self.positions[p] == item.previous, "positions form a chain", f"at {self.positions[p]!r}: {item}")
        must(parse(item.offset) > parse(item.previous), "positions advance", str(item))
        self.positions[p] = item.offset
        log = self.world.keys.log(p)
        for entry_id, flat in self.world.lab.ask("XRANGE", log, b"(" + item.previous, item.offset):
            must(flat[1] in self.done, "nothing is skipped", f"{item} passes {entry_id!r} {flat[1]!r}")

    def handed_out(self, share: "Share", member: "Member") -> None:
        """User code is given an event; nobody else may be at work on this partition."""
        assert share.hand is not None
        key = (share.partition, share.token, member.name)
        last = self.trail.get(key, BEGINNING)
        must(parse(share.hand[0]) > parse(last), "events are processed in order", f"{key}: {share.hand} after {last!r}")
        self.trail[key] = share.hand[0]
        if not self.hurt_control and not self.hurt_data:
            self.one_at_a_time(share, member)

    def one_at_a_time(self, share: "Share", member: "Member") -> None:
        world = self.world
        fast = sum(world.time - jump <= 1000 for jump in self.jumps) > 1
        for other in world.alive:
            its = other.shares.get(share.partition)
            if other is member or its is None or its.to_acquire:
                continue
            overdue = world.time - self.revoked.get((its.partition, its.token), world.time) >= 600
            if not other.connected or fast or overdue or not member.connected:
                continue  # the session may be over for the coordinator before the lease is; fencing must do
            newer = its.token > share.token
            if newer and share.token < self.tokens.get(share.partition, (0, ""))[0]:
                must(
                    not other.may_act(its),
                    "one owner at a time",
                    f"{member.name} takes {share}; {other.name} has {its}",
                )
            elif world.seconds < other.lease.deadline and (its.hand is not None or other.may_act(its)):
                must(False, "one owner at a time", f"{member.name} takes {share}; {other.name} has {its}")

    def processed(self, share: "Share") -> None:
        assert share.hand is not None
        self.done.add(share.hand[1])

    def confirmed(self, partition: int, values: list[bytes]) -> None:
        self.sent[partition] |= set(values)

    def told(self, partition: int, answer: Acquired) -> None:
        """A worker hears that something is lost."""
        if answer.rolled_back:
            self.reports[partition].append("rolled back")
        if answer.lost:
            self.reports[partition].append(f"{answer.lost} lost")
        self.replay(partition)

    def rewound(self, partition: int, status: CommitStatus) -> None:
        reset = status is CommitStatus.RESET
        must(self.hurt_data or reset, "a rollback is real", f"{partition}: {status}")
        self.reports[partition].append(status.value)
        self.replay(partition)

    def replay(self, partition: int) -> None:
        """From here on events may repeat."""
        for key in self.trail:
            if key[0] == partition:
                self.trail[key] = BEGINNING

    def lost(self, partition: int, number: int) -> None:
        self.reports[partition].append(f"{number} lost")

    def gap(self, partition: int) -> None:
        self.reports[partition].append("gap")

    def clock_set(self, milliseconds: int) -> None:
        if milliseconds > 0:
            self.jumps.append(self.world.time)

    def reset(self, partition: int, offset: bytes) -> None:
        before = self.positions.get(partition, BEGINNING)
        if parse(offset) > parse(before):
            log = self.world.keys.log(partition)
            self.excused |= {flat[1] for _, flat in self.world.lab.ask("XRANGE", log, b"(" + before, offset)}
        self.positions[partition] = offset

    def hurt(self, key: str) -> None:
        """Something is destroyed: a key, a slot (control, data), or everything (empty)."""
        control = key.startswith(self.world.control.prefix) or key == "control"
        self.hurt_control |= control or not key
        self.hurt_data |= not control or not key
        if ":seq:" in key or key in ("data", ""):
            self.repeats_allowed = True

    def look_again(self) -> None:
        """What the server holds now is where the chain goes on."""
        stored = as_mapping(self.world.lab.ask("HGETALL", self.world.keys.positions(0, PROCESSOR)))
        self.positions, self.tokens = {}, {}
        for p, value in ((p, value) for p, value in stored.items() if p.isdigit()):
            owner, offset, *_ = value.split(b"|")
            token, member = owner.split(b":", 1)
            self.positions[int(p)], self.tokens[int(p)] = offset, (int(token), member.decode())

    # After every step

    def check(self) -> None:
        """What the server holds is what the answers have said."""
        world = self.world
        logs = [world.keys.log(p) for p in range(3)]
        stored, *found = world.lab.ask_all(
            [("HGETALL", world.keys.positions(0, PROCESSOR)), *(("XRANGE", log, "-", "+") for log in logs)]
        )
        positions = {int(p): value.split(b"|")[1] for p, value in as_mapping(stored).items() if p.isdigit()}
        must(positions == self.positions, "positions form a chain", f"stored {positions}, answered {self.positions}")
        for p, entries in enumerate(found):
            twice = [value for value, n in Counter(flat[1] for _, flat in entries).items() if n > 1]
            must(not twice or self.repeats_allowed, "each event is in the log once", f"{p}: {twice}")

    def assigned(self, epoch: str) -> None:
        """There is a new assignment: balanced, and as few partitions as possible have moved."""
        targets, members = self.world.lab.ask_all(
            [("HGETALL", self.world.control.targets), ("HGETALL", self.world.control.members)]
        )
        active = [
            (int(v.split(b"|")[0]), name.decode())
            for name, v in as_mapping(members).items()
            if v.split(b"|")[3] == b"A"
        ]
        new = {int(p): member.decode() for p, member in as_mapping(targets).items()}
        if not self.hurt_control:
            best = assign([name for _, name in sorted(active)], 3, self.targets)
            must(new == best, "as few partitions as possible move", f"{self.targets} -> {new}, not {best}")
        self.epoch, self.targets = epoch, new

    # At the end

    def settled(self) -> bool:
        world = self.world
        active = [m for m in world.alive if not m.leaving]
        if any(m.releases or m.calls or not m.settled for m in active) or len(active) != len(world.alive):
            return False
        sizes = [len(m.shares) for m in active]
        if sorted(p for m in active for p in m.shares) != [0, 1, 2] or max(sizes) - min(sizes) > 1:
            return False
        if {m.name.encode() for m in active} != set(world.lab.ask("HKEYS", world.control.members)):
            return False
        ends = world.lab.ask_all([("XREVRANGE", world.keys.log(p), "+", "-", "COUNT", 1) for p in range(3)])
        return all(not end or self.positions.get(p) == end[0][0] for p, end in enumerate(ends))

    def healed(self) -> None:
        """After all faults have ended: everything owned, drained, balanced; nothing lost in silence."""
        world = self.world
        self.check()
        sizes = [len(m.shares) for m in world.alive]
        owned = sorted(p for m in world.alive for p in m.shares)
        must(owned == [0, 1, 2], "every partition is owned", f"{[(m.name, m.shares) for m in world.alive]}")
        must(max(sizes) - min(sizes) <= 1, "balanced within one", str(sizes))
        members = {name.decode() for name in world.lab.ask("HKEYS", world.control.members)}
        must(members == {m.name for m in world.alive}, "nothing is left over", str(members))
        for p in range(3):
            entries = world.lab.ask("XRANGE", world.keys.log(p), "-", "+")
            undone = [(i, flat[1]) for i, flat in entries if flat[1] not in self.done | self.excused]
            must(not undone, "the log is drained", f"{p}: {undone}; position {self.positions.get(p)!r}")
            gone = self.sent[p] - self.done - self.excused
            must(not gone or (self.hurt_data and self.reports[p]), "nothing is lost in silence", f"{p}: {gone}")
