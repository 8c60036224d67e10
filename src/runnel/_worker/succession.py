"""When a seat has nothing left to do: its stream is divided anew, and all that was there before is processed."""

import asyncio
from contextlib import suppress
from typing import Any

from runnel._core.generations import Generation, Generations
from runnel._redis import generations
from runnel._redis.link import Link
from runnel._redis.patience import patiently
from runnel.instruments import GenerationBegun, Instruments, StreamLeft
from runnel.processors import Processor

__all__ = ["Succession"]

INTERVAL = 10.0
"""Seconds between two looks for another generation. We are told at once; but what is told may be lost."""

POLL = 0.1
"""Seconds between two looks at the positions, once there is another generation. Only one partition is looked at that is
known to be behind, so it costs the server some 20 µs per seat."""


class Succession:
    """Waits for the end of one generation, for one processor in one worker.

    Each worker finds out for itself. They may do so at different times, since what they look at does not go back: a
    generation that is sealed stays so, and so does a position at the end of a sealed partition. (Where a person has
    moved it back, the note that the next generation was begun says that this one is over.)
    """

    def __init__(self, processor: Processor[Any], generation: Generation, instruments: Instruments) -> None:
        self._processor = processor
        self._stream = processor.stream
        self._generation = generation
        self._keys = processor.stream.keys_of(generation)
        self._instruments = instruments
        self._told = asyncio.Event()
        self._behind: int | None = None
        self._address = ""

    def look(self) -> None:
        """There is, or may be, another generation."""
        self._told.set()

    async def wait(self, link: Link) -> Generation | None:
        """Wait for the end. ``None``: the stream is moved to another server, and what is left will be processed there.

        1. Wait until producers have gone over to another generation.
        2. Let nothing be trimmed there that this processor, which may be new, has not processed.
        3. Wait until the stored positions of the processor are at the ends of all partitions, and nobody has paused it:
           a pause is noted in this generation.
        4. Note that, so that whoever comes later begins with the next one at once.
        """
        following = await self._following(link)  # 1
        if following is None:
            return None
        await patiently("register", lambda: self._register(link), self._instruments)  # 2
        while not await patiently("look at the positions", lambda: self._over(link), self._instruments):
            await asyncio.sleep(POLL)  # 3
            if self._address:
                return None
        name, stream = self._processor.name, self._stream.name
        await patiently(
            "begin a generation",
            lambda: generations.begin(link, self._keys, name, following),
            self._instruments,
        )  # 4
        self._instruments.announce(GenerationBegun(name, stream, following.number, following.partition_count))
        return following

    def _leaves(self, found: Generations | None) -> bool:
        """Whether the stream is moved to another server."""
        self._address = "" if found is None else found.moving or found.moved
        if self._address:
            self._instruments.announce(StreamLeft(self._processor.name, self._stream.name, self._address))
        return bool(self._address)

    async def _following(self, link: Link) -> Generation | None:
        while True:
            self._told.clear()  # what is told from here on is not missed
            found = await patiently(
                "look for generations", lambda: generations.generations_of(link, self._keys), self._instruments
            )
            if self._leaves(found):
                return None
            if found is not None and (following := found.after(self._generation)) is not None:
                return following
            with suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL):
                    await self._told.wait()

    async def _register(self, link: Link) -> None:
        found = await generations.generations_of(link, self._keys)
        for later in () if found is None else found.existing:
            if later.number > self._generation.number:
                await generations.register(link, self._stream.keys_of(later), self._processor.name)

    async def _over(self, link: Link) -> bool:
        found = await generations.generations_of(link, self._keys)
        if self._leaves(found):
            return False
        name = self._processor.name
        if found is not None and found.of_processor(self._keys.group_name(name)).number > self._generation.number:
            return True  # somebody else has found out
        if self._behind is not None and await generations.unprocessed(link, self._keys, name, [self._behind]):
            return False
        everything = range(self._generation.partition_count)
        left = await generations.unprocessed(link, self._keys, name, everything)
        self._behind = left[0] if left else None
        return not left and not await generations.is_paused(link, self._keys, name)
