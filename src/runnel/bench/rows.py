"""What is measured, and what it must reach. Each row compares two sides; several rows share one."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from runnel.bench.place import Shape
from runnel.errors import TargetError, did_you_mean

__all__ = ["FULL", "QUICK", "Absolute", "Ratio", "Row", "Scale", "Series", "Side", "chosen", "rows"]


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured.

    Attributes:
        events: that a side processes or sends.
        seconds: that a side takes which is measured over time.
        turns: that a side takes in a round, where a slow moment of the machine would decide. Such moments last for
            seconds. With one turn of 10 s for latencies, either side had one to itself, and the p99 at 1,000/s was 0.1
            to 5.3 times that of the bare loop. Records of 10 and 100 kB are processed in 0.3 s, at the same bytes/s,
            and the step between them was 0.7 to 1.4 of linear. With one of 1 s, middleware was 0.44 to 0.98 of the rate
            without.
    """

    events: int
    seconds: float
    turns: int


FULL = Scale(events=200_000, seconds=5.0, turns=5)
QUICK = Scale(events=10_000, seconds=1.0, turns=1)


@dataclass(frozen=True, slots=True)
class Side:
    """One measurement: a function of ``ours`` or ``bare``, run in a process of its own for each turn.

    Attributes:
        function: its name.
        parameters: as JSON has them.
        reads: what must be in the stream before.
        server: where: ``plain``; ``durable``, with an append-only file; ``tcp``, as each node of the ``cluster``;
            ``replicated``.
        needs: a module that must be installed.
        turns: how many it takes in a round; its figures are their medians.
    """

    function: str
    parameters: dict[str, Any]
    reads: Shape | None = None
    server: str = "plain"
    needs: str = ""
    turns: int = 1

    @property
    def label(self) -> str:
        """Unique among the sides."""
        words = [f"{name}={value}" for name, value in sorted(self.parameters.items()) if name != "shape"]
        if self.reads is not None:
            words.append(self.reads.name)
        return " ".join([self.function, *words, *([self.server] if self.server != "plain" else [])])

    @property
    def events(self) -> int:
        """How many it processes or sends; 0 where that is not known beforehand."""
        if "rate" in self.parameters:
            return int(self.parameters["rate"] * self.parameters["seconds"])
        return int(self.parameters.get("shape", {}).get("events", 0))


@dataclass(frozen=True, slots=True)
class Ratio:
    """Our figure divided by the one beside it, in the same round; at least or at most the bound."""

    name: str
    what: str
    figure: str
    ours: Side
    beside: Side
    bound: float | None
    at_least: bool = True

    @property
    def sides(self) -> Sequence[Side]:
        """In the order in which they take turns."""
        return (self.beside, self.ours)


@dataclass(frozen=True, slots=True)
class Absolute:
    """A figure of ours below a bound."""

    name: str
    what: str
    figure: str
    ours: Side
    bound: float

    @property
    def sides(self) -> Sequence[Side]:
        """The only one."""
        return (self.ours,)


@dataclass(frozen=True, slots=True)
class Series:
    """The rate at growing sizes. No step is worse than linear: the time per event may grow at most as the size."""

    name: str
    what: str
    points: Sequence[tuple[int, Side]]
    figure: str = "rate"

    @property
    def sides(self) -> Sequence[Side]:
        """From the smallest."""
        return tuple(side for _, side in self.points)


Row = Ratio | Absolute | Series


def _reading(function: str, shape: Shape, *, server: str = "plain", **parameters: Any) -> Side:
    return Side(function, {"shape": asdict(shape), **parameters}, shape, server)


def rows(scale: Scale) -> list[Row]:
    """All of them, in the order of the table."""
    n, seconds = scale.events, scale.seconds
    small = max(2_000, n // 4)
    all_of_it = Shape(n)
    bare = _reading("bare.process", all_of_it)
    bare_raw = _reading("bare.process", all_of_it, decode=False)
    default = _reading("ours.process", all_of_it)
    hundred = _reading("ours.process", all_of_it, prefetch_count=100)
    lists = replace(_reading("ours.process", all_of_it, style="take", prefetch_count=100), turns=scale.turns)
    middleware = replace(_reading("ours.process", all_of_it, middleware=True), turns=scale.turns)
    asked = Shape(3 * n)  # so that it is asked several times in a turn: in a second, it is once or twice
    metrics = replace(_reading("ours.process", asked, metrics=True), needs="uvicorn", turns=scale.turns)
    hot = _reading("ours.process", Shape(n, hot=True))
    sent = asdict(all_of_it)
    bare_send = Side("bare.send", {"shape": sent})
    send_many = Side("ours.send", {"shape": sent, "concurrent": False})
    idle = _reading("ours.idle", Shape(0, 256), seconds=2 * seconds)
    sends = {"sends": int(2_000 * seconds / scale.turns)}
    send_alone = Side("ours.send_alone", sends, turns=scale.turns)
    bare_cost = _reading("bare.process", Shape(small), server="durable")
    our_cost = _reading("ours.process", Shape(small), server="durable")
    burning = Shape(max(2_000, int(30_000 * seconds)))
    burn: dict[str, Any] = {"seconds": seconds, "burn_us": 200}

    # What happens once must not count, the first use of the memory for what is read ahead for instance: 80 MB of
    # records of 100 kB took 0.2 s.
    size = 160_000_000

    def latency(rate: int) -> list[Row]:
        paced = {"rate": rate, "seconds": 2 * seconds / scale.turns}
        ours, beside = (Side(f"{who}.latency", paced, turns=scale.turns) for who in ("ours", "bare"))
        return [
            Ratio(f"latency-{rate}", f"send to handler, {rate}/s, median", "median_ms", ours, beside, 1.3, False),
            Ratio(f"latency-{rate}-p99", f"send to handler, {rate}/s, p99", "p99_ms", ours, beside, 1.5, False),
            Ratio(
                f"latency-{rate}-cpu",
                "the same: CPU of the server per event, µs",
                "server_us",
                ours,
                beside,
                None,
                False,
            ),
        ]

    def cluster(name: str, what: str, figure: str, side: Side, *, at_least: bool = False) -> Ratio:
        ours, beside = (replace(side, server=server) for server in ("cluster", "tcp"))
        return Ratio(f"cluster-{name}", f"a cluster of 3 beside one: {what}", figure, ours, beside, None, at_least)

    def replica(name: str, what: str, figure: str, side: Side, *, at_least: bool = False) -> Ratio:
        beside = replace(side, server="replicated")
        ours = replace(beside, parameters=beside.parameters | {"durability": "replica"})
        return Ratio(f"replica-{name}", f"on a replica, too: {what}", figure, ours, beside, None, at_least)

    def processes(who: str, number: int) -> Side:
        return _reading(f"{who}.processes", burning, number=number, **burn)

    return [
        Ratio("process-default", "one at a time, records, default settings", "rate", default, bare, 1.2),
        Ratio("process-100", "the same, prefetch_count=100", "rate", hundred, bare, 1.7),
        Ratio("take-100", "take(100) records, prefetch_count=100", "rate", lists, bare, 2.0),
        Ratio(
            "raw-100",
            "raw events, prefetch_count=100; bare without decoding",
            "rate",
            _reading("ours.process", all_of_it, style="raw", prefetch_count=100),
            bare_raw,
            1.4,
        ),
        Ratio("middleware", "with one middleware; beside ours without", "rate", middleware, default, 0.6),
        Ratio(
            "metrics",
            "metrics, asked for each second; beside ours without",
            "rate",
            metrics,
            _reading("ours.process", asked),
            0.95,
        ),
        Ratio("hot-partition", "one hot partition; beside ours with 16", "rate", hot, default, 0.5),
        Ratio(
            "send-many",
            "send(*1000 records)",
            "rate",
            send_many,
            bare_send,
            3.5,
        ),
        Ratio(
            "send-concurrent",
            "1,000 concurrent send(record)",
            "rate",
            Side("ours.send", {"shape": sent, "concurrent": True}),
            bare_send,
            1.5,
        ),
        Ratio(
            "send-alone",
            "a lone send(record), median",
            "median_ms",
            send_alone,
            Side("bare.send_alone", sends, turns=scale.turns),
            1.3,
            False,
        ),
        *latency(200),
        *latency(1000),
        *(
            Absolute(name, what, figure, idle, bound)
            for name, what, figure, bound in (
                ("idle-cpu", "idle, 256 partitions: % of a core", "core_percent", 1.0),
                ("idle-commands", "idle, 256 partitions: commands/s", "commands", 5.0),
            )
        ),
        Absolute(
            "memory",
            "256 partitions, 200 bytes a record: MB",
            "megabytes",
            _reading("ours.memory", Shape(n, 256, 200)),
            90.0,
        ),
        Ratio("server-log", "append-only file, bytes per event", "log_bytes", our_cost, bare_cost, 1.0, False),
        Ratio("server-cpu", "CPU of the server per event, µs", "server_us", our_cost, bare_cost, 1.0, False),
        Ratio(
            "processes",
            "handler of 200 µs CPU: 2 processes beside 1",
            "rate",
            processes("ours", 2),
            processes("ours", 1),
            1.8,
        ),
        Ratio(
            "processes-bare",
            "the bare loop with that handler: 2 beside 1",
            "rate",
            processes("bare", 2),
            processes("bare", 1),
            None,
        ),
        cluster("process", "processed", "rate", default, at_least=True),
        cluster("process-cpu", "CPU of the servers per event, µs", "server_us", default),
        cluster("send", "send(*1000 records)", "rate", send_many, at_least=True),
        cluster("send-cpu", "CPU of the servers per event, µs", "server_us", send_many),
        cluster("idle-commands", "idle, 256 partitions: commands/s", "commands", idle),
        replica("process", "processed", "rate", default, at_least=True),
        replica("send", "send(*1000 records)", "rate", send_many, at_least=True),
        replica("send-alone", "a lone send(record), median", "median_ms", send_alone),
        Series("scale-events", "events", [(k, _reading("ours.process", Shape(k))) for k in (n // 16, n // 4, n)]),
        Series(
            "scale-partitions",
            "partitions, the same number of events",
            [(k, _reading("ours.process", Shape(small, k))) for k in (1, 4, 16, 64, 256)],
        ),
        Series(
            "scale-processors",
            "processors × 16 partitions, the same number of events",
            [(k * 16, _reading("ours.process", Shape(max(160, small // k)), processors=k)) for k in (1, 4, 16, 62)],
        ),
        Series(
            "scale-bytes",
            "bytes of a record",
            [
                (k, replace(_reading("ours.process", Shape(max(64, min(small, size // k)), 16, k)), turns=scale.turns))
                for k in (100, 1_000, 10_000, 100_000)
            ],
        ),
    ]


def chosen(names: Sequence[str], scale: Scale) -> list[Row]:
    """The rows of these names; all of them for none.

    Raises:
        TargetError: there is no row of that name.
    """
    every = {row.name: row for row in rows(scale)}
    for name in names:
        if name not in every:
            raise TargetError(f'There is no row "{name}".{did_you_mean(name, every)} There are: {", ".join(every)}.')
    return [row for row in every.values() if not names or row.name in names]
