"""How long things take, as histograms that are cheap to fill.

One thread fills a histogram; others may read it meanwhile, and then see a moment in between.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from runnel._core.entry_ids import parse

__all__ = ["Histogram", "Meter"]

HANDLER_BOUNDS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Seconds. From a handler that only adds two numbers to one that waits for a slow service."""

END_TO_END_BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
"""Seconds. From an idle worker to one that has an hour's backlog."""

FEW = 8
"""Values below which each is put into its bucket; more are sorted first, which costs about 50 ns a value."""


class Histogram:
    """Numbers of values by upper bound.

    Attributes:
        bounds: upper bounds, inclusive, ascending.
        counts: values per bucket; one more than there are bounds, for what is above them all.
        total: the sum of all values.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Count a value, as if it had come so many times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def add_all(self, values: list[float]) -> None:
        """Count many values. Sorts the list."""
        if len(values) < FEW:
            for value in values:
                self.add(value)
            return
        values.sort()
        below = 0
        for index, bound in enumerate(self.bounds):
            upto = bisect_right(values, bound, below)
            self.counts[index] += upto - below
            below = upto
            if below == len(values):
                break
        self.counts[-1] += len(values) - below
        self.total += sum(values)


class Meter:
    """What the events of one processor took in this worker.

    Attributes:
        handler: seconds from handing an event or batch out to the request for the next one.
        end_to_end: seconds from appending an event to the end of its processing; one value per event.
        processed: events.
    """

    __slots__ = ("end_to_end", "handler", "processed")

    def __init__(self) -> None:
        self.handler = Histogram(HANDLER_BOUNDS)
        self.end_to_end = Histogram(END_TO_END_BOUNDS)
        self.processed = 0

    def events(self, durations: list[float], last: bytes, now: float) -> None:
        """Events were processed in a row, without a pause for others.

        Arguments:
            durations: of each, in seconds.
            last: id of the last one; the others are taken to be as old. They were processed within milliseconds, and
                reading the age of each would cost more than all the rest of this.
            now: seconds since the epoch.
        """
        self.processed += len(durations)
        self.end_to_end.add(_age(last, now), len(durations))
        self.handler.add_all(durations)

    def batch(self, duration: float, ids: Sequence[bytes], now: float) -> None:
        """A batch was processed as a whole."""
        self.processed += len(ids)
        self.handler.add(duration)
        self.end_to_end.add_all([_age(entry_id, now) for entry_id in ids])


def _age(entry_id: bytes, now: float) -> float:
    """Seconds since an entry was appended; never negative, since clocks of two machines differ."""
    return max(0.0, now - parse(entry_id)[0] / 1000)
