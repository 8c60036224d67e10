"""How long things take, as histograms that are cheap to fill.

One thread fills a histogram; others may read it meanwhile, and then see a moment in between.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence

from runnel._core.entry_ids import parse

__all__ = ["Histogram", "Meter", "Stopwatch"]

HANDLER_BOUNDS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Seconds. From a handler that only adds two numbers to one that waits for a slow service."""

END_TO_END_BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
"""Seconds. From an idle worker to one that has an hour's backlog."""

SHORT = HANDLER_BOUNDS[0]
"""Seconds. Events that take no longer than this are only counted."""

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

    def alike(self, one: float, other: float) -> bool:
        """Whether two values, and so all between them, fall into the same bucket."""
        return bisect_left(self.bounds, one) == bisect_left(self.bounds, other)


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

    def events(
        self,
        number: int,
        seconds: float,
        slow: list[float],
        first: bytes,
        first_ended: float,
        last: bytes,
        ended: float,
    ) -> None:
        """Events of one partition were processed, one after the other.

        To read the age of each would cost more than all the rest. Half of them are taken to be as old as the first one
        when it was done, and half as the last one; what lies between is a few milliseconds of work.

        Arguments:
            number: of events.
            seconds: that they took together.
            slow: seconds of each one that took longer than :data:`SHORT`.
            first: id of the first one.
            first_ended: when it was done, in seconds since the epoch.
            last: id of the last one.
            ended: when that was done.
        """
        self.processed += number
        self.end_to_end.add(_age(last, ended), (number + 1) // 2)
        self.end_to_end.add(_age(first, first_ended), number // 2)
        self.handler.counts[0] += number - len(slow)
        self.handler.total += max(0.0, seconds - sum(slow))
        for took in slow:
            self.handler.add(took)

    def batch(self, duration: float, ids: Sequence[bytes], now: float) -> None:
        """A batch was processed as a whole."""
        self.processed += len(ids)
        self.handler.add(duration)
        self._count_ages(ids, now)

    def _count_ages(self, ids: Sequence[bytes], now: float) -> None:
        """Count what was appended in this order, without a look at each: that took 1 µs for an event."""
        oldest, youngest = _age(ids[0], now), _age(ids[-1], now)
        if len(ids) == 1 or self.end_to_end.alike(oldest, youngest):
            self.end_to_end.add((oldest + youngest) / 2, len(ids))
        else:
            half = len(ids) // 2
            self._count_ages(ids[:half], now)
            self._count_ages(ids[half:], now)


class Stopwatch:
    """Times the events of one partition, one after the other, at the cost of a comparison for each.

    A run is a row of events without a wait between them: there, an event ends when the next one is handed out, and the
    time of that is known anyway. Short ones are not looked at one by one: how many there were is known at the end of
    the run, and what they took is what the others have left. That is 13 to 36 ns for an event; to keep the times of all
    was 150.
    Runs are counted in the meter together, when the oldest is :data:`TOGETHER` old.

    Attributes:
        at: when the last event was handed out (monotonic, seconds). Set by who hands out, behind :meth:`look`.
        mark: who hands out an event at or after this time calls :meth:`look`; 0 outside a run.
    """

    __slots__ = (
        "_began",
        "_done_before",
        "_ended",
        "_epoch",
        "_first",
        "_first_ended",
        "_last",
        "_meter",
        "_number",
        "_seconds",
        "_slow",
        "_started",
        "at",
        "mark",
    )

    def __init__(self, meter: Meter, epoch: Callable[[float], float]) -> None:
        """Arguments:
        meter: where to count.
        epoch: from a monotonic time to seconds since the epoch.
        """
        self.at = self.mark = 0.0
        self._meter = meter
        self._epoch = epoch
        # What has ended and is not counted
        self._number = 0
        self._seconds = 0.0
        self._slow: list[float] = []
        self._first = self._last = b""
        self._began = self._first_ended = self._ended = 0.0
        # The present run
        self._started = 0.0
        self._done_before = 0

    def look(self, entry_id: bytes, now: float, done: int) -> None:
        """This entry is handed out: a run begins with it, or the one before may have taken long.

        Arguments:
            entry_id: of the entry.
            now: monotonic time, in seconds.
            done: how many events of the partition are processed.
        """
        if self.mark:
            self._end_one(now)
            # Not later than SHORT behind any hand-out that follows, so that no longer event goes by unseen.
            self.mark = now + SHORT
            return
        if self._number and now - self._began > TOGETHER:
            self.count()
        if not self._number:
            self._first, self._began, self._first_ended = entry_id, now, 0.0
        self._started, self._done_before = now, done
        self.mark = now  # look also at the next one: that is when the first one has ended

    def end(self, last: bytes, now: float, done: int) -> None:
        """All events of the run are done, the last of them is ``last``."""
        self._end_one(now)
        self._close(last, now, now, done)

    def fail(self, last: bytes, now: float, done: int) -> None:
        """The last event of the run was not finished; those before, up to ``last``, were."""
        self._close(last, now, self.at, done)

    def _end_one(self, now: float) -> None:
        if not self._first_ended:
            self._first_ended = now
        if (took := now - self.at) > SHORT:
            self._slow.append(took)

    def _close(self, last: bytes, now: float, until: float, done: int) -> None:
        self._number += done - self._done_before
        self._seconds += until - self._started
        self._last, self._ended = last, now
        self.mark = 0.0

    def count(self) -> None:
        """Count in the meter what has ended since the last time."""
        if self._number:
            first_ended, ended = self._epoch(self._first_ended), self._epoch(self._ended)
            self._meter.events(self._number, self._seconds, self._slow, self._first, first_ended, self._last, ended)
            self._number, self._seconds = 0, 0.0
            self._slow.clear()


def _age(entry_id: bytes, now: float) -> float:
    """Seconds since an entry was appended; never negative, since clocks of two machines differ."""
    return max(0.0, now - parse(entry_id)[0] / 1000)
