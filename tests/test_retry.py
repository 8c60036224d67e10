"""Trying a failing event or batch again, in order, before the exception policy applies."""

import asyncio
import itertools
import random
import time
from typing import Any

import pytest

from harness import Recorder, eventually, inspecting, run_to_end, running
from runnel import App, ExceptionPolicy, Record
from runnel.errors import ConfigurationError, DecodeError
from runnel.instruments import AttemptFailed, PartitionFailed, PartitionReleased
from runnel.interfaces import Middleware
from runnel.middleware import DeadLetterMiddleware
from runnel.streams import Stream

pytestmark = pytest.mark.anyio


class Step(Record):
    key: int
    n: int


class Boom(Exception):
    """What the user's code raises."""


def app_with(app_name: str, redis_url: str, partitions: int = 1, **settings: Any) -> tuple[App, Stream[Step]]:
    app = App(name=app_name, redis_url=redis_url, partition_count=partitions, **settings)
    return app, app.stream("steps", record=Step, partition_by="key", hasher=lambda key: key)


def steps(key: int, number: int) -> list[Step]:
    return [Step(key=key, n=n) for n in range(number)]


@pytest.mark.parametrize("form", ["records", "events"])
async def test_a_failing_event_comes_first_again_with_its_attempt_until_it_succeeds(
    app_name: str, redis_url: str, form: str
) -> None:
    app, stream = app_with(app_name, redis_url)
    announced = Recorder(app)
    seen: list[tuple[int, int]] = []

    @app.processor(stream, retries=5, backoff=0.01)
    async def proc(events):
        async for step in events.records() if form == "records" else events:
            seen.append((step.n, events.attempt))
            if step.n == 2 and events.attempt < 4:
                raise Boom

    ids = await stream.send(*steps(0, 5))
    async with inspecting(app) as redis:
        async with running(app):
            await eventually(lambda: seen and seen[-1][0] == 4)
        assert await redis.position(stream, "proc", 0) == ids[-1]
        assert await redis.count(stream, "proc") == 5
    assert seen == [(0, 1), (1, 1), (2, 1), (2, 2), (2, 3), (2, 4), (3, 1), (4, 1)]
    failed = announced.of(AttemptFailed)
    assert [(item.event_ids, item.attempt, item.retries) for item in failed] == [((ids[2],), n, 5) for n in (1, 2, 3)]
    assert announced.of(PartitionFailed) == []


async def test_waits_double_up_to_the_longest_and_are_jittered(app_name: str, redis_url: str) -> None:
    app, stream = app_with(app_name, redis_url)
    announced = Recorder(app)

    @app.processor(stream, retries=5, backoff=0.02, backoff_max=0.1)
    async def proc(events):
        async for _ in events:
            raise Boom

    await stream.send(*steps(0, 1))
    started = time.monotonic()
    status, _ = await run_to_end(app)
    assert status == 1
    waits = [item.seconds for item in announced.of(AttemptFailed)]
    for wait, bound in zip(waits, [0.02, 0.04, 0.08, 0.1, 0.1], strict=True):
        assert bound / 2 <= wait <= bound
    assert time.monotonic() - started >= sum(waits)


@pytest.mark.parametrize("policy", list(ExceptionPolicy))
async def test_the_policy_applies_when_the_last_attempt_has_failed(
    app_name: str, redis_url: str, policy: ExceptionPolicy
) -> None:
    app, stream = app_with(app_name, redis_url)
    announced = Recorder(app)
    seen: list[int] = []

    @app.processor(stream, retries=2, backoff=0.01, exception_policy=policy)
    async def proc(events):
        async for step in events.records():
            seen.append(step.n)
            if step.n == 1:
                raise Boom

    await stream.send(*steps(0, 3))
    if policy is ExceptionPolicy.HALT:
        assert (await run_to_end(app))[0] == 1
    else:
        async with running(app):
            await eventually(lambda: announced.of(PartitionFailed))
            if policy is ExceptionPolicy.IGNORE:
                await eventually(lambda: seen[-1] == 2)
    (failed,) = announced.of(PartitionFailed)
    assert (failed.policy, failed.attempt) == (policy.value, 3)
    assert seen == [0, 1, 1, 1] + ([2] if policy is ExceptionPolicy.IGNORE else [])


async def test_success_begins_the_count_anew(app_name: str, redis_url: str) -> None:
    app, stream = app_with(app_name, redis_url)
    seen: list[tuple[int, int]] = []

    @app.processor(stream, retries=1, backoff=0.01)
    async def proc(events):
        async for step in events.records():
            seen.append((step.n, events.attempt))
            if events.attempt == 1:
                raise Boom

    await stream.send(*steps(0, 4))
    async with running(app):
        await eventually(lambda: (3, 2) in seen)
    assert seen == [(n, attempt) for n in range(4) for attempt in (1, 2)]


async def test_a_failing_batch_comes_again_as_the_same_batch(app_name: str, redis_url: str) -> None:
    app, stream = app_with(app_name, redis_url)
    seen: list[list[int]] = []

    @app.processor(stream, retries=3, backoff=0.05)
    async def proc(events):
        async for batch in events.take(4, within=0.05).records():
            seen.append([step.n for step in batch])
            if events.attempt < 3 and 1 in seen[-1]:
                if events.attempt == 1:  # there would be more for the batch now
                    await stream.send(*(Step(key=0, n=n) for n in range(2, 9)))
                raise Boom

    await stream.send(*steps(0, 2))
    async with inspecting(app) as redis:
        async with running(app):
            await eventually(lambda: seen and 8 in seen[-1])
        assert await redis.count(stream, "proc") == 9
    assert seen[:3] == [[0, 1]] * 3
    assert [n for batch in seen[3:] for n in batch] == list(range(2, 9))
    assert seen[3] == [2, 3, 4, 5]


async def test_a_failing_batch_may_be_taken_apart(app_name: str, redis_url: str) -> None:
    app, stream = app_with(app_name, redis_url)
    seen: list[tuple[int, ...]] = []

    @app.processor(stream, retries=1, backoff=0.01, exception_policy=ExceptionPolicy.IGNORE)
    async def proc(events):
        size = 4 if events.attempt == 1 else 1
        async for batch in events.take(size, within=0.05).records():
            seen.append(tuple(step.n for step in batch))
            if 2 in seen[-1]:
                raise Boom
            if size == 1 and batch[-1].n == 3:
                break

    await stream.send(*steps(0, 6))
    async with running(app):
        await eventually(lambda: seen and 5 in seen[-1])
    # The pieces before the bad event succeed, so the bad one alone has attempts of its own.
    assert seen[:4] == [(0, 1, 2, 3), (0,), (1,), (2,)]
    assert [batch for batch in seen[4:] if 2 in batch] == [(2,)]
    assert [n for batch in seen[4:] for n in batch if n != 2] == [3, 4, 5]


async def test_only_the_failing_partition_waits(app_name: str, redis_url: str) -> None:
    app, stream = app_with(app_name, redis_url, partitions=2)
    seen: list[tuple[int, int]] = []
    healed = False

    @app.processor(stream, retries=1000, backoff=0.01, backoff_max=0.01)
    async def proc(events):
        async for step in events.records():
            if step.key == 0 and not healed:
                raise Boom
            seen.append((step.key, step.n))

    await stream.send(*steps(0, 3), *steps(1, 50))
    async with running(app):
        await eventually(lambda: len(seen) == 50)
        assert {key for key, _ in seen} == {1}
        healed = True
        await eventually(lambda: len(seen) == 53)
    assert [n for key, n in seen if key == 0] == [0, 1, 2]


async def test_an_event_that_cannot_be_decoded_is_not_tried_again(app_name: str, redis_url: str) -> None:
    app, stream = app_with(app_name, redis_url)
    announced = Recorder(app)

    @app.processor(stream, retries=5, backoff=60)
    async def proc(events):
        async for _ in events.records():
            pass

    async with inspecting(app) as redis:
        await redis.add(stream, 0, "data", b"\xff not json")
        status, worker = await run_to_end(app)
    assert status == 1
    assert isinstance(worker.failure, DecodeError)
    assert announced.of(AttemptFailed) == []
    assert announced.of(PartitionFailed)[0].attempt == 1


async def test_a_function_that_fails_before_it_takes_an_event_is_tried_again(app_name: str, redis_url: str) -> None:
    app, stream = app_with(app_name, redis_url)
    attempts: list[int] = []
    seen: list[tuple[int, int]] = []

    @app.processor(stream, retries=3, backoff=0.01)
    async def proc(events):
        attempts.append(events.attempt)
        if len(attempts) < 3:
            raise Boom
        async for step in events.records():
            seen.append((step.n, events.attempt))

    await stream.send(*steps(0, 2))
    async with running(app):
        await eventually(lambda: len(seen) == 2)
    assert attempts == [1, 2, 3]
    assert seen == [(0, 3), (1, 1)]


async def test_middleware_has_finished_before_the_next_attempt_and_knows_whether_there_is_one(
    app_name: str, redis_url: str
) -> None:
    app, stream = app_with(app_name, redis_url)
    log: list[str] = []

    class Watcher(Middleware):
        async def handler(self, parent, **kwargs):
            events = kwargs["events"]
            async for x in parent:
                log.append(f"in {x.n}")
                try:
                    yield x
                except GeneratorExit:
                    await asyncio.sleep(0.02)
                    log.append(f"out {events.failure!r} {events.attempt} {events.retrying}")
                    raise

    @app.processor(stream, retries=1, backoff=0.001, exception_policy=ExceptionPolicy.IGNORE, middleware=[Watcher()])
    async def proc(events):
        async for step in events.records():
            if step.n == 0:
                raise Boom

    await stream.send(*steps(0, 2))
    async with running(app):
        await eventually(lambda: "in 1" in log)
    assert log[:5] == ["in 0", "out Boom() 1 True", "in 0", "out Boom() 2 False", "in 1"]


class SlowOnce(Middleware):
    """Takes longer than the function wants to wait, when an event is tried again."""

    def __init__(self) -> None:
        self.waited = False

    async def handler(self, parent, **kwargs):
        async for x in parent:
            if kwargs["events"].attempt > 1 and not self.waited:
                self.waited = True
                await asyncio.Event().wait()
            yield x


@pytest.mark.parametrize("form", ["records", "events"])
async def test_an_event_that_is_tried_again_is_not_skipped_by_a_timeout_while_middleware_is_at_work(
    app_name: str, redis_url: str, form: str
) -> None:
    app, stream = app_with(app_name, redis_url)
    seen: list[tuple[int, int]] = []

    @app.processor(stream, retries=1, backoff=0.01, middleware=[SlowOnce()])
    async def proc(events):
        iterator = aiter(events.records() if form == "records" else events)
        while True:
            try:
                async with asyncio.timeout(0.05):
                    step = await anext(iterator)
            except TimeoutError:
                iterator = aiter(events.records() if form == "records" else events)
            except StopAsyncIteration:
                return
            else:
                seen.append((step.n, events.attempt))
                if step.n == 0 and events.attempt == 1:
                    raise Boom

    await stream.send(*steps(0, 3))
    async with running(app):
        await eventually(lambda: seen and seen[-1][0] == 2)
    assert seen == [(0, 1), (0, 2), (1, 1), (2, 1)]


async def test_only_the_last_failure_is_forwarded_to_the_dead_letters(app_name: str, redis_url: str) -> None:
    app, stream = app_with(app_name, redis_url)
    announced = Recorder(app)
    dead_letter = DeadLetterMiddleware(source=stream)
    letters: list[int] = []
    left_at: list[int] = []

    @app.processor(stream, retries=2, backoff=0.01, exception_policy=ExceptionPolicy.IGNORE, middleware=[dead_letter])
    async def proc(events):
        async for step in events.records():
            # 0 is overcome, 1 is not
            if (step.n == 0 and events.attempt < 3) or step.n == 1:
                raise Boom(f"{step.n} at {events.attempt}")

    @app.processor(dead_letter.sink)
    async def dead(events):
        async for event in events:
            letters.append(event.n)
            left_at.append(len(announced.of(AttemptFailed)))
            assert event.headers["error"] == b"Boom: 1 at 3"

    await stream.send(*steps(0, 3))
    async with inspecting(app) as redis, running(app):
        await eventually(lambda: letters)

        async def all_done() -> bool:
            return await redis.count(stream, "proc") == 3

        await eventually(all_done)
    assert letters == [1]
    assert left_at == [4]


async def test_a_stop_during_the_wait_releases_at_once_and_acknowledges_nothing(app_name: str, redis_url: str) -> None:
    app, stream = app_with(app_name, redis_url)
    announced = Recorder(app)

    @app.processor(stream, retries=1, backoff=600, backoff_max=600, exception_policy=ExceptionPolicy.IGNORE)
    async def proc(events):
        async for step in events.records():
            if step.n == 1:
                raise Boom

    ids = await stream.send(*steps(0, 3))
    async with inspecting(app) as redis:
        async with running(app):
            await eventually(lambda: announced.of(AttemptFailed))
        assert await redis.position(stream, "proc", 0) == ids[0]
    (released,) = announced.of(PartitionReleased)
    assert released.seconds < 5
    assert announced.of(PartitionFailed) == []


async def test_a_partition_that_moves_during_the_wait_goes_on_with_the_failed_event(
    app_name: str, redis_url: str
) -> None:
    """The first worker owns both partitions; the second takes one of them over, in the middle of its wait."""
    apps = [app_with(app_name, redis_url, partitions=2) for _ in range(2)]
    seen: list[tuple[int, int, int, int]] = []
    announced = [Recorder(app) for app, _ in apps]
    healed = False
    for number, (app, stream) in enumerate(apps):

        @app.processor(stream, retries=1, backoff=600, backoff_max=600)
        async def proc(events, number=number):
            async for step in events.records():
                seen.append((number, step.key, step.n, events.attempt))
                if step.n == 1 and not healed:
                    raise Boom

    await apps[0][1].send(*steps(0, 3), *steps(1, 3))
    async with running(apps[0][0]):
        await eventually(lambda: len(announced[0].of(AttemptFailed)) == 2)
        healed = True
        async with running(apps[1][0]):
            await eventually(lambda: len([item for item in seen if item[0] == 1]) == 2)
    (moved,) = {key for number, key, _, _ in seen if number == 1}
    assert [item for item in seen if item[1] == moved] == [
        (0, moved, 0, 1),
        (0, moved, 1, 1),
        (1, moved, 1, 1),
        (1, moved, 2, 1),
    ]


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_fails_and_moves_no_event_overtakes_another(app_name: str, redis_url: str, seed: int) -> None:
    """Events fail at random, alone and in batches, while workers come and go."""
    chance = random.Random(seed)
    partitions, number = 4, 60
    done: list[tuple[int, int]] = []
    began: list[tuple[int, int]] = []
    producer, source = app_with(app_name, redis_url, partitions)

    def worker_app() -> App:
        app, stream = app_with(app_name, redis_url, partitions, heartbeat_interval=0.05, join_delay=0.01)

        @app.processor(stream, retries=1000, backoff=0.001, backoff_max=0.02)
        async def proc(events):
            batched = chance.random() < 0.5
            async for x in events.take(5, within=0.001).records() if batched else events.records():
                batch = x if batched else [x]
                began.extend((step.key, step.n) for step in batch)
                if chance.random() < 0.15:
                    raise Boom
                if chance.random() < 0.1:
                    await asyncio.sleep(0.002)
                done.extend((step.key, step.n) for step in batch)

        return app

    async with producer:
        await source.send(*(Step(key=key, n=n) for n in range(number) for key in range(partitions)))
    async with running(worker_app()):
        while len(done) < partitions * number:
            async with running(worker_app()):
                reached = len(done) + chance.randrange(10, 60)
                await eventually(lambda reached=reached: len(done) >= min(reached, partitions * number))
    for key in range(partitions):
        assert [n for its_key, n in done if its_key == key] == list(range(number))
        order = [n for its_key, n in began if its_key == key]
        # What begins is either the next one, or something unfinished again.
        assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(order))


async def test_retries_are_settings_as_well(app_name: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNEL_RETRIES", "4")
    monkeypatch.setenv("RUNNEL_BACKOFF", "0.25")
    app, stream = app_with(app_name, redis_url, backoff_max=7)

    @app.processor(stream)
    async def proc(events): ...

    @app.processor(stream, retries=0)
    async def other(events): ...

    assert (proc.retries, proc.backoff, proc.backoff_max) == (4, 0.25, 7)
    assert other.retries == 0


@pytest.mark.parametrize(
    "options", [{"retries": -1}, {"backoff": 0}, {"backoff_max": -1}, {"retries": "many"}], ids=str
)
async def test_retries_that_make_no_sense_are_refused(app_name: str, redis_url: str, options: Any) -> None:
    app, stream = app_with(app_name, redis_url)
    (name,) = options
    with pytest.raises(ConfigurationError, match=rf'In the declaration of processor "proc".*\n.*{name}'):

        @app.processor(stream, **options)
        async def proc(events): ...
