"""What a play is."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from random import Random

from faults.checker import Violation
from faults.history import History
from faults.proxy import Proxy
from faults.stage import Process, Stage


@dataclass
class Scene:
    """A stage on which a play is under way.

    Attributes:
        stage: the processes and the server.
        rng: seeded; every choice of a play comes from it.
        seconds: for how long to play.
        proxied: whether processes connect through a proxy of their own.
        proxies: by worker or producer, where the play wants them.
        figures: what the play has measured, by name; seconds or numbers.
        orders: how many orders were given to producers.
        began: when everything ran, and the play began.
        ended: when everything was handled, and the workers were told to stop.
        orders: which orders to producers were carried out: file and entry.
    """

    stage: Stage
    rng: Random
    seconds: float
    proxied: bool
    proxies: dict[Process, Proxy] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    orders: int = 0
    began: float = 0.0
    ended: float = 0.0

    def one(self) -> Process:
        """A worker that runs."""
        return self.rng.choice(self.stage.alive)

    def some(self, most: int) -> list[Process]:
        """Up to so many of them."""
        alive = self.stage.alive
        return self.rng.sample(alive, min(len(alive), self.rng.randint(1, most)))


def _no_more(history: History, scene: Scene) -> Iterable[Violation]:
    return ()


@dataclass(frozen=True)
class Play:
    """A fault, and what must hold besides C1 to C9.

    Attributes:
        number: F1 to F18.
        title: what is done.
        act: does it, on a stage where everything runs already.
        judge: further checks.
        seconds: for how long, by default.
        workers: how many.
        producers: kind and events per second of each.
        session: seconds; ``None`` for the product's default.
        proxied: everybody connects through a proxy of their own.
        server: further arguments of the server.
        append_only: the server keeps its data on disk.
        faketime: the server runs under libfaketime.
        environment: of workers and producers.
    """

    number: str
    title: str
    act: Callable[[Scene], Awaitable[None]]
    judge: Callable[[History, Scene], Iterable[Violation]] = _no_more
    seconds: float = 20.0
    workers: int = 4
    producers: tuple[tuple[str, float], ...] = (("flights", 120.0), ("synthetic", 120.0), ("synthetic", 120.0))
    session: float | None = 3.0
    proxied: bool = False
    server: tuple[str, ...] = ()
    append_only: bool = False
    faketime: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
