"""Whether anything is left to process, in any partition of a worker's processors, whoever owns it."""

import asyncio

from runnel._redis.backlog import NOTHING, Backlog, remaining
from runnel._redis.generations import generations_of
from runnel._redis.patience import patiently
from runnel._worker.worker import Worker

__all__ = ["nothing_left"]

INTERVAL = 0.25
"""Seconds between two looks, each of which costs two commands per partition."""


async def nothing_left(worker: Worker) -> dict[str, Backlog]:
    """Wait until all events are processed, but for those in quarantined partitions and of paused processors.

    While one processor is looked at, another may finish an event and send to the one before. So it takes two looks
    that find nothing, without any progress in between.

    Returns:
        What each processor has not processed, by name; without those whose stream is moved to another server.
    """
    app = worker.app
    link = app.endpoint.link()

    async def look() -> dict[str, Backlog]:
        found = {}
        for processor in worker.processors:
            stream, name = processor.stream, processor.name
            generations = await generations_of(link, stream.keys)
            if generations is None or generations.moving or generations.moved:
                continue
            at = generations.of_processor(stream.keys.group_name(name)).number
            found[name] = NOTHING
            for one in generations.existing:
                if one.number >= at:
                    keys = stream.keys_of(one)
                    found[name] += await remaining(link, keys, keys.control(name), name, one.partition_count)
        return found

    try:
        before: dict[str, Backlog] = {}
        while True:
            backlogs = await patiently("look for what is left", look, app.instruments)
            if not any(backlog.events for backlog in backlogs.values()) and backlogs == before:
                return backlogs
            before = backlogs
            await asyncio.sleep(INTERVAL)
    finally:
        await link.close()
