"""What an app sends through, on one event loop."""

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any

from runnel._core.backoff import delays
from runnel._redis.durability import confirmation
from runnel._redis.keys import StreamKeys
from runnel._redis.link import Endpoint
from runnel._redis.patience import patiently
from runnel._redis.producer import Producer
from runnel._redis.rerouting import Destination
from runnel._redis.scripts import AppendStatus, Batch, append
from runnel.instruments import Instruments
from runnel.streams import Stream

__all__ = ["Outbox"]

ONCE_EXPIRY = 7 * 24 * 3600 * 1000
"""Milliseconds for which it is remembered that something was sent once: longer than it takes to mend a deployment."""


class Outbox:
    """Two links, the second one for when there is much to send, and a producer per stream."""

    def __init__(self, endpoint: Endpoint, instruments: Instruments) -> None:
        self._instruments = instruments
        self._link, self._second = endpoint.link(), endpoint.link()
        self._producers: dict[tuple[str, bytes], Producer] = {}

    def producer(self, stream: Stream[Any], field: bytes) -> Producer:
        """The producer of a stream and of entries with that only field, if any; made when something is sent first."""
        producer = self._producers.get((stream.name, field))
        if producer is None:
            link = self._link

            async def prepare() -> Destination:
                await stream.declare(link)
                return stream.destination

            producer = Producer(
                (link, self._second),
                stream.destination,
                field,
                stream.options.limits,
                confirmation(stream.options.durability),
                self._instruments,
                prepare,
            )
            self._producers[stream.name, field] = producer
        return producer

    async def send_once(
        self, stream: Stream[Any], route: Callable[[int], int], entry: Sequence[bytes], origin: str
    ) -> None:
        limits = stream.options.limits

        async def attempt() -> bool:
            """Append it to the generation in use, unless it is in an earlier one already."""
            for generation in (await stream.declare(self._link)).existing:
                keys = StreamKeys.of(stream.app_name, stream.name, generation)
                partition = route(generation.partition_count)
                answers = await append(
                    self._link,
                    keys,
                    keys.slot_group(partition),
                    [Batch(partition, origin, 1, -1, [entry])],
                    limit=limits.partition_size,
                    trim=limits.on_full == "trim",
                    expiry=ONCE_EXPIRY,
                    confirm=confirmation(stream.options.durability),
                )
                if answers[0].status is not AppendStatus.SEALED:
                    return answers[0].status is not AppendStatus.FULL
            return False  # the stream has another generation by now

        for delay in delays(0.02, 1.0, random.random):
            if await patiently(f"send to {stream.name}", attempt, self._instruments):
                return
            await asyncio.sleep(delay)

    async def close(self) -> None:
        for producer in self._producers.values():
            await producer.close()
        await self._link.close()
        await self._second.close()
