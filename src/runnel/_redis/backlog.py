"""How far processors are behind, from our own positions and the logs; the server's figure is wrong after trimming."""

from dataclasses import dataclass

from runnel._redis.keys import ControlKeys, StreamKeys
from runnel._redis.link import Link
from runnel._redis.queries import log_state, position
from runnel._redis.scripts import ALL

__all__ = ["NOTHING", "Backlog", "remaining"]


@dataclass(frozen=True, slots=True)
class Backlog:
    """What a processor has before it.

    Attributes:
        events: unprocessed events in partitions that are worked on.
        done: processed ones.
        quarantined: partitions that are marked as poisoned.
        paused: unprocessed events in the other ones, if somebody has paused the processor; ``events`` is 0 then.
    """

    events: int
    done: int
    quarantined: int
    paused: int

    def __add__(self, other: "Backlog") -> "Backlog":
        """Both, as of two generations of a stream."""
        return Backlog(
            self.events + other.events,
            self.done + other.done,
            self.quarantined + other.quarantined,
            self.paused + other.paused,
        )


NOTHING = Backlog(0, 0, 0, 0)
"""Of a processor that has no partitions."""


async def remaining(
    link: Link, keys: StreamKeys, control: ControlKeys, processor: str, partition_count: int
) -> Backlog:
    """The backlog of a processor in all its partitions."""
    parked = set(await link.at(control.parked).call("HKEYS", control.parked))
    poisoned = {int(partition) for partition in parked - {ALL.encode()}}
    events = done = 0
    for partition in range(partition_count):
        state = None if partition in poisoned else await log_state(link, keys, partition)
        if state is not None:
            stored = await position(link, keys, processor, partition)
            events += state.length if stored is None else max(0, state.added - stored[1])
            done += 0 if stored is None else stored[1]
    paused = ALL.encode() in parked
    return Backlog(0 if paused else events, done, len(poisoned), events if paused else 0)
