"""Dividing a stream anew while producers and workers go on: per-key order, nothing lost, nothing twice."""

import asyncio
from collections import defaultdict
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from harness import Recorder, cut_off, eventually, inspecting, running
from runnel import App, Record
from runnel._core.generations import Generation
from runnel._redis.backlog import Backlog
from runnel._redis.link import Listener
from runnel._redis.scripts import Op, heartbeat
from runnel._worker import Worker
from runnel._worker.burst import nothing_left
from runnel._worker.member import seat
from runnel.admin import (
    begin_migration,
    describe_stream,
    pause_processor,
    plan_migration,
    purge_generations,
    resume_processor,
    status_of,
    tail_of,
    watch_migration,
)
from runnel.errors import MetadataMismatch, MigrationConflict, NoSuchPlace, RedisUnavailable, StreamFull, UnusedStream
from runnel.instruments import (
    GenerationBegun,
    LogReplaced,
    LossDetected,
    PartitionRewound,
    PartitionsPaused,
    PartitionStalled,
    SequenceGap,
    StreamDividedAnew,
)
from runnel.streams import Stream

pytestmark = pytest.mark.anyio

KEYS = 20
ALARMS = (LossDetected, LogReplaced, PartitionRewound, SequenceGap)


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
        """Every event of every key, once, in the order in which they were sent; and nobody believes one to be lost."""
        assert [one for kind in ALARMS for one in self.recorder.of(kind)] == []
        assert self.seen == {key: list(range(1, last + 1)) for key, last in self.sent.items()}

    async def migrate(self, partition_count: int, slot_groups: int | None = None) -> None:
        plan = await plan_migration(self.app, self.steps, partition_count=partition_count, slot_groups=slot_groups)
        await begin_migration(self.app, self.steps, plan)


@pytest.fixture
def flow(app_name: str, redis_url: str) -> Flow:
    return Flow(app_name, redis_url)


@pytest.mark.everywhere
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


async def test_a_burst_ends_while_an_earlier_generation_is_open(flow: Flow) -> None:
    async with flow.app:
        worker = Worker(flow.app)
        await worker.prepare()
        await flow.migrate(7)
        assert await nothing_left(worker) == {"record": Backlog(events=0, done=0, quarantined=0, paused=0)}


async def test_a_burst_waits_for_every_generation(flow: Flow) -> None:
    async with flow.app:
        await flow.send()
        await flow.migrate(7)
        await flow.send()
        burst = asyncio.create_task(nothing_left(Worker(flow.app)))
        async with running(flow.app):
            [backlog] = (await burst).values()
            assert flow.complete()
            assert (backlog.events, backlog.paused) == (0, 0)
    flow.check()


@pytest.mark.everywhere
async def test_who_follows_a_stream_goes_over_with_it_and_sees_every_key_in_order(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runnel.admin.tail.BLOCK", 0.05)

    async def follow() -> None:
        async with aclosing(tail_of(flow.app, flow.steps, number=None, follow=True)) as events:
            async for event in events:
                flow.seen[event.record.key].append(event.record.number)

    async with flow.app:
        await flow.send()
        following = asyncio.create_task(follow())
        try:
            await eventually(flow.complete)
            for partition_count in (7, 4):
                sending = asyncio.create_task(flow.send(50))
                await asyncio.sleep(0)
                await flow.migrate(partition_count, slot_groups=2)
                await sending
                await flow.send()
                await eventually(flow.complete)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        assert flow.steps.generation.number == 2
    flow.check()


async def test_who_follows_a_partition_is_told_when_there_is_none_of_that_number_any_more(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runnel.admin.tail.BLOCK", 0.05)
    async with flow.app:
        await flow.send()
        events = tail_of(flow.app, flow.steps, number=1, partitions=[3], follow=True)
        await anext(events)
        await flow.migrate(2)
        with pytest.raises(NoSuchPlace, match="but not 3"):
            await anext(events)


@pytest.mark.everywhere
async def test_ids_grow_across_generations(flow: Flow) -> None:
    """Partition and id name one event of the stream: dead letters, and effects outside, rely on that."""
    async with flow.app, inspecting(flow.app) as redis:
        ahead = 1 << 44  # the server's clock was ahead, and has been set back
        await flow.send()
        log = flow.steps.keys.log(0)
        await redis.link.at(log).call("XADD", log, f"{ahead}-5", "data", "{}")
        await flow.migrate(7)
        ids = await flow.steps.send(Step(key="key-1", number=0))
        assert int(ids[0].partition("-")[0]) >= ahead


@pytest.mark.everywhere
async def test_nothing_is_processed_in_new_partitions_before_the_old_ones_are(flow: Flow) -> None:
    async with flow.app, running(flow.app):
        await flow.send()
        await eventually(flow.complete)
        await pause_processor(flow.app, "record")
        await eventually(lambda: flow.recorder.of(PartitionsPaused))
        await flow.send(3)
        await flow.migrate(7)
        await flow.send(3)
        async with aclosing(watch_migration(flow.app, flow.steps)) as looks:
            [left] = await anext(looks)
        assert (left.processor, left.generation, left.events, left.paused) == ("record", 0, 3 * KEYS, True)
        [status] = (await status_of(flow.app)).processors
        assert (status.generation, status.later, status.lag) == (0, 3 * KEYS, 6 * KEYS)
        assert await purge_generations(flow.app, flow.steps) == []
        assert flow.recorder.of(GenerationBegun) == []
        await resume_processor(flow.app, "record")
        async for left in watch_migration(flow.app, flow.steps):  # noqa: B007  the last one is empty
            pass
        assert left == ()
        await eventually(flow.complete)
    flow.check()


async def test_only_the_partition_that_holds_up_the_next_generation_is_stalled(app_name: str, redis_url: str) -> None:
    """The others are at their ends, and what waits for them is in other partitions."""
    app = App(name=app_name, redis_url=redis_url, heartbeat_interval=0.1, stall_timeout=0.2)
    steps = app.stream("steps", record=Step, partition_by="key", partition_count=4)
    recorder, gate, seen = Recorder(app), asyncio.Event(), []

    @app.processor(steps)
    async def record(events: Any) -> None:
        async for step in events.records():
            if step.key == "slow":
                await gate.wait()
            seen.append(step.number)

    async with app, running(app):
        slow = Step(key="slow", number=1)
        partition = steps.partition_of(slow)
        await steps.send(*(Step(key=f"key-{n}", number=0) for n in range(KEYS)))
        await eventually(lambda: len(seen) == KEYS)
        await steps.send(slow)
        await begin_migration(app, steps, await plan_migration(app, steps, partition_count=7))
        await steps.send(*(Step(key=f"key-{n}", number=2) for n in range(KEYS)))
        await eventually(lambda: recorder.of(PartitionStalled))
        await asyncio.sleep(0.3)  # the others would be, too
        assert {stalled.partition for stalled in recorder.of(PartitionStalled)} == {partition}
        assert 2 not in seen
        gate.set()
        await eventually(lambda: seen.count(2) == KEYS)


async def test_a_new_processor_begins_with_the_oldest_generation_there_is(flow: Flow) -> None:
    async with flow.app:
        await flow.send(2)
        await flow.migrate(7)
        await flow.send(2)
        await flow.migrate(3)
        await flow.send(2)
        async with running(flow.app):
            await eventually(flow.complete)
        assert [begun.generation for begun in flow.recorder.of(GenerationBegun)] == [1, 2]
    flow.check()


@pytest.mark.everywhere
async def test_purged_partitions_are_gone_and_their_seals_stay(flow: Flow) -> None:
    late = Flow(flow.app.name, flow.app.settings.redis_url)
    async with flow.app, late.app, inspecting(flow.app) as redis:
        await late.steps.send(Step(key="late", number=1))
        old = late.steps.keys
        async with running(flow.app):
            await flow.send()
            await eventually(lambda: flow.complete() and flow.seen["late"])
            await flow.migrate(7)
            async for _ in watch_migration(flow.app, flow.steps):
                pass
        for _ in range(2):  # it may have been interrupted the first time
            await purge_generations(flow.app, flow.steps)
        assert [await redis.link.at(old.log(p)).call("EXISTS", old.log(p)) for p in range(4)] == [0] * 4
        assert [one.generation for one in (await describe_stream(flow.app, flow.steps)).generations] == [1]
        await late.steps.send(Step(key="late", number=2))  # its producer was at the old ones until now
        assert late.steps.generation.number == 1
        async with running(flow.app):
            await eventually(lambda: flow.seen["late"] == [1, 2])


async def test_what_a_processor_has_not_begun_whose_worker_has_just_joined_is_not_purged(flow: Flow) -> None:
    """It is registered only when it is granted a partition."""
    async with flow.app, inspecting(flow.app) as redis:
        await flow.send()
        joined = seat(flow.steps.keys.control("record"), "w", 4, flow.app.settings)
        await flow.migrate(7)
        listener = Listener(flow.app.endpoint)
        await listener.subscribe((joined.keys.wake("w"),))
        await heartbeat(redis.link, joined, Op.JOIN)
        assert await purge_generations(flow.app, flow.steps) == []
        await heartbeat(redis.link, joined, Op.LEAVE)
        await listener.close()
        assert [one.number for one in await purge_generations(flow.app, flow.steps)] == [0]


async def test_nothing_is_trimmed_in_new_partitions_for_processors_that_are_still_in_the_old_ones(
    app_name: str, redis_url: str
) -> None:
    app = App(name=app_name, redis_url=redis_url, heartbeat_interval=0.1, partition_size=10, on_full_timeout=0.3)
    steps = app.stream("steps", record=Step, partition_by="key", partition_count=1, on_full="raise")
    seen = []

    @app.processor(steps)
    async def record(events: Any) -> None:
        async for step in events.records():
            seen.append(step.number)

    async with app:
        async with running(app):
            await steps.send(Step(key="a", number=0))
            await eventually(lambda: seen == [0])
        await begin_migration(app, steps, await plan_migration(app, steps, partition_count=2))
        for number in range(1, 11):
            await steps.send(Step(key="a", number=number))
        with pytest.raises(StreamFull, match="record"):
            await steps.send(Step(key="a", number=11))
        async with running(app):
            await eventually(lambda: len(seen) == 11)
        assert seen == list(range(11))


@pytest.mark.everywhere
async def test_an_event_that_was_sent_once_is_not_sent_again_to_another_generation(flow: Flow) -> None:
    async def once(origin: str) -> None:
        await flow.steps.send_once(lambda count: count - 1, (b"data", b'{"key": "a", "number": 1}'), {}, origin=origin)

    async with flow.app, inspecting(flow.app) as redis:
        await once("x")
        await flow.migrate(7)
        await once("x")
        await once("y")
        assert await redis.entries(flow.steps, 6) != []
        described = await describe_stream(flow.app, flow.steps)
        assert [sum(one.entries for one in generation.partitions) for generation in described.generations] == [1, 1]


async def test_code_that_says_an_earlier_number_of_partitions_goes_on_and_is_told(flow: Flow, redis_url: str) -> None:
    async with flow.app:
        await flow.send()
        await flow.migrate(7)
        old = Flow(flow.app.name, redis_url, partition_count=4)
        async with old.app:
            await old.steps.send(Step(key="key-1", number=2))
            await old.steps.send(Step(key="key-1", number=3))
        assert old.recorder.of(StreamDividedAnew) == [StreamDividedAnew("steps", 4, 7, 1)]
        other = Flow(flow.app.name, redis_url, partition_count=5)
        async with other.app:
            with pytest.raises(MetadataMismatch, match="has 7 partitions in Redis, but this process says 5"):
                await other.send()


async def test_dead_letters_stay_where_they_are_when_the_code_follows_a_migration(flow: Flow, redis_url: str) -> None:
    """The stream for dead letters has its number of partitions from its source only when it is first used."""
    async with flow.app:
        await flow.send()
        await flow.steps.sibling("steps.dead").send(Step(key="a", number=1))
        await flow.migrate(7)
        new = Flow(flow.app.name, redis_url, partition_count=7)
        async with new.app:
            dead = new.steps.sibling("steps.dead")
            await dead.send(Step(key="a", number=2))
            assert dead.partition_count == 4


async def test_a_migration_that_is_cut_off_anywhere_is_seen_through_by_producers_or_by_the_next_attempt(
    app_name: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command of it is the last one that reaches Redis, in turn; then events are sent, and it is done again."""
    calls = 0
    while True:
        flow = Flow(f"{app_name}-{calls}", redis_url)
        async with flow.app:
            await flow.send(2)
            await flow.migrate(4, slot_groups=2)
            await flow.send(2)
            plan = await plan_migration(flow.app, flow.steps, partition_count=7)
            left = [calls]
            with monkeypatch.context() as patched:
                patched.setattr("runnel.admin.migration.connected", lambda app, left=left: cut_off(app.endpoint, left))
                try:
                    await begin_migration(flow.app, flow.steps, plan)
                    done = True
                except RedisUnavailable:
                    done = False
            await flow.send(2)
            async with running(flow.app):
                await flow.send(2)
                await flow.migrate(7)
                await flow.send(2)
                await eventually(flow.complete)
                await eventually(lambda: len(flow.recorder.of(GenerationBegun)) == 2)  # noqa: B023  at once
            flow.check()
            assert flow.steps.generation == plan.after
        if done:
            break
        calls += 1
    assert calls > 6


async def test_two_migrations_to_the_same_division_are_one(flow: Flow) -> None:
    async with flow.app:
        await flow.send()
        plan = await plan_migration(flow.app, flow.steps, partition_count=7)
        await asyncio.gather(begin_migration(flow.app, flow.steps, plan), begin_migration(flow.app, flow.steps, plan))
        again = await plan_migration(flow.app, flow.steps, partition_count=7)
        assert not again.needed
        await begin_migration(flow.app, flow.steps, again)
        assert again.after == plan.after
        other = replace(plan, after=replace(plan.after, partition_count=9))
        with pytest.raises(MigrationConflict, match="into 7 partitions"):
            await begin_migration(flow.app, flow.steps, other)


async def test_a_stream_that_was_never_used_is_not_migrated(flow: Flow) -> None:
    with pytest.raises(UnusedStream):
        await plan_migration(flow.app, flow.steps, partition_count=7)
    with pytest.raises(UnusedStream):
        await describe_stream(flow.app, flow.steps)


@pytest.mark.everywhere
async def test_partitions_are_spread_over_other_slot_groups(flow: Flow) -> None:
    async with flow.app, running(flow.app):
        await flow.send(2)
        await flow.migrate(6, slot_groups=3)
        await flow.send(2)
        await eventually(flow.complete)
        described = (await describe_stream(flow.app, flow.steps)).generations[-1]
        assert [one.slot_group for one in described.partitions] == [0, 1, 2, 0, 1, 2]
        assert len({one.slot for one in described.partitions}) == 3
    flow.check()


@pytest.mark.everywhere
async def test_large_and_small_sends_that_are_under_way_together_follow_in_order(flow: Flow) -> None:
    """Over both connections of a producer, to several slot groups, while the stream is divided anew three times."""

    async def send(key: str, rounds: int, number: int) -> None:
        for _ in range(rounds):
            first = flow.sent[key]
            flow.sent[key] += number
            ids = await flow.steps.send(*(Step(key=key, number=first + n + 1) for n in range(number)))
            assert len(set(ids)) == number

    async with flow.app, running(flow.app):
        await flow.send()
        sending = [asyncio.create_task(send(f"large-{n}", 8, 700)) for n in range(4)]
        sending += [asyncio.create_task(send(f"small-{n}", 150, 1)) for n in range(20)]
        for partition_count, slot_groups in ((7, 3), (4, 2), (5, 1)):
            await asyncio.sleep(0.05)
            await flow.migrate(partition_count, slot_groups)
        await asyncio.gather(*sending)
        await flow.send()
        await eventually(flow.complete, timeout=30)
        assert flow.steps.generation == Generation(3, 5, 1)
    flow.check()
