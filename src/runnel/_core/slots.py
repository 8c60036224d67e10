"""Hash slots of a Redis Cluster, and hash tags that spread a stream evenly over them."""

from binascii import crc_hqx
from functools import lru_cache

__all__ = ["GROUPS_PER_PRIMARY", "SLOTS", "slot_groups_for", "slot_of", "tag_numbers"]

SLOTS = 16_384
"""How many slots a cluster has, whatever its size."""

GROUPS_PER_PRIMARY = 4
"""Slot groups of a stream per primary. Few: each costs a worker a blocking connection. Several: so that primaries that
are added later can get some of them, and one that fails leaves its share to more than one other."""


def slot_of(key: str) -> int:
    """The slot of a key: CRC16 (XMODEM) of its hash tag, or of all of it where it has none.

    Source: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
    """
    name = key.encode()
    start = name.find(b"{")
    if start >= 0 and (end := name.find(b"}", start + 1)) > start + 1:
        name = name[start + 1 : end]
    return crc_hqx(name, 0) % SLOTS


def slot_groups_for(primaries: int, partition_count: int) -> int:
    """How many slot groups a stream has that is first used on so many primaries; 1 on a single one.

    Equally many on each, as far as there are partitions enough: then their windows (see :func:`tag_numbers`) do not lie
    across the border between two primaries, so it does not matter where in a window a slot is.
    """
    if primaries < 2:
        return 1
    return primaries * min(GROUPS_PER_PRIMARY, partition_count // primaries) or partition_count


@lru_cache(maxsize=1024)
def tag_numbers(name: str, slot_groups: int) -> tuple[int, ...]:
    """For each slot group, the number that its hash tag ``name#number`` ends with.

    The slots are divided into as many windows as there are groups, and each group has a window of its own, so equal
    ranges of slots hold equally many groups. Consecutive groups are far apart, so that those of the first groups that
    have a partition more than the others are not all on one primary. Where there is one group, its number is 0.

    1. Numbers are tried in turn. Whichever falls into a window that has none yet, is that window's.
    2. The groups take the windows in the order of their bits, read backwards: then the first so many are always spread
       evenly (van der Corput 1935).

    The answer depends on the arguments alone, and must never change: it is where the data is.
    """
    windows: dict[int, int] = {}
    number = 0
    while len(windows) < slot_groups:
        windows.setdefault(slot_of(f"{{{name}#{number}}}") * slot_groups // SLOTS, number)
        number += 1
    bits = (slot_groups - 1).bit_length()
    return tuple(windows[window] for window in sorted(windows, key=lambda window: f"{window:0{bits}b}"[::-1]))
