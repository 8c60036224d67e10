"""Which partitions have events and make no progress: their committed position stands still."""

from collections.abc import Collection, Mapping

__all__ = ["Stalls"]


class Stalls:
    """What was seen of the partitions of one member at the last look.

    Attributes:
        stalled: those that were found to stand still and have not gone on since.
    """

    def __init__(self, patience: float) -> None:
        """Arguments:
        patience: seconds that a position may stand still while events wait behind it.
        """
        self._patience = patience
        self._since: dict[int, tuple[bytes, float]] = {}
        self.stalled: frozenset[int] = frozenset()

    def look(self, now: float, waiting: Mapping[int, bytes]) -> tuple[dict[int, float], Collection[int]]:
        """What has changed since the last look.

        Arguments:
            now: seconds of a monotonic clock.
            waiting: the committed position of each partition that we work on and that has events behind it.

        Returns:
            Partitions that stand still now, with the seconds for which they have at least; and those that do not any
            more.
        """
        self._since = {
            partition: known if (known := self._since.get(partition)) and known[0] == position else (position, now)
            for partition, position in waiting.items()
        }
        still = {p: now - since for p, (_, since) in self._since.items() if now - since >= self._patience}
        before, self.stalled = self.stalled, frozenset(still)
        return {p: seconds for p, seconds in still.items() if p not in before}, before - self.stalled

    def excuse(self, now: float) -> None:
        """What has passed until now does not count: nobody could make progress, or nobody looked."""
        self._since = {partition: (position, now) for partition, (position, _) in self._since.items()}
