"""What becomes of a partition whose processing fails: the three policies, damaged entries, the limits of patience."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from harness import Inspector, Recorder, eventually, inspecting, run_to_end, running
from runnel import App, ExceptionPolicy, Record
from runnel._core.lease import Lease
from runnel._redis import scripts
from runnel._redis.keys import ControlKeys
from runnel._redis.link import Link
from runnel._redis.scripts import Beat
from runnel._worker import Worker
from runnel.admin import apply_reset, pause_processor, plan_reset, resume_processor
from runnel.errors import DecodeError
from runnel.instruments import PartitionFailed, PartitionGained, PartitionLost, PartitionsPaused, WorkerStopping
from runnel.streams import Stream

pytestmark = pytest.mark.anyio


class Step(Record):
    key: int
    n: int


class Boom(Exception):
    """What the user's code raises."""


class Steps:
    """An app whose processor fails where it is told to, over partitions that are chosen by the key."""

    def __init__(self, app_name: str, redis_url: str, partitions: int = 1, **options: Any) -> None:
        self.app = App(name=app_name, redis_url=redis_url, partition_count=partitions)
        self.stream = self.app.stream("steps", record=Step, partition_by="key", hasher=by_number)
        self.fails: Callable[[Step], bool] = lambda step: False
        self.seen: list[tuple[int, int]] = []
        self.runs = 0
        self.announced = Recorder(self.app)

        @self.app.processor(self.stream, **options)
        async def proc(events):
            self.runs += 1
            async for step in events.records():
                self.seen.append((step.key, step.n))
                if self.fails(step):
                    raise Boom(f"at {step.n}")

    def of(self, key: int) -> list[int]:
        return [n for its_key, n in self.seen if its_key == key]


def by_number(key: int) -> int:
    return key


def steps(key: int, number: int, start: int = 0) -> list[Step]:
    return [Step(key=key, n=n) for n in range(start, start + number)]


async def marks(redis: Inspector, app: App, stream: Stream[Any], processor: str = "proc") -> dict[int, dict[str, Any]]:
    """The partitions that are marked as poisoned, with what is said about each."""
    flat = await redis.link.call("HGETALL", ControlKeys.of(app.name, stream.name, processor).parked)
    return {
        int(partition): json.loads(value.split(b"|", 1)[1])
        for partition, value in zip(flat[::2], flat[1::2], strict=True)
    }


# Halt


async def test_the_guides_failer_halts_the_worker(app_name: str, redis_url: str) -> None:
    app = App(name=app_name, redis_url=redis_url)
    orders = app.stream("orders", record=Step, partition_by="key")

    @app.processor(orders, exception_policy=ExceptionPolicy.HALT)
    async def failer(events):
        async for order in events.records():  # noqa: B007  as the guide has it
            raise ValueError

    await orders.send(Step(key=1, n=1))
    status, worker = await run_to_end(app)
    assert status == 1
    assert type(worker.failure) is ValueError


async def test_halting_commits_what_came_before_and_the_next_worker_begins_at_the_failed_event(
    app_name: str, redis_url: str
) -> None:
    steps_app = Steps(app_name, redis_url)
    steps_app.fails = lambda step: step.n == 3
    ids = await steps_app.stream.send(*steps(0, 6))
    async with inspecting(steps_app.app) as redis:
        for attempt in range(1, 3):
            status, worker = await run_to_end(steps_app.app)
            assert status == 1
            assert isinstance(worker.failure, Boom)
            assert await redis.position(steps_app.stream, "proc", 0) == ids[2]
            assert steps_app.of(0) == [0, 1, 2] + [3] * attempt
        steps_app.fails = lambda step: False
        async with running(steps_app.app):
            await eventually(lambda: steps_app.of(0)[-1] == 5)
        assert steps_app.of(0) == [0, 1, 2, 3, 3, 3, 4, 5]
        assert await redis.position(steps_app.stream, "proc", 0) == ids[-1]


async def test_a_halt_is_announced_with_the_event_and_the_error(app_name: str, redis_url: str) -> None:
    steps_app = Steps(app_name, redis_url)
    steps_app.fails = lambda step: True
    ids = await steps_app.stream.send(*steps(0, 2))
    _, worker = await run_to_end(steps_app.app)
    (failed,) = steps_app.announced.of(PartitionFailed)
    assert (failed.processor, failed.partition, failed.event_ids, failed.policy) == ("proc", 0, (ids[0],), "halt")
    assert failed.error is worker.failure
    (stopping,) = steps_app.announced.of(WorkerStopping)
    assert stopping.reason == 'the processor "proc" halted'
    assert steps_app.announced.of(PartitionLost) == []


async def test_halting_lets_the_other_partitions_finish_their_event(app_name: str, redis_url: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=2)
    stream = app.stream("steps", record=Step, partition_by="key", hasher=by_number)
    other_began, failed = asyncio.Event(), asyncio.Event()
    finished: list[int] = []
    app.instruments.subscribe(lambda a: failed.set() if isinstance(a, WorkerStopping) else None)

    @app.processor(stream)
    async def proc(events):
        async for step in events.records():
            if step.key == 0:
                await other_began.wait()
                raise Boom
            other_began.set()
            await failed.wait()
            finished.append(step.n)

    await stream.send(*steps(0, 1))
    ids = await stream.send(*steps(1, 3))
    status, _ = await run_to_end(app)
    assert status == 1
    assert finished[0] == 0, "it was not cut off"
    async with inspecting(app) as redis:
        assert await redis.position(stream, "proc", 0) == "0-0"
        assert await redis.position(stream, "proc", 1) == ids[finished[-1]]


async def test_a_failed_batch_is_repeated_as_a_whole(app_name: str, redis_url: str) -> None:
    """The guide's warning: half of the batch was processed, and is processed again."""
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    seen: list[int] = []

    @app.processor(stream)
    async def proc(events):
        async for batch in events.take(4, within=0.1).records():
            for step in batch:
                seen.append(step.n)
                if step.n == 6 and seen.count(6) == 1:
                    raise Boom

    ids = await stream.send(*steps(0, 8))
    async with inspecting(app) as redis:
        status, _ = await run_to_end(app)
        assert status == 1
        assert await redis.position(stream, "proc", 0) == ids[3]
    async with running(app):
        await eventually(lambda: seen[-1] == 7)
    assert seen == [0, 1, 2, 3, 4, 5, 6, 4, 5, 6, 7]


async def test_the_error_of_a_second_failure_does_not_replace_the_first(app_name: str, redis_url: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=2)
    stream = app.stream("steps", record=Step, partition_by="key", hasher=by_number)
    stopping = asyncio.Event()
    app.instruments.subscribe(lambda a: stopping.set() if isinstance(a, WorkerStopping) else None)
    both = asyncio.Barrier(2)

    @app.processor(stream)
    async def proc(events):
        async for step in events.records():
            await both.wait()
            if step.key == 1:
                await stopping.wait()
            raise Boom(step.key)

    await stream.send(*steps(0, 1), *steps(1, 1))
    status, worker = await run_to_end(app)
    assert status == 1
    assert str(worker.failure) == "0"


# Quarantine


async def test_quarantine_stops_one_partition_and_the_others_go_on(app_name: str, redis_url: str) -> None:
    steps_app = Steps(app_name, redis_url, 4, exception_policy=ExceptionPolicy.QUARANTINE)
    steps_app.fails = lambda step: step.key == 2 and step.n == 1
    ids = await steps_app.stream.send(*steps(2, 3))
    async with inspecting(steps_app.app) as redis:
        async with running(steps_app.app):
            found = await eventually(lambda: marks(redis, steps_app.app, steps_app.stream))
            await steps_app.stream.send(*(step for key in range(4) for step in steps(key, 5, start=10)))
            await eventually(lambda: len(steps_app.seen) == 2 + 3 * 5)
            assert await redis.position(steps_app.stream, "proc", 2) == ids[0]
        assert steps_app.of(2) == [0, 1], "nothing after the failed event was processed"
        assert list(found) == [2]
        assert found[2]["events"] == [ids[1]]
        assert found[2]["error"] == "Boom: at 1"
        assert "raise Boom(" in found[2]["traceback"]
        assert found[2]["since"].endswith("+00:00")
        (failed,) = steps_app.announced.of(PartitionFailed)
        assert (failed.partition, failed.policy) == (2, "quarantine")
        assert await marks(redis, steps_app.app, steps_app.stream) == {}, "the mark goes with its worker"


async def test_a_restart_of_the_worker_retries_what_was_quarantined(app_name: str, redis_url: str) -> None:
    steps_app = Steps(app_name, redis_url, exception_policy=ExceptionPolicy.QUARANTINE)
    steps_app.fails = lambda step: step.n == 1
    await steps_app.stream.send(*steps(0, 4))
    async with inspecting(steps_app.app) as redis:
        async with running(steps_app.app):
            await eventually(lambda: marks(redis, steps_app.app, steps_app.stream))
        async with running(steps_app.app):
            await eventually(lambda: steps_app.of(0) == [0, 1, 1])
            await eventually(lambda: marks(redis, steps_app.app, steps_app.stream))
        steps_app.fails = lambda step: False
        async with running(steps_app.app):
            await eventually(lambda: steps_app.of(0)[-1] == 3)
            assert await marks(redis, steps_app.app, steps_app.stream) == {}
    assert steps_app.of(0) == [0, 1, 1, 1, 2, 3]


async def test_a_quarantined_partition_that_moves_to_another_worker_stays_stopped(
    app_name: str, redis_url: str
) -> None:
    """Both workers have joined, and share two poisoned partitions; neither has processed an event of them twice."""
    first = Steps(app_name, redis_url, 2, exception_policy=ExceptionPolicy.QUARANTINE)
    second = Steps(app_name, redis_url, 2, exception_policy=ExceptionPolicy.QUARANTINE)
    first.fails = second.fails = lambda step: step.n == 0
    await first.stream.send(*steps(0, 2), *steps(1, 2))

    async def both_marked() -> bool:
        return len(await marks(redis, first.app, first.stream)) == 2

    async with inspecting(first.app) as redis, running(first.app):
        await eventually(both_marked)
        async with running(second.app):
            (gained,) = await eventually(lambda: second.announced.of(PartitionGained))
            assert gained.quarantined
            assert second.seen == []
            assert len(await marks(redis, first.app, first.stream)) == 2
        assert sorted(first.seen) == [(0, 0), (1, 0)]


async def test_when_the_worker_with_the_mark_leaves_the_next_one_tries_again(app_name: str, redis_url: str) -> None:
    first = Steps(app_name, redis_url, exception_policy=ExceptionPolicy.QUARANTINE)
    second = Steps(app_name, redis_url, exception_policy=ExceptionPolicy.QUARANTINE)
    first.fails = lambda step: True
    await first.stream.send(*steps(0, 2))
    async with inspecting(first.app) as redis:
        async with running(first.app):
            await eventually(lambda: marks(redis, first.app, first.stream))
            second_running = running(second.app)
            await second_running.__aenter__()
        await eventually(lambda: second.of(0) == [0, 1])
        await second_running.__aexit__(None, None, None)
    assert first.of(0) == [0]


async def test_a_mark_that_goes_while_the_partition_is_being_acquired_stops_nothing(
    app_name: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. A marked partition is released, and granted to the next worker with its mark. 2. The worker that set the mark
    leaves, and the mark is gone. 3. The next worker hears of that before it has acquired the partition."""
    first = Steps(app_name, redis_url, exception_policy=ExceptionPolicy.QUARANTINE)
    second = Steps(app_name, redis_url, exception_policy=ExceptionPolicy.QUARANTINE)
    first.fails = lambda step: True
    await first.stream.send(*steps(0, 2))
    async with inspecting(first.app) as redis:
        async with running(first.app) as leaving:
            await eventually(lambda: marks(redis, first.app, first.stream))
            second_running = running(second.app)
            worker = await second_running.__aenter__()
            await eventually(lambda: worker.members and worker.members[0].holder.joined)
            (member,) = worker.members
            beats: list[Beat] = []
            heard, acquire = member.holder.on_beat, scripts.acquire

            def hear(beat: Beat, lease: Lease) -> None:
                heard(beat, lease)
                beats.append(beat)

            async def acquire_late(
                link: Link, keys: Any, processor: str, partition: int, token: int, name: str, known: Any
            ) -> Any:
                if name == worker.name:
                    await eventually(lambda: any(0 in beat.granted and not beat.quarantined for beat in beats))
                return await acquire(link, keys, processor, partition, token, name, known)

            monkeypatch.setattr(member.holder, "on_beat", hear)
            monkeypatch.setattr(scripts, "acquire", acquire_late)
            # It stays a member for a little longer, as one does that has more to release.
            stay = leaving.members[0]
            drain = stay.drain

            async def drain_late() -> None:
                await drain()
                await eventually(lambda: any(0 in beat.quarantined for beat in beats))

            monkeypatch.setattr(stay, "drain", drain_late)
        await eventually(lambda: second.of(0) == [0, 1])
        await second_running.__aexit__(None, None, None)


# Ignore


async def test_ignoring_acknowledges_the_failed_event_and_goes_on_with_the_next(app_name: str, redis_url: str) -> None:
    steps_app = Steps(app_name, redis_url, exception_policy=ExceptionPolicy.IGNORE)
    steps_app.fails = lambda step: step.n % 2 == 1
    ids = await steps_app.stream.send(*steps(0, 6))
    async with inspecting(steps_app.app) as redis:
        async with running(steps_app.app):
            await eventually(lambda: steps_app.of(0)[-1:] == [5])
        assert steps_app.of(0) == [0, 1, 2, 3, 4, 5]
        assert await redis.position(steps_app.stream, "proc", 0) == ids[-1]
    failed = steps_app.announced.of(PartitionFailed)
    assert [(f.event_ids, f.policy, str(f.error)) for f in failed] == [
        ((ids[n],), "ignore", f"at {n}") for n in (1, 3, 5)
    ]


async def test_ignoring_acknowledges_the_whole_of_a_failed_batch(app_name: str, redis_url: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    announced = Recorder(app)
    seen: list[list[int]] = []

    @app.processor(stream, exception_policy=ExceptionPolicy.IGNORE)
    async def proc(events):
        async for batch in events.take(3, within=1).records():
            seen.append([step.n for step in batch])
            if len(seen) == 1:
                raise Boom

    ids = await stream.send(*steps(0, 6))
    async with running(app):
        await eventually(lambda: len(seen) == 2)
    assert seen == [[0, 1, 2], [3, 4, 5]]
    assert [failed.event_ids for failed in announced.of(PartitionFailed)] == [tuple(ids[:3])]


async def test_ignoring_a_failure_before_the_first_event_skips_nothing(
    app_name: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runnel._worker.consumer.RESTART_DELAY", 0.01)
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    announced = Recorder(app)
    seen: list[int] = []
    runs = 0

    @app.processor(stream, exception_policy=ExceptionPolicy.IGNORE)
    async def proc(events):
        nonlocal runs
        runs += 1
        if runs < 4:
            raise Boom("not yet")
        async for step in events.records():
            seen.append(step.n)

    await stream.send(*steps(0, 3))
    async with running(app):
        await eventually(lambda: len(seen) == 3)
    assert seen == [0, 1, 2]
    assert [failed.event_ids for failed in announced.of(PartitionFailed)] == [()] * 3


@pytest.mark.parametrize("error", [asyncio.CancelledError("mine"), TimeoutError(), StopAsyncIteration()], ids=repr)
async def test_an_error_that_the_event_loop_uses_is_a_failure_as_any_other(
    app_name: str, redis_url: str, error: BaseException
) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    announced = Recorder(app)
    seen: list[int] = []

    @app.processor(stream, exception_policy=ExceptionPolicy.IGNORE)
    async def proc(events):
        async for step in events.records():
            seen.append(step.n)
            if step.n == 0:
                raise error

    await stream.send(*steps(0, 3))
    async with running(app):
        await eventually(lambda: len(seen) == 3)
    assert seen == [0, 1, 2]
    assert [type(failed.error) for failed in announced.of(PartitionFailed)] == [type(error)]


class Panic(BaseException):
    """What Rust code raises, for instance, when it has a defect."""


@pytest.mark.parametrize("error", [Panic(), BaseExceptionGroup("several", [Panic()]), GeneratorExit()], ids=repr)
@pytest.mark.parametrize("policy", [ExceptionPolicy.QUARANTINE, ExceptionPolicy.IGNORE])
async def test_what_is_no_exception_is_a_failure_as_any_other(
    app_name: str, redis_url: str, policy: ExceptionPolicy, error: BaseException
) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=2)
    stream = app.stream("steps", record=Step, partition_by="key", hasher=by_number)
    announced = Recorder(app)
    seen: list[tuple[int, int]] = []

    @app.processor(stream, exception_policy=policy, retries=1, backoff=0.01)
    async def proc(events):
        async for step in events.records():
            seen.append((step.key, events.attempt))
            if step.key == 0:
                raise error

    await stream.send(Step(key=0, n=0))
    async with running(app):
        await eventually(lambda: announced.of(PartitionFailed))
        await stream.send(Step(key=1, n=0))
        await eventually(lambda: (1, 1) in seen)
    assert seen == [(0, 1), (0, 2), (1, 1)]
    assert [(failed.policy, failed.error) for failed in announced.of(PartitionFailed)] == [(policy.value, error)]


async def test_the_end_of_something_else_during_a_drain_is_a_failure_of_the_event(
    app_name: str, redis_url: str
) -> None:
    """`StopAsyncIteration` is the end of the events only if none is in progress."""
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    drained = asyncio.Event()
    seen: list[int] = []

    @app.processor(stream)
    async def proc(events):
        async for step in events.records():
            seen.append(step.n)
            if step.n == 1 and not drained.is_set():
                await drained.wait()
                raise StopAsyncIteration

    ids = await stream.send(*steps(0, 3))
    async with inspecting(app) as redis:
        worker = Worker(app)
        running_worker = asyncio.create_task(worker.run())
        await eventually(lambda: len(seen) == 2)
        worker.stop("test")
        await eventually(lambda: worker.members[0].consumers[0].feed.ended)
        drained.set()
        assert await running_worker == 1
        assert await redis.position(stream, "proc", 0) == ids[0]


async def test_a_function_that_cancels_its_own_task_halts_the_worker(app_name: str, redis_url: str) -> None:
    """A home-made time-out, say. The partition must not be left to nobody by a worker that lives."""
    app = App(name=app_name, redis_url=redis_url, partition_count=2)
    stream = app.stream("steps", record=Step, partition_by="key", hasher=by_number)
    announced = Recorder(app)

    @app.processor(stream)
    async def proc(events):
        async for step in events.records():
            if step.n == 1:
                task = asyncio.current_task()
                assert task is not None
                asyncio.get_running_loop().call_later(0.01, task.cancel)
                await asyncio.Event().wait()

    ids = await stream.send(*steps(0, 3))
    async with inspecting(app) as redis:
        status, worker = await run_to_end(app)
        assert status == 1
        assert isinstance(worker.failure, asyncio.CancelledError)
        assert await redis.position(stream, "proc", 0) == ids[0]
    (failed,) = announced.of(PartitionFailed)
    assert (failed.partition, failed.policy) == (0, "halt")


async def test_an_exception_that_the_function_handles_itself_is_none_of_ours(app_name: str, redis_url: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    seen: list[int] = []

    @app.processor(stream)
    async def proc(events):
        async for step in events.records():
            try:
                seen.append(step.n)
                raise Boom
            except Boom:
                continue

    await stream.send(*steps(0, 3))
    async with running(app):
        await eventually(lambda: len(seen) == 3)


# Entries that are no records

GARBAGE = ("data", b"\xff not json")


def damaged(app: App, stream: Stream[Any], form: str, seen: list[int], **options: Any) -> None:
    """A processor in one of the three forms."""

    @app.processor(stream, **options)
    async def proc(events):
        if form == "records":
            async for step in events.records():
                seen.append(step.n)
        elif form == "events":
            async for event in events:
                seen.append(event.n)
        else:
            async for batch in events.take(1, within=0.1).records():
                seen.extend(step.n for step in batch)


async def lay_out(app: App, stream: Stream[Step], redis: Inspector) -> list[str]:
    """Two good entries around a damaged one."""
    (before,) = await stream.send(Step(key=0, n=0))
    bad = await redis.add(stream, 0, *GARBAGE)
    (after,) = await stream.send(Step(key=0, n=1))
    return [before, bad, after]


forms = pytest.mark.parametrize("form", ["records", "events", "batches"])


@forms
async def test_an_undecodable_event_halts_the_worker(app_name: str, redis_url: str, form: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    seen: list[int] = []
    damaged(app, stream, form, seen)
    async with inspecting(app) as redis:
        before, _, _ = await lay_out(app, stream, redis)
        status, worker = await run_to_end(app)
        assert status == 1
        assert isinstance(worker.failure, DecodeError)
        assert "not a record of Step" in str(worker.failure)
        assert await redis.position(stream, "proc", 0) == before
    assert seen == [0]


@forms
async def test_an_undecodable_event_is_quarantined(app_name: str, redis_url: str, form: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    seen: list[int] = []
    damaged(app, stream, form, seen, exception_policy=ExceptionPolicy.QUARANTINE)
    async with inspecting(app) as redis:
        before, bad, _ = await lay_out(app, stream, redis)
        async with running(app):
            found = await eventually(lambda: marks(redis, app, stream))
        assert found[0]["events"] == [bad]
        assert found[0]["error"].startswith("DecodeError: The entry is not a record of Step")
        assert await redis.position(stream, "proc", 0) == before
    assert seen == [0]


@forms
async def test_an_undecodable_event_is_ignored(app_name: str, redis_url: str, form: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    seen: list[int] = []
    damaged(app, stream, form, seen, exception_policy=ExceptionPolicy.IGNORE)
    async with inspecting(app) as redis:
        _, _, after = await lay_out(app, stream, redis)
        async with running(app):
            await eventually(lambda: len(seen) == 2)
        assert await redis.position(stream, "proc", 0) == after
    assert seen == [0, 1]


@pytest.mark.parametrize(
    "fields", [("data", ""), ("foreign", "1"), ("data", "{}"), ("data", b"\x00gzip\x00rubbish"), ("data", b"\x00x")]
)
async def test_whatever_is_in_the_log_does_not_stop_a_worker_that_ignores(
    app_name: str, redis_url: str, fields: tuple[str | bytes, ...]
) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    announced = Recorder(app)
    seen: list[int] = []
    damaged(app, stream, "records", seen, exception_policy=ExceptionPolicy.IGNORE)
    async with inspecting(app) as redis:
        bad = await redis.add(stream, 0, *fields)
        await stream.send(Step(key=0, n=1))
        async with running(app):
            await eventually(lambda: seen)
    (failed,) = announced.of(PartitionFailed)
    assert failed.event_ids == (bad,)
    assert isinstance(failed.error, DecodeError)


async def test_who_does_not_look_at_the_record_does_not_mind(app_name: str, redis_url: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    seen: list[dict[bytes, bytes]] = []

    @app.processor(stream)
    async def proc(events):
        async for event in events:
            seen.append(event.data)

    async with inspecting(app) as redis:
        await redis.add(stream, 0, *GARBAGE)
        async with running(app):
            await eventually(lambda: seen)
    assert seen == [{b"data": b"\xff not json"}]


# The limits of patience


async def test_an_event_that_outlasts_the_grace_period_is_given_up_and_repeated(app_name: str, redis_url: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    seen: list[int] = []
    ended: list[str] = []
    stuck = True

    @app.processor(stream, grace_period=0.05)
    async def proc(events):
        async for step in events.records():
            seen.append(step.n)
            if stuck and step.n == 1:
                try:
                    await asyncio.Event().wait()
                finally:
                    ended.append("cleaned up")

    ids = await stream.send(*steps(0, 3))
    async with inspecting(app) as redis:
        async with running(app):
            await eventually(lambda: len(seen) == 2)
        assert ended == ["cleaned up"]
        assert await redis.position(stream, "proc", 0) == ids[0]
    stuck = False
    async with running(app):
        await eventually(lambda: seen[-1] == 2)
    assert seen == [0, 1, 1, 2]


async def test_a_function_that_swallows_its_cancellation_is_not_committed_after_the_grace_period(
    app_name: str, redis_url: str
) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    seen: list[int] = []

    @app.processor(stream, grace_period=0.05)
    async def proc(events):
        async for step in events.records():
            seen.append(step.n)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return

    await stream.send(*steps(0, 3))
    async with inspecting(app) as redis:
        async with running(app):
            await eventually(lambda: seen)
        assert await redis.position(stream, "proc", 0) == "0-0"
    assert seen == [0]


def endless(stuck: Steps) -> None:
    """Have it processed by a function that does not end with its events, but asks for more, again and again."""

    @stuck.app.processor(stuck.stream, grace_period=0.05)
    async def endless(events):
        while True:
            try:
                async with asyncio.timeout(1):
                    async for step in events.records():
                        stuck.seen.append((step.key, step.n))
            except TimeoutError:
                pass


async def test_a_function_that_does_not_end_with_its_events_is_cancelled_at_the_stop(
    app_name: str, redis_url: str
) -> None:
    stuck = Steps(app_name, redis_url)
    endless(stuck)
    ids = await stuck.stream.send(*steps(0, 3))
    async with inspecting(stuck.app) as redis:
        async with running(stuck.app, ["endless"]):
            await eventually(lambda: stuck.of(0) == [0, 1, 2])
        assert await redis.position(stuck.stream, "endless", 0) == ids[-1]


async def test_a_function_that_does_not_end_with_its_events_goes_on_after_a_pause(
    app_name: str, redis_url: str
) -> None:
    stuck = Steps(app_name, redis_url)
    endless(stuck)
    await stuck.stream.send(*steps(0, 3))
    async with running(stuck.app, ["endless"]):
        await eventually(lambda: stuck.of(0) == [0, 1, 2])
        await pause_processor(stuck.app, "endless")
        await eventually(lambda: stuck.announced.of(PartitionsPaused))
        await stuck.stream.send(*steps(0, 1, start=3))
        await resume_processor(stuck.app, "endless")
        await eventually(lambda: stuck.of(0) == [0, 1, 2, 3])


async def test_a_function_that_does_not_end_with_its_events_goes_on_from_where_it_is_moved(
    app_name: str, redis_url: str
) -> None:
    stuck = Steps(app_name, redis_url)
    endless(stuck)
    await stuck.stream.send(*steps(0, 3))
    async with running(stuck.app, ["endless"]):
        await eventually(lambda: stuck.of(0) == [0, 1, 2])
        await apply_reset(stuck.app, "endless", await plan_reset(stuck.app, "endless", "earliest"))
        await eventually(lambda: stuck.of(0) == [0, 1, 2, 0, 1, 2])


async def test_an_event_in_progress_may_take_longer_than_the_grace_period_in_a_pause(
    app_name: str, redis_url: str
) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    announced = Recorder(app)
    gate = asyncio.Event()
    seen: list[int] = []

    @app.processor(stream, grace_period=0.05)
    async def proc(events):
        async for step in events.records():
            seen.append(step.n)
            await gate.wait()

    ids = await stream.send(*steps(0, 2))
    async with inspecting(app) as redis, running(app) as worker:
        await eventually(lambda: seen)
        (consumer,) = worker.members[0].consumers
        await pause_processor(app, "proc")
        await eventually(lambda: announced.of(PartitionsPaused))
        begun = consumer._grace
        await eventually(lambda: consumer._grace is not begun)  # it is over, and begins again
        gate.set()

        async def committed() -> bool:
            return await redis.position(stream, "proc", 0) == ids[0]

        await eventually(committed)
        await resume_processor(app, "proc")
        await eventually(lambda: seen == [0, 1])
