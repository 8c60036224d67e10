"""Pausing a processor, and letting it go on."""

import getpass
import json
import socket
from datetime import UTC, datetime

from runnel._redis import scripts
from runnel._redis.groups import group_state
from runnel.admin.access import connected, generation_of, processor_of
from runnel.app import App

__all__ = ["pause_processor", "resume_processor"]


async def pause_processor(app: App, processor: str) -> bool:
    """Let no worker process events of this processor until it is resumed.

    Running owners finish and commit the event in progress, keep their partitions, and hand out nothing more. Workers
    that start later do not begin.

    Arguments:
        app: the app.
        processor: name of the processor.

    Returns:
        False if it was paused before; nothing was changed.

    Raises:
        UnknownProcessor: the app has none of that name.
        RedisUnavailable: Redis cannot be reached. Repeat it: it can be done twice.
    """
    stream = processor_of(app, processor).stream
    details = {"since": datetime.now(UTC).isoformat(timespec="seconds"), "by": _who()}
    async with connected(app) as link:
        paused, generation = False, None
        while (at := await generation_of(link, stream, processor)) != generation:  # it may have gone on meanwhile
            generation, keys = at, stream.keys_of(at).control(processor)
            paused = await scripts.park(link, keys, scripts.ALL, b"", f"|{json.dumps(details)}".encode())
        return paused


async def resume_processor(app: App, processor: str) -> bool:
    """Let a paused processor go on, each partition from its position. Quarantines stay.

    Arguments:
        app: the app.
        processor: name of the processor.

    Returns:
        False if it was not paused.

    Raises:
        UnknownProcessor: the app has none of that name.
        RedisUnavailable: Redis cannot be reached. Repeat it: it can be done twice.
    """
    stream = processor_of(app, processor).stream
    async with connected(app) as link:
        keys = stream.keys_of(await generation_of(link, stream, processor)).control(processor)
        paused = (await group_state(link, keys)).paused
        return paused is not None and await scripts.park(link, keys, scripts.ALL, paused.raw, b"")


def _who() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):  # a user without a name, as in many containers
        return socket.gethostname()
