"""What an app sends through, on one event loop."""

import asyncio
import random
from collections.abc import Awaitable, Sequence
from typing import Any

from runnel._core.backoff import delays
from runnel._redis.durability import confirmation
from runnel._redis.link import Endpoint
from runnel._redis.patience import patiently
from runnel._redis.producer import Producer
from runnel._redis.scripts import AppendStatus, Batch, append
from runnel.instruments import Instruments
from runnel.streams import Stream

__all__ = ["Outbox"]

ONCE_EXPIRY = 7 * 24 * 3600 * 1000
"""Milliseconds for which it is remembered that something was sent once: longer than it takes to mend a deployment."""


class Outbox:
    """One link, and a producer per stream, made when something is sent to it first."""

    def __init__(self, endpoint: Endpoint, instruments: Instruments) -> None:
        self._instruments = instruments
        self._link = endpoint.link()
        self._producers: dict[str, Producer] = {}

    def send(self, stream: Stream[Any], items: Sequence[tuple[int, Sequence[bytes]]]) -> Awaitable[Sequence[str]]:
        producer = self._producers.get(stream.name)
        if producer is None:
            link = self._link
            producer = Producer(
                link,
                stream.options.limits,
                confirmation(stream.options.durability),
                self._instruments,
                lambda: stream.declare(link),
            )
            self._producers[stream.name] = producer
        return producer.send(items)

    async def send_once(self, stream: Stream[Any], partition: int, entry: Sequence[bytes], origin: str) -> None:
        limits = stream.options.limits
        batch = Batch(partition, origin, 1, 0, [entry])

        async def attempt() -> bool:
            keys = await stream.declare(self._link)
            answers = await append(
                self._link,
                keys,
                keys.slot_group(partition),
                [batch],
                limit=limits.partition_size,
                trim=limits.on_full == "trim",
                expiry=ONCE_EXPIRY,
                confirm=confirmation(stream.options.durability),
            )
            return answers[0].status is not AppendStatus.FULL

        for delay in delays(0.02, 1.0, random.random):
            if await patiently(f"send to {stream.name}", attempt, self._instruments):
                return
            await asyncio.sleep(delay)

    async def close(self) -> None:
        for producer in self._producers.values():
            await producer.close()
        await self._link.close()
