"""What must be true, whatever happens: looked at with every answer of the server and after every step.

Where a schedule destroys what Redis holds, some promises become weaker: what is gone may be gone, if
somebody has been told.
"""

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from runnel._core.assignment import assign
from runnel._core.entry_ids import BEGINNING, consecutive, parse
from runnel._redis.scripts import (
    NOTHING,
    Acquired,
    Appended,
    AppendStatus,
    Batch,
    Beat,
    Commit,
    CommitStatus,
    Op,
    Stale,
)
from simulation.laboratory import as_mapping
from simulation.owners import PROCESSOR
from simulation.seats import GRACE, PARTITIONS, SESSION

if TYPE_CHECKING:
    from simulation.members import Member
    from simulation.owners import Share
    from simulation.world import World


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
        logs: partition -> id -> value, as the answers to appends have it.
        ever: partition -> values that were ever there.
        granted: partition -> highest token and its member, as the control slot has given them out.
        done: values whose handler has finished.
        trail: (partition, token, member) -> id of the last event that was handed out.
        sent: partition -> values that were confirmed to their producer.
        excused: values that somebody skipped by hand, or that were gone when somebody moved the position.
        reports: partition -> what a worker or a producer was told about losses.
        hurt_data, hurt_control: whether the schedule has destroyed something in the slot.
        uncountable: whether more was destroyed there than entries that were trimmed: nobody can count what is lost.
        untraceable: whether the coordinator cannot know any more that there were owners, or who: it was rolled back, or
            nothing is left of the group.
        repeats_allowed: whether the schedule has destroyed what keeps an append from being repeated.
        broken: whether a promise was broken; what comes after that proves nothing.
        begun_anew: the partitions whose log was deleted since their position was stored: it is of the old one.
        unmarked: those whose consumer groups were both destroyed since then.
        forgotten: those of which nothing is left in Redis that knows what was processed, until somebody acquires them:
            the position was deleted, and the log or both groups.
        shown: the partitions of which operators were shown a loss, until somebody deleted the counters.
        carried: (member, partition, token, position) of all commits since somebody has last moved the position by hand.
        known: (member, partition) -> token and position that the member has last committed, and was not told is gone.
        unchecked: the partitions whose log has changed since the last look; ``None`` if nothing has.
    """

    def __init__(self, world: "World") -> None:
        self.world = world
        self.tokens: dict[int, tuple[int, str]] = {}
        self.positions: dict[int, bytes] = {}
        self.logs: dict[int, dict[bytes, bytes]] = {p: {} for p in range(PARTITIONS)}
        self.ever: dict[int, set[bytes]] = defaultdict(set)
        self.granted: dict[int, tuple[int, str]] = {}
        self.done: set[bytes] = set()
        self.trail: dict[tuple[int, int, str], bytes] = {}
        self.sent: dict[int, set[bytes]] = defaultdict(set)
        self.excused: set[bytes] = set()
        self.reports: dict[int, list[str]] = defaultdict(list)
        self.hurt_data = self.hurt_control = self.untraceable = self.repeats_allowed = self.uncountable = False
        self.unchecked: set[int] | None = None
        self.broken = False
        self.begun_anew: set[int] = set()
        self.unmarked: set[int] = set()
        self.forgotten: set[int] = set()
        self.shown: set[int] = set()
        self.carried: set[tuple[str, int, int, bytes]] = set()
        self.known: dict[tuple[str, int], tuple[int, bytes]] = {}
        self.jumps: list[int] = []
        self.revoked: dict[tuple[int, int], int] = {}
        self.epoch = ""
        self.targets: dict[int, str] = {}

    def must(self, condition: object, promise: str, detail: str) -> None:
        self.broken = self.broken or not condition
        must(condition, promise, detail)

    # What the server answers

    def carried_out(self, what: str, who: str, detail: Any, answer: Any) -> None:
        """The server has answered a command, whether or not anybody hears it."""
        match what:
            case "commit":
                for item, (status, _) in zip(detail, answer, strict=True):
                    self.committed(who, item, status)
            case "acquire":
                self.acquired(who, *detail, answer)
            case "append":
                for batch, its_answer in zip(detail, answer, strict=True):
                    self.appended(batch, its_answer)
            case "beat":
                self.answered(who, detail, answer)
            case "read":
                return
        self.unchecked = self.unchecked or set()

    def answered(self, member: str, op: Op, beat: Beat) -> None:
        epoch, _, _ = beat.epoch.partition("@")
        if epoch != self.epoch:
            self.assigned(epoch)
        if op is Op.LEAVE:
            return
        self.told_of_pause(member, beat)
        for partition, token in beat.granted.items():
            self.grant(member, partition, token)
        for partition, token in beat.revoked.items():
            self.revoked.setdefault((partition, token), self.world.time)

    def told_of_pause(self, name: str, beat: Beat) -> None:
        """Whoever asks knows, when it has the answer, whether somebody has paused the processor."""
        if self.hurt_control or not beat.known:
            return
        [member] = [member for member in self.world.members if member.name == name]
        said = (bool(beat.paused) if beat.granted else None) if beat.full else member.paused
        every = not beat.full or beat.paused in (frozenset(), beat.granted.keys())
        self.must(said in (None, self.world.paused) and every, "whoever asks is told of a pause", f"{name}: {beat}")

    def assigned(self, epoch: str) -> None:
        """There is a new assignment: balanced, and as few partitions as possible have moved."""
        control = self.world.control
        targets, members = self.world.lab.ask_all([("HGETALL", control.targets), ("HGETALL", control.members)])
        new = {int(p): member.decode() for p, member in as_mapping(targets).items()}
        if not new:
            return
        seats = [(value.split(b"|"), name.decode()) for name, value in as_mapping(members).items()]
        active = [
            name for _, name in sorted((int(joined), name) for (joined, _, _, state, _), name in seats if state == b"A")
        ]
        if not self.hurt_control:
            best = assign(active, PARTITIONS, self.targets)
            self.must(new == best, "as few partitions as possible move", f"{self.targets} -> {new}, not {best}")
        self.epoch, self.targets = epoch, new

    def grant(self, member: str, partition: int, token: int) -> None:
        before, owner = self.granted.get(partition, (0, ""))
        if not self.hurt_control:
            self.must(token >= before, "tokens grow", f"{member} is granted {partition} with {token} after {before}")
            one = token > before or owner == member
            self.must(one, "one member per token", f"{member} and {owner} have {partition}:{token}")
        self.granted[partition] = max((token, member), (before, owner))

    def acquired(self, member: str, partition: int, token: int, answer: Acquired | Stale) -> None:
        highest, owner = self.tokens.get(partition, (0, ""))
        if isinstance(answer, Stale):
            late = (highest, owner) > (token, "")
            self.must(late, "who is refused is late", f"{member} with {token}; the last was {highest}")
            return
        self.must(token >= highest, "tokens grow", f"{partition} acquired with {token} after {highest}")
        one = token > highest or owner == member
        self.must(one, "one member per token", f"{member} and {owner} acquired {partition}:{token}")
        before = self.positions.get(partition, BEGINNING)
        with_reason = answer.rolled_back or answer.lost or answer.replaced or self.hurt_data
        self.must(
            answer.offset == before or with_reason,
            "positions form a chain",
            f"{partition}: {before!r} -> {answer.offset!r}",
        )
        self.passed(partition, BEGINNING, answer.offset, f"{member} acquires {partition} at {answer.offset!r}")
        self.tokens[partition] = (token, member)
        self.positions[partition] = answer.offset
        if partition in self.forgotten:  # for all that anybody knows, nothing was ever there before
            self.excused |= self.ever[partition] - self.done - set(self.logs[partition].values())
            self.forgotten.discard(partition)
        self.begun_anew.discard(partition)
        self.unmarked.discard(partition)

    def committed(self, member: str, item: Commit, status: CommitStatus) -> None:
        p = item.partition
        if status is CommitStatus.FENCED:
            self.must(self.tokens[p] > (item.token, ""), "only the late are fenced", str(item))
        if status in (CommitStatus.OK, CommitStatus.DUP):
            self.carried.add((member, p, item.token, item.offset))
        if status is not CommitStatus.OK:
            return
        self.must(p not in self.begun_anew | self.unmarked, "a position is one of its log", f"{member}: {item}")
        self.must(self.tokens.get(p) == (item.token, member), "no commit below the highest token", f"{member}: {item}")
        self.must(self.positions[p] == item.previous, "positions form a chain", f"at {self.positions[p]!r}: {item}")
        self.must(parse(item.offset) >= parse(item.previous), "positions advance", str(item))
        self.positions[p] = item.offset
        self.passed(p, item.previous, item.offset, str(item))

    def passed(self, partition: int, previous: bytes, offset: bytes, why: str) -> None:
        """The position has moved over everything that lies between."""
        low, high = parse(previous), parse(offset)
        undone = [
            value
            for entry_id, value in self.logs[partition].items()
            if value not in self.done and value not in self.excused and low < parse(entry_id) <= high
        ]
        self.must(not undone, "nothing is skipped", f"{why}: {undone}")

    def appended(self, batch: Batch, answer: Appended) -> None:
        if answer.status is AppendStatus.OK:
            ids = consecutive(answer.detail, len(batch.entries))
            self.logs[batch.partition] |= {
                entry_id.encode(): value for entry_id, value in zip(ids, batch.entries, strict=True)
            }
            self.ever[batch.partition].update(batch.entries)
            self.unchecked = (self.unchecked or set()) | {batch.partition}

    # What happens in the workers and the producers

    def handed_out(self, share: "Share", member: "Member") -> None:
        """User code is given an event; nobody else may be at work on this partition."""
        assert share.hand is not None
        key = (share.partition, share.token, member.name)
        last = self.trail.get(key, BEGINNING)
        self.must(
            parse(share.hand[0]) > parse(last), "events are processed in order", f"{key}: {share.hand} after {last!r}"
        )
        self.trail[key] = share.hand[0]
        if not self.untraceable and not self.hurt_data:
            self.one_at_a_time(share, member)

    def one_at_a_time(self, share: "Share", member: "Member") -> None:
        world = self.world
        fast = sum(world.time - jump <= SESSION for jump in self.jumps) > 1
        for other in world.alive:
            its = other.shares.get(share.partition)
            if other is member or its is None or its.to_acquire:
                continue
            overdue = world.time - self.revoked.get((its.partition, its.token), world.time) >= max(GRACE, SESSION)
            cut = any(one.cut or world.time - one.mended <= SESSION for one in (member, other))
            if cut or fast or overdue:
                continue  # the session may be over for the coordinator before the lease is; fencing must do
            fenced = its.token > share.token and share.token < self.tokens.get(share.partition, (0, ""))[0]
            holds = its.hand is not None and world.seconds < its.lease.deadline and not fenced
            self.must(
                not holds and not other.may_act(its),
                "one owner at a time",
                f"{member.name} takes {share}; {other.name} has {its}",
            )

    def processed(self, share: "Share") -> None:
        assert share.hand is not None
        self.done.add(share.hand[1])

    def confirmed(self, partition: int, values: list[bytes]) -> None:
        self.sent[partition] |= set(values)

    def told(self, partition: int, answer: Acquired) -> None:
        """A worker hears that something is lost."""
        for said in (answer.rolled_back and "rolled back", answer.replaced and "replaced"):
            if said:
                self.report(partition, str(said))
        if answer.lost:
            self.lost(partition, answer.lost)
        self.replay(partition)

    def knows(self, member: str, share: "Share") -> None:
        """A member has heard that it has committed, perhaps after somebody has moved the position."""
        if (member, share.partition, share.token, share.committed) in self.carried:
            self.known[member, share.partition] = share.token, share.committed

    def goes_on(self, member: str, share: "Share", answer: Acquired) -> None:
        """A member goes on from the position that it has heard."""
        token, position = self.known.pop((member, share.partition), NOTHING)
        told = answer.rolled_back or answer.replaced or token != share.token
        self.must(
            told or parse(answer.offset) >= parse(position),
            "who goes on below what it had committed says so",
            f"{member}, {share.partition}: {answer} after {position!r}",
        )

    def rewound(self, partition: int, status: CommitStatus) -> None:
        if status is not CommitStatus.RESET:
            self.report(partition, status.value)
        self.replay(partition)

    def replay(self, partition: int) -> None:
        """From here on events may repeat."""
        for key in self.trail:
            if key[0] == partition:
                self.trail[key] = BEGINNING

    def lost(self, partition: int, number: int) -> None:
        self.report(partition, f"{number} lost")

    def gap(self, partition: int) -> None:
        self.report(partition, "gap")

    def report(self, partition: int, what: str) -> None:
        self.must(self.hurt_data, "a rollback is real", f"{partition}: {what}")
        self.reports[partition].append(what)

    # What the schedule does

    def clock_set(self, milliseconds: int) -> None:
        if milliseconds > 0:
            self.jumps.append(self.world.time)

    def paused(self, epoch: str) -> None:
        """The processor was paused or resumed, which is a new epoch and no new assignment."""
        self.epoch = epoch

    def reset(self, partition: int, offset: bytes) -> None:
        """Somebody has moved the position by hand, and was shown how many events are processed then.

        What is skipped so, and what had been removed from the log before, is not owed to anybody any more.
        """
        there = set(self.logs[partition].values())
        self.excused |= self.ever[partition] - self.done - there
        position = BEGINNING if partition in self.begun_anew else self.positions.get(partition, BEGINNING)
        before, after = parse(position), parse(offset)
        self.excused |= {value for i, value in self.logs[partition].items() if before < parse(i) <= after}
        self.positions[partition] = offset
        self.begun_anew.discard(partition)
        self.unmarked.discard(partition)
        self.carried = {commit for commit in self.carried if commit[1] != partition}
        self.known = {where: what for where, what in self.known.items() if where[1] != partition}
        self.unchecked = self.unchecked or set()

    def hurt(self, key: str) -> None:
        """Something is destroyed: a key, a slot (control, data), everything (empty), or entries of a log (log)."""
        for partition in range(PARTITIONS):
            if key == self.world.log(partition):
                self.begun_anew.add(partition)
                self.forgotten |= {partition} - self.positions.keys()
        if key == self.world.keys.positions(0, PROCESSOR):
            self.forgotten |= self.begun_anew | self.unmarked
            self.shown |= {partition for partition in range(PARTITIONS) if self.counted(partition)}
        control = key.startswith(self.world.control.prefix) or key == "control"
        self.hurt_control |= control or not key
        self.untraceable |= key in ("control", "")
        self.hurt_data |= not control or not key
        self.uncountable |= (not control and key != "log") or not key
        if ":seq:" in key or key in ("data", ""):
            self.repeats_allowed = True

    def ungrouped(self, partition: int) -> None:
        """Both consumer groups of a log are destroyed."""
        self.hurt_data = self.uncountable = True
        self.unmarked.add(partition)
        self.forgotten |= {partition} - self.positions.keys()

    def look_again(self) -> None:
        """What the server holds now is where the chain goes on."""
        control = self.world.control
        group = (control.group, control.members, control.targets, control.owners)
        self.untraceable |= not self.world.lab.ask("EXISTS", *group)
        stored, *logs = self.stored(list(range(PARTITIONS)))
        self.positions, self.tokens = {}, {}
        for p, value in as_mapping(stored).items():
            if p.isdigit():
                owner, offset, *_ = value.split(b"|")
                token, member = owner.split(b":", 1) if b":" in owner else (owner, b"")
                self.positions[int(p)], self.tokens[int(p)] = offset, (int(token), member.decode())
        self.logs = {p: {entry_id: flat[1] for entry_id, flat in entries} for p, entries in enumerate(logs)}

    # After every step

    def stored(self, partitions: list[int]) -> list[Any]:
        """The positions, and these logs, as the server holds them."""
        world = self.world
        logs = [("XRANGE", world.log(p), "-", "+") for p in partitions]
        return world.lab.ask_all([("HGETALL", world.keys.positions(0, PROCESSOR)), *logs])

    def check(self) -> None:
        """What the server holds is what the answers have said."""
        if self.unchecked is None:
            return
        changed, self.unchecked = sorted(self.unchecked), None
        stored, *found = self.stored(changed)
        positions = {int(p): value.split(b"|")[1] for p, value in as_mapping(stored).items() if p.isdigit()}
        self.must(
            positions == self.positions, "positions form a chain", f"stored {positions}, answered {self.positions}"
        )
        for p, entries in zip(changed, found, strict=True):
            log = {entry_id: flat[1] for entry_id, flat in entries}
            self.must(log == self.logs[p], "a log holds what was appended", f"{p}: {log}, answered {self.logs[p]}")
            if not self.repeats_allowed:
                self.check_order(p, list(log.values()))

    def check_order(self, partition: int, values: list[bytes]) -> None:
        twice = [value for value, n in Counter(values).items() if n > 1]
        self.must(not twice, "each event is in the log once", f"{partition}: {twice}")
        for producer in self.world.producers:
            name = b".%s." % producer.name.encode()
            its = [int(value.rpartition(b".")[2]) for value in values if name in value]
            self.must(its == sorted(its), "events are in the order in which they were sent", f"{partition}: {values}")

    # At the end

    def settled(self) -> bool:
        """Whether everything has come to rest."""
        world = self.world
        if any(producer.busy for producer in world.producers):
            return False
        if any(m.releases or m.calls or not m.settled or m.leaving for m in world.alive):
            return False
        owned = sorted(p for m in world.alive for p in m.shares)
        if owned != list(range(PARTITIONS)) or any(s.probe or s.stale for m in world.alive for s in m.shares.values()):
            return False
        if not self.balanced():
            return False
        if {m.name.encode() for m in world.alive} != set(world.lab.ask("HKEYS", world.control.members)):
            return False
        return all(not log or self.positions.get(p) == list(log)[-1] for p, log in self.logs.items())

    def balanced(self) -> bool:
        sizes = [len(member.shares) for member in self.world.alive]
        return max(sizes) - min(sizes) <= 1

    def healed(self) -> None:
        """After all faults have ended: everything owned, drained, balanced; nothing lost in silence."""
        world = self.world
        self.unchecked = set(range(PARTITIONS))
        self.check()
        owned = sorted(p for m in world.alive for p in m.shares)
        self.must(owned == [0, 1, 2], "every partition is owned", f"{[(m.name, m.shares) for m in world.alive]}")
        self.must(self.balanced(), "balanced within one", f"{[(m.name, m.shares) for m in world.alive]}")
        members = {name.decode() for name in world.lab.ask("HKEYS", world.control.members)}
        self.must(members == {m.name for m in world.alive}, "nothing is left over", str(members))
        for p, log in self.logs.items():
            undone = [(i, value) for i, value in log.items() if value not in self.done | self.excused]
            self.must(not undone, "the log is drained", f"{p}: {undone}; position {self.positions.get(p)!r}")
            gone = self.sent[p] - self.done - self.excused
            told = self.reports[p] or self.counted(p) or p in self.shown
            self.must(not gone or (self.hurt_data and told), "nothing is lost in silence", f"{p}: {gone}")
            if not self.uncountable:
                lost = int(world.lab.ask("HGET", world.keys.positions(0, PROCESSOR), f"lost:{p}") or 0)
                self.must(lost >= len(gone), "what is lost is counted", f"{p}: {lost} of {gone}")

    def counted(self, partition: int) -> bool:
        """Whether operators are shown a loss or a rollback, also where the answer that told of it was lost."""
        positions = self.world.keys.positions(0, PROCESSOR)
        return any(self.world.lab.ask("HMGET", positions, f"lost:{partition}", f"rollbacks:{partition}"))
