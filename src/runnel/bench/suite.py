"""Runs rows in rounds. In each round every side takes its turn, so that both sides of a ratio see the same machine."""

import asyncio
import secrets
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from runnel._redis.keys import all_of_app
from runnel._redis.link import Endpoint, Link
from runnel._redis.queries import server_facts, server_version
from runnel.bench.children import measure
from runnel.bench.place import Place, Shape
from runnel.bench.rows import Absolute, Ratio, Row, Series, Side

__all__ = ["Outcome", "Suite"]

Figures = dict[str, float]


@dataclass(slots=True)
class Outcome:
    """A row with what was measured, one value per round.

    Attributes:
        row: what was measured.
        ours: our figures; of a series, those of its last point.
        beside: those beside them, if there are any.
        values: what is compared with the bound: ratios, absolute figures, or the dearest step of a series.
        points: of a series: size -> figures.
        absent: why there is nothing.
    """

    row: Row
    ours: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    points: dict[int, list[float]] = field(default_factory=dict)
    absent: str = ""

    @property
    def bound(self) -> float | None:
        """What the median of the values is compared with."""
        return 1.0 if isinstance(self.row, Series) else self.row.bound

    @property
    def met(self) -> bool | None:
        """Whether the median reaches it; ``None`` where nothing is to be reached or nothing was measured."""
        if self.bound is None or not self.values:
            return None
        value = statistics.median(self.values)
        if isinstance(self.row, Ratio) and self.row.at_least:
            return value >= self.bound
        return value < self.bound if isinstance(self.row, Absolute) else value <= self.bound


class Suite:
    """A run on a server: an app of its own, whose keys it removes at the end, and nothing else of the server's."""

    def __init__(self, url: str, rows: Sequence[Row], *, durable_url: str | None, say: Callable[[str], None]) -> None:
        """Arguments:
        url: the server.
        rows: what to measure.
        durable_url: the server for the rows that need an append-only file; ``None``: the same, if it has one.
        say: told what is being done.
        """
        self.outcomes = [Outcome(row) for row in rows]
        self.server = ""
        self._url = url
        self._durable_url = durable_url
        self._say = say
        self._app = f"runnel-bench-{secrets.token_hex(4)}"
        self._filled: set[tuple[str, Shape]] = set()
        self._turns = 0

    def run(self, rounds: int) -> None:
        """Measure all rows so many times.

        Raises:
            BenchError: a measurement failed.
            RedisUnavailable: there is no server.
        """
        self.server = asyncio.run(self._ask(self._url, server_version))
        durable_url = self._durable_url or self._url
        try:
            for number in range(rounds):
                taken: dict[str, Figures | str] = {}
                for outcome in self.outcomes:
                    for side in outcome.row.sides:
                        if side.label not in taken:
                            self._say(f"round {number + 1} of {rounds}   {side.label}")
                            taken[side.label] = self._take_turn(side, durable_url if side.durable else self._url)
                    _conclude(outcome, taken)
        finally:
            for url in {self._url, durable_url}:
                asyncio.run(self._remove(url))

    def _take_turn(self, side: Side, url: str) -> Figures | str:
        if side.needs and find_spec(side.needs) is None:
            return f"{side.needs} is not installed"
        if side.durable and "aof_current_size" not in asyncio.run(self._ask(url, _persistence)):
            return "the server has no append-only file"
        if side.reads is not None and (url, side.reads) not in self._filled:
            self._filled.add((url, side.reads))
            if side.reads.events:
                measure("ours.fill", Place(url, self._app, "fill"), {"shape": side.parameters["shape"]})
        self._turns += 1
        place = Place(url, self._app, f"turn-{self._turns}")
        if not side.durable:
            figures = measure(side.function, place, side.parameters)
            if side.reads is None:  # it had a stream of its own
                asyncio.run(self._remove(url, f"{self._app}/{place.name}"))
            return figures
        before = asyncio.run(self._ask(url, _cost))
        figures = measure(side.function, place, side.parameters)
        after = asyncio.run(self._ask(url, _cost))
        assert side.reads is not None
        return figures | {name: (after[name] - before[name]) / side.reads.events for name in before}

    async def _ask(self, url: str, question: Callable[[Link], Any]) -> Any:
        link = Link(Endpoint(url))
        try:
            return await question(link)
        finally:
            await link.close()

    async def _remove(self, url: str, name: str = "") -> None:
        """Remove our keys; only those of one stream if it is given."""
        pattern = all_of_app(self._app)

        async def remove(link: Link) -> None:
            cursor = b"0"
            while True:
                cursor, keys = await link.call("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
                mine = [key for key in keys if not name or f"{{{name}".encode() in key]
                if mine:
                    await link.call("UNLINK", *mine)
                if cursor == b"0":
                    return

        await self._ask(url, remove)


async def _persistence(link: Link) -> dict[str, str]:
    return await server_facts(link, "persistence")


async def _cost(link: Link) -> Figures:
    """Bytes of the append-only file, and microseconds of CPU, so far."""
    cpu, log = await server_facts(link, "cpu"), await server_facts(link, "persistence")
    used = float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])
    return {"log_bytes": float(log["aof_current_size"]), "server_us": used * 1e6}


def _conclude(outcome: Outcome, taken: dict[str, Figures | str]) -> None:
    """Add a round to an outcome."""
    row = outcome.row
    figures = [taken[side.label] for side in row.sides]
    values: list[float] = []
    for found in figures:
        if isinstance(found, str):
            outcome.absent = found
            return
        values.append(found[row.figure])
    if isinstance(row, Series):
        sizes = [size for size, _ in row.points]
        for size, value in zip(sizes, values, strict=True):
            outcome.points.setdefault(size, []).append(value)
        # Time per event is 1 / rate; a step is linear where that grows as the size does.
        steps = zip(sizes, sizes[1:], values, values[1:], strict=False)
        outcome.values.append(max((before / after) / (larger / size) for size, larger, before, after in steps))
        outcome.ours.append(values[-1])
        return
    outcome.ours.append(values[-1])
    if isinstance(row, Ratio):
        outcome.beside.append(values[0])
        outcome.values.append(values[1] / values[0])
    else:
        outcome.values.append(values[0])
