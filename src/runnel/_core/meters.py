"""How long things take, as histograms that are cheap to fill.

One thread fills a histogram; others may read it meanwhile, and then see a moment in between.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from operator import sub

from runnel._core.entry_ids import parse

__all__ = ["Histogram", "Meter", "Stopwatch"]

HANDLER_BOUNDS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Seconds. From a handler that only adds two numbers to one that waits for a slow service."""

END_TO_END_BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
"""Seconds. From an idle worker to one that has an hour's backlog."""

FEW = 8
"""Values below which each is put into its bucket; more are sorted, unless all belong into the first bucket."""

TOGETHER = 0.02
"""Seconds. Counting costs a few microseconds for each partition, which a busy one need not pay for a few events."""


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
        if max(values) <= self.bounds[0]:  # a fast handler: the one case where the cost of this shows
            self.counts[0] += len(values)
            self.total += sum(values)
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
        handler: seconds from handing an event or batch out to handing out the next one, or to waiting for it.
        end_to_end: seconds from appending an event to the end of its processing; one value per event.
        processed: events.
    """

    __slots__ = ("end_to_end", "handler", "processed")

    def __init__(self) -> None:
        self.handler = Histogram(HANDLER_BOUNDS)
        self.end_to_end = Histogram(END_TO_END_BOUNDS)
        self.processed = 0

    def events(self, durations: list[float], first: bytes, last: bytes, began: float, ended: float) -> None:
        """Events of one partition were processed, one after the other.

        To read the age of each would cost more than all the rest. Half of them are taken to be as old as the first one
        when it was done, and half as the last one; what lies between is a few milliseconds of work.

        Arguments:
            durations: of each, in seconds.
            first: id of the first one.
            last: id of the last one.
            began: when the first one was handed out, in seconds since the epoch.
            ended: when the last one was done.
        """
        number = len(durations)
        self.processed += number
        self.end_to_end.add(_age(last, ended), (number + 1) // 2)
        if number > 1:
            self.end_to_end.add(_age(first, began + durations[0]), number // 2)
        self.handler.add_all(durations)

    def batch(self, duration: float, ids: Sequence[bytes], now: float) -> None:
        """A batch was processed as a whole."""
        self.processed += len(ids)
        self.handler.add(duration)
        self.end_to_end.add_all([_age(entry_id, now) for entry_id in ids])


class Stopwatch:
    """Times the events of one partition, one after the other, at the cost of one ``append`` for each.

    A run is a row of events without a wait between them: there, an event ends when the next one is handed out, and the
    time of that is known anyway. Runs are counted in the meter together, when the oldest is :data:`TOGETHER` old.

    Attributes:
        stamps: when the events of the present run were handed out (monotonic, seconds); empty outside a run.
    """

    __slots__ = ("_began", "_durations", "_ended", "_epoch", "_first", "_last", "_meter", "stamps")

    def __init__(self, meter: Meter, epoch: Callable[[float], float]) -> None:
        """Arguments:
        meter: where to count.
        epoch: from a monotonic time to seconds since the epoch.
        """
        self.stamps: list[float] = []
        self._meter = meter
        self._epoch = epoch
        self._durations: list[float] = []
        self._first = self._last = b""
        self._began = self._ended = 0.0

    def begin(self, entry_id: bytes, now: float) -> None:
        """A run begins with the hand-out of this entry."""
        if self._durations and now - self._began > TOGETHER:
            self.count()
        if not self._durations:
            self._first, self._began = entry_id, now
        self.stamps.append(now)

    def end(self, done: bytes, now: float) -> None:
        """All events of the run are done, the last of them is ``done``."""
        self.stamps.append(now)
        self._close(done, now)

    def fail(self, done: bytes, now: float) -> None:
        """The last event of the run was not finished; those before, up to ``done``, were."""
        self._close(done, now)

    def _close(self, done: bytes, now: float) -> None:
        stamps = self.stamps
        self._durations.extend(map(sub, stamps[1:], stamps))
        self._last, self._ended = done, now
        stamps.clear()

    def count(self) -> None:
        """Count in the meter what has ended since the last time."""
        if self._durations:
            began, ended = self._epoch(self._began), self._epoch(self._ended)
            self._meter.events(self._durations, self._first, self._last, began, ended)
            self._durations.clear()


def _age(entry_id: bytes, now: float) -> float:
    """Seconds since an entry was appended; never negative, since clocks of two machines differ."""
    return max(0.0, now - parse(entry_id)[0] / 1000)
