"""Who sends, as ``_redis/producer.py`` does: a lane per partition, one append in flight for all of them."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runnel._redis import scripts
from runnel._redis.scripts import Appended, AppendStatus, Batch
from simulation.calls import Call, Caller, Reply

if TYPE_CHECKING:
    from simulation.world import World


@dataclass
class Lane:
    """What is sent to one partition.

    Attributes:
        values: what is not yet known to be stored, in order.
        sequence: the last one that was used.
        confirmed: the last one that is known to be stored.
    """

    values: list[bytes] = field(default_factory=list)
    sequence: int = 0
    confirmed: int = 0


class Producer(Caller):
    """Sends to one stream, under one name for ever.

    Attributes:
        alias: the name in its appends: its own, but for a mutant that takes a new one.
        lanes: by partition.
        batches: what the append in flight has.
    """

    def __init__(self, world: "World", name: str) -> None:
        super().__init__(world, name)
        self.alias = name
        self.lanes: dict[int, Lane] = defaultdict(Lane)
        self.batches: list[Batch] = []

    @property
    def busy(self) -> bool:
        """Whether something is not yet known to be stored."""
        return any(lane.values for lane in self.lanes.values())

    def send(self, partition: int, number: int = 1, reply: Reply = Reply.HEARD) -> None:
        """Send so many more events, with the next append; and have an attempt at the one that is due."""
        self.lanes[partition].values += [self.world.new_value(partition, self.name) for _ in range(number)]
        self.append(reply)

    def append(self, reply: Reply = Reply.HEARD) -> None:
        """Begin an append of all that waits, or repeat the one that was not answered yet, unchanged."""
        if "append" not in self.calls and self.busy:
            self.calls["append"] = self.appending()
        if "append" in self.calls:
            self.carry_on("append", reply)

    def appending(self) -> Call:
        world = self.world
        self.batches = batches = [
            Batch(p, self.alias, lane.sequence + 1, lane.confirmed, list(lane.values), b"data")
            for p, lane in self.lanes.items()
            if lane.values
        ]

        def answered(answers: Sequence[Appended]) -> None:
            for batch, answer in zip(batches, answers, strict=True):
                self.settle(batch, answer)

        return Call(
            "append",
            lambda: (
                batches,
                scripts.append(world.lab, world.keys, 0, batches, limit=world.limit, trim=False, expiry=10**9),
            ),
            answered,
        )

    def settle(self, batch: Batch, answer: Appended) -> None:
        lane = self.lanes[batch.partition]
        match answer.status:
            case AppendStatus.OK | AppendStatus.DUP:
                lane.sequence = lane.confirmed = batch.sequence
                sent, lane.values = lane.values[: len(batch.entries)], lane.values[len(batch.entries) :]
                self.world.judge.confirmed(batch.partition, sent)
            case AppendStatus.GAP:
                self.world.judge.gap(batch.partition)
                lane.confirmed = int(answer.detail)
                if "new name after a gap" in self.world.faults:
                    self.begin_anew()
            case AppendStatus.FULL:
                pass  # the same events are sent again later

    def give_up(self) -> None:
        """The append took too long: its events may be in the log, or come into it, until the next one has arrived."""
        if self.calls.pop("append", None):
            for batch in self.batches:
                lane = self.lanes[batch.partition]
                lane.sequence = batch.sequence
                del lane.values[: len(batch.entries)]
            if "new name after giving up" in self.world.faults:
                self.begin_anew()

    def begin_anew(self) -> None:
        """Go on under a new name, which nothing is known of: a way to be wrong."""
        self.alias += "+"
        for lane in self.lanes.values():
            lane.sequence = lane.confirmed = 0
