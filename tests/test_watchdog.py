"""A worker is never alive and idle in silence: what stands still is said, and who cannot go on ends."""

import asyncio
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import Recorder, eventually, inspecting, run_to_end, running
from runnel import App, ExceptionPolicy, Record
from runnel._core.stalls import Stalls
from runnel._worker import committer, heartbeats, member, reader
from runnel.admin import Stall, examine, status_of
from runnel.instruments import PartitionFailed, PartitionLost, PartitionRecovered, PartitionStalled, TaskFailed
from runnel.streams import Stream

pytestmark = pytest.mark.anyio


class Step(Record):
    n: int


# What it decides


def test_a_position_that_stands_still_is_told_once_and_so_is_its_going_on() -> None:
    stalls = Stalls(10)
    assert stalls.look(0, {1: b"a", 2: b"a"}) == ({}, frozenset())
    assert stalls.look(6, {1: b"a", 2: b"b"}) == ({}, frozenset())
    assert stalls.look(12, {1: b"a", 2: b"b"}) == ({1: 12}, frozenset())
    assert stalls.look(14, {1: b"a", 2: b"b"}) == ({}, frozenset())
    assert stalls.look(16, {1: b"b", 2: b"b"}) == ({2: 10}, frozenset({1}))
    assert stalls.look(18, {}) == ({}, frozenset({2}))


def test_what_is_excused_does_not_count() -> None:
    stalls = Stalls(10)
    stalls.look(0, {1: b"a"})
    stalls.excuse(8)
    assert stalls.look(12, {1: b"a"}) == ({}, frozenset())
    assert stalls.look(18, {1: b"a"}) == ({1: 10}, frozenset())


@given(st.lists(st.tuples(st.floats(0.1, 20), st.dictionaries(st.integers(0, 2), st.sampled_from([b"a", b"b"])))))
def test_what_is_told_as_stalled_is_told_as_recovered_before_it_is_told_again(looks) -> None:
    stalls, now, told = Stalls(10), 0.0, set()
    for passed, waiting in looks:
        now += passed
        stalled, recovered = stalls.look(now, waiting)
        assert told.isdisjoint(stalled)
        assert told.issuperset(recovered)
        assert all(seconds >= 10 for seconds in stalled.values())
        told = told.difference(recovered) | stalled.keys()
        assert told == stalls.stalled <= waiting.keys()


# In a worker


class Case:
    """An app whose processor waits at a gate for the key ``slow``."""

    def __init__(self, name: str, url: str) -> None:
        self.app = App(name=name, redis_url=url, partition_count=4, stall_timeout=0.4)
        self.stream: Stream[Step] = self.app.stream("steps", record=Step, partition_by="n", hasher=lambda n: n)
        self.announced = Recorder(self.app)
        self.seen: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()

        @self.app.processor(self.stream, exception_policy=ExceptionPolicy.QUARANTINE)
        async def proc(events):
            async for step in events.records():
                self.seen.append(step.n)
                if step.n == 3:
                    await self.gate.wait()
                if step.n == 9:
                    raise ValueError("poison")

    async def send(self, *numbers: int) -> None:
        await self.stream.send(*(Step(n=n) for n in numbers))

    @property
    def stalled(self) -> list[PartitionStalled]:
        return self.announced.of(PartitionStalled)


@pytest.fixture
async def case(app_name: str, redis_url: str):
    case = Case(app_name, redis_url)
    yield case
    await case.app.aclose()


async def test_an_event_that_takes_long_is_told_and_so_is_its_end(case: Case) -> None:
    case.gate.clear()
    async with running(case.app) as worker:
        ids = await case.stream.send(Step(n=3), Step(n=7), Step(n=0))
        await eventually(lambda: case.stalled)
        [stalled] = case.stalled
        assert (stalled.processor, stalled.partition) == ("proc", 3)
        assert stalled.seconds >= 0.4
        assert stalled.doing == f"event {ids[0]} is in progress"
        assert [member.stalled for member in worker.members] == [{3}]

        async def shown() -> Stall | None:
            (found,) = (await status_of(case.app)).processors
            return found.partitions[3].stall

        stall = await eventually(shown)
        assert (stall.doing, stall.seconds >= 0.4) == (stalled.doing, True)
        assert any('"proc" has made no progress in partition 3 for' in f.what for f in await examine(case.app))
        case.gate.set()
        await eventually(lambda: case.announced.of(PartitionRecovered) == [PartitionRecovered("proc", 3)])
        assert [member.stalled for member in worker.members] == [frozenset()]

        async def gone() -> bool:
            return await shown() is None

        await eventually(gone)


async def test_who_has_nothing_to_do_or_is_quarantined_does_not_stall(case: Case) -> None:
    async with running(case.app):
        await case.send(0, 9, 13)
        await eventually(lambda: case.announced.of(PartitionFailed))
        case.gate.clear()
        await case.send(3)
        await eventually(lambda: case.stalled)  # so it has looked for long enough at the others as well
        case.gate.set()
    assert {stalled.partition for stalled in case.stalled} == {3}


async def test_it_is_told_while_a_handler_blocks_the_event_loop(app_name: str, redis_url: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1, stall_timeout=0.3)
    stream = app.stream("steps", record=Step, partition_by="n")
    blocked: list[tuple[float, float]] = []
    told: list[float] = []
    app.instruments.subscribe(lambda a: told.append(time.monotonic()) if isinstance(a, PartitionStalled) else None)

    @app.processor(stream)
    async def proc(events):
        async for _ in events.records():
            began = time.monotonic()
            while not told and time.monotonic() < began + 10:
                time.sleep(0.01)  # noqa: ASYNC251  that is what is tested
            blocked.append((began, time.monotonic()))

    await stream.send(Step(n=1))
    async with running(app):
        await eventually(lambda: blocked)
    await app.aclose()
    [(began, ended)] = blocked
    assert began < told[0] < ended


async def test_a_partition_that_waits_for_its_last_function_to_end_is_told(app_name: str, redis_url: str) -> None:
    """A function that swallows the loss of its partition keeps it from the next one, of the same worker."""
    # It must be lost before it is found to stand still, which is told once.
    app = App(name=app_name, redis_url=redis_url, partition_count=1, stall_timeout=2.0)
    stream = app.stream("steps", record=Step, partition_by="n")
    announced = Recorder(app)
    seen: list[int] = []
    gate = asyncio.Event()

    @app.processor(stream)
    async def proc(events):
        async for step in events.records():
            seen.append(step.n)
            while not gate.is_set():
                with suppress(asyncio.CancelledError):
                    await gate.wait()

    async with inspecting(app) as redis, running(app):
        await stream.send(Step(n=0), Step(n=1))
        await eventually(lambda: seen)
        await redis.link.call("DEL", stream.keys.control("proc").members)
        await eventually(lambda: announced.of(PartitionLost))
        why = "the function that has lost it does not end"
        await eventually(lambda: any(stalled.doing == why for stalled in announced.of(PartitionStalled)))
        gate.set()
        await eventually(lambda: seen == [0, 0, 1])


@pytest.mark.parametrize(
    ("module", "loop", "doing"),
    [(reader, "Reader", "events are not read"), (committer, "Committer", "what is processed is not committed")],
)
async def test_a_part_that_hangs_is_told_and_named(
    case: Case, monkeypatch: pytest.MonkeyPatch, module, loop: str, doing: str
) -> None:
    async def hang(self) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(getattr(module, loop), "run", hang)
    async with running(case.app) as worker:
        await case.send(0)
        await eventually(lambda: case.stalled)
        worker.abort()  # what is processed cannot be committed
    assert [stalled.doing for stalled in case.stalled] == [doing]


@pytest.mark.parametrize(
    ("module", "owner", "loop"),
    [
        (reader, "Reader", "run"),
        (committer, "Committer", "run"),
        (heartbeats, "Heartbeats", "_beat"),
        (member, "Member", "_begin"),
    ],
)
async def test_a_worker_of_which_a_part_has_failed_ends(
    case: Case, monkeypatch: pytest.MonkeyPatch, module, owner: str, loop: str
) -> None:
    async def fail(*_args, **_keywords) -> None:
        raise RuntimeError("a bug")

    def fail_at_once(*_args, **_keywords) -> None:
        raise RuntimeError("a bug")

    replacement = fail if asyncio.iscoroutinefunction(getattr(getattr(module, owner), loop)) else fail_at_once
    monkeypatch.setattr(getattr(module, owner), loop, replacement)
    status, worker = await run_to_end(case.app)
    assert status == 1
    assert str(worker.failure) == "a bug"
    assert {str(failed.error) for failed in case.announced.of(TaskFailed)} == {"a bug"}
