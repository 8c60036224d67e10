"""How much of an arrival delay is carried into the next departure: the computation, without any Runnel in it.

An aircraft that lands late leaves late again, unless there was time to catch up. What is carried is at most the delay
it landed with, and at most the delay it leaves with. A night on the ground carries nothing, and neither does a flight
that was cancelled. So each result depends on the flight before it: in another order, the results are wrong.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from runnel.demo.flights import Flight

__all__ = ["ON_TIME", "Lateness", "carry", "sequentially"]


@dataclass(frozen=True, slots=True)
class Lateness:
    """The state of an aircraft: how many minutes late it landed last, and on which day."""

    day: str
    minutes: int

    def __str__(self) -> str:
        return f"{self.day} {self.minutes}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """What ``str`` has made of one."""
        day, minutes = text.split(" ")
        return cls(day, int(minutes))


ON_TIME = Lateness("", 0)
"""Of an aircraft that has not flown yet."""


def carry(before: Lateness, flight: Flight) -> tuple[int, Lateness]:
    """The minutes that are carried into this departure, and the lateness after it."""
    if flight.dep_delay is None:
        return 0, Lateness(flight.day, 0)
    carried = max(0, min(before.minutes, flight.dep_delay)) if before.day == flight.day else 0
    return carried, Lateness(flight.day, 0 if flight.arr_delay is None else max(0, flight.arr_delay))


def sequentially(flights: Iterable[Flight]) -> dict[int, int]:
    """The minutes carried into each flight, by its number: one flight after the other, in a loop."""
    lateness: dict[str, Lateness] = {}
    carried = {}
    for flight in flights:
        carried[flight.number], lateness[flight.tail] = carry(lateness.get(flight.tail, ON_TIME), flight)
    return carried
