"""Judges a run by what the workers wrote: a plain function of the flights, the journals and the kill.

What may have happened, and what not: an event that was processed but not yet committed when its worker was killed is
processed again by the next owner of its partition, once more and with the same result. Anything else is a fault.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from runnel._core import entry_ids
from runnel.demo.carryover import sequentially
from runnel.demo.flights import Flight
from runnel.demo.journal import Entry

__all__ = ["Kill", "TakeOver", "Verdict", "judge", "owner_of_each", "take_over"]

SHOWN = 3
"""Faults of a kind that are told one by one; the others are counted."""


@dataclass(frozen=True, slots=True)
class Kill:
    """How a worker was killed.

    Attributes:
        worker: process id.
        at: monotonic seconds, just before the signal.
        committed: by partition, the id of the last event that was committed shortly before.
    """

    worker: int
    at: float
    committed: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class TakeOver:
    """How another worker went on with the partitions of the one that was killed.

    Attributes:
        orphaned: how many partitions it owned.
        after: seconds from the kill until the first event was started, per partition that went on, in growing order.
    """

    orphaned: int
    after: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of the run.

    Attributes:
        sent: flights.
        processed: different flights.
        repeated: how often a flight was processed again.
        lost: flights that were not processed.
        aircraft: how many there are.
        in_order: of how many of them the order was kept.
        same: flights of which every result is the one of the sequential computation.
        take_over: ``None``: nobody was killed.
        carried: minutes, by aircraft.
        carried_sequentially: minutes in all, computed one flight after the other.
        carried_shuffled: minutes in all, computed in a wrong order.
        faults: sentences, none if all is well.
    """

    sent: int
    processed: int
    repeated: int
    lost: int
    aircraft: int
    in_order: int
    same: int
    take_over: TakeOver | None
    carried: Mapping[str, int]
    carried_sequentially: int
    carried_shuffled: int
    faults: Sequence[str]

    @property
    def exit_status(self) -> int:
        """0 if the promise was kept, else 1."""
        return 1 if self.faults else 0


def judge(flights: Sequence[Flight], entries: Iterable[Entry], kill: Kill | None) -> Verdict:
    """Hold what the workers wrote against what was sent.

    Arguments:
        flights: as they were sent.
        entries: of all journals, in any order.
        kill: of one of the workers; ``None`` if it did not come to that.
    """
    expected = sequentially(flights)
    history = sorted(entries, key=lambda entry: entry.start)
    known = [entry for entry in history if entry.number in expected]
    processed = {entry.number: entry.carried for entry in known}
    lost = [flight for flight in flights if flight.number not in processed]
    differing = {entry.number: entry for entry in known if entry.carried != expected[entry.number]}
    disorders = _disorders(flights, known, {} if kill is None else kill.committed, kill)
    taken = None if kill is None else take_over(history, kill)

    carried: Counter[str] = Counter()
    for flight in flights:
        carried[flight.tail] += processed.get(flight.number, 0)
    faults = [
        *_told("lost", [f"{_named(flight)} was never processed" for flight in lost]),
        *_told("out of order", list(disorders.values())),
        *_told(
            "different",
            [f"flight {number}: {e.carried} min, not {expected[number]}" for number, e in differing.items()],
        ),
        *_told("unknown", [f"flight {e.number} was never sent" for e in history if e.number not in expected]),
    ]
    if taken is None:
        faults.append("no worker was killed, so that nothing is shown")
    elif not taken.after:
        faults.append("nothing was taken over from the worker that was killed, so that nothing is shown")
    aircraft = {flight.tail for flight in flights}
    return Verdict(
        sent=len(flights),
        processed=len(processed),
        repeated=len(known) - len(processed),
        lost=len(lost),
        aircraft=len(aircraft),
        in_order=len(aircraft) - len(disorders),
        same=len(processed) - len(differing),
        take_over=taken,
        carried=carried,
        carried_sequentially=sum(expected.values()),
        carried_shuffled=sum(sequentially(random.Random(2013).sample(flights, len(flights))).values()),
        faults=faults,
    )


def owner_of_each(entries: Iterable[Entry]) -> dict[int, int]:
    """By partition, the worker that has started an event there last."""
    return {entry.partition: entry.worker for entry in sorted(entries, key=lambda entry: entry.start)}


def take_over(entries: Iterable[Entry], kill: Kill) -> TakeOver:
    """When others went on with what the killed worker owned. A partition in which nothing was left to do is not among
    those that went on."""
    history = sorted(entries, key=lambda entry: entry.start)
    owners = owner_of_each(entry for entry in history if entry.start <= kill.at)
    orphaned = {partition for partition, worker in owners.items() if worker == kill.worker}
    first: dict[int, float] = {}
    for entry in history:
        if entry.start > kill.at and entry.worker != kill.worker and entry.partition in orphaned:
            first.setdefault(entry.partition, entry.start - kill.at)
    return TakeOver(len(orphaned), tuple(sorted(first.values())))


def _disorders(
    flights: Sequence[Flight], history: Sequence[Entry], committed: Mapping[int, str], kill: Kill | None
) -> dict[str, str]:
    """By aircraft whose order was not kept, the first thing that was wrong.

    Per aircraft, in the order in which the events were started, by whichever worker: each is started when the one
    before has ended, and is of the next flight. Only the first one under a newer token, so of a new owner, may instead
    be of any flight before, which then are all processed again from there; but not of one that was committed.
    """
    itinerary: dict[str, list[int]] = defaultdict(list)
    tails = {}
    for flight in flights:
        tails[flight.number] = flight.tail
        itinerary[flight.tail].append(flight.number)
    place = {number: index for numbers in itinerary.values() for index, number in enumerate(numbers)}
    at: dict[str, int] = {}
    previous: dict[str, Entry] = {}
    disorders: dict[str, str] = {}
    for entry in history:
        tail = tails[entry.number]
        if tail in disorders:
            continue
        before, last, here = previous.get(tail), at.get(tail, -1), place[entry.number]
        new_owner = before is not None and entry.token > before.token
        wrong = None
        if before is not None and entry.start < before.end:
            wrong = f"was started before flight {before.number} had ended"
        elif before is not None and entry.token < before.token:
            wrong = f"was processed under a token older than that of flight {before.number}"
        elif here > last + 1:
            wrong = f"was processed before flight {itinerary[tail][last + 1]}"
        elif here <= last and not new_owner:
            wrong = f"was processed again, after flight {itinerary[tail][last]}, by the same owner"
        elif kill is not None and entry.start > kill.at and _was_committed(entry, committed):
            wrong = "was processed again although it was committed"
        if wrong is not None:
            disorders[tail] = f"aircraft {tail}: flight {entry.number} {wrong}"
        previous[tail], at[tail] = entry, here
    return disorders


def _was_committed(entry: Entry, committed: Mapping[int, str]) -> bool:
    last = committed.get(entry.partition)
    return last is not None and entry_ids.parse(entry.event) <= entry_ids.parse(last)


def _told(kind: str, faults: Sequence[str]) -> list[str]:
    rest = len(faults) - SHOWN
    return [f"{kind}: {fault}" for fault in faults[:SHOWN]] + ([f"{kind}: {rest:,} more"] if rest > 0 else [])


def _named(flight: Flight) -> str:
    return f"flight {flight.number} of aircraft {flight.tail}"
