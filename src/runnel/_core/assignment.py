"""Which member should own which partition.

The coordinator script (``_redis/lua/heartbeat.lua``) computes the same inside Redis; a property test holds the two
together. Kept deterministic for that reason: no sets, no hash order.
"""

from collections.abc import Mapping, Sequence

__all__ = ["assign"]


def assign(
    members: Sequence[str], partition_count: int, current: Mapping[int, str], slot_groups: int = 1
) -> dict[int, str]:
    """A balanced assignment that moves as few partitions as possible, and as few parts of slot groups as that allows.

    1. Every member keeps what it has; what belongs to nobody is free.
    2. The members with the most partitions, and among equals those that joined first, may keep one more than
       the others where the count does not divide evenly. Whatever a member has beyond its quota becomes free.
    3. Members below their quota take from the free partitions.

    Partitions are given up and taken in the order of their slot groups, so that neighbours are of one group: a member
    reads and commits for each group by itself.

    Arguments:
        members: in the order in which they joined.
        partition_count: partitions are 0 to ``partition_count - 1``.
        current: the present assignment; may name members that are gone.
        slot_groups: partition ``p`` is in the slot group ``p mod slot_groups``.

    Returns:
        The member of every partition; empty where there are no members.
    """
    if not members:
        return {}
    owned: dict[str, list[int]] = {member: [] for member in members}
    free: list[int] = []
    for partition in (p for group in range(slot_groups) for p in range(group, partition_count, slot_groups)):
        owned.get(current.get(partition, ""), free).append(partition)

    joined = {member: order for order, member in enumerate(members)}
    ranked = sorted(members, key=lambda member: (-len(owned[member]), joined[member]))
    quota, extra = divmod(partition_count, len(members))
    quotas = {member: quota + (rank < extra) for rank, member in enumerate(ranked)}

    for member in ranked:
        while len(owned[member]) > quotas[member]:
            free.append(owned[member].pop())
    for member in ranked:
        while len(owned[member]) < quotas[member]:
            owned[member].append(free.pop())
    return {partition: member for member in members for partition in owned[member]}
