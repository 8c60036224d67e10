"""Which events have been in progress for long: those that are seen at two looks. Nothing is noted about the others."""

from collections.abc import Iterable

__all__ = ["InProgress", "SlowEvents"]

InProgress = tuple[int, int, str]
"""Partition, token, and id of the first event that is being processed there."""


class SlowEvents:
    """What was in progress at the last looks, and what was said about it."""

    def __init__(self) -> None:
        self._since: dict[InProgress, float] = {}
        self._noted: frozenset[InProgress] = frozenset()

    def look(self, now: float, current: Iterable[InProgress]) -> list[tuple[int, int, str, float]]:
        """What to note down since the last look.

        Arguments:
            now: seconds of a monotonic clock.
            current: what is in progress now, at most one event per partition.

        Returns:
            Partition, token, id and the seconds for which it has been in progress at least; an empty id where nothing
            is to be said any more.
        """
        before, self._since = self._since, {}
        for event in current:
            self._since[event] = before.get(event, now)
        slow = frozenset(event for event in self._since if event in before)
        still = {partition for partition, _, _ in slow}
        changes = [
            (p, token, event_id, now - self._since[p, token, event_id]) for p, token, event_id in slow - self._noted
        ]
        changes += [(p, token, "", 0.0) for p, token, _ in self._noted - slow if p not in still]
        self._noted = slow
        return changes
