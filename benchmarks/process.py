"""Processing one event at a time, beside the loop that an expert would write by hand with redis-py.

Both process the same events from the same server, in processes of their own, in turn: bare, Runnel, bare, Runnel, ...
The bare loop reads 100 entries of each of 16 partitions with XREADGROUP, decodes them with the same pydantic model,
and acknowledges with one pipelined XACK per partition and round. Runnel runs a worker with default settings.

    python benchmarks/process.py [--events 200000] [--rounds 5] [--json]

Starts a server of its own on a unix socket, and exits with status 1 if the ratio is below --at-least.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from runnel import App, Record
from runnel._worker import Worker
from runnel.server import EmbeddedServer

PARTITIONS = 16
BARE_COUNT = 100


class Order(Record):
    """About what an application sends."""

    order_id: int
    customer: str
    amount: float


def declare(url: str, prefetch_count: int) -> tuple[App, Any]:
    """The app under test."""
    app = App(name="bench", redis_url=url, partition_count=PARTITIONS, partition_size=0, prefetch_count=prefetch_count)
    return app, app.stream("orders", record=Order, partition_by="order_id")


async def fill(url: str, events: int) -> None:
    """Send the events once; both sides read the same entries."""
    app, orders = declare(url, 8)
    async with app:
        for first in range(0, events, 4000):
            batch = range(first, min(first + 4000, events))
            await orders.send(*(Order(order_id=i, customer=f"customer-{i % 977}", amount=i / 4) for i in batch))


async def runnel(url: str, events: int, prefetch_count: int, processor: str) -> float:
    """Events per second of a worker, from the first event to the last commit."""
    app, orders = declare(url, prefetch_count)
    seen = 0
    total = 0.0
    started = 0.0

    @app.processor(orders, name=processor)
    async def work(stream: Any) -> None:
        nonlocal seen, total, started
        async for order in stream.records():
            if not seen:
                started = time.perf_counter()
            seen += 1
            total += order.amount
            if seen == events:
                worker.stop("all events processed")

    worker = Worker(app)
    await worker.run()
    assert seen == events, f"processed {seen} of {events}"
    return events / (time.perf_counter() - started)


async def bare(url: str, events: int, group: str) -> float:
    """Events per second of a hand-written loop, from the first event to the last acknowledgement."""
    import redis.asyncio

    _, orders = declare(url, 8)
    client = redis.asyncio.Redis.from_url(url, protocol=2)
    logs = [orders.keys.log(partition) for partition in range(PARTITIONS)]
    for log in logs:
        await client.xgroup_create(log, group, "0")
    wanted: Any = dict.fromkeys(logs, ">")
    decode = Order.model_validate_json
    seen = 0
    total = 0.0
    started = time.perf_counter()
    while seen < events:
        answer: Any = await client.xreadgroup(group, "bench", wanted, count=BARE_COUNT, block=1000)
        async with client.pipeline(transaction=False) as pipeline:
            for log, entries in answer:
                for _, fields in entries:
                    order = decode(fields[b"data"])
                    total += order.amount
                    seen += 1
                pipeline.xack(log, group, *(entry_id for entry_id, _ in entries))
            await pipeline.execute()
    rate = events / (time.perf_counter() - started)
    await client.aclose()
    return rate


def run_here(side: str, url: str, events: int, name: str) -> None:
    """One measurement, in this process; prints the rate."""
    import uvloop

    kind, _, prefetch = side.partition(":")
    measured = bare(url, events, name) if kind == "bare" else runnel(url, events, int(prefetch), name)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(runner.run(measured))


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--at-least", type=float, default=0.7, help="ratio of the default settings to the bare loop")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        run_here(given.side, given.url, given.events, given.name)
        return 0

    sides = ("bare", "runnel:8", "runnel:100")
    rates: dict[str, list[float]] = {side: [] for side in sides}
    with (
        tempfile.TemporaryDirectory() as directory,
        EmbeddedServer(unix_socket=Path(directory) / "redis.sock") as server,
    ):
        asyncio.run(fill(server.url, given.events))
        for number in range(given.rounds):
            for side in sides:
                command = [sys.executable, __file__, "--side", side, "--url", server.url]
                command += ["--events", str(given.events), "--name", f"{side}-{number}"]
                rates[side].append(float(subprocess.run(command, check=True, capture_output=True).stdout))
        version = server.version
    medians = {side: statistics.median(values) for side, values in rates.items()}
    ratios = {
        side: statistics.median(ours / theirs for ours, theirs in zip(rates[side], rates["bare"], strict=True))
        for side in sides
    }
    if given.json:
        print(json.dumps({"server": version, "events": given.events, "rates": rates, "ratios": ratios}))
    else:
        print(f"{given.events:,} events, {PARTITIONS} partitions, {given.rounds} rounds, {version}")
        for side in sides:
            low, high = min(rates[side]), max(rates[side])
            print(f"{side:<12} {medians[side]:>10,.0f} events/s  ({low:,.0f} to {high:,.0f})  x {ratios[side]:.2f}")
    return 0 if ratios["runnel:8"] >= given.at_least else 1


if __name__ == "__main__":
    sys.exit(main())
