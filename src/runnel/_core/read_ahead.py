"""How much to read at a time: few entries for slow processors, many for fast ones, within a budget of bytes."""

from dataclasses import dataclass

__all__ = ["ReadAhead", "Step"]

MOST = 128
"""Entries of a partition that are read at a time at most, unless ``prefetch_count`` says more. By this limit, thousand
events per second of a worker over 16 partitions and over one (Redis 7.0.15): 8: 276 and 55; 32: 457 and 235;
64: 501 and 341; 128: 507 and 474; 256: 524 and 575."""

OVERHEAD = 350
"""Bytes that an entry takes in Python besides its contents: two lists and three bytes objects."""

FORGET = 8
"""By how much the estimate of an entry's size may fall with one read. It rises at once."""


@dataclass(frozen=True, slots=True)
class Step:
    """The next read.

    Attributes:
        count: entries per partition.
        room: how few entries must be left of a partition for it to be read; below zero: its processor must wait.
        partitions: how many partitions may be read at once, so that the answer fits as well.
    """

    count: int
    room: int
    partitions: int


class ReadAhead:
    """The size of the steps of one reader, or of several that share a budget.

    XREAD limits the entries of an answer, not its bytes, so those are estimated from the answers so far. The first read
    is of one entry of one partition. Entries that are suddenly much larger can exceed the budget by one read.
    """

    def __init__(self, prefetch_count: int, budget: int) -> None:
        """Arguments:
        prefetch_count: entries per partition to begin with.
        budget: bytes that may be buffered.
        """
        self._count = prefetch_count
        self._most = max(prefetch_count, MOST)
        self._budget = budget
        self._size = 0.0

    def starved(self) -> None:
        """A processor had to wait although there was more to read: read more at a time."""
        self._count = min(2 * self._count, self._most)

    def took(self, entries: int, size: int) -> None:
        """An answer had so many entries, and so many bytes."""
        self._size = max(size / entries + OVERHEAD, self._size / FORGET)

    def step(self, partitions: int, beside: int = 0, batch: int = 1) -> Step:
        """The next read of a reader of so many partitions.

        Arguments:
            partitions: that it reads.
            beside: those that other readers read; all of them share the budget.
            batch: how many entries a processor takes at a time. What a read leaves over would have to wait for the
                next one: of 128 entries at a time, lists of 100 were made as one of 100 and one of 28.
        """
        if self._size == 0:
            return Step(1, 0, 1)
        # A buffer holds what is left when the next read is issued, and that read.
        fit = self._budget / self._size
        share = int(fit / (2 * (partitions + beside)))
        count = _whole(max(1, min(self._count, share)), batch)
        room = count if share >= 1 else -1
        return Step(count, room, max(1, int(fit / count * partitions / (partitions + beside))))


def _whole(count: int, batch: int) -> int:
    """The most entries, up to ``count``, of which so many reads make whole batches, or one read does."""
    return count - count % batch if count >= batch else -(-batch // -(-batch // count))
