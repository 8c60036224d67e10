"""A member at work: it reads, handles and commits as ``_worker/reader.py``, ``consumer.py`` and ``committer.py`` do."""

from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from runnel._core.entry_ids import BEGINNING, parse
from runnel._redis import queries, scripts
from runnel._redis.scripts import Commit, CommitStatus, Op
from simulation.calls import Call, Reply
from simulation.laboratory import now
from simulation.owners import PROCESSOR, Owner, Share

if TYPE_CHECKING:
    from simulation.world import World

PREFETCH = 3


class Member(Owner):
    """One worker.

    Attributes:
        gone: it has ended.
        frozen: nothing of it moves, as after SIGSTOP.
    """

    def __init__(self, world: "World", name: str) -> None:
        super().__init__(world, name)
        self.gone = self.frozen = False

    def __repr__(self) -> str:
        return self.name

    # Reading

    def read(self, reply: Reply = Reply.HEARD) -> None:
        """Begin a read for all partitions with room, or repeat the one that was not answered yet."""
        hungry = [s for s in self.shares.values() if not s.ended and len(s.buffer) <= PREFETCH]
        if "read" not in self.calls and hungry and (reply is not Reply.HEARD or self.finds(hungry)):
            self.calls["read"] = self.reading({self.world.log(share.partition): share for share in hungry})
        if "read" in self.calls:
            self.carry_on("read", reply)

    def finds(self, hungry: list[Share]) -> bool:
        """Whether a read would find anything; one that is heard and finds nothing changes nothing, and is spared."""
        ends = {share.partition: next(reversed(self.world.judge.logs[share.partition]), BEGINNING) for share in hungry}
        return "XREADGROUP" in self.world.faults or any(parse(ends[s.partition]) > parse(s.cursor) for s in hungry)

    def reading(self, logs: dict[str, Share]) -> Call:
        lab = self.world.lab
        cursors = {log: share.cursor for log, share in logs.items()}
        by_group = "XREADGROUP" in self.world.faults

        def compose() -> tuple[Any, Coroutine[Any, Any, Any]]:
            if by_group:
                group = ("XREADGROUP", "GROUP", PROCESSOR, self.name, "COUNT", PREFETCH, "NOACK", "STREAMS")
                return None, lab.call(*group, *logs, *(">" for _ in logs))
            return None, queries.read(lab, list(logs), list(cursors.values()), count=PREFETCH, block=None, timeout=1)

        def answered(found: Any) -> None:
            for name, entries in found or ():
                log = name.decode()
                share = logs[log]
                current = self.shares.get(share.partition) is share and not share.ended
                if current and (share.cursor == cursors[log] or by_group):
                    share.cursor = entries[-1][0]
                    share.read += len(entries)
                    share.buffer.extend((entry_id, flat[1]) for entry_id, flat in entries)

        return Call("read", compose, answered)

    # Handling

    def may_act(self, share: Share) -> bool:
        """Whether user code may be given the next event."""
        in_time = self.world.seconds < share.lease.deadline or "no deadline" in self.world.faults
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

    # Committing

    def commit(self, reply: Reply = Reply.HEARD) -> None:
        """Begin a commit of what is done, or repeat the one that was not answered yet, unchanged."""
        shares = [s for s in self.shares.values() if not s.stale and (s.done != s.committed or s.probe)]
        if "commit" not in self.calls and shares:
            self.calls["commit"] = self.committing(shares)
        if "commit" in self.calls:
            self.carry_on("commit", reply)

    def committing(self, shares: list[Share]) -> Call:
        def progress() -> list[Commit]:
            return [Commit(s.partition, s.token, s.committed, s.done, s.count) for s in shares]

        items = progress()
        for share in shares:
            share.probe = False

        def compose() -> tuple[Any, Coroutine[Any, Any, Any]]:
            if "merge into a retry" in self.world.faults:
                items[:] = progress()
            return list(items), scripts.commit(self.world.lab, self.world.keys, PROCESSOR, self.name, 0, items)

        def answered(answers: Sequence[tuple[CommitStatus, bytes]]) -> None:
            for share, item, (status, _) in zip(shares, items, answers, strict=True):
                if share.stale or share.committed != item.previous or self.shares.get(share.partition) is not share:
                    continue
                if status in (CommitStatus.OK, CommitStatus.DUP):
                    share.committed = item.offset
                    self.world.judge.knows(self.name, share)
                elif status is CommitStatus.FENCED:
                    self.lose(share)
                    self.settled = self.settled and "fenced without a word" in self.world.faults
                else:
                    self.world.judge.rewound(item.partition, status)
                    self.world.judge.known.pop((self.name, item.partition), None)
                    share.rewind(told=status is not CommitStatus.REPLACED)
            self.tidy()

        return Call("commit", compose, answered)

    def look_for_losses(self) -> None:
        """Notice entries that were removed unread, or with their log."""
        shares = [share for share in self.shares.values() if not share.ended]
        if shares:
            logs = [self.world.log(share.partition) for share in shares]
            cursors = [(share.cursor, share.read) for share in shares]
            answers = now(scripts.losses(self.world.lab, PROCESSOR, logs, cursors))
            for share, lost in zip(shares, answers, strict=True):
                if lost < 0:
                    share.rewind(told=False)
                elif lost:
                    self.world.judge.lost(share.partition, lost)
                    share.read += lost
                    share.count += lost
                    share.probe = True
                    count = share.read if "counts what it has read" in self.world.faults else share.count
                    token = share.partition, share.token, self.name
                    now(scripts.count_loss(self.world.lab, self.world.keys, PROCESSOR, *token, lost, count))

    # One after the other

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

    def work(self, reply: Reply = Reply.HEARD, *, events: int = 1) -> None:
        """Everything that a worker does of itself, once round; handlers finish so many events of each partition."""
        for what in ("acquire", "read", *("finish", "take") * events, "commit"):
            self.step(what, reply)

    # Coming and going

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

    def freeze(self, frozen: bool) -> None:
        self.frozen = frozen

    def block(self, blocked: bool) -> None:
        """A handler blocks the worker's loop; heartbeats go on."""
        self.blocked = blocked
        self.look_into_inbox()
        self.tidy()

    def deafen(self, deaf: bool) -> None:
        """The worker's loop goes on with what it was about to do, before it sees what the heartbeat thread hears."""
        self.deaf = deaf
        self.look_into_inbox()
        self.tidy()
