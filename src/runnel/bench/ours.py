"""The same measurements with Runnel."""

import asyncio
import gc
import resource
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any

from runnel import App
from runnel._redis.link import Link
from runnel._redis.queries import command_calls, position
from runnel._worker import Worker, tune_collector
from runnel.bench.bare import burn
from runnel.bench.children import Children
from runnel.bench.figures import latencies
from runnel.bench.place import Order, Place, Shape, Span
from runnel.interfaces import Middleware
from runnel.streams import Stream

__all__ = ["fill", "idle", "latency", "memory", "pace", "process", "processes", "send", "send_alone"]


class PassOn(Middleware):
    """A user's middleware at its simplest."""

    async def handler(self, parent: AsyncGenerator[Any, None], **kwargs: Any) -> AsyncGenerator[Any, None]:
        """Everything, as it comes."""
        async for x in parent:
            yield x


async def fill(place: Place, shape: dict[str, Any]) -> dict[str, float]:
    """Send the events that both sides read."""
    of = Shape(**shape)
    app, orders = place.stream(of)
    at_once = max(1, min(4000, 4_000_000 // max(of.size, 100)))
    async with app:
        for first in range(0, of.events, at_once):
            await orders.send(*of.orders(first, at_once))
    return {}


async def process(
    place: Place,
    shape: dict[str, Any],
    style: str = "records",
    prefetch_count: int | None = None,
    middleware: bool = False,
    processors: int = 1,
    metrics: bool = False,
    durability: str = "primary",
) -> dict[str, float]:
    """A worker, from its first event to its last commit and its leave.

    Arguments:
        style: ``records`` one at a time, ``raw`` events one at a time, or lists of records by ``take``.
        middleware: whether there is one.
        processors: how many there are; each processes all the events.
        metrics: whether processing is measured, and health and metrics are served and asked for.
        durability: of commits.
    """
    of = Shape(**shape)
    settings = {"durability": durability} | ({} if prefetch_count is None else {"prefetch_count": prefetch_count})
    app, orders = place.stream(of, **settings)
    wanted = of.events * processors
    seen, total = 0, 0.0
    span: Span | None = None

    def saw(number: int) -> None:
        nonlocal seen, span
        if span is None:
            span = Span()
        seen += number
        if seen == wanted:
            worker.stop("all is processed")

    async def records(events: Any) -> None:
        nonlocal total
        async for order in events.records():
            total += order.amount
            saw(1)

    async def raw(events: Any) -> None:
        async for _ in events:
            saw(1)

    async def take(events: Any) -> None:
        nonlocal total
        async for orders in events.take(100, within=0.005).records():
            for order in orders:
                total += order.amount
            saw(len(orders))

    function = {"records": records, "raw": raw, "take": take}[style]
    for number in range(processors):
        app.processor(orders, name=f"{place.name}-{number}", middleware=[PassOn()] if middleware else [])(function)
    worker = Worker(app, measured=metrics)
    async with _scraped(worker) if metrics else nullcontext():
        await worker.run()
        assert seen == wanted, f"processed {seen} of {wanted}"
        assert span is not None
        return span.rate(seen)


SCRAPE = """
import sys, time, urllib.request
while True:
    urllib.request.urlopen(sys.argv[1]).read()
    print(flush=True)
    time.sleep(1)
"""


@asynccontextmanager
async def _scraped(worker: Worker) -> AsyncIterator[None]:
    """With metrics that another process asks for once a second; Prometheus does it every 15 or 30."""
    from runnel.telemetry.http import HealthServer

    health = HealthServer(worker, "127.0.0.1", 0)
    tune_collector()  # as `runnel worker` does: behind all imports
    health.start()
    asking = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-c", SCRAPE, f"{health.url}/metrics", stdout=asyncio.subprocess.PIPE
    )
    assert asking.stdout is not None
    await asking.stdout.readline()
    yield
    asking.kill()
    await asking.communicate()
    await health.stop()


async def send(place: Place, shape: dict[str, Any], concurrent: bool, durability: str = "primary") -> dict[str, float]:
    """``send`` of 1,000 records, or 1,000 concurrent ``send`` of one."""
    of = Shape(**shape)
    app, orders = place.fresh(durability=durability)
    records = of.orders(0, of.events)
    gc.freeze()  # what was prepared for the measurement is not to be looked through by it
    async with app:
        span = Span()
        for first in range(0, len(records), 1000):
            thousand = records[first : first + 1000]
            if concurrent:
                await asyncio.gather(*(orders.send(record) for record in thousand))
            else:
                await orders.send(*thousand)
        return span.rate(of.events)


async def send_alone(place: Place, sends: int, durability: str = "primary") -> dict[str, float]:
    """One awaited ``send`` at a time."""
    app, orders = place.fresh(durability=durability)
    took = []
    async with app:
        for record in Shape(sends).orders(0, sends):
            started = time.perf_counter()
            await orders.send(record)
            took.append(time.perf_counter() - started)
    return latencies(took)


async def latency(place: Place, rate: int, seconds: float) -> dict[str, float]:
    """From a ``send`` in another process to the handler of a worker."""
    app, orders = place.fresh()
    wanted = int(rate * seconds)
    took: list[float] = []

    @app.processor(orders)
    async def handler(events: Any) -> None:
        async for order in events.records():
            took.append((time.monotonic_ns() - order.sent_ns) / 1e9)
            if len(took) == wanted:
                worker.stop("all is processed")

    worker = Worker(app)
    running = asyncio.create_task(worker.run())
    await _owning(app, orders, "handler")
    with Children() as children:
        children.start("ours.pace", place, rate=rate, sends=wanted)
        await running
    return latencies(took)


async def pace(place: Place, rate: int, sends: int) -> dict[str, float]:
    """Send at a steady rate, each with the time of its sending."""
    app, orders = place.fresh()
    async with app:
        due = time.monotonic()
        for record in Shape(sends).orders(0, sends):
            due += 1 / rate
            await asyncio.sleep(due - time.monotonic())
            record.sent_ns = time.monotonic_ns()
            await orders.send(record)
    return {}


async def idle(place: Place, shape: dict[str, Any], seconds: float) -> dict[str, float]:
    """A worker that owns partitions in which nothing happens: its share of a core, and what it asks of the server."""
    app, orders = place.stream(Shape(**shape))

    @app.processor(orders, name=place.name)
    async def handler(events: Any) -> None:
        async for _ in events:
            pass

    worker = Worker(app)
    running = asyncio.create_task(worker.run())
    await _owning(app, orders, place.name)
    await asyncio.sleep(1.0)  # it looks into each partition first: 256 reads within some 60 ms
    links = [primary.link() for primary in await app.endpoint.primaries()]
    calls, cpu, started = await _calls(links), time.process_time(), time.monotonic()
    await asyncio.sleep(seconds)
    cpu, elapsed = time.process_time() - cpu, time.monotonic() - started
    asked = await _calls(links) - calls
    for link in links:
        await link.close()
    worker.stop("measured")
    await running
    return {"core_percent": cpu / elapsed * 100, "commands": asked / elapsed}


async def _calls(links: Sequence[Link]) -> int:
    """Commands so far. Ours are scripts and reads; within a script nothing of the kind is called."""
    return sum([await command_calls(link) for link in links])


async def memory(place: Place, shape: dict[str, Any]) -> dict[str, float]:
    """A worker whose buffers are full: the most memory that it ever had."""
    of = Shape(**shape)
    app, orders = place.stream(of)
    seen = 0

    @app.processor(orders, name=place.name)
    async def handler(events: Any) -> None:
        nonlocal seen
        async for _ in events.records():
            seen += 1
            if seen >= of.events:
                worker.stop("all is processed")
            elif seen % 200 == 0:
                await asyncio.sleep(0.001)  # slower than the reader, so that it has read ahead

    worker = Worker(app)
    await worker.run()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"megabytes": most / (1e6 if sys.platform == "darwin" else 1e3)}


async def processes(place: Place, shape: dict[str, Any], number: int, seconds: float, burn_us: int) -> dict[str, float]:
    """Several workers, each with a handler that takes CPU; what they commit in a while."""
    of = Shape(**shape)
    app, orders = place.stream(of)
    with Children() as children:
        for _ in range(number):
            children.start("ours.work", place, shape=shape, burn_us=burn_us)
        await _owning(app, orders, place.name, workers=number)
        await asyncio.sleep(0.5)
        before, span = await _committed(app, orders, place.name), Span()
        await asyncio.sleep(seconds)
        return span.rate(await _committed(app, orders, place.name) - before)


async def work(place: Place, shape: dict[str, Any], burn_us: int) -> dict[str, float]:
    """One of those workers; goes on until it is killed."""
    app, orders = place.stream(Shape(**shape))

    @app.processor(orders, name=place.name)
    async def handler(events: Any) -> None:
        async for _ in events.records():
            burn(burn_us)

    await Worker(app).run()
    return {}


async def _owning(app: App, stream: Stream[Order], processor: str, workers: int = 1) -> None:
    """Wait until so many workers share all partitions."""
    from runnel._redis.keys import ControlKeys

    owners = ControlKeys.of(app.name, stream.name, processor).owners
    link = app.endpoint.link()
    while True:
        found = {owner.split(b"|")[0] for owner in await link.at(owners).call("HVALS", owners)}
        held = [await position(link, stream.keys, processor, p) for p in range(stream.partition_count)]
        if len(found) == workers and None not in held:
            break
        await asyncio.sleep(0.02)
    await link.close()


async def _committed(app: App, stream: Stream[Order], processor: str) -> int:
    link = app.endpoint.link()
    held = [await position(link, stream.keys, processor, p) for p in range(stream.partition_count)]
    await link.close()
    return sum(item[1] for item in held if item is not None)
