"""Runs rows in rounds.

In each round the sides of a row take their turns right one after the other, so that both sides of a ratio see the same
machine; every second time the other way round. Rows that compare the same sides share their turns.
"""

import asyncio
import secrets
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TypeVar

from runnel._redis.keys import all_of_app
from runnel._redis.link import Link
from runnel._redis.queries import server_facts, server_version
from runnel._redis.topology import endpoint_for
from runnel.bench.children import measure
from runnel.bench.place import Place, Shape
from runnel.bench.rows import Absolute, Ratio, Row, Series, Side

__all__ = ["Outcome", "Suite"]

T = TypeVar("T")

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
    """A run on servers: an app of its own, whose keys it removes at the end, and nothing else of theirs."""

    def __init__(self, servers: Mapping[str, str], rows: Sequence[Row], *, say: Callable[[str], None]) -> None:
        """Arguments:
        servers: URLs by what :attr:`Side.server` names. Sides whose server is missing are not measured.
        rows: what to measure.
        say: told what is being done.
        """
        self.outcomes = [Outcome(row) for row in rows]
        self.server = ""
        self._servers = servers
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
        [self.server, *_] = self._ask(self._servers["plain"], server_version)
        try:
            for number in range(rounds):
                turns: dict[tuple[str, ...], dict[str, Figures | str]] = {}
                for outcome in self.outcomes:
                    together = tuple(side.label for side in outcome.row.sides)
                    if together not in turns:
                        turns[together] = self._take_turns(outcome.row.sides, number, rounds)
                    _conclude(outcome, turns[together])
        finally:
            for url in set(self._servers.values()):
                self._remove(url)

    def _take_turns(self, sides: Sequence[Side], number: int, rounds: int) -> dict[str, Figures | str]:
        """A round of those that are compared, by their labels."""
        taken: dict[str, list[Figures | str]] = {side.label: [] for side in sides}
        for turn in range(max(side.turns for side in sides)):
            for side in sides[:: -1 if (number + turn) % 2 else 1]:
                self._say(f"round {number + 1} of {rounds}   {side.label}")
                taken[side.label].append(self._take_turn(side))
        return {label: _medians(figures) for label, figures in taken.items()}

    def _take_turn(self, side: Side) -> Figures | str:
        if side.needs and find_spec(side.needs) is None:
            return f"{side.needs} is not installed"
        url = self._servers.get(side.server)
        if url is None:
            return "only with --embedded"
        if side.function.startswith("bare.") and "+" in url.partition("://")[0]:
            return "the loop beside it knows one server only"
        if side.server == "durable" and "log_bytes" not in self._cost(url):
            return "the server has no append-only file"
        if side.reads is not None and (url, side.reads) not in self._filled:
            self._filled.add((url, side.reads))
            if side.reads.events:
                measure("ours.fill", Place(url, self._app, "fill"), {"shape": side.parameters["shape"]})
        self._turns += 1
        place = Place(url, self._app, f"turn-{self._turns}")
        before = self._cost(url)
        figures = measure(side.function, place, side.parameters)
        after = self._cost(url)
        if side.reads is None:  # it had a stream of its own
            self._remove(url, f"{self._app}/{place.name}")
        if side.events:
            figures |= {name: (after[name] - before[name]) / side.events for name in before}
        return figures

    def _ask(self, url: str, question: Callable[[Link], Awaitable[T]]) -> list[T]:
        """The answer of each server."""

        async def ask() -> list[T]:
            answers = []
            for primary in await endpoint_for(url).primaries():
                link = primary.link()
                try:
                    answers.append(await question(link))
                finally:
                    await link.close()
            return answers

        return asyncio.run(ask())

    def _cost(self, url: str) -> Figures:
        """What servers say that their work has cost so far."""
        return {name: sum(one[name] for one in found) for found in [self._ask(url, _cost)] for name in found[0]}

    def _remove(self, url: str, name: str = "") -> None:
        """Remove our keys; only those of one stream if it is given."""
        pattern = all_of_app(self._app)

        async def remove(link: Link) -> None:
            cursor = b"0"
            while True:
                cursor, keys = await link.call("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
                for key in keys:  # on a cluster, each is in a slot of its own
                    if not name or f"{{{name}".encode() in key:
                        await link.call("UNLINK", key)
                if cursor == b"0":
                    return

        self._ask(url, remove)


async def _cost(link: Link) -> Figures:
    """Microseconds of CPU, and bytes of the append-only file if there is one."""
    cpu, log = await server_facts(link, "cpu"), await server_facts(link, "persistence")
    used = float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])
    size = {"log_bytes": float(log["aof_current_size"])} if "aof_current_size" in log else {}
    return {"server_us": used * 1e6, **size}


def _medians(turns: Sequence[Figures | str]) -> Figures | str:
    """Of each figure; why there are none, where a turn could not be taken."""
    figures = [turn for turn in turns if not isinstance(turn, str)]
    if len(figures) < len(turns):
        return next(turn for turn in turns if isinstance(turn, str))
    return {name: statistics.median([one[name] for one in figures]) for name in figures[0]}


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
