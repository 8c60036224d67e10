"""What is sent: a feed of real flights, keyed by aircraft, and a synthetic one."""

import itertools
import zlib
from collections import Counter
from collections.abc import Iterator

from runnel import Record
from runnel.demo.flights import load

PARTITIONS = 16

POISON = "poison"
"""The body of an event that always fails."""


class Step(Record):
    """The ``number``-th event of ``key``, and the ``serial``-th of ``producer``; both count from 0.

    A key belongs to one producer. ``check`` is the CRC-32 of everything else.
    """

    key: str
    number: int
    producer: str
    serial: int
    body: str
    check: int = 0

    def sealed(self) -> "Step":
        """With its check sum."""
        return self.model_copy(update={"check": self.expected})

    @property
    def expected(self) -> int:
        """What ``check`` should be."""
        return zlib.crc32(f"{self.key} {self.number} {self.producer} {self.serial} {self.body}".encode())


def feed(kind: str, producer: str) -> Iterator[Step]:
    """Endless events.

    Arguments:
        kind: ``flights``: in the order of their departures, again and again; ``synthetic``: 64 keys in turn, with
            bodies of up to 400 bytes.
        producer: name of who sends them.
    """
    numbers: Counter[str] = Counter()
    if kind == "flights":
        flights = load().flights
        pairs = ((f"{producer}-{flight.tail}", flight.model_dump_json()) for flight in itertools.cycle(flights))
    else:
        pairs = ((f"{producer}-{n % 64}", "x" * (n * 7919 % 400)) for n in itertools.count())
    for serial, (key, body) in enumerate(pairs):
        yield Step(key=key, number=numbers[key], producer=producer, serial=serial, body=body).sealed()
        numbers[key] += 1
