"""Dividing a stream anew while producers and workers go on: per-key order, nothing lost, nothing twice."""

import asyncio
from collections import defaultdict
from typing import Any

import pytest

from harness import Recorder, eventually, running
from runnel import App, Record
from runnel.admin import (
    begin_migration,
    plan_migration,
)
from runnel.instruments import GenerationBegun
from runnel.streams import Stream

pytestmark = pytest.mark.anyio

KEYS = 20


class Step(Record):
    key: str
    number: int


class Flow:
    """An app with a processor that remembers what it was given, and a producer that counts for every key."""

    def __init__(self, name: str, redis_url: str, partition_count: int = 4) -> None:
        self.app = App(name=name, redis_url=redis_url, heartbeat_interval=0.1)
        self.steps: Stream[Step] = self.app.stream(
            "steps", record=Step, partition_by="key", partition_count=partition_count
        )
        self.seen: dict[str, list[int]] = defaultdict(list)
        self.sent: dict[str, int] = defaultdict(int)
        self.recorder = Recorder(self.app)

        @self.app.processor(self.steps)
        async def record(events: Any) -> None:
            async for step in events.records():
                self.seen[step.key].append(step.number)

    async def send(self, times: int = 1) -> None:
        """One event for every key, so many times."""
        for _ in range(times):
            await self.steps.send(*(self._next(f"key-{n}") for n in range(KEYS)))

    def _next(self, key: str) -> Step:
        self.sent[key] += 1
        return Step(key=key, number=self.sent[key])

    def complete(self) -> bool:
        """Whether every event was processed."""
        return sum(map(len, self.seen.values())) >= sum(self.sent.values())

    def check(self) -> None:
        """Every event of every key, once, in the order in which they were sent."""
        assert self.seen == {key: list(range(1, last + 1)) for key, last in self.sent.items()}

    async def migrate(self, partition_count: int) -> None:
        await begin_migration(
            self.app, self.steps, await plan_migration(self.app, self.steps, partition_count=partition_count)
        )


@pytest.fixture
def flow(app_name: str, redis_url: str) -> Flow:
    return Flow(app_name, redis_url)


async def test_workers_and_producers_follow_a_stream_to_other_partitions_and_back(flow: Flow) -> None:
    async with flow.app, running(flow.app):
        await flow.send()
        for partition_count in (7, 4):
            sending = asyncio.create_task(flow.send(100))
            await asyncio.sleep(0)
            await flow.migrate(partition_count)
            await sending
            await eventually(flow.complete)
        await eventually(lambda: len(flow.recorder.of(GenerationBegun)) == 2)
        await flow.send()
        await eventually(flow.complete)
        assert flow.steps.generation.number == 2
    flow.check()
