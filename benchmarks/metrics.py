"""What metrics cost: the same worker over the same events, with and without them, in turn: without, with, without, ...

With metrics, processing is measured, and health and metrics are served on their thread and scraped once a second. The
ratio is the median of the rounds' ratios.

    python benchmarks/metrics.py [--events 200000] [--rounds 7] [--json]

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
import urllib.request
from pathlib import Path
from typing import Any

from process import declare, fill

from runnel._worker import Worker
from runnel.server import EmbeddedServer

SCRAPE = 1.0
"""Seconds. Prometheus scrapes every 15 or 30."""


async def measure(url: str, events: int, prefetch_count: int, processor: str, *, metrics: bool) -> float:
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

    worker = Worker(app, measured=metrics)
    if not metrics:
        await worker.run()
        return events / (time.perf_counter() - started)
    from runnel.telemetry.http import HealthServer

    health = HealthServer(worker, "127.0.0.1", 0)
    health.start()

    async def scrape() -> None:
        while True:
            await asyncio.to_thread(lambda: urllib.request.urlopen(f"{health.url}/metrics").read())
            await asyncio.sleep(SCRAPE)

    scraping = asyncio.create_task(scrape())
    await worker.run()
    rate = events / (time.perf_counter() - started)
    scraping.cancel()
    await health.stop()
    return rate


def run_here(side: str, url: str, events: int, name: str) -> None:
    """One measurement, in this process; prints the rate."""
    import uvloop

    kind, _, prefetch = side.partition(":")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(runner.run(measure(url, events, int(prefetch), name, metrics=kind == "with")))


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--at-least", type=float, default=0.95, help="ratio of with to without, default settings")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        run_here(given.side, given.url, given.events, given.name)
        return 0

    sides = ("without:8", "with:8", "without:100", "with:100")
    rates: dict[str, list[float]] = {side: [] for side in sides}
    with (
        tempfile.TemporaryDirectory() as directory,
        EmbeddedServer(unix_socket=Path(directory) / "redis.sock") as server,
    ):
        asyncio.run(fill(server.url, given.events))
        for number in range(given.rounds):
            # Who comes first changes, so that whatever drifts does not favour one side.
            for side in sides if number % 2 else (sides[1], sides[0], sides[3], sides[2]):
                command = [sys.executable, __file__, "--side", side, "--url", server.url]
                command += ["--events", str(given.events), "--name", f"{side}-{number}"]
                rates[side].append(float(subprocess.run(command, check=True, capture_output=True).stdout))
        version = server.version
    ratios = {
        prefetch: statistics.median(
            measured / plain
            for measured, plain in zip(rates[f"with:{prefetch}"], rates[f"without:{prefetch}"], strict=True)
        )
        for prefetch in ("8", "100")
    }
    if given.json:
        print(json.dumps({"server": version, "events": given.events, "rates": rates, "ratios": ratios}))
    else:
        print(f"{given.events:,} events, {given.rounds} rounds, {version}")
        for side in sides:
            low, high = min(rates[side]), max(rates[side])
            print(f"{side:<12} {statistics.median(rates[side]):>10,.0f} events/s  ({low:,.0f} to {high:,.0f})")
        for prefetch, ratio in ratios.items():
            print(f"with / without, prefetch_count {prefetch}: {ratio:.3f}")
    return 0 if ratios["8"] >= given.at_least else 1


if __name__ == "__main__":
    sys.exit(main())
