"""Where a measurement takes place, and what it works on. Both sides see the same entries under the same names."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from runnel import App, Record
from runnel.streams import Stream

__all__ = ["Order", "Place", "Shape", "Span"]


class Order(Record):
    """About what an application sends: 50 bytes as JSON, and a filler where another size is asked for."""

    order_id: int
    customer: str
    amount: float
    filler: str = ""
    sent_ns: int = 0


def order(number: int, filler: str = "") -> Order:
    """An order; with its filler it has about so many bytes more."""
    return Order(order_id=number, customer=f"customer-{number % 977}", amount=number / 4, filler=filler)


@dataclass(frozen=True, slots=True)
class Shape:
    """The entries of a stream: how many, over how many partitions, how large, and whether all have the same key."""

    events: int
    partitions: int = 16
    size: int = 0
    hot: bool = False

    @property
    def name(self) -> str:
        """Of the stream that has it."""
        return f"orders-{self.events}-{self.partitions}-{self.size}{'-hot' if self.hot else ''}"

    @property
    def key(self) -> Callable[[Order], int]:
        """What its stream is partitioned by."""
        return (lambda _: 0) if self.hot else (lambda order: order.order_id)

    def orders(self, first: int, number: int) -> list[Order]:
        """Some of its records."""
        # The field names and numbers around the filler are about 80 bytes.
        filler = "x" * max(0, self.size - 80)
        return [order(n, filler) for n in range(first, min(first + number, self.events))]


@dataclass(frozen=True, slots=True)
class Place:
    """A server, an app on it that nobody else has, and a name that no other measurement uses."""

    url: str
    app: str
    name: str

    def stream(self, shape: Shape, **settings: Any) -> tuple[App, Stream[Order]]:
        """The app, and its stream of that shape; without a limit, since what is read again must not be trimmed."""
        app = App(name=self.app, redis_url=self.url, partition_count=shape.partitions, partition_size=0, **settings)
        return app, app.stream(shape.name, record=Order, partition_by=shape.key)

    def fresh(self, **settings: Any) -> tuple[App, Stream[Order]]:
        """The app, and a stream with all other defaults that only this measurement has."""
        app = App(name=self.app, redis_url=self.url, **settings)
        return app, app.stream(self.name, record=Order, partition_by="order_id")


class Span:
    """Time that passes, in seconds."""

    def __init__(self) -> None:
        self.started = time.perf_counter()

    def rate(self, number: int) -> dict[str, float]:
        """So many per second since the start."""
        return {"rate": number / (time.perf_counter() - self.started)}
