"""What traces cost: the same sends and the same worker, without the setting ``otel``, and with it and a share of the
traces recorded, in turn. What is recorded goes to an exporter that drops it.

    python benchmarks/tracing.py [--events 20000] [--rounds 5]

Starts a server of its own on a unix socket. Prints the medians, in microseconds per event.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runnel import App, Record
from runnel._worker import Worker
from runnel.server import EmbeddedServer

SIDES = {"off": None, "nothing recorded": 0.0, "1 % recorded": 0.01, "all recorded": 1.0}


class Order(Record):
    order_id: int
    amount: float


def configure(share: float) -> None:
    """As a worker does, but for the exporter."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    class Drop(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    provider = TracerProvider(sampler=ParentBasedTraceIdRatio(share))
    provider.add_span_processor(BatchSpanProcessor(Drop()))
    trace.set_tracer_provider(provider)


async def measure(url: str, events: int, name: str, share: float | None) -> dict[str, float]:
    """Microseconds per event: of a ``send`` for each, a hundred at a time, and of a worker that processes them."""
    if share is not None:
        configure(share)
    app = App(name=name, redis_url=url, otel=share is not None)
    orders = app.stream("orders", record=Order, partition_by="order_id")
    seen, total = 0, 0.0

    @app.processor(orders)
    async def add(stream: Any) -> None:
        nonlocal seen, total
        async for order in stream.records():
            seen += 1
            total += order.amount
            if seen == events:
                worker.stop("all is processed")

    began = time.perf_counter()
    async with app:
        for first in range(0, events, 100):
            await asyncio.gather(*(orders.send(Order(order_id=n, amount=1.5)) for n in range(first, first + 100)))
    sent = time.perf_counter()
    worker = Worker(app)
    await worker.run()
    return {"send": (sent - began) / events * 1e6, "process": (time.perf_counter() - sent) / events * 1e6}


def main() -> None:
    """Measure each side in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side is not None:
        print(json.dumps(asyncio.run(measure(given.url, given.events, given.name, SIDES[given.side]))))
        return
    took: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer(unix_socket=Path(folder) / "server.sock") as server:
        for number in range(given.rounds):
            for place, side in enumerate(SIDES):
                command = [sys.executable, __file__, "--events", str(given.events), "--side", side]
                command += ["--url", server.url, "--name", f"tracing-{number}-{place}"]
                took[side].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
        print(f"{given.events:,} events, {given.rounds} rounds, {server.version}; microseconds per event")
    for side, rounds in took.items():
        shown = "".join(f"{what} {statistics.median(one[what] for one in rounds):6.1f}   " for what in rounds[0])
        print(f"{side:<17} {shown}".rstrip())


if __name__ == "__main__":
    main()
