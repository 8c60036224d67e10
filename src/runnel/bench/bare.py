"""The loops that an expert writes by hand with redis-py, hiredis and uvloop; what Runnel is compared with.

The only module outside ``_redis`` that imports redis-py: what it does must not go through anything of ours.
"""

import asyncio
import gc
import os
import time
from typing import Any

import redis.asyncio

from runnel.bench.children import Children
from runnel.bench.figures import latencies
from runnel.bench.place import Order, Place, Shape, Span

__all__ = ["latency", "pace", "process", "processes", "send", "send_alone"]

COUNT = 100
"""Entries per partition and read. More is not faster for this loop."""


def _client(place: Place) -> Any:
    return redis.asyncio.Redis.from_url(place.url, protocol=2)


async def process(place: Place, shape: dict[str, Any], decode: bool = True) -> dict[str, float]:
    """Read with XREADGROUP, acknowledge with one pipelined XACK per partition and round."""
    of = Shape(**shape)
    _, orders = place.stream(of)
    client = _client(place)
    logs = [orders.keys.log(partition) for partition in range(of.partitions)]
    for log in logs:
        await client.xgroup_create(log, place.name, "0", mkstream=True)
    wanted = dict.fromkeys(logs, ">")
    validate = Order.model_validate_json
    seen, total = 0, 0.0
    span = Span()
    while seen < of.events:
        answer: Any = await client.xreadgroup(place.name, "bench", wanted, count=COUNT, block=1000)
        async with client.pipeline(transaction=False) as pipeline:
            for log, entries in answer:
                for _, fields in entries:
                    if decode:
                        total += validate(fields[b"data"]).amount
                    seen += 1
                pipeline.xack(log, place.name, *(entry_id for entry_id, _ in entries))
            await pipeline.execute()
    figures = span.rate(seen)
    for log in logs:
        await client.xgroup_destroy(log, place.name)
    await client.aclose()
    return figures


async def send(place: Place, shape: dict[str, Any]) -> dict[str, float]:
    """Write with a pipeline of 1,000 XADD; what it writes is encoded and routed beforehand."""
    of = Shape(**shape)
    _, orders = place.fresh()
    client = _client(place)
    entries = [(orders.keys.log(o.order_id % 16), {b"data": o.model_dump_json()}) for o in of.orders(0, of.events)]
    gc.freeze()  # what was prepared for the measurement is not to be looked through by it
    span = Span()
    for first in range(0, len(entries), 1000):
        async with client.pipeline(transaction=False) as pipeline:
            for log, fields in entries[first : first + 1000]:
                pipeline.xadd(log, fields)
            await pipeline.execute()
    figures = span.rate(of.events)
    await client.aclose()
    return figures


async def send_alone(place: Place, sends: int) -> dict[str, float]:
    """One awaited XADD at a time."""
    _, orders = place.fresh()
    client = _client(place)
    took = []
    for order in Shape(sends).orders(0, sends):
        started = time.perf_counter()
        await client.xadd(orders.keys.log(order.order_id % 16), {b"data": order.model_dump_json()})
        took.append(time.perf_counter() - started)
    await client.aclose()
    return latencies(took)


async def latency(place: Place, rate: int, seconds: float) -> dict[str, float]:
    """From an XADD in another process to a loop of XREAD BLOCK that decodes."""
    _, orders = place.fresh()
    client = _client(place)
    cursors: Any = {orders.keys.log(partition).encode(): b"0-0" for partition in range(16)}
    validate = Order.model_validate_json
    took: list[float] = []
    wanted = int(rate * seconds)
    with Children() as children:
        children.start("bare.pace", place, rate=rate, sends=wanted)
        while len(took) < wanted:
            for log, entries in await client.xread(cursors, count=COUNT, block=5000):
                for _, fields in entries:
                    sent = validate(fields[b"data"]).sent_ns
                    took.append((time.monotonic_ns() - sent) / 1e9)
                cursors[log] = entries[-1][0]
    await client.aclose()
    return latencies(took)


async def pace(place: Place, rate: int, sends: int) -> dict[str, float]:
    """Send at a steady rate, each with the time of its sending."""
    _, orders = place.fresh()
    client = _client(place)
    await client.ping()
    due = time.monotonic()
    for order in Shape(sends).orders(0, sends):
        due += 1 / rate
        await asyncio.sleep(due - time.monotonic())
        order.sent_ns = time.monotonic_ns()
        await client.xadd(orders.keys.log(order.order_id % 16), {b"data": order.model_dump_json()})
    await client.aclose()
    return {}


async def processes(place: Place, shape: dict[str, Any], number: int, seconds: float, burn_us: int) -> dict[str, float]:
    """Several processes of one consumer group, each with a handler that takes CPU; what they acknowledge in a while."""
    of = Shape(**shape)
    _, orders = place.stream(of)
    client = _client(place)
    logs = [orders.keys.log(partition) for partition in range(of.partitions)]
    for log in logs:
        await client.xgroup_create(log, place.name, "0", mkstream=True)

    async def acknowledged() -> int:
        groups = [group for log in logs for group in await client.xinfo_groups(log)]
        return sum(group["entries-read"] - group["pending"] for group in groups if group["name"] == place.name.encode())

    with Children() as children:
        for _ in range(number):
            children.start("bare.work", place, shape=shape, burn_us=burn_us)
        while len(await client.xinfo_consumers(logs[0], place.name)) < number:  # noqa: ASYNC110  another process
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        before, span = await acknowledged(), Span()
        await asyncio.sleep(seconds)
        figures = span.rate(await acknowledged() - before)
    for log in logs:
        await client.xgroup_destroy(log, place.name)
    await client.aclose()
    return figures


async def work(place: Place, shape: dict[str, Any], burn_us: int) -> dict[str, float]:
    """One of those processes; goes on until it is killed. Smaller reads, or one of them would have it all."""
    of = Shape(**shape)
    _, orders = place.stream(of)
    client = _client(place)
    wanted: Any = {orders.keys.log(partition): ">" for partition in range(of.partitions)}
    validate = Order.model_validate_json
    while True:
        answer: Any = await client.xreadgroup(place.name, str(os.getpid()), wanted, count=8, block=1000)
        async with client.pipeline(transaction=False) as pipeline:
            for log, entries in answer:
                for _, fields in entries:
                    validate(fields[b"data"])
                    burn(burn_us)
                pipeline.xack(log, place.name, *(entry_id for entry_id, _ in entries))
            await pipeline.execute()


def burn(microseconds: int) -> None:
    """Take CPU time of this thread: on a busy machine, that is longer than the same time on a clock."""
    until = time.thread_time_ns() + microseconds * 1000
    while time.thread_time_ns() < until:
        pass
