"""Middleware: the guide's examples, the order of things when code above fails, and dead letters."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from harness import Inspector, Recorder, eventually, inspecting, run_to_end, running
from runnel import App, Event, ExceptionPolicy, Record
from runnel._redis.scripts import reset
from runnel.errors import ConfigurationError, MetadataMismatch, StreamMoved
from runnel.instruments import AttemptFailed, PartitionFailed
from runnel.interfaces import Middleware
from runnel.middleware import DeadLetterMiddleware
from runnel.streams import Stream

pytestmark = pytest.mark.anyio


class Action(Record):
    key: str
    id: int


class Boom(Exception):
    """What the user's code raises."""


def actions_of(number: int, start: int = 0, key: str = "a") -> list[Action]:
    return [Action(key=key, id=n) for n in range(start, start + number)]


@pytest.fixture
def app(app_name: str, redis_url: str) -> App:
    return App(name=app_name, redis_url=redis_url, partition_count=1)


@pytest.fixture
def mystream(app: App) -> Stream[Action]:
    return app.stream("actions", record=Action, partition_by="key")


# The guide's examples


class Printer(Middleware):
    async def handler(self, parent, **kwargs):
        async for x in parent:
            print(x)
            yield x


class Noop(Middleware):
    async def handler(self, parent, **kwargs):
        async for x in parent:
            assert isinstance(x, (Event, list))
            yield x


async def test_the_guides_printer_sees_every_event(
    app: App, mystream: Stream[Action], capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Action] = []

    @app.processor(mystream, middleware=[Printer()])
    async def proc(events):
        async for record in events.records():
            seen.append(record)

    ids = await mystream.send(*actions_of(3))
    async with running(app):
        await eventually(lambda: len(seen) == 3)
    assert seen == actions_of(3)
    assert capsys.readouterr().out.splitlines() == [f"<Event actions/0 {entry_id}>" for entry_id in ids]


@pytest.mark.parametrize("middleware", [[Noop()], [Noop(), Printer(), Noop()]], ids=len)
@pytest.mark.parametrize("form", ["records", "events", "record lists", "event lists"])
async def test_every_form_of_iteration_goes_through_middleware(
    app: App, mystream: Stream[Action], middleware: list[Middleware], form: str
) -> None:
    seen: list[Any] = []

    @app.processor(mystream, middleware=middleware)
    async def proc(events):
        if form == "records":
            async for action in events.records():
                assert isinstance(action, Action)
                seen.append(action.id)
        elif form == "events":
            async for event in events:
                assert isinstance(event, Event)
                seen.append(event.record.id)
        elif form == "record lists":
            async for actions in events.take(2, within=0.05).records():
                assert all(isinstance(action, Action) for action in actions)
                seen.extend(action.id for action in actions)
        else:
            async for batch in events.take(2, within=0.05):
                assert all(isinstance(event, Event) for event in batch)
                seen.extend(event.record.id for event in batch)

    ids = await mystream.send(*actions_of(5))
    async with inspecting(app) as redis:
        async with running(app):
            await eventually(lambda: len(seen) == 5)
        assert seen == list(range(5))
        assert await redis.position(mystream, "proc", 0) == ids[-1]


class Diary:
    """What happened, in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def finally_of(self, name: str) -> Middleware:
        """The guide's finally clause, with a clean-up that takes a while."""
        lines = self.lines

        class Finally(Middleware):
            async def handler(self, parent, **kwargs):
                async for x in parent:
                    try:
                        yield x
                    finally:
                        lines.append(f"{name} begins")
                        await asyncio.sleep(0.01)
                        lines.append(f"{name} ends")

        return Finally()

    def on_failure_of(self, name: str) -> Middleware:
        """The guide's ``except GeneratorExit``."""
        lines = self.lines

        class OnFailure(Middleware):
            async def handler(self, parent, **kwargs):
                async for x in parent:
                    try:
                        yield x
                    except GeneratorExit:
                        await asyncio.sleep(0.01)
                        lines.append(f"{name} cleans up after {kwargs['events'].failure!r}")
                        raise

        return OnFailure()


async def test_the_guides_finally_runs_after_every_event(app: App, mystream: Stream[Action]) -> None:
    diary = Diary()

    @app.processor(mystream, middleware=[diary.finally_of("logic")])
    async def proc(events):
        async for action in events.records():
            diary.lines.append(f"event {action.id}")

    await mystream.send(*actions_of(2))
    async with running(app):
        await eventually(lambda: diary.lines.count("logic ends") == 2)
    assert diary.lines == ["event 0", "logic begins", "logic ends", "event 1", "logic begins", "logic ends"]


async def test_finalisers_have_finished_before_the_function_is_started_again(
    app: App, mystream: Stream[Action]
) -> None:
    diary = Diary()

    @app.processor(
        mystream, exception_policy=ExceptionPolicy.IGNORE, middleware=[diary.finally_of("one"), diary.finally_of("two")]
    )
    async def proc(events):
        diary.lines.append("start")
        async for action in events.records():
            diary.lines.append(f"event {action.id}")
            if action.id == 0:
                raise Boom

    await mystream.send(*actions_of(2))
    async with running(app):
        await eventually(lambda: "event 1" in diary.lines)
    assert diary.lines[:8] == [
        "start",
        "event 0",
        "two begins",  # the outermost, which is the nearest to the code that failed
        "two ends",
        "one begins",
        "one ends",
        "start",
        "event 1",
    ]


async def test_finalisers_have_finished_before_the_event_is_acknowledged(app: App, mystream: Stream[Action]) -> None:
    positions: list[str | None] = []

    async with inspecting(app) as redis:

        class Looks(Middleware):
            async def handler(self, parent, **kwargs):
                async for x in parent:
                    try:
                        yield x
                    finally:
                        positions.append(await redis.position(mystream, "proc", 0))

        @app.processor(mystream, commit="each", exception_policy=ExceptionPolicy.IGNORE, middleware=[Looks()])
        async def proc(events):
            async for action in events.records():
                if action.id == 1:
                    raise Boom
                if action.id == 2:
                    break

        ids = await mystream.send(*actions_of(5))
        async with running(app):
            await eventually(lambda: len(positions) == 5)
    # After a failure or a break nobody waits for the commit, so the position may lag behind, but never lead.
    order = ["0-0", *ids]
    assert all(order.index(position) <= n for n, position in enumerate(positions) if position)
    assert positions[0] == "0-0"


async def test_generator_exit_tells_of_a_failure_only(app: App, mystream: Stream[Action]) -> None:
    diary = Diary()

    @app.processor(mystream, exception_policy=ExceptionPolicy.IGNORE, middleware=[diary.on_failure_of("it")])
    async def proc(events):
        async for action in events.records():
            diary.lines.append(f"event {action.id}")
            if action.id == 1:
                raise Boom("bang")
            if action.id == 3:
                break

    await mystream.send(*actions_of(5))
    async with running(app):
        await eventually(lambda: "event 4" in diary.lines)
    assert diary.lines == [
        "event 0",
        "event 1",
        "it cleans up after Boom('bang')",
        "event 2",
        "event 3",
        "it cleans up after None",  # the loop was left, and nothing failed
        "event 4",
    ]


@pytest.mark.parametrize("policy", list(ExceptionPolicy))
async def test_middleware_is_told_of_the_failure_under_every_policy(
    app: App, mystream: Stream[Action], policy: ExceptionPolicy
) -> None:
    diary = Diary()

    @app.processor(mystream, exception_policy=policy, middleware=[diary.on_failure_of("it")])
    async def proc(events):
        async for _ in events.take(10, within=0.01):
            raise Boom

    await mystream.send(*actions_of(1))
    announced = Recorder(app)
    if policy is ExceptionPolicy.HALT:
        assert (await run_to_end(app))[0] == 1
    else:
        async with running(app):
            await eventually(lambda: announced.of(PartitionFailed))
    assert diary.lines == ["it cleans up after Boom()"]


async def test_the_first_middleware_is_the_nearest_to_the_source(app: App, mystream: Stream[Action]) -> None:
    passed: list[str] = []

    class Named(Middleware):
        def __init__(self, name: str) -> None:
            self.name = name

        async def handler(self, parent, **kwargs):
            async for x in parent:
                passed.append(self.name)
                yield x

    @app.processor(mystream, middleware=[Named("first"), Named("second")])
    async def proc(events):
        async for _ in events.records():
            passed.append("function")

    await mystream.send(*actions_of(1))
    async with running(app):
        await eventually(lambda: len(passed) == 3)
    assert passed == ["first", "second", "function"]


async def test_handlers_learn_where_they_are(app: App, mystream: Stream[Action]) -> None:
    found: list[tuple[Any, ...]] = []

    class Where(Middleware):
        async def handler(self, parent, **kwargs):
            events = kwargs["events"]
            async for x in parent:
                found.append((events.processor, events.stream, events.partition, events.token > 0, events.failure))
                yield x

    @app.processor(mystream, middleware=[Where()])
    async def proc(events):
        async for _ in events:
            pass

    await mystream.send(*actions_of(1))
    async with running(app):
        await eventually(lambda: found)
    assert found == [("proc", "actions", 0, True, None)]


async def test_what_a_middleware_filters_is_acknowledged(app: App, mystream: Stream[Action]) -> None:
    seen: list[int] = []

    class OnlyEven(Middleware):
        async def handler(self, parent, **kwargs):
            async for event in parent:
                if event.record.id % 2 == 0:
                    yield event

    @app.processor(mystream, middleware=[OnlyEven()])
    async def proc(events):
        async for action in events.records():
            seen.append(action.id)

    ids = await mystream.send(*actions_of(6))
    async with inspecting(app) as redis, running(app):
        await eventually(lambda: len(seen) == 3)
        await eventually(lambda: _is(redis.position(mystream, "proc", 0), ids[-1]))
    assert seen == [0, 2, 4]


async def _is(answer: Any, expected: Any) -> bool:
    return await answer == expected


class Fails(Middleware):
    """Raises before or after what it yields, at the event 1."""

    def __init__(self, where: str) -> None:
        self.where = where

    async def handler(self, parent: AsyncGenerator[Any, None], **kwargs: Any) -> AsyncGenerator[Any, None]:
        async for event in parent:
            if self.where == "before" and event.record.id == 1:
                raise Boom("before")
            try:
                yield event
            finally:
                if self.where == "finally" and event.record.id == 1:
                    raise Boom("finally")


@pytest.mark.parametrize(("where", "seen_by_function"), [("before", [0, 2]), ("finally", [0, 1, 2])])
async def test_a_middleware_that_fails_falls_under_the_policy(
    app: App, mystream: Stream[Action], where: str, seen_by_function: list[int]
) -> None:
    seen: list[int] = []
    announced = Recorder(app)

    @app.processor(mystream, exception_policy=ExceptionPolicy.IGNORE, middleware=[Fails(where), Noop()])
    async def proc(events):
        async for action in events.records():
            seen.append(action.id)

    ids = await mystream.send(*actions_of(3))
    async with running(app):
        await eventually(lambda: 2 in seen)
    assert seen == seen_by_function
    (failed,) = announced.of(PartitionFailed)
    assert (failed.event_ids, repr(failed.error)) == ((ids[1],), f"Boom('{where}')")


async def test_a_finaliser_that_fails_after_a_break_is_a_failure_of_the_event(
    app: App, mystream: Stream[Action]
) -> None:
    @app.processor(mystream, middleware=[Fails("finally"), Noop()])
    async def proc(events):
        async for action in events.records():
            if action.id == 1:
                break

    ids = await mystream.send(*actions_of(3))
    status, worker = await run_to_end(app)
    assert status == 1
    assert repr(worker.failure) == "Boom('finally')"
    async with inspecting(app) as redis:
        assert await redis.position(mystream, "proc", 0) == ids[0]


class Keeper(Middleware):
    """Is to keep what has failed, and cannot."""

    async def handler(self, parent, **kwargs):
        async for x in parent:
            try:
                yield x
            except GeneratorExit:
                if kwargs["events"].failure is not None:
                    raise Boom("no room") from None
                raise


async def test_middleware_that_cannot_keep_what_has_failed_halts_the_worker_that_ignores(
    app: App, mystream: Stream[Action]
) -> None:
    announced = Recorder(app)

    @app.processor(mystream, exception_policy=ExceptionPolicy.IGNORE, middleware=[Keeper(), Noop()])
    async def proc(events):
        async for action in events.records():
            if action.id == 1:
                raise ValueError

    ids = await mystream.send(*actions_of(3))
    status, worker = await run_to_end(app)
    assert status == 1
    assert repr(worker.failure) == "Boom('no room')"
    (failed,) = announced.of(PartitionFailed)
    assert (failed.event_ids, failed.policy) == ((ids[1],), "halt")
    assert "because of the function's ValueError. IGNORE would lose" in failed.error.__notes__[0]
    async with inspecting(app) as redis:
        assert await redis.position(mystream, "proc", 0) == ids[0]


async def test_a_loop_that_was_left_is_finished_before_the_next_one_gets_an_event(
    app: App, mystream: Stream[Action]
) -> None:
    """Otherwise the middleware of the first loop would be told of the failure of the second one's event."""
    diary = Diary()

    @app.processor(mystream, exception_policy=ExceptionPolicy.IGNORE, middleware=[diary.on_failure_of("it")])
    async def proc(events):
        async for action in events.records():
            diary.lines.append(f"first loop {action.id}")
            break
        async for action in events.records():
            diary.lines.append(f"second loop {action.id}")
            raise Boom

    await mystream.send(*actions_of(2))
    async with running(app):
        await eventually(lambda: len(diary.lines) == 4)
    assert diary.lines == [
        "first loop 0",
        "it cleans up after None",
        "second loop 1",
        "it cleans up after Boom()",
    ]


async def test_loops_that_time_out_do_not_pile_up(app: App, mystream: Stream[Action]) -> None:
    rounds = 0
    kept = 0

    @app.processor(mystream, middleware=[Noop()])
    async def proc(events):
        nonlocal rounds, kept
        while rounds < 50:
            rounds += 1
            try:
                await asyncio.wait_for(anext(events.records()), 0.001)
            except TimeoutError:
                kept = len(events._loops)
        async for _ in events.records():
            pass

    async with running(app):
        await eventually(lambda: rounds == 50)
    assert kept <= 2


class Companion(Middleware):
    """Has a task beside the events, and waits for its end: which is a cancellation."""

    async def handler(self, parent, **kwargs):
        async for x in parent:
            beside = asyncio.create_task(asyncio.Event().wait())
            try:
                yield x
            except GeneratorExit:
                beside.cancel()
                await beside
            finally:
                beside.cancel()


class Panic(BaseException):
    """What Rust code raises, for instance, when it has a defect."""


class Panicking(Middleware):
    async def handler(self, parent, **kwargs):
        async for x in parent:
            try:
                yield x
            except GeneratorExit:
                raise Panic from None


@pytest.mark.parametrize(("middleware", "error"), [(Companion, asyncio.CancelledError), (Panicking, Panic)])
async def test_what_a_finaliser_raises_that_is_no_exception_is_a_failure_as_any_other(
    app: App, mystream: Stream[Action], middleware: type[Middleware], error: type[BaseException]
) -> None:
    diary = Diary()
    announced = Recorder(app)
    seen: list[int] = []

    @app.processor(
        mystream, exception_policy=ExceptionPolicy.IGNORE, middleware=[diary.on_failure_of("it"), middleware()]
    )
    async def proc(events):
        async for action in events.records():
            seen.append(action.id)
            if action.id == 1:
                break

    ids = await mystream.send(*actions_of(3))
    async with running(app):
        await eventually(lambda: 2 in seen)
    assert seen == [0, 1, 2]
    assert diary.lines == ["it cleans up after None"]
    (failed,) = announced.of(PartitionFailed)
    assert (failed.event_ids, type(failed.error)) == ((ids[1],), error)


class Slow(Middleware):
    """Takes longer than the function wants to wait, the first time."""

    def __init__(self, step: str) -> None:
        self.step = step
        self.slow = True

    async def handler(self, parent, **kwargs):
        async for x in parent:
            if self.step == "before":
                await self.wait()
            yield x
            if self.step == "after":
                await self.wait()

    async def wait(self) -> None:
        if self.slow:
            self.slow = False
            await asyncio.Event().wait()


@pytest.mark.parametrize("step", ["before", "after"])
@pytest.mark.parametrize("form", ["records", "events", "batches"])
async def test_a_timeout_while_middleware_is_at_work_skips_nothing_and_repeats_nothing(
    app: App, mystream: Stream[Action], form: str, step: str
) -> None:
    seen: list[int] = []
    timeouts = 0

    def source(events: Any) -> Any:
        if form == "records":
            return events.records()
        return aiter(events) if form == "events" else aiter(events.take(1, within=0))

    def n_of(x: Any) -> int:
        return x.id if isinstance(x, Action) else x.record.id

    @app.processor(mystream, middleware=[Slow(step), Noop()])
    async def proc(events):
        nonlocal timeouts
        iterator = source(events)
        while True:
            try:
                async with asyncio.timeout(0.05):
                    x = await anext(iterator)
            except TimeoutError:
                timeouts += 1
                iterator = source(events)
            except StopAsyncIteration:
                return
            else:
                seen.extend(n_of(y) for y in (x if isinstance(x, list) else [x]))

    await mystream.send(*actions_of(3))
    async with running(app):
        await eventually(lambda: 2 in seen)
    assert timeouts
    assert seen == [0, 1, 2]


def test_middleware_must_have_a_handler_that_is_an_async_generator(app: App, mystream: Stream[Action]) -> None:
    class NotOne(Middleware):
        async def handler(self, parent, **kwargs):
            return parent

    for wrong in (NotOne(), object()):
        middleware: Any = [wrong]
        with pytest.raises(ConfigurationError, match="needs a method `handler` that is an async generator"):

            @app.processor(mystream, middleware=middleware)
            async def proc(events): ...


def test_middleware_must_be_a_list(app: App, mystream: Stream[Action]) -> None:
    class Silent(Middleware):
        async def handler(self, parent, **kwargs):
            async for x in parent:
                yield x

    with pytest.raises(ConfigurationError, match=r"takes a list of middleware; write middleware=\[.*Silent"):
        app.processor(mystream, middleware=Silent())  # type: ignore[arg-type]


# Dead letters


async def letters(redis: Inspector, sink: Stream[Any]) -> list[tuple[int, dict[bytes, bytes]]]:
    """Every dead letter: its partition and fields."""
    return [
        (partition, fields)
        for partition in range(sink.partition_count)
        for _, fields in await redis.entries(sink, partition)
    ]


async def number_of_letters(redis: Inspector, sink: Stream[Any]) -> int:
    return len(await letters(redis, sink))


def sources(found: list[tuple[int, dict[bytes, bytes]]]) -> list[str]:
    return [fields[b"~source"].decode().rsplit("/", 1)[1] for _, fields in found]


async def test_the_guides_dead_letter_example(app_name: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNEL_REDIS_URL", redis_url)
    app = App(name=app_name)

    class Action(Record):
        key: str
        id: int

    actions = app.stream("actions", record=Action, partition_by="key")
    dead_letter = DeadLetterMiddleware(source=actions)
    seen: list[int] = []
    dead_seen: list[Event] = []

    @app.processor(actions, exception_policy=ExceptionPolicy.IGNORE, middleware=[dead_letter])
    async def proc(events):
        async for event in events.records():
            seen.append(event.id)
            if event.id % 3 == 1:
                raise ValueError(f"no {event.id}")

    @app.processor(dead_letter.sink)
    async def dead(events):
        async for event in events:
            dead_seen.append(event)

    sent = [Action(key=f"key-{n % 4}", id=n) for n in range(10)]
    ids = await actions.send(*sent)
    async with inspecting(app) as redis:
        async with running(app):
            await eventually(lambda: len(seen) == 10)
            await eventually(lambda: len(dead_seen) == 3)
        assert await number_of_letters(redis, dead_letter.sink) == 3
        assert await redis.count(actions, "proc") == 10
    assert dead_letter.sink.name == "actions.dead"
    assert app.streams["actions.dead"] is dead_letter.sink
    assert sorted(event.record.id for event in dead_seen) == [1, 4, 7]
    for event in dead_seen:
        original = sent[event.record.id]
        assert event.record == original
        assert event.data == {b"data": original.model_dump_json().encode()}
        assert event.partition == actions.partition_of(original)
        assert event.headers == {
            "error": f"ValueError: no {original.id}".encode(),
            "processor": b"proc",
            "source": f"actions/{event.partition}/{ids[original.id]}".encode(),
        }


async def test_the_guides_dead_letter_example_reads_records(app: App, mystream: Stream[Action]) -> None:
    dead_letter = DeadLetterMiddleware(source=mystream)
    dead_seen: list[Action] = []

    @app.processor(mystream, exception_policy=ExceptionPolicy.IGNORE, middleware=[dead_letter])
    async def proc(events):
        async for event in events.records():
            if event.id == 1:
                raise Boom

    @app.processor(dead_letter.sink)
    async def dead(events):
        async for event in events.records():
            dead_seen.append(event)

    await mystream.send(*actions_of(3))
    async with running(app):
        await eventually(lambda: dead_seen)
    assert dead_seen == [Action(key="a", id=1)]


def failing_at(app: App, stream: Stream[Action], middleware: Middleware, ids: set[int], seen: list[int]) -> None:
    @app.processor(stream, exception_policy=ExceptionPolicy.IGNORE, middleware=[middleware])
    async def proc(events):
        async for action in events.records():
            seen.append(action.id)
            if action.id in ids:
                raise Boom


async def test_an_event_that_fails_again_after_a_crash_has_one_dead_letter(app: App, mystream: Stream[Action]) -> None:
    """The crash: the letter was sent, and the commit was not, so the position is still before the event."""
    dead_letter = DeadLetterMiddleware(source=mystream)
    seen: list[int] = []
    failing_at(app, mystream, dead_letter, {1, 2}, seen)
    ids = await mystream.send(*actions_of(4))
    async with inspecting(app) as redis:
        async with running(app):
            await eventually(lambda: len(seen) == 4)
        await reset(redis.link, mystream.keys, "proc", 0, ids[0].encode(), 1)
        async with running(app):
            await eventually(lambda: len(seen) == 7)
        assert seen == [0, 1, 2, 3, 1, 2, 3]
        assert sources(await letters(redis, dead_letter.sink)) == [ids[1], ids[2]]


async def test_an_event_that_fails_only_when_it_is_repeated_has_a_dead_letter_too(
    app: App, mystream: Stream[Action]
) -> None:
    """1. Event 0 succeeds. 2. Event 1 fails, and its letter is sent. 3. The worker crashes before either is committed.
    4. Event 0 is repeated, and fails this time: it must not be taken for a letter that was sent before."""
    dead_letter = DeadLetterMiddleware(source=mystream)
    seen: list[int] = []
    fails = {1}
    failing_at(app, mystream, dead_letter, fails, seen)
    ids = await mystream.send(*actions_of(2))
    async with inspecting(app) as redis:
        async with running(app):
            await eventually(lambda: len(seen) == 2)
        await reset(redis.link, mystream.keys, "proc", 0, b"0-0", 0)
        fails.add(0)
        async with running(app):
            await eventually(lambda: len(seen) == 4)
        assert sorted(sources(await letters(redis, dead_letter.sink))) == ids


async def test_every_event_of_a_failed_batch_has_one_dead_letter(app: App, mystream: Stream[Action]) -> None:
    dead_letter = DeadLetterMiddleware(source=mystream)
    batches: list[list[int]] = []

    @app.processor(mystream, exception_policy=ExceptionPolicy.IGNORE, middleware=[dead_letter])
    async def proc(events):
        async for batch in events.take(3, within=0.2).records():
            batches.append([action.id for action in batch])
            if 4 in batches[-1]:
                raise Boom

    ids = await mystream.send(*actions_of(9))
    async with inspecting(app) as redis:
        async with running(app):
            await eventually(lambda: len(batches) == 3)
        await reset(redis.link, mystream.keys, "proc", 0, ids[3].encode(), 4)
        async with running(app):  # other batches: 4 5 6, 7 8
            await eventually(lambda: len(batches) == 5)
        assert batches == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [4, 5, 6], [7, 8]]
        assert sources(await letters(redis, dead_letter.sink)) == ids[3:7]


async def test_an_undecodable_event_has_a_dead_letter_with_its_fields(app: App, mystream: Stream[Action]) -> None:
    dead_letter = DeadLetterMiddleware(source=mystream)
    seen: list[int] = []
    failing_at(app, mystream, dead_letter, set(), seen)
    async with inspecting(app) as redis:
        bad = await redis.add(mystream, 0, "data", b"\xff", "more", "x")
        await mystream.send(*actions_of(1))
        async with running(app):
            await eventually(lambda: seen)
        ((partition, fields),) = await letters(redis, dead_letter.sink)
    assert partition == 0
    assert (fields[b"data"], fields[b"more"]) == (b"\xff", b"x")
    assert fields[b"~source"] == f"actions/0/{bad}".encode()
    assert fields[b"~error"].startswith(b"DecodeError: The entry is not a record of Action")


async def test_the_sink_may_be_a_stream_of_ones_own(app_name: str, redis_url: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=4)
    source = app.stream("actions", record=Action, partition_by="key")
    sink = app.stream("failures", record=Action, partition_by="id", partition_count=3, hasher=lambda key: key)
    dead_letter = DeadLetterMiddleware(source=source, sink=sink)
    seen: list[int] = []
    failing_at(app, source, dead_letter, set(range(10)), seen)
    await source.send(*(Action(key=f"key-{n}", id=n) for n in range(10)))
    async with inspecting(app) as redis:
        async with running(app):
            await eventually(lambda: len(seen) == 10)
        found = await letters(redis, sink)
    by_partition = {p: [sink.codec.decode([b"data", f[b"data"]]).id for q, f in found if q == p] for p in range(3)}
    assert {p: sorted(numbers) for p, numbers in by_partition.items()} == {0: [0, 3, 6, 9], 1: [1, 4, 7], 2: [2, 5, 8]}


def test_a_stream_of_the_sinks_name_that_is_declared_before_is_the_sink(app: App, mystream: Stream[Action]) -> None:
    everything = app.stream("actions.dead", record=Action, partition_by="key", partition_size=0)
    assert DeadLetterMiddleware(source=mystream).sink is everything


def test_dead_letters_are_of_the_stream_that_the_processor_processes(app: App, mystream: Stream[Action]) -> None:
    other = app.stream("other", record=Action, partition_by="key")
    with pytest.raises(
        ConfigurationError, match=r'"proc" of stream "other" has a DeadLetterMiddleware of stream "actions"'
    ):

        @app.processor(other, middleware=[DeadLetterMiddleware(source=mystream)])
        async def proc(events): ...

    for wrong in ({"source": "mystream"}, {"source": mystream, "sink": "letters"}):
        with pytest.raises(
            ConfigurationError, match=r"DeadLetterMiddleware needs a stream, made by app\.stream; got '"
        ):
            DeadLetterMiddleware(**wrong)  # type: ignore[arg-type]


async def test_two_processors_may_share_a_dead_letter_stream(app: App, mystream: Stream[Action]) -> None:
    dead_letter = DeadLetterMiddleware(source=mystream)
    again = DeadLetterMiddleware(source=mystream)
    assert dead_letter.sink is again.sink
    seen: list[int] = []

    def declare(name: str, middleware: Middleware) -> None:
        @app.processor(mystream, name=name, exception_policy=ExceptionPolicy.IGNORE, middleware=[middleware])
        async def proc(events):
            async for action in events.records():
                seen.append(action.id)
                raise Boom

    declare("one", dead_letter)
    declare("two", again)
    await mystream.send(*actions_of(2))
    async with inspecting(app) as redis:
        async with running(app):
            await eventually(lambda: len(seen) == 4)
        found = await letters(redis, dead_letter.sink)
    assert sorted(fields[b"~processor"] for _, fields in found) == [b"one", b"one", b"two", b"two"]


async def test_a_primitive_records_dead_letter_has_its_native_fields(app_name: str, redis_url: str) -> None:
    class Click(Record, primitive=True):
        key: str
        page: bytes

    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    clicks = app.stream("clicks", record=Click, partition_by="key")
    dead_letter = DeadLetterMiddleware(source=clicks)
    dead_seen: list[Event] = []

    @app.processor(clicks, exception_policy=ExceptionPolicy.IGNORE, middleware=[dead_letter])
    async def proc(events):
        async for _ in events.records():
            raise Boom("ü")

    @app.processor(dead_letter.sink)
    async def dead(events):
        async for event in events:
            dead_seen.append(event)

    await clicks.send(Click(key="a", page=b"\x00"))
    async with running(app):
        await eventually(lambda: dead_seen)
    (event,) = dead_seen
    assert event.data == {b"key": b"a", b"page": b"\x00"}
    assert event.record == Click(key="a", page=b"\x00")
    assert event.headers["error"].decode() == "Boom: ü"


async def test_an_event_waits_while_its_dead_letter_has_no_room(app_name: str, redis_url: str) -> None:
    """It is not acknowledged before its letter is in the stream."""
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    source = app.stream("actions", record=Action, partition_by="key")
    sink = app.stream("small", record=Action, partition_by="key", partition_size=1)
    dead_letter = DeadLetterMiddleware(source=source, sink=sink)
    seen: list[int] = []
    dead_seen: list[int] = []
    failing_at(app, source, dead_letter, {0, 1, 2}, seen)

    @app.processor(sink)
    async def dead(events):
        async for action in events.records():
            dead_seen.append(action.id)

    async with inspecting(app) as redis:
        async with running(app, ["dead"]):
            await eventually(lambda: redis.link.call("SISMEMBER", sink.keys.registered(0), "dead"))
        ids = await source.send(*actions_of(4))
        async with running(app, ["proc"]):
            await eventually(lambda: _is(redis.position(source, "proc", 0), ids[0]))
            await eventually(lambda: len(seen) == 2)
            assert await number_of_letters(redis, sink) == 1
            async with running(app, ["dead"]):
                await eventually(lambda: len(dead_seen) == 3)
            await eventually(lambda: len(seen) == 4)
    assert seen == [0, 1, 2, 3]
    assert dead_seen == [0, 1, 2]


async def test_an_event_whose_dead_letter_cannot_be_sent_is_not_acknowledged(
    app: App, mystream: Stream[Action]
) -> None:
    sink = app.stream("failures", record=Action, partition_by="key")
    seen: list[int] = []
    failing_at(app, mystream, DeadLetterMiddleware(source=mystream, sink=sink), {1}, seen)
    async with inspecting(app) as redis:
        ending = asyncio.create_task(run_to_end(app))
        ids = await mystream.send(*actions_of(1))
        await eventually(lambda: _is(redis.position(mystream, "proc", 0), ids[0]))
        await redis.link.call("HSET", sink.keys.metadata, "moved", "redis://elsewhere")
        await mystream.send(*actions_of(2, start=1))
        status, worker = await ending
        assert (status, seen) == (1, [0, 1])
        assert isinstance(worker.failure, StreamMoved)
        assert await redis.position(mystream, "proc", 0) == ids[0]


async def test_a_sink_that_is_stored_otherwise_is_refused_when_the_worker_starts(app_name: str, redis_url: str) -> None:
    async with App(name=app_name, redis_url=redis_url) as first:
        await first.stream("failures", record=Action, partition_by="key", partition_count=4).send(*actions_of(1))
    app = App(name=app_name, redis_url=redis_url)
    source = app.stream("actions", record=Action, partition_by="key")
    sink = app.stream("failures", record=Action, partition_by="key", partition_count=8)
    failing_at(app, source, DeadLetterMiddleware(source=source, sink=sink), set(), [])
    with pytest.raises(MetadataMismatch, match=r'"failures" has 4 partitions in Redis, but this process says 8'):
        await run_to_end(app)


async def test_an_error_that_utf_8_does_not_have_goes_into_the_dead_letter_escaped(
    app: App, mystream: Stream[Action]
) -> None:
    dead_letter = DeadLetterMiddleware(source=mystream)
    seen: list[int] = []

    @app.processor(mystream, exception_policy=ExceptionPolicy.IGNORE, middleware=[dead_letter])
    async def proc(events):
        async for action in events.records():
            seen.append(action.id)
            if action.id == 0:
                raise Boom("no file \udce9.txt")

    await mystream.send(*actions_of(2))
    async with inspecting(app) as redis:
        async with running(app):
            await eventually(lambda: 1 in seen)
        ((_, fields),) = await letters(redis, dead_letter.sink)
    assert fields[b"~error"] == rb"Boom: no file \udce9.txt"


async def test_halting_with_dead_letters_sends_one_and_halts(app: App, mystream: Stream[Action]) -> None:
    dead_letter = DeadLetterMiddleware(source=mystream)

    @app.processor(mystream, middleware=[dead_letter])
    async def proc(events):
        async for _ in events.records():
            raise Boom

    await mystream.send(*actions_of(2))
    async with inspecting(app) as redis:
        for _ in range(2):
            assert (await run_to_end(app))[0] == 1
        assert await number_of_letters(redis, dead_letter.sink) == 1


async def test_a_loop_that_is_left_sends_no_dead_letter(app: App, mystream: Stream[Action]) -> None:
    dead_letter = DeadLetterMiddleware(source=mystream)
    seen: list[int] = []

    @app.processor(mystream, middleware=[dead_letter])
    async def proc(events):
        async for action in events.records():
            seen.append(action.id)
            break

    await mystream.send(*actions_of(3))
    async with inspecting(app) as redis:
        async with running(app):
            await eventually(lambda: len(seen) == 3)
        assert await letters(redis, dead_letter.sink) == []


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"retries": 3},
        {"exception_policy": ExceptionPolicy.QUARANTINE},
        {"exception_policy": ExceptionPolicy.IGNORE},
    ],
    ids=repr,
)
@pytest.mark.parametrize("how", ["lost", "given up"])
async def test_a_cancellation_that_becomes_another_error_in_the_function_is_no_failure(
    app: App, mystream: Stream[Action], how: str, options: dict[str, Any]
) -> None:
    """A client, say, that cannot close its connection any more when it is cancelled."""
    dead_letter = DeadLetterMiddleware(source=mystream)
    announced = Recorder(app)
    seen: list[int] = []

    @app.processor(mystream, middleware=[dead_letter], grace_period=0.05 if how == "given up" else 30.0, **options)
    async def proc(events):
        async for action in events.records():
            seen.append(action.id)
            if len(seen) == 1:
                try:
                    await asyncio.Event().wait()
                finally:
                    raise ConnectionError

    await mystream.send(*actions_of(2))
    async with inspecting(app) as redis:
        async with running(app) as worker:
            await eventually(lambda: seen)
            if how == "lost":
                (consumer,) = worker.members[0].consumers
                worker.members[0].fenced(consumer.feed)
                await eventually(lambda: seen == [0, 0, 1])
        assert await letters(redis, dead_letter.sink) == []
        assert await redis.count(mystream, "proc") == (2 if how == "lost" else 0)
    assert not announced.of(PartitionFailed)
    assert not announced.of(AttemptFailed)


async def test_an_event_that_is_given_up_at_the_stop_has_no_dead_letter(app: App, mystream: Stream[Action]) -> None:
    dead_letter = DeadLetterMiddleware(source=mystream)
    seen: list[int] = []

    @app.processor(mystream, exception_policy=ExceptionPolicy.IGNORE, middleware=[dead_letter], grace_period=0.05)
    async def proc(events):
        async for action in events.records():
            seen.append(action.id)
            await asyncio.Event().wait()

    await mystream.send(*actions_of(1))
    async with inspecting(app) as redis:
        async with running(app):
            await eventually(lambda: seen)
        assert await letters(redis, dead_letter.sink) == []
        assert await redis.position(mystream, "proc", 0) == "0-0"
