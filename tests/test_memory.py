"""A server without memory: nothing can be sent, but what was sent is processed, also by who comes now."""

from pathlib import Path

import pytest

from harness import eventually, inspecting, running
from runnel import App, Record
from runnel.server import EmbeddedServer

pytestmark = pytest.mark.anyio


class Step(Record):
    n: int


async def test_a_worker_starts_and_processes_while_the_server_has_no_memory(
    server_binary: str | Path | None, app_name: str
) -> None:
    with EmbeddedServer(binary=server_binary) as server:
        app = App(name=app_name, redis_url=server.url, partition_count=1)
        steps = app.stream("steps", record=Step, partition_by="n")
        seen: list[int] = []

        @app.processor(steps)
        async def proc(events):
            async for step in events.records():
                seen.append(step.n)

        await steps.send(*(Step(n=n) for n in range(5)))
        async with inspecting(app) as redis:
            await redis.link.call("CONFIG", "SET", "maxmemory", 1)
            await redis.link.call("DEL", steps.keys.metadata)
            async with running(app):
                await eventually(lambda: seen == [0, 1, 2, 3, 4])
            await redis.link.call("CONFIG", "SET", "maxmemory", 0)
        await app.aclose()
