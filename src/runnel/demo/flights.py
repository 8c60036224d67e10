"""The feed: real departures from the three airports of New York in January 2013, in the order in which they left.

From the data set ``nycflights13`` (CC0), which took it from the US Bureau of Transportation Statistics. ``NA`` is what
it says where it knows nothing.
"""

import csv
import gzip
import io
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from runnel.errors import ConfigurationError
from runnel.records import Record

__all__ = ["Departures", "Flight", "load"]

BUNDLED = "flights-2013-01.csv.gz"


class Flight(Record):
    """A departure, or one that was cancelled."""

    number: int
    """Its place in the feed, from 1."""

    day: str
    """Of its schedule, as in ``2013-01-31``."""

    tail: str
    """The registration of the aircraft, painted on its tail."""

    carrier: str
    origin: str
    dest: str

    dep_delay: int | None
    """Minutes; below 0 if it left early. ``None``: it never left."""

    arr_delay: int | None
    """Minutes; below 0 if it landed early. ``None``: it never left, or landed elsewhere."""


@dataclass(frozen=True, slots=True)
class Departures:
    """What was loaded.

    Attributes:
        flights: of known aircraft, in the order of the feed.
        unattributed: how many were left out, since nobody wrote down the aircraft.
    """

    flights: list[Flight]
    unattributed: int

    @property
    def cancelled(self) -> int:
        """How many of the flights never left."""
        return sum(flight.dep_delay is None for flight in self.flights)

    @property
    def aircraft(self) -> int:
        """How many aircraft there are."""
        return len({flight.tail for flight in self.flights})


def load(path: Path | None = None, limit: int | None = None) -> Departures:
    """Read the feed.

    Arguments:
        path: a CSV file with the columns of ``nycflights13``, compressed if it ends in ``.gz``. Default: January 2013.
        limit: rows to read at most.

    Raises:
        ConfigurationError: the file cannot be read, or is not such a file.
    """
    name = BUNDLED if path is None else str(path)
    try:
        raw = resources.files(__package__).joinpath(BUNDLED).read_bytes() if path is None else path.read_bytes()
        text = (gzip.decompress(raw) if name.endswith(".gz") else raw).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"The flights in {name} cannot be read: {error}.") from error
    flights: list[Flight] = []
    unattributed = 0
    for number, row in enumerate(csv.DictReader(io.StringIO(text)), 1):
        if limit is not None and number > limit:
            break
        try:
            if row["tailnum"] == "NA":
                unattributed += 1
            else:
                flights.append(_flight(number, row))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigurationError(
                f"Row {number} of {name} is no flight ({type(error).__name__}: {error}). The demo needs the columns of "
                "nycflights13: year, month, day, dep_delay, arr_delay, carrier, tailnum, origin, dest."
            ) from error
    if not flights:
        raise ConfigurationError(f"{name} has no flights of known aircraft.")
    return Departures(flights, unattributed)


def _flight(number: int, row: Mapping[str, str]) -> Flight:
    return Flight(
        number=number,
        day=f"{int(row['year']):04}-{int(row['month']):02}-{int(row['day']):02}",
        tail=row["tailnum"],
        carrier=row["carrier"],
        origin=row["origin"],
        dest=row["dest"],
        dep_delay=_minutes(row["dep_delay"]),
        arr_delay=_minutes(row["arr_delay"]),
    )


def _minutes(value: str) -> int | None:
    return None if value == "NA" else int(value)
