"""What a play is."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from faults.checker import Violation
from faults.history import History
from faults.places import Place
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
        began: when everything ran, and the play began.
        ended: when everything was handled, and the workers were told to stop.
        orders: how many orders were given to producers.
    """

    stage: Stage
    rng: Random
    seconds: float
    proxied: bool
    proxies: dict[Process, Proxy] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    began: float = 0.0
    ended: float = 0.0
    orders: int = 0

    async def start_worker(self) -> Process:
        """One more worker, with a proxy of its own where the play wants that."""
        return await self._through(self.stage.start_worker)

    async def start_producer(self, kind: str, rate: float) -> Process:
        """One more producer; the same."""
        return await self._through(lambda url: self.stage.start_producer(kind, rate, url))

    async def _through(self, start: Callable[[str | None], Process]) -> Process:
        if not self.proxied:
            return start(None)
        proxy = await Proxy(int(self.stage.place.url.rsplit(":", 1)[1])).start()
        process = start(proxy.url)
        self.proxies[process] = proxy
        return process

    def one(self) -> Process:
        """A worker that runs."""
        return self.rng.choice(self.stage.alive)

    def some(self, most: int) -> list[Process]:
        """Up to so many of them."""
        alive = self.stage.alive
        return self.rng.sample(alive, min(len(alive), self.rng.randint(1, most)))


async def order(scene: Scene, body: str) -> tuple[int, float]:
    """Have a producer send an event of this kind, and wait until it was handled. Returns by which process, and when."""
    return await carried_out(scene, give(scene, body))


def give(scene: Scene, body: str) -> int:
    """Have a producer send an event of this kind. Returns the number of the order, which is the end of the body."""
    scene.orders += 1
    files = [scene.stage.directory / f"p{n}.orders" for n in range(len(scene.stage.producers))]
    free = [path for path in files if not path.exists()]  # the others have not taken their last order yet
    file = scene.rng.choice(free or files)
    draft = file.with_suffix(".draft")
    draft.write_text(f"{body} {scene.orders}")
    draft.rename(file)  # a producer that finds it, finds it whole
    return scene.orders


async def carried_out(scene: Scene, number: int) -> tuple[int, float]:
    """Wait until an order was handled. Returns by which process, and when (monotonic)."""

    def done() -> tuple[tuple[int, float]] | None:
        for path in scene.stage.directory.glob("worker-*.journal"):
            for line in path.read_text().splitlines():
                if line.startswith("X ") and line.endswith(f" {number}"):
                    return ((int(path.stem.split("-")[1]), float(line.split(" ")[1])),)
        return None

    by: tuple[int, float] = await scene.stage.until(done, f"order {number} was not carried out")
    return by


def _no_more(history: History, scene: Scene) -> Iterable[Violation]:
    return ()


@dataclass(frozen=True)
class Play:
    """A fault, and what must hold besides C1 to C9.

    Attributes:
        number: F1 to F18; where there are several, with a word behind it.
        title: what is done.
        act: does it, on a stage where everything runs already.
        judge: further checks.
        seconds: for how long, by default.
        workers: how many.
        producers: kind and events per second of each.
        session: seconds; ``None`` for the product's default.
        proxied: everybody connects through a proxy of their own.
        place: makes the servers, with a server program, where there are several; then those below do not count.
        server: further arguments of the server.
        append_only: the server keeps its data on disk.
        clock: the time of day of the server can be set.
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
    place: Callable[[str | Path | None], Place] | None = None
    server: tuple[str, ...] = ()
    append_only: bool = False
    clock: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
