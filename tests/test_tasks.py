"""Background tasks: at startup, periodic, by the calendar; on every worker or on the leader."""

import asyncio
import functools
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from harness import Recorder, eventually, inspecting, running
from runnel import App, Record
from runnel._core.lease import Lease
from runnel._redis.keys import task_ticks
from runnel._redis.scripts import Beat
from runnel._worker import background
from runnel._worker.background import Background
from runnel.errors import ConfigurationError, RedisUnavailable
from runnel.instruments import MemberJoined, TaskFailed
from runnel.server import EmbeddedServer
from runnel.tasks import BackgroundTask

pytestmark = pytest.mark.anyio


class Note(Record):
    text: str


@pytest.fixture
def make(app_name: str, redis_url: str) -> Callable[..., App]:
    """Apps of one name, as several processes have them."""

    def make(**settings: Any) -> App:
        return App(name=app_name, redis_url=redis_url, **settings)

    return make


# At startup


async def test_the_guides_startup_task(make: Callable[..., App], capsys: pytest.CaptureFixture[str]) -> None:
    app = make()

    @app.task
    async def on_startup():
        print("starting")

    printed = ""
    async with running(app):

        def has_printed() -> str:
            nonlocal printed
            printed += capsys.readouterr().out
            return printed

        await eventually(has_printed)
    assert printed + capsys.readouterr().out == "starting\n"


async def test_a_startup_task_runs_on_every_worker(make: Callable[..., App]) -> None:
    ran: list[str] = []

    def declare(name: str) -> App:
        app = make()

        @app.task
        async def on_startup():
            ran.append(name)

        return app

    async with running(declare("a")), running(declare("b")):
        await eventually(lambda: sorted(ran) == ["a", "b"])


async def test_a_startup_task_may_run_for_ever_and_is_cancelled_at_the_stop(make: Callable[..., App]) -> None:
    app = make()
    began, ended = asyncio.Event(), asyncio.Event()

    @app.task
    async def on_startup():
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with running(app):
        await began.wait()
    assert ended.is_set()


async def test_a_task_that_fails_is_announced_and_stops_nothing(make: Callable[..., App]) -> None:
    app = make()
    announced = Recorder(app)
    ran: list[str] = []

    @app.task
    async def bad():
        raise ValueError("no")

    @app.timer(interval=0.02)
    async def bad_timer():
        ran.append("bad_timer")
        raise ValueError("not now")

    async with running(app) as worker:
        await eventually(lambda: len(ran) >= 3)
        assert worker.failure is None
    failed = [(a.task, str(a.error)) for a in announced.of(TaskFailed)]
    assert failed.count(("bad", "no")) == 1
    assert failed.count(("bad_timer", "not now")) == len(ran)


async def test_a_cancellation_that_a_task_raises_itself_is_a_failure_as_any_other(make: Callable[..., App]) -> None:
    app = make()
    announced = Recorder(app)
    ran: list[str] = []

    @app.timer(interval=0.02)
    async def timer():
        ran.append("timer")
        waits_for = asyncio.create_task(asyncio.Event().wait())
        waits_for.cancel()
        await waits_for

    async with running(app):
        await eventually(lambda: len(ran) >= 3)
    assert [type(a.error) for a in announced.of(TaskFailed)] == [asyncio.CancelledError] * len(ran)


class Panic(BaseException):
    """As what Rust panics with."""


@pytest.mark.parametrize("error", [Panic(), BaseExceptionGroup("several", [Panic()]), GeneratorExit()])
async def test_a_timer_outlives_whatever_it_raises(make: Callable[..., App], error: BaseException) -> None:
    app = make()
    announced = Recorder(app)
    ran: list[str] = []

    @app.timer(interval=0.02)
    async def timer():
        ran.append("timer")
        raise error

    async with running(app):
        await eventually(lambda: len(ran) >= 3)
    assert [a.error for a in announced.of(TaskFailed)] == [error] * len(ran)


async def test_an_abort_does_not_wait_for_a_timer_at_work(make: Callable[..., App]) -> None:
    app = make(grace_period=30.0)
    began, ended = asyncio.Event(), asyncio.Event()

    @app.timer(interval=0.02)
    async def timer():
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with running(app) as worker:
        await began.wait()
        worker.stop("test")
        await eventually(lambda: worker.stopping)
        worker.abort()
        await eventually(ended.is_set, timeout=5)


async def test_an_abort_does_not_wait_for_what_cannot_be_sent(app_name: str, server_binary: str | Path | None) -> None:
    with EmbeddedServer(binary=server_binary) as server:
        app = App(name=app_name, redis_url=server.url, send_timeout=60.0)
        stream = app.stream("notes", record=Note, partition_by="text")
        sending: list[asyncio.Future[list[str]]] = []
        began = asyncio.Event()

        @app.task
        async def on_startup():
            await stream.send(Note(text="a"))
            server.kill()
            sending.append(asyncio.ensure_future(stream.send(Note(text="b"))))
            began.set()

        async with running(app) as worker:
            await began.wait()
            worker.stop("test")
            await eventually(lambda: worker._heartbeats is None)  # nothing is left but to send
            worker.abort()
        sending[0].cancel()
        await app.aclose()


# On the leader


def leaders(make: Callable[..., App], name: str, ran: list[str], cancelled: list[str] | None = None) -> App:
    """An app with the guide's startup task for the leader."""
    app = make()

    @app.task(on_leader=True)
    async def on_startup():
        ran.append(name)
        try:
            await asyncio.Event().wait()
        finally:
            if cancelled is not None:
                cancelled.append(name)

    return app


async def joined(app: App) -> None:
    announced = Recorder(app)
    await eventually(lambda: [a for a in announced.of(MemberJoined) if a.processor == "leader"])


async def test_a_task_of_the_leader_runs_on_one_worker_and_moves_with_the_leadership(
    make: Callable[..., App],
) -> None:
    ran: list[str] = []
    cancelled: list[str] = []
    first, second, third = (leaders(make, name, ran, cancelled) for name in ("first", "second", "third"))
    joining = asyncio.gather(joined(second), joined(third))
    async with running(first):
        await eventually(lambda: ran == ["first"])
        async with running(second):
            async with running(third):
                await joining
            assert ran == ["first"], "workers that come and go do not matter while the leader lives"
            successor = running(third)
            await successor.__aenter__()
    # `second` was stopped before `first`, so the leadership goes to `third`.
    await eventually(lambda: ran == ["first", "third"])
    assert cancelled == ["first"]
    await successor.__aexit__(None, None, None)
    assert cancelled == ["first", "third"]


async def test_the_guides_task_of_the_leader_prints_once(
    make: Callable[..., App], capsys: pytest.CaptureFixture[str]
) -> None:
    def declare() -> App:
        app = make()

        @app.task(on_leader=True)
        async def on_startup():
            print("running once")

        return app

    first, second = declare(), declare()
    printed = ""

    def has_printed() -> str:
        nonlocal printed
        printed += capsys.readouterr().out
        return printed

    async with running(first):
        await eventually(has_printed)
        following = asyncio.create_task(joined(second))
        async with running(second):
            await following
        assert has_printed() == "running once\n"


async def test_a_leader_that_is_cut_off_cancels_its_task_and_begins_it_again_when_it_is_back(
    app_name: str, server_binary: str | Path | None
) -> None:
    with EmbeddedServer(binary=server_binary) as server:
        app = App(name=app_name, redis_url=server.url, session_timeout=2.0)
        happened: list[str] = []

        @app.task(on_leader=True)
        async def for_ever():
            happened.append("began")
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:  # kept to itself, as in code that only wants to clean up
                happened.append("ended")

        @app.task(on_leader=True)
        async def short():
            happened.append("short")

        async with running(app):
            await eventually(lambda: sorted(happened) == ["began", "short"])
            os.kill(server.pid, signal.SIGSTOP)
            try:
                await eventually(lambda: "ended" in happened)
            finally:
                os.kill(server.pid, signal.SIGCONT)
            await eventually(lambda: happened[-1] == "began")
        assert happened[2:4] == ["ended", "began"]
        assert happened.count("short") == 1, "what has ended by itself is not begun again"


async def test_a_leader_that_stops_leads_until_its_timer_has_ended(
    make: Callable[..., App], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs of the same timer do not overlap, so nobody may claim the next tick before."""
    revocations: list[Beat] = []
    on_beat = Background._on_beat

    def recorded(self: Background, beat: Beat, lease: Lease) -> None:
        on_beat(self, beat, lease)
        revocations.extend([beat] * len(beat.revoked))

    monkeypatch.setattr(Background, "_on_beat", recorded)
    began, finish = asyncio.Event(), asyncio.Event()
    ran: list[str] = []

    def declare(name: str) -> App:
        app = make(heartbeat_interval=0.1)

        @app.timer(interval=0.05, on_leader=True)
        async def timer():
            ran.append(name)
            began.set()
            await finish.wait()

        return app

    first, second = declare("first"), declare("second")
    following = asyncio.create_task(joined(second))
    async with running(first) as worker:
        await began.wait()
        async with running(second):
            await following
            worker.stop("test")
            await eventually(lambda: len(revocations) >= 3)
            assert ran == ["first"]
            finish.set()
            await eventually(lambda: "second" in ran)


class Claims:
    """Every claim of a tick, by all workers of this process, and what came of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.won: list[int] = []
        claim = background.claim

        async def recorded(link: Any, app: str, task: str, tick: int, nonce: str) -> bool:
            won = await claim(link, app, task, tick, nonce)
            if won:
                self.won.append(tick)
            return won

        monkeypatch.setattr(background, "claim", recorded)


async def test_a_tick_is_run_although_the_answer_to_its_claim_is_lost(
    make: Callable[..., App], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make()
    claim = background.claim
    tried: list[int] = []
    ran: list[int] = []

    async def lossy(link: Any, app: str, task: str, tick: int, *rest: str) -> bool:
        won = await claim(link, app, task, tick, *rest)
        tried.append(tick)
        if len(tried) == 1:
            raise RedisUnavailable("the answer is lost")
        return won

    monkeypatch.setattr(background, "claim", lossy)

    @app.timer(interval=0.1, on_leader=True)
    async def timer():
        ran.append(tried[-1])

    async with running(app):
        await eventually(lambda: ran)
    assert ran[0] == tried[1] == tried[0]


async def test_a_worker_that_does_not_lead_waits_for_every_tick(
    make: Callable[..., App], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leadership may come while it does: a tick that it passes over is one that it could not take over."""
    passed: dict[Background, list[int]] = defaultdict(list)
    leads_for = Background._leads_for

    async def recorded(self: Background, task: BackgroundTask, tick: float) -> bool:
        leads = await leads_for(self, task, tick)
        if not leads:
            passed[self].append(round(tick / 0.05))
        return leads

    monkeypatch.setattr(Background, "_leads_for", recorded)

    def declare() -> App:
        app = make()

        @app.timer(interval=0.05, on_leader=True)
        async def timer(): ...

        return app

    async with running(declare()), running(declare()):
        await eventually(lambda: any(len(ticks) >= 6 for ticks in passed.values()))
        for ticks in passed.values():
            assert ticks == list(range(ticks[0], ticks[0] + len(ticks)))


async def test_each_tick_of_a_leaders_timer_runs_once_while_leaders_change(
    make: Callable[..., App], monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = Claims(monkeypatch)
    ran: list[str] = []

    def declare(name: str) -> App:
        app = make()

        @app.timer(interval=0.05, on_leader=True)
        async def tick():
            ran.append(name)

        return app

    current = running(declare("0"))
    await current.__aenter__()
    for number in range(1, 6):
        await eventually(lambda n=number: str(n - 1) in ran)
        following = running(declare(str(number)))
        await following.__aenter__()
        await current.__aexit__(None, None, None)
        current = following
    await eventually(lambda: "5" in ran)
    await current.__aexit__(None, None, None)
    assert len(claims.won) == len(set(claims.won)) == len(ran)
    assert claims.won == sorted(claims.won)
    assert all(tick % 50 == 0 for tick in claims.won), "all workers count the same ticks"
    assert list(dict.fromkeys(ran)) == ["0", "1", "2", "3", "4", "5"]
    async with inspecting(make()) as redis:
        assert int(await redis.link.call("HGET", task_ticks(make().name), "tick")) == claims.won[-1]


# Timers


async def test_a_timer_runs_at_its_interval_on_every_worker(
    make: Callable[..., App], capsys: pytest.CaptureFixture[str]
) -> None:
    times: dict[str, list[float]] = {"a": [], "b": []}

    def declare(name: str) -> App:
        app = make()

        @app.timer(interval=0.1)
        async def every_tenth():
            print("0.1 seconds passed")
            times[name].append(time.monotonic())

        return app

    began = time.monotonic()
    async with running(declare("a")), running(declare("b")):
        await eventually(lambda: all(len(found) >= 4 for found in times.values()))
    for found in times.values():
        assert found[0] - began >= 0.1, "not at once"
        assert found[3] - found[0] >= 0.25, "three intervals, each as late as the loop was busy"
    assert capsys.readouterr().out.startswith("0.1 seconds passed\n0.1 seconds passed\n")


async def test_the_runs_of_a_timer_do_not_overlap_and_skip_the_ticks_they_miss(make: Callable[..., App]) -> None:
    app = make()
    at_once, most, runs = 0, 0, 0

    @app.timer(interval=0.02)
    async def slow():
        nonlocal at_once, most, runs
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.07)
        at_once -= 1
        runs += 1

    began = time.monotonic()
    async with running(app):
        await eventually(lambda: runs == 4)
    assert most == 1
    assert time.monotonic() - began >= 4 * 0.08, "a run of 0.07 s takes up four ticks"


@pytest.mark.parametrize("interval", [0, -1, float("nan"), "10", timedelta(seconds=10)])
def test_an_interval_must_be_a_positive_number_of_seconds(interval: Any) -> None:
    app = App(name="myapp")
    with pytest.raises(ConfigurationError, match=r'interval of timer "never" must be above 0, in seconds'):

        @app.timer(interval=interval)
        async def never(): ...


# Crontabs


def next_tick(app: App, now: datetime) -> datetime:
    (task,) = app.tasks
    due = task.next_tick(now.timestamp(), 0.0)
    assert due is not None
    return datetime.fromtimestamp(due, UTC)


def test_the_guides_crontab_is_due_at_a_quarter_to_six_utc() -> None:
    app = App(name="myapp")

    @app.crontab("45 17 * * *")
    async def every_5_45_pm():
        print("It is 5:45pm UTC")

    assert next_tick(app, datetime(2020, 7, 21, 22, 9, tzinfo=UTC)) == datetime(2020, 7, 22, 17, 45, tzinfo=UTC)
    assert next_tick(app, datetime(2020, 7, 21, 17, 44, 59, tzinfo=UTC)) == datetime(2020, 7, 21, 17, 45, tzinfo=UTC)
    assert next_tick(app, datetime(2020, 7, 21, 17, 45, tzinfo=UTC)) == datetime(2020, 7, 22, 17, 45, tzinfo=UTC)


@pytest.mark.parametrize("by_setting", [True, False])
def test_a_crontab_may_have_a_time_zone(by_setting: bool) -> None:
    app = App(name="myapp", timezone="Europe/Berlin" if by_setting else "UTC")

    @app.crontab("45 17 * * *", timezone=None if by_setting else "Europe/Berlin")
    async def evening(): ...

    assert next_tick(app, datetime(2020, 7, 21, 12, tzinfo=UTC)) == datetime(2020, 7, 21, 15, 45, tzinfo=UTC)
    assert next_tick(app, datetime(2020, 12, 21, 12, tzinfo=UTC)) == datetime(2020, 12, 21, 16, 45, tzinfo=UTC)


def test_a_time_that_occurs_twice_in_autumn_is_due_once_and_never_in_the_past() -> None:
    app = App(name="myapp")
    zone = ZoneInfo("Europe/Berlin")

    @app.crontab("30 2 * * *", timezone="Europe/Berlin")
    async def night(): ...

    now = datetime(2020, 10, 24, 12, tzinfo=UTC)
    found = []
    for _ in range(3):
        following = next_tick(app, now)
        assert following > now
        found.append(following.astimezone(zone).strftime("%d %H:%M"))
        now = following
    assert found == ["25 02:30", "26 02:30", "27 02:30"]


@pytest.mark.parametrize("spec", ["45 17 * *", "61 * * * *", "hello", "", "0 0 30 2 *"])
def test_an_expression_that_is_wrong_or_never_matches_is_refused(spec: str) -> None:
    app = App(name="myapp")
    with pytest.raises(ConfigurationError, match=r"is not a valid cron expression .* for example \"45 17 \* \* \*\""):

        @app.crontab(spec)
        async def never(): ...


def test_a_sixth_field_in_front_is_the_second() -> None:
    app = App(name="myapp")

    @app.crontab("*/20 45 17 * * *", timezone="Europe/Berlin")
    async def three_times(): ...

    assert next_tick(app, datetime(2020, 7, 21, 12, tzinfo=UTC)) == datetime(2020, 7, 21, 15, 45, tzinfo=UTC)
    assert next_tick(app, datetime(2020, 7, 21, 15, 45, tzinfo=UTC)) == datetime(2020, 7, 21, 15, 45, 20, tzinfo=UTC)
    assert next_tick(app, datetime(2020, 7, 21, 15, 45, 40, tzinfo=UTC)) == datetime(2020, 7, 22, 15, 45, tzinfo=UTC)


def test_a_crontab_without_an_expression_is_refused() -> None:
    app = App(name="myapp")
    with pytest.raises(ConfigurationError, match=r'@app\.crontab needs an expression, such as "45 17'):

        @app.crontab  # type: ignore[arg-type]
        async def never(): ...


def test_an_unknown_zone_is_refused() -> None:
    app = App(name="myapp")
    with pytest.raises(ConfigurationError, match='Unknown time zone "Europe/Berlinn"'):

        @app.crontab("* * * * *", timezone="Europe/Berlinn")
        async def never(): ...


def clock_at(monkeypatch: pytest.MonkeyPatch, start: datetime) -> None:
    """Let the schedules believe that it is ``start`` now. Only they: leases and time-outs go on as ever."""
    offset = start.timestamp() - time.time()
    monkeypatch.setattr(background, "time", SimpleNamespace(time=lambda: time.time() + offset))


@pytest.mark.parametrize("on_leader", [False, True])
async def test_the_guides_crontab_prints_when_its_time_comes(
    make: Callable[..., App], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], on_leader: bool
) -> None:
    app = make()

    @app.crontab("45 17 * * *", on_leader=on_leader)
    async def every_5_45_pm():
        print("It is 5:45pm UTC")

    clock_at(monkeypatch, datetime(2020, 7, 21, 17, 44, 59, 700_000, tzinfo=UTC))
    printed = ""
    async with running(app):
        assert capsys.readouterr().out == ""

        def has_printed() -> str:
            nonlocal printed
            printed += capsys.readouterr().out
            return printed

        await eventually(has_printed)
    assert printed + capsys.readouterr().out == "It is 5:45pm UTC\n"


async def test_a_crontab_of_the_leader_runs_once_on_two_workers(
    make: Callable[..., App], monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = Claims(monkeypatch)
    ran: list[str] = []

    def declare(name: str) -> App:
        app = make()

        @app.crontab("* * * * *", on_leader=True)
        async def every_minute():
            ran.append(name)

        return app

    start = datetime(2020, 7, 21, 17, 44, 59, 500_000, tzinfo=UTC)
    clock_at(monkeypatch, start)
    async with running(declare("a")), running(declare("b")):
        await eventually(lambda: ran)
    assert len(ran) == 1
    assert claims.won == [int(datetime(2020, 7, 21, 17, 45, tzinfo=UTC).timestamp() * 1000)]


async def test_a_tick_that_was_claimed_before_is_not_run_again(
    make: Callable[..., App], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that took it has died, or another one was faster."""
    ran: list[int] = []
    app = make()
    claims = Claims(monkeypatch)

    @app.timer(interval=0.1, on_leader=True)
    async def tick():
        ran.append(claims.won[-1])

    taken = (int(time.time() * 10) + 5) * 100
    async with inspecting(app) as redis:
        await redis.link.call("HSET", task_ticks(app.name), "tick", taken)
        async with running(app):
            await eventually(lambda: len(ran) == 2)
    assert ran[0] > taken
    assert ran == sorted(set(ran))


# Declaring


def test_a_task_must_be_an_async_function() -> None:
    app = App(name="myapp")
    with pytest.raises(ConfigurationError, match=r'task "plain" must be an async function without arguments'):

        @app.task
        def plain(): ...

    with pytest.raises(ConfigurationError, match=r"background task must be an async function with a name.*partial"):
        app.task(functools.partial(asyncio.sleep, 1))
    with pytest.raises(ConfigurationError, match=r'task "of_one" must be an async function without arguments'):

        @app.task  # type: ignore[arg-type]
        async def of_one(number): ...

    for decorator in (app.timer(interval=1), app.crontab("* * * * *"), app.task(on_leader=True)):
        with pytest.raises(ConfigurationError, match="must be an async function"):
            decorator(lambda: None)
    assert app.tasks == []


def test_two_tasks_of_one_name_are_refused() -> None:
    app = App(name="myapp")

    @app.task
    async def again(): ...

    with pytest.raises(ConfigurationError, match=r'two background tasks named "again"'):
        app.timer(interval=1)(again)


def test_decorators_leave_the_function_as_it_is() -> None:
    app = App(name="myapp")

    async def function(): ...

    assert app.task(function) is function
