"""How long to wait before trying again."""

from collections.abc import Callable, Iterator

__all__ = ["delays"]


def delays(first: float, most: float, random: Callable[[], float]) -> Iterator[float]:
    """Endless delays in seconds: doubling from ``first`` up to ``most``, each between half and all of that.

    The jitter keeps workers that lost the same server from returning in step.

    Arguments:
        first: the first upper bound, in seconds.
        most: the largest upper bound, in seconds.
        random: returns a number from 0 to 1.
    """
    bound = first
    while True:
        yield bound * (0.5 + 0.5 * random())
        bound = min(most, bound * 2)
