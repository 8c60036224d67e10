"""The guide's examples, as they are written, on a real server. Only names of apps and the address are a test's own.

What the guide says about exceptions, middleware, background tasks and groups of workers has files of its own.
"""

import asyncio
import functools
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Literal

import pytest

from harness import Recorder, eventually, inspecting, run_to_end, running
from runnel import App, Event, ExceptionPolicy, Record
from runnel._redis import scripts
from runnel._worker import committer
from runnel.errors import ConfigurationError, ProcessorReturned, UnknownProcessor, UnknownSetting
from runnel.instruments import LossDetected, PartitionFailed
from runnel.settings import Settings, unknown_variables

pytestmark = [pytest.mark.anyio, pytest.mark.everywhere]


class Order(Record):
    order_id: int
    created_at: datetime
    amount: float


class Step(Record):
    key: str
    n: int


def order(order_id: int, amount: float = 9.99) -> Order:
    return Order(order_id=order_id, created_at=datetime(2020, 7, 21, 22, 9, 37, tzinfo=UTC), amount=amount)


def steps(key: str, number: int, start: int = 0) -> list[Step]:
    return [Step(key=key, n=n) for n in range(start, start + number)]


# The App


def test_an_app_is_made_of_a_name_and_an_address_without_connecting() -> None:
    app = App(name="myapp", redis_url="redis://127.0.0.1")
    assert app.name == "myapp"
    assert app.settings.redis_url == "redis://127.0.0.1"


def test_settings_come_from_the_environment_and_keywords_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNEL_LOG_LEVEL", "debug")
    monkeypatch.setenv("RUNNEL_PARTITION_COUNT", "4")
    monkeypatch.setenv("RUNNEL_REDIS_URL", "redis://example.org:7000")
    monkeypatch.setenv("RUNNEL_EXCEPTION_POLICY", "quarantine")
    app = App(name="myapp", partition_count=8)
    assert app.settings.log_level == "debug"
    assert app.settings.partition_count == 8
    assert app.settings.redis_url == "redis://example.org:7000"
    assert app.settings.exception_policy is ExceptionPolicy.QUARANTINE
    assert App(name="other").settings.partition_count == 4


def test_settings_are_defaults_for_streams_and_processors() -> None:
    app = App(name="myapp", partition_count=4, prefetch_count=3, exception_policy=ExceptionPolicy.IGNORE)
    few = app.stream("few", record=Order, partition_by="order_id")
    many = app.stream("many", record=Order, partition_by="order_id", partition_count=32)
    assert (few.partition_count, many.partition_count) == (4, 32)

    @app.processor(few)
    async def first(events: Any) -> None: ...

    @app.processor(few, prefetch_count=20, exception_policy=ExceptionPolicy.HALT)
    async def second(events: Any) -> None: ...

    assert (first.prefetch_count, first.exception_policy) == (3, ExceptionPolicy.IGNORE)
    assert (second.prefetch_count, second.exception_policy) == (20, ExceptionPolicy.HALT)


def test_the_default_policy_is_halt() -> None:
    assert App(name="myapp").settings.exception_policy is ExceptionPolicy.HALT


def test_an_unknown_setting_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownSetting, match=r'Unknown setting "log_levle"\. Did you mean "log_level"\?'):
        App(name="myapp", log_levle="debug")
    with pytest.raises(UnknownSetting, match=r'^Unknown setting "zzz"\.$'):
        App(name="myapp", zzz=1)


def test_an_unknown_variable_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNEL_PREFETCH_COUT", "9")
    assert unknown_variables() == {"RUNNEL_PREFETCH_COUT": ' Did you mean "RUNNEL_PREFETCH_COUNT"?'}


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"partition_count": 0}, "partition_count = 0: "),
        ({"prefetch_count": "many"}, "prefetch_count = 'many': "),
        ({"log_level": "loud"}, "log_level = 'loud': "),
        ({"on_full": "explode"}, "on_full = 'explode': "),
        ({"exception_policy": "panic"}, "exception_policy = 'panic': "),
        ({"grace_period": 0}, "grace_period = 0: "),
        ({"session_timeout": 1, "heartbeat_interval": 0.5}, "a quarter of session_timeout (0.25)"),
        ({"name": ""}, "name = '': "),
    ],
)
def test_a_setting_with_a_bad_value_is_refused_by_name(keywords: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        App(**{"name": "myapp", **keywords})
    assert named in str(raised.value)


def test_a_bad_variable_is_refused_by_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNEL_PARTITION_SIZE", "lots")
    with pytest.raises(ConfigurationError, match=r"partition_size = 'lots' \(from RUNNEL_PARTITION_SIZE\)"):
        App(name="myapp")


def test_a_bad_option_of_a_stream_or_processor_names_it() -> None:
    app = App(name="myapp")
    with pytest.raises(ConfigurationError, match=r'In the declaration of stream "orders": .*\n.*partition_count = -1'):
        app.stream("orders", record=Order, partition_by="order_id", partition_count=-1)
    orders = app.stream("orders", record=Order, partition_by="order_id")
    with pytest.raises(ConfigurationError, match=r'In the declaration of processor "proc": .*\n.*commit = \'never\''):

        @app.processor(orders, commit="never")
        async def proc(events: Any) -> None: ...


def test_a_bad_address_is_refused_without_showing_its_password() -> None:
    with pytest.raises(ConfigurationError) as raised:
        _ = App(name="myapp", redis_url="http://user:secret@localhost").endpoint
    assert "redis://127.0.0.1:6379" in str(raised.value)
    assert "secret" not in str(raised.value)


def test_all_settings_are_documented() -> None:
    """The guide sends its readers to the attributes of the class."""
    assert Settings.__doc__ is not None
    assert set(Settings.model_fields) >= {"name", "redis_url", "autodiscover", "log_level", "prefetch_count"}


# How to send events, and a basic processor


@pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")
async def test_the_guides_order_is_sent_and_processed(
    app_name: str, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    app = App(name=app_name, redis_url=redis_url)

    class Order(Record):
        order_id: int
        created_at: datetime
        amount: float

    orders = app.stream("orders", record=Order, partition_by="order_id")

    await orders.send(Order(order_id=1, created_at=datetime.utcnow(), amount=9.99))

    @app.processor(orders)
    async def printer(events):
        async for order in events.records():
            print(order.amount)

    printed = ""
    async with running(app):

        def has_printed() -> str:
            nonlocal printed
            printed += capsys.readouterr().out
            return printed

        await eventually(has_printed)
    assert printed == "9.99\n"


async def test_raw_events_give_the_fields_of_their_record(
    app_name: str, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    app = App(name=app_name, redis_url=redis_url)
    orders = app.stream("orders", record=Order, partition_by="order_id")
    seen: list[Event] = []

    @app.processor(orders)
    async def printer(events):
        async for order in events:
            print(order.amount)
            seen.append(order)

    sent = order(1)
    (sent_id,) = await orders.send(sent)
    async with running(app):
        await eventually(lambda: seen)
    assert capsys.readouterr().out == "9.99\n"
    (event,) = seen
    assert isinstance(event, Event)
    assert event.id == sent_id
    assert (event.stream, event.partition) == ("orders", orders.partition_of(sent))
    assert event.record == sent
    assert event.data == {b"data": sent.model_dump_json().encode()}
    assert event.headers == {}
    assert (event.order_id, event.created_at) == (1, sent.created_at)
    with pytest.raises(AttributeError, match="colour"):
        _ = event.colour


async def test_the_runs_of_a_partition_know_where_they_are(app_name: str, redis_url: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    seen: list[tuple[str, str, int, int]] = []

    @app.processor(stream)
    async def proc(events):
        async for _ in events.records():
            seen.append((events.processor, events.stream, events.partition, events.token))

    await stream.send(*steps("a", 1))
    async with running(app):
        await eventually(lambda: len(seen) == 1)
    await stream.send(*steps("a", 1))
    async with running(app):
        await eventually(lambda: len(seen) == 2)
    assert [item[:3] for item in seen] == [("proc", "steps", 0)] * 2
    assert seen[0][3] < seen[1][3], "a new owner has a higher token"


async def test_the_events_of_a_key_keep_their_order(app_name: str, redis_url: str) -> None:
    app = App(name=app_name, redis_url=redis_url)
    stream = app.stream("steps", record=Step, partition_by="key")
    seen: dict[str, list[int]] = {}

    @app.processor(stream)
    async def proc(events):
        async for step in events.records():
            seen.setdefault(step.key, []).append(step.n)

    keys = [f"key-{number}" for number in range(40)]
    await stream.send(*(Step(key=key, n=n) for n in range(50) for key in keys))
    async with running(app):
        await eventually(lambda: sum(map(len, seen.values())) == 2000)
    assert seen == {key: list(range(50)) for key in keys}


async def test_each_processor_gets_every_event(app_name: str, redis_url: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=2)
    stream = app.stream("steps", record=Step, partition_by="key")
    seen: dict[str, list[int]] = {"first": [], "second": []}

    @app.processor(stream)
    async def first(events):
        async for step in events.records():
            seen["first"].append(step.n)

    @app.processor(stream)
    async def second(events):
        async for step in events.records():
            seen["second"].append(step.n)

    await stream.send(*steps("a", 20))
    async with running(app):
        await eventually(lambda: all(len(ns) == 20 for ns in seen.values()))
    assert seen == {"first": list(range(20)), "second": list(range(20))}


async def test_a_worker_runs_the_chosen_processors_only(app_name: str, redis_url: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=2)
    stream = app.stream("steps", record=Step, partition_by="key")
    seen: list[str] = []

    def declare(name: str) -> None:
        @app.processor(stream, name=name)
        async def proc(events):
            async for _ in events.records():
                seen.append(name)

    for name in ("myproc1", "myproc2", "myproc3"):
        declare(name)
    await stream.send(*steps("a", 1))
    async with running(app, ["myproc1", "myproc2"]) as worker:
        await eventually(lambda: len(seen) == 2)
        assert [processor.name for processor in worker.processors] == ["myproc1", "myproc2"]
    assert sorted(seen) == ["myproc1", "myproc2"]
    with pytest.raises(UnknownProcessor, match=r'has no processor "myproc"\. Did you mean "myproc[123]"\?'):
        await run_to_end(app, ["myproc"])


# Batching


async def test_batches_of_the_guide_are_never_too_long_and_never_empty(
    app_name: str, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    orders = app.stream("orders", record=Order, partition_by="order_id")
    sizes: list[int] = []
    seen: list[int] = []

    @app.processor(orders)
    async def printer(events):
        async for orders in events.take(10, within=2).records():
            assert len(orders) <= 10
            print(orders)
            sizes.append(len(orders))
            seen.extend(order.order_id for order in orders)

    await orders.send(*(order(n) for n in range(35)))
    loop = asyncio.get_running_loop()
    async with running(app):
        await eventually(lambda: len(seen) == 30)
        before = loop.time()
        await eventually(lambda: len(seen) == 35)
        waited = loop.time() - before
    assert sizes == [10, 10, 10, 5]
    assert seen == list(range(35))
    assert 1.5 < waited < 4, "it gives up after two seconds"
    assert "Order(order_id=0" in capsys.readouterr().out


async def test_batches_of_raw_events(app_name: str, redis_url: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1, prefetch_count=3)
    stream = app.stream("steps", record=Step, partition_by="key")
    batches: list[list[Event]] = []

    @app.processor(stream)
    async def proc(events):
        async for batch in events.take(10, within=0.05):
            batches.append(batch)

    ids = await stream.send(*steps("a", 20))
    async with running(app):
        await eventually(lambda: sum(map(len, batches)) == 20)
    assert all(isinstance(batch, list) and 1 <= len(batch) <= 10 for batch in batches)
    assert [event.id for batch in batches for event in batch] == ids
    assert [event.n for batch in batches for event in batch] == list(range(20))


async def test_a_batch_larger_than_the_prefetch_is_filled(app_name: str, redis_url: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1, prefetch_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    sizes: list[int] = []

    @app.processor(stream)
    async def proc(events):
        async for batch in events.take(100, within=10).records():
            sizes.append(len(batch))

    await stream.send(*steps("a", 200))
    async with running(app):
        await eventually(lambda: sum(sizes) == 200)
    assert sizes == [100, 100]


async def test_a_batch_is_acknowledged_as_a_whole(app_name: str, redis_url: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    received, go_on = asyncio.Event(), asyncio.Event()
    sizes: list[int] = []

    @app.processor(stream)
    async def proc(events):
        async for batch in events.take(10, within=5).records():
            sizes.append(len(batch))
            received.set()
            await go_on.wait()

    ids = await stream.send(*steps("a", 12))
    async with inspecting(app) as redis, running(app):
        await received.wait()
        assert await redis.position(stream, "proc", 0) == "0-0"
        go_on.set()
        await eventually(lambda: _is(redis.position(stream, "proc", 0), ids[9]))
        assert sizes == [10]


async def _is(answer: Any, expected: Any) -> bool:
    return await answer == expected


@pytest.mark.parametrize(("n", "within"), [(0, 1), (-1, 1), (1, -0.1), ("10", 1), (2.5, 1), (1, timedelta(seconds=1))])
async def test_batches_need_sensible_bounds(app_name: str, redis_url: str, n: Any, within: Any) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")

    @app.processor(stream)
    async def proc(events):
        async for _ in events.take(n, within=within):
            pass

    status, worker = await run_to_end(app)
    assert status == 1
    assert isinstance(worker.failure, ValueError)
    assert "n >= 1" in str(worker.failure)


async def test_a_worker_that_stops_while_a_batch_fills_leaves_it_to_the_next(app_name: str, redis_url: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    batches: list[list[int]] = []
    within = 30.0

    @app.processor(stream)
    async def proc(events):
        async for batch in events.take(10, within=within).records():
            batches.append([step.n for step in batch])

    await stream.send(*steps("a", 3))
    async with inspecting(app) as redis:
        async with running(app):
            await eventually(lambda: _is(redis.position(stream, "proc", 0), "0-0"))
        assert batches == []
        assert await redis.position(stream, "proc", 0) == "0-0"
    within = 0.05
    async with running(app):
        await eventually(lambda: batches)
    assert batches == [[0, 1, 2]]


# Acknowledgement


async def test_an_event_is_acknowledged_when_the_loop_asks_for_the_next(app_name: str, redis_url: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    turns = asyncio.Semaphore(0)
    seen: list[int] = []

    @app.processor(stream)
    async def proc(events):
        async for step in events.records():
            seen.append(step.n)
            await turns.acquire()

    ids = await stream.send(*steps("a", 4))
    async with inspecting(app) as redis, running(app):
        for n in range(3):
            await eventually(lambda n=n: len(seen) == n + 1)
            expected = ids[n - 1] if n else "0-0"
            await eventually(lambda expected=expected: _is(redis.position(stream, "proc", 0), expected))
            turns.release()
        await eventually(lambda: _is(redis.position(stream, "proc", 0), ids[2]))
        turns.release()
        await eventually(lambda: _is(redis.position(stream, "proc", 0), ids[3]))


async def test_with_commit_each_an_event_waits_for_the_commit_of_the_one_before(app_name: str, redis_url: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    positions: list[str | None] = []

    async with inspecting(app) as redis:

        @app.processor(stream, commit="each")
        async def single(events):
            async for _ in events.records():
                positions.append(await redis.position(stream, "single", 0))

        ids = await stream.send(*steps("a", 20))
        async with running(app):
            await eventually(lambda: len(positions) == 20)
    assert positions == ["0-0", *ids[:-1]]


@pytest.mark.parametrize("commit", ["auto", "each"])
async def test_who_waits_for_a_commit_does_not_wait_for_the_next_one_to_be_due(
    app_name: str, redis_url: str, monkeypatch: pytest.MonkeyPatch, commit: Literal["auto", "each"]
) -> None:
    monkeypatch.setattr(committer, "INTERVAL", 60.0)
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    seen: list[int] = []

    @app.processor(stream, commit=commit)
    async def proc(events):
        async for step in events.records():
            seen.append(step.n)

    ids = await stream.send(*steps("a", 20))
    async with inspecting(app) as redis:
        async with running(app):
            await eventually(lambda: len(seen) == 20)
        assert await redis.position(stream, "proc", 0) == ids[-1]


async def test_what_is_finished_one_by_one_is_committed_together(
    app_name: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[float] = []

    async def commit(*args: Any) -> Any:
        begun.append(time.monotonic())
        return await scripts.commit(*args)

    monkeypatch.setattr(committer, "commit", commit)
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")

    @app.processor(stream)
    async def proc(events):
        async for _ in events:
            await asyncio.sleep(0.001)

    ids = await stream.send(*steps("a", 100))
    async with inspecting(app) as redis, running(app):
        await eventually(lambda: _is(redis.position(stream, "proc", 0), ids[-1]))
        apart = [later - earlier for earlier, later in pairwise(begun)]
    assert len(apart) > 1
    assert len(apart) * committer.INTERVAL <= sum(apart) + committer.INTERVAL


@pytest.mark.parametrize("form", ["events", "batches"])
async def test_commit_each_holds_for_raw_events_and_batches(app_name: str, redis_url: str, form: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    found: list[tuple[str, str | None]] = []

    async with inspecting(app) as redis:

        @app.processor(stream, commit="each")
        async def proc(events):
            async for x in events if form == "events" else events.take(4, within=0.05):
                last = x[-1] if isinstance(x, list) else x
                found.append((last.id, await redis.position(stream, "proc", 0)))

        ids = await stream.send(*steps("a", 12))
        async with running(app):
            await eventually(lambda: found and found[-1][0] == ids[-1])
    assert [position for _, position in found] == ["0-0", *(last for last, _ in found[:-1])]


@pytest.mark.parametrize("leave", ["break", "return"])
async def test_leaving_the_loop_acknowledges_and_starts_again(app_name: str, redis_url: str, leave: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    runs: list[list[int]] = []

    @app.processor(stream)
    async def proc(events):
        run: list[int] = []
        runs.append(run)
        async for step in events.records():
            run.append(step.n)
            if len(run) == 2:
                if leave == "return":
                    return
                break

    ids = await stream.send(*steps("a", 7))
    async with inspecting(app) as redis:
        async with running(app):
            await eventually(lambda: sum(map(len, runs)) == 7)
        assert [run for run in runs if run] == [[0, 1], [2, 3], [4, 5], [6]]
        assert await redis.position(stream, "proc", 0) == ids[-1]


async def test_a_second_loop_goes_on_where_the_first_was_left(app_name: str, redis_url: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    seen: list[tuple[str, int]] = []

    @app.processor(stream)
    async def proc(events):
        async for step in events.records():
            seen.append(("first", step.n))
            break
        async for batch in events.take(3, within=0.05):
            seen.extend(("second", event.n) for event in batch)
            break
        async for event in events:
            seen.append(("third", event.n))

    await stream.send(*steps("a", 6))
    async with running(app):
        await eventually(lambda: len(seen) == 6)
    assert seen == [("first", 0), ("second", 1), ("second", 2), ("second", 3), ("third", 4), ("third", 5)]


@pytest.mark.parametrize("form", ["records", "events"])
async def test_a_loop_over_single_events_may_follow_a_batch_that_was_left(
    app_name: str, redis_url: str, form: str
) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    seen: list[int] = []

    @app.processor(stream)
    async def proc(events):
        async for batch in events.take(3, within=0.05):
            seen.extend(event.n for event in batch)
            break
        async for step in events.records() if form == "records" else events:
            seen.append(step.n)

    ids = await stream.send(*steps("a", 9))
    async with inspecting(app) as redis:
        async with running(app):
            await eventually(lambda: len(seen) == 9)
        assert await redis.position(stream, "proc", 0) == ids[-1]
    assert seen == list(range(9))


@pytest.mark.parametrize("form", ["records", "events", "batches"])
async def test_a_timeout_around_the_next_event_skips_nothing(app_name: str, redis_url: str, form: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    seen: list[int] = []
    timeouts = 0

    def source(events: Any) -> Any:
        if form == "records":
            return aiter(events.records())
        return aiter(events) if form == "events" else aiter(events.take(5, within=0.03))

    @app.processor(stream)
    async def proc(events):
        nonlocal timeouts
        iterator = source(events)
        while True:
            try:
                x = await asyncio.wait_for(anext(iterator), 0.02)
            except TimeoutError:
                timeouts += 1
                iterator = source(events)
                continue
            except StopAsyncIteration:
                return
            seen.extend(step.n for step in (x if isinstance(x, list) else [x]))

    async with inspecting(app) as redis:
        async with running(app):
            ids: list[str] = []
            for n in range(30):
                ids += await stream.send(Step(key="a", n=n))
                if n % 5 == 0:
                    before = timeouts
                    await eventually(lambda before=before: timeouts > before)
            if form == "batches":
                # A batch waits longer for its end than the time-out allows, unless it is full.
                await stream.send(*steps("a", 5, start=30))
                await eventually(lambda: len(seen) >= 30)
            else:
                await eventually(lambda: len(seen) == 30)
        if form != "batches":
            assert await redis.position(stream, "proc", 0) == ids[-1]
    assert timeouts
    assert seen == list(range(len(seen)))


@pytest.mark.parametrize("form", ["records", "events", "batches"])
async def test_what_a_run_has_left_behind_takes_no_event_from_the_next_one(
    app_name: str, redis_url: str, form: str
) -> None:
    """A task that waits for the next event outlives the function that has started it."""
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    seen: list[int] = []
    left: list[asyncio.Future[Any]] = []

    @app.processor(stream, exception_policy=ExceptionPolicy.IGNORE, retries=1, backoff=0.01)
    async def proc(events):
        if not left:
            source = events.records() if form == "records" else events if form == "events" else events.take(5, within=0)
            left.append(asyncio.ensure_future(anext(aiter(source))))
            await asyncio.sleep(0)
            raise ValueError("something else has failed")
        async for step in events.records():
            seen.append(step.n)

    async with inspecting(app) as redis:
        async with running(app):
            await eventually(lambda: left)
            ids = [(await stream.send(Step(key="a", n=n)))[0] for n in range(5)]
            await eventually(lambda: 4 in seen)
        assert await redis.position(stream, "proc", 0) == ids[-1]
    assert seen == [0, 1, 2, 3, 4]
    (outcome,) = await asyncio.gather(*left, return_exceptions=True)
    assert isinstance(outcome, StopAsyncIteration)


async def test_events_in_progress_are_repeated_after_an_abort_and_the_others_are_not(
    app_name: str, redis_url: str
) -> None:
    """At least once, in order: only what was not acknowledged runs twice."""
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    seen: list[int] = []
    stuck = True

    @app.processor(stream, commit="each")
    async def proc(events):
        async for step in events.records():
            seen.append(step.n)
            if stuck and step.n == 3:
                await asyncio.Event().wait()

    await stream.send(*steps("a", 6))
    async with running(app) as worker:
        await eventually(lambda: len(seen) == 4)
        worker.abort()
    stuck = False
    async with running(app):
        await eventually(lambda: seen[-1] == 5)
    assert seen == [0, 1, 2, 3, 3, 4, 5]


# What cannot be a processor


async def test_a_processor_that_never_iterates_stops_the_worker_with_a_reason(app_name: str, redis_url: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1, exception_policy=ExceptionPolicy.IGNORE)
    stream = app.stream("steps", record=Step, partition_by="key")

    @app.processor(stream)
    async def lazy(events):
        pass

    announced = Recorder(app)
    status, worker = await run_to_end(app)
    assert status == 1
    assert isinstance(worker.failure, ProcessorReturned)
    assert 'The processor "lazy" ended without asking for an event' in str(worker.failure)
    assert announced.of(PartitionFailed)[0].policy == "halt", "ignoring it would spin for ever"


def test_two_processors_of_one_name_are_refused() -> None:
    app = App(name="myapp")
    stream = app.stream("steps", record=Step, partition_by="key")

    @app.processor(stream)
    async def proc(events): ...

    with pytest.raises(ConfigurationError, match=r'two processors named "proc"\..*name="\.\.\."'):

        @app.processor(stream, name="proc")
        async def other(events): ...

    @app.processor(stream, name="another")
    async def proc_again(events): ...

    assert list(app.processors) == ["proc", "another"]


def test_a_processor_must_be_an_async_function() -> None:
    app = App(name="myapp")
    stream = app.stream("steps", record=Step, partition_by="key")
    with pytest.raises(ConfigurationError, match=r'processor "plain" must be an async function'):

        @app.processor(stream)  # type: ignore[arg-type]
        def plain(events): ...

    with pytest.raises(ConfigurationError, match=r'processor "lonely" must be an async function that takes the events'):

        @app.processor(stream)  # type: ignore[arg-type]
        async def lonely(): ...

    with pytest.raises(ConfigurationError, match=r'processor "generator" must be an async function.* yields nothing'):

        @app.processor(stream)  # type: ignore[arg-type]
        async def generator(events):
            async for event in events:
                yield event

    assert app.processors == {}


async def test_one_function_may_process_several_streams(app_name: str, redis_url: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    one = app.stream("one", record=Step, partition_by="key")
    two = app.stream("two", record=Step, partition_by="key")
    seen: list[tuple[str, str, int]] = []

    @app.processor(one, name="of_one")
    @app.processor(two, name="of_two")
    async def both(events):
        async for step in events.records():
            seen.append((events.processor, events.stream, step.n))

    await one.send(*steps("a", 1))
    await two.send(*steps("a", 1, start=1))
    async with running(app):
        await eventually(lambda: sorted(seen) == [("of_one", "one", 0), ("of_two", "two", 1)])

    with pytest.raises(ConfigurationError, match='two processors named "again"'):

        @app.processor(one)
        @app.processor(two)
        async def again(events): ...


def test_a_processor_needs_a_name() -> None:
    app = App(name="myapp")
    stream = app.stream("steps", record=Step, partition_by="key")

    async def function(events: Any) -> None: ...

    with pytest.raises(ConfigurationError, match=r"processor must be an async function with a name.*partial"):
        app.processor(stream)(functools.partial(function))
    assert app.processor(stream, name="named")(functools.partial(function)).name == "named"


def test_a_processor_needs_a_stream() -> None:
    app = App(name="myapp")
    with pytest.raises(ConfigurationError, match=r"@app\.processor needs a stream.*got 'orders'"):
        app.processor("orders")  # type: ignore[arg-type]


async def test_a_processor_can_be_called_by_itself() -> None:
    """To test the function alone."""
    app = App(name="myapp")
    stream = app.stream("steps", record=Step, partition_by="key")
    seen: list[int] = []

    @app.processor(stream)
    async def proc(events):
        async for step in events.records():
            seen.append(step.n)

    class Few:
        async def records(self):
            for step in steps("a", 3):
                yield step

    await proc(Few())  # type: ignore[arg-type]
    assert seen == [0, 1, 2]


# Nothing is lost silently


async def test_what_was_removed_unprocessed_is_announced(app_name: str, redis_url: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    seen: list[int] = []

    @app.processor(stream)
    async def proc(events):
        async for step in events.records():
            seen.append(step.n)

    announced = Recorder(app)
    await stream.send(*steps("a", 2))
    async with inspecting(app) as redis:
        async with running(app):
            await eventually(lambda: len(seen) == 2)
        await stream.send(*steps("a", 10, start=2))
        await redis.link.call("XTRIM", stream.keys.log(0), "MAXLEN", 4)
        async with running(app):
            await eventually(lambda: len(seen) == 6)
    await app.aclose()
    assert seen == [0, 1, 8, 9, 10, 11]
    assert announced.of(LossDetected) == [LossDetected("proc", 0, 6)]


async def test_the_end_of_the_events_is_no_failure_of_code_that_calls_anext_itself(
    app_name: str, redis_url: str
) -> None:
    app = App(name=app_name, redis_url=redis_url)
    numbers = app.stream("steps", record=Step, partition_by="key", partition_count=1)
    seen = []

    @app.processor(numbers)
    async def one_by_one(events):
        records = events.records()
        while True:
            seen.append((await anext(records)).n)

    await numbers.send(Step(key="a", n=1))
    async with running(app):
        await eventually(lambda: seen == [1])
    await app.aclose()
