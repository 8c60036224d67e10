"""Moving a stream to another server."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import Recorder, cut_off, eventually, inspecting, running
from runnel import App, ExceptionPolicy, Record
from runnel._redis.link import Endpoint
from runnel._worker import Worker
from runnel._worker.burst import nothing_left
from runnel.admin import (
    begin_migration,
    describe_stream,
    list_dead_letters,
    move_stream,
    pause_processor,
    plan_migration,
    plan_move,
    resume_processor,
)
from runnel.errors import MigrationConflict, MoveFailed, RedisUnavailable, StreamMoved
from runnel.instruments import LogReplaced, LossDetected, PartitionRewound, StreamLeft
from runnel.middleware import DeadLetterMiddleware
from runnel.server import EmbeddedServer
from topologies import Cluster

pytestmark = pytest.mark.anyio

KEYS = 12


class Step(Record):
    key: str
    number: int
    bad: bool = False


@pytest.fixture(scope="module")
def other(server_binary: str | Path | None) -> Iterator[EmbeddedServer]:
    """The server that streams are moved to."""
    with EmbeddedServer(binary=server_binary) as running_server:
        yield running_server


class Flow:
    """An app, and what its processor was given, on either server."""

    def __init__(
        self, name: str, url: str, seen: dict[str, list[int]] | None = None, durability: str = "primary"
    ) -> None:
        self.app = App(name=name, redis_url=url, heartbeat_interval=0.1, durability=durability)
        self.steps = self.app.stream("steps", record=Step, partition_by="key", partition_count=4)
        self.dead_letter = DeadLetterMiddleware(source=self.steps)
        self.seen = defaultdict(list) if seen is None else seen
        self.recorder = Recorder(self.app)

        @self.app.processor(self.steps, exception_policy=ExceptionPolicy.IGNORE, middleware=[self.dead_letter])
        async def record(events: Any) -> None:
            async for step in events.records():
                self.seen[step.key].append(step.number)
                if step.bad:
                    raise ValueError("bad")

    async def send(self, number: int, *, bad: bool = False) -> None:
        await self.steps.send(*(Step(key=f"key-{n}", number=number, bad=bad) for n in range(KEYS)))

    async def has(self, last: int) -> None:
        """Wait until all events up to this number were processed, each once and in order."""
        wanted = {f"key-{n}": list(range(1, last + 1)) for n in range(KEYS)}
        await eventually(lambda: sum(len(self.seen[key]) for key in wanted) >= KEYS * last)
        assert {key: self.seen[key] for key in wanted} == wanted


@pytest.fixture
async def flow(app_name: str, redis_url: str) -> AsyncIterator[Flow]:
    made = Flow(app_name, redis_url)
    async with made.app:
        yield made


async def move(flow: Flow, to: str) -> list[str]:
    return [f"{moved.stream}: {moved.step}" async for moved in move_stream(flow.app, flow.steps, to)]


@pytest.mark.everywhere
async def test_a_stream_goes_on_at_another_server_where_it_was(flow: Flow, other: EmbeddedServer) -> None:
    """With positions, dead letters, an earlier generation and a backlog, while a worker and a producer run."""
    async with running(flow.app):
        await flow.send(1, bad=True)
        await flow.has(1)
        await begin_migration(flow.app, flow.steps, await plan_migration(flow.app, flow.steps, partition_count=5))
        await flow.send(2)
        await flow.has(2)
        await pause_processor(flow.app, "record")
        await flow.send(3)
        steps = await move(flow, other.url)
        assert steps[0] == "steps: sealed"
        assert "steps: moved" in steps
        assert steps[-1] == "steps.dead: moved"
        await eventually(lambda: flow.recorder.of(StreamLeft))
        with pytest.raises(StreamMoved, match=r"was moved to .*--redis-url"):
            await flow.send(4)
    with pytest.raises(StreamMoved):
        async with running(flow.app):
            pass
    new = Flow(flow.app.name, other.url, flow.seen)
    async with new.app:
        assert len(await list_dead_letters(new.app, new.steps)) == KEYS
        await new.send(4)
        await resume_processor(new.app, "record")  # the pause came along
        async with running(new.app):
            await new.has(4)
        assert not [
            new.recorder.of(kind) for kind in (LogReplaced, LossDetected, PartitionRewound) if new.recorder.of(kind)
        ]
    assert await move(flow, other.url) == []


async def test_a_burst_does_not_wait_for_a_stream_that_is_moved_away(flow: Flow, other: EmbeddedServer) -> None:
    await flow.send(1)
    await move(flow, other.url)
    assert await nothing_left(Worker(flow.app)) == {}


async def test_a_stream_that_is_moved_from_one_server_to_a_cluster_is_spread_over_it_then(
    flow: Flow, cluster: Cluster
) -> None:
    async with running(flow.app):
        await flow.send(1, bad=True)
        await flow.has(1)
        await flow.send(2)
        await move(flow, cluster.url)
    new = Flow(flow.app.name, cluster.url, flow.seen)
    async with new.app, running(new.app):
        await new.send(3)
        await new.has(3)
        plan = await plan_migration(new.app, new.steps, partition_count=12)
        assert (plan.before.slot_groups, plan.after.slot_groups) == (1, 12)
        sending = asyncio.create_task(new.send(4))
        await begin_migration(new.app, new.steps, plan)
        await sending
        await new.send(5)
        await new.has(5)
        described = (await describe_stream(new.app, new.steps)).generations[-1]
        assert len({cluster.primary_of(one.slot).url for one in described.partitions}) == 3
        assert len(await list_dead_letters(new.app, new.steps)) == KEYS


@pytest.mark.parametrize("again", [0, 3])
async def test_what_was_lost_before_a_move_is_told_behind_it(flow: Flow, other: EmbeddedServer, again: int) -> None:
    # 1. workers have stopped  2. logs are deleted  3. (others begin)  4. the stream is moved
    async with inspecting(flow.app) as redis:
        async with running(flow.app):
            await flow.send(1)
            await flow.has(1)
        await flow.send(2)
        for partition in range(4):
            await redis.link.call("DEL", flow.steps.keys.log(partition))
        for number in range(3, 3 + again):
            await flow.send(number)
    await move(flow, other.url)
    there = Flow(flow.app.name, other.url)
    async with running(there.app):
        await eventually(lambda: len(there.recorder.of(LogReplaced)) == 4)
        await eventually(lambda: sum(map(len, there.seen.values())) == KEYS * again)
    assert all(numbers == list(range(3, 3 + again)) for numbers in there.seen.values())


async def test_a_position_that_is_in_the_group_only_moves_as_well(flow: Flow, other: EmbeddedServer) -> None:
    async with inspecting(flow.app) as redis:
        async with running(flow.app):
            await flow.send(1)
            await flow.has(1)
        await flow.send(2)
        await redis.link.call("DEL", flow.steps.keys.positions(0, "record"))
    await move(flow, other.url)
    there = Flow(flow.app.name, other.url, flow.seen)
    async with running(there.app):
        await there.has(2)


@pytest.mark.everywhere
async def test_the_copy_is_the_same_to_the_id_and_the_count(flow: Flow, other: EmbeddedServer) -> None:
    async with inspecting(flow.app) as redis:
        for number in range(1, 4):
            await flow.send(number)
        keys = flow.steps.keys
        first = (await redis.entries(flow.steps, 0))[0][0]
        await redis.link.at(keys.log(0)).call("XDEL", keys.log(0), first)
        await redis.link.at(keys.log(1)).call("XTRIM", keys.log(1), "MAXLEN", 0)
        await move(flow, other.url)
        target = Endpoint(other.url).link()
        for partition in range(4):
            log = keys.log(partition)
            lines = (redis.link.at(log), target.at(log))
            there, here = [await line.call("XRANGE", log, "-", "+") for line in lines]
            assert there == here
            there, here = [await line.call("XINFO", "STREAM", log) for line in lines]
            assert [there[i : i + 2] for i in range(0, len(there), 2) if b"radix" not in there[i]] == [
                here[i : i + 2] for i in range(0, len(here), 2) if b"radix" not in here[i]
            ]
        await target.close()


async def test_a_move_that_is_cut_off_anywhere_is_finished_by_the_next_one(
    app_name: str, redis_url: str, other: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fifth command to either server is the last one of a first attempt, in turn."""
    calls = 0
    while True:
        seen: dict[str, list[int]] = defaultdict(list)
        flow = Flow(f"{app_name}-{calls}", redis_url, seen)
        async with flow.app:
            async with running(flow.app):
                await flow.send(1)
                await flow.has(1)
            await flow.send(2)
            left = [calls]
            with monkeypatch.context() as patched:
                patched.setattr("runnel.admin.moving.connected", lambda app, left=left: cut_off(app.endpoint, left))
                patched.setattr("runnel.admin.moving._connected_to", lambda to, left=left: cut_off(to, left))
                try:
                    await move(flow, other.url)
                    done = True
                except RedisUnavailable:
                    done = False
            waiting = asyncio.create_task(_until_moved(flow))
            await move(flow, other.url)
            await waiting
            new = Flow(flow.app.name, other.url, seen)
            async with new.app, running(new.app):
                await new.send(3)
                await new.has(3)
        if done:
            break
        calls += 5
    assert calls > 40


async def other_metadata(flow: Flow, name: str) -> str:
    """A field of the metadata of the stream, on the server of a flow."""
    async with inspecting(flow.app) as redis:
        return (await redis.link.call("HGET", flow.steps.keys.metadata, name)).decode()


async def _until_moved(flow: Flow) -> None:
    """A producer of the old server waits while the stream is on its way, and then learns where it is."""
    number = 100
    while True:
        try:
            await flow.steps.send(Step(key="late", number=number))
        except StreamMoved:
            return
        number += 1


async def test_what_another_server_has_already_is_not_touched(flow: Flow, other: EmbeddedServer) -> None:
    theirs = Flow(flow.app.name, other.url)
    async with theirs.app, inspecting(theirs.app) as redis:
        await theirs.send(7)
        await flow.send(1)
        with pytest.raises(MoveFailed, match='has a stream "steps"'):
            await move(flow, other.url)
        assert sum([len(await redis.entries(theirs.steps, partition)) for partition in range(4)]) == KEYS
        await flow.send(2)  # here it goes on, as if nobody had asked


@pytest.mark.parametrize("topology", ["sentinel"], indirect=True)
async def test_seals_and_copies_are_as_durable_as_the_events(
    app_name: str, redis_url: str, other: EmbeddedServer, cluster: Cluster
) -> None:
    flow = Flow(app_name, redis_url, durability="replica")
    async with flow.app, running(flow.app):
        await flow.send(1)
        await begin_migration(flow.app, flow.steps, await plan_migration(flow.app, flow.steps, partition_count=7))
        await flow.send(2)
        await flow.has(2)
        with pytest.raises(MoveFailed, match=r'"steps" has durability="replica", and .* no replica'):
            await move(flow, other.url)
        await flow.send(3)  # nothing was sealed
        await move(flow, cluster.url)
    new = Flow(app_name, cluster.url, flow.seen, durability="replica")
    async with new.app, running(new.app):
        await new.send(4)
        await new.has(4)


async def test_what_is_in_use_on_the_other_server_already_is_not_copied_again(
    flow: Flow, other: EmbeddedServer
) -> None:
    """1 All has come. 2 Who moves it is killed before it says so here. 3 It is used there. 4 It moves again: boom."""
    async with running(flow.app):
        await flow.send(1)
        await flow.has(1)
    await move(flow, other.url)
    new = Flow(flow.app.name, other.url, flow.seen)
    async with new.app, running(new.app), inspecting(flow.app) as redis:
        await new.send(2)
        await new.has(2)
        stored = flow.steps.keys.metadata
        number = await other_metadata(new, "came")
        await redis.link.call("HDEL", stored, "moved")
        await redis.link.call("HSET", stored, "moving", f"{number}|{other.url}")
        assert await move(flow, other.url) == ["steps: sealed", "steps: moved"]
        await new.send(3)
        await new.has(3)


@pytest.mark.parametrize("topology", ["cluster"], indirect=True)
async def test_a_move_that_cannot_be_finished_is_taken_back_by_hand(flow: Flow, other: EmbeddedServer) -> None:
    """As the guide says it."""
    await flow.send(1)
    moving = move_stream(flow.app, flow.steps, other.url)
    assert (await anext(moving)).step == "sealed"
    await moving.aclose()
    described = await describe_stream(flow.app, flow.steps)
    seals = {one.key.rpartition("log:")[0] + "sealed" for one in described.generations[-1].partitions}
    async with inspecting(flow.app) as redis:
        await redis.link.at(described.metadata).call("HDEL", described.metadata, "moving")
        for seal in seals:
            assert await redis.link.at(seal).call("DEL", seal) == 1
    await flow.send(2)
    async with running(flow.app):
        await flow.has(2)


async def test_a_stream_is_moved_to_one_place_only(flow: Flow, other: EmbeddedServer) -> None:
    await flow.send(1)
    assert [one.moved for one in await plan_move(flow.app, flow.steps, other.url)] == [False]
    moving = move_stream(flow.app, flow.steps, other.url)
    await anext(moving)
    await moving.aclose()
    with pytest.raises(MigrationConflict, match="is being moved to"):
        await move(flow, f"{other.url}/1")
    with pytest.raises(MigrationConflict, match="Migrate it there"):
        await plan_migration(flow.app, flow.steps, partition_count=9)
    await move(flow, other.url)
    assert [one.moved for one in await plan_move(flow.app, flow.steps, other.url)] == [True]
