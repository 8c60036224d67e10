"""How many events wait, and for how long.

Computed from positions and logs. The server's own figure (``XINFO GROUPS``) is wrong after entries were trimmed or
deleted, and after a position was moved.
"""

from runnel._core.entry_ids import BEGINNING, parse
from runnel._redis.keys import StreamKeys
from runnel._redis.link import Link
from runnel._redis.scripts import Look, count_entries

__all__ = ["oldest_waiting", "waiting"]


async def waiting(link: Link, keys: StreamKeys, partition: int, look: Look) -> int:
    """How many entries there are behind the position.

    Arithmetic where it is exact; the entries are counted where some were ever deleted by hand, because then neither the
    log's numbers nor the position's say how many are left.
    """
    if not look.following:
        return 0
    if look.offset is None or parse(look.offset) < parse(look.first):
        return look.length
    if look.deleted == BEGINNING:
        return look.added - look.count
    return await count_entries(link, keys, partition, look.offset, look.last)


def oldest_waiting(look: Look, now: float) -> float:
    """Age in seconds of the oldest entry behind the position; 0 if there is none. ``now`` by the server's clock."""
    return max(0.0, now - parse(look.following)[0] / 1000) if look.following else 0.0
