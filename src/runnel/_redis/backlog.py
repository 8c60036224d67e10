"""How far processors are behind, from our own positions and the logs; the server's figure is wrong after trimming."""

from dataclasses import dataclass

from runnel._core.entry_ids import parse
from runnel._redis.keys import ControlKeys, StreamKeys
from runnel._redis.link import Link
from runnel._redis.queries import log_state, position
from runnel._redis.scripts import ALL

__all__ = ["Backlog", "added", "oldest_age", "remaining", "server_time"]


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


async def remaining(
    link: Link, keys: StreamKeys, control: ControlKeys, processor: str, partition_count: int
) -> Backlog:
    """The backlog of a processor in all its partitions."""
    parked = set(await link.call("HKEYS", control.parked))
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


async def added(link: Link, keys: StreamKeys, partition: int) -> int:
    """Entries that were ever added to the log of a partition."""
    state = await log_state(link, keys, partition)
    return 0 if state is None else state.added


async def oldest_age(link: Link, keys: StreamKeys, partition: int, done: bytes, now: float) -> float:
    """Seconds since the first entry behind ``done`` was appended; 0 if there is none. ``now`` is the server's time."""
    found = await link.call("XRANGE", keys.log(partition), b"(" + done, "+", "COUNT", 1)
    return max(0.0, now - parse(found[0][0])[0] / 1000) if found else 0.0


async def server_time(link: Link) -> float:
    """The server's clock, in seconds since the epoch."""
    seconds, microseconds = await link.call("TIME")
    return int(seconds) + int(microseconds) / 1e6
